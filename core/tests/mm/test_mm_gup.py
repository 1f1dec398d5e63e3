"""get_user_pages and pins: what they fault in, what they count, and what a pin keeps from happening (mm.md §14)."""

from errno import EFAULT, EINTR, EINVAL, ENOMEM

import numpy as np
import pytest
from gpusvm.errors import KernelError, ModelError
from gpusvm.mm.api import (
    EHWPOISON,
    FOLL_FORCE,
    FOLL_GET,
    FOLL_HWPOISON,
    FOLL_LONGTERM,
    FOLL_SPLIT_PMD,
    FOLL_WRITE,
    MIGRATE_PFN_COMPOUND,
    MIGRATE_VMA_SELECT_COMPOUND,
    MIGRATE_VMA_SELECT_SYSTEM,
    PROT_NONE,
    PROT_READ,
    VM_PFNMAP,
)
from gpusvm.mm.mm_struct import MMF_HAS_PINNED
from gpusvm.mm.page import PG_ANON_EXCLUSIVE
from gpusvm.mm.pgtable import OtherPte, PmdKind, PteKind
from gpusvm.mm.swap import swap_out

PAGE = 4096
BASE = 1 << 30
BIAS = 1024


def gup(one, page: int, n: int = 1, flags: int = 0, mm=None) -> list[int]:
    mm = mm or one.mm
    with mm.mmap_lock.read():
        return one.memory.get_user_pages(mm, one.va(page), n, flags=flags).tolist()


def pin(one, page: int, n: int = 1, flags: int = 0, mm=None) -> list[int]:
    mm = mm or one.mm
    with mm.mmap_lock.read():
        return one.memory.pin_user_pages(mm, one.va(page), n, flags=flags).tolist()


def put(one, pfns: list[int]) -> None:
    for pfn in pfns:
        one.memory.folio_put(one.memory.folio_head(pfn))


def unpin(one, pfns: list[int]) -> None:
    one.memory.unpin_user_pages(np.array(pfns))


def error(call, *args, **kwargs) -> int:
    with pytest.raises(KernelError) as caught:
        call(*args, **kwargs)
    return caught.value.errno


# --- what they count


def test_a_reference_for_each_page(lab) -> None:
    one = lab()
    one.map(3)
    pfns = gup(one, 0, 3)
    assert pfns == [one.pfn(i) for i in range(3)]
    assert [one.counts(pfn) for pfn in pfns] == ["2/1"] * 3
    assert not one.mm.flags & MMF_HAS_PINNED
    put(one, pfns)
    one.check_quiescent()
    one.finish()


def test_a_pin_of_a_small_page_counts_1024(lab) -> None:
    one = lab()
    one.map(2)
    pfns = pin(one, 0, 2)
    assert [one.counts(pfn) for pfn in pfns] == ["1025/1"] * 2
    assert one.mm.flags & MMF_HAS_PINNED
    again = pin(one, 0)
    assert one.counts(again[0]) == "2049/1"
    assert [one.pages.folio_maybe_dma_pinned(pfn) for pfn in pfns] == [True, True]
    unpin(one, [*pfns, *again])
    assert not one.pages.folio_maybe_dma_pinned(pfns[0])
    one.check_quiescent()
    one.finish()


def test_a_pin_of_a_large_folio_counts_1_and_in_pincount(lab) -> None:
    one = lab(thp="always")
    one.map(8)
    head = one.pfn(0)
    pfns = pin(one, 2, 3)
    assert pfns == [head + 2, head + 3, head + 4]
    assert (one.counts(head), one.pages.pincounts) == ("4/1", {head: 3})
    # Many references are no pins here.
    put_later = gup(one, 0, 8)
    assert one.counts(head) == "12/1"
    unpin(one, pfns)
    assert (one.pages.folio_maybe_dma_pinned(head), one.pages.pincounts) == (False, {})
    put(one, put_later)
    with pytest.raises(ModelError, match="which is not pinned"):
        unpin(one, [head])
    one.check_quiescent()
    one.finish()


