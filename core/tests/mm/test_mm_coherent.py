"""Coherent device memory, the table of mm.md §7.7 row by row, and what follows from its rows."""

from errno import EBUSY, EINVAL, ENXIO

import numpy as np
import pytest
from gpusvm.errors import KernelError
from gpusvm.mm.api import (
    FOLL_LONGTERM,
    FOLL_WRITE,
    HMM_PFN_ORDER_SHIFT,
    HMM_PFN_REQ_FAULT,
    HMM_PFN_REQ_WRITE,
    HMM_PFN_VALID,
    HMM_PFN_WRITE,
    MADV_DONTNEED,
    MEMORY_DEVICE_COHERENT,
    MIGRATE_PFN_COMPOUND,
    MIGRATE_PFN_MIGRATE,
    MIGRATE_PFN_VALID,
    MIGRATE_PFN_WRITE,
    MIGRATE_VMA_SELECT_COMPOUND,
    MIGRATE_VMA_SELECT_DEVICE_COHERENT,
    MIGRATE_VMA_SELECT_DEVICE_PRIVATE,
    MIGRATE_VMA_SELECT_SYSTEM,
    PROT_READ,
    DevPagemap,
    HmmRange,
)
from gpusvm.mm.page import PG_ANON_EXCLUSIVE, PG_LRU
from gpusvm.mm.pgtable import PmdKind, PteKind
from gpusvm.mm.swap import swap_out

from .conftest import Device, words

PAGE = 4096
BASE = 1 << 30
V, W = HMM_PFN_VALID, HMM_PFN_WRITE
WRITE = HMM_PFN_REQ_FAULT | HMM_PFN_REQ_WRITE
SYSTEM, COMPOUND = MIGRATE_VMA_SELECT_SYSTEM, MIGRATE_VMA_SELECT_COMPOUND
PRIVATE, COHERENT = MIGRATE_VMA_SELECT_DEVICE_PRIVATE, MIGRATE_VMA_SELECT_DEVICE_COHERENT


class Coherent(Device):
    """A device with coherent memory, which no CPU fault ever asks to bring home."""

    def __init__(self, memory, nr_pages: int = 64) -> None:
        super().__init__(memory, nr_pages, type=MEMORY_DEVICE_COHERENT)

    def migrate_to_ram(self, vmf) -> int:
        raise AssertionError("a CPU reaches coherent memory itself")


@pytest.fixture
def machine(lab):
    """Build machines with a coherent device beside the private one, the pages of the process in it."""

    def make(n: int = 4, **options):
        one = lab(**options)
        one.spm = Coherent(one.memory)
        one.map(n)
        one.spm.migrate(one.mm, BASE, one.va(n))
        return one

    return make


def to_system(one, n: int, flags: int, *, owner: object | None = None):
    """Bring [0, n) to system memory with these SELECT_ flags; the words of setup, and args."""
    with one.mm.mmap_lock.read():
        args = words(one.mm.vma_lookup(BASE), BASE, one.va(n), owner=owner or one.spm.owner, flags=flags)
        one.memory.migrate_vma_setup(args)
        before = args.src.copy()
        one.spm.fill_to_ram(args.src, args.dst, args.npages)
        one.memory.migrate_vma_pages(args)
        one.memory.migrate_vma_finalize(args)
    return before, args


def hmm(one, n: int, default: int = 0, *, owner: object | None = None) -> list[int]:
    class Ops:
        def invalidate(self, sub, range_, cur_seq) -> bool:
            return True

    sub = one.memory.mmu_interval_notifier_insert(one.mm, 0, 1 << 46, Ops())
    range_ = HmmRange(sub, BASE, one.va(n), np.zeros(n, np.uint64), default, dev_private_owner=owner)
    range_.notifier_seq = one.memory.mmu_interval_read_begin(sub)
    with one.mm.mmap_lock.read():
        one.memory.hmm_range_fault(range_)
    one.memory.mmu_interval_notifier_remove(sub)
    return range_.hmm_pfns.tolist()


def device_pages(one, n: int) -> list[int]:
    pfns = [one.pfn(i) for i in range(n)]
    assert all(one.memory.page_pgmap(pfn) is one.spm.pgmap for pfn in pfns)
    return pfns


