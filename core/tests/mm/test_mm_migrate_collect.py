"""What migrate_vma_setup refuses, and every row of what it collects, as words of src.

Many cases run twice: as a whole table goes at once, and with a locked page in the chunk, so that it goes page by page.
"""

from errno import EINVAL
from functools import partial

import numpy as np
import pytest
from gpusvm.errors import KernelError, ModelError
from gpusvm.mm.api import (
    MEMORY_DEVICE_COHERENT,
    MIGRATE_PFN_COMPOUND,
    MIGRATE_PFN_MIGRATE,
    MIGRATE_PFN_SHIFT,
    MIGRATE_PFN_VALID,
    MIGRATE_PFN_WRITE,
    MIGRATE_VMA_SELECT_COMPOUND,
    MIGRATE_VMA_SELECT_DEVICE_COHERENT,
    MIGRATE_VMA_SELECT_DEVICE_PRIVATE,
    MIGRATE_VMA_SELECT_SYSTEM,
    PROT_READ,
    VM_HUGETLB,
    VM_IO,
    VM_MIXEDMAP,
    VM_PFNMAP,
    DevPagemap,
    MigrateVma,
)
from gpusvm.mm.page import PG_ANON_EXCLUSIVE, PG_DIRTY, PG_LOCKED
from gpusvm.mm.pgtable import PmdKind, Pte, PteKind

SYSTEM = MIGRATE_VMA_SELECT_SYSTEM
PRIVATE = MIGRATE_VMA_SELECT_DEVICE_PRIVATE
COMPOUND = MIGRATE_VMA_SELECT_COMPOUND
VALID, MIGRATE, WRITE, BLOCK = MIGRATE_PFN_VALID, MIGRATE_PFN_MIGRATE, MIGRATE_PFN_WRITE, MIGRATE_PFN_COMPOUND
GUP_PIN = 1024


def shown(one, args) -> str:
    """The words, letter by letter: . nothing, h hole, H compound hole, r or w a page, R or W a compound one."""
    out = ""
    for word in args.src[: args.npages].tolist():
        if not word:
            out += "."
        elif not word & VALID:
            assert word & ~BLOCK == MIGRATE
            out += "H" if word & BLOCK else "h"
        else:
            assert word & MIGRATE
            letter = "w" if word & WRITE else "r"
            out += letter.upper() if word & BLOCK else letter
    assert args.cpages == sum(letter != "." for letter in out)
    assert not args.dst[: args.npages].any()
    return out


def collect(one, start, end, flags, *, owner=None, undo=True) -> str:
    """What setup says of the pages [start, end); then everything is put back."""
    with one.mm.mmap_lock.read():
        args = MigrateVma(
            one.mm.vma_lookup(one.va(start)),
            one.va(start),
            one.va(end),
            np.full(end - start, 7, np.uint64),
            np.full(end - start, 7, np.uint64),
            pgmap_owner=owner or one.device.owner,
            flags=flags,
        )
        one.memory.migrate_vma_setup(args)
        letters = shown(one, args)
        for word in args.src[args.src & VALID != 0].tolist():
            pfn = word >> MIGRATE_PFN_SHIFT
            assert one.counts(pfn) == "1/0"
            assert one.flags(pfn) & PG_LOCKED
        one.memory.migrate_vma_pages(args)
        one.memory.migrate_vma_finalize(args)
    if undo:
        one.check_quiescent()
    return letters


def meanwhile(one, start, end, flags) -> str:
    """What setup says to another task while this one is in the middle of a migration."""
    return one.kernel.spawn(partial(collect, one, start, end, flags, undo=False), name="other").join()


@pytest.fixture(params=["together", "one by one"])
def small(lab, request):
    """A machine with 16 small pages, 0-7 written; the second time page 7 is locked, so its table goes page by page."""
    one = lab()
    one.map(16, write=False)
    one.write(*range(8))
    one.slow = request.param == "one by one"
    if one.slow:
        one.pages.folio_lock(one.pfn(7))

    def look(start, end, flags, **options):
        if not one.slow:
            return collect(one, start, end, flags, **options)
        letters = collect(one, start, end, flags, undo=False, **options)
        assert letters.endswith("." if end == 8 else "")
        return letters

    one.look = look
    yield one
    if one.slow:
        one.pages.folio_unlock(one.pfn(7))
    one.check_quiescent()


