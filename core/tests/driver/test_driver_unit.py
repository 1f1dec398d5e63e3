"""The two fault units: what is read under a sequence number is written only if nothing was invalidated since."""

import attrs
import pytest
from gpusvm.driver import Capabilities, DriverInfo, NotifierWindow
from gpusvm.kernel import Kernel
from gpusvm.mm import MemoryManager

PAGE, BASE = 4096, 1 << 30


class Ops:
    """Zap under the lock, as nouveau and dmirror do, and let readers know."""

    def __init__(self, memory, lock):
        self.memory = memory
        self.lock = lock
        self.seen = []
        self.invalidate_start = None
        self.invalidate_finish = None

    def invalidate(self, sub, range_, cur_seq):
        with self.lock:
            self.memory.mmu_interval_set_seq(sub, cur_seq)
            self.seen.append((range_.start, range_.end))
        return True


@pytest.fixture
def place():
    kernel = Kernel()
    memory = MemoryManager(kernel, ram_pages=4096)
    mm = memory.mm_alloc("unit")
    mm.mmap(BASE, 16 * PAGE, 3)
    memory.cpu_write(mm, BASE)
    lock = kernel.mutex("driver")
    yield memory, mm, Ops(memory, lock), lock
    mm.mmput()
    kernel.settle()
    kernel.ledger.assert_empty()


def test_a_quiet_window_commits(place):
    memory, mm, ops, lock = place
    window = NotifierWindow.open(memory, mm, start=BASE, end=BASE + PAGE, ops=ops, lock=lock)
    written = []
    window.begin()
    assert window.commit(lambda: written.append(lock.locked)) is True
    assert written == [True]
    window.close()


def test_an_invalidation_in_between_refuses_the_commit_and_a_new_section_works(place):
    memory, mm, ops, lock = place
    window = NotifierWindow.open(memory, mm, start=BASE, end=BASE + PAGE, ops=ops, lock=lock)
    written = []
    window.begin()
    mm.mprotect(BASE, PAGE, 1)
    assert ops.seen == [(BASE, BASE + PAGE)]
    assert window.commit(lambda: written.append(1)) is False
    assert written == []
    window.begin()
    assert window.commit(lambda: written.append(2)) is True
    assert written == [2]
    window.close()


def test_a_window_of_its_own_unsubscribes_when_it_closes(place):
    memory, mm, ops, lock = place
    window = NotifierWindow.open(memory, mm, start=BASE, end=BASE + PAGE, ops=ops, lock=lock)
    window.close()
    window.close()
    mm.mprotect(BASE, PAGE, 1)
    assert ops.seen == []


def test_a_window_around_a_kept_subscription_leaves_it(place):
    memory, mm, ops, lock = place
    kept = memory.mmu_interval_notifier_insert(mm, 0, 1 << 40, ops)
    window = NotifierWindow(memory, kept, start=BASE, end=BASE + PAGE, lock=lock)
    window.begin()
    window.close()
    mm.mprotect(BASE, PAGE, 1)
    assert len(ops.seen) == 1
    memory.mmu_interval_notifier_remove(kept)


def test_every_capability_has_to_be_declared():
    for each in attrs.fields(Capabilities):
        assert each.default is attrs.NOTHING, each.name
    with pytest.raises(TypeError, match="missing 14 required keyword-only arguments"):
        Capabilities()


def test_of_a_driver_info_only_what_it_refuses_knows_and_leaves_to_users_is_optional():
    optional = [each.name for each in attrs.fields(DriverInfo) if each.default is not attrs.NOTHING]
    assert optional == [
        "refuse",
        "refusals",
        "with_settings",
        "tiles_max",
        "integrated",
        "awake_with_pages",
        "registered_only",
        "strategies",
        "unload",
    ]
