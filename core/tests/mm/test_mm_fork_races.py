"""Faults, forks, evictions and devices on the same pages: each race in every schedule with one preemption, and more.

What a race can come to is asserted as a set: a schedule that stops reaching one of the branches is a failure too.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from errno import EBUSY, EFAULT, EINVAL, ENOMEM, EPERM

import numpy as np
import pytest
from gpusvm.check import check_quiescent
from gpusvm.errors import CpuSignal, KernelError
from gpusvm.kernel import RecordedChoices, SeededChoices
from gpusvm.mm import MmQuirks
from gpusvm.mm.api import (
    HMM_PFN_REQ_FAULT,
    HMM_PFN_REQ_WRITE,
    HMM_PFN_WRITE,
    MADV_DONTNEED,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    PROT_READ,
    HmmRange,
)

PAGE = 4096
BASE = 1 << 30
RW = 3
THP = pytest.mark.parametrize("thp", ["never", "always"])


def every_schedule(lab, thp: str, race: Callable, *, seeds: int = 80) -> set:
    """Run a race without a preemption, with one at each place where there can be one, and at random."""
    outcomes = set()

    def once(choices):
        one = lab(thp=thp, mode="explored", choices=choices, quirks=MmQuirks(mm_s3="fixed"))
        one.device.window = 8 * PAGE
        outcomes.add(race(one))
        check_quiescent(one.memory)
        one.check_quiescent()
        one.finish()
        return choices

    first = once(RecordedChoices([]))
    for at, width in enumerate(first.widths):
        for choice in range(1, width):
            once(RecordedChoices([*first.taken[:at], choice]))
    for seed in range(seeds):
        once(SeededChoices(seed))
    return outcomes


def run(one, *tasks: tuple) -> list:
    """Start tasks and wait for all."""
    started = [one.kernel.spawn(*task, name=f"task {i}") for i, task in enumerate(tasks)]
    return [task.join() for task in started]


def touch(one, mm, pages, write: bool = False) -> list[int]:
    access = one.memory.cpu_write if write else one.memory.cpu_read
    return [access(mm, BASE + page * PAGE) for page in pages]


def evict(one) -> int:
    """Evict what is on the device, once; how many folios of it were there to be evicted."""
    live = sorted(one.device.live.items())
    words: list[int] = []
    for head, order in live:
        words += [head] + [0] * ((1 << order) - 1)
    if not words:
        return 0
    before, _ = one.device.evict(words)
    return int(np.count_nonzero(before & 2))


def on_device(one, n: int = 8) -> list[int]:
    one.map(n)
    tokens = one.read(*range(n))
    one.device.migrate(one.mm, BASE, BASE + n * PAGE)
    return tokens


# --- two CPUs


@THP
def test_two_cpus_fault_the_same_device_page(lab, thp):
    """One brings it home, the other waits for the lock, or looks again, and finds it there."""

    def race(one):
        tokens = on_device(one)
        found = run(one, (touch, one, one.mm, [3]), (touch, one, one.mm, [3]))
        assert found == [tokens[3:4]] * 2
        return len(one.device.faults)

    assert every_schedule(lab, thp, race) == {1}


@THP
def test_two_cpus_fault_two_pages_of_one_window(lab, thp):
    def race(one):
        on_device(one)
        run(one, (touch, one, one.mm, [1], True), (touch, one, one.mm, [6], True))
        return len(one.device.faults)

    # Small: who is faulted on is locked, so the other's migration passes it over. Huge: the one folio comes home once.
    assert every_schedule(lab, thp, race) == ({1, 2} if thp == "never" else {1})


@THP
def test_parent_and_child_fault_the_same_device_page(lab, thp):
    def race(one):
        tokens = on_device(one)
        child = one.mm.fork("c")
        mine, its = run(one, (touch, one, one.mm, [3], True), (touch, one, child, [3]))
        assert its == tokens[3:4]
        assert touch(one, child, range(8)) == tokens
        assert one.read(*range(8)) == [*tokens[:3], *mine, *tokens[4:]]
        check_quiescent(one.memory)
        child.exit()
        return len(one.device.faults)

    assert every_schedule(lab, thp, race) == {1}


@THP
def test_both_write_what_they_share(lab, thp):
    """One copies, the other may take the page over when the first has let go of it."""

    def race(one):
        one.map(2 if thp == "never" else 8)
        tokens = one.read(0, 1)
        old = one.pfn(0)
        child = one.mm.fork("c")
        mine, its = run(one, (touch, one, one.mm, [0], True), (touch, one, child, [0], True))
        assert one.read(0, 1) == [*mine, tokens[1]]
        assert touch(one, child, [0, 1]) == [*its, tokens[1]]
        kept = [mm.name for mm in (one.mm, child) if one.entry(0, mm).pfn == old]
        check_quiescent(one.memory)
        child.exit()
        return tuple(kept)

    expected = {("p",), ("c",), ()}
    # Of a folio whose other pages are shared nobody takes a page over.
    assert every_schedule(lab, thp, race) == (expected if thp == "never" else {()})


# --- a CPU and a migration


@THP
def test_a_cpu_fault_and_a_driver_that_brings_the_page_home(lab, thp):
    """Fault first: the folio is locked and collect passes it over; collect first: the fault waits for the entry."""

    def race(one):
        tokens = on_device(one)

        def driver():
            with one.mm.mmap_lock.read():
                _, args = one.device.bring_home(one.mm, BASE, BASE + 8 * PAGE)
            return int(np.count_nonzero(args.src[:8] & 2))

        found, moved = run(one, (touch, one, one.mm, [5]), (driver,))
        assert found == tokens[5:6]
        assert one.read(*range(8)) == tokens
        return len(one.device.faults), moved

    found = every_schedule(lab, thp, race)
    assert {faults for faults, _ in found} == {0, 1}
    whole = 8 if thp == "never" else 1
    assert {(0, whole), (1, 0)} <= found


@THP
def test_a_cpu_fault_and_a_migration_to_the_device(lab, thp):
    def race(one):
        one.map(8)
        tokens = one.read(*range(8))
        _, found = run(one, (one.device.migrate, one.mm, BASE, BASE + 8 * PAGE), (touch, one, one.mm, [2, 3], True))
        faults = len(one.device.faults)
        assert one.read(*range(8)) == [*tokens[:2], *found, *tokens[4:]]
        return faults

    # The writes come before it, or wait for its end and fetch the pages back, one by one while others are not done.
    assert every_schedule(lab, thp, race) == ({0, 1, 2} if thp == "never" else {0, 1})


def test_a_cpu_fault_and_the_filling_of_a_hole(lab):
    """The page-table lock decides; a filled hole reads as zero."""

    def race(one):
        one.map(4, write=False)
        args, found = run(one, (one.device.migrate, one.mm, BASE, BASE + 4 * PAGE), (touch, one, one.mm, [1, 2], True))
        one.device.window = PAGE
        assert one.read(0, 1, 2, 3) == [0, *found, 0]
        return tuple(int(word) & 2 for word in args.src[1:3])

    assert every_schedule(lab, "never", race, seeds=160) == {(0, 0), (0, 2), (2, 0), (2, 2)}


@THP
def test_a_cpu_fault_and_an_eviction(lab, thp):
    """Whoever locks first wins; evict skips what is locked."""

    def race(one):
        tokens = on_device(one)
        found, evicted = run(one, (touch, one, one.mm, range(8)), (evict, one))
        assert found == tokens
        assert not one.device.live
        return len(one.device.faults), evicted

    found = every_schedule(lab, thp, race)
    everything = 8 if thp == "never" else 1
    assert {(0, everything), (1, 0)} <= found


# --- fork


@THP
def test_fork_copies_the_migration_entries_of_an_eviction(lab, thp):
    def race(one):
        tokens = on_device(one)

        def forker():
            child = one.mm.fork("c")
            entries = [one.entry(i, child).kind.name for i in range(8)]
            return child, entries

        _, (child, entries) = run(one, (evict, one), (forker,))
        assert touch(one, child, range(8)) == tokens
        assert one.read(*range(8)) == tokens
        assert not any(one.entry(i, mm).write for i in range(8) for mm in (one.mm, child))
        check_quiescent(one.memory)
        child.exit()
        return frozenset(entries)

    found = every_schedule(lab, thp, race)
    names = {"PRIVATE", "MIGRATION", "PRESENT" if thp == "never" else "THP"}
    assert {frozenset({name}) for name in names} <= found


@THP
def test_a_child_comes_and_goes_while_an_eviction_runs(lab, thp):
    def race(one):
        tokens = on_device(one)

        def forker():
            child = one.mm.fork("c")
            wrote = touch(one, child, [4], True)
            assert touch(one, child, [4]) == wrote
            child.exit()

        run(one, (evict, one), (forker,), (touch, one, one.mm, [1], True))
        assert one.read(0, 2, 3, 4) == [tokens[i] for i in (0, 2, 3, 4)]
        assert [mm.name for mm in one.memory.mms] == ["p"]
        return

    every_schedule(lab, thp, race)


@THP
def test_an_eviction_when_only_the_child_is_left(lab, thp):
    def race(one):
        tokens = on_device(one)
        child = one.mm.fork("c")
        parent, one.mm = one.mm, child
        run(one, (evict, one), (parent.exit,))
        evict(one)
        assert not one.device.live
        assert one.read(*range(8)) == tokens
        one.write(*range(8))
        return

    every_schedule(lab, thp, race)


@THP
def test_a_fork_while_the_parent_writes(lab, thp):
    """Faults of the parent wait for fork; until a page is copied, its other threads write it."""

    def race(one):
        one.map(16)
        before = one.read(*range(16))
        child, wrote = run(one, (one.mm.fork, "c"), (touch, one, one.mm, [15, 0, 7], True))
        found = touch(one, child, range(16))
        assert one.read(15, 0, 7) == wrote
        changed = tuple(i for i in (15, 0, 7) if found[i] != before[i])
        assert {found[i] for i in changed} <= set(wrote)
        check_quiescent(one.memory)
        child.exit()
        return changed

    # A page written before the copy is the child's too; a later write is not, whatever came before it.
    assert every_schedule(lab, thp, race) >= {(), (15,), (15, 0, 7)}


class Mirror:
    """A device that writes what it may, under its lock, and believes its words until it is told otherwise."""

    def __init__(self, one, n: int) -> None:
        self.one = one
        self.lock = one.kernel.mutex("mirror")
        self.words: dict[int, int] = {}
        self.sub = one.memory.mmu_interval_notifier_insert(one.mm, BASE, n * PAGE, self)

    def invalidate(self, sub, range_, cur_seq) -> bool:
        with self.lock:
            self.one.memory.mmu_interval_set_seq(sub, cur_seq)
            for page in list(self.words):
                if range_.start <= BASE + page * PAGE < range_.end:
                    del self.words[page]
        return True

    def write(self, pages) -> list[int]:
        """Write pages as a device does: fault, then use the words under the lock; the tokens written."""
        return [self._write(page) for page in pages]

    def _write(self, page: int) -> int:
        one = self.one
        words = np.zeros(1, np.uint64)
        default = HMM_PFN_REQ_FAULT | HMM_PFN_REQ_WRITE
        range_ = HmmRange(self.sub, BASE + page * PAGE, BASE + (page + 1) * PAGE, words, default, 0, one.device.owner)
        while True:
            with self.lock:
                word = self.words.get(page, 0)
                if word & HMM_PFN_WRITE:
                    return one.memory.contents.write(one.mm, (BASE >> 12) + page, word & ((1 << 53) - 1), writer=1)
            range_.notifier_seq = one.memory.mmu_interval_read_begin(self.sub)
            with may_fail(EBUSY), one.mm.mmap_lock.read():
                one.memory.hmm_range_fault(range_)
            with self.lock:
                if not one.memory.mmu_interval_read_retry(self.sub, range_.notifier_seq):
                    self.words[page] = int(words[0])
                    assert one.entry(page).write
                    assert one.pfn(page) == self.words[page] & ((1 << 53) - 1)


@contextmanager
def may_fail(*errnos: int) -> Iterator[None]:
    try:
        yield
    except KernelError as error:
        if error.errno not in errnos:
            raise


@THP
def test_a_fork_and_a_device_that_writes(lab, thp):
    """PROTECTION_PAGE takes the device's right to write before the child can see the page."""

    def race(one):
        one.map(8)
        before = one.read(*range(8))
        mirror = Mirror(one, 8)
        assert mirror.write([2]) == one.read(2)
        shared = one.read(2)
        child, wrote = run(one, (one.mm.fork, "c"), (mirror.write, [2, 6]))
        assert one.read(2, 6) == wrote
        found = touch(one, child, [2, 6])
        assert found[0] in {shared[0], wrote[0]}
        assert found[1] in {before[6], wrote[1]}
        check_quiescent(one.memory)
        one.memory.mmu_interval_notifier_remove(mirror.sub)
        child.exit()
        return tuple(int(token in wrote) for token in found)

    found = every_schedule(lab, thp, race)
    assert {(0, 0), (1, 0), (1, 1)} <= found