def test_the_zero_page_is_referenced_and_never_pinned(lab) -> None:
    one = lab()
    one.map(1, write=False)
    zero = one.memory.zero_pfn
    assert pin(one, 0) == [zero]
    assert one.counts(zero) == "1/0"
    unpin(one, [zero])
    assert gup(one, 0) == [zero]
    assert one.counts(zero) == "2/0"
    put(one, [zero])
    one.finish()


# --- what they fault in


def test_none_entries(lab) -> None:
    one = lab()
    one.map(2, write=False)
    pfns = gup(one, 0, 2, FOLL_WRITE)
    assert [one.entry(i).write for i in range(2)] == [True, True]
    assert pfns == [one.pfn(0), one.pfn(1)]
    put(one, pfns)


def test_a_write_breaks_sharing(lab) -> None:
    one = lab()
    one.map(2)
    child = one.mm.fork("c")
    shared = one.pfn(0)
    assert gup(one, 0) == [shared]
    put(one, [shared])
    (own,) = gup(one, 0, 1, FOLL_WRITE)
    assert (own != shared, one.entry(0, child).pfn) == (True, shared)
    put(one, [own])
    one.memory.cpu_read(child, BASE)
    one.read(0, 1)
    child.exit()
    one.finish()


def test_device_private_memory_comes_home(lab) -> None:
    one = lab()
    one.device.window = PAGE
    one.map(2)
    one.device.migrate(one.mm, BASE, BASE + 2 * PAGE)
    pfns = gup(one, 0, 2)
    assert all(pfn < one.pages.ram_pages for pfn in pfns)
    assert [fault[0] for fault in one.device.faults] == [BASE, BASE + PAGE]
    put(one, pfns)
    one.read(0, 1)
    one.check_quiescent()


def test_a_device_private_block_comes_home(lab) -> None:
    one = lab(thp="always")
    one.map(8)
    one.device.migrate(one.mm, BASE, BASE + 8 * PAGE)
    assert one.entry(0).kind is PmdKind.PRIVATE
    pfns = pin(one, 3, 1, FOLL_WRITE)
    assert (one.entry(0).kind, pfns) == (PmdKind.THP, [one.pfn(0) + 3])
    unpin(one, pfns)
    one.check_quiescent()


def test_an_exclusive_page_is_given_back(lab) -> None:
    one = lab()
    one.map(1)
    one.watch()
    with one.mm.mmap_lock.read():
        pfn = one.memory.make_device_exclusive(one.mm, BASE, None)
    one.memory.folio_unlock(pfn)
    assert gup(one, 0) == [pfn]
    assert [event[1] for event in one.events] == ["EXCLUSIVE", "CLEAR"]
    assert one.counts(pfn) == "3/1"
    put(one, [pfn, pfn])
    one.check_quiescent()


def test_a_migration_is_waited_for(lab) -> None:
    one = lab()
    one.map(2)
    args = one.device.setup(one.mm, BASE, BASE + 2 * PAGE, flags=MIGRATE_VMA_SELECT_SYSTEM)
    task = one.kernel.spawn(gup, one, 0, 2, name="getter")
    one.kernel.settle()
    assert not task.done
    one.memory.migrate_vma_pages(args)
    one.memory.migrate_vma_finalize(args)
    one.mm.mmap_lock.up_read()
    put(one, task.join())
    one.check_quiescent()


def test_a_swapped_page_is_read_back(lab) -> None:
    one = lab()
    one.map(1)
    swap_out(one.memory, one.mm, BASE)
    put(one, gup(one, 0))
    one.read(0)
    one.check_quiescent()


