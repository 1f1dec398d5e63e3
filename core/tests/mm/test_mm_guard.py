"""Guard regions: markers that nobody may touch, put there and taken away by madvise."""

from errno import EFAULT, EINVAL, ENOMEM

import numpy as np
import pytest
from gpusvm.errors import CpuSignal, KernelError
from gpusvm.mm.api import (
    HMM_PFN_REQ_FAULT,
    MADV_DONTNEED,
    MADV_GUARD_INSTALL,
    MADV_GUARD_REMOVE,
    VM_SHARED,
    HmmRange,
)
from gpusvm.mm.pgtable import PteKind

PAGE = 4096
BASE = 1 << 30
GUARD = PteKind.MARKER_GUARD


def advise(one, page: int, n: int, advice: int) -> None:
    one.mm.madvise(one.va(page), n * PAGE, advice)


def kinds(one, n: int, mm=None) -> str:
    letters = {PteKind.NONE: "-", PteKind.PRESENT: "p", PteKind.PRIVATE: "d", GUARD: "g"}
    return "".join(letters[one.entry(i, mm).kind] for i in range(n))


def test_guards_discard_what_is_there_and_are_no_event_where_nothing_is(lab) -> None:
    one = lab()
    one.watch()
    one.map(8)
    one.device.migrate(one.mm, one.va(4), one.va(6))
    one.events.clear()
    advise(one, 2, 3, MADV_GUARD_INSTALL)
    assert one.events == [("p", "CLEAR", 2, 5, "-")]
    assert (kinds(one, 8), one.mm.rss) == ("ppgggdpp", [5, 0, 0])
    advise(one, 2, 3, MADV_GUARD_INSTALL)
    assert len(one.events) == 1
    one.map(4, at=16, write=False)
    advise(one, 16, 4, MADV_GUARD_INSTALL)
    assert len(one.events) == 1
    for page in (2, 4, 17):
        for touch in (one.read, one.write):
            with pytest.raises(CpuSignal) as caught:
                touch(page)
            assert caught.value.signal == 11
    one.read(0, 1, 5, 6, 7)
    one.check_quiescent()
    one.finish()


def test_a_block_is_cut_around_a_guard(lab) -> None:
    one = lab(thp="always")
    one.watch()
    one.map(8)
    advise(one, 3, 1, MADV_GUARD_INSTALL)
    # The zap splits the PMD inside its own window.
    assert [event[:4] for event in one.events] == [("p", "CLEAR", 3, 4), ("p", "CLEAR", 0, 8)]
    assert kinds(one, 8) == "pppgpppp"
    one.read(0, 1, 2, 4)


def test_removing_leaves_the_rest(lab) -> None:
    one = lab()
    one.map(4)
    advise(one, 1, 2, MADV_GUARD_INSTALL)
    one.watch()
    advise(one, 0, 4, MADV_GUARD_REMOVE)
    assert (kinds(one, 4), one.events) == ("p--p", [])
    one.write(1)
    one.read(0, 1, 2, 3)
    one.check_quiescent()


def test_guards_outlive_a_discard_and_reach_children(lab) -> None:
    one = lab()
    one.map(4, write=False)
    advise(one, 1, 1, MADV_GUARD_INSTALL)
    advise(one, 0, 4, MADV_DONTNEED)
    assert kinds(one, 4) == "-g--"
    child = one.mm.fork("c")
    assert kinds(one, 4, child) == "-g--"
    child.exit()
    one.mm.munmap(BASE, 4 * PAGE)
    one.map(4)
    assert kinds(one, 4) == "pppp"
    one.finish()


def test_devices_cannot_have_them(lab) -> None:
    one = lab()
    one.map(4, write=False)
    advise(one, 1, 1, MADV_GUARD_INSTALL)
    args = one.device.migrate(one.mm, BASE, one.va(4))
    assert [int(word) & 2 for word in args.src[:4]] == [2, 0, 2, 2]
    assert kinds(one, 4) == "dgdd"

    class Ops:
        def invalidate(self, sub, range_, cur_seq) -> bool:
            return True

    sub = one.memory.mmu_interval_notifier_insert(one.mm, 0, 1 << 46, Ops())
    range_ = HmmRange(sub, BASE, one.va(4), np.zeros(4, np.uint64), HMM_PFN_REQ_FAULT, 0, one.device.owner)
    range_.notifier_seq = one.memory.mmu_interval_read_begin(sub)
    with one.mm.mmap_lock.read(), pytest.raises(KernelError) as caught:
        one.memory.hmm_range_fault(range_)
    assert (caught.value.errno, str(caught.value)) == (EFAULT, "-EFAULT: the entry at 0x40001000 is MARKER_GUARD")
    with one.mm.mmap_lock.read(), pytest.raises(KernelError) as caught:
        one.memory.get_user_pages(one.mm, one.va(1), 1)
    assert caught.value.errno == EFAULT


def test_areas_that_have_no_guards(lab) -> None:
    one = lab()
    one.mm.mmap(BASE, 2 * PAGE, 3, flags=VM_SHARED)
    for advice in (MADV_GUARD_INSTALL, MADV_GUARD_REMOVE):
        with pytest.raises(KernelError) as caught:
            advise(one, 0, 1, advice)
        assert caught.value.errno == EINVAL
    one.map(2, at=8, write=False)
    one.kernel.arm("alloc.pte_table")
    with pytest.raises(KernelError) as caught:
        advise(one, 8, 1, MADV_GUARD_INSTALL)
    assert caught.value.errno == ENOMEM
