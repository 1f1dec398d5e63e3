"""userfaultfd: who waits for a page that the process itself brings, who cannot, and what is not filled meanwhile."""

from errno import EEXIST, EFAULT, EINTR, EINVAL, ENOENT, ENOMEM, EPERM

import numpy as np
import pytest
from gpusvm.errors import CpuSignal, KernelError, ModelError
from gpusvm.kernel import SeededChoices
from gpusvm.mm.api import (
    HMM_PFN_REQ_FAULT,
    HMM_PFN_REQ_WRITE,
    HMM_PFN_VALID,
    HMM_PFN_WRITE,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    VM_MAYWRITE,
    VM_SHARED,
    VM_UFFD_MISSING,
    HmmRange,
)
from gpusvm.mm.mm_struct import MMF_UNSTABLE
from gpusvm.mm.pgtable import PmdKind, PteKind
from gpusvm.mm.userfaultfd import Userfaultfd

PAGE = 4096
BASE = 1 << 30
V, W = HMM_PFN_VALID, HMM_PFN_WRITE
READ = HMM_PFN_REQ_FAULT
WRITE = HMM_PFN_REQ_FAULT | HMM_PFN_REQ_WRITE


def watched(one, n: int, *, at: int = 0) -> Userfaultfd:
    """Map pages without touching them and register them."""
    one.map(n, at=at, write=False)
    uffd = Userfaultfd(one.memory, one.mm)
    uffd.register(one.va(at), n * PAGE)
    return uffd