def finish(one) -> None:
    one.check_quiescent()
    for watcher in getattr(one, "watchers", []):
        one.memory.mmu_interval_notifier_remove(watcher.sub)
    one.watchers = []
    one.mm.exit()
    assert one.spm.live == {}
    one.memory.memunmap_pages(one.spm.pgmap)


# --- the region


def test_memremap_wants_a_region_of_its_own(lab) -> None:
    one = lab()
    spm = Coherent(one.memory)
    ram = DevPagemap(MEMORY_DEVICE_COHERENT, 8, 8, spm, spm)
    with pytest.raises(KernelError) as caught:
        one.memory.memremap_pages(ram)
    assert (caught.value.errno, str(caught.value)) == (ENXIO, "-ENXIO: pfns 0x8-0x10 overlap system RAM")
    nobody = DevPagemap(MEMORY_DEVICE_COHERENT, 1 << 24, 8, None, spm)
    with pytest.raises(KernelError) as caught:
        one.memory.memremap_pages(nobody)
    assert caught.value.errno == EINVAL
    # Without migrate_to_ram there is nothing to miss here, other than for private memory.
    assert one.memory.page_pgmap(spm.pgmap.start_pfn) is spm.pgmap
    assert not one.memory.is_device_private(spm.pgmap.start_pfn)


# --- CPU mapping, CPU access


def test_row_cpu_mapping_is_an_ordinary_present_pte(machine) -> None:
    one = machine()
    device_pages(one, 4)
    assert [(one.entry(i).kind, one.entry(i).write) for i in range(4)] == [(PteKind.PRESENT, True)] * 4
    assert one.mm.rss == [4, 0, 0]
    finish(one)


def test_row_cpu_mapping_is_an_ordinary_present_pmd(machine) -> None:
    one = machine(8, thp="always")
    assert (one.entry(0).kind, one.entry(0).write, one.spm.live) == (PmdKind.THP, True, {one.entry(0).pfn: 3})
    one.read(*range(8))
    one.write(3)
    finish(one)


def test_row_cpu_access_is_direct(machine) -> None:
    one = machine()
    one.watch()
    pfns = device_pages(one, 4)
    faults = one.kernel.stats.cpu_faults + one.kernel.stats.cpu_minor_faults
    one.write(*range(4))
    one.read(*range(4))
    assert one.kernel.stats.cpu_faults + one.kernel.stats.cpu_minor_faults == faults
    assert ([one.pfn(i) for i in range(4)], one.events) == (pfns, [])
    finish(one)


# --- GUP


def gup(one, call, flags: int) -> list[int]:
    with one.mm.mmap_lock.read():
        return getattr(one.memory, call)(one.mm, BASE, 4, flags=flags).tolist()


def test_row_gup_takes_it_as_it_is_for_a_while(machine) -> None:
    one = machine()
    pfns = device_pages(one, 4)
    assert gup(one, "get_user_pages", FOLL_WRITE) == pfns
    assert gup(one, "pin_user_pages", FOLL_WRITE) == pfns
    assert one.memory.pin_user_pages_fast(one.mm, BASE, 4).tolist() == pfns
    assert one.counts(pfns[0]) == "2050/1"
    for _ in range(2):
        one.memory.unpin_user_pages(np.array(pfns))
    one.memory.folios_put(np.array(pfns))
    finish(one)


@pytest.mark.parametrize("fast", [False, True])
def test_row_gup_for_long_moves_it_to_system_memory_first(machine, fast: bool) -> None:
    one = machine()
    device_pages(one, 4)
    if fast:
        pfns = one.memory.pin_user_pages_fast(one.mm, BASE, 4, flags=FOLL_LONGTERM).tolist()
    else:
        pfns = gup(one, "pin_user_pages", FOLL_LONGTERM)
    assert all(pfn < one.pages.ram_pages for pfn in pfns)
    assert pfns == [one.pfn(i) for i in range(4)]
    assert [one.counts(pfn) for pfn in pfns] == ["1025/1"] * 4
    assert one.spm.live == {}
    one.read(*range(4))
    one.memory.unpin_user_pages(np.array(pfns))
    finish(one)


