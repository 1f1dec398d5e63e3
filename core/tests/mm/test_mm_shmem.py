"""Shared anonymous memory: what faults map, what stays when mappings go, and that it never leaves system memory."""

from errno import EOPNOTSUPP

import numpy as np
import pytest
from gpusvm.errors import CpuSignal, KernelError
from gpusvm.mm.api import (
    MREMAP_DONTUNMAP,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    PROT_READ,
    PROT_WRITE,
    VM_SHARED,
    HmmRange,
)
from gpusvm.mm.mm_struct import MM_SHMEMPAGES
from gpusvm.mm.page import PG_ANON_EXCLUSIVE, PG_DIRTY, PG_SWAPBACKED
from gpusvm.mm.pgtable import PteKind

PAGE = 4096
BASE = 1 << 30
RW = PROT_READ | PROT_WRITE


def shared(one, n: int = 16, *, at: int = 0, prot: int = RW) -> int:
    return one.mm.mmap(BASE + at * PAGE, n * PAGE, prot, flags=VM_SHARED)


def letters(one, n: int, mm=None) -> str:
    """`.` none, `r` and `w` present, `m` anything else."""
    kinds = {PteKind.NONE: ".", PteKind.PRESENT: "r"}
    found = [one.entry(i, mm) for i in range(n)]
    return "".join("w" if entry.write else kinds.get(entry.kind, "m") for entry in found)


def test_a_read_maps_a_page_of_the_object_that_may_be_written_at_once(lab):
    """realkernel/README: a fault maps the page with the VMA's full permission."""
    one = lab()
    shared(one)
    one.read(3)
    assert letters(one, 8) == "...w...."
    entry = one.entry(3)
    assert not entry.zero
    assert one.mm.rss == [0, 0, 1]
    assert one.counts(entry.pfn) == "2/1"  # the object holds one reference
    assert one.flags(entry.pfn) & PG_SWAPBACKED
    assert one.memory.rmap.mm_counter(entry.pfn) == MM_SHMEMPAGES
    assert not one.pages.folio_test_anon(entry.pfn)
    assert one.mm.vmas[0].anon_vma is None
    one.check_quiescent()
    one.finish()


def test_a_read_only_area_maps_read_only_and_mprotect_makes_it_writable_at_once(lab):
    one = lab()
    shared(one, prot=PROT_READ)
    one.read(0, 5)
    assert letters(one, 8) == "r....r.."
    one.mm.mprotect(BASE, 16 * PAGE, RW)
    assert letters(one, 8) == "w....w.."
    one.mm.mprotect(BASE, 16 * PAGE, PROT_READ)
    assert letters(one, 8) == "r....r.."
    one.check_quiescent()
    one.finish()


def test_a_read_fault_maps_what_the_object_has_around_it(lab):
    """Only reads fault around, 16 pages at most, and not beyond the area."""
    one = lab(pmd_order=6)
    shared(one, 40)
    child = one.mm.fork()
    for page in (3, 15, 16, 33):
        one.memory.cpu_write(child, one.va(page))
    assert one.mm.rss == [0, 0, 0]
    one.read(5)  # is not in the object yet: what is around it is mapped first
    assert letters(one, 40) == "...w.w.........w........................"
    one.write(20)
    assert letters(one, 40) == "...w.w.........w....w..................."
    one.read(18)
    assert letters(one, 40) == "...w.w.........ww.w.w..................."
    one.check_quiescent()
    child.exit()
    one.finish()


def test_fault_around_stays_inside_the_area(lab):
    one = lab(pmd_order=6)
    shared(one, 16)
    one.write(*range(16))
    one.mm.munmap(BASE + 6 * PAGE, PAGE)
    memory = one.memory
    two = one.mm.fork()
    assert letters(one, 16, two) == "." * 16
    memory.cpu_read(two, one.va(9))
    assert letters(one, 16, two) == ".......wwwwwwwww"
    one.check_quiescent()
    two.exit()
    one.finish()