def test_present_small_pages(small):
    assert small.look(0, 8, SYSTEM)[:7] == "wwwwwww"
    assert small.look(0, 8, PRIVATE)[:7] == "......."


def test_read_only_page(small):
    small.share(3).exit()
    assert small.look(0, 8, SYSTEM)[:7] == "rrrwwww"


def test_none_and_zero_page(lab):
    one = lab()
    one.map(16, write=False)
    one.read(2, 3)
    one.write(5)
    assert collect(one, 0, 8, SYSTEM) == "hhhhhwhh"
    # Without SELECT_SYSTEM a none entry is still a hole; the zero page is not.
    assert collect(one, 0, 8, PRIVATE) == "hh..h.hh"
    assert collect(one, 8, 16, PRIVATE) == "hhhhhhhh"
    one.pages.folio_lock(one.pfn(5))
    assert collect(one, 0, 8, SYSTEM, undo=False) == "hhhhh.hh"
    one.pages.folio_unlock(one.pfn(5))


def test_device_private_pages(small):
    one = small
    one.device.migrate(one.mm, one.va(0), one.va(4), flags=SYSTEM)
    assert one.look(0, 8, PRIVATE)[:7] == "wwww..."
    assert one.look(0, 8, SYSTEM)[:7] == "....www"
    assert one.look(0, 8, SYSTEM | PRIVATE)[:7] == "wwwwwww"
    assert one.look(0, 8, PRIVATE, owner="another")[:7] == "......."


def test_device_private_page_that_mprotect_made_read_only(lab):
    one = lab()
    one.map(8)
    one.device.migrate(one.mm, one.va(0), one.va(8), flags=SYSTEM)
    one.mm.mprotect(one.va(0), 8 * 4096, PROT_READ)
    assert collect(one, 0, 8, PRIVATE) == "rrrrrrrr"
    assert one.entry(3).write is False
    assert one.flags(one.pfn(3)) & PG_ANON_EXCLUSIVE  # READ_EXCL kept it


def test_migration_and_device_exclusive_entries_are_skipped(lab):
    one = lab()
    one.map(8)
    with one.mm.mmap_lock.read():
        pfn = one.memory.make_device_exclusive(one.mm, one.va(2), "gpu")
    one.pages.folio_unlock(pfn)
    one.pages.folio_put(pfn)
    first = one.device.setup(one.mm, one.va(4), one.va(6), flags=SYSTEM)
    assert meanwhile(one, 0, 8, SYSTEM) == "ww.w..ww"
    one.memory.migrate_vma_finalize(first)
    one.mm.mmap_lock.up_read()
    one.check_quiescent()


def test_locked_page_is_skipped(lab):
    one = lab()
    one.map(8)
    one.pages.folio_lock(one.pfn(3))
    assert collect(one, 0, 8, SYSTEM, undo=False) == "www.wwww"
    assert one.counts(one.pfn(3)) == "1/1"
    one.pages.folio_unlock(one.pfn(3))
    one.check_quiescent()


def test_pinned_exclusive_page_is_put_back(lab):
    one = lab()
    one.map(8)
    pfn = one.pfn(3)
    one.pages.ram.m_refcount[pfn] += GUP_PIN
    assert collect(one, 0, 8, SYSTEM, undo=False) == "www.wwww"
    assert one.counts(pfn) == "1025/1"
    assert one.entry(3) == Pte(PteKind.PRESENT, pfn, write=True, dirty=True)
    one.pages.folio_put(pfn, GUP_PIN)
    one.check_quiescent()


def test_page_with_one_more_reference_is_restored_by_setup(lab):
    one = lab()
    one.map(8)
    pfn = one.pfn(3)
    one.pages.folio_get(pfn)
    before = one.entry(3)
    assert collect(one, 0, 8, SYSTEM, undo=False) == "www.wwww"
    assert one.counts(pfn) == "2/1"
    assert one.entry(3) == before
    one.pages.folio_put(pfn)
    one.check_quiescent()


