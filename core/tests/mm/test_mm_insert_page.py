"""What drivers map into areas of their own, and that devices see normal pages there and nothing else."""

from errno import EBUSY, EFAULT, EINVAL

import numpy as np
import pytest
from gpusvm.errors import CpuSignal, KernelError
from gpusvm.mm.api import (
    HMM_PFN_ERROR,
    MADV_DONTNEED,
    PROT_READ,
    PROT_WRITE,
    VM_DONTEXPAND,
    VM_IO,
    VM_MIXEDMAP,
    VM_PFNMAP,
    VM_SHARED,
    HmmRange,
)

PAGE = 4096
BASE = 1 << 30
RW = PROT_READ | PROT_WRITE
READ = 1 << 63
MMIO = 1 << 40  # a pfn without a struct page


def area(one, n: int, flags: int):
    one.mm.mmap(BASE, n * PAGE, RW, flags=flags)
    one.watch()
    return one.mm.vma_lookup(BASE)


def inserted(one, vma, page: int) -> int:
    """Map a fresh page, whose only reference is then the mapping's; dmirror_fops_mmap does so."""
    pfn = one.memory.alloc_folio(0)
    one.memory.clear_folio(pfn, 1)
    with one.mm.mmap_lock.write():
        one.memory.vm_insert_page(vma, one.va(page), pfn)
    one.memory.folio_put(pfn)
    return pfn


def snapshot(one, n: int, *, request: int = 0) -> list[int]:
    sub = one.watchers[0].sub
    words = np.zeros(n, np.uint64)
    range_ = HmmRange(
        notifier=sub,
        start=BASE,
        end=BASE + n * PAGE,
        hmm_pfns=words,
        default_flags=request,
        notifier_seq=one.memory.mmu_interval_read_begin(sub),
    )
    one.mm.mmap_lock.down_read()
    try:
        one.memory.hmm_range_fault(range_)
    finally:
        one.mm.mmap_lock.up_read()
    return words.tolist()


def test_a_page_in_a_mixed_map_is_reported_as_any_other(lab):
    """hmm-tests mixedmap: a private writable area, its page read-only until it is copied."""
    one = lab()
    vma = area(one, 2, VM_MIXEDMAP)
    assert not vma.is_anonymous
    pfn = inserted(one, vma, 0)
    assert one.counts(pfn) == "1/1"
    assert one.mm.rss == [0, 1, 0]
    assert snapshot(one, 2) == [READ | pfn, 0]
    assert snapshot(one, 1, request=READ) == [READ | pfn]
    one.mm.madvise(BASE, 2 * PAGE, MADV_DONTNEED)
    assert one.mm.rss == [0, 0, 0]
    one.finish()


def test_a_write_copies_a_page_of_a_private_mixed_map(lab):
    one = lab()
    vma = area(one, 1, VM_MIXEDMAP)
    pfn = inserted(one, vma, 0)
    one.write(0)
    assert one.pfn(0) != pfn
    assert one.mm.rss == [1, 0, 0]
    assert [event[1:4] for event in one.events] == [("CLEAR", 0, 1)]
    one.finish()


def test_what_the_driver_did_not_map_is_a_bus_error(lab):
    one = lab()
    area(one, 2, VM_MIXEDMAP)
    with pytest.raises(CpuSignal) as caught:
        one.read(1)
    assert caught.value.signal == 7
    with pytest.raises(KernelError) as refused:
        snapshot(one, 1, request=READ)
    assert refused.value.errno == EFAULT
    one.finish()


def test_a_bare_pfn_in_a_mixed_map_is_an_error_for_devices(lab):
    """mm/hmm.c:hmm_vma_handle_pte, no normal page and not the zero page: EFAULT if asked for, else ERROR."""
    one = lab()
    vma = area(one, 3, VM_MIXEDMAP | VM_SHARED)
    pfn = inserted(one, vma, 0)
    with one.mm.mmap_lock.write():
        one.memory.vm_insert_mixed(vma, one.va(1), MMIO)
    entry = one.entry(1)
    assert (entry.special, entry.zero, entry.write, entry.pfn) == (True, False, True, MMIO)
    assert one.mm.rss == [0, 1, 0]
    assert snapshot(one, 3) == [READ | 1 << 62 | pfn, HMM_PFN_ERROR, 0]
    assert snapshot(one, 1, request=READ) == [READ | 1 << 62 | pfn]
    with pytest.raises(KernelError) as caught:
        snapshot(one, 2, request=READ | 1 << 62)
    assert (caught.value.errno, str(caught.value)) == (
        EFAULT,
        f"-EFAULT: there is no page at {BASE + PAGE:#x}, only a pfn",
    )
    one.read(1)
    one.write(1)
    one.finish()