@pytest.mark.parametrize("why", ["pinned", "no memory"])
def test_row_gup_for_long_is_ebusy_if_it_cannot_be_moved(machine, why: str) -> None:
    one = machine()
    pfns = device_pages(one, 4)
    if why == "pinned":
        one.memory.pin_user_pages_fast(one.mm, one.va(2), 1)
    else:
        one.kernel.arm("alloc.folio", nth=3)
    with pytest.raises(KernelError) as caught:
        gup(one, "pin_user_pages", FOLL_LONGTERM)
    assert caught.value.errno == EBUSY
    assert str(caught.value) == f"-EBUSY: coherent page {pfns[2]:#x} cannot be moved to system memory"
    # What could be moved before it has been; nothing is pinned or held that was not.
    assert [one.pfn(i) == pfns[i] for i in range(4)] == [False, False, True, True]
    if why == "pinned":
        assert one.counts(pfns[2]) == "1025/1"
        one.memory.unpin_user_pages(np.array([pfns[2]]))
    one.read(*range(4))
    finish(one)


def test_coherent_memory_can_be_device_exclusive(machine) -> None:
    # §9: no check of make_device_exclusive keeps a coherent page out.
    one = machine()
    (pfn, *_) = device_pages(one, 4)
    with one.mm.mmap_lock.read():
        assert one.memory.make_device_exclusive(one.mm, BASE, None) == pfn
    assert one.entry(0).kind is PteKind.EXCLUSIVE
    one.memory.folio_unlock(pfn)
    one.memory.folio_put(pfn)
    one.read(0)
    finish(one)


# --- migration


def test_row_select_flag_is_coherent_with_the_owner(machine) -> None:
    one = machine()
    pfns = device_pages(one, 4)
    for flags, owner in ((SYSTEM, None), (PRIVATE, None), (SYSTEM | PRIVATE, None), (COHERENT, object())):
        before, _ = to_system(one, 4, flags, owner=owner)
        assert before.tolist() == [0] * 4
    assert [one.pfn(i) for i in range(4)] == pfns
    before, args = to_system(one, 4, COHERENT)
    expected = MIGRATE_PFN_VALID | MIGRATE_PFN_MIGRATE | MIGRATE_PFN_WRITE
    assert before.tolist() == [pfn << 6 | expected for pfn in pfns]
    assert (args.cpages, one.spm.live) == (4, {})
    assert all(one.pfn(i) < one.pages.ram_pages for i in range(4))
    one.read(*range(4))
    finish(one)


def test_a_read_only_mapping_comes_back_read_only(machine) -> None:
    one = machine()
    one.mm.mprotect(BASE, 4 * PAGE, PROT_READ)
    before, _ = to_system(one, 4, COHERENT)
    assert [int(word) & MIGRATE_PFN_WRITE for word in before] == [0] * 4
    assert [one.entry(i).write for i in range(4)] == [False] * 4
    # It was exclusive, so that it can be written in place again.
    one.mm.mprotect(BASE, 4 * PAGE, 3)
    pfns = [one.pfn(i) for i in range(4)]
    one.write(*range(4))
    assert [one.pfn(i) for i in range(4)] == pfns
    finish(one)


def test_a_mixture_is_collected_by_what_each_page_is(machine) -> None:
    one = machine(6)
    to_system(one, 2, COHERENT)
    one.device.migrate(one.mm, BASE, one.va(1))
    # A page of the private device, one of RAM, four coherent ones; the owners differ.
    for flags, expected in ((SYSTEM, [0, 2, 0, 0, 0, 0]), (COHERENT, [0, 0, 2, 2, 2, 2]), (PRIVATE, [0] * 6)):
        with one.mm.mmap_lock.read():
            args = words(one.mm.vma_lookup(BASE), BASE, one.va(6), owner=one.spm.owner, flags=flags)
            one.memory.migrate_vma_setup(args)
            assert [int(word) & 2 for word in args.src] == expected
            one.memory.migrate_vma_finalize(args)
    one.read(*range(6))
    finish(one)


@pytest.mark.parametrize("zero", [False, True])
def test_holes_are_filled_with_coherent_pages(lab, zero: bool) -> None:
    # §6.7: a coherent destination is mapped present, dirty and writable if the area is.
    one = lab()
    one.spm = Coherent(one.memory)
    one.map(4, write=False)
    if zero:
        one.read(*range(4))
    one.spm.migrate(one.mm, BASE, one.va(4))
    pfns = device_pages(one, 4)
    assert [(one.entry(i).write, one.entry(i).dirty) for i in range(4)] == [(True, True)] * 4
    assert [one.counts(pfn) for pfn in pfns] == ["1/1"] * 4
    assert all(one.flags(pfn) & PG_ANON_EXCLUSIVE for pfn in pfns)
    assert one.read(*range(4)) == [0] * 4
    finish(one)