def test_split_pmd_makes_ptes(lab) -> None:
    one = lab(thp="always")
    one.watch()
    one.map(8)
    head = one.pfn(0)
    assert gup(one, 1, 1, FOLL_WRITE | FOLL_SPLIT_PMD) == [head + 1]
    assert one.entry(0).kind is PteKind.PRESENT
    assert one.memory.folio_order(head) == 3
    assert one.events == [("p", "CLEAR", 0, 8, "-")]
    put(one, [head])
    one.check_quiescent()


# --- errors


def test_areas_that_have_no_pages_to_give(lab) -> None:
    one = lab()
    one.map(1)
    one.map(1, at=1, prot=PROT_READ, write=False)
    one.map(1, at=2, prot=PROT_NONE, write=False)
    one.map(1, at=3)
    one.mm.vmas[-1].flags |= VM_PFNMAP
    assert error(gup, one, 9) == EFAULT
    assert error(gup, one, 1, 1, FOLL_WRITE) == EFAULT
    assert error(gup, one, 2) == EFAULT
    assert error(gup, one, 3) == EFAULT
    one.mm.vmas[-1].flags &= ~VM_PFNMAP


def test_what_could_be_had_is_given(lab) -> None:
    one = lab()
    one.map(2)
    pfns = gup(one, 0, 5)
    assert pfns == [one.pfn(0), one.pfn(1)]
    put(one, pfns)
    with one.mm.mmap_lock.read():
        assert len(one.memory.pin_user_pages(one.mm, one.va(1), 1)) == 1
    fast = one.memory.get_user_pages_fast(one.mm, BASE, 5).tolist()
    assert fast == pfns
    put(one, fast)
    unpin(one, [pfns[1]])
    one.check_quiescent()


def test_force_reads_and_writes_what_the_process_may_not(lab) -> None:
    one = lab()
    one.map(2, prot=PROT_READ, write=False)
    one.read(0)
    (pfn,) = gup(one, 0, 1, FOLL_WRITE | FOLL_FORCE)
    # The page is the process's own then, and it still may not write it.
    assert (pfn, one.entry(0).write) == (one.pfn(0), False)
    assert one.flags(pfn) & PG_ANON_EXCLUSIVE
    put(one, [pfn])
    one.mm.mprotect(BASE, 2 * PAGE, PROT_NONE)
    put(one, gup(one, 0, 1, FOLL_FORCE))
    one.check_quiescent()


def test_poison_is_a_fault_unless_asked_for(lab) -> None:
    one = lab()
    one.map(1, write=False)
    table = one.mm.page_table.table(BASE >> one.mm.page_table.pmd_shift)
    table.set_other(0, OtherPte(PteKind.HWPOISON, 5))
    assert error(gup, one, 0) == EFAULT
    with pytest.raises(KernelError) as caught:
        gup(one, 0, 1, FOLL_HWPOISON)
    assert caught.value.errno == EHWPOISON
    assert str(caught.value) == "-EHWPOISON: the page at 0x40000000 is poisoned"


def test_no_memory(lab) -> None:
    one = lab()
    one.map(1, write=False)
    one.kernel.arm("alloc.folio")
    assert error(gup, one, 0, 1, FOLL_WRITE) == ENOMEM


def test_flags_that_are_not_the_callers(lab) -> None:
    one = lab()
    one.map(1)
    with pytest.raises(ModelError, match="FOLL_ bits 0x2 are not the caller's to give"):
        gup(one, 0, 1, FOLL_GET)
    assert error(gup, one, 0, 1, FOLL_LONGTERM) == EINVAL
    with pytest.raises(ModelError, match="without the mmap_lock of p"):
        one.memory.get_user_pages(one.mm, BASE, 1)


