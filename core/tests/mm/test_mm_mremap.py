"""mremap: what moves, what devices are told, and what is refused (mm/mremap.c)."""

from errno import EFAULT, EINVAL, ENOMEM

import numpy as np
import pytest
from gpusvm.errors import CpuSignal, KernelError, ModelError
from gpusvm.mm.api import (
    MADV_DONTNEED,
    MREMAP_DONTUNMAP,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    PROT_READ,
    VM_DONTEXPAND,
    VM_SHARED,
)
from gpusvm.mm.mmap import TASK_SIZE
from gpusvm.mm.pgtable import PmdKind, PteKind, PteTable
from gpusvm.mm.userfaultfd import Userfaultfd

PAGE = 4096
BASE = 1 << 30
FIXED = MREMAP_MAYMOVE | MREMAP_FIXED
NR = 8


def move(one, page: int, n: int, to: int, *, flags: int = FIXED, new: int | None = None) -> int:
    length = (n if new is None else new) * PAGE
    at = one.mm.mremap(one.va(page), n * PAGE, length, flags=flags, new_addr=one.va(to))
    return (at - BASE) // PAGE


def areas(one) -> list[tuple[int, int, int]]:
    """First page, end page and pgoff in pages from the base."""
    shift = one.memory.geometry.page_shift
    return [((v.start - BASE) >> shift, (v.end - BASE) >> shift, v.pgoff - (BASE >> shift)) for v in one.mm.vmas]


def refused(one, *args, **options) -> int:
    with pytest.raises(KernelError) as caught:
        move(one, *args, **options)
    return caught.value.errno


# --- golden traces


@pytest.mark.parametrize("thp", ["never", "always"])
def test_t18_an_aligned_move_of_a_whole_area(lab, thp: str) -> None:
    one = lab(thp=thp)
    one.map(16)
    tokens = one.read(*range(16))
    entries = [one.entry(page) for page in range(16)]
    one.watch()
    assert move(one, 0, 16, 32) == 32
    assert one.events == [("p", "UNMAP", 0, 16, "-"), ("p", "UNMAP", 0, 16, "-")]
    assert one.read(*range(32, 48)) == tokens
    assert [one.entry(page) for page in range(32, 48)] == entries
    assert areas(one) == [(32, 48, 0)]
    with pytest.raises(CpuSignal, match=r"SIGSEGV|11"):
        one.read(0)
    one.check_quiescent()
    one.finish()


def test_t18_onto_what_is_mapped(lab) -> None:
    one = lab()
    one.map(8)
    one.map(8, at=32)
    tokens = one.read(*range(8))
    one.watch()
    move(one, 0, 8, 32)
    assert one.events == [("p", "UNMAP", 32, 40, "-"), ("p", "UNMAP", 0, 8, "-"), ("p", "UNMAP", 0, 8, "-")]
    assert one.read(*range(32, 40)) == tokens
    one.check_quiescent()
    one.finish()


def test_t18_with_dontunmap_the_old_area_stays_empty(lab) -> None:
    one = lab()
    one.map(8)
    tokens = one.read(*range(8))
    one.watch()
    at = one.mm.mremap(BASE, 8 * PAGE, 8 * PAGE, flags=MREMAP_MAYMOVE | MREMAP_DONTUNMAP)
    assert one.events == [("p", "UNMAP", 0, 8, "-")]
    page = (at - BASE) // PAGE
    assert one.read(*range(page, page + 8)) == tokens
    old = one.mm.vma_lookup(BASE)
    assert old.anon_vma is None  # no page can be at the old place any more
    assert one.read(*range(8)) == [0] * 8
    one.write(0)
    assert old.anon_vma is not one.mm.vma_lookup(at).anon_vma
    one.check_quiescent()
    one.finish()


