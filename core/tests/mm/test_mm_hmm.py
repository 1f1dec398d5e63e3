"""hmm_range_fault, row by row: what each entry gives, with and without a request."""

from errno import EBUSY, EFAULT, EINVAL, ENOMEM, EPERM

import numpy as np
import pytest
from gpusvm.errors import KernelError
from gpusvm.mm.api import (
    HMM_PFN_DMA_MAPPED,
    HMM_PFN_ERROR,
    HMM_PFN_ORDER_SHIFT,
    HMM_PFN_REQ_FAULT,
    HMM_PFN_REQ_WRITE,
    HMM_PFN_VALID,
    HMM_PFN_WRITE,
    PROT_NONE,
    PROT_READ,
    VM_PFNMAP,
    HmmRange,
)
from gpusvm.mm.pgtable import PmdKind, PteKind

PAGE = 4096
BASE = 1 << 30
RW = 3
READ = HMM_PFN_REQ_FAULT
WRITE = HMM_PFN_REQ_FAULT | HMM_PFN_REQ_WRITE
V = HMM_PFN_VALID
W = HMM_PFN_WRITE


class Mirror:
    """A subscription over everything, and a caller of hmm_range_fault."""

    def __init__(self, one, *, filters: bool = True) -> None:
        self.one = one
        self.calls = 0
        self.filters = filters
        self.sub = one.memory.mmu_interval_notifier_insert(one.mm, 0, 1 << 46, self)

    def invalidate(self, sub, range_, cur_seq) -> bool:
        self.calls += 1
        if not (self.filters and range_.owner is self.one.device.owner):
            sub.invalidate_seq = cur_seq
        return True

    def ask(self, page: int, n: int, default: int = 0, mask: int = 0, *, words=None, owner=None) -> np.ndarray:
        """Take the lock, fault once, give the words."""
        one = self.one
        words = np.zeros(n, np.uint64) if words is None else np.array(words, np.uint64)
        start = BASE + page * PAGE
        range_ = HmmRange(self.sub, start, start + n * PAGE, words, default, mask, owner)
        self.range = range_
        range_.notifier_seq = one.memory.mmu_interval_read_begin(self.sub)
        with one.mm.mmap_lock.read():
            one.memory.hmm_range_fault(range_)
        return words

    def words(self, *args, **kwargs) -> list[int]:
        return self.ask(*args, **kwargs).tolist()

    def errno(self, *args, **kwargs) -> int:
        with pytest.raises(KernelError) as caught:
            self.ask(*args, **kwargs)
        return caught.value.errno


def order(one) -> int:
    return one.memory.geometry.pmd_order << HMM_PFN_ORDER_SHIFT


# --- no area, areas that cannot be read


def test_no_area(lab) -> None:
    one = lab()
    mirror = Mirror(one)
    assert mirror.words(0, 3) == [HMM_PFN_ERROR] * 3
    assert mirror.errno(0, 3, READ) == EFAULT
    # A request of one page of the gap is enough.
    assert mirror.errno(0, 3, 0, READ, words=[0, 0, READ]) == EFAULT
    assert mirror.words(0, 3, 0, READ) == [HMM_PFN_ERROR] * 3


def test_a_gap_between_areas_is_an_error_word_of_its_own(lab) -> None:
    one = lab()
    mirror = Mirror(one)
    one.map(2)
    one.map(2, at=4)
    words = mirror.words(0, 6)
    assert words[2:4] == [HMM_PFN_ERROR] * 2
    assert [word & (V | W) for word in words[:2] + words[4:]] == [V | W] * 4
    assert mirror.errno(0, 6, READ) == EFAULT


