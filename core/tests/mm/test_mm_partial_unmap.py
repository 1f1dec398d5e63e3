"""What becomes of a large device-private folio when a part of it is unmapped (reference mm.md 12.1)."""

import numpy as np
import pytest
from gpusvm.mm.api import (
    MADV_DONTNEED,
    MIGRATE_PFN_COMPOUND,
    MIGRATE_PFN_MIGRATE,
    MIGRATE_PFN_SHIFT,
    MIGRATE_PFN_VALID,
    PROT_READ,
)
from gpusvm.mm.pgtable import PmdKind, PteKind

PAGE = 4096
BASE = 1 << 30
NR = 8


@pytest.fixture(params=["munmap", "madvise"])
def cut(lab, request):
    """A machine with a folio of eight pages on the device, of which pages 2 to 4 are taken away."""

    def build(*, prot: int = 3, quiet: bool = False, **options):
        one = lab(thp="always", **options)
        one.map(NR)
        tokens = one.read(*range(NR))
        one.device.migrate(one.mm, BASE, one.va(NR))
        if prot != 3:
            one.mm.mprotect(BASE, NR * PAGE, prot)
        head = one.entry(0).pfn
        if not quiet:
            one.watch()
        if request.param == "munmap":
            one.mm.munmap(one.va(2), 3 * PAGE)
        else:
            one.mm.madvise(one.va(2), 3 * PAGE, MADV_DONTNEED)
        return one, head, tokens

    return build


REST = [0, 1, 5, 6, 7]


@pytest.mark.parametrize("prot", [3, PROT_READ])
def test_1_the_leaf_becomes_entries_that_allow_the_same(cut, prot: int) -> None:
    one, head, _ = cut(prot=prot)
    for page in REST:
        entry = one.entry(page)
        assert (entry.kind, entry.pfn, entry.write) == (PteKind.PRIVATE, head + page, prot == 3)
    assert one.memory.folio_order(head) == 3
    events = [event[1:4] for event in one.events]
    if events[1][0] == "UNMAP":
        assert events == [("CLEAR", 0, NR), ("UNMAP", 2, 5)]
    else:
        assert events == [("CLEAR", 2, 5), ("CLEAR", 0, NR)]
    one.finish()


def test_2_the_unmapped_pages_lose_their_mappings_and_stay_on_the_device(cut) -> None:
    one, head, _ = cut()
    assert one.counts(head) == "5/5"
    assert one.mm.rss[0] == 5
    assert one.device.live == {head: 3}
    assert one.device.freed == []
    assert one.device.pgmap.ref == 1 + NR
    one.check_quiescent()
    one.finish()


def test_2_with_the_last_mapping_it_goes_whole(cut) -> None:
    one, head, _ = cut()
    one.mm.munmap(BASE, NR * PAGE)
    assert one.device.freed == [(head, 3)]
    assert one.device.live == {}
    one.finish()


def test_3_the_next_fault_splits_it_and_frees_the_unmapped_pages(cut) -> None:
    one, head, tokens = cut()
    one.device.window = PAGE
    said: list[tuple[int, int | None]] = []
    split = one.device.folio_split

    def folio_split(folio: int, tail: int | None) -> None:
        said.append((folio, tail))
        split(folio, tail)

    one.device.folio_split = folio_split
    assert one.read(0) == tokens[:1]
    # The driver hears of every part and then of the head, before anything is freed.
    assert said == [(head, head + k) for k in range(1, NR)] + [(head, None)]
    assert sorted(one.device.freed) == [(head, 0), (head + 2, 0), (head + 3, 0), (head + 4, 0)]
    assert one.device.live == dict.fromkeys([head + 1, head + 5, head + 6, head + 7], 0)
    assert [one.entry(page).kind for page in REST] == [PteKind.PRESENT] + [PteKind.PRIVATE] * 4
    one.check_quiescent()
    assert one.read(*REST) == [tokens[page] for page in REST]
    one.finish()


