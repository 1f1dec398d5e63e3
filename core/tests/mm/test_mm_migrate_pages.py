"""What migrate_vma_pages and finalize do with what the driver gives them."""

import numpy as np
import pytest
from gpusvm.errors import ModelError
from gpusvm.mm.api import (
    MIGRATE_PFN_COMPOUND,
    MIGRATE_PFN_MIGRATE,
    MIGRATE_PFN_SHIFT,
    MIGRATE_PFN_VALID,
    MIGRATE_VMA_SELECT_COMPOUND,
    MIGRATE_VMA_SELECT_DEVICE_PRIVATE,
    MIGRATE_VMA_SELECT_SYSTEM,
    PROT_READ,
    VmFault,
)
from gpusvm.mm.mm_struct import MMF_UNSTABLE
from gpusvm.mm.page import PG_ANON_EXCLUSIVE, PG_LRU
from gpusvm.mm.pgtable import PmdKind, Pte, PteKind

SYSTEM = MIGRATE_VMA_SELECT_SYSTEM
BOTH = MIGRATE_VMA_SELECT_SYSTEM | MIGRATE_VMA_SELECT_DEVICE_PRIVATE
COMPOUND = MIGRATE_VMA_SELECT_COMPOUND
VALID, MIGRATE, BLOCK = MIGRATE_PFN_VALID, MIGRATE_PFN_MIGRATE, MIGRATE_PFN_COMPOUND


@pytest.fixture(params=["timed", "explored"])
def machine(lab, request):
    return lambda **options: lab(mode=request.param, **options)


def migrating(args) -> str:
    return "".join("m" if word & MIGRATE else "." for word in args.src[: args.npages].tolist())


def finish(one, args):
    one.memory.migrate_vma_finalize(args)
    one.mm.mmap_lock.up_read()
    one.check_quiescent()


def where(one, n) -> str:
    """Per page: r system memory, d device, z zero page, . none."""
    out = ""
    for page in range(n):
        entry = one.entry(page)
        if not isinstance(entry, Pte):
            out += {PmdKind.THP: "R", PmdKind.PRIVATE: "D", PmdKind.HUGE_ZERO: "Z"}[entry.kind]
        elif entry.kind is PteKind.PRESENT:
            out += "z" if entry.zero else "r"
        else:
            out += {PteKind.NONE: ".", PteKind.PRIVATE: "d"}[entry.kind]
    return out


def test_declined_pages_stay(machine):
    one = machine()
    one.map(8)
    args = one.device.migrate(one.mm, one.va(0), one.va(8), flags=SYSTEM, decline=(0, 3, 4))
    assert migrating(args) == ".mm..mmm"
    assert where(one, 8) == "rddrrddd"
    assert one.kernel.stats.migrated_to_device_bytes == 5 * 4096
    assert all(one.flags(one.pfn(page)) & PG_LRU for page in (0, 3, 4))
    one.check_quiescent()


def test_declined_block_stays(machine):
    one = machine(thp="always")
    one.map(8)
    args = one.device.migrate(one.mm, one.va(0), one.va(8), decline=(0,))
    assert migrating(args) == "........"
    assert where(one, 8) == "RRRRRRRR"
    assert one.kernel.stats.migrated_to_device_bytes == 0
    one.check_quiescent()


@pytest.mark.breaks_invariants
def test_destination_for_what_was_not_collected_is_dropped(machine):
    one = machine()
    one.map(6)
    one.pages.folio_lock(one.pfn(1))
    args = one.device.setup(one.mm, one.va(0), one.va(6), flags=SYSTEM)
    one.device.fill_to_device(args)
    stray = one.device.alloc()
    args.dst[1] = stray << MIGRATE_PFN_SHIFT | VALID
    one.memory.migrate_vma_pages(args)
    one.pages.folio_unlock(one.pfn(1))
    finish(one, args)
    assert where(one, 6) == "drdddd"
    assert one.device.freed == [(stray, 0)]


