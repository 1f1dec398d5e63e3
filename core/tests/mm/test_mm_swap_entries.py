"""Swap entries, hwpoison entries and markers: what collecting, hmm, CPU faults, fork, zap and mremap make of them."""

from errno import EAGAIN, EBUSY, EFAULT, EINVAL

import numpy as np
import pytest
from gpusvm.errors import CpuSignal, KernelError
from gpusvm.mm.api import (
    HMM_PFN_REQ_FAULT,
    HMM_PFN_REQ_WRITE,
    HMM_PFN_VALID,
    HMM_PFN_WRITE,
    MADV_DONTNEED,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    HmmRange,
)
from gpusvm.mm.page import PG_ANON_EXCLUSIVE
from gpusvm.mm.pgtable import OtherPte, PteKind
from gpusvm.mm.swap import swap_out

PAGE = 4096
BASE = 1 << 30
V, W = HMM_PFN_VALID, HMM_PFN_WRITE
READ = HMM_PFN_REQ_FAULT
WRITE = HMM_PFN_REQ_FAULT | HMM_PFN_REQ_WRITE
BAD = [PteKind.HWPOISON, PteKind.MARKER_POISONED, PteKind.MARKER_GUARD]


def hmm(one, page: int, n: int, default: int = 0) -> list[int]:
    """Ask from a fresh subscription; what hmm_range_fault answers, in words."""

    class Ops:
        def invalidate(self, sub, range_, cur_seq) -> bool:
            return True

    sub = one.memory.mmu_interval_notifier_insert(one.mm, 0, 1 << 46, Ops())
    range_ = HmmRange(sub, one.va(page), one.va(page + n), np.zeros(n, np.uint64), default)
    range_.notifier_seq = one.memory.mmu_interval_read_begin(sub)
    try:
        with one.mm.mmap_lock.read():
            one.memory.hmm_range_fault(range_)
    finally:
        one.memory.mmu_interval_notifier_remove(sub)
    return range_.hmm_pfns.tolist()


def put(one, page: int, kind: PteKind, *, value: int = -1) -> None:
    """Put an entry where nothing is mapped."""
    page_table = one.mm.page_table
    table = page_table.table(one.va(page) >> page_table.pmd_shift)
    table.set_other(page % one.nr, OtherPte(kind, value))


def test_a_page_goes_to_swap_and_comes_back_with_what_it_held(lab) -> None:
    one = lab()
    one.watch()
    one.map(3)
    pfn = one.pfn(1)
    slot = swap_out(one.memory, one.mm, one.va(1))
    assert one.events == [("p", "CLEAR", 1, 2, "-")]
    assert (one.entry(1).kind, one.entry(1).pfn) == (PteKind.SWAP, slot)
    assert (one.mm.rss, one.mm.swapents, one.memory.swap.used) == ([2, 0, 0], 1, {slot: 1})
    assert one.pages.ram.m_refcount[pfn] == 0
    # The CPU reads it back, writable as it was exclusive; no event.
    one.read(0, 1, 2)
    assert (one.entry(1).kind, one.entry(1).write) == (PteKind.PRESENT, True)
    assert (one.mm.rss, one.mm.swapents, one.memory.swap.used) == ([3, 0, 0], 0, {})
    assert one.flags(one.pfn(1)) & PG_ANON_EXCLUSIVE
    assert len(one.events) == 1
    one.check_quiescent()
    one.finish()


def test_a_block_is_split_before_one_of_its_pages_goes(lab) -> None:
    one = lab(thp="always")
    one.map(8)
    swap_out(one.memory, one.mm, one.va(3))
    swap_out(one.memory, one.mm, one.va(0))
    assert [one.entry(i).kind for i in (0, 1, 3)] == [PteKind.SWAP, PteKind.PRESENT, PteKind.SWAP]
    assert (one.mm.rss, one.mm.swapents) == ([6, 0, 0], 2)
    one.read(*range(8))
    one.check_quiescent()
    one.finish()


def test_a_page_that_somebody_holds_stays(lab) -> None:
    one = lab()
    one.map(2)
    pfn = one.pfn(0)
    one.pages.folio_get(pfn)
    with pytest.raises(KernelError) as caught:
        swap_out(one.memory, one.mm, BASE)
    assert (caught.value.errno, str(caught.value)) == (EAGAIN, f"-EAGAIN: somebody else holds page {pfn:#x}")
    one.pages.folio_put(pfn)
    one.read(0)
    one.memory.folio_lock(one.pfn(1))
    with pytest.raises(KernelError) as caught:
        swap_out(one.memory, one.mm, one.va(1))
    assert caught.value.errno == EBUSY
    one.memory.folio_unlock(one.pfn(1))
    one.check_quiescent()


