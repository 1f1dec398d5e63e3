"""Do what was done to a real dmirror (test_hmm of Linux 7.3.4, two private devices), and expect every answer and event.

`recorded.json.gz` holds whole sequences of the recordings, chosen for variety: `base` without huge pages, `thp` with
one region of two 2 MiB blocks. Of the recorded operations those are here that the model has: no fork,
shared memory or injected failure. Page values are tokens in the model; who wrote which value is kept on
the side.
"""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from gpusvm.driver import DeviceSpec, Host
from gpusvm.errors import CpuSignal, KernelError
from gpusvm.mm.api import MREMAP_FIXED, MREMAP_MAYMOVE
from gpusvm.mm.pgtable import PmdKind, PteKind
from gpusvm_dmirror.info import INFO

PAGE = 4096
BASE = 0x100000000000
SLOT_PAGES = 0x1000
PROT = {0: 0, 1: 1, 3: 3}

with gzip.open(Path(__file__).with_name("recorded.json.gz")) as file:
    RECORDED = json.load(file)
SEQUENCES = [
    pytest.param(which, sequence["operations"], id=f"{which}-{sequence['number']}")
    for which in ("base", "thp")
    for sequence in RECORDED[which]
]


class Recorder:
    """One process with both devices open, which answers operations in the words of the recordings."""

    def __init__(self, bench):
        self.b = bench
        self.mm, self.memory = bench.mm, bench.memory
        second = INFO.make(
            Host(
                kernel=bench.kernel,
                memory=bench.memory,
                device=DeviceSpec(name="gpu1", vram_bytes=1 << 30, index=1),
                link=bench.machine.links[0],
                tunables=bench.driver.tunables,
                quirks=bench.driver.quirks,
            )
        )
        bench.machine.drivers.append(second)
        bench.process.vms[1] = second.vm_create(bench.mm, start=0, end=1 << 47)
        self.files = [bench.process.vms[0], bench.process.vms[1]]
        self.values = {0: 0}
        self.events = []
        for number, mirror in enumerate(self.files):
            self._listen(number, mirror)

    def _listen(self, number, mirror):
        invalidate = mirror.invalidate

        def listening(sub, range_, seq):
            if BASE < range_.end < 1 << 47:
                first, end = (range_.start - BASE) // PAGE, (range_.end - BASE) // PAGE
                owner = "own" if range_.owner is mirror.device else "-"
                self.events.append(f"inv({number},{first:x},{end:x},{range_.event},{owner})")
            return invalidate(sub, range_, seq)

        mirror.invalidate = listening

    def answer(self, operation):
        name, *numbers = operation.split()
        self.events.clear()
        try:
            result, payload = getattr(self, f"do_{name}")(*map(int, numbers))
        except KernelError as error:
            result, payload = (-1, error.errno, 0, 0), None
        return " ".join([*map(str, result), *([] if payload is None else [payload]), *self.events])

    def at(self, slot, page):
        return BASE + (slot * SLOT_PAGES + page) * PAGE

    def value(self, token):
        return f"{self.values[int(token)]:x}"

    def read_back(self, done):
        return (0, 0, done.cpages, done.faults), ",".join(map(self.value, done.tokens))

    def do_mmap(self, slot, page, n, prot, shared):
        assert not shared
        self.mm.mmap(self.at(slot, page), n * PAGE, PROT[prot])
        return (0, 0, 0, 0), None

    def do_munmap(self, slot, page, n):
        self.memory.munmap(self.mm, self.at(slot, page), n * PAGE)
        return (0, 0, 0, 0), None

    def do_mprot(self, slot, page, n, prot):
        self.memory.mprotect(self.mm, self.at(slot, page), n * PAGE, PROT[prot])
        return (0, 0, 0, 0), None

    def do_madv(self, slot, page, n, advice):
        self.memory.madvise(self.mm, self.at(slot, page), n * PAGE, advice)
        return (0, 0, 0, 0), None

    def do_mremap(self, slot, page, n, slot2, page2):
        flags = MREMAP_MAYMOVE | MREMAP_FIXED
        self.mm.mremap(self.at(slot, page), n * PAGE, n * PAGE, flags=flags, new_addr=self.at(slot2, page2))
        return (0, 0, 0, 0), None

    def _cpu(self, slot, page, n, value):
        found = []
        for i in range(n):
            vpn = self.at(slot, page + i) // PAGE
            try:
                self.memory.cpu_access(self.mm, np.array([vpn]), np.array([value is not None]))
            except CpuSignal:
                return (-2, 11, i, 0), ",".join(found)
            token = self.memory.contents.expected(self.mm, vpn)
            if value is not None:
                self.values[token] = value + i
            found.append(self.value(token))
        return (0, 0, n, 0), ",".join(found)

    def do_w(self, slot, page, n, value):
        return self._cpu(slot, page, n, value)[0], None

    def do_r(self, slot, page, n):
        return self._cpu(slot, page, n, None)

    def do_dr(self, dev, slot, page, n):
        return self.read_back(self.files[dev].ioctl.read(self.at(slot, page), n))

    def do_dw(self, dev, slot, page, n, value):
        try:
            done = self.files[dev].ioctl.write(self.at(slot, page), n)
        finally:  # what was written before an error stays written
            for i in range(n):
                token = self.memory.contents.expected(self.mm, self.at(slot, page + i) // PAGE)
                self.values.setdefault(token, value + i)
        return (0, 0, done.cpages, done.faults), None

    def do_mtd(self, dev, slot, page, n):
        return self.read_back(self.files[dev].ioctl.migrate_to_dev(self.at(slot, page), n))

    def do_mts(self, dev, slot, page, n):
        return (0, 0, self.files[dev].ioctl.migrate_to_sys(self.at(slot, page), n).cpages, 0), None

    def do_ex(self, dev, slot, page, n):
        return self.read_back(self.files[dev].ioctl.exclusive(self.at(slot, page), n))

    def do_cex(self, dev, slot, page, n):
        self.files[dev].ioctl.check_exclusive(self.at(slot, page), n)
        return (0, 0, 0, 0), None

    def do_snap(self, dev, slot, page, n):
        return (0, 0, n, 0), self.files[dev].ioctl.snapshot(self.at(slot, page), n).hex()

    def do_pm(self, slot, page, n):
        return (0, 0, n, 0), "".join(self._letter(self.at(slot, page + i)) for i in range(n))

    def _letter(self, addr):
        entry = self.mm.page_table.entry(addr)
        if entry.kind is PteKind.NONE:
            return "n"
        if entry.kind is PmdKind.HUGE_ZERO or (entry.kind is PteKind.PRESENT and entry.zero):
            return "P"
        return "X" if entry.kind in {PteKind.PRESENT, PmdKind.THP} else "S"


@pytest.mark.parametrize(("which", "operations"), SEQUENCES)
def test_a_recorded_sequence_is_answered_as_by_linux(bench, which, operations):
    recorder = Recorder(bench("dmirror:chunk_bytes=8M", thp="madvise"))
    for number, (operation, expected) in enumerate(operations):
        assert (number, operation, recorder.answer(operation)) == (number, operation, expected)
