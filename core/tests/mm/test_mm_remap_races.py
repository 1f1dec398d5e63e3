"""What discards or moves memory while others use it: each race in every schedule with one preemption, and more."""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from errno import EAGAIN, EBUSY, EFAULT, EINVAL, ENOMEM

import numpy as np
import pytest
from gpusvm.errors import CpuSignal, KernelError
from gpusvm.kernel import RecordedChoices, SeededChoices
from gpusvm.mm import MmQuirks
from gpusvm.mm.api import (
    HMM_PFN_REQ_FAULT,
    HMM_PFN_VALID,
    MADV_COLLAPSE,
    MADV_DONTNEED,
    MADV_FREE,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    PROT_READ,
    HmmRange,
)
from gpusvm.mm.pgtable import PmdLeaf

PAGE = 4096
BASE = 1 << 30
FIXED = MREMAP_MAYMOVE | MREMAP_FIXED
THP = pytest.mark.parametrize("thp", ["never", "always"])


def every_schedule(lab, thp: str, race: Callable, *, seeds: int = 60) -> set:
    """Run a race without a preemption, with one at each place where there can be one, and at random; the outcomes."""
    outcomes = set()

    def once(choices):
        one = lab(thp=thp, mode="explored", choices=choices, quirks=MmQuirks(mm_s3="fixed", mm_q18="fixed"))
        one.device.window = 8 * PAGE
        outcomes.add(race(one))
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
    started = [one.kernel.spawn(*task, name=f"task {i}") for i, task in enumerate(tasks)]
    return [task.join() for task in started]


@contextmanager
def may_fail(*errnos: int) -> Iterator[None]:
    try:
        yield
    except KernelError as error:
        if error.errno not in errnos:
            raise


def dontneed(one, page: int, n: int) -> None:
    one.mm.madvise(one.va(page), n * PAGE, MADV_DONTNEED)


def evict(one) -> None:
    words: list[int] = []
    for head, order in sorted(one.device.live.items()):
        words += [head] + [0] * ((1 << order) - 1)
    if words:
        one.device.evict(words)


# --- MADV_DONTNEED, with only its area locked


@THP
def test_dontneed_and_a_migration_to_the_device(lab, thp: str) -> None:
    """It may find mapped pages, migration entries or device pages; what it took is gone, and so is its copy."""

    def race(one):
        one.map(8)
        tokens = one.read(*range(8))
        args, _ = run(one, (one.device.migrate, one.mm, BASE, one.va(8)), (dontneed, one, 2, 3))
        assert one.mm.rss[0] in {5, 8}
        live = sum(1 << order for order in one.device.live.values())
        found = one.read(*range(8))
        assert found == [*tokens[:2], 0, 0, 0, *tokens[5:]]
        return live, int(np.count_nonzero(args.src[:8] & 1))

    found = every_schedule(lab, thp, race)
    if thp == "never":
        # Before: holes are filled. Between setup and finalize: collected, and the destinations freed. After: zapped.
        assert {(8, 5), (5, 8)} <= found
        assert {valid for _, valid in found} == {5, 6, 7, 8} or {5, 8} <= {valid for _, valid in found}
    else:
        assert {live for live, _ in found} >= {8}


@THP
def test_dontneed_and_the_filling_of_holes(lab, thp: str) -> None:
    """A device page may go before finalize has put it."""

    def race(one):
        one.map(8, write=False)
        if thp == "never":
            one.write(0)  # a table, so that the holes are single pages
        run(one, (one.device.migrate, one.mm, BASE, one.va(8)), (dontneed, one, 0, 8))
        live = len(one.device.live)
        assert one.read(*range(8)) == [0] * 8
        return live

    whole = 7 if thp == "never" else 1
    assert {0, whole} <= every_schedule(lab, thp, race)


@THP
def test_dontneed_of_everything_and_a_cpu_that_writes(lab, thp: str) -> None:
    """The table itself may go between the fault and the access."""

    def race(one):
        one.map(8)
        one.read(3)
        _, token = run(one, (dontneed, one, 0, 8), (one.write, 3))
        found = one.read(3)
        assert found in ([0], token)
        return found == token

    assert every_schedule(lab, thp, race) == {True, False}