@pytest.mark.parametrize("shared", [0, VM_SHARED])
def test_physical_memory_cannot_be_read_by_devices_at_all(lab, shared):
    """mm/hmm.c:hmm_vma_walk_test: EFAULT if asked for, else ERROR for the whole area."""
    one = lab()
    vma = area(one, 12, VM_PFNMAP | shared)
    with one.mm.mmap_lock.write():
        one.memory.remap_pfn_range(vma, BASE, MMIO, 12 * PAGE)
    assert vma.flags & VM_IO
    assert vma.flags & VM_DONTEXPAND
    assert [one.entry(i).pfn for i in range(12)] == list(range(MMIO, MMIO + 12))
    assert [one.entry(i).write for i in range(12)] == [bool(shared)] * 12
    assert one.mm.rss == [0, 0, 0]
    assert snapshot(one, 12) == [HMM_PFN_ERROR] * 12
    with pytest.raises(KernelError) as caught:
        snapshot(one, 1, request=READ)
    assert caught.value.errno == EFAULT
    with pytest.raises(KernelError) as caught, one.mm.mmap_lock.read():
        one.memory.make_device_exclusive(one.mm, BASE, None)
    assert caught.value.errno == EFAULT
    with pytest.raises(KernelError) as caught:
        one.device.migrate(one.mm, BASE, BASE + PAGE)
    assert caught.value.errno == EINVAL
    one.mm.mprotect(BASE, 4 * PAGE, PROT_READ)
    one.mm.mprotect(BASE, 4 * PAGE, RW)
    assert [one.entry(i).write for i in range(12)] == [bool(shared)] * 12
    one.finish()


def test_a_child_gets_a_driver_s_entries_too(lab):
    """VM_COPY_ON_FORK: no fault could bring them back."""
    one = lab()
    vma = area(one, 4, VM_MIXEDMAP | VM_SHARED)
    pfn = inserted(one, vma, 0)
    with one.mm.mmap_lock.write():
        one.memory.vm_insert_mixed(vma, one.va(1), MMIO)
    two = one.mm.fork()
    assert [one.entry(i, two).pfn for i in range(3)] == [pfn, MMIO, -1]
    assert [one.entry(i, two).special for i in range(3)] == [False, True, False]
    assert two.rss == [0, 1, 0]
    assert one.counts(pfn) == "2/2"
    two.exit()
    one.finish()


def test_a_private_copy_of_a_bare_pfn_is_anonymous(lab):
    one = lab()
    vma = area(one, 2, VM_PFNMAP)
    with one.mm.mmap_lock.write():
        one.memory.remap_pfn_range(vma, BASE, MMIO, 2 * PAGE)
    one.write(1)
    assert one.entry(0).special
    assert not one.entry(1).special
    assert one.entry(1).write
    assert one.mm.rss == [1, 0, 0]
    one.finish()


def test_drivers_are_refused_what_cannot_be(lab):
    one = lab()
    vma = area(one, 2, VM_MIXEDMAP)
    pfn = inserted(one, vma, 0)
    calls = [
        (EBUSY, lambda: one.memory.vm_insert_page(vma, BASE, pfn)),
        (EFAULT, lambda: one.memory.vm_insert_page(vma, BASE + 2 * PAGE, pfn)),
        (EINVAL, lambda: one.memory.vm_insert_page(vma, BASE + 1, pfn)),
        (EINVAL, lambda: one.memory.remap_pfn_range(vma, BASE, MMIO, PAGE)),
    ]
    for errno, call in calls:
        with pytest.raises(KernelError) as caught, one.mm.mmap_lock.write():
            call()
        assert caught.value.errno == errno
    one.mm.mmap(BASE, 2 * PAGE, RW, flags=VM_PFNMAP)
    whole = one.mm.vma_lookup(BASE)
    with pytest.raises(KernelError) as caught, one.mm.mmap_lock.write():
        one.memory.remap_pfn_range(whole, BASE, MMIO, PAGE)
    assert str(caught.value) == f"-EINVAL: remap_pfn_range of a part of {whole!r}, which is private"
    one.finish()
