"""Machines for the tests of drm/: a tiny driver on the real mm, and on one without page tables."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))  # drm_tiny_driver and drm_trivial_mm, for the tests beside them

from drm_tiny_driver import TinyDevice, TinyFile
from drm_trivial_mm import TrivialMemory
from gpusvm.drm import DrmQuirks
from gpusvm.kernel import Kernel
from gpusvm.mm import MemoryManager, MmQuirks
from gpusvm.mm.api import PROT_READ, PROT_WRITE

PAGE = 4096


class Machine:
    """Be a process on the real mm, and devices with a mirror of it each."""

    def __init__(
        self,
        kernel,
        *,
        devices=1,
        same_owner=True,
        thp="never",
        notifier_size=512 << 20,
        quirk="as_written",
        mm_quirks=None,
        **kwargs,
    ):
        self.kernel = kernel
        self.memory = MemoryManager(kernel, ram_pages=8192, thp=thp, quirks=mm_quirks or MmQuirks())
        self.mm = self.memory.mm_alloc("process")
        shared = object()
        self.devices = [
            TinyDevice(
                self.memory,
                i,
                owner=shared if same_owner else object(),
                quirks=DrmQuirks(hole_count=quirk),
                **kwargs,
            )
            for i in range(devices)
        ]
        self.files = [TinyFile(device, self.mm, notifier_size=notifier_size) for device in self.devices]

    def mmap(self, page, n, prot=PROT_READ | PROT_WRITE):
        self.mm.mmap(page * PAGE, n * PAGE, prot)

    def write(self, page, n=1):
        for i in range(page, page + n):
            self.memory.cpu_write(self.mm, i * PAGE)

    def read(self, page, n=1):
        """Have the CPU read pages; the contents check what it finds."""
        for i in range(page, page + n):
            self.memory.cpu_read(self.mm, i * PAGE)

    def device_read(self, file, page, n=1):
        vpns = np.arange(page, page + n)
        pfns = np.array([file.mapped_pfn(int(vpn) * PAGE) for vpn in vpns])
        self.memory.contents.read_many(self.mm, vpns, pfns)

    def device_write(self, file, page, n=1):
        vpns = np.arange(page, page + n)
        pfns = np.array([file.mapped_pfn(int(vpn) * PAGE, write=True) for vpn in vpns])
        self.memory.contents.write_many(self.mm, vpns, pfns, writer=1)

    def finish(self):
        """End the process and the devices; nothing may be left over."""
        assert self.memory.contents.mismatch_count == 0, [str(m) for m in self.memory.contents.mismatches]
        for file in self.files:
            file.close()
        self.mm.exit()
        self.kernel.settle()
        for device in self.devices:
            device.remove()
        self.kernel.settle()
        self.kernel.ledger.assert_empty()
        assert {kind: n for kind, n in self.kernel.gauges.now.items() if n} == {}


class TrivialMachine:
    """Be a process on the trivial mm, and devices with a mirror of it each."""

    def __init__(self, kernel, *, devices=1, same_owner=True, **kwargs):
        self.kernel = kernel
        self.memory = TrivialMemory(kernel)
        self.mm = self.memory.new_mm()
        shared = object()
        self.devices = [
            TinyDevice(self.memory, i, owner=shared if same_owner else object(), **kwargs) for i in range(devices)
        ]
        self.files = [TinyFile(device, self.mm) for device in self.devices]

    def close(self):
        for file in self.files:
            file.close()


@pytest.fixture
def trivial():
    """Make machines on the trivial mm."""
    machines = []

    def make(**kwargs):
        machines.append(TrivialMachine(Kernel(), **kwargs))
        return machines[-1]

    yield make
    for machine in machines:
        machine.kernel.close()


@pytest.fixture
def machine():
    """Make machines on the real mm; each is ended after the test, unless told otherwise, and must then hold nothing."""
    machines = []

    def make(*, kernel=None, finish=True, **kwargs):
        machines.append((Machine(kernel or Kernel(), **kwargs), finish))
        return machines[-1][0]

    yield make
    for made, finish in machines:
        if finish:
            made.finish()
        made.kernel.close()
