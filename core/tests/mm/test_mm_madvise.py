"""madvise: what is discarded, what is told, and which areas are cut (mm/madvise.c)."""

from errno import EAGAIN, EINVAL, ENOMEM

import pytest
from gpusvm.errors import KernelError, ModelError
from gpusvm.mm.api import (
    MADV_DOFORK,
    MADV_DONTFORK,
    MADV_DONTNEED,
    MADV_FREE,
    MADV_HUGEPAGE,
    MADV_KEEPONFORK,
    MADV_NOHUGEPAGE,
    MADV_NORMAL,
    MADV_WIPEONFORK,
    PROT_READ,
    VM_DONTCOPY,
    VM_HUGEPAGE,
    VM_IO,
    VM_NOHUGEPAGE,
    VM_PFNMAP,
    VM_SHARED,
    VM_WIPEONFORK,
)
from gpusvm.mm.page import PG_DIRTY, PG_SWAPBACKED
from gpusvm.mm.pgtable import OtherPte, PmdKind, PteKind
from gpusvm.mm.swap import swap_out

PAGE = 4096
BASE = 1 << 30


def advise(one, page: int, n: int, advice: int) -> None:
    one.mm.madvise(one.va(page), n * PAGE, advice)


def errno_of(one, page: int, n: int, advice: int) -> int:
    with pytest.raises(KernelError) as caught:
        advise(one, page, n, advice)
    return caught.value.errno