def test_only_mapped_pages_of_system_memory_go(lab) -> None:
    one = lab()
    one.map(3, write=False)
    one.write(0)
    one.read(1)
    for page in (1, 2, 9):
        with pytest.raises(KernelError) as caught:
            swap_out(one.memory, one.mm, one.va(page))
        assert caught.value.errno == EFAULT
    one.device.migrate(one.mm, BASE, BASE + PAGE)
    with pytest.raises(KernelError) as caught:
        swap_out(one.memory, one.mm, BASE)
    assert caught.value.errno == EFAULT  # nothing present there
    one.mm.page_table.lookup(BASE)
    one.read(0)
    one.pages.ram.m_mapping[one.pfn(0)] = -1
    with pytest.raises(KernelError) as caught:
        swap_out(one.memory, one.mm, BASE)
    assert caught.value.errno == EINVAL


def test_collecting_passes_them_all_over(lab) -> None:
    # mm.md §6.2: non-present, not device-private -> 0; invariant 51.
    one = lab()
    one.map(8, write=False)
    one.write(0, 1, 7)
    swap_out(one.memory, one.mm, one.va(1))
    for page, kind in enumerate([PteKind.HWPOISON, PteKind.MARKER_POISONED, PteKind.MARKER_GUARD], 2):
        put(one, page, kind)
    put(one, 5, PteKind.MARKER_UFFD_WP)
    args = one.device.migrate(one.mm, BASE, BASE + 8 * PAGE)
    assert [int(word) & 3 for word in args.src[:8]] == [3, 0, 0, 0, 0, 0, 2, 3]
    assert [one.entry(i).kind for i in range(8)] == [
        PteKind.PRIVATE,
        PteKind.SWAP,
        *BAD,
        PteKind.MARKER_UFFD_WP,
        PteKind.PRIVATE,
        PteKind.PRIVATE,
    ]
    one.read(0, 1, 5, 6, 7)


def test_hmm_faults_a_swapped_page_in_when_asked(lab) -> None:
    one = lab()
    one.map(3)
    for page in range(3):
        swap_out(one.memory, one.mm, one.va(page))
    assert hmm(one, 0, 3) == [0, 0, 0]
    assert one.mm.swapents == 3
    assert hmm(one, 0, 3, WRITE) == [V | W | one.pfn(i) for i in range(3)]
    assert one.mm.swapents == 0
    one.read(0, 1, 2)
    one.check_quiescent()


@pytest.mark.parametrize("kind", BAD)
def test_hmm_takes_what_cannot_be_mended_for_an_error(lab, kind: PteKind) -> None:
    one = lab()
    one.map(3, write=False)
    one.write(0, 2)
    put(one, 1, kind)
    words = hmm(one, 0, 3)
    assert [word & V for word in words] == [V, 0, V]
    with pytest.raises(KernelError) as caught:
        hmm(one, 0, 3, READ)
    assert (caught.value.errno, str(caught.value)) == (EFAULT, f"-EFAULT: the entry at 0x40001000 is {kind.name}")
    # Behind a page that asks, too: the fault of the rest of the piece meets it.
    one.map(2, at=3, write=False)
    put(one, 4, kind)
    with pytest.raises(KernelError) as caught:
        hmm(one, 3, 2, READ)
    assert caught.value.errno == EFAULT


def test_hmm_takes_a_marker_for_write_faults_for_none(lab) -> None:
    one = lab()
    one.map(2, write=False)
    put(one, 0, PteKind.MARKER_UFFD_WP)
    assert hmm(one, 0, 2) == [0, 0]
    assert hmm(one, 0, 2, READ) == [V | one.memory.zero_pfn] * 2
    one.check_quiescent()


@pytest.mark.parametrize(
    ("kind", "signal"), [(PteKind.HWPOISON, 7), (PteKind.MARKER_POISONED, 7), (PteKind.MARKER_GUARD, 11)]
)
@pytest.mark.parametrize("write", [False, True])
def test_a_cpu_that_touches_one_gets_a_signal(lab, kind: PteKind, signal: int, write: bool) -> None:
    one = lab()
    one.map(2, write=False)
    put(one, 1, kind)
    with pytest.raises(CpuSignal) as caught:
        (one.write if write else one.read)(1)
    assert (caught.value.signal, caught.value.address) == (signal, one.va(1))
    assert one.entry(1).kind is kind
    one.finish()