def test_device_page_with_one_more_reference_is_tolerated_by_setup_and_refused_by_pages(lab):
    one = lab()
    one.map(4)
    one.device.migrate(one.mm, one.va(0), one.va(4), flags=SYSTEM)
    pfn = one.pfn(1)
    one.pages.folio_get(pfn)
    with one.mm.mmap_lock.read():
        args = MigrateVma(one.mm.vmas[0], one.va(0), one.va(4), *np.zeros((2, 4), np.uint64), one.device.owner, PRIVATE)
        one.memory.migrate_vma_setup(args)
        assert shown(one, args) == "wwww"
        one.device.fill_to_ram(args.src, args.dst, 4)
        one.memory.migrate_vma_pages(args)
        assert shown_migrate(args) == [True, False, True, True]
        one.memory.migrate_vma_finalize(args)
    assert one.pfn(1) == pfn
    assert one.counts(pfn) == "2/1"
    assert one.kernel.stats.migrated_to_ram_bytes == 3 * 4096
    one.pages.folio_put(pfn)
    one.check_quiescent()


def shown_migrate(args) -> list[bool]:
    return [bool(word & MIGRATE) for word in args.src[: args.npages].tolist()]


@pytest.mark.breaks_invariants
def test_page_without_mapping_is_skipped(lab):
    one = lab()
    one.map(4)
    zone = one.pages.ram
    pfn = one.pfn(2)
    mapping = zone.m_mapping[pfn]
    zone.m_mapping[pfn] = 0
    assert collect(one, 0, 4, SYSTEM, undo=False) == "ww.w"
    zone.m_mapping[pfn] = mapping
    one.check_quiescent()


def test_dirty_goes_to_the_folio(lab):
    one = lab()
    one.map(4)
    table = one.mm.page_table.lookup(one.va(0))
    table.dirty = 0b0101
    pfns = [one.pfn(i) for i in range(4)]
    with one.mm.mmap_lock.read():
        args = MigrateVma(one.mm.vmas[0], one.va(0), one.va(4), *np.zeros((2, 4), np.uint64), one.device.owner, SYSTEM)
        one.memory.migrate_vma_setup(args)
        assert [bool(one.flags(pfn) & PG_DIRTY) for pfn in pfns] == [True, False, True, False]
        one.memory.migrate_vma_finalize(args)
    assert table.dirty == 0b0101


def test_coherent_pages_need_their_own_flag_and_owner(lab):
    one = lab()
    one.map(4)
    start = one.memory.request_free_mem_region(8)
    pgmap = DevPagemap(MEMORY_DEVICE_COHERENT, start, 8, "them", one.device)
    one.memory.memremap_pages(pgmap)
    one.memory.zone_device_folio_init(start, pgmap, 0)
    one.device.live[start] = 0
    with one.mm.mmap_lock.read():
        args = MigrateVma(one.mm.vmas[0], one.va(1), one.va(2), *np.zeros((2, 1), np.uint64), "them", SYSTEM)
        one.memory.migrate_vma_setup(args)
        one.memory.copy_folio(start, int(args.src[0]) >> MIGRATE_PFN_SHIFT, 1)
        args.dst[0] = start << MIGRATE_PFN_SHIFT | VALID
        one.memory.migrate_vma_pages(args)
        one.memory.migrate_vma_finalize(args)
    assert one.entry(1) == Pte(PteKind.PRESENT, start, write=True, dirty=True)
    assert collect(one, 0, 4, SYSTEM, owner="them", undo=False) == "w.ww"
    assert collect(one, 0, 4, MIGRATE_VMA_SELECT_DEVICE_COHERENT, owner="them", undo=False) == ".w.."
    assert collect(one, 0, 4, MIGRATE_VMA_SELECT_DEVICE_COHERENT, undo=False) == "...."
    assert one.read(0, 1)[1] == one.memory.contents.token(start)
    one.mm.munmap(one.va(0), 4 * 4096)
    one.memory.memunmap_pages(pgmap)


# --- PMD level