@pytest.mark.parametrize("how", ["none", "pfnmap"])
def test_an_area_that_devices_cannot_read(lab, how: str) -> None:
    one = lab()
    mirror = Mirror(one)
    one.map(4)
    if how == "none":
        one.mm.mprotect(BASE, 4 * PAGE, PROT_NONE)
    else:
        one.mm.vmas[0].flags |= VM_PFNMAP
    assert mirror.words(0, 4) == [HMM_PFN_ERROR] * 4
    assert mirror.errno(0, 4, READ) == EFAULT
    one.mm.vmas[0].flags &= ~VM_PFNMAP


def test_an_empty_range_is_invalid(lab) -> None:
    one = lab()
    assert Mirror(one).errno(0, 0) == EINVAL


# --- holes


def test_a_hole_is_0_until_it_is_asked_for(lab) -> None:
    one = lab()
    mirror = Mirror(one)
    one.map(4, write=False)
    assert mirror.words(0, 4) == [0] * 4
    words = mirror.words(0, 4, READ)
    assert words == [V | one.memory.zero_pfn] * 4
    assert one.entry(0).zero
    # Each page that takes the place of the zero page is a CLEAR, which the subscription hears.
    assert mirror.errno(0, 4, WRITE) == EBUSY
    assert mirror.calls == 4
    assert mirror.words(0, 4, WRITE) == [V | W | one.pfn(i) for i in range(4)]
    assert one.mm.rss == [4, 0, 0]


def test_one_page_that_asks_faults_the_rest_of_its_hole(lab) -> None:
    one = lab()
    mirror = Mirror(one)
    one.map(12, write=False)
    # Q7: the hole, here the rest of its PUD and so the whole area, is faulted with the flags of those that ask.
    mirror.words(0, 12, 0, WRITE, words=[0, 0, WRITE, READ] + [0] * 8)
    assert [one.entry(i).kind for i in range(12)] == [PteKind.PRESENT] * 12
    assert all(one.entry(i).write for i in range(12))


def test_a_pte_that_asks_faults_the_rest_of_its_table_only(lab) -> None:
    one = lab()
    mirror = Mirror(one)
    one.map(16, write=False)
    one.read(0, 8)
    words = mirror.words(0, 16, 0, READ, words=[0, 0, READ] + [0] * 13)
    present = [i for i in range(16) if one.entry(i).kind is PteKind.PRESENT]
    assert present == [0, 2, 3, 4, 5, 6, 7, 8]
    assert [i for i, word in enumerate(words) if word & V] == present


def test_a_read_only_area_cannot_be_asked_for_writing(lab) -> None:
    one = lab()
    mirror = Mirror(one)
    one.map(2, prot=PROT_READ, write=False)
    assert mirror.errno(0, 2, WRITE) == EPERM
    assert mirror.words(0, 2, READ) == [V | one.memory.zero_pfn] * 2


def test_req_write_without_req_fault_asks_for_nothing(lab) -> None:
    one = lab()
    mirror = Mirror(one)
    one.map(2, write=False)
    one.read(0)
    assert mirror.words(0, 2, HMM_PFN_REQ_WRITE) == [V | one.memory.zero_pfn, 0]


def test_no_memory(lab) -> None:
    one = lab()
    mirror = Mirror(one)
    one.map(2, write=False)
    one.kernel.arm("alloc.folio", times=9)
    one.kernel.arm("alloc.pages", times=9)
    assert mirror.errno(0, 2, WRITE) == ENOMEM


# --- PTEs


def test_present_ptes(lab) -> None:
    one = lab()
    mirror = Mirror(one)
    one.map(4)
    one.mm.mprotect(BASE + PAGE, PAGE, PROT_READ)
    pfns = [one.pfn(i) for i in range(4)]
    expected = [V | W | pfns[0], V | pfns[1], V | W | pfns[2], V | W | pfns[3]]
    assert mirror.words(0, 4) == expected
    assert mirror.words(0, 4, READ) == expected
    assert mirror.errno(0, 4, WRITE) == EPERM


