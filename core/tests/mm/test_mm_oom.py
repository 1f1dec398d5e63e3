"""The OOM reaper: what it takes, what can stop it, and what the process meets afterwards (mm/oom_kill.c)."""

from errno import EAGAIN, EFAULT

import numpy as np
import pytest
from gpusvm.errors import CpuSignal, KernelError
from gpusvm.mm.api import (
    HMM_PFN_REQ_FAULT,
    MMU_NOTIFY_NAMES,
    PROT_READ,
    VM_IO,
    VM_PFNMAP,
    VM_SHARED,
    HmmRange,
)
from gpusvm.mm.mm_struct import MMF_OOM_SKIP, MMF_UNSTABLE
from gpusvm.mm.pgtable import PteKind

PAGE = 4096
BASE = 1 << 30
SIGBUS = 7


class Stubborn:
    """A device that cannot let go of some ranges at once, as drm_gpusvm cannot of any (its invalidate wants a lock)."""

    def __init__(self, one, log: list, *, vetoes: int = 0, within: tuple[int, int] = (0, 1 << 40)) -> None:
        self.one = one
        self.log = log
        self.vetoes = vetoes
        self.within = within
        self.sub = one.memory.mmu_interval_notifier_insert(one.mm, 0, 1 << 46, self)

    def invalidate(self, sub, range_, cur_seq) -> bool:
        first, end = (range_.start - BASE) // PAGE, (range_.end - BASE) // PAGE
        self.log.append((MMU_NOTIFY_NAMES[range_.event], first, end, range_.blockable))
        if not range_.blockable and self.vetoes and self.within[0] <= first < self.within[1]:
            self.vetoes -= 1
            return False
        self.one.memory.mmu_interval_set_seq(sub, cur_seq)
        return True

    def gone(self) -> None:
        self.one.memory.mmu_interval_notifier_remove(self.sub)


def three_areas(one) -> None:
    one.map(4)
    one.map(4, at=8, prot=PROT_READ, write=False)
    one.map(8, at=16)


def test_t23_the_last_area_first_and_nobody_may_block(lab) -> None:
    one = lab()
    three_areas(one)
    one.device.migrate(one.mm, one.va(16), one.va(20))
    log = []
    watcher = Stubborn(one, log)
    before = one.kernel.now_ns
    assert one.memory.oom_reap(one.mm)
    assert log == [("CLEAR", 16, 24, False), ("CLEAR", 8, 12, False), ("CLEAR", 0, 4, False)]
    assert one.mm.rss == [0, 0, 0]
    assert not one.device.live
    assert one.mm.flags == MMF_UNSTABLE | MMF_OOM_SKIP
    assert len(one.mm.vmas) == 3
    assert one.kernel.now_ns == before
    watcher.gone()
    one.finish()


def test_a_veto_saves_an_area_until_the_next_attempt(lab) -> None:
    one = lab()
    three_areas(one)
    before = [one.entry(page) for page in range(16, 24)]
    log = []
    watcher = Stubborn(one, log, vetoes=1, within=(16, 24))
    subs = one.mm.notifiers
    assert not one.memory.oom_reap_task_mm(one.mm)
    assert log == [("CLEAR", 16, 24, False), ("CLEAR", 8, 12, False), ("CLEAR", 0, 4, False)]
    # After the refusal nothing had changed, and nothing is left open.
    assert [one.entry(page) for page in range(16, 24)] == before
    assert one.entry(0).kind is PteKind.NONE
    assert subs.active_invalidate_ranges == 0
    assert not subs.is_invalidating
    assert one.mm.rss == [8, 0, 0]
    assert not one.mm.flags & MMF_OOM_SKIP
    assert one.memory.oom_reap(one.mm)
    assert one.mm.rss == [0, 0, 0]
    watcher.gone()
    one.finish()