# --- all of it


def cpu(one, mm, seed: int, steps: int, n: int) -> None:
    for k in range(steps):
        page = (seed * 7 + k * 5) % n
        with suppress(CpuSignal):
            touch(one, mm, [page], (seed + k) % 3 != 0)


def generations(one, mm, depth: int, n: int) -> None:
    """Fork, let child and parent work at the same time, and let the child do the same."""
    for k in range(2):
        with may_fail(ENOMEM):
            child = mm.fork(f"{mm.name}{k}")
            tasks = [one.kernel.spawn(cpu, one, mm, depth + k, 5, n, name=f"parent of {child.name}")]
            if depth:
                tasks.append(one.kernel.spawn(generations, one, child, depth - 1, n, name=child.name))
            with may_fail(EFAULT, EINVAL, ENOMEM):
                child.mprotect(BASE + 5 * PAGE, 7 * PAGE, PROT_READ if k else RW)
                cpu(one, child, k, 4, n)
                child.munmap(BASE + (3 + 8 * k) * PAGE, 6 * PAGE)
                child.madvise(BASE + 20 * PAGE, 2 * PAGE, MADV_DONTNEED)
                flags = MREMAP_MAYMOVE | MREMAP_FIXED
                child.mremap(BASE + 9 * PAGE, 12 * PAGE, 12 * PAGE, flags=flags, new_addr=BASE + (32 + 5 * k) * PAGE)
            cpu(one, child, k + 3, 6, 44)
            for task in tasks:
                task.join()
            child.exit()