@THP
def test_dontneed_and_a_cpu_fault_on_a_device_page(lab, thp: str) -> None:
    def race(one):
        one.map(8)
        tokens = one.read(*range(8))
        one.device.migrate(one.mm, BASE, one.va(8))
        _, found = run(one, (dontneed, one, 1, 6), (one.read, 3))
        assert found in ([0], [tokens[3]])
        assert one.read(0, 7) == [tokens[0], tokens[7]]
        assert one.read(*range(1, 7)) == [0] * 6
        return found == [0], len(one.device.faults)

    assert {zero for zero, _ in every_schedule(lab, thp, race)} == {True, False}


@THP
def test_dontneed_twice_and_free(lab, thp: str) -> None:
    def race(one):
        one.map(8)
        one.device.migrate(one.mm, BASE, one.va(4))
        run(
            one,
            (dontneed, one, 0, 5),
            (dontneed, one, 3, 5),
            (one.mm.madvise, one.va(0), 8 * PAGE, MADV_FREE),
        )
        assert one.mm.rss[0] == 0
        assert not one.device.live
        return one.read(*range(8)) == [0] * 8

    assert every_schedule(lab, thp, race, seeds=30) == {True}


@THP
def test_dontneed_and_an_eviction(lab, thp: str) -> None:
    """No lock is common to the two but those of the page table and the folio."""

    def race(one):
        one.map(8)
        tokens = one.read(*range(8))
        one.device.migrate(one.mm, BASE, one.va(8))
        run(one, (dontneed, one, 2, 4), (evict, one))
        found = one.read(*range(8))
        assert found == [*tokens[:2], 0, 0, 0, 0, *tokens[6:]]
        return len(one.device.faults) > 0

    assert False in every_schedule(lab, thp, race)


# --- munmap


class Mirror:
    """A device that faults pages in and forgets what it is told to."""

    def __init__(self, one) -> None:
        self.one = one
        self.words: dict[int, int] = {}
        self.lock = one.kernel.mutex("mirror")
        self.sub = one.memory.mmu_interval_notifier_insert(one.mm, 0, 1 << 46, self)

    def invalidate(self, sub, range_, cur_seq) -> bool:
        if not range_.blockable and not self.lock.trylock():
            return False
        with self.lock if range_.blockable else closing(self):
            self.one.memory.mmu_interval_set_seq(sub, cur_seq)
            self.words = {
                page: word for page, word in self.words.items() if not range_.start <= self.one.va(page) < range_.end
            }
        return True

    def close(self) -> None:
        self.lock.unlock()

    def fault(self, page: int, n: int) -> str:
        """Fault once, or again while somebody changes the range; what came of it."""
        one = self.one
        range_ = HmmRange(self.sub, one.va(page), one.va(page + n), np.zeros(n, np.uint64), HMM_PFN_REQ_FAULT)
        while True:
            range_.notifier_seq = one.memory.mmu_interval_read_begin(self.sub)
            try:
                with one.mm.mmap_lock.read():
                    one.memory.hmm_range_fault(range_)
            except KernelError as error:
                if error.errno == EBUSY:
                    continue
                return "nothing mapped" if error.errno == EFAULT else f"errno {error.errno}"
            with self.lock:
                if one.memory.mmu_interval_read_retry(self.sub, range_.notifier_seq):
                    continue
                self.words = {page + i: int(word) for i, word in enumerate(range_.hmm_pfns)}
                self.check()
                return "mapped"

    def check(self) -> None:
        """Invariant 43, the lock held."""
        for page, word in self.words.items():
            assert word & HMM_PFN_VALID
            entry = self.one.entry(page)
            offset = page & (self.one.nr - 1) if isinstance(entry, PmdLeaf) else 0
            assert entry.pfn + offset == word & ((1 << 53) - 1)

    def gone(self) -> None:
        self.one.memory.mmu_interval_notifier_remove(self.sub)


@THP
def test_munmap_and_hmm_range_fault(lab, thp: str) -> None:
    """The areas are detached before anybody is told, so a fault finds nothing, or what it found is taken back."""

    def race(one):
        one.map(16)
        mirror = Mirror(one)
        found, _ = run(one, (mirror.fault, 0, 8), (one.mm.munmap, BASE, 16 * PAGE))
        assert mirror.words == {}
        mirror.gone()
        return found

    assert every_schedule(lab, thp, race) == {"mapped", "nothing mapped"}


