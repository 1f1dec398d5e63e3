"""memory_failure: what becomes of a page of RAM whose memory fails, and that device memory is left to its driver."""

from errno import EBUSY, EFAULT, EIO, ENXIO, EOPNOTSUPP

import numpy as np
import pytest
from gpusvm.errors import CpuSignal, KernelError, ModelError
from gpusvm.mm.api import (
    EHWPOISON,
    HMM_PFN_REQ_FAULT,
    HMM_PFN_VALID,
    MEMORY_DEVICE_COHERENT,
    MEMORY_DEVICE_PCI_P2PDMA,
    MIGRATE_VMA_SELECT_SYSTEM,
    DevPagemap,
    HmmRange,
)
from gpusvm.mm.page import PG_HWPOISON
from gpusvm.mm.pgtable import PmdKind, PteKind

from .conftest import Device

PAGE = 4096
BASE = 1 << 30


def failure(one, pfn: int) -> int:
    with pytest.raises(KernelError) as caught:
        one.memory.memory_failure(pfn)
    return caught.value.errno


def signal(call, *args) -> int:
    with pytest.raises(CpuSignal) as caught:
        call(*args)
    return caught.value.signal


def hmm(one, n: int, default: int = 0) -> list[int]:
    class Ops:
        def invalidate(self, sub, range_, cur_seq) -> bool:
            return True

    sub = one.memory.mmu_interval_notifier_insert(one.mm, 0, 1 << 46, Ops())
    range_ = HmmRange(sub, BASE, one.va(n), np.zeros(n, np.uint64), default)
    range_.notifier_seq = one.memory.mmu_interval_read_begin(sub)
    try:
        with one.mm.mmap_lock.read():
            one.memory.hmm_range_fault(range_)
    finally:
        one.memory.mmu_interval_notifier_remove(sub)
    return range_.hmm_pfns.tolist()


# --- pages of RAM


def test_a_mapped_page_becomes_poison_and_kills_who_touches_it(lab) -> None:
    one = lab()
    one.watch()
    one.map(3)
    pfn = one.pfn(1)
    one.memory.memory_failure(pfn)
    assert one.events == [("p", "CLEAR", 1, 2, "-")]
    assert (one.entry(1).kind, one.entry(1).pfn, one.mm.rss) == (PteKind.HWPOISON, pfn, [2, 0, 0])
    assert (one.counts(pfn), bool(one.flags(pfn) & PG_HWPOISON)) == ("1/0", True)
    assert signal(one.read, 1) == signal(one.write, 1) == 7
    one.read(0, 2)
    # The mapping goes with its area, and the page is never used again.
    one.mm.munmap(one.va(1), PAGE)
    one.mm.mmap(one.va(1), PAGE, 3)
    one.write(1)
    assert one.pfn(1) != pfn
    assert one.counts(pfn) == "1/0"


def test_everybody_who_maps_it_loses_it(lab) -> None:
    one = lab()
    one.map(2)
    child = one.mm.fork("c")
    one.watch(one.mm, child)
    pfn = one.pfn(0)
    one.memory.memory_failure(pfn)
    assert sorted(one.events) == [("c", "CLEAR", 0, 1, "-"), ("p", "CLEAR", 0, 1, "-")]
    assert one.entry(0).kind is one.entry(0, child).kind is PteKind.HWPOISON
    assert (one.mm.rss, child.rss) == ([1, 0, 0], [1, 0, 0])
    assert signal(one.memory.cpu_read, child, BASE) == 7


def test_a_page_of_a_block_is_split_off_first(lab) -> None:
    one = lab(thp="always")
    one.map(8)
    pfn = one.pfn(3)
    one.memory.memory_failure(pfn)
    kinds = [one.entry(i).kind for i in range(8)]
    assert kinds == [PteKind.HWPOISON if i == 3 else PteKind.PRESENT for i in range(8)]
    assert one.mm.rss == [7, 0, 0]
    assert [bool(one.flags(pfn - 3 + i) & PG_HWPOISON) for i in range(8)] == [i == 3 for i in range(8)]
    one.read(0, 1, 2, 4, 5, 6, 7)
    assert signal(one.read, 3) == 7


