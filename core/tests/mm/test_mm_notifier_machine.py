"""Interval notifiers against a second model without sequence numbers, and under random interleavings."""

import pytest
from gpusvm.kernel import Kernel, SeededChoices
from gpusvm.mm import Geometry, MemoryManager
from gpusvm.mm.api import MMU_NOTIFY_CLEAR, MmuNotifierRange
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

PAGE = 4096


class ModelSub:
    """What the second model knows of one subscription."""

    def __init__(self, start: int, end: int, period: int, *, linked: bool) -> None:
        self.start = start
        self.end = end
        self.linked = linked
        self.leaving = False
        self.stamp = period  # the frozen period in which it was last hit or inserted; 0 and below: inserted in peace
        self.calls = 0


class NotifierMachine(RuleBasedStateMachine):
    """Windows open and close, subscriptions come and go, readers read; the model counts frozen periods instead."""

    @initialize()
    def boot(self) -> None:
        self.kernel = Kernel()
        self.memory = MemoryManager(self.kernel, ram_pages=64, geometry=Geometry(pmd_order=2))
        self.mm = self.memory.mm_alloc("p")
        self.subs: list = []  # (real, model)
        self.windows: list = []
        self.waiting: list = []  # (task, model, "read" or "remove")
        self.period = 0  # how many frozen periods there have been
        self.frozen = False
        self.peaceful = 0  # subscriptions inserted in peace have a stamp of their own

    def teardown(self) -> None:
        if hasattr(self, "kernel"):
            self.kernel.close()

    def freeze(self) -> None:
        if not self.frozen:
            self.frozen = True
            self.period += 1

    def invalidate(self, sub, range_, cur_seq) -> bool:
        self.memory.mmu_interval_set_seq(sub, cur_seq)
        self.called.append(sub)
        return True

    @rule(start=st.integers(0, 12), n=st.integers(1, 5))
    def insert(self, start: int, n: int) -> None:
        real = self.memory.mmu_interval_notifier_insert(self.mm, start * PAGE, n * PAGE, self)
        linked = not self.frozen
        if self.windows:
            self.freeze()
            stamp = self.period
        else:
            self.peaceful -= 1
            stamp = self.peaceful
        self.subs.append((real, ModelSub(start, start + n, stamp, linked=linked)))

    @rule(start=st.integers(0, 12), n=st.integers(1, 5))
    def open(self, start: int, n: int) -> None:
        self.called: list = []
        range_ = MmuNotifierRange(self.mm, start * PAGE, (start + n) * PAGE, MMU_NOTIFY_CLEAR)
        assert self.memory.invalidate_range_start(range_) == 0
        hit = [(r, m) for r, m in self.subs if m.linked and m.start < start + n and start < m.end]
        if self.mm.notifiers is None:
            return
        self.windows.append(range_)
        if hit:
            self.freeze()
        assert sorted(map(id, self.called)) == sorted(id(r) for r, _ in hit)
        for _, model in hit:
            model.stamp = self.period

    @precondition(lambda self: self.windows)
    @rule(data=st.data())
    def close(self, data) -> None:
        self.memory.invalidate_range_end(self.windows.pop(data.draw(st.integers(0, len(self.windows) - 1))))
        if not self.windows:
            self.frozen = False
            for _, model in self.subs:
                model.linked = True
        self.kernel.settle()
        for task, _, _ in self.waiting:
            assert task.done == (not self.frozen)
        if not self.frozen:
            self.subs = [(r, m) for r, m in self.subs if not m.leaving]
            self.waiting = []

    @precondition(lambda self: any(not m.leaving for _, m in self.subs))
    @rule(data=st.data())
    def remove(self, data) -> None:
        real, model = data.draw(st.sampled_from([(r, m) for r, m in self.subs if not m.leaving]))
        task = self.kernel.spawn(self.memory.mmu_interval_notifier_remove, real, name="remove")
        self.kernel.settle()
        waits = self.frozen and model.linked
        assert task.done == (not waits)
        if waits:
            model.leaving = True
            self.waiting.append((task, model, "remove"))
        else:
            self.subs.remove((real, model))

    @precondition(lambda self: any(not m.leaving for _, m in self.subs))
    @rule(data=st.data())
    def read(self, data) -> None:
        real, model = data.draw(st.sampled_from([(r, m) for r, m in self.subs if not m.leaving]))
        task = self.kernel.spawn(self.memory.mmu_interval_read_begin, real, name="read")
        self.kernel.settle()
        waits = self.frozen and model.stamp == self.period
        assert task.done == (not waits)
        if waits:
            self.waiting.append((task, model, "read"))
        else:
            assert not self.memory.mmu_interval_read_retry(real, task.result)

    @invariant()
    def counts_agree(self) -> None:
        subs = getattr(self, "mm", None) and self.mm.notifiers
        if not subs:
            return
        assert subs.active_invalidate_ranges == len(self.windows)
        assert bool(subs.invalidate_seq & 1) == self.frozen
        assert all(real.invalidate_seq & 1 for real, _ in self.subs)
        assert all(real.in_tree == model.linked for real, model in self.subs)
        assert bool(subs.deferred_list) <= self.frozen


NotifierMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestNotifierMachine = NotifierMachine.TestCase


class Watch:
    """Check invariants 36 to 39 at every yield point."""

    def __init__(self, mm) -> None:
        self.mm = mm
        self.last = 2
        self.steps = 0
        self.open: list = []

    def window_opened(self, range_) -> None:
        self.open.append(range_)

    def window_closed(self, range_) -> None:
        self.open.remove(range_)

    def step(self, task, operation, what) -> None:
        subs = self.mm.notifiers
        if subs is None:
            return
        self.steps += 1
        seq = subs.invalidate_seq
        assert subs.active_invalidate_ranges == len(self.open)
        assert seq >= self.last
        self.last = seq
        assert not seq & 1 or subs.active_invalidate_ranges
        assert seq & 1 or not subs.deferred_list
        for sub in subs.deferred_list:
            assert sub.deferred
        for subs_of_a_size in subs.itree.by_size.values():
            for _, _, sub in subs_of_a_size:
                assert sub.in_tree
                assert sub.invalidate_seq & 1
                assert sub.invalidate_seq <= seq


@pytest.mark.parametrize("seed", range(40))
def test_random_interleavings_keep_the_invariants(seed: int) -> None:
    choices = SeededChoices(seed)
    kernel = Kernel(mode="explored", choices=choices)
    memory = MemoryManager(kernel, ram_pages=64, geometry=Geometry(pmd_order=2))
    mm = memory.mm_alloc("p")
    kernel.observer = watch = Watch(mm)
    driver_lock = kernel.mutex("driver")
    gone: list = []
    told: dict = {}  # window -> subscriptions whose callback has run, while it is open

    class Driver:
        def invalidate(self, sub, range_, cur_seq) -> bool:
            assert sub not in gone
            with driver_lock:
                memory.mmu_interval_set_seq(sub, cur_seq)
                told.setdefault(id(range_), []).append(sub)
            kernel.cond_resched()
            assert sub not in gone
            return True

    ops = Driver()

    def invalidator(start: int, n: int) -> None:
        for k in range(3):
            range_ = MmuNotifierRange(mm, (start + k) * PAGE, (start + k + n) * PAGE, MMU_NOTIFY_CLEAR)
            assert memory.invalidate_range_start(range_) == 0
            kernel.cond_resched()
            told.pop(id(range_), None)
            memory.invalidate_range_end(range_)

    def reader(start: int, n: int) -> None:
        sub = memory.mmu_interval_notifier_insert(mm, start * PAGE, n * PAGE, ops)
        for _ in range(4):
            seq = memory.mmu_interval_read_begin(sub)
            kernel.cond_resched()
            with driver_lock:
                if not memory.mmu_interval_read_retry(sub, seq):
                    # Invariant 44: no window that has told this subscription is open.
                    assert not any(sub in subs for subs in told.values())
        memory.mmu_interval_notifier_remove(sub)
        gone.append(sub)

    base = memory.mmu_interval_notifier_insert(mm, 0, 64 * PAGE, ops)
    tasks = [
        kernel.spawn(invalidator, 0, 4, name="zap a"),
        kernel.spawn(invalidator, 2, 1, name="zap b"),
        kernel.spawn(reader, 1, 2, name="read a"),
        kernel.spawn(reader, 3, 4, name="read b"),
        kernel.spawn(reader, 20, 1, name="read c"),
    ]
    for task in tasks:
        task.join()
    memory.mmu_interval_notifier_remove(base)
    assert watch.steps > 50
    assert mm.mm_count == 1
    assert mm.notifiers.itree.count == 0
    kernel.close()