def test_holes_of_a_read_only_area_are_filled_read_only(lab) -> None:
    one = lab()
    one.spm = Coherent(one.memory)
    one.map(2, prot=PROT_READ, write=False)
    one.spm.migrate(one.mm, BASE, one.va(2))
    assert [(one.entry(i).write, one.entry(i).dirty) for i in range(2)] == [(False, False)] * 2
    finish(one)


def test_a_huge_hole_is_filled_with_a_coherent_folio(lab) -> None:
    one = lab(thp="always")
    one.spm = Coherent(one.memory)
    one.map(8, write=False)
    args = one.spm.migrate(one.mm, BASE, one.va(8))
    assert int(args.src[0]) & MIGRATE_PFN_COMPOUND
    assert (one.entry(0).kind, one.entry(0).write, one.mm.rss) == (PmdKind.THP, True, [8, 0, 0])
    one.write(*range(8))
    finish(one)


def test_a_block_is_brought_home_as_system_memory_is(machine) -> None:
    # MM-Q8, as written: SELECT_SYSTEM takes a coherent PMD, and no other flag does.
    one = machine(8, thp="always")
    before, _ = to_system(one, 8, COHERENT | COMPOUND)
    assert before.tolist() == [0] * 8
    before, args = to_system(one, 8, SYSTEM | COMPOUND)
    assert (int(before[0]) & MIGRATE_PFN_COMPOUND, args.cpages) == (MIGRATE_PFN_COMPOUND, 1)
    assert (one.entry(0).kind, one.entry(0).pfn < one.pages.ram_pages, one.spm.live) == (PmdKind.THP, True, {})
    one.read(*range(8))
    finish(one)


def test_a_block_that_is_cut_is_split_when_collected(machine) -> None:
    one = machine(8, thp="always")
    one.mm.munmap(one.va(6), 2 * PAGE)
    assert one.entry(0).kind is PteKind.PRESENT
    assert len(one.spm.live) == 1
    before, _ = to_system(one, 6, COHERENT)
    assert [int(word) & 2 for word in before] == [2] * 6
    assert one.spm.live == {}
    one.read(*range(6))
    finish(one)


def test_from_one_device_to_the_other(machine) -> None:
    one = machine()
    with one.mm.mmap_lock.read():
        args = words(one.mm.vma_lookup(BASE), BASE, one.va(4), owner=one.spm.owner, flags=COHERENT)
        one.memory.migrate_vma_setup(args)
        one.device.fill_to_device(args)
        one.memory.migrate_vma_pages(args)
        one.memory.migrate_vma_finalize(args)
    assert [one.entry(i).kind for i in range(4)] == [PteKind.PRIVATE] * 4
    assert one.spm.live == {}
    one.read(*range(4))
    finish(one)


def test_eviction_by_pfn(machine) -> None:
    one = machine()
    one.watch()
    pfns = device_pages(one, 4)
    one.spm.evict(pfns)
    # t8: a CLEAR for each mapping, no MIGRATE.
    assert one.events == [("p", "CLEAR", i, i + 1, "-") for i in range(4)]
    assert one.spm.live == {}
    one.read(*range(4))
    finish(one)


# --- LRU


@pytest.mark.parametrize("thp", ["never", "always"])
def test_row_lru_never(machine, thp: str) -> None:
    one = machine(8, thp=thp)
    zone = one.pages.zone(one.pfn(0))
    assert not (zone.flags & PG_LRU).any()
    child = one.mm.fork("c")
    child.exit()
    one.write(0)
    with pytest.raises(KernelError) as caught:
        swap_out(one.memory, one.mm, BASE)
    assert caught.value.errno == EINVAL
    assert not (zone.flags & PG_LRU).any()
    finish(one)


# --- freed on zap


