"""MADV_COLLAPSE: what becomes a huge page, what comes home first, and what is in the way (mm/khugepaged.c)."""

from errno import EAGAIN, EBUSY, EINVAL, ENOMEM

import pytest
from gpusvm.errors import KernelError
from gpusvm.mm.api import MADV_COLLAPSE, MADV_DONTNEED, MADV_NOHUGEPAGE, PROT_READ, VM_DONTEXPAND
from gpusvm.mm.page import PG_ANON_EXCLUSIVE
from gpusvm.mm.pgtable import PmdKind, PteKind, PteTable
from gpusvm.mm.userfaultfd import Userfaultfd

PAGE = 4096
BASE = 1 << 30


def collapse(one, page: int, n: int) -> None:
    one.mm.madvise(one.va(page), n * PAGE, MADV_COLLAPSE)


def errno_of(one, page: int, n: int) -> int:
    with pytest.raises(KernelError) as caught:
        collapse(one, page, n)
    return caught.value.errno


def leaf(one, page: int) -> PmdKind:
    return one.entry(page).kind


def test_small_pages_become_a_huge_one(lab) -> None:
    one = lab()
    one.map(16, write=False)
    one.write(1, 2, 6)
    one.read(3)
    tokens = one.read(1, 2, 6)
    free = one.pages.allocator.free_pages
    one.watch()
    collapse(one, 0, 8)
    assert one.events == [("p", "CLEAR", 0, 8, "-")]
    assert leaf(one, 0) is PmdKind.THP
    assert one.entry(0).write
    assert one.entry(0).dirty
    assert one.flags(one.pfn(0)) & PG_ANON_EXCLUSIVE
    assert one.mm.rss[0] == 8
    assert one.counts(one.pfn(0)) == "1/1"
    assert one.pages.allocator.free_pages == free - 8 + 3
    assert one.read(*range(8)) == [0, tokens[0], tokens[1], 0, 0, 0, tokens[2], 0]
    one.check_quiescent()
    one.finish()


def test_device_pages_come_home_first(lab) -> None:
    """As recorded of svmdev: MIGRATE, then CLEAR of the block."""
    one = lab()
    one.map(8)
    one.device.migrate(one.mm, one.va(2), one.va(5))
    one.device.window = PAGE
    one.watch()
    collapse(one, 0, 8)
    assert one.events == [("p", "MIGRATE", i, i + 1, "own") for i in (2, 3, 4)] + [("p", "CLEAR", 0, 8, "-")]
    assert not one.device.live
    assert leaf(one, 0) is PmdKind.THP
    one.read(*range(8))
    one.check_quiescent()
    one.finish()


def test_a_device_exclusive_page_comes_back_first(lab) -> None:
    one = lab()
    one.map(8)
    with one.mm.mmap_lock.read():
        pfn = one.memory.make_device_exclusive(one.mm, one.va(3), "owner")
    one.memory.folio_unlock(pfn)
    one.memory.folio_put(pfn)
    one.watch()
    collapse(one, 0, 8)
    assert one.events == [("p", "CLEAR", 3, 4, "-"), ("p", "CLEAR", 0, 8, "-")]
    one.read(*range(8))
    one.check_quiescent()
    one.finish()


def test_what_is_huge_counts_as_done(lab) -> None:
    one = lab(thp="always")
    one.map(16, write=False)
    one.write(0)
    one.read(8)
    one.watch()
    collapse(one, 0, 16)
    assert one.events == []
    assert [leaf(one, 0), leaf(one, 8)] == [PmdKind.THP, PmdKind.HUGE_ZERO]
    one.finish()


def test_a_huge_page_that_ptes_map_is_made_anew(lab) -> None:
    one = lab(thp="always")
    one.map(8)
    head = one.pfn(0)
    one.mm.mprotect(BASE, 2 * PAGE, PROT_READ)
    one.mm.mprotect(BASE, 2 * PAGE, 3)
    assert isinstance(one.mm.page_table.lookup(BASE), PteTable)
    tokens = one.read(*range(8))
    collapse(one, 0, 8)
    assert leaf(one, 0) is PmdKind.THP
    assert one.pfn(0) != head
    assert one.read(*range(8)) == tokens
    one.check_quiescent()
    one.finish()


def test_pages_that_another_process_maps_are_copied(lab) -> None:
    one = lab()
    one.map(8)
    two = one.mm.fork("q")
    tokens = one.read(*range(8))
    old = one.pfn(0)
    collapse(one, 0, 8)
    assert leaf(one, 0) is PmdKind.THP
    assert one.entry(0).write
    assert one.counts(old) == "1/1"
    assert one.read(*range(8)) == tokens
    one.check_quiescent()
    two.exit()
    one.finish()