def migrate(one, mm, steps: int) -> None:
    for k in range(steps):
        start = (k * 8) % 24
        with may_fail(EINVAL):
            one.device.migrate(mm, BASE + start * PAGE, BASE + (start + 8) * PAGE)


def evictions(one, steps: int) -> None:
    for k in range(steps):
        for head in sorted(one.device.live)[k:][:3]:
            order = one.device.live.get(head)
            if order is not None:
                one.device.evict([head] + [0] * ((1 << order) - 1))
        one.kernel.cond_resched()


def exclusive(one, steps: int) -> None:
    for k in range(steps):
        with may_fail(EFAULT, ENOMEM, EPERM), one.mm.mmap_lock.read():
            pfn = one.memory.make_device_exclusive(one.mm, BASE + (k * 11 % 24) * PAGE, one)
            one.kernel.cond_resched()
            head = one.memory.folio_head(pfn)
            one.memory.folio_unlock(head)
            one.memory.folio_put(head)


@THP
@pytest.mark.parametrize("seed", range(24))
def test_families_on_the_same_pages(lab, thp, seed):
    one = lab(thp=thp, mode="explored", choices=SeededChoices(seed), quirks=MmQuirks(mm_s3="fixed"))
    one.device.window = 8 * PAGE
    one.map(24, write=seed % 2 == 0)
    tasks = [
        (cpu, one, one.mm, 1, 10, 24),
        (generations, one, one.mm, 2, 24),
        (migrate, one, one.mm, 4),
        (evictions, one, 4),
        (exclusive, one, 4),
    ]
    run(one, *tasks)
    assert [mm.name for mm in one.memory.mms] == ["p"]
    check_quiescent(one.memory)
    one.check_quiescent()
    one.finish()
    assert one.memory.rmap.mappings == {}