def test_a_killed_task_gets_nothing(lab) -> None:
    one = lab()
    one.map(1, write=False)

    def get() -> int:
        one.kernel.current.kill()
        return error(gup, one, 0)

    assert one.kernel.spawn(get, name="getter").join() == EINTR

    def get_unlocked() -> int:
        return error(one.memory.get_user_pages_unlocked, one.mm, BASE, 1)

    with one.mm.mmap_lock.write():
        task = one.kernel.spawn(get_unlocked, name="waiter")
        one.kernel.settle()
        assert not task.done
        task.kill()
        assert task.join() == EINTR
    one.write(0)


# --- without a lock


def test_the_fast_walk_takes_what_is_mapped_as_asked_for(lab) -> None:
    one = lab()
    one.map(2)
    with one.mm.mmap_lock.write():  # it needs none
        pfns = one.memory.get_user_pages_fast(one.mm, BASE, 2, flags=FOLL_WRITE).tolist()
        pins = one.memory.pin_user_pages_fast(one.mm, BASE, 2).tolist()
    assert pfns == pins == [one.pfn(0), one.pfn(1)]
    assert one.counts(pfns[0]) == "1026/1"
    put(one, pfns)
    unpin(one, pins)
    one.check_quiescent()


@pytest.mark.parametrize("what", ["none", "read-only", "private", "private block", "zero"])
def test_the_fast_walk_leaves_the_rest_to_the_slow_one(lab, what: str) -> None:
    one = lab(thp="always" if what == "private block" else "never")
    one.map(8, write=what not in {"none", "zero"})
    if what == "read-only":
        one.mm.fork("c").exit()
    elif what == "zero":
        one.read(*range(8))
    elif what != "none":
        one.device.migrate(one.mm, BASE, BASE + 8 * PAGE)
    pfns = one.memory.pin_user_pages_fast(one.mm, BASE, 8, flags=FOLL_WRITE).tolist()
    assert pfns == [one.pfn(0) + i if what == "private block" else one.pfn(i) for i in range(8)]
    unpin(one, pfns)
    one.check_quiescent()


def test_fast_walk_and_faults_of_the_same_call(lab) -> None:
    one = lab()
    one.map(4, write=False)
    one.write(0, 1, 3)
    pfns = one.memory.get_user_pages_fast(one.mm, BASE, 4, flags=FOLL_WRITE).tolist()
    assert pfns == [one.pfn(i) for i in range(4)]
    put(one, pfns)
    one.check_quiescent()


# --- pins that read


@pytest.mark.parametrize("thp", ["never", "always"])
def test_a_reading_pin_of_a_shared_page_unshares_it_first(lab, thp: str) -> None:
    one = lab(thp=thp)
    one.map(8)
    child = one.mm.fork("c")
    shared = one.pfn(0)
    (page,) = pin(one, 0)
    assert page != shared
    entry = one.entry(0)
    # The copy is the pinning process's own and still read-only.
    assert (entry.pfn, entry.write, bool(one.flags(page) & PG_ANON_EXCLUSIVE)) == (page, False, True)
    # So a later write of either side goes on with the page that is pinned.
    one.write(0)
    assert one.pfn(0) == page
    one.memory.cpu_read(child, BASE)
    unpin(one, [page])
    child.exit()
    one.read(*range(8))
    one.finish()


def test_a_reading_pin_takes_a_page_over_that_nobody_else_has(lab) -> None:
    one = lab()
    one.map(1)
    one.mm.fork("c").exit()
    page = one.pfn(0)
    assert not one.flags(page) & PG_ANON_EXCLUSIVE
    assert pin(one, 0) == [page]
    assert (one.entry(0).write, bool(one.flags(page) & PG_ANON_EXCLUSIVE)) == (False, True)
    unpin(one, [page])


def test_a_long_pin_of_the_zero_page_gets_a_page(lab) -> None:
    one = lab()
    one.map(2, write=False)
    one.read(0)
    (page,) = pin(one, 0, 1, FOLL_LONGTERM)
    assert (page != one.memory.zero_pfn, one.entry(0).write, one.counts(page)) == (True, False, "1025/1")
    one.write(0)
    assert one.pfn(0) == page
    unpin(one, [page])
    one.check_quiescent()


