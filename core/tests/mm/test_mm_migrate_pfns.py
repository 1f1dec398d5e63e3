"""Collecting by pfn: what gets a word, what COMPOUND means there, and that no VMA is needed."""

import numpy as np
import pytest
from gpusvm.mm.api import (
    MIGRATE_PFN_COMPOUND,
    MIGRATE_PFN_MIGRATE,
    MIGRATE_PFN_SHIFT,
    MIGRATE_PFN_VALID,
    MIGRATE_VMA_SELECT_SYSTEM,
    PROT_READ,
)
from gpusvm.mm.page import PG_ANON_EXCLUSIVE, PG_LOCKED
from gpusvm.mm.pgtable import PmdKind, PteKind

SYSTEM = MIGRATE_VMA_SELECT_SYSTEM
BLOCK = MIGRATE_PFN_COMPOUND
PAGE_WORD = MIGRATE_PFN_VALID | MIGRATE_PFN_MIGRATE


@pytest.fixture(params=["timed", "explored"])
def machine(lab, request):
    return lambda **options: lab(mode=request.param, **options)


def word(pfn, *bits):
    return pfn << MIGRATE_PFN_SHIFT | PAGE_WORD | sum(bits)


def test_small_folios(machine):
    one = machine()
    one.map(6)
    one.device.migrate(one.mm, one.va(0), one.va(6), flags=SYSTEM)
    pfns = [one.pfn(page) for page in range(6)]
    before, _ = one.device.evict(pfns)
    # The words never have WRITE; the migration entries keep what was allowed.
    assert before.tolist() == [word(pfn) for pfn in pfns]
    assert all(one.entry(page).kind is PteKind.PRESENT and one.entry(page).write for page in range(6))
    assert one.kernel.stats.migrated_to_ram_bytes == 6 * 4096
    one.check_quiescent()
    one.read(*range(6))


def test_free_locked_and_system_pages(machine):
    one = machine()
    one.map(6)
    one.device.migrate(one.mm, one.va(0), one.va(4), flags=SYSTEM)
    start = one.device.pgmap.start_pfn
    one.pages.folio_lock(start + 1)
    before, _ = one.device.evict([start, start + 1, start + 2, start + 3, start + 4])
    assert before.tolist() == [word(start), 0, word(start + 2), word(start + 3), 0]
    one.pages.folio_unlock(start + 1)
    assert one.device.live == {start + 1: 0}
    # By range, and what the kernel does to hotplug: a system page can be named as well.
    src = np.zeros(4, np.uint64)
    one.memory.migrate_device_range(src, start, 4)
    assert src.tolist() == [0, word(start + 1), 0, 0]
    one.memory.migrate_device_finalize(src, np.zeros(4, np.uint64), 4)
    one.check_quiescent()


def test_block_and_its_tails(machine):
    one = machine(thp="always")
    one.map(8)
    one.device.migrate(one.mm, one.va(0), one.va(8))
    start = one.device.pgmap.start_pfn
    src = np.zeros(10, np.uint64)
    one.memory.migrate_device_range(src, start, 10)
    assert src.tolist() == [word(start, BLOCK)] + [0] * 9
    assert one.entry(0).kind is PmdKind.MIGRATION
    one.memory.migrate_device_finalize(src, np.zeros(10, np.uint64), 10)
    one.check_quiescent()
    before, _ = one.device.evict(list(range(start, start + 8)))
    assert before.tolist() == [word(start, BLOCK)] + [0] * 7
    assert one.entry(0).kind is PmdKind.THP
    one.check_quiescent()
    # Free now, but it keeps its compound metadata until it is initialised again: a bare COMPOUND.
    one.memory.migrate_device_range(src, start, 10)
    assert src.tolist() == [BLOCK] + [0] * 9


def test_block_that_does_not_fit_the_range(machine):
    one = machine(thp="always")
    one.map(8)
    one.device.migrate(one.mm, one.va(0), one.va(8))
    start = one.device.pgmap.start_pfn
    src = np.full(5, 7, np.uint64)
    one.memory.migrate_device_range(src, start, 5)
    assert src.tolist() == [0] * 5
    one.check_quiescent()