def test_large_folios_mapped_by_ptes_have_no_order(lab) -> None:
    one = lab(thp="always")
    mirror = Mirror(one)
    one.map(8)
    one.mm.munmap(BASE, PAGE)
    assert mirror.words(1, 2) == [V | W | one.pfn(1), V | W | one.pfn(2)]
    assert one.memory.folio_order(one.pfn(1)) == 3


def test_sticky_bits_stay_and_the_rest_goes(lab) -> None:
    one = lab()
    mirror = Mirror(one)
    one.map(1)
    one.map(1, at=1, prot=PROT_READ, write=False)
    stale = HMM_PFN_DMA_MAPPED | V | W | 0x1234 | HMM_PFN_ERROR
    assert mirror.words(0, 3, words=[stale] * 3) == [
        HMM_PFN_DMA_MAPPED | V | W | one.pfn(0),
        HMM_PFN_DMA_MAPPED,
        HMM_PFN_DMA_MAPPED | HMM_PFN_ERROR,
    ]


def test_output_fed_back_is_harmless_when_the_mask_is_0(lab) -> None:
    one = lab()
    mirror = Mirror(one)
    one.map(2, write=False)
    words = mirror.words(0, 2, words=[V | W, V])
    assert words == [0, 0]
    assert [word & V for word in mirror.words(0, 2, 0, V, words=[V, 0])] == [V, V]


def device_pages(one, n: int, *, at: int = 0) -> list[int]:
    one.device.migrate(one.mm, BASE + at * PAGE, BASE + (at + n) * PAGE)
    return [one.pfn(at + i) for i in range(n)]


def test_own_device_private_ptes_are_valid(lab) -> None:
    one = lab()
    mirror = Mirror(one)
    one.map(4)
    pfns = device_pages(one, 3)
    owner = one.device.owner
    expected = [V | W | pfn for pfn in pfns] + [V | W | one.pfn(3)]
    assert mirror.words(0, 4, owner=owner) == expected
    assert mirror.words(0, 4, WRITE, owner=owner) == expected
    assert one.device.faults == []


def test_foreign_device_private_ptes_are_not_mapped_and_come_home_when_asked_for(lab) -> None:
    one = lab()
    mirror = Mirror(one)
    one.map(4)
    device_pages(one, 2)
    assert mirror.words(0, 4)[:2] == [0, 0]
    words = mirror.words(0, 4, READ)
    assert [word & (V | W) for word in words] == [V | W] * 4
    assert len(one.device.faults) == 1
    assert one.entry(0).kind is PteKind.PRESENT
    one.check_quiescent()


def test_own_pages_behind_a_page_that_asks_come_home_too(lab) -> None:
    one = lab()
    one.device.window = PAGE
    mirror = Mirror(one)
    one.map(4, write=False)
    one.write(1, 2, 3)
    device_pages(one, 2, at=2)
    mirror.words(0, 4, READ, owner=one.device.owner)
    assert [one.entry(i).kind for i in range(4)] == [PteKind.PRESENT] * 4
    assert [fault[0] for fault in one.device.faults] == [BASE + 2 * PAGE, BASE + 3 * PAGE]


def test_a_foreign_owner_that_migrates_invalidates_the_one_who_asks(lab) -> None:
    # t10: the MIGRATE of the other owner hits this subscription, so the caller starts over, once.
    one = lab()
    one.map(2)
    device_pages(one, 2)
    mirror = Mirror(one, filters=False)
    with pytest.raises(KernelError) as caught:
        mirror.ask(0, 2, READ)
    assert (caught.value.errno, str(caught.value)) == (EBUSY, "-EBUSY: 0x40000000-0x40002000 was invalidated")
    assert [word & V for word in mirror.words(0, 2, READ)] == [V, V]


def exclusive(one, page: int) -> int:
    with one.mm.mmap_lock.read():
        pfn = one.memory.make_device_exclusive(one.mm, one.va(page), None)
    one.memory.folio_unlock(pfn)
    one.memory.folio_put(pfn)
    return pfn