# --- pins block


def test_collecting_restores_a_pinned_page(lab) -> None:
    # §14: try_share answers EBUSY, so that the PTE is restored at collect, in both of its paths.
    one = lab()
    one.map(8)
    pfns = pin(one, 3, 1)
    before = one.entry(3)
    args = one.device.migrate(one.mm, BASE, BASE + 8 * PAGE)
    assert [int(word) & 2 for word in args.src[:8]] == [2, 2, 2, 0, 2, 2, 2, 2]
    assert (one.entry(3), one.counts(pfns[0])) == (before, "1025/1")
    one.read(*range(8))
    unpin(one, pfns)
    args = one.device.migrate(one.mm, BASE, BASE + 8 * PAGE)
    assert args.cpages == 8
    assert one.entry(3).kind is PteKind.PRIVATE
    one.read(*range(8))
    one.check_quiescent()


def test_a_pinned_block_is_split_in_vain_and_skipped(lab) -> None:
    # §6.2: a pinned PMD is restored, then the split rule: the folio has a reference too many for that, too.
    one = lab(thp="always")
    one.map(8)
    one.watch()
    pfns = pin(one, 5, 1)
    args = one.device.migrate(one.mm, BASE, BASE + 8 * PAGE)
    assert args.src[:8].tolist() == [0] * 8
    assert (one.entry(0).kind, one.entry(0).write) == (PmdKind.THP, True)
    assert [event[1] for event in one.events] == ["MIGRATE"]
    unpin(one, pfns)
    args = one.device.migrate(one.mm, BASE, BASE + 8 * PAGE)
    assert int(args.src[0]) & MIGRATE_PFN_COMPOUND
    assert args.cpages == 1
    one.read(0)
    one.check_quiescent()


@pytest.mark.parametrize("n", [1, 8])
def test_a_reference_is_noticed_when_everything_is_unmapped(lab, n: int) -> None:
    # Extra references: collected, and restored by migrate_vma_check_page; alone and among others.
    one = lab()
    one.map(n)
    pfns = gup(one, 0)
    args = one.device.migrate(one.mm, BASE, BASE + n * PAGE)
    assert [int(word) & 2 for word in args.src[:n]] == [0] + [2] * (n - 1)
    assert (one.entry(0).kind, one.entry(0).write, one.counts(pfns[0])) == (PteKind.PRESENT, True, "2/1")
    one.write(0)
    assert one.pfn(0) == pfns[0]
    put(one, pfns)
    one.read(*range(n))
    one.check_quiescent()


@pytest.mark.parametrize("n", [1, 8])
def test_a_reference_taken_after_setup_is_noticed_by_folio_migrate_mapping(lab, n: int) -> None:
    one = lab()
    one.map(n)
    pfn = one.pfn(0)
    args = one.device.setup(one.mm, BASE, BASE + n * PAGE, flags=MIGRATE_VMA_SELECT_SYSTEM)
    one.device.fill_to_device(args)
    one.pages.folio_get(pfn)
    one.memory.migrate_vma_pages(args)
    assert [int(word) & 2 for word in args.src[:n]] == [0] + [2] * (n - 1)
    one.memory.migrate_vma_finalize(args)
    one.mm.mmap_lock.up_read()
    assert (one.entry(0).kind, one.pfn(0), one.counts(pfn)) == (PteKind.PRESENT, pfn, "2/1")
    one.pages.folio_put(pfn)
    one.read(*range(n))
    one.check_quiescent()


def test_a_locked_page_is_skipped(lab) -> None:
    one = lab()
    one.map(4)
    one.memory.folio_lock(one.pfn(1))
    args = one.device.migrate(one.mm, BASE, BASE + 4 * PAGE)
    assert [int(word) & 2 for word in args.src[:4]] == [2, 0, 2, 2]
    one.memory.folio_unlock(one.pfn(1))
    one.read(*range(4))
    one.check_quiescent()