def monitor(one, uffd: Userfaultfd, faults: int) -> list:
    """Answer so many faults, each with a page of its own contents; the faults."""
    seen = []
    for _ in range(faults):
        msg = uffd.read()
        seen.append(((msg.address - BASE) // PAGE, msg.write))
        uffd.copy(msg.address, one.memory.contents.new_tokens(1, writer=7))
    return seen


def error(call, *args, **kwargs) -> int:
    with pytest.raises(KernelError) as caught:
        call(*args, **kwargs)
    return caught.value.errno


class Asker:
    """Call hmm_range_fault, with the lock or without."""

    def __init__(self, one) -> None:
        self.one = one
        self.sub = one.memory.mmu_interval_notifier_insert(one.mm, 0, 1 << 46, self)

    def invalidate(self, sub, range_, cur_seq) -> bool:
        sub.invalidate_seq = cur_seq
        return True

    def range(self, n: int, default: int) -> HmmRange:
        return HmmRange(self.sub, BASE, BASE + n * PAGE, np.zeros(n, np.uint64), default)

    def locked(self, n: int, default: int) -> list[int]:
        range_ = self.range(n, default)
        range_.notifier_seq = self.one.memory.mmu_interval_read_begin(self.sub)
        with self.one.mm.mmap_lock.read():
            self.one.memory.hmm_range_fault(range_)
        return range_.hmm_pfns.tolist()

    def unlocked(self, n: int, default: int, timeout_ns: int = 0) -> list[int]:
        range_ = self.range(n, default)
        self.one.memory.hmm_range_fault_unlocked_timeout(range_, timeout_ns)
        assert not self.one.memory.mmu_interval_read_retry(self.sub, range_.notifier_seq)
        return range_.hmm_pfns.tolist()


# --- CPU faults


@pytest.mark.parametrize("thp", ["never", "always"])
@pytest.mark.parametrize("write", [False, True])
def test_a_cpu_waits_for_its_page_without_mmap_lock(lab, thp: str, write: bool) -> None:
    one = lab(thp=thp)
    uffd = watched(one, 8)
    task = one.kernel.spawn(one.write if write else one.read, 3, name="cpu")
    one.kernel.settle()
    assert not task.done
    assert not one.mm.mmap_lock.is_locked
    assert monitor(one, uffd, 1) == [(3, write)]
    (token,) = task.join()
    entry = one.entry(3)
    assert (entry.kind, entry.write) == (PteKind.PRESENT, True)
    assert token & 0xFF == (0 if write else 7)  # who wrote last: the monitor, or the CPU then
    assert one.mm.rss == [1, 0, 0]
    one.check_quiescent()
    one.finish()


def test_a_page_that_comes_without_a_wake_leaves_the_waiter_waiting(lab) -> None:
    one = lab()
    uffd = watched(one, 2)
    task = one.kernel.spawn(one.read, 0, name="cpu")
    one.kernel.settle()
    assert uffd.copy(BASE, one.memory.contents.new_tokens(1), wake=False) == PAGE
    one.kernel.settle()
    assert not task.done
    uffd.wake(BASE, PAGE)
    task.join()
    # Woken without a page, it faults again.
    task = one.kernel.spawn(one.read, 1, name="cpu")
    one.kernel.settle()
    uffd.wake(one.va(1), PAGE)
    one.kernel.settle()
    assert not task.done
    assert uffd.zeropage(one.va(1), PAGE) == PAGE
    assert task.join() == [0]
    assert one.entry(1).zero


def test_several_wait_for_one_page(lab) -> None:
    one = lab()
    uffd = watched(one, 1)
    tasks = [one.kernel.spawn(one.read, 0, name=f"cpu{i}") for i in range(3)]
    one.kernel.settle()
    assert len(uffd.faults) == 3
    uffd.copy(BASE, one.memory.contents.new_tokens(1))
    assert len({task.join()[0] for task in tasks}) == 1
    assert uffd.faults == []


def test_a_killed_waiter_goes(lab) -> None:
    one = lab()
    uffd = watched(one, 1)

    def touch() -> int:
        with pytest.raises(CpuSignal) as caught:
            one.read(0)
        return caught.value.signal

    task = one.kernel.spawn(touch, name="cpu")
    one.kernel.settle()
    task.kill()
    assert task.join() == 9
    assert uffd.faults == []
    assert not one.mm.mmap_lock.is_locked


def test_the_end_of_the_monitor_lets_everybody_go(lab) -> None:
    one = lab()
    uffd = watched(one, 2)
    task = one.kernel.spawn(one.read, 0, name="cpu")
    reader = one.kernel.spawn(lambda: [uffd.read(), uffd.read()], name="monitor")
    one.kernel.settle()
    uffd.close()
    assert task.join() == [0]
    found = reader.join()
    assert (found[0].address, found[1]) == (BASE, None)
    assert not one.mm.vmas[0].flags & VM_UFFD_MISSING
    one.write(0, 1)
    one.finish()


def test_unregistering_lets_go_of_the_range(lab) -> None:
    one = lab()
    uffd = watched(one, 4)
    task = one.kernel.spawn(one.write, 1, name="cpu")
    one.kernel.settle()
    uffd.unregister(BASE, 2 * PAGE)
    task.join()
    assert [(vma.start, vma.end, bool(vma.flags & VM_UFFD_MISSING)) for vma in one.mm.vmas] == [
        (BASE, one.va(2), False),
        (one.va(2), one.va(4), True),
    ]
    assert error(uffd.copy, BASE, one.memory.contents.new_tokens(1)) == ENOENT
    one.check_quiescent()


def test_batches_of_accesses_do_not_fill_watched_pages(lab) -> None:
    one = lab()
    uffd = watched(one, 8)
    first = BASE // PAGE

    def touch() -> None:
        one.memory.cpu_access(one.mm, np.arange(first, first + 8), np.ones(8, np.bool_))

    task = one.kernel.spawn(touch, name="cpu")
    assert monitor(one, uffd, 8) == [(i, True) for i in range(8)]
    task.join()
    one.check_quiescent()


# --- devices: hmm and migration


@pytest.mark.parametrize("thp", ["never", "always"])
def test_hmm_with_the_lock_cannot_wait(lab, thp: str) -> None:
    # handle_userfault without ALLOW_RETRY: SIGBUS, and so EFAULT (mm.md §4.5).
    one = lab(thp=thp)
    watched(one, 8)
    asker = Asker(one)
    assert asker.locked(8, 0) == [0] * 8
    assert error(asker.locked, 8, READ) == EFAULT
    assert error(asker.locked, 8, WRITE) == EFAULT
    assert one.mm.rss == [0, 0, 0]


@pytest.mark.parametrize("default", [READ, WRITE])
def test_hmm_without_the_lock_waits(lab, default: int) -> None:
    # hmm-test userfaultfd_read: four pages, each brought by the monitor.
    one = lab()
    uffd = watched(one, 4)
    asker = Asker(one)
    task = one.kernel.spawn(asker.unlocked, 4, default, name="device")
    assert monitor(one, uffd, 4) == [(i, default == WRITE) for i in range(4)]
    assert task.join() == [V | W | one.pfn(i) for i in range(4)]
    assert not one.mm.mmap_lock.is_locked
    one.check_quiescent()


def test_hmm_without_the_lock_is_told_of_a_signal(lab) -> None:
    one = lab()
    watched(one, 2)
    asker = Asker(one)
    task = one.kernel.spawn(error, asker.unlocked, 2, READ, name="device")
    one.kernel.settle()
    task.kill()
    assert task.join() == EINTR
    assert not one.mm.mmap_lock.is_locked


def test_the_time_begins_anew_when_the_lock_was_given_up(lab) -> None:
    # hmm_range_fault_unlocked_timeout: only rounds that keep the lock use the time up.
    one = lab()
    uffd = watched(one, 3)
    asker = Asker(one)
    task = one.kernel.spawn(asker.unlocked, 3, READ, 1_000_000, name="device")
    for page in range(3):
        one.kernel.sleep_ns(900_000)
        msg = uffd.read()
        assert msg.address == one.va(page)
        uffd.copy(msg.address, one.memory.contents.new_tokens(1))
    assert task.join() == [V | W | one.pfn(i) for i in range(3)]


def test_a_reaped_address_space_is_no_place_to_wait(lab) -> None:
    one = lab()
    watched(one, 1)
    one.mm.flags |= MMF_UNSTABLE
    assert error(Asker(one).unlocked, 1, READ) == EFAULT
    one.mm.flags &= ~MMF_UNSTABLE


def test_get_user_pages(lab) -> None:
    one = lab()
    uffd = watched(one, 2)
    with one.mm.mmap_lock.read():
        assert error(one.memory.get_user_pages, one.mm, BASE, 1) == EFAULT
    task = one.kernel.spawn(one.memory.get_user_pages_fast, one.mm, BASE, 2, name="getter")
    assert monitor(one, uffd, 2) == [(0, False), (1, False)]
    pfns = task.join().tolist()
    assert pfns == [one.pfn(0), one.pfn(1)]
    for pfn in pfns:
        one.memory.folio_put(pfn)
    one.check_quiescent()


@pytest.mark.parametrize("thp", ["never", "always"])
def test_holes_that_are_watched_are_not_filled_by_migration(lab, thp: str) -> None:
    # §6.7: userfaultfd-missing VMA -> abort; the monitor is not asked.
    one = lab(thp=thp)
    uffd = watched(one, 8)
    args = one.device.migrate(one.mm, BASE, BASE + 8 * PAGE)
    assert [int(word) & 2 for word in args.src[:8]] == [0] * 8
    assert (one.entry(0).kind, one.device.live, uffd.faults) == (PteKind.NONE, {}, [])
    uffd.copy(one.va(2), one.memory.contents.new_tokens(1))
    args = one.device.migrate(one.mm, BASE, BASE + 8 * PAGE)
    assert one.entry(2).kind is PteKind.PRIVATE
    assert len(one.device.live) == 1
    one.read(2)
    one.check_quiescent()


def test_fault_in_explored_mode_finds_every_order(lab) -> None:
    for seed in range(40):
        one = lab(mode="explored", choices=SeededChoices(seed))
        uffd = watched(one, 2)
        tasks = [one.kernel.spawn(one.read, page, name=f"cpu{page}") for page in (0, 1, 0)]

        def answer(one=one, uffd=uffd) -> None:
            for page in (1, 0):
                uffd.copy(one.va(page), one.memory.contents.new_tokens(1))

        tasks.append(one.kernel.spawn(answer, name="monitor"))
        for task in tasks:
            task.join()
        one.check_quiescent()


# --- the monitor's errors, registrations


def test_copy_errors(lab) -> None:
    one = lab(thp="always")
    uffd = watched(one, 4)
    new = one.memory.contents.new_tokens
    assert uffd.copy(one.va(1), new(1)) == PAGE
    assert error(uffd.copy, one.va(1), new(1)) == EEXIST
    # What was done before the error is told instead of it.
    assert uffd.copy(BASE, new(4)) == PAGE
    assert error(uffd.copy, one.va(3), new(2)) == ENOENT
    assert error(uffd.copy, one.va(9), new(1)) == ENOENT
    assert error(uffd.copy, BASE + 1, new(1)) == EINVAL
    one.kernel.arm("alloc.folio")
    assert error(uffd.copy, one.va(3), new(1)) == ENOMEM
    one.read(0, 1)
    one.map(8, at=8)
    uffd.register(one.va(8), 8 * PAGE)
    assert one.entry(8).kind is PmdKind.THP
    assert error(uffd.copy, one.va(9), new(1)) == EEXIST


def test_register_errors(lab) -> None:
    one = lab()
    one.map(2, at=4, write=False)
    uffd = Userfaultfd(one.memory, one.mm)
    assert error(uffd.register, BASE, 2 * PAGE) == EINVAL  # an area, but behind the range
    assert error(uffd.register, one.va(9), PAGE) == ENOMEM
    assert error(uffd.register, BASE, 0) == EINVAL
    one.mm.mmap(one.va(6), PAGE, 3, flags=VM_SHARED)
    assert error(uffd.register, one.va(4), 4 * PAGE) == EINVAL
    one.mm.vmas[0].flags &= ~VM_MAYWRITE
    assert error(uffd.register, one.va(4), PAGE) == EPERM
    with pytest.raises(ModelError, match="p has a userfaultfd"):
        Userfaultfd(one.memory, one.mm)


def test_gaps_are_registered_over_and_areas_are_cut_and_joined(lab) -> None:
    one = lab()
    one.map(4, write=False)
    one.map(4, at=6, write=False)
    uffd = Userfaultfd(one.memory, one.mm)
    uffd.register(one.va(2), 6 * PAGE)
    marks = [
        ((vma.start - BASE) // PAGE, (vma.end - BASE) // PAGE, bool(vma.flags & VM_UFFD_MISSING)) for vma in one.mm.vmas
    ]
    assert marks == [(0, 2, False), (2, 4, True), (6, 8, True), (8, 10, False)]
    uffd.close()
    assert [(vma.end - vma.start) // PAGE for vma in one.mm.vmas] == [4, 4]


def test_children_and_moved_areas_are_not_watched(lab) -> None:
    one = lab()
    uffd = watched(one, 4)
    uffd.copy(BASE, one.memory.contents.new_tokens(1))
    child = one.mm.fork("c")
    assert not any(vma.flags & VM_UFFD_MISSING for vma in child.vmas)
    one.memory.cpu_write(child, one.va(1))
    one.mm.mremap(BASE, 4 * PAGE, 4 * PAGE, flags=MREMAP_MAYMOVE | MREMAP_FIXED, new_addr=one.va(8))
    assert not any(vma.flags & VM_UFFD_MISSING for vma in one.mm.vmas)
    one.write(8, 9)
    child.exit()
    one.check_quiescent()