def test_a_locked_page_is_not_mapped_around(lab):
    one = lab(pmd_order=6)
    shared(one, 8)
    one.write(*range(8))
    two = one.mm.fork()
    pfn = one.pfn(4)
    one.memory.folio_lock(pfn)
    one.memory.cpu_read(two, one.va(1))
    assert letters(one, 8, two) == "wwww.www"
    one.memory.folio_unlock(pfn)
    two.exit()
    one.finish()


def test_the_content_stays_in_the_object_until_its_last_mapping_goes(lab):
    one = lab()
    shared(one)
    one.watch()
    tokens = one.write(*range(8))
    two = one.mm.fork()
    assert one.events == []  # nothing is copied, nobody is told
    assert two.page_table.entries == {}
    one.mm.munmap(BASE, 16 * PAGE)
    assert one.mm.rss == [0, 0, 0]
    assert [one.memory.cpu_read(two, one.va(i)) for i in range(8)] == tokens
    new = one.memory.cpu_write(two, one.va(2))
    assert one.memory.cpu_read(two, one.va(2)) == new
    used = one.pages.allocator.nr_pages - one.pages.allocator.free_pages
    assert used == 1 + 8
    two.exit()
    assert one.pages.allocator.nr_pages - one.pages.allocator.free_pages == 1
    assert not one.memory.rmap.mappings
    shared(one)
    assert one.read(2) == [0]
    assert not one.memory.contents.mismatches
    one.finish()


