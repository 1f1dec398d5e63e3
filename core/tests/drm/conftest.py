"""Machines for the tests of drm/: a tiny driver on the real mm, and on one without page tables."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # drm_tiny_driver and drm_trivial_mm, for the tests beside them

from drm_tiny_driver import TinyDevice, TinyFile
from drm_trivial_mm import TrivialMemory
from gpusvm.kernel import Kernel


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
