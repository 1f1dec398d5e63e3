"""Large folios made small, with the defect MM-S3 as recorded on 7.3.4 and without it."""

from errno import EAGAIN, EBUSY, EINVAL

import numpy as np
import pytest
from gpusvm.errors import CpuSignal, DeadlockError
from gpusvm.mm.api import MIGRATE_VMA_SELECT_COMPOUND, MIGRATE_VMA_SELECT_SYSTEM, PROT_READ, PROT_WRITE
from gpusvm.mm.page import PG_ANON_EXCLUSIVE, PG_LOCKED, PG_LRU
from gpusvm.mm.pgtable import PmdKind, PteKind
from gpusvm.mm.quirks import MmQuirks
from gpusvm.mm.split import folio_split_unmapped, split_folio

COMPOUND = MIGRATE_VMA_SELECT_SYSTEM | MIGRATE_VMA_SELECT_COMPOUND


@pytest.fixture(params=["timed", "explored"])
def machine(lab, request):
    return lambda **options: lab(mode=request.param, **options)


def block(machine, *, device: bool, **options):
    """A machine with one block of eight written pages, in RAM or on the device, and the block's head."""
    one = machine(thp="always", **options)
    one.map(8)
    if device:
        one.device.migrate(one.mm, one.va(0), one.va(8))
    return one, one.pfn(0)


def held(one, head):
    """Lock and reference a folio, as its split wants it."""
    one.pages.folio_get(head)
    assert one.pages.folio_trylock(head)


@pytest.mark.parametrize("device", [False, True], ids=["ram", "device"])
def test_split_of_a_mapped_block(machine, device):
    one, head = block(machine, device=device)
    one.watch()
    held(one, head)
    assert split_folio(one.memory, head) == 0
    assert one.events == [("p", "CLEAR", 0, 8, "-")]
    assert one.counts(head) == "2/1"
    assert one.flags(head) & PG_LOCKED
    kind = PteKind.PRIVATE if device else PteKind.PRESENT
    for i in range(8):
        entry = one.entry(i)
        assert (entry.kind, entry.pfn, entry.write) == (kind, head + i, True)
        assert one.pages.folio_order(head + i) == 0
        assert one.pages.folio_head(head + i) == head + i
        assert one.flags(head + i) & PG_ANON_EXCLUSIVE
        assert bool(one.flags(head + i) & PG_LRU) is not device
        if i:
            assert one.counts(head + i) == "1/1"
            assert not one.flags(head + i) & PG_LOCKED
    assert one.mm.rss == [8, 0, 0]
    if device:
        assert sorted(one.device.live.items()) == [(head + i, 0) for i in range(8)]
        assert all(one.memory.zone_device_data(head + i) is one.device for i in range(8))
        assert one.device.pgmap.ref == 9
    one.pages.folio_unlock(head)
    one.pages.folio_put(head)
    one.check_quiescent()
    one.read(*range(8))


def test_refusals_of_split(lab):
    one, head = block(lab, device=False)
    held(one, head)
    one.pages.folio_get(head)
    assert split_folio(one.memory, head) == EAGAIN
    assert one.entry(0).kind is PmdKind.THP
    one.pages.folio_put(head)
    one.map(1, at=16)
    assert split_folio(one.memory, one.pfn(16)) == EINVAL
    zone = one.pages.ram
    mapping, zone.m_mapping[head] = zone.m_mapping[head], 12345
    assert split_folio(one.memory, head) == EBUSY
    zone.m_mapping[head] = mapping
    one.pages.folio_unlock(head)
    one.pages.folio_put(head)
    one.check_quiescent()


def test_split_unmapped(lab):
    one, head = block(lab, device=False)
    args = one.device.setup(one.mm, one.va(0), one.va(8), flags=COMPOUND)
    one.pages.folio_get(head)
    assert folio_split_unmapped(one.memory, head) == EAGAIN
    one.pages.folio_put(head)
    assert folio_split_unmapped(one.memory, head) == 0
    for i in range(8):
        assert one.counts(head + i) == "1/0"
        assert one.flags(head + i) & PG_LOCKED
        assert one.pages.folio_order(head + i) == 0
    assert args.npages == 8


@pytest.mark.parametrize("device", [False, True], ids=["ram", "device"])
def test_pages_unmapped_from_a_block_are_freed_by_its_split(machine, device):
    """A hole in a block is not freed until something splits it."""
    one, head = block(machine, device=device)
    one.mm.munmap(one.va(2), 3 * 4096)
    assert one.counts(head) == "5/5"
    free = one.pages.allocator.free_pages
    held(one, head)
    assert split_folio(one.memory, head) == 0
    one.pages.folio_unlock(head)
    one.pages.folio_put(head)
    if device:
        assert sorted(one.device.freed) == [(head + i, 0) for i in (2, 3, 4)]
    else:
        assert one.pages.allocator.free_pages == free + 3
    one.check_quiescent()
    one.read(0, 1, 5, 6, 7)


def test_split_without_a_driver_callback(lab):
    one, head = block(lab, device=True)
    one.device.folio_split = None
    held(one, head)
    assert split_folio(one.memory, head) == 0
    one.pages.folio_unlock(head)
    one.pages.folio_put(head)
    one.device.live = {head + i: 0 for i in range(8)}
    assert one.memory.page_pgmap(head + 3) is one.device.pgmap
    one.check_quiescent()