def test_exclusive_ptes(lab) -> None:
    one = lab()
    one.map(2)
    pfn = exclusive(one, 0)
    mirror = Mirror(one)
    assert mirror.words(0, 2)[0] == 0
    # The restore is a CLEAR: whoever asked is invalidated and asks again.
    assert mirror.errno(0, 2, READ) == EBUSY
    assert mirror.words(0, 2, READ)[0] == V | W | pfn


def migrating(one, page: int, *, leaf: bool = False) -> int:
    """Leave an entry as a migration in progress has it: its folio locked."""
    pfn = one.pfn(page)
    one.memory.folio_lock(pfn)
    if leaf:
        old = one.mm.page_table.lookup(one.va(page))
        one.mm.page_table.set_leaf(one.va(page) >> 15, PmdKind.MIGRATION, old.pfn, old.write)
    else:
        table = one.mm.page_table.lookup(one.va(page))
        table.set_migration(1 << page, 1 << page, 0)
    return pfn


def finish_migration(one, page: int, pfn: int, *, leaf: bool = False) -> None:
    if leaf:
        one.mm.page_table.set_leaf(one.va(page) >> 15, PmdKind.THP, pfn, write=True)
    else:
        one.mm.page_table.lookup(one.va(page)).set_present(1 << page, pfn, 1 << page)
    one.memory.folio_unlock(pfn)


@pytest.mark.breaks_invariants
@pytest.mark.parametrize("leaf", [False, True])
def test_a_migration_is_not_mapped_and_waited_for_when_asked_for(lab, leaf: bool) -> None:
    one = lab(thp="always" if leaf else "never")
    mirror = Mirror(one)
    one.map(8)
    pfn = migrating(one, 0, leaf=leaf)
    assert mirror.words(0, 8)[0] == 0
    task = one.kernel.spawn(mirror.words, 0, 8, READ, name="asker")
    one.kernel.settle()
    assert not task.done
    finish_migration(one, 0, pfn, leaf=leaf)
    assert [word & (V | W) for word in task.join()] == [V | W] * 8
    one.check_quiescent()


# --- PMD leaves


@pytest.mark.parametrize("pmd_order", [3, 9])
def test_a_present_leaf_gives_its_order_and_the_pfn_at_the_offset(lab, pmd_order: int) -> None:
    one = lab(thp="always", pmd_order=pmd_order)
    mirror = Mirror(one)
    nr = one.nr
    one.map(2 * nr, write=False)
    one.write(0, nr)
    head, other = one.pfn(0), one.pfn(nr)
    expected = [V | W | order(one) | head + i for i in range(3, nr)] + [
        V | W | order(one) | other + i for i in range(4)
    ]
    assert mirror.words(3, nr + 1) == expected
    assert mirror.words(3, nr + 1, WRITE) == expected


def test_a_write_request_on_the_huge_zero_page_gets_a_huge_page(lab) -> None:
    one = lab(thp="always")
    mirror = Mirror(one)
    one.map(8, write=False)
    one.read(0)
    zero = one.memory.huge_zero_folio()
    assert mirror.words(2, 3, READ) == [V | order(one) | zero + i for i in (2, 3, 4)]
    # The CLEAR of the exchange hits the subscription.
    assert mirror.errno(2, 3, WRITE) == EBUSY
    assert mirror.words(2, 3, WRITE) == [V | W | order(one) | one.pfn(2) + i for i in range(3)]
    assert one.mm.rss == [8, 0, 0]


def test_a_hole_that_can_be_huge_is_filled_by_one_fault(lab) -> None:
    one = lab(thp="always", pmd_order=9)
    mirror = Mirror(one)
    one.map(512, write=False)
    words = mirror.words(0, 512, WRITE)
    assert one.entry(0).kind is PmdKind.THP
    assert words == [V | W | order(one) | one.pfn(0) + i for i in range(512)]


def device_leaf(one) -> int:
    one.map(8)
    one.device.migrate(one.mm, BASE, BASE + 8 * PAGE)
    assert one.entry(0).kind is PmdKind.PRIVATE
    return one.entry(0).pfn


