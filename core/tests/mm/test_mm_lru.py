"""Batches on the way to the LRU, the wait for every CPU that they cost, and the livelock that this wait once was."""

import numpy as np
import pytest
from gpusvm.check import Checker
from gpusvm.conformance.mutants import load
from gpusvm.errors import KernelError, LivelockError
from gpusvm.kernel import FirstChoice, SeededChoices
from gpusvm.mm.api import (
    HMM_PFN_REQ_FAULT,
    HMM_PFN_VALID,
    MADV_COLLAPSE,
    MIGRATE_PFN_MIGRATE,
    MIGRATE_VMA_SELECT_DEVICE_PRIVATE,
    MIGRATE_VMA_SELECT_SYSTEM,
    HmmRange,
)
from gpusvm.mm.lru import FOLIO_BATCH_SIZE
from gpusvm.mm.memory_failure import memory_failure
from gpusvm.mm.page import PG_LRU
from gpusvm.mm.swap import swap_out

PAGE = 4096
BASE = 1 << 30
BOTH = MIGRATE_VMA_SELECT_SYSTEM | MIGRATE_VMA_SELECT_DEVICE_PRIVATE
STUCK = (
    "livelock: task 'hmm' on CPU 0 has kept it for 10001 operations, and nobody else can go on; for a CPU wait "
    "'kworker/mm_percpu_wq/0:0'"
)


def on_cpu(one, cpu, fn, *args):
    return one.kernel.spawn(fn, *args, name=f"on {cpu}", cpu=cpu).join()


def on_lru(one, page) -> bool:
    return bool(one.flags(one.pfn(page)) & PG_LRU)


def test_a_small_folio_waits_in_the_batch_of_its_cpu(lab):
    one = lab(mode="explored", cpus=2)
    one.map(2, write=False)
    on_cpu(one, 0, one.write, 0)
    on_cpu(one, 1, one.write, 1)
    assert [on_lru(one, page) for page in range(2)] == [False, False]
    on_cpu(one, 1, one.pages.lru.drain)
    assert [on_lru(one, page) for page in range(2)] == [False, True]
    one.pages.lru.drain_all()
    assert [on_lru(one, page) for page in range(2)] == [True, True]
    one.finish()


def test_a_full_batch_goes_at_once_and_so_does_a_large_folio(lab):
    one = lab(mode="explored", cpus=1, thp="always", pmd_order=3)
    one.map(FOLIO_BATCH_SIZE + 1, at=1)
    assert [on_lru(one, page) for page in range(1, 8)] == [False] * 7
    assert on_lru(one, 8)  # the head of a block
    one.finish()
    one = lab(mode="explored", cpus=1)
    one.map(FOLIO_BATCH_SIZE + 1)
    assert [on_lru(one, page) for page in range(FOLIO_BATCH_SIZE + 1)] == [True] * FOLIO_BATCH_SIZE + [False]
    one.finish()


def test_a_folio_that_is_freed_leaves_its_batch(lab):
    one = lab(mode="explored", cpus=2)
    one.map(2)
    pfn = one.pfn(0)
    one.mm.munmap(BASE, PAGE)
    assert pfn not in one.pages.lru._add[0]
    assert one.pfn(1) in one.pages.lru._add[0]
    one.pages.lru.drain_all()
    assert one.flags(pfn) == 0
    one.finish()


def test_without_a_number_of_cpus_there_are_no_batches(lab):
    for mode in ("timed", "explored"):
        one = lab(mode=mode)
        one.map(1)
        assert one.pages.lru is None
        assert on_lru(one, 0)
        one.finish()


@pytest.mark.parametrize("cpu", [0, 1])
def test_migration_drains_its_own_cpu_and_then_all(lab, cpu):
    one = lab(mode="explored", choices=FirstChoice(), cpus=2)
    one.map(2, write=False)
    on_cpu(one, 1, one.write, 0)
    on_cpu(one, 0, one.write, 1)
    workers = []
    one.kernel.tracer.on = True
    drain_all = one.pages.lru.drain_all
    one.pages.lru.drain_all = lambda: (workers.append(one.kernel.smp_processor_id), drain_all())[1]
    args = on_cpu(one, cpu, one.device.migrate, one.mm, BASE, BASE + 2 * PAGE)
    assert [bool(word & MIGRATE_PFN_MIGRATE) for word in args.src[:2].tolist()] == [True, True]
    assert workers == [cpu]  # once, though a page of the other CPU was in the way
    on_cpu(one, 1 - cpu, one.read, 0, 1)
    assert not on_lru(one, 0)  # migrated home, and in a batch again
    one.finish()