def test_pages_of_zeros_are_freed_by_the_split_of_a_block_in_ram(machine):
    one = machine(thp="always")
    one.map(8, write=False)
    one.write(1, 6)
    head = one.pfn(0)
    held(one, head)
    assert split_folio(one.memory, head) == 0
    one.pages.folio_unlock(head)
    one.pages.folio_put(head)
    assert [one.entry(i).zero for i in range(8)] == [True, False, True, True, True, True, False, True]
    assert one.mm.rss == [2, 0, 0]
    one.check_quiescent()
    assert one.read(0, 3) == [0, 0]


def test_pages_of_zeros_stay_in_a_block_on_the_device(machine):
    one = machine(thp="always")
    one.map(8, write=False)
    one.write(1)
    one.device.migrate(one.mm, one.va(0), one.va(8))
    head = one.pfn(0)
    held(one, head)
    assert split_folio(one.memory, head) == 0
    one.pages.folio_unlock(head)
    one.pages.folio_put(head)
    assert all(one.entry(i).kind is PteKind.PRIVATE for i in range(8))
    one.check_quiescent()


@pytest.mark.breaks_invariants
def test_block_that_two_processes_map_is_split_in_both(machine):
    one, head = block(machine, device=False)
    # The second process maps the block by PTEs, the first by a PMD.
    one.memory.rmap.folio_try_share_anon_rmap(head)
    one.mm.page_table.set_leaf(one.va(0) >> one.memory.geometry.pmd_shift, PmdKind.THP, head, write=False)
    two = one.memory.mm_alloc("q")
    two.mmap(one.va(0), 8 * 4096, PROT_READ)
    one.memory.rmap.anon_vma_clone(two.vmas[0], one.mm.vmas[0])
    table = two.page_table.table(one.va(0) >> one.memory.geometry.pmd_shift)
    for i in range(8):
        one.pages.folio_get(head)
        one.memory.rmap.folio_add_anon_rmap_pte(head + i, exclusive=False)
    table.set_present(0xFF, head, 0)
    two.rss[0] += 8
    one.watch(one.mm, two)
    assert one.counts(head) == "9/9"
    held(one, head)
    assert split_folio(one.memory, head) == 0
    one.pages.folio_unlock(head)
    one.pages.folio_put(head)
    assert one.events == [("p", "CLEAR", 0, 8, "-"), ("q", "CLEAR", 0, 8, "-")]
    assert all(one.counts(head + i) == "2/2" for i in range(8))
    assert all(one.entry(i) == one.entry(i, two) for i in range(8))
    one.check_quiescent()
    two.exit()


# --- MM-S3: a CPU fault on a tail of a device block that is mapped by PTEs


def mapped_by_ptes(lab, variant):
    """A device block whose PMD was split by an mprotect that changes nothing in the end, and its watcher."""
    one = lab(thp="always", quirks=MmQuirks(mm_s3=variant))
    one.map(8)
    one.device.migrate(one.mm, one.va(0), one.va(8))
    one.mm.mprotect(one.va(1), 4096, PROT_READ)
    one.mm.mprotect(one.va(1), 4096, PROT_READ | PROT_WRITE)
    assert len(one.mm.vmas) == 1
    assert one.counts(one.pfn(0)) == "8/8"
    one.watch()
    return one


@pytest.mark.parametrize(("variant", "rounds"), [("as_written", 2), ("fixed", 1)], ids=["as_written", "fixed"])
def test_fault_on_a_tail_takes_two_rounds(lab, variant, rounds):
    one = mapped_by_ptes(lab, variant)
    one.read(5)
    migrate, clear = ("p", "MIGRATE", 0, 8, "own"), ("p", "CLEAR", 0, 8, "-")
    assert one.events == [migrate, clear, migrate][: rounds + 1]
    assert len(one.device.faults) == rounds
    assert not one.device.live
    one.check_quiescent()
    one.read(*range(8))


def test_fault_on_the_head_takes_one_round(lab):
    one = mapped_by_ptes(lab, "as_written")
    one.read(0)
    assert one.events == [("p", "MIGRATE", 0, 8, "own"), ("p", "CLEAR", 0, 8, "-")]
    one.check_quiescent()


def test_failed_copy_of_the_first_round_locks_the_head_for_ever(lab):
    one = mapped_by_ptes(lab, "as_written")
    head = one.pfn(0)
    one.device.fail_copies = 1
    with pytest.raises(CpuSignal):
        one.read(5)
    assert one.flags(head) & PG_LOCKED
    one.read(1)
    assert [one.entry(i).kind.name for i in range(8)] == ["PRIVATE"] + ["PRESENT"] * 7
    before, _ = one.device.evict([head])
    assert before.tolist() == [0]
    with pytest.raises(DeadlockError):
        one.read(0)
    one.mm.munmap(one.va(0), 8 * 4096)
    assert not one.device.live


def test_failed_copy_of_the_first_round_when_fixed(lab):
    one = mapped_by_ptes(lab, "fixed")
    one.device.fail_copies = 1
    with pytest.raises(CpuSignal):
        one.read(5)
    one.check_quiescent()
    one.read(*range(8))
    assert not one.device.live
    one.check_quiescent()


def test_failed_copy_when_the_head_is_out_of_the_range(lab):
    """The defect needs the head in the range; a driver that migrates one page at a time never meets it."""
    one = mapped_by_ptes(lab, "as_written")
    one.device.window = 4096
    one.read(5)
    assert not any(zone.flags[zone.refcount > 0].__and__(PG_LOCKED).any() for zone in one.pages.zones)
    assert np.count_nonzero([one.entry(i).kind is PteKind.PRESENT for i in range(8)]) == 1
    one.check_quiescent()