def test_a_locked_block_is_skipped(lab) -> None:
    one = lab(thp="always")
    one.map(8)
    one.memory.folio_lock(one.pfn(0))
    flags = MIGRATE_VMA_SELECT_SYSTEM | MIGRATE_VMA_SELECT_COMPOUND
    args = one.device.migrate(one.mm, BASE, BASE + 8 * PAGE, flags=flags)
    assert (args.cpages, one.entry(0).kind) == (0, PmdKind.THP)
    one.memory.folio_unlock(one.pfn(0))
    one.check_quiescent()


def test_a_referenced_device_page_is_tolerated_by_setup_and_not_by_pages(lab) -> None:
    # §6.4: one reference more on a ZONE_DEVICE folio passes migrate_vma_check_page; folio_migrate_mapping is strict.
    one = lab()
    one.map(2)
    one.device.migrate(one.mm, BASE, BASE + 2 * PAGE)
    pfn = one.pfn(0)
    one.pages.folio_get(pfn)
    with one.mm.mmap_lock.read():
        good, args = one.device.bring_home(one.mm, BASE, BASE + 2 * PAGE)
    assert good
    assert [int(word) & 2 for word in args.src[:2]] == [0, 2]
    assert (one.entry(0).kind, one.counts(pfn)) == (PteKind.PRIVATE, "2/1")
    one.pages.folio_put(pfn)
    one.read(0, 1)
    one.check_quiescent()


def test_a_pinned_page_is_not_swapped_out(lab) -> None:
    one = lab()
    one.map(1)
    pfns = pin(one, 0)
    assert error(swap_out, one.memory, one.mm, BASE) == 11
    assert one.entry(0).kind is PteKind.PRESENT
    unpin(one, pfns)
    one.check_quiescent()


def test_a_pinned_page_can_be_device_exclusive(lab) -> None:
    # Nothing in make_device_exclusive looks at pins.
    one = lab()
    one.map(1)
    pfns = pin(one, 0)
    with one.mm.mmap_lock.read():
        pfn = one.memory.make_device_exclusive(one.mm, BASE, None)
    assert [pfn] == pfns
    one.memory.folio_unlock(pfn)
    one.memory.folio_put(pfn)
    unpin(one, pfns)
    one.read(0)
    one.check_quiescent()


def test_fork_copies_a_pinned_page_for_the_child(lab) -> None:
    one = lab()
    one.map(3)
    pfns = pin(one, 1)
    child = one.mm.fork("c")
    assert [one.entry(i, child).pfn == one.pfn(i) for i in range(3)] == [True, False, True]
    assert (one.entry(1).write, one.entry(0).write) == (True, False)
    unpin(one, pfns)
    child.exit()
    one.check_quiescent()


def test_fork_splits_a_pinned_block(lab) -> None:
    one = lab(thp="always")
    one.map(8)
    pfns = pin(one, 2)
    one.watch()
    child = one.mm.fork("c")
    # t13: CLEAR inside PROTECTION_PAGE. Every page of the folio counts as pinned, so that the child gets copies.
    assert [event[1] for event in one.events] == ["PROTECTION_PAGE", "CLEAR"]
    assert [one.entry(i, child).pfn == one.pfn(i) for i in range(8)] == [False] * 8
    assert [one.entry(i).write for i in range(8)] == [True] * 8
    one.memory.cpu_read(child, BASE)
    unpin(one, pfns)
    child.exit()
    one.check_quiescent()
    one.finish()


def test_a_page_that_is_freed_while_referenced_goes_with_the_reference(lab) -> None:
    one = lab()
    one.map(1)
    pfns = pin(one, 0)
    one.mm.munmap(BASE, PAGE)
    assert one.counts(pfns[0]) == "1024/0"
    unpin(one, pfns)
    one.finish()