def test_a_migration_of_what_lies_in_its_own_batch_waits_for_nobody(lab):
    one = lab(mode="explored", cpus=2)
    one.map(1)
    one.pages.lru.drain_all = None
    assert one.device.migrate(one.mm, BASE, BASE + PAGE).cpages == 1
    one.finish()


def test_others_who_need_the_lru_drain_it_first(lab):
    one = lab(mode="explored", cpus=2)
    one.mm.mmap(BASE, 8 * PAGE, 3)
    on_cpu(one, 1, one.write, 0)
    with pytest.raises(KernelError) as caught:
        swap_out(one.memory, one.mm, BASE)  # in the batch of CPU 1
    assert str(caught.value).startswith("-EBUSY: page")
    on_cpu(one, 1, swap_out, one.memory, one.mm, BASE)
    on_cpu(one, 1, one.write, 5)
    memory_failure(one.memory, one.pfn(5))  # which keeps the page for ever


def test_a_collapse_drains_all(lab):
    one = lab(mode="explored", cpus=2, thp="madvise", pmd_order=2)
    one.map(4, write=False)
    on_cpu(one, 1, one.write, 0, 1, 2, 3)
    one.mm.madvise(BASE, 4 * PAGE, MADV_COLLAPSE)
    assert on_lru(one, 0)
    one.finish()


class Mirror:
    """A device without any memory of its own, which reads a process through the mm."""

    def __init__(self, one, mm) -> None:
        self.one = one
        self.mm = mm
        self.sub = one.memory.mmu_interval_notifier_insert(mm, BASE + PAGE, PAGE, self)

    def invalidate(self, sub, range_, cur_seq) -> bool:
        self.one.memory.mmu_interval_set_seq(sub, cur_seq)
        return True

    def read(self) -> int:
        words = np.zeros(1, np.uint64)
        range_ = HmmRange(self.sub, BASE + PAGE, BASE + 2 * PAGE, words, HMM_PFN_REQ_FAULT, 0, None)
        self.one.memory.hmm_range_fault_unlocked_timeout(range_, 0)
        return int(words[0])


def shared_page_race(lab, seed, **cpus):
    """Migrate a device page that a child shares, and a system page next to it, while the child's device reads it."""
    one = lab(mode="explored", choices=FirstChoice(), **cpus)
    checker = Checker.of(one.memory)
    one.map(2, write=False)
    one.write(1)
    one.device.migrate(one.mm, BASE + PAGE, BASE + 2 * PAGE)
    child = one.memory.fork(one.mm, "child")
    one.write(0)  # by main, so in the batch of CPU 0, and before the device page, which is unmapped in the child later
    mirror = Mirror(one, child)
    one.kernel.set_choices(SeededChoices(seed))
    read = one.kernel.spawn(mirror.read, name="hmm")  # in turn on CPU 0
    other = type(one.device)(one.memory, 8, owner=one.device.owner)
    migrate = one.kernel.spawn(lambda: other.migrate(one.mm, BASE, BASE + 2 * PAGE, flags=BOTH), name="migrate")
    migrate.join()
    assert read.join() & HMM_PFN_VALID
    one.kernel.set_choices(FirstChoice())
    one.memory.mmu_interval_notifier_remove(mirror.sub)
    child.exit()
    checker.check_quiescent()
    one.finish()


def found(lab, seeds, **cpus) -> list[str]:
    messages = []
    for seed in seeds:
        try:
            shared_page_race(lab, seed, **cpus)
        except LivelockError as error:
            messages.append(str(error).splitlines()[0])
    return messages


def test_a_cpu_that_spins_for_a_device_page_keeps_the_migration_from_draining(lab):
    assert found(lab, range(40), cpus=2, preemptive=False) == []
    with load("MM-01").active():
        messages = found(lab, range(40), cpus=2, preemptive=False)
    assert len(messages) == 23
    assert set(messages) == {STUCK}


def test_the_same_loop_ends_where_a_kernel_preempts_it(lab):
    with load("MM-01").active():
        assert found(lab, range(40), cpus=2) == []
        assert found(lab, range(40)) == []