def test_block_whole_or_cut(lab):
    one = lab(thp="always")
    one.map(16)
    assert collect(one, 0, 8, SYSTEM | COMPOUND) == "W......."
    assert one.entry(0).kind is PmdKind.THP
    assert collect(one, 0, 8, PRIVATE | COMPOUND) == "........"
    assert collect(one, 0, 16, SYSTEM | COMPOUND) == "W.......W......."
    assert collect(one, 2, 16, SYSTEM | COMPOUND) == "wwwwww" + "W......."
    assert collect(one, 8, 16, SYSTEM) == "wwwwwwww"


def test_read_only_block(lab):
    one = lab(thp="always")
    one.map(8)
    one.mm.mprotect(one.va(0), 8 * 4096, PROT_READ)
    assert collect(one, 0, 8, SYSTEM | COMPOUND) == "R......."
    assert one.flags(one.pfn(0)) & PG_ANON_EXCLUSIVE


def test_device_block(lab):
    one = lab(thp="always")
    one.map(8)
    one.device.migrate(one.mm, one.va(0), one.va(8))
    assert collect(one, 0, 8, SYSTEM | COMPOUND) == "........"
    assert collect(one, 0, 8, PRIVATE | COMPOUND, owner="another") == "........"
    assert collect(one, 0, 8, PRIVATE | COMPOUND) == "W......."
    assert collect(one, 1, 8, PRIVATE | COMPOUND) == "wwwwwww"
    assert sorted(one.device.live.values()) == [0] * 8


def test_locked_block_is_skipped(lab):
    one = lab(thp="always")
    one.map(8)
    one.pages.folio_lock(one.pfn(0))
    assert collect(one, 0, 8, SYSTEM | COMPOUND, undo=False) == "........"
    assert one.counts(one.pfn(0)) == "1/1"
    one.pages.folio_unlock(one.pfn(0))


def test_block_under_migration_is_skipped(lab):
    one = lab(thp="always")
    one.map(8)
    first = one.device.setup(one.mm, one.va(0), one.va(8), flags=SYSTEM | COMPOUND)
    assert meanwhile(one, 0, 8, SYSTEM | COMPOUND) == "........"
    one.memory.migrate_vma_finalize(first)
    one.mm.mmap_lock.up_read()
    one.check_quiescent()


def test_block_with_one_more_reference_cannot_be_split(lab):
    one = lab(thp="always")
    one.map(8)
    one.pages.folio_get(one.pfn(0))
    assert collect(one, 2, 8, SYSTEM, undo=False) == "......"
    assert one.entry(0).kind is PmdKind.THP
    one.pages.folio_put(one.pfn(0))
    one.check_quiescent()


def test_huge_zero_page_is_a_hole_for_system_memory_only(lab):
    one = lab(thp="always")
    one.map(16, write=False)
    one.read(0)
    assert one.entry(0).kind is PmdKind.HUGE_ZERO
    assert collect(one, 0, 8, SYSTEM | COMPOUND) == "H......."
    assert collect(one, 0, 8, SYSTEM) == "hhhhhhhh"
    assert collect(one, 2, 8, SYSTEM | COMPOUND) == "hhhhhh"
    assert collect(one, 0, 8, PRIVATE | COMPOUND) == "........"


def test_hole_of_one_block(lab):
    one = lab()
    one.map(24, write=False)
    one.write(16)  # the PUD is there
    assert collect(one, 0, 8, SYSTEM | COMPOUND) == "H......."
    assert collect(one, 0, 16, SYSTEM | COMPOUND) == "H.......H......."
    assert collect(one, 0, 12, SYSTEM | COMPOUND) == "H.......hhhh"
    assert collect(one, 1, 8, SYSTEM | COMPOUND) == "hhhhhhh"
    assert collect(one, 0, 8, PRIVATE) == "hhhhhhhh"


def test_block_mapped_by_ptes_is_split_on_demand(lab):
    one = lab(thp="always")
    one.map(8)
    one.mm.mprotect(one.va(0), 4096, PROT_READ)
    one.mm.mprotect(one.va(0), 4096, PROT_READ | 2)
    assert one.pages.folio_order(one.pfn(3)) == 3
    assert collect(one, 2, 5, SYSTEM | COMPOUND) == "www"
    assert one.pages.folio_order(one.pfn(3)) == 0


