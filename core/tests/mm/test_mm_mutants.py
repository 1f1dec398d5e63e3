"""Each mutant of mm/ shows by its own trigger, and nothing of it is left afterwards."""

import re
from errno import EFAULT

import numpy as np
import pytest
from gpusvm.conformance.mutants import load
from gpusvm.errors import KernelError, UseAfterFreeError
from gpusvm.kernel import FirstChoice, Kernel
from gpusvm.mm import Geometry, MemoryManager
from gpusvm.mm.api import (
    HMM_PFN_REQ_FAULT,
    HMM_PFN_VALID,
    HMM_PFN_WRITE,
    MADV_COLLAPSE,
    PROT_READ,
    PROT_WRITE,
    HmmRange,
)

PAGE = 4096
BASE = 1 << 30


class Mirror:
    """A device that reads the CPU's page table under an interval notifier."""

    def __init__(self, memory, mm) -> None:
        self.memory = memory
        self.mm = mm
        self.sub = memory.mmu_interval_notifier_insert(mm, 0, 1 << 46, self)

    def invalidate(self, sub, range_, cur_seq) -> bool:
        self.memory.mmu_interval_set_seq(sub, cur_seq)
        return True

    def look(self, n: int, request: int = 0) -> list[int]:
        """Return the words of the first pages, none of which is this device's own."""
        range_ = HmmRange(self.sub, BASE, BASE + n * PAGE, np.zeros(n, np.uint64), request)
        self.seq = range_.notifier_seq = self.memory.mmu_interval_read_begin(self.sub)
        with self.mm.mmap_lock.read():
            self.memory.hmm_range_fault(range_)
        return range_.hmm_pfns.tolist()

    def write(self, words: list[int]) -> bool:
        """Let the device write the pages unless something changed since it looked."""
        if self.memory.mmu_interval_read_retry(self.sub, self.seq):
            return False
        at = np.arange(len(words))
        pfns = np.array([word & ~(0xFF << 56) for word in words])
        self.memory.contents.write_many(self.mm, BASE // PAGE + at, pfns, writer=1)
        return True


def foreign(lab) -> list[int]:
    """Ask for pages that are another device's."""
    one = lab()
    one.map(4)
    one.device.migrate(one.mm, BASE, BASE + 2 * PAGE)
    mirror = Mirror(one.memory, one.mm)
    with pytest.raises(KernelError, match="was invalidated"):  # by what brings the pages home
        mirror.look(4, HMM_PFN_REQ_FAULT)
    return mirror.look(4, HMM_PFN_REQ_FAULT)


def test_mm_09_device_pages_of_another_owner_are_refused(lab) -> None:
    assert all(word & HMM_PFN_VALID for word in foreign(lab))
    with load("MM-09").active():
        one = lab()
        one.map(4)
        one.device.migrate(one.mm, BASE, BASE + 2 * PAGE)
        with pytest.raises(KernelError) as raised:
            Mirror(one.memory, one.mm).look(4, HMM_PFN_REQ_FAULT)
        assert raised.value.errno == EFAULT
    assert all(word & HMM_PFN_VALID for word in foreign(lab))


class Removing(FirstChoice):
    """Let the owner remove its subscription while a window is open, and go on as soon as the sequence has moved."""

    subs = None

    def pick_task(self, candidates, running) -> int:
        if self.subs is None:
            return 0
        first = "owner" if self.subs.is_invalidating != bool(self.subs.deferred_list) else "cpu"
        return next((i for i, task in enumerate(candidates) if task.name == first), 0)


def remove_in_a_window() -> None:
    """Free a subscription when its removal is over, while a window that it may be part of ends."""
    choices = Removing()
    with Kernel(mode="explored", choices=choices) as kernel:
        memory = MemoryManager(kernel, ram_pages=64, geometry=Geometry(pmd_order=2))
        mm = memory.mm_alloc("p")
        mm.mmap(BASE, 4 * PAGE, PROT_READ | PROT_WRITE)
        memory.cpu_write(mm, BASE)
        mirror = Mirror(memory, mm)

        def remove() -> None:
            memory.mmu_interval_notifier_remove(mirror.sub)
            kernel.free(mirror.sub)

        choices.subs = mm.notifiers
        tasks = [kernel.spawn(remove, name="owner"), kernel.spawn(mm.mprotect, BASE, 4 * PAGE, PROT_READ, name="cpu")]
        for task in tasks:
            task.join()
        mm.exit()


def test_mm_10_a_notifier_is_free_before_it_has_left_the_tree() -> None:
    remove_in_a_window()
    with load("MM-10").active(), pytest.raises(UseAfterFreeError) as raised:
        remove_in_a_window()
    assert re.sub(r"\.py:\d+", ".py", str(raised.value)) == (
        "use after free: task 'cpu' writes .deferred of MmuIntervalNotifier(p, 0x0..0x3fffffffffff, seq=3) at "
        "mm/mmu_notifier.py; task 'owner' freed it at mm/test_mm_mutants.py"
    )
    remove_in_a_window()


def collapsed(lab) -> bool:
    """Let a device write pages that a collapse has replaced; whether it did, as nobody told it."""
    one = lab(mode="explored")
    one.map(8)
    mirror = Mirror(one.memory, one.mm)
    words = mirror.look(8)
    assert all(word & HMM_PFN_WRITE for word in words)
    one.mm.madvise(BASE, 8 * PAGE, MADV_COLLAPSE)
    return mirror.write(words)


def test_mm_12_a_collapse_that_tells_nobody(lab) -> None:
    assert not collapsed(lab)
    with load("MM-12").active(), pytest.raises(UseAfterFreeError) as raised:
        collapsed(lab)
    assert re.sub(r"\.py:\d+", ".py", str(raised.value)) == (
        "use after free: task 'main' writes to free page 0x0; task 'main' freed it at mm/rmap.py"
    )
    assert not collapsed(lab)