def flags_of(one) -> list[tuple[int, int, int]]:
    mask = VM_HUGEPAGE | VM_NOHUGEPAGE | VM_DONTCOPY | VM_WIPEONFORK
    return [((v.start - BASE) // PAGE, (v.end - BASE) // PAGE, v.flags & mask) for v in one.mm.vmas]


# --- MADV_DONTNEED


@pytest.mark.parametrize("private", [False, True])
def test_t20_dontneed(lab, private: bool) -> None:
    one = lab()
    one.map(8)
    if private:
        one.device.migrate(one.mm, BASE, BASE + 8 * PAGE)
    one.watch()
    advise(one, 2, 3, MADV_DONTNEED)
    assert one.events == [("p", "CLEAR", 2, 5, "-")]
    assert [one.entry(page).kind is PteKind.NONE for page in range(8)] == [False] * 2 + [True] * 3 + [False] * 3
    assert one.mm.rss[0] == 5
    assert len(one.device.live) == (5 if private else 0)
    assert one.read(2, 3, 4) == [0, 0, 0]
    one.read(*range(8))
    one.check_quiescent()
    one.finish()


@pytest.mark.parametrize("private", [False, True])
def test_t20_dontneed_that_cuts_a_leaf(lab, private: bool) -> None:
    one = lab(thp="always")
    one.map(8)
    if private:
        one.device.migrate(one.mm, BASE, BASE + 8 * PAGE)
    one.watch()
    advise(one, 2, 3, MADV_DONTNEED)
    # The area is not cut, so the leaf is split inside the window.
    assert one.events == [("p", "CLEAR", 2, 5, "-"), ("p", "CLEAR", 0, 8, "-")]
    assert one.mm.rss[0] == 5
    one.check_quiescent()
    one.read(*range(8))
    one.check_quiescent()
    one.finish()


def test_t20_dontneed_of_a_whole_leaf(lab) -> None:
    one = lab(thp="always")
    one.map(8)
    one.watch()
    advise(one, 0, 8, MADV_DONTNEED)
    assert one.events == [("p", "CLEAR", 0, 8, "-")]
    assert one.mm.page_table.lookup(BASE) is None
    assert one.read(3) == [0]
    assert one.entry(3).kind is PmdKind.HUGE_ZERO
    one.finish()


def test_dontneed_tells_also_of_what_is_empty(lab) -> None:
    one = lab()
    one.map(8, write=False)
    one.watch()
    advise(one, 0, 8, MADV_DONTNEED)
    assert one.events == [("p", "CLEAR", 0, 8, "-")]
    one.finish()


@pytest.mark.parametrize("advice", [MADV_DONTNEED, MADV_FREE])
def test_over_a_gap_every_area_is_done_and_then_it_fails(lab, advice: int) -> None:
    one = lab()
    one.map(4)
    one.map(4, at=8, prot=PROT_READ, write=False)
    one.map(4, at=12)
    one.watch()
    assert errno_of(one, 2, 12, advice) == ENOMEM
    assert one.events == [("p", "CLEAR", 2, 4, "-"), ("p", "CLEAR", 8, 12, "-"), ("p", "CLEAR", 12, 14, "-")]
    one.events.clear()
    assert errno_of(one, 5, 2, advice) == ENOMEM  # nothing at all
    assert errno_of(one, 5, 4, advice) == ENOMEM  # a gap at the front
    assert errno_of(one, 14, 4, advice) == ENOMEM  # and at the end
    assert one.events == [("p", "CLEAR", 8, 9, "-"), ("p", "CLEAR", 14, 16, "-")]
    one.finish()


def test_what_cannot_be_advised(lab) -> None:
    one = lab()
    one.map(8)
    one.mm.mmap(one.va(16), 4 * PAGE, 3, flags=VM_IO | VM_PFNMAP)
    one.watch()
    for page, n, advice in [(0, 1, 7), (0, 1, -1), (16, 4, MADV_DONTNEED), (16, 4, MADV_DOFORK)]:
        assert errno_of(one, page, n, advice) == EINVAL
    for start, length in [(BASE + 1, PAGE), (BASE, -PAGE), ((1 << 64) - PAGE, 2 * PAGE)]:
        with pytest.raises(KernelError) as caught:
            one.mm.madvise(start, length, MADV_DONTNEED)
        assert caught.value.errno == EINVAL
    one.mm.madvise(BASE, 0, MADV_DONTNEED)
    one.mm.madvise(BASE - 100 * PAGE, 0, MADV_DONTNEED)
    assert one.events == []
    one.finish()


def test_what_only_private_anonymous_memory_may_be_advised(lab) -> None:
    one = lab()
    one.mm.mmap(BASE, 4 * PAGE, 3, flags=VM_SHARED)
    tokens = one.write(0, 1)
    one.watch()
    assert errno_of(one, 0, 4, MADV_FREE) == EINVAL
    assert errno_of(one, 0, 4, MADV_WIPEONFORK) == EINVAL
    assert one.events == []
    # To discard shared memory is to unmap it: it stays in its object.
    advise(one, 0, 4, MADV_DONTNEED)
    assert one.events == [("p", "CLEAR", 0, 4, "-")]
    assert one.mm.rss == [0, 0, 0]
    assert one.read(0, 1, 2) == [*tokens, 0]
    one.finish()


def test_advice_that_is_not_modelled_says_so(lab) -> None:
    one = lab()
    one.map(1)
    with pytest.raises(ModelError, match=r"^madvise with advice 21 is not modelled$"):
        advise(one, 0, 1, 21)
    one.finish()


def test_a_length_is_rounded_up(lab) -> None:
    one = lab()
    one.map(8)
    one.watch()
    one.mm.madvise(BASE, PAGE + 1, MADV_DONTNEED)
    assert one.events == [("p", "CLEAR", 0, 2, "-")]
    one.finish()


def test_dontneed_of_a_whole_block_frees_its_table(lab) -> None:
    """CONFIG_PT_RECLAIM: afterwards a fault, or a device, can map the block as one again."""
    one = lab()
    one.map(24)
    advise(one, 1, 22, MADV_DONTNEED)
    lookup = one.mm.page_table.lookup
    assert lookup(one.va(0)).present == 1
    assert lookup(one.va(8)) is None
    assert lookup(one.va(16)).present == 1 << 7
    assert one.mm.page_table.pud_present(one.va(8))
    args = one.device.migrate(one.mm, one.va(8), one.va(16))
    assert one.entry(8).kind is PmdKind.PRIVATE
    assert args.cpages == 1
    # A table that was empty before goes as well, one whose block is covered in two steps does not.
    one.write(16)
    advise(one, 16, 4, MADV_DONTNEED)
    advise(one, 20, 4, MADV_DONTNEED)
    assert lookup(one.va(16)).used == 0
    advise(one, 16, 8, MADV_DONTNEED)
    assert lookup(one.va(16)) is None
    one.check_quiescent()
    one.finish()


# --- MADV_FREE


def test_t20_free_leaves_device_pages_alone(lab) -> None:
    one = lab()
    one.map(8)
    one.device.migrate(one.mm, BASE, one.va(4))
    before = [one.entry(page) for page in range(4)]
    one.watch()
    advise(one, 0, 8, MADV_FREE)
    assert one.events == [("p", "CLEAR", 0, 8, "-")]
    assert [one.entry(page) for page in range(4)] == before
    for page in range(4, 8):
        assert not one.entry(page).dirty
        assert not one.flags(one.pfn(page)) & (PG_DIRTY | PG_SWAPBACKED)
    # Nothing reclaims them here, so they keep what they hold.
    one.read(*range(8))
    one.write(*range(8))
    one.check_quiescent()
    one.finish()


def test_t20_free_leaves_a_device_leaf_alone(lab) -> None:
    one = lab(thp="always")
    one.map(8)
    one.device.migrate(one.mm, BASE, one.va(8))
    before = one.entry(0)
    one.watch()
    advise(one, 2, 3, MADV_FREE)
    assert one.events == [("p", "CLEAR", 2, 5, "-")]
    assert one.entry(0) is before
    one.finish()


def test_free_splits_a_huge_page_that_it_cuts(lab) -> None:
    one = lab(thp="always")
    one.map(8)
    one.watch()
    advise(one, 2, 3, MADV_FREE)
    assert one.events == [("p", "CLEAR", 2, 5, "-"), ("p", "CLEAR", 0, 8, "-")]
    assert [one.memory.folio_order(one.pfn(page)) for page in range(8)] == [0] * 8
    assert [one.entry(page).dirty for page in range(8)] == [True] * 2 + [False] * 3 + [True] * 3
    one.read(*range(8))
    one.check_quiescent()
    one.finish()


def test_free_of_a_whole_huge_page_keeps_it_whole(lab) -> None:
    one = lab(thp="always")
    one.map(8)
    advise(one, 0, 8, MADV_FREE)
    assert one.entry(0).kind is PmdKind.THP
    assert not one.entry(0).dirty
    one.read(*range(8))
    one.check_quiescent()
    one.finish()


def test_free_splits_a_large_folio_that_ptes_map(lab) -> None:
    one = lab(thp="always")
    one.map(8)
    one.mm.mprotect(BASE, 2 * PAGE, PROT_READ)  # the leaf is split, the folio stays large
    one.watch()
    assert one.memory.folio_order(one.pfn(0)) == 3
    advise(one, 4, 2, MADV_FREE)
    assert one.events == [("p", "CLEAR", 4, 6, "-"), ("p", "CLEAR", 0, 2, "-"), ("p", "CLEAR", 2, 8, "-")]
    assert one.memory.folio_order(one.pfn(0)) == 0
    assert [one.entry(page).dirty for page in range(2, 8)] == [True] * 2 + [False] * 2 + [True] * 2
    one.check_quiescent()
    one.finish()


def test_free_drops_swapped_and_poisoned_pages_at_once(lab) -> None:
    one = lab()
    one.map(2)
    one.map(2, at=2, write=False)
    table = one.mm.page_table.lookup(BASE)
    swap_out(one.memory, one.mm, one.va(1))
    table.set_other(2, OtherPte(PteKind.MARKER_POISONED))
    table.set_other(3, OtherPte(PteKind.MARKER_GUARD))
    advise(one, 0, 4, MADV_FREE)
    assert [one.entry(page).kind for page in range(4)] == [
        PteKind.PRESENT,
        PteKind.NONE,
        PteKind.NONE,
        PteKind.MARKER_GUARD,
    ]
    assert one.read(1, 2) == [0, 0]
    assert one.memory.swap.used == {}
    assert (one.mm.rss, one.mm.swapents) == ([1, 0, 0], 0)
    one.finish()


# --- flags


def test_hugepage_cuts_and_joins_areas(lab) -> None:
    one = lab(thp="madvise")
    one.map(16, write=False)
    one.write(1)
    one.watch()
    advise(one, 8, 8, MADV_HUGEPAGE)
    assert flags_of(one) == [(0, 8, 0), (8, 16, VM_HUGEPAGE)]
    one.write(8)
    assert one.entry(8).kind is PmdKind.THP
    assert one.entry(1).kind is PteKind.PRESENT
    advise(one, 0, 8, MADV_HUGEPAGE)
    assert flags_of(one) == [(0, 16, VM_HUGEPAGE)]
    assert one.events == []
    advise(one, 2, 2, MADV_NOHUGEPAGE)
    assert flags_of(one) == [(0, 2, VM_HUGEPAGE), (2, 4, VM_NOHUGEPAGE), (4, 16, VM_HUGEPAGE)]
    # Of a change of flags only the cut is told.
    assert one.events == [("p", "CLEAR", 0, 8, "-")]
    one.finish()


def test_flags_over_a_gap(lab) -> None:
    one = lab()
    one.map(4, write=False)
    one.map(4, at=8, write=False)
    assert errno_of(one, 0, 12, MADV_HUGEPAGE) == ENOMEM
    assert flags_of(one) == [(0, 4, VM_HUGEPAGE), (8, 12, VM_HUGEPAGE)]
    one.finish()


def test_what_a_child_is_to_get(lab) -> None:
    one = lab()
    one.map(8, write=False)
    advise(one, 0, 2, MADV_DONTFORK)
    advise(one, 4, 2, MADV_WIPEONFORK)
    advise(one, 6, 2, MADV_NORMAL)
    assert flags_of(one) == [(0, 2, VM_DONTCOPY), (2, 4, 0), (4, 6, VM_WIPEONFORK), (6, 8, 0)]
    advise(one, 0, 2, MADV_DOFORK)
    advise(one, 4, 2, MADV_KEEPONFORK)
    assert flags_of(one) == [(0, 8, 0)]
    one.finish()


def test_no_memory_to_cut_an_area_is_eagain(lab) -> None:
    one = lab()
    one.map(8, write=False)
    one.kernel.arm("alloc.vma")
    assert errno_of(one, 2, 2, MADV_HUGEPAGE) == EAGAIN
    one.finish()
