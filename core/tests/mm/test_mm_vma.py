"""mmap, munmap and mprotect: areas, their merging and splitting, entries, events, errors."""

from errno import EACCES, EINVAL, ENOMEM

import pytest
from gpusvm.errors import CpuSignal, KernelError
from gpusvm.mm.api import PROT_NONE, PROT_READ, PROT_WRITE, VM_HUGEPAGE, VM_MAYWRITE
from gpusvm.mm.pgtable import PmdKind, Pte, PteKind

PAGE = 4096
BASE = 1 << 30
RW = PROT_READ | PROT_WRITE


def areas(one) -> list[tuple[int, int, int]]:
    return [((v.start - BASE) // PAGE, (v.end - BASE) // PAGE, v.flags & 3) for v in one.mm.vmas]


def protect(one, page: int, n: int, prot: int) -> None:
    one.mm.mprotect(BASE + page * PAGE, n * PAGE, prot)


def unmap(one, page: int, n: int) -> None:
    one.mm.munmap(BASE + page * PAGE, n * PAGE)


def test_neighbours_with_the_same_access_become_one(lab) -> None:
    one = lab()
    one.map(4, write=False)
    one.map(4, at=8, write=False)
    assert areas(one) == [(0, 4, 3), (8, 12, 3)]
    one.map(4, at=4, write=False)
    assert areas(one) == [(0, 12, 3)]
    one.map(2, at=12, prot=PROT_READ, write=False)
    assert areas(one) == [(0, 12, 3), (12, 14, 1)]
    one.finish()


def test_neighbours_with_different_anon_vmas_stay_apart(lab) -> None:
    one = lab()
    one.map(4)
    one.map(4, at=8)
    one.map(4, at=4, write=False)
    # What is new joins the area below it, as the two cannot become one.
    assert areas(one) == [(0, 8, 3), (8, 12, 3)]
    one.write(5)
    assert one.mm.vmas[0].anon_vma is not one.mm.vmas[1].anon_vma
    one.finish()


def test_a_neighbour_s_anon_vma_is_shared_when_the_offsets_continue(lab) -> None:
    one = lab()
    one.map(4, prot=PROT_READ, write=False)
    one.map(4, at=4)
    one.map(4, at=20, write=False)
    protect(one, 0, 4, RW)
    assert areas(one) == [(0, 8, 3), (20, 24, 3)]
    protect(one, 0, 2, PROT_READ)
    one.write(3, 20)
    assert [v.anon_vma.id for v in one.mm.vmas] == [1, 1, 2]
    one.finish()


def test_munmap_forgets_what_was_there(lab) -> None:
    one = lab()
    one.map(8)
    unmap(one, 2, 3)
    assert areas(one) == [(0, 2, 3), (5, 8, 3)]
    assert one.mm.rss == [5, 0, 0]
    with pytest.raises(CpuSignal, match=rf"^SIGSEGV at {BASE + 2 * PAGE:#x}$"):
        one.read(2)
    one.map(3, at=2, write=False)
    assert one.read(1, 2, 3, 4, 5)[1:4] == [0, 0, 0]
    one.finish()


def test_munmap_of_nothing_is_quiet(lab) -> None:
    one = lab()
    one.map(4, at=16)
    one.watch()
    unmap(one, 0, 4)
    assert one.events == []
    unmap(one, 0, 64)
    assert one.events == [("p", "UNMAP", 0, 64, "-")]
    one.finish()


def test_mmap_over_a_mapping_replaces_it(lab) -> None:
    one = lab()
    one.map(8)
    one.watch()
    one.map(2, at=3, write=False)
    assert one.events == [("p", "CLEAR", 0, 8, "-"), ("p", "UNMAP", 3, 5, "-")]
    assert areas(one) == [(0, 8, 3)]
    assert one.mm.rss == [6, 0, 0]
    assert one.read(3, 4) == [0, 0]
    one.finish()


def test_mmap_finds_room_and_aligns_what_can_be_huge(lab) -> None:
    one = lab()
    mm = one.mm
    first = mm.mmap(None, 3 * PAGE, RW)
    second = mm.mmap(None, 2 * PAGE, RW)
    third = mm.mmap(None, 8 * PAGE, RW)
    assert second == first + 3 * PAGE
    assert third % (8 * PAGE) == 0
    assert third >= second + 2 * PAGE
    one.finish()


@pytest.mark.parametrize(
    ("addr", "length", "errno", "message"),
    [
        (BASE, 0, EINVAL, "-EINVAL: mmap of 0 bytes"),
        (BASE + 1, PAGE, EINVAL, "-EINVAL: mmap at 0x40000001, which is not a multiple of 4096"),
        (
            (1 << 47) - PAGE,
            2 * PAGE,
            ENOMEM,
            "-ENOMEM: mmap of 0x7ffffffff000-0x800000001000, outside the address space",
        ),
    ],
)
def test_mmap_refuses(lab, addr: int, length: int, errno: int, message: str) -> None:
    one = lab()
    with pytest.raises(KernelError) as caught:
        one.mm.mmap(addr, length, RW)
    assert (caught.value.errno, str(caught.value)) == (errno, message)


@pytest.mark.parametrize(("start", "length"), [(BASE + 1, PAGE), (BASE, 0), (BASE, 1 << 47)])
def test_munmap_refuses(lab, start: int, length: int) -> None:
    with pytest.raises(KernelError) as caught:
        lab().mm.munmap(start, length)
    assert caught.value.errno == EINVAL


def test_the_unmap_callback_finds_no_area_and_only_readers_are_out(lab) -> None:
    one = lab()
    one.map(8)
    seen = []

    class Look:
        def invalidate(self, sub, range_, cur_seq) -> bool:
            sub.invalidate_seq = cur_seq
            seen.append((one.mm.vma_lookup(range_.start), one.mm.mmap_lock.is_write_locked, one.mm.mmap_lock.is_locked))
            return True

    sub = one.memory.mmu_interval_notifier_insert(one.mm, BASE, 8 * PAGE, Look())
    unmap(one, 0, 8)
    assert seen == [(None, False, True)]
    one.memory.mmu_interval_notifier_remove(sub)
    one.finish()


def test_tables_go_when_no_area_needs_them(lab) -> None:
    one = lab()
    one.map(24)
    one.map(1, at=26)
    unmap(one, 4, 10)
    # Block 1 lies between the areas that are left, half of block 0 does not.
    assert sorted(one.mm.page_table.entries) == [BASE // PAGE // 8 + k for k in (0, 1, 2, 3)]
    unmap(one, 14, 10)
    assert sorted(one.mm.page_table.entries) == [BASE // PAGE // 8 + k for k in (0, 3)]
    unmap(one, 0, 64)
    assert one.mm.page_table.entries == {}
    assert not one.mm.page_table.pud_present(BASE)
    one.finish()


# --- mprotect


def test_mprotect_takes_write_away_and_gives_exclusive_pages_back_at_once(lab) -> None:
    one = lab()
    one.map(4)
    one.read(*range(4))
    protect(one, 1, 2, PROT_READ)
    assert areas(one) == [(0, 1, 3), (1, 3, 1), (3, 4, 3)]
    assert [one.entry(i).write for i in range(4)] == [True, False, False, True]
    with pytest.raises(CpuSignal, match=r"^SIGSEGV at 0x40001000$"):
        one.write(1)
    one.watch()
    protect(one, 1, 2, RW)
    assert areas(one) == [(0, 4, 3)]
    assert [one.entry(i).write for i in range(4)] == [True] * 4
    faults = one.kernel.stats.cpu_minor_faults
    one.write(1, 2)
    assert one.kernel.stats.cpu_minor_faults == faults
    assert one.events == [("p", "PROTECTION_VMA", 1, 3, "-")]
    one.finish()


def test_mprotect_to_what_it_is_does_nothing(lab) -> None:
    one = lab()
    one.map(4)
    one.watch()
    protect(one, 0, 4, RW)
    protect(one, 0, 0, PROT_READ)
    assert one.events == []
    one.finish()


def test_mprotect_of_never_touched_memory_has_no_event_until_the_pud_is_there(lab) -> None:
    one = lab()
    one.map(4, write=False)
    one.watch()
    protect(one, 0, 4, PROT_READ)
    assert one.events == []
    one.map(1, at=40)
    protect(one, 0, 4, RW)
    assert one.events == [("p", "PROTECTION_VMA", 0, 4, "-")]
    one.finish()


def test_prot_none_keeps_the_pages_and_refuses_every_access(lab) -> None:
    one = lab()
    one.map(2)
    protect(one, 0, 2, PROT_NONE)
    assert one.mm.rss == [2, 0, 0]
    with pytest.raises(CpuSignal):
        one.read(0)
    protect(one, 0, 2, PROT_READ)
    one.read(0, 1)
    assert not one.entry(0).write
    one.finish()


def test_mprotect_stops_at_a_gap_and_keeps_what_it_did(lab) -> None:
    one = lab()
    one.map(2)
    one.map(2, at=4)
    one.watch()
    with pytest.raises(KernelError) as caught:
        protect(one, 0, 6, PROT_READ)
    assert str(caught.value) == "-ENOMEM: mprotect over the gap at 0x40002000"
    assert areas(one) == [(0, 2, 1), (4, 6, 3)]
    assert one.events == [("p", "PROTECTION_VMA", 0, 2, "-")]
    with pytest.raises(KernelError) as caught:
        protect(one, 2, 4, PROT_READ)
    assert caught.value.errno == ENOMEM
    assert areas(one) == [(0, 2, 1), (4, 6, 3)]
    one.finish()


def test_mprotect_refuses_what_may_never_be_and_what_is_not_aligned(lab) -> None:
    one = lab()
    one.map(1)
    one.mm.vmas[0].flags &= ~VM_MAYWRITE & ~2
    with pytest.raises(KernelError) as caught:
        protect(one, 0, 1, RW)
    assert caught.value.errno == EACCES
    with pytest.raises(KernelError) as caught:
        one.mm.mprotect(BASE + 1, PAGE, PROT_READ)
    assert caught.value.errno == EINVAL


@pytest.mark.breaks_invariants
def test_mprotect_changes_every_kind_of_entry(lab) -> None:
    one = lab()
    one.map(5)
    one.device.migrate(one.mm, BASE, BASE + PAGE)
    with one.mm.mmap_lock.read():
        pfn = one.memory.make_device_exclusive(one.mm, BASE + PAGE, None)
    one.memory.folio_unlock(pfn)
    one.memory.folio_put(pfn)
    table = one.mm.page_table.lookup(BASE)
    table.set_migration(0b100, 0b100, 0)
    table.set_migration(0b1000, 0, 0)
    protect(one, 0, 5, PROT_READ)
    kinds = [(entry.kind, entry.write, entry.rexcl) for entry in (one.entry(i) for i in range(5))]
    assert kinds == [
        (PteKind.PRIVATE, False, False),
        (PteKind.EXCLUSIVE, False, False),
        (PteKind.MIGRATION, False, True),
        (PteKind.MIGRATION, False, False),
        (PteKind.PRESENT, False, False),
    ]
    protect(one, 0, 5, RW)
    # A device-private entry never gets its write back in place.
    assert [one.entry(i).write for i in range(5)] == [False, False, False, False, True]
    table.set_present(0b1100, table.pfns(0b1100).copy(), 0)
    one.write(0, 1)
    one.finish()


def test_mprotect_of_a_whole_leaf_keeps_it_and_of_a_part_splits_it(lab) -> None:
    one = lab(thp="always")
    one.map(16)
    one.watch()
    protect(one, 0, 8, PROT_READ)
    assert one.entry(0).kind is PmdKind.THP
    assert not one.entry(0).write
    assert one.events == [("p", "PROTECTION_VMA", 0, 8, "-")]
    one.events.clear()
    protect(one, 8, 4, PROT_READ)
    assert areas(one) == [(0, 12, 1), (12, 16, 3)]
    assert one.events == [("p", "CLEAR", 8, 16, "-"), ("p", "PROTECTION_VMA", 8, 12, "-")]
    assert [one.entry(i).write for i in range(8, 16)] == [False] * 4 + [True] * 4
    assert one.counts(one.pfn(8)) == "8/8"
    protect(one, 0, 8, RW)
    assert one.entry(0).write
    one.check_quiescent()
    one.finish()


@pytest.mark.parametrize("order", [2, 3, 9])
def test_unmapping_half_a_huge_page_leaves_a_partly_mapped_folio(lab, order: int) -> None:
    one = lab(pmd_order=order, thp="always")
    one.map(one.nr, write=False)
    one.write(0, one.nr - 1)
    assert one.entry(0).kind is PmdKind.THP
    half = one.nr // 2
    unmap(one, 0, half)
    assert one.mm.rss == [half, 0, 0]
    assert one.entry(0) == Pte(PteKind.NONE)
    assert one.counts(one.pfn(half)) == f"{half}/{half}"
    one.check_quiescent()
    one.finish()


def test_hugepage_advice_is_a_flag_of_the_area(lab) -> None:
    one = lab(thp="madvise")
    one.mm.mmap(BASE, 8 * PAGE, RW)
    one.mm.mmap(BASE + 8 * PAGE, 8 * PAGE, RW, flags=VM_HUGEPAGE)
    assert len(one.mm.vmas) == 2
    one.write(0, 8)
    assert one.entry(0).kind is PteKind.PRESENT
    assert one.entry(8).kind is PmdKind.THP
    one.finish()


def test_splitting_an_area_can_fail_and_then_nothing_has_changed(lab) -> None:
    one = lab()
    one.map(8)
    one.kernel.arm("alloc.vma")
    with pytest.raises(KernelError) as caught:
        unmap(one, 2, 2)
    assert caught.value.errno == ENOMEM
    assert areas(one) == [(0, 8, 3)]
    assert not one.mm.mmap_lock.is_locked
    one.finish()