@THP
def test_munmap_and_a_cpu_fault_on_a_device_page(lab, thp: str) -> None:
    """Invariant 48: the fault holds mmap_lock, so its area stays until it is done."""

    def race(one):
        one.map(8)
        one.device.migrate(one.mm, BASE, one.va(8))

        def cpu() -> bool:
            with suppress(CpuSignal):
                one.read(3)
                return True
            return False

        read, _ = run(one, (cpu,), (one.mm.munmap, BASE, 8 * PAGE))
        assert not one.device.live
        return read, len(one.device.faults)

    assert every_schedule(lab, thp, race) >= {(True, 1), (False, 0)}


@THP
def test_munmap_of_a_part_and_an_eviction(lab, thp: str) -> None:
    def race(one):
        one.map(8)
        tokens = one.read(*range(8))
        one.device.migrate(one.mm, BASE, one.va(8))
        run(one, (one.mm.munmap, one.va(2), 3 * PAGE), (evict, one))
        assert one.read(0, 1, 5, 6, 7) == [tokens[i] for i in (0, 1, 5, 6, 7)]
        return one.mm.rss[0]

    assert every_schedule(lab, thp, race) == {5}


# --- mremap


@THP
@pytest.mark.parametrize("to", [32, 35])
def test_mremap_and_an_eviction(lab, thp: str, to: int) -> None:
    """rmap finds every entry at the old place or at the new one, never at none (take_rmap_locks)."""

    def race(one):
        one.map(8)
        tokens = one.read(*range(8))
        one.device.migrate(one.mm, BASE, one.va(8))

        def move() -> None:
            one.mm.mremap(BASE, 8 * PAGE, 8 * PAGE, flags=FIXED, new_addr=one.va(to))

        run(one, (evict, one), (move,))
        moved = [one.entry(to + i).kind.name for i in range(8)]
        assert one.read(*range(to, to + 8)) == tokens
        return "PRIVATE" in moved

    assert False in every_schedule(lab, thp, race)


@THP
def test_mremap_onto_a_neighbour_and_an_eviction(lab, thp: str) -> None:
    """The pages go to an area that rmap visits first, so rmap has to wait (copy_vma: need_rmap_locks)."""

    def race(one):
        one.map(24)
        tokens = one.read(*range(24))
        one.device.migrate(one.mm, one.va(8), one.va(16))
        one.mm.mremap(one.va(8), 8 * PAGE, 8 * PAGE, flags=FIXED, new_addr=one.va(64))

        def back() -> None:
            one.mm.mremap(one.va(64), 8 * PAGE, 8 * PAGE, flags=FIXED, new_addr=one.va(8))

        run(one, (evict, one), (back,))
        assert len(one.mm.vmas) == 1
        assert one.read(*range(24)) == tokens
        return True

    assert every_schedule(lab, thp, race) == {True}


@THP
def test_mremap_and_a_cpu(lab, thp: str) -> None:
    """What a CPU writes just before the move is at the new place."""

    def race(one):
        one.map(8)

        def cpu() -> list[int]:
            with suppress(CpuSignal):
                return one.write(3)
            return []

        def move() -> None:
            one.mm.mremap(BASE, 8 * PAGE, 8 * PAGE, flags=FIXED, new_addr=one.va(33))

        before = one.read(3)
        token, _ = run(one, (cpu,), (move,))
        assert one.read(36) == (token or before)
        return bool(token)

    assert every_schedule(lab, thp, race) == {True, False}


@THP
def test_mremap_and_a_migration(lab, thp: str) -> None:
    def race(one):
        one.map(8)
        tokens = one.read(*range(8))

        def migrate() -> int:
            with may_fail(EINVAL):
                if one.mm.vma_lookup(BASE) is not None:
                    return one.device.migrate(one.mm, BASE, one.va(8)).cpages
            return 0

        def move() -> None:
            one.mm.mremap(BASE, 8 * PAGE, 8 * PAGE, flags=FIXED, new_addr=one.va(33))

        pages, _ = run(one, (migrate,), (move,))
        assert one.read(*range(33, 41)) == tokens
        return pages > 0

    assert every_schedule(lab, thp, race) >= {True}


# --- MADV_COLLAPSE