def test_rest_of_the_chunk_is_skipped_where_a_split_fails(lab):
    one = lab(thp="always")
    one.map(16)
    one.mm.mprotect(one.va(0), 4096, PROT_READ)
    one.mm.mprotect(one.va(0), 4096, PROT_READ | 2)
    one.pages.folio_get(one.pfn(0))
    assert collect(one, 2, 16, SYSTEM | COMPOUND, undo=False) == "......W......."
    one.pages.folio_put(one.pfn(0))
    one.check_quiescent()


def test_pages_of_zeros_become_the_zero_page_when_a_block_is_split(lab):
    one = lab(thp="always")
    one.map(8, write=False)
    one.write(0, 5)
    assert one.mm.rss == [8, 0, 0]
    assert collect(one, 0, 8, PRIVATE) == "........"
    assert collect(one, 0, 8, SYSTEM) == "whhhhwhh"
    assert one.mm.rss == [2, 0, 0]
    assert one.entry(1).zero
    assert one.read(1) == [0]


# --- what setup refuses


def refused(one, **changes) -> str:
    args = MigrateVma(one.mm.vmas[0], one.va(0), one.va(4), *np.zeros((2, 4), np.uint64), one.device.owner, SYSTEM)
    for name, value in changes.items():
        setattr(args, name, value)
    with one.mm.mmap_lock.read(), pytest.raises(KernelError) as caught:
        one.memory.migrate_vma_setup(args)
    assert caught.value.errno == EINVAL
    return str(caught.value)


def test_setup_refuses_bad_ranges(lab):
    one = lab()
    one.map(4)
    assert refused(one, vma=None) == "-EINVAL: migrate_vma_setup of no VMA, or of a special one"
    assert refused(one, end=one.va(0)) == "-EINVAL: migrate_vma_setup of no pages"
    outside = "-EINVAL: {}-{} does not lie in Vma(0x40000000-0x40004000 rw-)"
    assert refused(one, end=one.va(5), src=np.zeros(5, np.uint64), dst=np.zeros(5, np.uint64)) == outside.format(
        "0x40000000", "0x40005000"
    )
    assert refused(one, start=one.va(-1)) == outside.format("0x3ffff000", "0x40004000")
    assert refused(one, src=np.zeros(3, np.uint64)) == "-EINVAL: src and dst are too short for 4 pages"


@pytest.mark.parametrize("flag", [VM_IO, VM_PFNMAP, VM_MIXEDMAP, VM_HUGETLB])
def test_setup_refuses_special_areas(lab, flag):
    one = lab()
    one.map(4)
    one.mm.vmas[0].flags |= flag
    assert refused(one) == "-EINVAL: migrate_vma_setup of no VMA, or of a special one"


def test_setup_refuses_bad_fault_pages(lab):
    one = lab()
    one.map(4)
    one.device.migrate(one.mm, one.va(0), one.va(1))
    page = one.pfn(0)
    assert refused(one, fault_page=one.pfn(1)) == f"-EINVAL: fault page {one.pfn(1):#x} is not device-private"
    assert refused(one, fault_page=page) == f"-EINVAL: fault page {page:#x} is not locked"


def test_setup_rounds_to_pages(lab):
    one = lab()
    one.map(4)
    args = MigrateVma(
        one.mm.vmas[0], one.va(0) + 5, one.va(2) + 7, *np.zeros((2, 4), np.uint64), one.device.owner, SYSTEM
    )
    with one.mm.mmap_lock.read():
        one.memory.migrate_vma_setup(args)
        assert (args.start, args.end, args.npages, args.cpages) == (one.va(0), one.va(2), 2, 2)
        one.memory.migrate_vma_finalize(args)


def test_setup_needs_mmap_lock(lab):
    one = lab()
    one.map(4)
    args = MigrateVma(one.mm.vmas[0], one.va(0), one.va(4), *np.zeros((2, 4), np.uint64), one.device.owner, SYSTEM)
    with pytest.raises(ModelError, match=r"^migrate_vma_setup without the mmap_lock of p$"):
        one.memory.migrate_vma_setup(args)
