"""Huge pages of a pool: what devices see of them, that they stay where they are, what fork and mremap do to them."""

from errno import EINVAL, ENOMEM, EOPNOTSUPP

import numpy as np
import pytest
from gpusvm.errors import CpuSignal, KernelError
from gpusvm.mm.api import (
    HMM_PFN_ORDER_SHIFT,
    MADV_DONTNEED,
    MADV_FREE,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    PROT_READ,
    PROT_WRITE,
    VM_HUGETLB,
    VM_SHARED,
    HmmRange,
)
from gpusvm.mm.pgtable import PmdKind, PmdLeaf

PAGE = 4096
BASE = 1 << 30
RW = PROT_READ | PROT_WRITE
NR = 8  # pages of a huge page in these tests
HUGE = NR * PAGE
ORDER = 3 << HMM_PFN_ORDER_SHIFT
VALID, WRITE = 1 << 63, 1 << 62
PFNS = (1 << HMM_PFN_ORDER_SHIFT) - 1


def machine(lab, n: int = 4, **options):
    one = lab(pmd_order=3, **options)
    assert one.memory.set_nr_hugepages(n) == n
    return one


def huge(one, n: int = 1, *, prot: int = RW, flags: int = 0) -> None:
    one.mm.mmap(BASE, n * HUGE, prot, flags=VM_HUGETLB | flags)


def kinds(one, n: int, mm=None) -> str:
    """`.` none, `r` and `w` huge pages."""
    found = ""
    for i in range(n):
        entry = one.entry(i * NR, mm)
        if isinstance(entry, PmdLeaf):
            assert entry.kind is PmdKind.HUGETLB
            found += "w" if entry.write else "r"
        else:
            found += "."
    return found


def ask(one, n: int, *, request: int = 0, first: int = 0) -> list[int]:
    """hmm_range_fault of `n` pages by a device; the words."""
    sub = one.memory.mmu_interval_notifier_insert(one.mm, BASE, 64 * HUGE, one.watchers[0])
    words = np.zeros(n, np.uint64)
    range_ = HmmRange(
        notifier=sub,
        start=one.va(first),
        end=one.va(first + n),
        hmm_pfns=words,
        default_flags=request,
        dev_private_owner=one.device,
        notifier_seq=one.memory.mmu_interval_read_begin(sub),
    )
    one.mm.mmap_lock.down_read()
    try:
        one.memory.hmm_range_fault(range_)
    finally:
        one.mm.mmap_lock.up_read()
        one.memory.mmu_interval_notifier_remove(sub)
    return words.tolist()


def end(one) -> None:
    for watcher in getattr(one, "watchers", []):
        one.memory.mmu_interval_notifier_remove(watcher.sub)
    one.watchers = []
    assert one.mm.rss == [0, 0, 0]
    assert not one.memory.contents.mismatches
    one.mm.exit()
    pool = one.memory.hugetlb
    assert (len(pool.free), pool.reserved) == (pool.nr, 0)
    assert one.memory.set_nr_hugepages(0) == 0
    one.memory.memunmap_pages(one.device.pgmap)
    assert one.pages.allocator.nr_pages - one.pages.allocator.free_pages == 1
    one.kernel.ledger.assert_empty()