def test_driver_takes_migrate_back(machine):
    one = machine()
    one.map(6)
    args = one.device.setup(one.mm, one.va(0), one.va(6), flags=SYSTEM)
    one.device.fill_to_device(args, decline=(2,))
    args.src[2] &= np.uint64(~MIGRATE & (1 << 64) - 1)
    one.memory.migrate_vma_pages(args)
    finish(one, args)
    assert where(one, 6) == "ddrddd"


def test_compound_destination_for_a_small_page(machine):
    one = machine()
    one.map(6)
    args = one.device.setup(one.mm, one.va(0), one.va(6), flags=SYSTEM)
    one.device.fill_to_device(args, decline=(0,))
    big = one.device.alloc(3)
    args.dst[0] = big << MIGRATE_PFN_SHIFT | VALID | BLOCK
    one.memory.migrate_vma_pages(args)
    assert migrating(args) == ".mmmmm"
    finish(one, args)
    assert where(one, 6) == "rddddd"
    assert one.device.freed == [(big, 3)]


def test_block_to_small_destinations(machine):
    one = machine(thp="always")
    one.map(8)
    args = one.device.migrate(one.mm, one.va(0), one.va(8), small=True)
    assert migrating(args) == "mmmmmmmm"
    assert not any(word & BLOCK for word in args.src.tolist())
    assert where(one, 8) == "dddddddd"
    assert one.kernel.stats.migrated_to_device_bytes == 8 * 4096
    one.check_quiescent()
    one.read(*range(8))


def test_block_to_some_small_destinations(machine):
    one = machine(thp="always")
    one.map(8)
    args = one.device.setup(one.mm, one.va(0), one.va(8), flags=SYSTEM | COMPOUND)
    one.device.fill_to_device(args, small=True)
    for i in (2, 6):
        dst = int(args.dst[i]) >> MIGRATE_PFN_SHIFT
        one.pages.folio_unlock(dst)
        one.pages.folio_put(dst)
        args.dst[i] = 0
    one.memory.migrate_vma_pages(args)
    assert migrating(args) == "mm.mmm.m"
    finish(one, args)
    assert where(one, 8) == "ddrdddrd"
    one.read(*range(8))
    one.check_quiescent()


def test_block_that_cannot_be_split_for_small_destinations(machine):
    """A fault reference makes folio_split_unmapped fail; PTEs map the block then, and the next round splits it."""
    one = machine(thp="always")
    one.watch()
    one.map(8)
    one.device.migrate(one.mm, one.va(0), one.va(8))
    one.device.compound_home = False
    one.events.clear()
    one.read(3)
    assert where(one, 8) == "rrrrrrrr"
    # Q10: at the PMD level the folio cannot be split, so the PTE level has to bring it home.
    assert [level for _, _, level in one.device.faults] == [False, True, True]
    one.check_quiescent()


def test_somebody_holds_a_page(machine):
    one = machine()
    one.map(6)
    args = one.device.setup(one.mm, one.va(0), one.va(6), flags=SYSTEM)
    held = int(args.src[4]) >> MIGRATE_PFN_SHIFT
    one.pages.folio_get(held)
    one.device.fill_to_device(args)
    one.memory.migrate_vma_pages(args)
    assert migrating(args) == "mmmm.m"
    finish_with = one.counts(held)
    assert finish_with == "2/0"
    one.memory.migrate_vma_finalize(args)
    one.mm.mmap_lock.up_read()
    assert where(one, 6) == "ddddrd"
    one.pages.folio_put(held)
    one.check_quiescent()