def test_locked_block_keeps_its_compound_bit(machine):
    one = machine(thp="always")
    one.map(8)
    one.device.migrate(one.mm, one.va(0), one.va(8))
    start = one.device.pgmap.start_pfn
    one.pages.folio_lock(start)
    src = np.zeros(8, np.uint64)
    one.memory.migrate_device_range(src, start, 8)
    assert src.tolist() == [BLOCK] + [0] * 7
    one.memory.migrate_device_finalize(src, np.zeros(8, np.uint64), 8)
    assert one.flags(start) & PG_LOCKED
    one.pages.folio_unlock(start)
    one.check_quiescent()


def test_block_needs_a_compound_destination(machine):
    """There is no VMA to split the entry in, so the block goes back, whole."""
    one = machine(thp="always")
    one.map(8)
    one.device.migrate(one.mm, one.va(0), one.va(8))
    start = one.device.pgmap.start_pfn
    one.device.compound_home = False
    one.device.evict(list(range(start, start + 8)))
    assert one.entry(0).kind is PmdKind.PRIVATE
    assert one.kernel.stats.migrated_to_ram_bytes == 0
    one.check_quiescent()


def test_block_mapped_by_ptes_with_a_hole_goes_home_whole(machine):
    """The parts still mapped are mapped again, the unmapped ones are carried along."""
    one = machine(thp="always")
    one.map(8)
    one.device.migrate(one.mm, one.va(0), one.va(8))
    one.mm.munmap(one.va(2), 2 * 4096)
    start = one.device.pgmap.start_pfn
    assert one.counts(start) == "6/6"
    one.device.evict(list(range(start, start + 8)))
    new = one.pfn(0)
    assert one.counts(new) == "6/6"
    assert one.pages.folio_order(new) == 3
    assert [one.pfn(page) - new for page in (0, 1, 4, 5, 6, 7)] == [0, 1, 4, 5, 6, 7]
    assert all(one.entry(page).write for page in (0, 1, 4, 5, 6, 7))
    one.check_quiescent()
    one.read(0, 1, 4, 5, 6, 7)


def test_page_that_only_another_process_maps(machine):
    one = machine()
    one.map(2)
    two = one.share(2)
    one.device.migrate(one.mm, one.va(0), one.va(2), flags=SYSTEM)
    pfns = [one.pfn(0), one.pfn(1)]
    one.mm.munmap(one.va(0), 4096)
    one.device.evict(pfns)
    assert not one.device.live
    assert one.counts(one.entry(0, two).pfn) == "1/1"
    assert one.counts(one.pfn(1)) == "2/2"
    assert one.entry(1).pfn == one.entry(1, two).pfn
    one.check_quiescent()
    two.exit()


def test_rights_survive(machine):
    one = machine()
    one.map(4)
    one.device.migrate(one.mm, one.va(0), one.va(4), flags=SYSTEM)
    one.mm.mprotect(one.va(1), 4096, PROT_READ)
    one.device.evict([one.pfn(page) for page in range(4)])
    assert [one.entry(page).write for page in range(4)] == [True, False, True, True]
    assert one.flags(one.pfn(1)) & PG_ANON_EXCLUSIVE
    one.check_quiescent()


def test_unlocks_what_others_wait_for(machine):
    """A CPU that faults on a page under eviction waits for its lock, and then finds it at home."""
    one = machine()
    one.map(5)
    one.device.migrate(one.mm, one.va(0), one.va(5), flags=SYSTEM)
    src = np.array([one.pfn(page) for page in range(5)], np.uint64)
    dst = np.zeros(5, np.uint64)
    one.memory.migrate_device_pfns(src, 5)
    reader = one.kernel.spawn(one.read, 2, name="cpu")
    one.kernel.settle()
    assert not reader.done
    one.device.fill_to_ram(src, dst, 5)
    one.memory.migrate_device_pages(src, dst, 5)
    one.memory.migrate_device_finalize(src, dst, 5)
    assert reader.join() == [one.memory.contents.token(one.pfn(2))]
    assert one.device.faults == []
    one.check_quiescent()