@pytest.mark.parametrize("private", [False, True])
def test_t19_a_huge_page_to_an_unaligned_place(lab, private: bool) -> None:
    one = lab(thp="always")
    one.map(8)
    if private:
        one.device.migrate(one.mm, BASE, BASE + 8 * PAGE)
    head = one.entry(0).pfn
    one.watch()
    move(one, 0, 8, 12)
    # The leaf is split inside the window.
    assert one.events == [("p", "UNMAP", 0, 8, "-"), ("p", "CLEAR", 0, 8, "-"), ("p", "UNMAP", 0, 8, "-")]
    kind = PteKind.PRIVATE if private else PteKind.PRESENT
    assert [one.entry(12 + i).kind for i in range(8)] == [kind] * 8
    assert [one.entry(12 + i).pfn for i in range(8)] == list(range(head, head + 8))
    assert one.counts(head) == "8/8"
    assert one.memory.folio_order(head) == 3
    one.check_quiescent()
    one.read(*range(12, 20))
    one.check_quiescent()
    one.finish()


# --- entries


@pytest.mark.parametrize(("old", "new"), [(0, 32), (3, 35), (3, 37), (0, 37), (2, 33)])
def test_every_kind_of_entry_moves_as_it_is(lab, old: int, new: int) -> None:
    one = lab()
    one.map(10, at=old, write=False)
    one.write(old, old + 1, old + 2, old + 5)
    one.read(old + 3)
    one.device.migrate(one.mm, one.va(old + 1), one.va(old + 3), flags=1)
    with one.mm.mmap_lock.read():
        held = one.memory.make_device_exclusive(one.mm, one.va(old + 5), "owner")
    one.memory.folio_unlock(held)
    one.memory.folio_put(held)
    # A migration that somebody else carries on: its entry goes along and is found again.
    src = np.array([one.pfn(old)], np.uint64)
    dst = np.zeros(1, np.uint64)
    one.memory.migrate_device_pfns(src, 1)
    before = [one.entry(old + i) for i in range(10)]
    kinds = [PteKind.MIGRATION, PteKind.PRIVATE, PteKind.PRIVATE, PteKind.PRESENT, PteKind.NONE, PteKind.EXCLUSIVE]
    assert [entry.kind for entry in before] == kinds + [PteKind.NONE] * 4
    rss = list(one.mm.rss)
    move(one, old, 10, new)
    assert [one.entry(new + i) for i in range(10)] == before
    assert one.mm.rss == rss
    one.memory.migrate_device_pages(src, dst, 1)
    one.memory.migrate_device_finalize(src, dst, 1)
    assert one.entry(new).kind is PteKind.PRESENT
    one.read(*range(new, new + 10))
    one.write(*range(new, new + 10))
    one.check_quiescent()
    one.finish()