def test_the_head_of_a_block_alone_is_poisoned(lab) -> None:
    one = lab(thp="always")
    one.map(8)
    head = one.pfn(0)
    one.memory.memory_failure(head)
    assert [bool(one.flags(head + i) & PG_HWPOISON) for i in range(8)] == [True] + [False] * 7
    one.read(*range(1, 8))


def test_a_block_that_somebody_holds_stays_mapped(lab) -> None:
    one = lab(thp="always")
    one.map(8)
    head = one.pfn(0)
    one.pages.folio_get(head)
    assert failure(one, head + 2) == EHWPOISON
    assert (one.entry(0).kind, one.counts(head)) == (PmdKind.THP, "2/1")
    one.pages.folio_put(head)


def test_hmm_sees_nothing_and_cannot_have_it(lab) -> None:
    one = lab()
    one.map(3)
    one.memory.memory_failure(one.pfn(1))
    assert [word & HMM_PFN_VALID for word in hmm(one, 3)] == [HMM_PFN_VALID, 0, HMM_PFN_VALID]
    with pytest.raises(KernelError) as caught:
        hmm(one, 3, HMM_PFN_REQ_FAULT)
    assert (caught.value.errno, str(caught.value)) == (EFAULT, "-EFAULT: the entry at 0x40001000 is HWPOISON")


def test_poison_is_not_migrated(lab) -> None:
    one = lab()
    one.map(4)
    one.memory.memory_failure(one.pfn(2))
    args = one.device.migrate(one.mm, BASE, one.va(4))
    assert [int(word) & 2 for word in args.src[:4]] == [2, 2, 0, 2]
    one.read(0, 1, 3)
    assert signal(one.read, 2) == 7


def test_a_page_that_fails_while_it_migrates_is_busy(lab) -> None:
    # Off the LRU and held by the migration, it cannot be handled; it goes on as poison in the next mapping.
    one = lab()
    one.map(2)
    pfn = one.pfn(0)
    args = one.device.setup(one.mm, BASE, one.va(2), flags=MIGRATE_VMA_SELECT_SYSTEM)
    assert failure(one, pfn) == EBUSY
    one.memory.migrate_vma_finalize(args)
    one.mm.mmap_lock.up_read()
    # Once more: it has failed before.
    assert failure(one, pfn) == EHWPOISON


def test_rmap_walks_make_poison_of_a_failed_page(lab) -> None:
    # try_to_migrate_one: the HWPoison page of a PTE-mapped folio becomes a hwpoison entry, rss - 1.
    one = lab(thp="always")
    one.map(8)
    one.mm.munmap(one.va(7), PAGE)
    pfn = one.pfn(2)
    one.pages.ram.m_flags[pfn] |= PG_HWPOISON
    one.device.migrate(one.mm, BASE, one.va(7))
    kinds = [one.entry(i).kind for i in range(7)]
    assert kinds == [PteKind.HWPOISON if i == 2 else PteKind.PRIVATE for i in range(7)]
    assert one.mm.rss == [7 - 1, 0, 0]


def test_a_page_that_is_held_is_unmapped_all_the_same(lab) -> None:
    one = lab()
    one.map(1)
    pfn = one.pfn(0)
    one.memory.pin_user_pages_fast(one.mm, BASE, 1)
    assert failure(one, pfn) == EBUSY
    assert (one.entry(0).kind, one.counts(pfn)) == (PteKind.HWPOISON, "1025/0")