@pytest.mark.parametrize("thp", ["never", "always"])
@pytest.mark.parametrize("how", ["munmap", "dontneed", "exit"])
def test_row_freed_when_the_tlb_is_flushed(machine, how: str, thp: str) -> None:
    # Private memory is freed under the page-table lock, inside the window; coherent memory when that is closed.
    one = machine(16, thp=thp)
    one.device.migrate(one.mm, one.va(8), one.va(16), flags=SYSTEM | COMPOUND)
    if thp == "never":
        to_system(one, 16, COHERENT)
        one.spm.migrate(one.mm, BASE, one.va(8))
        one.device.migrate(one.mm, one.va(8), one.va(16))
    freed = []
    one.watch()

    def note(device, name):
        free = device.folio_free

        def folio_free(pfn, order) -> None:
            freed.append((name, one.mm.notifiers.active_invalidate_ranges))
            free(pfn, order)

        device.folio_free = folio_free

    note(one.spm, "coherent")
    note(one.device, "private")
    if how == "munmap":
        one.mm.munmap(BASE, 16 * PAGE)
    elif how == "dontneed":
        one.mm.madvise(BASE, 16 * PAGE, MADV_DONTNEED)
    else:
        for watcher in one.watchers:
            one.memory.mmu_interval_notifier_remove(watcher.sub)
        one.watchers = []
        one.memory.mmu_interval_notifier_insert(one.mm, 0, 1 << 46, Quiet())
        one.mm.exit()
    n = 1 if thp == "always" else 8
    assert freed == [("private", 1)] * n + [("coherent", 0)] * n
    assert one.spm.live == {}


class Quiet:
    def invalidate(self, sub, range_, cur_seq) -> bool:
        return True


def test_unplug_waits_for_a_reference(machine) -> None:
    one = machine(1)
    (pfn,) = device_pages(one, 1)
    one.pages.folio_get(pfn)
    one.mm.exit()
    assert list(one.spm.live) == [pfn]
    task = one.kernel.spawn(one.memory.memunmap_pages, one.spm.pgmap, name="unplug")
    one.kernel.settle()
    assert not task.done
    one.pages.folio_put(pfn)
    task.join()


# --- hmm


def test_row_hmm_reports_it_to_everybody(machine) -> None:
    one = machine()
    pfns = device_pages(one, 4)
    for owner in (None, one.spm.owner, object()):
        assert hmm(one, 4, owner=owner) == [V | W | pfn for pfn in pfns]
        assert hmm(one, 4, WRITE, owner=owner) == [V | W | pfn for pfn in pfns]


def test_row_hmm_reports_a_block_to_everybody(machine) -> None:
    one = machine(8, thp="always")
    head = one.entry(0).pfn
    order = 3 << HMM_PFN_ORDER_SHIFT
    assert hmm(one, 8, WRITE, owner=object()) == [V | W | order | head + i for i in range(8)]


# --- fork, copy on write


def test_row_fork_shares_it_and_a_write_copies_from_it(machine) -> None:
    one = machine()
    one.watch()
    pfns = device_pages(one, 4)
    child = one.mm.fork("c")
    assert [(one.entry(i).write, one.entry(i, child).pfn) for i in range(4)] == [(False, pfn) for pfn in pfns]
    assert one.events == [("p", "PROTECTION_PAGE", 0, 4, "-")]
    one.memory.cpu_read(child, BASE)
    one.events.clear()
    one.write(0)
    assert one.events == [("p", "CLEAR", 0, 1, "-")]
    assert one.pfn(0) < one.pages.ram_pages
    assert (one.entry(0, child).pfn, one.counts(pfns[0])) == (pfns[0], "1/1")
    # The last one that maps it takes it over in place.
    one.memory.cpu_write(child, BASE)
    assert (one.entry(0, child).pfn, one.entry(0, child).write) == (pfns[0], True)
    one.read(*range(4))
    child.exit()
    finish(one)


def test_row_fork_shares_a_block(machine) -> None:
    one = machine(8, thp="always")
    head = one.entry(0).pfn
    child = one.mm.fork("c")
    assert (one.entry(0, child).pfn, one.entry(0).write, one.counts(head)) == (head, False, "2/2")
    # A write splits the PMD and copies one page.
    one.write(3)
    assert [one.pfn(i) < one.pages.ram_pages for i in range(8)] == [i == 3 for i in range(8)]
    one.memory.cpu_read(child, one.va(3))
    one.read(*range(8))
    child.exit()
    finish(one)


def test_a_shared_page_moves_for_both(machine) -> None:
    one = machine(1)
    child = one.mm.fork("c")
    to_system(one, 1, COHERENT)
    assert one.entry(0).pfn == one.entry(0, child).pfn < one.pages.ram_pages
    assert (one.entry(0).write, one.entry(0, child).write) == (False, False)
    one.memory.cpu_read(child, BASE)
    child.exit()
    finish(one)