def test_3_a_fault_elsewhere_than_at_the_head_takes_two_rounds(cut) -> None:
    """MM-S3: the faulting page is not collected in the first."""
    one, _, tokens = cut()
    one.device.window = PAGE
    assert one.read(6) == tokens[6:7]
    assert [page for _, page, _ in one.device.faults] == [one.device.faults[0][1]] * 2
    one.check_quiescent()
    one.finish()


def test_3_a_migration_splits_it_too(cut) -> None:
    one, head, _ = cut()
    one.events.clear()
    with one.mm.mmap_lock.read():
        _, args = one.device.bring_home(one.mm, one.va(5), one.va(8))
    assert args.cpages == 3
    assert [one.entry(page).kind for page in REST] == [PteKind.PRIVATE] * 2 + [PteKind.PRESENT] * 3
    assert one.device.live == dict.fromkeys([head, head + 1], 0)
    split = [event[1:4] for event in one.events if event[1] == "CLEAR"]
    # One window for each area that it covers.
    assert split in ([("CLEAR", 0, 2), ("CLEAR", 5, 8)], [("CLEAR", 0, 8)])
    one.check_quiescent()
    one.finish()


def test_4_an_eviction_takes_it_whole_and_leaves_the_holes(cut) -> None:
    one, head, tokens = cut(quiet=True)
    before, dst = one.device.evict([head] + [0] * 7)
    want = head << MIGRATE_PFN_SHIFT | MIGRATE_PFN_VALID | MIGRATE_PFN_MIGRATE | MIGRATE_PFN_COMPOUND
    assert before.tolist() == [want] + [0] * 7
    new = int(dst[0]) >> MIGRATE_PFN_SHIFT
    assert one.memory.folio_order(new) == 3
    assert one.counts(new) == "5/5"
    assert [(one.entry(page).kind, one.entry(page).pfn) for page in REST] == [
        (PteKind.PRESENT, new + page) for page in REST
    ]
    assert one.mm.rss[0] == 5
    assert one.device.freed == [(head, 3)]
    one.check_quiescent()
    assert one.read(*REST) == [tokens[page] for page in REST]
    one.finish()


def test_4_an_eviction_needs_a_compound_destination(cut) -> None:
    one, head, tokens = cut(quiet=True)
    one.device.compound_home = False
    src = np.array([head] + [0] * 7, np.uint64)
    dst = np.zeros(8, np.uint64)
    one.memory.migrate_device_pfns(src, 8)
    assert [one.entry(page).kind for page in REST] == [PteKind.MIGRATION] * 5
    one.device.fill_to_ram(src, dst, 8)
    one.memory.migrate_device_pages(src, dst, 8)
    assert not src[0] & MIGRATE_PFN_MIGRATE
    one.memory.migrate_device_finalize(src, dst, 8)
    assert [one.entry(page).kind for page in REST] == [PteKind.PRIVATE] * 5
    assert one.device.live == {head: 3}
    one.check_quiescent()
    assert one.read(*REST) == [tokens[page] for page in REST]
    one.finish()


def test_a_hole_is_filled_beside_the_rest(cut) -> None:
    """What was discarded is a hole for the device too; it gets pages of its own."""
    one, head, tokens = cut(quiet=True)
    if one.mm.vma_lookup(one.va(2)) is None:
        one.mm.mmap(one.va(2), 3 * PAGE, 3)
    one.device.migrate(one.mm, BASE, one.va(NR))
    assert [one.entry(page).kind for page in range(2, 5)] == [PteKind.PRIVATE] * 3
    assert not {one.entry(page).pfn for page in range(2, 5)} & set(range(head, head + NR))
    assert one.read(*range(NR)) == [*tokens[:2], 0, 0, 0, *tokens[5:]]
    one.check_quiescent()
    one.finish()


def test_a_leaf_that_is_not_cut_stays_one(lab) -> None:
    one = lab(thp="always")
    one.map(2 * NR)
    one.device.migrate(one.mm, BASE, one.va(2 * NR))
    one.mm.munmap(BASE, NR * PAGE)
    assert one.entry(NR).kind is PmdKind.PRIVATE
    assert list(one.device.live.values()) == [3]
    one.finish()