def test_fork_shares_slots_and_copies_the_rest(lab) -> None:
    one = lab()
    one.map(5)
    slot = swap_out(one.memory, one.mm, one.va(0))
    one.mm.munmap(one.va(1), 3 * PAGE)
    one.mm.mmap(one.va(1), 3 * PAGE, 3)
    for page, kind in ((1, PteKind.HWPOISON), (2, PteKind.MARKER_GUARD), (3, PteKind.MARKER_UFFD_WP)):
        put(one, page, kind)
    child = one.mm.fork("c")
    kinds = [PteKind.SWAP, PteKind.HWPOISON, PteKind.MARKER_GUARD, PteKind.NONE, PteKind.PRESENT]
    assert [one.entry(i, child).kind for i in range(5)] == kinds
    assert (child.rss, child.swapents, one.memory.swap.used) == ([1, 0, 0], 1, {slot: 2})
    # Whoever reads first shares the slot still, so that its page is not its own; the other takes the slot over.
    one.memory.cpu_read(child, BASE)
    first = one.entry(0, child)
    assert (first.write, bool(one.flags(first.pfn) & PG_ANON_EXCLUSIVE)) == (False, False)
    one.read(0)
    second = one.entry(0)
    assert (second.write, bool(one.flags(second.pfn) & PG_ANON_EXCLUSIVE)) == (True, True)
    one.memory.cpu_write(child, BASE)
    one.read(0)
    assert one.memory.swap.used == {}
    child.exit()
    one.finish()


def test_exit_frees_slots(lab) -> None:
    one = lab()
    one.map(2)
    swap_out(one.memory, one.mm, BASE)
    child = one.mm.fork("c")
    child.exit()
    assert len(one.memory.swap.used) == 1
    one.finish()
    assert one.memory.swap.used == {}


def test_discarding_keeps_guards_and_unmapping_does_not(lab) -> None:
    # zap_nonpresent_ptes: guard markers go with ZAP_FLAG_DROP_MARKER only.
    one = lab()
    one.map(4, write=False)
    one.write(0)
    swap_out(one.memory, one.mm, BASE)
    for page, kind in enumerate(BAD, 1):
        put(one, page, kind)
    one.mm.madvise(BASE, 4 * PAGE, MADV_DONTNEED)
    assert [one.entry(i).kind for i in range(4)] == [PteKind.NONE] * 3 + [PteKind.MARKER_GUARD]
    assert (one.mm.swapents, one.memory.swap.used) == (0, {})
    one.mm.munmap(BASE, 4 * PAGE)
    one.map(4)
    one.check_quiescent()
    one.finish()


def test_mprotect_leaves_them_alone_and_mremap_moves_them(lab) -> None:
    one = lab()
    one.map(4, write=False)
    one.write(0, 3)
    slot = swap_out(one.memory, one.mm, BASE)
    put(one, 1, PteKind.MARKER_GUARD)
    one.mm.mprotect(BASE, 4 * PAGE, 1)
    one.mm.mprotect(BASE, 4 * PAGE, 3)
    assert [one.entry(i).kind for i in (0, 1)] == [PteKind.SWAP, PteKind.MARKER_GUARD]
    one.mm.mremap(BASE, 4 * PAGE, 4 * PAGE, flags=MREMAP_MAYMOVE | MREMAP_FIXED, new_addr=one.va(19))
    assert [one.entry(i).kind for i in range(19, 23)] == [
        PteKind.SWAP,
        PteKind.MARKER_GUARD,
        PteKind.NONE,
        PteKind.PRESENT,
    ]
    assert one.entry(19).pfn == slot
    assert [one.entry(i).kind for i in range(4)] == [PteKind.NONE] * 4
    one.read(19, 21, 22)
    one.check_quiescent()
    one.finish()


def test_a_table_moved_whole_takes_them_along(lab) -> None:
    one = lab()
    one.map(8)
    swap_out(one.memory, one.mm, one.va(5))
    one.mm.mremap(BASE, 8 * PAGE, 8 * PAGE, flags=MREMAP_MAYMOVE | MREMAP_FIXED, new_addr=one.va(16))
    assert one.entry(21).kind is PteKind.SWAP
    one.read(*range(16, 24))
    one.finish()