def test_a_device_folio_moved_to_an_unaligned_place_comes_home(lab) -> None:
    """Its pages lie under two PMDs then, and rmap finds them all."""
    one = lab(thp="always")
    one.map(8)
    one.device.migrate(one.mm, BASE, BASE + 8 * PAGE)
    tokens = [one.memory.contents.expected(one.mm, one.va(i) // PAGE) for i in range(8)]
    move(one, 0, 8, 20)
    head = one.entry(20).pfn
    one.device.evict([head] + [0] * 7)
    assert one.entry(20).kind is PteKind.PRESENT
    assert one.read(*range(20, 28)) == tokens
    one.check_quiescent()
    one.finish()


def test_a_migrated_page_is_found_by_a_cpu_fault_after_the_move(lab) -> None:
    one = lab()
    one.map(8)
    one.device.migrate(one.mm, BASE, BASE + 8 * PAGE)
    move(one, 2, 4, 33)
    assert one.entry(33).kind is PteKind.PRIVATE
    one.read(34, 0)
    one.check_quiescent()
    one.finish()


# --- tables


def table_of(one, page: int):
    return one.mm.page_table.lookup(one.va(page))


def test_a_whole_table_moves_as_one(lab) -> None:
    one = lab()
    one.map(8)
    table = table_of(one, 0)
    move(one, 0, 8, 40, flags=MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP)
    assert table_of(one, 40) is table
    assert (table.block << 15, table.base) == (one.va(40), one.va(40))
    # Nothing stays behind: a block without a table can hold a huge page.
    assert table_of(one, 0) is None
    one.check_quiescent()
    one.finish()


def test_a_part_of_a_table_leaves_the_rest(lab) -> None:
    one = lab()
    one.map(8)
    move(one, 0, 4, 40, flags=MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP)
    assert table_of(one, 0).present == 0b11110000
    assert table_of(one, 40).present == 0b00001111
    one.check_quiescent()
    one.finish()


def test_the_window_begins_at_the_table_where_nothing_else_lies_in_it(lab) -> None:
    """mm/mremap.c:try_realign_addr: then a table that begins before the area goes whole."""
    one = lab()
    one.map(12, at=4)
    one.watch()
    table = table_of(one, 4)
    move(one, 4, 12, 68)
    assert one.events == [("p", "UNMAP", 0, 16, "-"), ("p", "UNMAP", 4, 16, "-")]
    assert table_of(one, 68) is table
    one.check_quiescent()
    one.finish()


@pytest.mark.parametrize(
    ("prepare", "page", "n", "to"),
    [
        ("nothing", 4, 12, 69),  # not aligned to each other
        ("nothing", 4, 3, 68),  # ends before the table does
        ("nothing", 5, 11, 69),  # does not begin where its area begins
        ("old neighbour", 4, 12, 68),
        ("new neighbour", 4, 12, 68),
    ],
)
def test_the_window_begins_at_the_area_otherwise(lab, prepare: str, page: int, n: int, to: int) -> None:
    one = lab()
    one.map(12, at=4)
    if prepare == "old neighbour":
        one.map(1, at=2, prot=PROT_READ, write=False)
    if prepare == "new neighbour":
        one.map(1, at=66, prot=PROT_READ, write=False)
    one.watch()
    move(one, page, n, to)
    assert one.events[0] == ("p", "UNMAP", page, page + n, "-")
    one.check_quiescent()
    one.finish()


def test_a_whole_pud_moves_as_one(lab) -> None:
    one = lab(ram_pages=1024)
    pud = NR * NR
    one.map(2 * pud, write=False)
    one.write(*range(0, pud, 3))
    tokens = one.read(*range(pud))
    table = table_of(one, 0)
    puds = one.mm.page_table.puds
    one.watch()
    move(one, 0, pud, 4 * pud, flags=MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP)
    assert one.events == [("p", "UNMAP", 0, pud, "-")]
    assert table_of(one, 4 * pud) is table
    assert [one.va(k * pud) >> 18 in puds for k in range(5)] == [False, False, False, False, True]
    assert one.read(*range(4 * pud, 5 * pud)) == tokens
    one.check_quiescent()
    one.finish()


def test_an_empty_pud_or_pmd_makes_no_table_at_the_new_place(lab) -> None:
    one = lab(ram_pages=1024)
    pud = NR * NR
    one.map(2 * pud, write=False)
    one.write(pud)
    move(one, 0, 2 * pud, 5 * pud + NR)
    puds = one.mm.page_table.puds
    assert [one.va(k * pud) >> 18 in puds for k in range(5, 8)] == [False, True, False]
    one.finish()


# --- areas


def test_a_moved_area_keeps_its_offsets_once_it_has_pages(lab) -> None:
    one = lab()
    one.map(8)
    one.map(8, at=16, write=False)
    move(one, 0, 8, 32)
    move(one, 16, 8, 48)
    assert areas(one) == [(32, 40, 0), (48, 56, 48)]
    one.finish()


def test_an_area_moved_back_merges_with_what_stayed(lab) -> None:
    one = lab()
    one.map(12)
    move(one, 4, 4, 32)
    assert areas(one) == [(0, 4, 0), (8, 12, 8), (32, 36, 4)]
    move(one, 32, 4, 4)
    assert areas(one) == [(0, 12, 0)]
    one.check_quiescent()
    one.finish()


def test_an_area_without_pages_merges_where_it_goes(lab) -> None:
    one = lab()
    one.map(4, at=16)
    one.map(8, write=False)
    move(one, 0, 4, 20)
    assert areas(one) == [(4, 8, 4), (16, 24, 16)]
    assert len(one.memory.rmap.mappings) == 1
    one.finish()


def test_an_area_with_pages_gives_its_anon_vma_to_what_it_joins(lab) -> None:
    """The neighbour has none, and its offsets go on (mm/vma.c:dup_anon_vma)."""
    one = lab()
    one.map(4, at=4)
    one.map(4, at=32, write=False)  # offsets 32...
    move(one, 4, 4, 40)
    one.map(4, at=0, write=False)  # offsets 0..., just below those of the moved area
    move(one, 40, 4, 4)
    assert areas(one) == [(0, 8, 0), (32, 36, 32)]
    one.device.migrate(one.mm, one.va(4), one.va(8))
    one.read(4)
    one.check_quiescent()
    one.finish()


def test_an_area_may_merge_with_its_own_rest(lab) -> None:
    """Without pages its offsets are chosen anew, so the moved part and what stays may be one again (copy_vma)."""
    one = lab()
    one.map(16, at=16, write=False)
    move(one, 24, 8, 8)
    assert areas(one) == [(8, 24, 8)]
    one.write(*range(8, 24))
    one.check_quiescent()
    one.finish()


def test_several_areas_and_gaps_move_piece_by_piece(lab) -> None:
    one = lab()
    one.map(4)
    one.map(4, at=4, prot=PROT_READ, write=False)
    one.map(4, at=12)
    tokens = one.read(2, 3, 4, 12, 13)
    one.map(2, at=43, write=False)
    one.watch()
    move(one, 2, 12, 34)
    assert one.events == [
        ("p", "UNMAP", 2, 4, "-"),
        ("p", "UNMAP", 2, 4, "-"),
        ("p", "UNMAP", 4, 8, "-"),
        ("p", "UNMAP", 4, 8, "-"),
        ("p", "UNMAP", 44, 46, "-"),
        ("p", "UNMAP", 12, 14, "-"),
        ("p", "UNMAP", 12, 14, "-"),
    ]
    assert one.read(34, 35, 36, 44, 45) == tokens
    assert areas(one) == [(0, 2, 0), (14, 16, 14), (34, 36, 2), (36, 40, 36), (43, 44, 43), (44, 46, 12)]
    one.check_quiescent()
    one.finish()


def test_only_shrinking_lets_readers_in_before_it_tells(lab) -> None:
    """A move keeps mmap_lock for write throughout, a shrink goes on as munmap does (mm/mremap.c:shrink_vma)."""
    one = lab()
    one.map(16)
    one.watch()
    lock = one.mm.mmap_lock
    held = []
    log = one.watchers[0].invalidate

    def invalidate(sub, range_, cur_seq):
        held.append(lock.is_write_locked)
        return log(sub, range_, cur_seq)

    one.watchers[0].invalidate = invalidate
    move(one, 0, 16, 32)
    assert held == [True, True]
    held.clear()
    one.mm.mremap(one.va(32), 16 * PAGE, 8 * PAGE)
    assert held == [False]
    assert not lock.is_locked
    one.finish()


# --- in place


def test_growing_in_place_is_silent_and_joins_what_follows(lab) -> None:
    one = lab()
    one.map(4)
    one.map(4, at=8, write=False)
    one.watch()
    assert one.mm.mremap(BASE, 4 * PAGE, 8 * PAGE) == BASE
    assert one.events == []
    assert areas(one) == [(0, 12, 0)]
    one.write(*range(12))
    one.check_quiescent()
    one.finish()


def test_shrinking_unmaps_the_end(lab) -> None:
    one = lab()
    one.map(8)
    one.map(4, at=8, prot=PROT_READ, write=False)
    one.watch()
    assert one.mm.mremap(BASE, 12 * PAGE, 3 * PAGE) == BASE  # across a boundary, which is allowed here
    # The area is cut inside a block that it covers (MM-Q16).
    assert one.events == [("p", "CLEAR", 0, 8, "-"), ("p", "UNMAP", 3, 12, "-")]
    assert areas(one) == [(0, 3, 0)]
    one.finish()


def test_the_same_length_in_place_does_nothing(lab) -> None:
    one = lab()
    one.map(8)
    one.watch()
    assert one.mm.mremap(BASE, 8 * PAGE, 8 * PAGE, flags=MREMAP_MAYMOVE) == BASE
    assert one.events == []
    one.finish()


def test_growing_where_there_is_no_room_moves_the_area(lab) -> None:
    one = lab()
    one.map(4)
    one.map(4, at=6, prot=PROT_READ, write=False)
    tokens = one.read(*range(4))
    with pytest.raises(KernelError, match=r"no room behind it, and it may not move$") as caught:
        one.mm.mremap(BASE, 4 * PAGE, 8 * PAGE)
    assert caught.value.errno == ENOMEM
    at = one.mm.mremap(BASE, 4 * PAGE, 8 * PAGE, flags=MREMAP_MAYMOVE)
    page = (at - BASE) // PAGE
    assert one.read(*range(page, page + 8)) == tokens + [0] * 4
    assert [vma.end - vma.start for vma in one.mm.vmas] == [4 * PAGE, 8 * PAGE]
    one.check_quiescent()
    one.finish()


def test_growing_a_part_of_an_area_moves_the_part(lab) -> None:
    one = lab()
    one.map(8)
    at = one.mm.mremap(BASE, 4 * PAGE, 5 * PAGE, flags=MREMAP_MAYMOVE)
    assert areas(one)[0] == (4, 8, 4)
    assert one.mm.vma_lookup(at).end == at + 5 * PAGE
    one.finish()


def test_shrinking_and_moving_at_once(lab) -> None:
    one = lab()
    one.map(8)
    tokens = one.read(0, 1)
    one.watch()
    assert move(one, 0, 8, 32, new=2) == 32
    assert one.events == [
        ("p", "CLEAR", 0, 8, "-"),
        ("p", "UNMAP", 2, 8, "-"),
        ("p", "UNMAP", 0, 2, "-"),
        ("p", "UNMAP", 0, 2, "-"),
    ]
    assert one.read(32, 33) == tokens
    assert areas(one) == [(32, 34, 0)]
    one.finish()


def test_growing_and_moving_at_once(lab) -> None:
    one = lab()
    one.map(4)
    tokens = one.read(*range(4))
    one.watch()
    assert move(one, 0, 4, 32, new=6) == 32
    assert one.events == [("p", "UNMAP", 0, 4, "-"), ("p", "UNMAP", 0, 4, "-")]
    assert one.read(*range(32, 38)) == [*tokens, 0, 0]
    one.finish()


# --- shared memory


def test_shared_memory_moves_with_what_is_mapped_of_it(lab) -> None:
    one = lab()
    one.mm.mmap(BASE, 8 * PAGE, 3, flags=VM_SHARED)
    one.write(*range(4))
    one.mm.madvise(one.va(2), PAGE, MADV_DONTNEED)
    tokens = one.read(*range(8))
    one.watch()
    move(one, 1, 4, 35)
    assert one.events == [("p", "UNMAP", 1, 5, "-"), ("p", "CLEAR", 0, 8, "-"), ("p", "UNMAP", 1, 5, "-")]
    # It keeps its place in the object, written or not.
    assert [(vma.start - BASE) // PAGE - vma.pgoff for vma in one.mm.vmas] == [0, 0, 34]
    assert one.mm.rss == [0, 0, 8]
    assert one.read(0, 35, 36, 37, 38, 5, 6, 7) == tokens
    move(one, 35, 4, 1)
    assert len(one.mm.vmas) == 1
    assert one.read(*range(8)) == tokens
    one.finish()


def test_shared_memory_can_be_doubled(lab) -> None:
    """With an old length of 0 the mapping stays, and there is another of the same object."""
    one = lab()
    one.mm.mmap(BASE, 4 * PAGE, 3, flags=VM_SHARED)
    tokens = one.write(*range(4))
    one.watch()
    assert one.mm.mremap(one.va(1), 0, 3 * PAGE, flags=FIXED, new_addr=one.va(32)) == one.va(32)
    assert one.events == []
    assert one.read(*range(4), 32, 33, 34) == [*tokens, *tokens[1:]]
    [token] = one.write(33)
    assert one.read(2) == [token]
    assert refused(one, 0, 0, 40, new=3, flags=0) == ENOMEM
    one.finish()


# --- errors


def test_what_is_refused_at_once(lab) -> None:
    one = lab()
    one.map(8)
    one.watch()
    mremap = one.mm.mremap
    for errno, addr, old, new, flags, to in [
        (EINVAL, BASE, 4, 4, 8, BASE + 32 * PAGE),  # no such flag
        (EINVAL, BASE + 1, 4, 4, 0, None),
        (EINVAL, BASE, 4, 0, 0, None),
        (EINVAL, BASE, 4, (TASK_SIZE >> 12) + 1, 0, None),
        (EINVAL, BASE, 4, 4, MREMAP_FIXED, BASE + 32 * PAGE),
        (EINVAL, BASE, 4, 4, MREMAP_DONTUNMAP, BASE + 32 * PAGE),
        (EINVAL, BASE, 4, 4, FIXED, BASE + 32 * PAGE + 1),
        (EINVAL, BASE, 4, 4, FIXED, TASK_SIZE - 3 * PAGE),
        (EINVAL, BASE, 4, 5, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, None),
        (EINVAL, BASE, 4, 4, FIXED, BASE + 3 * PAGE),
        (EINVAL, BASE, 4, 4, FIXED, BASE - 3 * PAGE),
        (EINVAL, BASE, 0, 4, FIXED, BASE + 32 * PAGE),  # private memory cannot be doubled
        (EFAULT, BASE - PAGE, 4, 4, FIXED, BASE + 32 * PAGE),
        (EFAULT, BASE - PAGE, 4, 4, 0, None),
        (EFAULT, BASE + 8 * PAGE, 4, 8, MREMAP_MAYMOVE, None),
        (EFAULT, BASE, 9, 12, MREMAP_MAYMOVE, None),  # a resize across the end of the area
        (EFAULT, BASE, 12, 9, FIXED, BASE + 32 * PAGE),
    ]:
        with pytest.raises(KernelError) as caught:
            mremap(addr, old * PAGE, new * PAGE, flags=flags, new_addr=to)
        assert (caught.value.errno, addr, old, new, flags, to) == (errno, addr, old, new, flags, to)
    assert one.events == []
    assert areas(one) == [(0, 8, 0)]
    one.finish()


def test_what_cannot_grow_or_be_doubled(lab) -> None:
    one = lab()
    one.mm.mmap(BASE, 4 * PAGE, 3, flags=VM_DONTEXPAND)
    assert refused(one, 0, 4, 32, flags=MREMAP_MAYMOVE | MREMAP_DONTUNMAP) == EINVAL
    assert refused(one, 0, 4, 32, new=5) == EFAULT
    assert move(one, 0, 4, 32) == 32
    one.finish()


def test_a_watched_area_moves_alone(lab) -> None:
    """mm/mremap.c:vma_multi_allowed; what lies before it has been moved by then."""
    one = lab()
    one.map(4)
    one.map(4, at=8)
    uffd = Userfaultfd(one.memory, one.mm)
    uffd.register(one.va(8), 4 * PAGE)
    assert refused(one, 0, 12, 32) == EFAULT
    assert areas(one) == [(8, 12, 8), (32, 36, 0)]
    assert refused(one, 8, 5, 64) == EFAULT
    move(one, 8, 4, 64)
    assert areas(one) == [(32, 36, 0), (64, 68, 8)]
    uffd.close()
    one.finish()


def test_a_hole_that_fails_in_the_middle_leaves_what_was_moved(lab) -> None:
    one = lab()
    one.map(4)
    one.map(4, at=4, prot=PROT_READ, write=False)
    one.kernel.arm("alloc.vma", nth=2)
    assert refused(one, 0, 8, 32) == ENOMEM
    assert areas(one) == [(4, 8, 4), (32, 36, 0)]
    one.check_quiescent()
    one.finish()


def test_a_table_that_cannot_be_had_brings_everything_back(lab) -> None:
    one = lab()
    one.map(24)
    tokens = one.read(*range(24))
    one.watch()
    one.kernel.arm("alloc.pte_table", nth=2)
    assert refused(one, 0, 24, 36) == ENOMEM
    assert one.read(*range(24)) == tokens
    assert areas(one) == [(0, 24, 0)]
    # There, back again, and away with the area that was to be.
    assert one.events == [("p", "UNMAP", 0, 24, "-"), ("p", "UNMAP", 36, 40, "-"), ("p", "UNMAP", 36, 60, "-")]
    one.check_quiescent()
    one.finish()


# --- contents


def test_what_was_expected_moves_along(lab) -> None:
    one = lab()
    one.map(6)
    vpn = BASE // PAGE
    expected = one.memory.contents.expected_many(one.mm, np.arange(vpn, vpn + 6))
    one.memory.contents.taint(one.mm, np.array([vpn + 1]), "mm_s1")
    move(one, 0, 6, 35)
    found = one.memory.contents.expected_many(one.mm, np.arange(vpn + 35, vpn + 41))
    assert found.tolist() == expected.tolist()
    assert one.memory.contents.expected_many(one.mm, np.arange(vpn, vpn + 6)).tolist() == [0] * 6
    assert one.memory.contents.tainted_vpns == {(one.mm, vpn + 36): "mm_s1"}
    one.finish()


def test_windows_of_expected_tokens_are_crossed(lab) -> None:
    one = lab(pmd_order=9, ram_pages=4096)
    edge = 1 << 21 << 12  # where a window of expected tokens ends
    start = edge * 3 - 2 * PAGE
    one.mm.mmap(start, 6 * PAGE, 3)
    tokens = [one.memory.cpu_write(one.mm, start + i * PAGE) for i in range(6)]
    target = edge * 7 - 4 * PAGE
    one.mm.mremap(start, 6 * PAGE, 6 * PAGE, flags=FIXED, new_addr=target)
    assert [one.memory.cpu_read(one.mm, target + i * PAGE) for i in range(6)] == tokens
    assert not one.memory.contents.mismatches
    one.finish()


def test_leaves_keep_what_they_are(lab) -> None:
    one = lab(thp="always")
    one.map(32, write=False)
    one.write(*range(8))
    one.read(8)
    one.write(*range(16, 24))
    one.device.migrate(one.mm, one.va(16), one.va(24))
    move(one, 0, 32, 64)
    assert [one.entry(64 + i).kind for i in (0, 8, 16)] == [PmdKind.THP, PmdKind.HUGE_ZERO, PmdKind.PRIVATE]
    assert not isinstance(table_of(one, 64 + 24), PteTable)
    one.check_quiescent()
    one.finish()


def test_a_fixed_place_has_to_be_given(lab):
    one = lab()
    one.map(4)
    with pytest.raises(ModelError, match=r"^mremap with MREMAP_FIXED moves to new_addr, and that was not given$"):
        one.mm.mremap(BASE, 4 * PAGE, 4 * PAGE, flags=MREMAP_MAYMOVE | MREMAP_FIXED)
    one.finish()