@pytest.mark.breaks_invariants
def test_every_process_is_checked_against_the_writes_of_all(lab):
    one = lab()
    shared(one)
    one.write(*range(4))
    two = one.mm.fork()
    token = one.memory.cpu_write(two, one.va(1))
    assert one.read(1) == [token]
    assert one.memory.contents.expected(one.mm, one.va(1) // PAGE) == token
    one.pages.ram.m_token[one.pfn(1)] = 77
    one.read(1)
    one.memory.cpu_read(two, one.va(1))
    assert [(wrong.mm, wrong.expected, wrong.found) for wrong in one.memory.contents.mismatches] == [
        ("p", token, 77),
        (two.name, token, 77),
    ]
    two.exit()


@pytest.mark.parametrize("low_first", [True, False])
def test_the_last_write_of_a_batch_counts_whichever_address_it_goes_to(lab, low_first):
    """A soak found it: after MREMAP_DONTUNMAP a page of an object has two addresses, and one batch may write both."""
    one = lab()
    start = shared(one, 4, at=8)
    flags = MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP
    one.mm.mremap(start, 4 * PAGE, 4 * PAGE, flags=flags, new_addr=BASE)
    one.read(0, 8)
    pfn = one.pfn(0)
    assert one.pfn(8) == pfn
    vpns = np.array([BASE // PAGE, start // PAGE], np.int64)
    one.memory.contents.write_many(one.mm, vpns if low_first else vpns[::-1], np.array([pfn, pfn]))
    assert one.read(0) == one.read(8) == [one.memory.contents.token(pfn)]
    one.check_quiescent()
    one.finish()


def test_every_shared_mmap_makes_an_object_and_areas_of_one_object_merge(lab):
    one = lab()
    shared(one, 8)
    shared(one, 8, at=8)
    assert len(one.mm.vmas) == 2
    one.mm.mprotect(BASE + 2 * PAGE, 2 * PAGE, PROT_READ)
    assert [(vma.start - BASE) // PAGE for vma in one.mm.vmas] == [0, 2, 4, 8]
    assert [vma.pgoff for vma in one.mm.vmas] == [0, 2, 4, 0]
    one.mm.mprotect(BASE + 2 * PAGE, 2 * PAGE, RW)
    assert [(vma.start - BASE) // PAGE for vma in one.mm.vmas] == [0, 8]
    assert [len(vma.file.vmas) for vma in one.mm.vmas] == [1, 1]
    assert [vma.file.users for vma in one.mm.vmas] == [1, 1]
    one.finish()


def test_shared_memory_does_not_migrate(lab):
    """Holes are collected in anonymous areas only; pages are, and stay where they are (hmm-tests migrate_shared)."""
    one = lab()
    shared(one, 8)
    one.watch()
    untouched = one.device.migrate(one.mm, BASE, BASE + 8 * PAGE)
    assert (untouched.cpages, untouched.src.tolist()) == (0, [0] * 8)
    tokens = one.write(0, 1, 2)
    zone = one.pages.ram
    before = [(one.pfn(i), one.counts(one.pfn(i))) for i in range(3)]
    args = one.device.setup(one.mm, BASE, BASE + 8 * PAGE, flags=1)
    assert args.cpages == 3
    assert letters(one, 8) == "www....."  # migration entries keep that they were writable
    assert {one.entry(i).kind for i in range(3)} == {PteKind.MIGRATION}
    assert one.mm.rss == [0, 0, 3]
    one.device.fill_to_device(args)
    one.memory.migrate_vma_pages(args)
    assert not (args.src & 2).any()
    one.memory.migrate_vma_finalize(args)
    one.mm.mmap_lock.up_read()
    assert [(one.pfn(i), one.counts(one.pfn(i))) for i in range(3)] == before
    assert letters(one, 8) == "www....."
    assert one.device.live == {}
    assert one.read(0, 1, 2) == tokens
    assert zone.m_flags[one.pfn(0)] & PG_DIRTY
    assert not zone.m_flags[one.pfn(0)] & PG_ANON_EXCLUSIVE
    assert [event[1:] for event in one.events] == [("MIGRATE", 0, 8, "own")] * 2
    one.check_quiescent()
    one.finish()


def test_the_mappings_of_every_process_come_back(lab):
    """try_to_migrate walks the address_space's areas: a CLEAR window in the other process, none in this one."""
    one = lab()
    shared(one, 4)
    one.write(0, 1)
    two = one.mm.fork()
    one.memory.cpu_read(two, one.va(0))
    one.watch(one.mm, two)
    one.device.migrate(one.mm, BASE, BASE + 4 * PAGE, flags=1)
    assert one.events == [
        ("p", "MIGRATE", 0, 4, "own"),
        ("p", "CLEAR", 0, 1, "-"),
        (two.name, "CLEAR", 0, 1, "-"),
        ("p", "CLEAR", 1, 2, "-"),
        (two.name, "CLEAR", 1, 2, "-"),
    ]
    assert letters(one, 4) == "ww.."
    assert letters(one, 4, two) == "ww.."
    one.check_quiescent()
    for watcher in one.watchers:
        one.memory.mmu_interval_notifier_remove(watcher.sub)
    one.watchers = []
    two.exit()
    one.finish()


@pytest.mark.parametrize("n", [1, 8])
def test_the_cache_s_reference_does_not_keep_a_page_from_being_unmapped(lab, n):
    """migrate_vma_check_page: one reference more for a page of a file; any other sends it back at once."""
    one = lab()
    shared(one, 8)
    one.write(*range(n))
    args = one.device.setup(one.mm, BASE, BASE + n * PAGE, flags=1)
    assert args.cpages == n
    one.memory.migrate_vma_pages(args)
    one.memory.migrate_vma_finalize(args)
    one.mm.mmap_lock.up_read()
    one.memory.folio_get(one.pfn(0))
    args = one.device.setup(one.mm, BASE, BASE + n * PAGE, flags=1)
    assert args.cpages == n - 1
    assert letters(one, 8)[0] == "w"
    one.memory.migrate_vma_pages(args)
    one.memory.migrate_vma_finalize(args)
    one.mm.mmap_lock.up_read()
    one.memory.folio_put(one.pfn(0))
    one.check_quiescent()
    one.finish()


def test_mprotect_of_another_process_reaches_migration_entries(lab):
    """change_softleaf_pte: WRITE becomes READ, not READ_EXCLUSIVE, for a page of a file; it comes back read-only."""
    one = lab()
    shared(one, 4)
    one.write(0)
    two = one.mm.fork()
    one.memory.cpu_read(two, BASE)
    args = one.device.setup(one.mm, BASE, BASE + PAGE, flags=1)
    assert one.entry(0, two).write
    one.kernel.spawn(two.mprotect, BASE, 4 * PAGE, PROT_READ, name="q").join()
    entry = one.entry(0, two)
    assert (entry.kind, entry.write, entry.rexcl) == (PteKind.MIGRATION, False, False)
    one.memory.migrate_vma_pages(args)
    one.memory.migrate_vma_finalize(args)
    one.mm.mmap_lock.up_read()
    assert letters(one, 1) + letters(one, 1, two) == "wr"
    two.mprotect(BASE, 4 * PAGE, RW)
    assert letters(one, 1, two) == "w"
    one.check_quiescent()
    two.exit()
    one.finish()


def test_a_write_fault_comes_before_the_refusal_of_exclusive_access(lab):
    """realkernel/README: `ex` EOPNOTSUPP on shared memory, the page has been faulted in for writing by then."""
    one = lab()
    shared(one, 4)
    one.mm.mmap_lock.down_read()
    with pytest.raises(KernelError) as caught:
        one.memory.make_device_exclusive(one.mm, BASE, None)
    one.mm.mmap_lock.up_read()
    assert caught.value.errno == EOPNOTSUPP
    assert letters(one, 4) == "w..."
    one.check_quiescent()
    one.finish()


def test_a_device_reads_and_writes_shared_memory_in_place(lab):
    """hmm_range_fault reports the object's pages; faults for reading map them writable."""
    import numpy as np

    one = lab()
    shared(one, 4)
    one.watch()
    words = np.zeros(4, np.uint64)
    sub = one.watchers[0].sub
    range_ = HmmRange(
        notifier=sub,
        start=BASE,
        end=BASE + 4 * PAGE,
        hmm_pfns=words,
        default_flags=1 << 63,
        notifier_seq=one.memory.mmu_interval_read_begin(sub),
    )
    one.mm.mmap_lock.down_read()
    one.memory.hmm_range_fault(range_)
    one.mm.mmap_lock.up_read()
    assert [word >> 62 for word in words.tolist()] == [3] * 4
    assert [word & ((1 << 53) - 1) for word in words.tolist()] == [one.pfn(i) for i in range(4)]
    one.check_quiescent()
    one.finish()


def test_behind_the_end_of_the_object_is_a_bus_error(lab):
    one = lab()
    file = one.memory.memfd_create(2)
    one.mm.mmap(BASE, 4 * PAGE, RW, flags=VM_SHARED, file=file)
    one.write(1)
    with pytest.raises(CpuSignal) as caught:
        one.write(2)
    assert caught.value.signal == 7
    file.close()
    one.finish()


def test_a_failed_allocation_ends_the_fault_and_leaks_nothing(lab):
    one = lab()
    shared(one, 2)
    one.kernel.arm("alloc.folio", nth=1, times=100)
    with pytest.raises(CpuSignal):
        one.read(0)
    assert letters(one, 2) == ".."
    one.finish()


@pytest.mark.parametrize("write", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_many_faults_at_once_come_to_what_they_come_to_one_by_one(lab, write, seed):
    """`fault_in_file_ptes` against page by page faults, over objects of which some pages are there and some mapped."""
    machines = []
    for whole in (True, False):
        one = lab(pmd_order=6)
        shared(one, 60)
        two = one.mm.fork()
        one.mm.munmap(BASE + (40 + seed) * PAGE, PAGE)
        one.mm.mprotect(BASE + 50 * PAGE, 3 * PAGE, PROT_READ if seed % 2 and not write else RW)
        for page in range(seed, 60, seed + 2):
            one.memory.cpu_write(two, one.va(page))
        one.write(1, 17 + seed)
        before = one.kernel.stats.cpu_minor_faults
        pages = np.array([*range(3, 20), *range(21, 30 + seed), 35], np.int64)
        if whole:
            one.memory.cpu_access(one.mm, pages + BASE // PAGE, np.full(len(pages), write))
        else:
            for page in pages.tolist():
                (one.write if write else one.read)(page)
        one.check_quiescent()
        state = [(e.kind, e.write, e.dirty) for e in map(one.entry, range(60))]
        machines.append((state, one.mm.rss, sorted(two.vmas[0].file.pages), one.kernel.stats.cpu_minor_faults - before))
    assert machines[0] == machines[1]
