"""CPUs, a device, evictions and system calls on the same few pages, in many orders: what holds when all is over."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from errno import EBUSY, EFAULT, EINVAL, ENOMEM, EPERM

import numpy as np
import pytest
from gpusvm.check import Checker
from gpusvm.errors import CpuSignal, KernelError
from gpusvm.kernel import SeededChoices
from gpusvm.mm import MmQuirks
from gpusvm.mm.api import HMM_PFN_REQ_FAULT, HMM_PFN_REQ_WRITE, PROT_READ, HmmRange
from gpusvm.mm.pgtable import PmdLeaf

PAGE = 4096
BASE = 1 << 30
RW = 3
N = 24


@contextmanager
def may_fail(*errnos: int) -> Iterator[None]:
    try:
        yield
    except KernelError as error:
        if error.errno not in errnos:
            raise


class Mirror:
    """A device that reads the address space and believes its words until it is told otherwise."""

    def __init__(self, one) -> None:
        self.one = one
        self.lock = one.kernel.mutex("mirror")
        self.words: dict[int, int] = {}
        self.sub = one.memory.mmu_interval_notifier_insert(one.mm, BASE, N * PAGE, self)

    def invalidate(self, sub, range_, cur_seq) -> bool:
        with self.lock:
            self.one.memory.mmu_interval_set_seq(sub, cur_seq)
            for page in list(self.words):
                if range_.start <= BASE + page * PAGE < range_.end:
                    del self.words[page]
        return True

    def fault(self, page: int, n: int, default: int) -> None:
        with may_fail(EFAULT, EPERM):
            self._fault(page, n, default)

    def _fault(self, page: int, n: int, default: int) -> None:
        one = self.one
        words = np.zeros(n, np.uint64)
        range_ = HmmRange(self.sub, BASE + page * PAGE, BASE + (page + n) * PAGE, words, default, 0, one.device.owner)
        for _ in range(6):
            range_.notifier_seq = one.memory.mmu_interval_read_begin(self.sub)
            with may_fail(EBUSY), one.mm.mmap_lock.read():
                one.memory.hmm_range_fault(range_)
            with self.lock:
                # After EBUSY the sequence has changed.
                if not one.memory.mmu_interval_read_retry(self.sub, range_.notifier_seq):
                    self.words.update({page + i: word for i, word in enumerate(words.tolist())})
                    self.check()
                    return

    def check(self) -> None:
        """Invariant 43: what the device believes is what the page table says, its lock held."""
        for page, word in self.words.items():
            if not word >> 63:
                continue
            entry = self.one.entry(page)
            offset = page & (self.one.nr - 1) if isinstance(entry, PmdLeaf) else 0
            assert entry.pfn + offset == word & ((1 << 53) - 1)
            assert entry.write or not word >> 62 & 1


def cpu(one, seed: int, steps: int) -> None:
    for k in range(steps):
        page = (seed * 7 + k * 5) % N
        with suppress(CpuSignal):
            (one.write if (seed + k) % 3 else one.read)(page)


def syscalls(one, steps: int) -> None:
    for k in range(steps):
        page, n = (k * 5) % 16, 1 + k * 3 % 8
        with may_fail(ENOMEM):
            if k % 3 == 0:
                one.mm.mprotect(BASE + page * PAGE, n * PAGE, PROT_READ)
            elif k % 3 == 1:
                one.mm.munmap(BASE + page * PAGE, n * PAGE)
            else:
                one.mm.mmap(BASE + page * PAGE, n * PAGE, RW)
                one.mm.mprotect(BASE, N * PAGE, RW)


def migrate(one, steps: int) -> None:
    for k in range(steps):
        start = (k * 8) % N
        with may_fail(EINVAL):
            one.device.migrate(one.mm, BASE + start * PAGE, BASE + (start + 8) * PAGE)


def evict(one, steps: int) -> None:
    for _ in range(steps):
        heads = sorted(one.device.live)[:3]
        for head in heads:
            if one.device.live.get(head) is not None:
                one.device.evict([head] + [0] * ((1 << one.device.live[head]) - 1))
        one.kernel.cond_resched()


@pytest.mark.parametrize("thp", ["never", "always"])
@pytest.mark.parametrize("seed", range(12))
def test_everybody_at_once(lab, thp: str, seed: int) -> None:
    # As written, MM-S3 leaves a device page locked for ever when a CPU faults inside a large folio that is mapped by
    # PTEs: seed 220 with huge pages shows it.
    one = lab(thp=thp, mode="explored", choices=SeededChoices(seed), quirks=MmQuirks(mm_s3="fixed"))
    checker = Checker.of(one.memory)
    one.device.window = 8 * PAGE
    one.map(N, write=False)
    mirror = Mirror(one)

    def device(steps: int) -> None:
        for k in range(steps):
            # Whole blocks, so that MM-S1 plays no part.
            mirror.fault(8 * (k % 3), 8, HMM_PFN_REQ_FAULT | (HMM_PFN_REQ_WRITE if k % 2 else 0))

    tasks = [
        one.kernel.spawn(cpu, one, 1, 12, name="cpu 1"),
        one.kernel.spawn(cpu, one, 2, 12, name="cpu 2"),
        one.kernel.spawn(device, 5, name="mirror"),
        one.kernel.spawn(migrate, one, 4, name="migrate"),
        one.kernel.spawn(evict, one, 3, name="evict"),
        one.kernel.spawn(syscalls, one, 9, name="syscalls"),
    ]
    for task in tasks:
        task.join()
    with mirror.lock:
        mirror.check()
    one.check_quiescent()
    checker.check_quiescent()
    one.memory.mmu_interval_notifier_remove(mirror.sub)
    one.finish()