@pytest.mark.parametrize("other", ["evict", "dontneed", "cpu"])
def test_collapse_and_others(lab, other: str) -> None:
    def race(one):
        one.map(8)
        tokens = one.read(*range(8))
        one.device.migrate(one.mm, one.va(2), one.va(5))
        result = []

        def collapse() -> None:
            try:
                one.mm.madvise(BASE, 8 * PAGE, MADV_COLLAPSE)
                result.append(0)
            except KernelError as error:
                result.append(error.errno)

        def cpu() -> None:
            tokens[3:4] = one.write(3)

        others = {"evict": (evict, one), "dontneed": (dontneed, one, 2, 2), "cpu": (cpu,)}
        run(one, (collapse,), others[other])
        if other == "dontneed":
            tokens[2:4] = [0, 0]
        assert one.read(*range(8)) == tokens
        return result[0]

    assert 0 in every_schedule(lab, "never", race)


# --- the OOM reaper


@THP
def test_the_reaper_and_everybody(lab, thp: str) -> None:
    """After it nothing comes back; who was under way meanwhile gets SIGBUS or what was there before."""

    def race(one):
        one.map(8)
        mirror = Mirror(one)
        one.device.migrate(one.mm, BASE, one.va(4))

        def cpu() -> None:
            with suppress(CpuSignal):
                one.write(1, 5, 6)

        def device() -> None:
            with may_fail(EINVAL, EFAULT, ENOMEM):
                one.device.migrate(one.mm, BASE, one.va(8))

        reaped, *_ = run(one, (one.memory.oom_reap, one.mm), (cpu,), (device,), (evict, one))
        assert reaped
        mirror.gone()
        return one.mm.rss[0] == 0

    assert True in every_schedule(lab, thp, race)


# --- all at once


N = 24
SPARE = 64  # where the mover takes pages to, and brings them back from


def cpu(one, seed: int, steps: int) -> None:
    for k in range(steps):
        page = (seed * 7 + k * 5) % N + (SPARE if k % 4 == 3 else 0)
        with suppress(CpuSignal):
            (one.write if (seed + k) % 3 else one.read)(page)


def migrate(one, steps: int) -> None:
    for k in range(steps):
        start = (k * 8) % N + (SPARE if k % 3 == 2 else 0)
        with may_fail(EINVAL), one.mm.mmap_lock.read():
            vma = one.mm.vma_lookup(one.va(start))
        if vma is not None:
            with may_fail(EINVAL):
                one.device.migrate(one.mm, one.va(start), one.va(start + 8))


def advise(one, steps: int) -> None:
    advices = (MADV_DONTNEED, MADV_FREE, MADV_COLLAPSE, MADV_DONTNEED)
    for k in range(steps):
        page, n = (k * 7) % N, (8, 24, 3, 5)[k % 4]
        with may_fail(EAGAIN, EINVAL, ENOMEM):
            one.mm.madvise(one.va(page & -8 if n >= 8 else page), n * PAGE, advices[k % 4])


def move(one, steps: int) -> None:
    for k in range(steps):
        page, n = (k * 3) % 16, (8, 3, 5)[k % 3]
        there, back = one.va(page), one.va(page + SPARE)
        for source, target in ((there, back), (back, there)):
            with may_fail(EFAULT, EINVAL, ENOMEM):
                one.mm.mremap(source, n * PAGE, n * PAGE, flags=FIXED, new_addr=target)


def protect(one, steps: int) -> None:
    for k in range(steps):
        page, n = (k * 5) % 16, 1 + k * 3 % 8
        with may_fail(ENOMEM):
            one.mm.mprotect(one.va(page), n * PAGE, PROT_READ if k % 2 else 3)
    with may_fail(ENOMEM):
        one.mm.mprotect(BASE, N * PAGE, 3)


@THP
@pytest.mark.parametrize("seed", range(8))
def test_everybody_at_once(lab, thp: str, seed: int) -> None:
    one = lab(thp=thp, mode="explored", choices=SeededChoices(seed), quirks=MmQuirks(mm_s3="fixed", mm_q18="fixed"))
    everybody_at_once(one)
    one.check_quiescent()
    one.finish()


def everybody_at_once(one) -> None:
    one.device.window = 8 * PAGE
    one.map(N, write=False)
    mirror = Mirror(one)

    def device(steps: int) -> None:
        for k in range(steps):
            mirror.fault(8 * (k % 3), 8)

    def evictor(steps: int) -> None:
        for _ in range(steps):
            evict(one)
            one.kernel.cond_resched()

    run(
        one,
        (cpu, one, 1, 12),
        (cpu, one, 2, 12),
        (device, 5),
        (migrate, one, 5),
        (evictor, 3),
        (advise, one, 6),
        (move, one, 4),
        (protect, one, 4),
    )
    mirror.gone()