def test_a_read_only_area_stays_read_only(lab) -> None:
    one = lab()
    one.map(8)
    one.mm.mprotect(BASE, 8 * PAGE, PROT_READ)
    collapse(one, 0, 8)
    assert not one.entry(0).write
    one.check_quiescent()
    one.finish()


def test_only_whole_blocks(lab) -> None:
    one = lab()
    one.map(24)
    one.watch()
    collapse(one, 1, 20)
    assert one.events == [("p", "CLEAR", 8, 16, "-")]
    assert leaf(one, 8) is PmdKind.THP
    assert isinstance(one.mm.page_table.lookup(BASE), PteTable)
    collapse(one, 1, 6)  # none at all
    one.finish()


def test_areas_that_cannot_have_huge_pages(lab) -> None:
    one = lab()
    one.map(8, write=False)
    assert errno_of(one, 0, 8) == EINVAL  # never written, so no anon_vma
    one.map(7, at=16)
    assert errno_of(one, 16, 7) == EINVAL  # too small
    one.map(8, at=32)
    one.mm.madvise(one.va(32), 8 * PAGE, MADV_NOHUGEPAGE)
    assert errno_of(one, 32, 8) == EINVAL
    one.mm.mmap(one.va(64), 8 * PAGE, 3, flags=VM_DONTEXPAND)
    one.write(64)
    assert errno_of(one, 64, 8) == EINVAL
    one.finish()


def test_over_a_gap(lab) -> None:
    one = lab()
    one.map(8)
    one.map(8, at=16)
    assert errno_of(one, 0, 24) == ENOMEM
    assert [leaf(one, 0), leaf(one, 16)] == [PmdKind.THP, PmdKind.THP]
    one.map(4, at=32)
    # The first area that fails ends it.
    assert errno_of(one, 32, 24) == EINVAL
    one.finish()


def test_an_empty_block_and_a_device_block_fail_and_the_others_are_done(lab) -> None:
    one = lab()
    one.map(32, write=False)
    one.write(8, 24)
    one.device.migrate(one.mm, one.va(16), one.va(24))
    assert leaf(one, 16) is PmdKind.PRIVATE
    assert errno_of(one, 0, 32) == EINVAL
    assert [leaf(one, 8), leaf(one, 16), leaf(one, 24)] == [PmdKind.THP, PmdKind.PRIVATE, PmdKind.THP]
    one.check_quiescent()
    one.finish()


@pytest.mark.parametrize("what", ["reference", "lock"])
def test_what_may_go_away_is_eagain(lab, what: str) -> None:
    one = lab()
    one.map(8)
    pfn = one.pfn(3)
    one.memory.folio_get(pfn)
    if what == "lock":
        one.memory.folio_lock(pfn)
    one.watch()
    assert errno_of(one, 0, 8) == EAGAIN
    assert one.events == []
    if what == "lock":
        one.memory.folio_unlock(pfn)
    one.memory.folio_put(pfn)
    collapse(one, 0, 8)
    one.check_quiescent()
    one.finish()


def test_no_huge_page_to_be_had(lab) -> None:
    one = lab()
    one.map(8)
    one.kernel.arm("alloc.folio")
    assert errno_of(one, 0, 8) == ENOMEM
    assert one.entry(0).kind is PteKind.PRESENT
    one.check_quiescent()
    one.finish()


def test_a_device_page_that_stays_is_in_the_way(lab) -> None:
    one = lab()
    one.map(8)
    one.device.migrate(one.mm, one.va(2), one.va(3))
    one.device.migrate_to_ram = lambda _: 0
    one.watch()
    assert errno_of(one, 0, 8) == EINVAL
    # The window had been opened by then.
    assert one.events == [("p", "CLEAR", 0, 8, "-")]
    assert one.entry(2).kind is PteKind.PRIVATE
    one.check_quiescent()
    one.finish()


def test_a_watched_area_gets_no_zeros(lab) -> None:
    """What is missing is for the userfaultfd to fill."""
    one = lab()
    one.map(8)
    Userfaultfd(one.memory, one.mm).register(BASE, 8 * PAGE)
    one.mm.madvise(one.va(3), PAGE, MADV_DONTNEED)
    assert errno_of(one, 0, 8) == EBUSY
    one.mm.userfaultfd.close()
    collapse(one, 0, 8)
    one.check_quiescent()
    one.finish()