@pytest.mark.breaks_invariants
def test_source_zapped_between_setup_and_finalize(machine):
    """MADV_DONTNEED runs beside a migration: nothing maps the destination then, and it is free."""
    one = machine()
    one.map(8)
    args = one.device.setup(one.mm, one.va(0), one.va(8), flags=SYSTEM)
    one.device.fill_to_device(args)
    one.memory.migrate_vma_pages(args)
    table = one.mm.page_table.lookup(one.va(0))
    table.clear(0b00011000)
    one.mm.rss[0] -= 2
    gone = [int(args.dst[i]) >> MIGRATE_PFN_SHIFT for i in (3, 4)]
    finish(one, args)
    assert where(one, 8) == "ddd..ddd"
    assert sorted(one.device.freed) == [(gone[0], 0), (gone[1], 0)]


# --- holes


def test_hole_takes_the_rights_of_its_area(machine):
    one = machine()
    one.map(6, write=False, prot=PROT_READ)
    one.device.migrate(one.mm, one.va(0), one.va(6), flags=SYSTEM)
    assert where(one, 6) == "dddddd"
    assert not one.entry(0).write
    assert one.flags(one.pfn(0)) & PG_ANON_EXCLUSIVE
    assert one.mm.rss == [6, 0, 0]
    assert one.mm.vmas[0].anon_vma is not None
    assert one.read(*range(6)) == [0] * 6
    one.check_quiescent()


def test_hole_that_a_cpu_filled_first(machine):
    one = machine()
    one.map(8, write=False)
    args = one.device.setup(one.mm, one.va(0), one.va(8), flags=SYSTEM)
    one.device.fill_to_device(args)
    tokens = one.kernel.spawn(one.write, 2, 5, name="cpu").join()
    one.kernel.spawn(one.read, 3, name="cpu").join()  # the zero page does not count
    one.memory.migrate_vma_pages(args)
    assert migrating(args) == "mm.mm.mm"
    finish(one, args)
    assert where(one, 8) == "ddrddrdd"
    assert one.read(2, 5) == tokens
    assert one.kernel.stats.migrated_to_device_bytes == 6 * 4096
    assert len(one.device.freed) == 2


def test_no_hole_is_filled_in_a_dying_mm(machine):
    one = machine()
    one.map(4, write=False)
    one.mm.flags |= MMF_UNSTABLE
    args = one.device.migrate(one.mm, one.va(0), one.va(4), flags=SYSTEM)
    assert migrating(args) == "...."
    assert where(one, 4) == "...."
    assert not one.device.live


def test_hole_across_blocks(machine):
    one = machine()
    one.map(20, write=False)
    one.write(9)
    one.device.migrate(one.mm, one.va(3), one.va(20), flags=SYSTEM)
    assert where(one, 20) == "..." + "d" * 17
    one.check_quiescent()
    assert one.mm.rss == [17, 0, 0]


def test_compound_hole(machine):
    one = machine(thp="always")
    one.map(16, write=False)
    one.write(8)
    one.device.migrate(one.mm, one.va(0), one.va(8))
    assert where(one, 8) == "DDDDDDDD"
    assert one.mm.rss == [16, 0, 0]
    assert one.kernel.stats.migrated_to_device_bytes == 8 * 4096
    one.check_quiescent()
    assert one.read(0, 7) == [0, 0]


def test_compound_hole_over_the_huge_zero_page(machine):
    one = machine(thp="always")
    one.map(16, write=False)
    one.write(8)
    one.read(0)
    one.device.migrate(one.mm, one.va(0), one.va(8))
    assert where(one, 8) == "DDDDDDDD"
    assert one.read(0, 7) == [0, 0]


def test_compound_hole_that_a_cpu_filled_first(machine):
    one = machine()
    one.map(16, write=False)
    one.write(8)
    args = one.device.setup(one.mm, one.va(0), one.va(8), flags=SYSTEM | COMPOUND)
    one.device.fill_to_device(args)
    one.kernel.spawn(one.write, 2, name="cpu").join()
    one.memory.migrate_vma_pages(args)
    assert migrating(args) == "........"
    finish(one, args)
    assert where(one, 8) == "..r....."
    assert len(one.device.freed) == 1