def test_a_free_page_is_never_given_out(lab) -> None:
    one = lab()
    one.map(1)
    pfn = one.pfn(0)
    one.mm.munmap(BASE, PAGE)
    fresh = 40 * one.nr + 3
    free = one.pages.allocator.free_pages
    for failed in (pfn, fresh):
        one.memory.memory_failure(failed)
    assert one.pages.allocator.free_pages == free - 2
    found = one.memory.alloc_pages_bulk(free - 2)
    assert found is not None
    assert len(set(found.tolist()) & {pfn, fresh}) == 0
    assert one.memory.alloc_folio(0) is None
    assert failure(one, fresh) == EHWPOISON


def test_pages_that_are_none_of_a_process(lab) -> None:
    one = lab()
    assert failure(one, 1 << 40) == ENXIO
    assert failure(one, one.memory.zero_pfn) == EBUSY
    driver = one.memory.alloc_folio(0)
    assert failure(one, driver) == EBUSY


# --- device memory


@pytest.mark.parametrize("thp", ["never", "always"])
def test_nothing_is_done_to_mapped_device_memory(lab, thp: str) -> None:
    one = lab(thp=thp)
    one.map(8)
    one.device.migrate(one.mm, BASE, one.va(8))
    pfn = one.pfn(0)
    one.watch()
    before = (one.entry(0), one.counts(pfn), one.flags(pfn), one.device.pgmap.ref)
    assert failure(one, pfn) == ENXIO
    assert (one.entry(0), one.counts(pfn), one.flags(pfn), one.device.pgmap.ref) == before
    assert one.events == []
    one.read(*range(8))
    one.check_quiescent()


def test_nothing_is_done_to_mapped_coherent_memory(lab) -> None:
    one = lab()
    spm = Device(one.memory, 8, type=MEMORY_DEVICE_COHERENT)
    one.map(2)
    spm.migrate(one.mm, BASE, one.va(2))
    pfn = one.pfn(0)
    assert failure(one, pfn) == ENXIO
    assert not one.flags(pfn) & PG_HWPOISON
    one.write(0)


def test_a_pagemap_that_goes_away_answers_no_more(lab) -> None:
    one = lab()
    one.map(1)
    one.device.migrate(one.mm, BASE, one.va(1))
    pfn = one.pfn(0)
    task = one.kernel.spawn(one.memory.memunmap_pages, one.device.pgmap, name="unplug")
    one.kernel.settle()
    with pytest.raises(KernelError) as caught:
        one.memory.memory_failure(pfn)
    assert str(caught.value) == f"-ENXIO: the pagemap of pfn {pfn:#x} goes away"
    one.mm.exit()
    task.join()


@pytest.mark.parametrize(("answer", "errno"), [(0, 0), (-EIO, EIO), (-EOPNOTSUPP, ENXIO)])
def test_a_driver_may_handle_it(lab, answer: int, errno: int) -> None:
    one = lab()
    one.map(1)
    one.device.migrate(one.mm, BASE, one.va(1))
    pfn = one.pfn(0)
    calls = []

    def memory_failure(pgmap, pfn, nr_pages, flags) -> int:
        calls.append((pgmap, pfn, nr_pages, flags))
        return answer

    one.device.memory_failure = memory_failure
    if errno:
        assert failure(one, pfn) == errno
    else:
        one.memory.memory_failure(pfn)
    assert calls == [(one.device.pgmap, pfn, 1, 0)]
    assert one.device.pgmap.ref == 2  # no reference is left behind


def test_other_device_memory_without_a_mapping_cannot_be_locked(lab) -> None:
    one = lab()
    start = one.memory.request_free_mem_region(8)
    pgmap = DevPagemap(MEMORY_DEVICE_PCI_P2PDMA, start, 8, None, one.device)
    one.memory.memremap_pages(pgmap)
    assert failure(one, start + 3) == EBUSY


def test_pages_of_files_are_left_out(lab) -> None:
    one = lab()
    one.map(1)
    one.pages.ram.m_mapping[one.pfn(0)] = -1
    with pytest.raises(ModelError, match="of a file or of huge pages, is not modelled"):
        one.memory.memory_failure(one.pfn(0))
