"""Migration of pages that somebody pinned, references or has locked: exactly those stay, and nothing is lost."""

import numpy as np
import pytest
from gpusvm.kernel import SeededChoices
from gpusvm.mm.api import (
    MIGRATE_VMA_SELECT_COMPOUND,
    MIGRATE_VMA_SELECT_DEVICE_PRIVATE,
    MIGRATE_VMA_SELECT_SYSTEM,
)
from gpusvm.mm.page import PG_LOCKED
from gpusvm.mm.pgtable import PmdKind, PteKind
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

PAGE = 4096
BASE = 1 << 30
N = 16
SYSTEM = MIGRATE_VMA_SELECT_SYSTEM | MIGRATE_VMA_SELECT_COMPOUND
PRIVATE = MIGRATE_VMA_SELECT_DEVICE_PRIVATE | MIGRATE_VMA_SELECT_COMPOUND

quick = settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
holds = st.lists(st.sampled_from(["", "", "", "get", "pin", "lock"]), min_size=N, max_size=N)


def hold(one, how: str, pfn: int) -> None:
    head = one.memory.folio_head(pfn)
    if how == "get":
        one.pages.folio_get(head)
    elif how == "pin":
        one.pages.pin(head)
    elif how == "lock":
        one.memory.folio_trylock(head)


def release(one, how: str, pfn: int) -> None:
    head = one.memory.folio_head(pfn)
    if how == "get":
        one.pages.folio_put(head)
    elif how == "pin":
        one.pages.unpin(head)
    elif how == "lock" and one.pages.folio_locked(head):
        one.memory.folio_unlock(head)


def counts(one, pfns: list[int]) -> list[tuple[str, int]]:
    return [(one.counts(pfn), one.flags(one.memory.folio_head(pfn)) & PG_LOCKED) for pfn in pfns]


@pytest.mark.breaks_invariants  # one task locks pages and migrates: 49
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("mode", ["timed", "explored"])
@given(how=holds, seed=st.integers(0, 99))
@quick
def test_small_pages_to_the_device(lab, mode: str, shared: bool, how: list[str], seed: int) -> None:
    one = lab(mode=mode, choices=SeededChoices(seed))
    one.map(N)
    child = one.mm.fork("c") if shared else None
    pfns = [one.pfn(i) for i in range(N)]
    for i in range(N):
        hold(one, how[i], pfns[i])
    before = counts(one, pfns)
    args = one.device.migrate(one.mm, BASE, one.va(N))
    # A shared page is not exclusive, so that a pin does not keep it mapped: it is noticed as a reference then.
    assert [bool(int(word) & 2) for word in args.src] == [not each for each in how]
    held = [i for i in range(N) if how[i]]
    assert counts(one, [pfns[i] for i in held]) == [before[i] for i in held]
    for i in range(N):
        kind = PteKind.PRESENT if how[i] else PteKind.PRIVATE
        assert one.entry(i).kind is kind
        assert child is None or one.entry(i, child).kind is kind
        assert not how[i] or (one.pfn(i), one.entry(i).write) == (pfns[i], not shared)
    for i in held:
        release(one, how[i], pfns[i])
    one.check_quiescent()
    args = one.device.migrate(one.mm, BASE, one.va(N))
    assert [one.entry(i).kind for i in range(N)] == [PteKind.PRIVATE] * N
    one.read(*range(N))
    if child is not None:
        for i in range(N):
            one.memory.cpu_read(child, one.va(i))
        child.exit()
    one.check_quiescent()
    one.finish()


@pytest.mark.breaks_invariants  # one task locks pages and migrates: 49
@pytest.mark.parametrize("by", ["address", "pfn"])
@pytest.mark.parametrize("mode", ["timed", "explored"])
@given(how=st.lists(st.sampled_from(["", "", "get", "lock"]), min_size=N, max_size=N))
@quick
def test_small_pages_from_the_device(lab, mode: str, by: str, how: list[str]) -> None:
    one = lab(mode=mode)
    one.map(N)
    one.device.migrate(one.mm, BASE, one.va(N))
    pfns = [one.pfn(i) for i in range(N)]
    for i in range(N):
        hold(one, how[i], pfns[i])
    before = counts(one, pfns)
    if by == "pfn":
        one.device.evict(pfns)
    else:
        with one.mm.mmap_lock.read():
            one.device.bring_home(one.mm, BASE, one.va(N), flags=PRIVATE)
    held = [i for i in range(N) if how[i]]
    assert [one.entry(i).kind is PteKind.PRIVATE for i in range(N)] == [bool(each) for each in how]
    assert counts(one, [pfns[i] for i in held]) == [before[i] for i in held]
    for i in held:
        release(one, how[i], pfns[i])
    one.read(*range(N))
    one.check_quiescent()
    one.finish()


@pytest.mark.breaks_invariants  # one task locks pages and migrates: 49
@pytest.mark.parametrize("mode", ["timed", "explored"])
@given(how=holds)
@quick
def test_blocks(lab, mode: str, how: list[str]) -> None:
    one = lab(mode=mode, thp="always")
    one.map(N)
    pfns = [one.pfn(i) for i in range(N)]
    for i in range(N):
        hold(one, how[i], pfns[i])
    before = counts(one, pfns)
    one.device.migrate(one.mm, BASE, one.va(N), flags=SYSTEM)
    for block in range(2):
        held = any(how[8 * block : 8 * block + 8])
        assert one.entry(8 * block).kind is (PmdKind.THP if held else PmdKind.PRIVATE)
        if held:
            assert counts(one, pfns[8 * block : 8 * block + 8]) == before[8 * block : 8 * block + 8]
            assert one.entry(8 * block).write
    for i in range(N):
        if one.entry(i).kind is PmdKind.THP:
            release(one, how[i], pfns[i])
    one.read(*range(N))
    one.check_quiescent()
    one.finish()


@pytest.mark.parametrize("mode", ["timed", "explored"])
@given(taken=st.sets(st.integers(0, N - 1)))
@quick
def test_references_that_come_between_setup_and_pages(lab, mode: str, taken: set[int]) -> None:
    # folio_migrate_mapping is the last to look, and the strictest.
    one = lab(mode=mode)
    one.map(N)
    pfns = np.array([one.pfn(i) for i in range(N)])
    args = one.device.setup(one.mm, BASE, one.va(N), flags=MIGRATE_VMA_SELECT_SYSTEM)
    one.device.fill_to_device(args)
    for i in sorted(taken):
        one.pages.folio_get(int(pfns[i]))
    one.memory.migrate_vma_pages(args)
    assert [bool(int(word) & 2) for word in args.src] == [i not in taken for i in range(N)]
    one.memory.migrate_vma_finalize(args)
    one.mm.mmap_lock.up_read()
    assert [one.entry(i).kind is PteKind.PRESENT for i in range(N)] == [i in taken for i in range(N)]
    for i in sorted(taken):
        one.pages.folio_put(int(pfns[i]))
    one.read(*range(N))
    one.check_quiescent()
    one.finish()