def test_after_ten_attempts_the_rest_is_left_to_exit(lab) -> None:
    one = lab()
    one.map(4)
    log = []
    watcher = Stubborn(one, log, vetoes=100)
    before = one.kernel.now_ns
    assert not one.memory.oom_reap(one.mm)
    assert log == [("CLEAR", 0, 4, False)] * 10
    assert one.kernel.now_ns - before == 9 * 100_000_000
    assert one.mm.flags == MMF_UNSTABLE | MMF_OOM_SKIP
    # What it has it may still use.
    one.read(*range(4))
    one.write(1)
    assert one.memory.oom_reap(one.mm)  # nothing is tried any more
    assert len(log) == 10
    watcher.gone()
    one.finish()


def test_a_classic_notifier_can_refuse_too(lab) -> None:
    one = lab()
    one.map(4)

    class Classic:
        refuse = True
        invalidate_range_end = None
        release = None

        def invalidate_range_start(self, range_) -> int:
            return -EAGAIN if self.refuse and not range_.blockable else 0

    notifier = Classic()
    one.memory.mmu_notifier_register(notifier, one.mm)
    assert not one.memory.oom_reap_task_mm(one.mm)
    assert one.mm.rss == [4, 0, 0]
    notifier.refuse = False
    assert one.memory.oom_reap_task_mm(one.mm)
    assert one.mm.rss == [0, 0, 0]
    one.memory.mmu_notifier_unregister(notifier, one.mm)
    one.finish()


def test_shared_memory_and_what_a_driver_maps_are_spared(lab) -> None:
    one = lab()
    one.mm.mmap(BASE, 4 * PAGE, 3, flags=VM_SHARED)
    one.mm.mmap(one.va(8), 4 * PAGE, 3, flags=VM_IO | VM_PFNMAP)
    one.map(4, at=16)
    one.write(0)
    log = []
    watcher = Stubborn(one, log)
    assert one.memory.oom_reap(one.mm)
    assert log == [("CLEAR", 16, 20, False)]
    assert one.mm.rss == [0, 0, 1]
    watcher.gone()
    one.finish()


def test_a_writer_is_not_waited_for(lab) -> None:
    one = lab()
    one.map(4)
    with one.mm.mmap_lock.write():
        assert not one.memory.oom_reap_task_mm(one.mm)
    assert one.mm.flags == 0
    one.mm.mmap_lock.down_write()
    before = one.kernel.now_ns
    reaper = one.kernel.spawn(one.memory.oom_reap, one.mm, name="oom_reaper")
    one.kernel.run_until(before + 250_000_000)
    assert one.mm.rss == [4, 0, 0]
    one.mm.mmap_lock.up_write()
    assert reaper.join()
    assert one.kernel.now_ns - before == 300_000_000
    assert one.mm.rss == [0, 0, 0]
    one.finish()


def test_after_the_end_there_is_nothing_to_reap(lab) -> None:
    one = lab()
    one.map(4)
    one.mm.mmgrab()
    one.mm.exit()
    assert one.mm.flags == MMF_OOM_SKIP
    assert one.memory.oom_reap(one.mm)
    assert one.mm.flags == MMF_OOM_SKIP
    one.mm.mmdrop()


@pytest.mark.parametrize("thp", ["never", "always"])
@pytest.mark.parametrize("write", [False, True])
def test_what_was_reaped_comes_back_for_nobody(lab, thp: str, write: bool) -> None:
    one = lab(thp=thp)
    one.map(8)
    assert one.memory.oom_reap(one.mm)
    with pytest.raises(CpuSignal) as caught:
        (one.write if write else one.read)(3)
    assert caught.value.signal == SIGBUS
    one.finish()


def test_devices_get_nothing_either(lab) -> None:
    one = lab()
    one.map(8)
    watcher = Stubborn(one, [])
    assert one.memory.oom_reap(one.mm)
    range_ = HmmRange(watcher.sub, BASE, one.va(8), np.zeros(8, np.uint64), default_flags=HMM_PFN_REQ_FAULT)
    with pytest.raises(KernelError) as caught:
        one.memory.hmm_range_fault_unlocked_timeout(range_, 0)
    assert caught.value.errno == EFAULT
    # Holes are not filled.
    args = one.device.migrate(one.mm, BASE, one.va(8))
    assert not (args.src & 2).any()
    assert not one.device.live
    assert one.mm.rss == [0, 0, 0]
    watcher.gone()
    one.finish()