# --- the loop around it


def test_an_invalidation_before_the_call_is_seen(lab) -> None:
    one = lab()
    mirror = Mirror(one)
    one.map(2)
    range_ = HmmRange(mirror.sub, BASE, BASE + 2 * PAGE, np.zeros(2, np.uint64))
    range_.notifier_seq = one.memory.mmu_interval_read_begin(mirror.sub)
    one.mm.mprotect(BASE, PAGE, PROT_READ)
    with one.mm.mmap_lock.read(), pytest.raises(KernelError) as caught:
        one.memory.hmm_range_fault(range_)
    assert caught.value.errno == EBUSY


def test_the_unlocked_call_takes_the_lock_and_tries_again(lab) -> None:
    one = lab(thp="always")
    mirror = Mirror(one)
    one.map(8, write=False)
    one.read(0)
    words = np.zeros(8, np.uint64)
    range_ = HmmRange(mirror.sub, BASE, BASE + 8 * PAGE, words, WRITE)
    one.memory.hmm_range_fault_unlocked_timeout(range_, 1_000_000)
    assert not one.mm.mmap_lock.is_locked
    assert not one.memory.mmu_interval_read_retry(mirror.sub, range_.notifier_seq)
    assert words.tolist() == [V | W | order(one) | one.pfn(0) + i for i in range(8)]


def test_the_unlocked_call_gives_up_when_its_time_is_over(lab) -> None:
    one = lab()
    mirror = Mirror(one)
    one.map(2)
    device_pages(one, 2)
    calls = []

    def keep(vmf) -> int:
        # A driver whose timeslice is not over, while somebody else invalidates.
        one.kernel.sleep_ns(1_000_000)
        calls.append(vmf.address)
        mirror.sub.invalidate_seq += 2
        one.mm.notifiers.invalidate_seq += 2
        return 0

    one.device.migrate_to_ram = keep
    range_ = HmmRange(mirror.sub, BASE, BASE + 2 * PAGE, np.zeros(2, np.uint64), READ)
    with pytest.raises(KernelError) as caught:
        one.memory.hmm_range_fault_unlocked_timeout(range_, 5_000_000)
    assert str(caught.value) == "-EBUSY: 0x40000000-0x40002000 was invalidated for 5000000 ns"
    assert calls == [BASE, BASE + PAGE] * 3
    assert not one.mm.mmap_lock.is_locked


def test_a_fault_that_mends_nothing_lets_time_pass(lab) -> None:
    one = lab()
    mirror = Mirror(one)
    one.map(1)
    device_pages(one, 1)
    come_home = one.device.migrate_to_ram
    one.device.migrate_to_ram = lambda vmf: 0 if one.kernel.now_ns < 50_000 else come_home(vmf)
    assert mirror.words(0, 1, READ) == [V | W | one.pfn(0)]
    assert 50_000 <= one.kernel.now_ns < 60_000


@pytest.mark.parametrize("pmd_order", [2, 3, 9])
def test_mixed_tables_agree_with_a_page_by_page_reading(lab, pmd_order: int) -> None:
    one = lab(pmd_order=pmd_order)
    nr = one.nr
    one.map(3 * nr, write=False)
    one.write(*range(0, 3 * nr, 3))
    one.read(*range(1, 3 * nr, 5))
    one.device.migrate(one.mm, BASE + PAGE * (nr // 2), BASE + PAGE * (nr + nr // 4))
    one.mm.mprotect(BASE + 2 * nr * PAGE, nr * PAGE, PROT_READ)
    expected = []
    for page in range(3 * nr):
        entry = one.entry(page)
        known = entry.kind in {PteKind.PRESENT, PteKind.PRIVATE}
        expected.append((V | entry.pfn | (W if entry.write else 0)) if known else 0)
    assert Mirror(one).words(0, 3 * nr, owner=one.device.owner) == expected