def test_a_device_writes_huge_pages(lab):
    """hmm-tests anon_write_hugetlbfs: one fault for each huge page; the process reads what the device wrote."""
    one = machine(lab)
    huge(one, 2)
    one.watch()
    words = ask(one, 2 * NR, request=VALID | WRITE)
    assert [word & ~PFNS for word in words] == [VALID | WRITE | ORDER] * (2 * NR)
    pfns = np.array([word & PFNS for word in words])
    assert pfns.tolist() == [one.entry(i - i % NR).pfn + i % NR for i in range(2 * NR)]
    one.memory.contents.write_many(one.mm, np.arange(2 * NR) + BASE // PAGE, pfns, writer=1)
    one.read(*range(2 * NR))
    assert one.events == []
    assert one.mm.rss == [0, 0, 0]
    end(one)


def test_every_word_of_a_huge_page_tells_its_order_and_permission(lab):
    """hmm-tests compound: WRITE|PMD, after mprotect READ|PMD; also from the middle of a huge page."""
    one = machine(lab)
    huge(one)
    one.write(*range(NR))
    one.watch()
    pfn = one.entry(0).pfn
    assert ask(one, NR) == [VALID | WRITE | ORDER | (pfn + i) for i in range(NR)]
    one.mm.mprotect(BASE, HUGE, PROT_READ)
    assert ask(one, NR) == [VALID | ORDER | (pfn + i) for i in range(NR)]
    assert ask(one, 3, first=4) == [VALID | ORDER | (pfn + i) for i in (4, 5, 6)]
    assert [event[1:4] for event in one.events] == [("PROTECTION_VMA", 0, NR)]
    end(one)


def test_only_the_first_word_of_a_huge_page_is_asked(lab):
    """mm/hmm.c:hmm_vma_walk_hugetlb_entry: hmm_pfns of the first page decide for all of them."""
    one = machine(lab)
    huge(one)
    one.watch()
    sub = one.watchers[0].sub
    for asked, expected in ((1, "."), (0, "r")):
        words = np.zeros(NR, np.uint64)
        words[asked] = VALID
        range_ = HmmRange(
            notifier=sub,
            start=BASE,
            end=BASE + HUGE,
            hmm_pfns=words,
            pfn_flags_mask=VALID,
            notifier_seq=one.memory.mmu_interval_read_begin(sub),
        )
        with one.mm.mmap_lock.read():
            one.mm.page_table.pud_alloc(BASE)
            one.memory.hmm_range_fault(range_)
        assert kinds(one, 1) == expected
    end(one)


def test_a_hole_has_no_word_and_an_empty_entry_has_its_order(lab):
    one = machine(lab)
    huge(one, 2)
    one.watch()
    assert ask(one, 2) == [0, 0]
    one.write(NR)
    assert ask(one, 2) == [ORDER, ORDER | 1]  # nothing there, but its PUD is
    end(one)


def test_a_private_read_takes_a_page_of_its_own_and_a_write_takes_it_over(lab):
    one = machine(lab)
    huge(one)
    assert one.memory.hugetlb.reserved == 1
    assert one.read(3) == [0]
    assert kinds(one, 1) == "r"
    pfn = one.entry(0).pfn
    assert (one.counts(pfn), len(one.memory.hugetlb.free), one.memory.hugetlb.reserved) == ("1/1", 3, 0)
    one.watch()
    one.write(3)
    assert kinds(one, 1) == "w"
    assert one.entry(0).pfn == pfn
    assert one.events == []
    end(one)


def test_what_is_not_in_the_pool_cannot_be_mapped(lab):
    one = machine(lab, 2)
    with pytest.raises(KernelError) as caught:
        huge(one, 3)
    assert (caught.value.errno, str(caught.value)) == (ENOMEM, "-ENOMEM: 3 huge pages, of which 2 are left")
    huge(one, 2)
    with pytest.raises(KernelError) as caught:
        one.mm.mmap(BASE + 8 * HUGE, HUGE, RW, flags=VM_HUGETLB)
    assert str(caught.value) == "-ENOMEM: 1 huge pages, of which 0 are left"
    one.mm.munmap(BASE, 2 * HUGE)
    huge(one, 2)
    end(one)


def test_huge_pages_do_not_migrate_and_cannot_be_exclusive(lab):
    """migrate_vma_setup: EINVAL; make_device_exclusive: EOPNOTSUPP, without a fault."""
    one = machine(lab)
    huge(one)
    with pytest.raises(KernelError) as caught:
        one.device.migrate(one.mm, BASE, BASE + HUGE)
    assert caught.value.errno == EINVAL
    with pytest.raises(KernelError) as caught, one.mm.mmap_lock.read():
        one.memory.make_device_exclusive(one.mm, BASE, None)
    assert caught.value.errno == EOPNOTSUPP
    assert kinds(one, 1) == "."
    end(one)


def test_shared_huge_pages_are_the_object_s(lab):
    one = machine(lab)
    huge(one, 2, flags=VM_SHARED)
    one.watch()
    two = one.mm.fork()
    assert one.events == []
    token = one.memory.cpu_write(two, one.va(2))
    assert one.read(2) == [token]
    assert kinds(one, 2) == "w."
    assert kinds(one, 2, two) == "w."
    pfn = one.entry(0).pfn
    assert one.counts(pfn) == "3/2"
    one.mm.mprotect(BASE, 2 * HUGE, PROT_READ)
    assert kinds(one, 2) == "r."
    one.mm.mprotect(BASE, 2 * HUGE, RW)
    assert kinds(one, 2) == "w."
    one.mm.madvise(BASE, HUGE, MADV_DONTNEED)
    assert one.read(2) == [token]
    one.mm.munmap(BASE, 2 * HUGE)
    assert one.memory.cpu_read(two, one.va(2)) == token
    two.exit()
    end(one)


def test_fork_clears_a_private_area_and_a_write_copies(lab):
    """copy_hugetlb_page_range: CLEAR over the area in the parent; hugetlb_wp: CLEAR over the huge page."""
    one = machine(lab)
    huge(one, 2)
    tokens = one.write(0, NR)
    one.watch()
    two = one.mm.fork()
    assert [event[1:4] for event in one.events] == [("CLEAR", 0, 2 * NR)]
    assert kinds(one, 2) + kinds(one, 2, two) == "rrrr"
    assert one.counts(one.entry(0).pfn) == "2/2"
    one.events.clear()
    own = one.write(0)
    assert [event[1:4] for event in one.events] == [("CLEAR", 0, NR)]
    assert one.read(0) == own
    assert [one.memory.cpu_read(two, one.va(i)) for i in (0, NR)] == tokens
    one.memory.cpu_write(two, one.va(0))  # the only one left that maps it: no copy
    assert kinds(one, 2) + kinds(one, 2, two) == "wrwr"
    two.exit()
    one.events.clear()
    one.write(NR)
    assert one.events == []
    end(one)


def test_a_child_that_finds_the_pool_empty_gets_a_bus_error(lab):
    one = machine(lab, 1)
    huge(one)
    one.write(0)
    two = one.mm.fork()
    with pytest.raises(CpuSignal) as caught:
        one.memory.cpu_write(two, BASE)
    assert caught.value.signal == 7
    two.exit()
    end(one)


def test_a_promise_is_for_who_mapped_it(lab):
    """HPAGE_RESV_OWNER: the child's own fault takes what nobody was promised."""
    one = machine(lab, 2)
    huge(one, 2)
    two = one.mm.fork()
    with pytest.raises(CpuSignal):
        one.memory.cpu_read(two, BASE)
    one.write(0, NR)
    two.exit()
    end(one)


def test_a_huge_page_cannot_be_cut(lab):
    """hugetlb_vm_op_split, and what MADV_DONTNEED rounds down to."""
    one = machine(lab)
    huge(one, 2)
    one.write(0, NR)
    calls = [
        lambda: one.mm.munmap(BASE, PAGE),
        lambda: one.mm.mprotect(BASE + PAGE, HUGE, PROT_READ),
        lambda: one.mm.madvise(BASE + PAGE, HUGE, MADV_DONTNEED),
        lambda: one.mm.madvise(BASE, HUGE, MADV_FREE),
        lambda: one.mm.mremap(BASE, HUGE, HUGE, flags=MREMAP_MAYMOVE | MREMAP_FIXED, new_addr=BASE + 8 * HUGE + PAGE),
    ]
    for call in calls:
        with pytest.raises(KernelError) as caught:
            call()
        assert caught.value.errno == EINVAL
    one.watch()
    one.mm.madvise(BASE, HUGE - PAGE, MADV_DONTNEED)
    assert kinds(one, 2) == "ww"
    one.mm.madvise(BASE, HUGE + PAGE, MADV_DONTNEED)
    assert kinds(one, 2) == ".w"
    assert [event[1:4] for event in one.events] == [("CLEAR", 0, NR)]
    assert one.read(0) == [0]
    end(one)


def test_a_move_clears_the_old_place(lab):
    """move_hugetlb_page_tables: CLEAR in place of UNMAP, then the UNMAP of the area left behind."""
    one = machine(lab)
    huge(one, 2)
    tokens = one.write(0, NR)
    one.watch()
    one.mm.mremap(BASE, 2 * HUGE, 2 * HUGE, flags=MREMAP_MAYMOVE | MREMAP_FIXED, new_addr=BASE + 8 * HUGE)
    assert [event[1:4] for event in one.events] == [("CLEAR", 0, 2 * NR), ("UNMAP", 0, 2 * NR)]
    assert one.read(8 * NR, 9 * NR) == tokens
    end(one)


def test_a_pool_keeps_what_it_promised(lab):
    one = machine(lab, 3)
    huge(one, 2)
    one.write(0)
    assert one.memory.set_nr_hugepages(0) == 2
    one.write(NR)
    end(one)