def test_compound_hole_to_small_destinations(machine):
    one = machine()
    one.map(16, write=False)
    one.write(8)
    args = one.device.migrate(one.mm, one.va(0), one.va(8), small=True)
    assert args.src.tolist() == [MIGRATE] * 8
    assert where(one, 8) == "dddddddd"
    one.check_quiescent()


def test_compound_hole_needs_all_small_destinations(lab):
    one = lab()
    one.map(16, write=False)
    one.write(8)
    args = one.device.setup(one.mm, one.va(0), one.va(8), flags=SYSTEM | COMPOUND)
    args.dst[0] = one.device.alloc() << MIGRATE_PFN_SHIFT | VALID
    with pytest.raises(ModelError, match=r"^a compound hole at word 0 got small destinations, but not all 8$"):
        one.memory.migrate_vma_pages(args)


def test_hole_of_one_page_needs_a_small_destination(lab):
    one = lab()
    one.map(16, write=False)
    args = one.device.setup(one.mm, one.va(0), one.va(4), flags=SYSTEM)
    big = one.device.alloc(3)
    args.dst[0] = big << MIGRATE_PFN_SHIFT | VALID | BLOCK
    with pytest.raises(ModelError) as caught:
        one.memory.migrate_vma_pages(args)
    assert str(caught.value) == f"word 0 is a hole of one page, and its destination {big:#x} is compound"


# --- destinations


@pytest.mark.breaks_invariants
@pytest.mark.parametrize("wrong", ["unlocked", "shared"])
def test_destinations_are_locked_and_owned(machine, wrong):
    one = machine()
    one.map(5)
    args = one.device.setup(one.mm, one.va(0), one.va(5), flags=SYSTEM)
    one.device.fill_to_device(args)
    dst = int(args.dst[3]) >> MIGRATE_PFN_SHIFT
    if wrong == "unlocked":
        one.pages.folio_unlock(dst)
        message = f"a destination in {one.pages.zone(dst)!r} is not locked"
    else:
        one.pages.folio_get(dst)
        message = f"a destination in {one.pages.zone(dst)!r} is mapped, or not referenced exactly once"
    with pytest.raises(ModelError) as caught:
        one.memory.migrate_vma_pages(args)
    assert str(caught.value) == message


def test_device_to_device(machine):
    one = machine()
    one.map(6)
    one.device.migrate(one.mm, one.va(0), one.va(4), flags=SYSTEM)
    old = [one.pfn(page) for page in range(4)]
    one.device.migrate(one.mm, one.va(0), one.va(6), flags=BOTH)
    assert where(one, 6) == "dddddd"
    assert sorted(one.device.freed) == [(pfn, 0) for pfn in old]
    assert one.kernel.stats.migrated_to_device_bytes == 10 * 4096
    assert one.kernel.stats.migrated_to_ram_bytes == 0
    one.check_quiescent()
    one.read(*range(6))


def test_failed_copy_home_changes_nothing(machine):
    one = machine()
    one.map(6)
    one.device.migrate(one.mm, one.va(0), one.va(6), flags=SYSTEM)
    before = [one.entry(page) for page in range(6)]
    one.device.fail_copies = 1
    with one.mm.mmap_lock.read():
        good, args = one.device.bring_home(one.mm, one.va(0), one.va(6))
    assert not good
    assert migrating(args) == "......"
    assert [one.entry(page) for page in range(6)] == before
    one.check_quiescent()


def test_timeslice_not_over(machine):
    """A driver may return 0 without migrating: the CPU tries again until it does."""
    one = machine()
    one.map(2)
    one.device.migrate(one.mm, one.va(0), one.va(2), flags=SYSTEM)
    home = one.device.migrate_to_ram
    tries = []

    def migrate_to_ram(vmf: VmFault) -> int:
        tries.append(vmf.address)
        return home(vmf) if len(tries) == 3 else 0

    one.device.migrate_to_ram = migrate_to_ram
    one.read(1)
    assert tries == [one.va(1)] * 3
    one.check_quiescent()
