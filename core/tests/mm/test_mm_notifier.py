"""The collision-retry protocol of interval notifiers, row by row, and classic notifiers."""

from errno import EAGAIN, EINVAL, EOVERFLOW

import pytest
from gpusvm.errors import KernelError, LockdepError, ModelError
from gpusvm.kernel import Kernel
from gpusvm.mm import Geometry, MemoryManager
from gpusvm.mm.api import (
    MMU_NOTIFIER_RANGE_BLOCKABLE,
    MMU_NOTIFY_CLEAR,
    MMU_NOTIFY_NAMES,
    MMU_NOTIFY_UNMAP,
    MmuNotifierRange,
)
from gpusvm.mm.mmu_notifier import IntervalTree, MmuIntervalNotifier, notifier_end, notifier_start

PAGE = 4096
RW = 3


class Ops:
    """Set the sequence and write down who was called; `answer` and `during` let a test interfere."""

    def __init__(self, name: str, log: list, *, answer: bool = True, during=None) -> None:
        self.name = name
        self.log = log
        self.answer = answer
        self.during = during

    def invalidate(self, sub, range_, cur_seq) -> bool:
        self.log.append((self.name, MMU_NOTIFY_NAMES[range_.event], range_.start, range_.end, cur_seq))
        if self.during is not None:
            self.during(sub, range_)
        if self.answer:
            sub.invalidate_seq = cur_seq
        return self.answer


class Classic:
    def __init__(self, name: str, log: list, *, answer: int = 0, end: bool = True) -> None:
        self.name = name
        self.log = log
        self.answer = answer
        if not end:
            self.invalidate_range_end = None

    def invalidate_range_start(self, range_) -> int:
        self.log.append((self.name, "start", range_.start, range_.end))
        return self.answer

    def invalidate_range_end(self, range_) -> None:
        self.log.append((self.name, "end", range_.start, range_.end))

    def release(self, mm) -> None:
        self.log.append((self.name, "release"))

    def __repr__(self) -> str:
        return f"Classic({self.name!r})"


class Bench:
    def __init__(self, **options) -> None:
        self.kernel = Kernel()
        self.memory = MemoryManager(self.kernel, ram_pages=64, geometry=Geometry(pmd_order=3), **options)
        self.mm = self.memory.mm_alloc("p")
        self.log: list = []

    def insert(self, start: int, n: int, name: str = "a", **options) -> MmuIntervalNotifier:
        return self.memory.mmu_interval_notifier_insert(self.mm, start * PAGE, n * PAGE, Ops(name, self.log, **options))

    def open(self, start: int, n: int, *, flags: int = MMU_NOTIFIER_RANGE_BLOCKABLE) -> tuple[int, MmuNotifierRange]:
        range_ = MmuNotifierRange(self.mm, start * PAGE, (start + n) * PAGE, MMU_NOTIFY_CLEAR, flags=flags)
        return self.memory.invalidate_range_start(range_), range_

    def close(self, range_: MmuNotifierRange) -> None:
        self.memory.invalidate_range_end(range_)

    @property
    def state(self) -> tuple[int, int, int]:
        subs = self.mm.notifiers
        return subs.invalidate_seq, subs.active_invalidate_ranges, len(subs.deferred_list)


def test_an_mm_nobody_watches_has_no_windows() -> None:
    one = Bench()
    assert notifier_start(one.memory, one.mm, 0, PAGE, MMU_NOTIFY_CLEAR) is None
    notifier_end(one.memory, None)
    _, range_ = one.open(0, 1)
    one.close(range_)
    assert one.mm.notifiers is None
    assert one.kernel.stats.notifier_events == 0


def test_the_sequence_starts_at_2_and_a_new_subscription_one_below() -> None:
    one = Bench()
    sub = one.insert(0, 4)
    assert one.state == (2, 0, 0)
    assert sub.invalidate_seq == 1
    assert (sub.start, sub.last) == (0, 4 * PAGE - 1)
    assert one.memory.mmu_interval_read_begin(sub) == 1


def test_an_overlapping_window_makes_the_sequence_odd_until_it_closes() -> None:
    one = Bench()
    sub = one.insert(0, 4)
    ret, range_ = one.open(3, 5)
    assert (ret, one.state, sub.invalidate_seq) == (0, (3, 1, 0), 3)
    assert one.log == [("a", "CLEAR", 3 * PAGE, 8 * PAGE, 3)]
    one.close(range_)
    assert one.state == (4, 0, 0)
    assert one.memory.mmu_interval_read_retry(sub, 1)
    assert not one.memory.mmu_interval_read_retry(sub, 3)
    assert one.kernel.stats.notifier_events == 1


def test_a_window_beside_it_leaves_the_sequence_even() -> None:
    one = Bench()
    sub = one.insert(0, 4)
    _, range_ = one.open(4, 1)
    assert (one.state, sub.invalidate_seq, one.log) == ((2, 1, 0), 1, [])
    one.close(range_)
    assert one.state == (2, 0, 0)


def test_two_windows_share_one_odd_sequence() -> None:
    one = Bench()
    sub = one.insert(0, 4)
    _, first = one.open(0, 1)
    _, second = one.open(2, 1)
    assert one.state == (3, 2, 0)
    one.close(first)
    assert one.state == (3, 1, 0)
    one.close(second)
    assert (one.state, sub.invalidate_seq) == ((4, 0, 0), 3)


@pytest.mark.parametrize(
    ("windows", "state", "seq", "in_tree"),
    [
        ([], (2, 0, 0), 1, True),  # idle: at once, one below
        ([(8, 1)], (3, 1, 0), 3, True),  # a window that hit nobody: made odd, at once, colliding
        ([(0, 1)], (3, 1, 1), 3, False),  # the tree is frozen: deferred, colliding
    ],
)
def test_insert_during_invalidations(windows, state, seq: int, in_tree: bool) -> None:
    one = Bench()
    one.insert(0, 4)
    opened = [one.open(*window)[1] for window in windows]
    late = one.insert(8, 4, "late")
    assert (one.state, late.invalidate_seq, late.in_tree) == (state, seq, in_tree)
    for range_ in opened:
        one.close(range_)
    assert late.in_tree
    assert one.state[0] % 2 == 0
    assert one.state[2] == 0


def test_a_deferred_insert_can_be_removed_without_waiting() -> None:
    one = Bench()
    one.insert(0, 4)
    _, range_ = one.open(0, 1)
    late = one.insert(8, 4, "late")
    one.memory.mmu_interval_notifier_remove(late)
    assert one.state == (3, 1, 0)
    one.close(range_)
    assert not late.in_tree
    assert one.mm.notifiers.itree.count == 1


def test_remove_waits_for_the_invalidation_it_may_be_part_of() -> None:
    one = Bench()
    sub = one.insert(0, 4)
    _, range_ = one.open(0, 1)
    task = one.kernel.spawn(one.memory.mmu_interval_notifier_remove, sub, name="remover")
    one.kernel.settle()
    assert not task.done
    assert (one.state, sub.in_tree) == ((3, 1, 1), True)
    one.close(range_)
    task.join()
    assert not sub.in_tree
    assert one.mm.mm_count == 1


def test_read_begin_waits_until_the_window_is_closed() -> None:
    one = Bench()
    sub = one.insert(0, 4)
    _, range_ = one.open(0, 1)
    reader = one.kernel.spawn(one.memory.mmu_interval_read_begin, sub, name="reader")
    one.kernel.settle()
    assert not reader.done
    one.close(range_)
    assert reader.join() == 3


def test_readers_of_others_do_not_wait() -> None:
    one = Bench()
    one.insert(0, 4)
    beside = one.insert(8, 4, "beside")
    _, range_ = one.open(0, 1)
    assert one.memory.mmu_interval_read_begin(beside) == 1
    assert not one.memory.mmu_interval_check_retry(beside, 1)
    one.close(range_)


@pytest.mark.breaks_invariants
def test_a_callback_that_filters_without_set_seq_makes_no_reader_retry() -> None:
    one = Bench()
    log: list = []

    class Filter:
        def invalidate(self, sub, range_, cur_seq) -> bool:
            log.append(range_.owner)
            return True

    sub = one.memory.mmu_interval_notifier_insert(one.mm, 0, PAGE, Filter())
    seq = one.memory.mmu_interval_read_begin(sub)
    range_ = notifier_start(one.memory, one.mm, 0, PAGE, MMU_NOTIFY_CLEAR, "me")
    notifier_end(one.memory, range_)
    assert log == ["me"]
    assert not one.memory.mmu_interval_read_retry(sub, seq)


def test_callbacks_come_in_the_order_of_starts_then_of_insertion() -> None:
    one = Bench()
    for name, start, n in (("c", 4, 2), ("a", 0, 100), ("d", 4, 50), ("b", 1, 1), ("x", 60, 4), ("e", 5, 1)):
        one.insert(start, n, name)
    _, range_ = one.open(1, 20)
    assert [entry[0] for entry in one.log] == ["a", "b", "c", "d", "e"]
    one.close(range_)


def test_a_blockable_callback_must_not_fail() -> None:
    one = Bench()
    one.insert(0, 4, answer=False)
    with pytest.raises(ModelError) as caught:
        one.open(0, 1)
    assert str(caught.value) == (
        "invalidate of MmuIntervalNotifier(p, 0x0..0x3fff, seq=1) returned False for a blockable range "
        "(CLEAR 0x0..0x1000); it may fail only when range.blockable is False"
    )


def test_a_window_that_may_not_block_can_be_refused_and_is_then_closed() -> None:
    one = Bench()
    one.insert(0, 4, "a")
    one.insert(1, 4, "b", answer=False)
    one.insert(2, 4, "c")
    ret, range_ = one.open(0, 8, flags=0)
    assert not range_.blockable
    assert (ret, one.state) == (-EAGAIN, (4, 0, 0))
    assert [entry[0] for entry in one.log] == ["a", "b"]


@pytest.mark.breaks_invariants
def test_a_callback_in_a_window_that_may_not_block_must_not_sleep() -> None:
    one = Bench()
    one.insert(0, 4, during=lambda *_: one.kernel.sleep_ns(5))
    with pytest.raises(LockdepError):
        one.open(0, 1, flags=0)


def test_two_pass_callbacks_finish_in_the_order_in_which_they_started() -> None:
    one = Bench()
    log = one.log

    class TwoPass:
        def __init__(self, name: str, *, queue: bool) -> None:
            self.name = name
            self.queue = queue

        def invalidate_start(self, sub, range_, cur_seq):
            sub.invalidate_seq = cur_seq
            log.append(("start", self.name))
            return True, self.name if self.queue else None

        def invalidate_finish(self, token) -> None:
            log.append(("finish", token))

    for i, queue in enumerate((True, False, True)):
        one.memory.mmu_interval_notifier_insert(one.mm, i * PAGE, PAGE, TwoPass(f"t{i}", queue=queue))
    one.insert(3, 1, "plain")
    _, range_ = one.open(0, 8)
    assert [entry[:2] for entry in log] == [
        ("start", "t0"),
        ("start", "t1"),
        ("start", "t2"),
        ("plain", "CLEAR"),
        ("finish", "t0"),
        ("finish", "t2"),
    ]
    one.close(range_)


def test_insert_refuses_what_is_no_interval_and_a_dead_mm() -> None:
    one = Bench()
    for start, length in ((0, 0), ((1 << 64) - PAGE, 2 * PAGE)):
        with pytest.raises(KernelError) as caught:
            one.memory.mmu_interval_notifier_insert(one.mm, start, length, Ops("a", one.log))
        assert caught.value.errno == EOVERFLOW
    one.memory.mmu_interval_notifier_insert(one.mm, (1 << 64) - PAGE, PAGE, Ops("a", one.log))
    one.mm.mmgrab()
    one.mm.exit()
    with pytest.raises(KernelError) as caught:
        one.insert(0, 1)
    assert (caught.value.errno, str(caught.value)) == (EINVAL, "-EINVAL: p has no users left")


def test_insert_locked_wants_the_lock() -> None:
    one = Bench()
    with pytest.raises(ModelError) as caught:
        one.memory.mmu_interval_notifier_insert_locked(one.mm, 0, PAGE, Ops("a", one.log))
    assert str(caught.value) == "mmu_interval_notifier_insert_locked needs the mmap_lock of p held for write"
    with one.mm.mmap_lock.write():
        sub = one.memory.mmu_interval_notifier_insert_locked(one.mm, 0, PAGE, Ops("a", one.log))
    assert sub.in_tree


def test_a_subscription_keeps_the_structure_alive() -> None:
    one = Bench()
    sub = one.insert(0, 4)
    assert one.mm.mm_count == 2
    one.mm.exit()
    assert [entry[1] for entry in one.log] == ["RELEASE"]
    assert one.memory.mms == [one.mm]
    one.memory.mmu_interval_notifier_remove(sub)
    assert one.memory.mms == []


def test_removing_twice_or_from_a_callback_is_an_error() -> None:
    one = Bench()
    sub = one.insert(0, 4)
    one.memory.mmu_interval_notifier_remove(sub)
    with pytest.raises(ModelError) as caught:
        one.memory.mmu_interval_notifier_remove(sub)
    assert str(caught.value) == "MmuIntervalNotifier(p, 0x0..0x3fff, seq=1) is removed twice"
    one.insert(0, 4, during=lambda sub, _: one.memory.mmu_interval_notifier_remove(sub))
    with pytest.raises(ModelError) as caught:
        one.open(0, 1)
    assert "is removed inside a notifier callback, which would wait for itself" in str(caught.value)


@pytest.mark.parametrize("allocate", ["alloc_folio", "alloc_pages_bulk"])
def test_allocating_in_a_callback_is_an_error(allocate) -> None:
    """Reclaim may wait for the very notifier (fs_reclaim)."""
    one = Bench()
    one.insert(0, 4, during=lambda *_: getattr(one.memory, allocate)(0))
    with pytest.raises(LockdepError):
        one.open(0, 1)


def test_taking_mmap_lock_in_a_callback_is_an_error() -> None:
    one = Bench()
    one.insert(0, 4, during=lambda *_: one.mm.mmap_lock.down_read())
    with pytest.raises(LockdepError):
        one.open(0, 1)


def test_exit_says_release_then_unmap() -> None:
    one = Bench()
    one.mm.mmap(0, 4 * PAGE, RW)
    one.insert(0, 4)
    classic = Classic("k", one.log)
    one.memory.mmu_notifier_register(classic, one.mm)
    one.mm.exit()
    top = (1 << 64) - 1
    assert one.log == [
        ("a", "RELEASE", 0, top, 3),
        ("k", "release"),
        ("a", "UNMAP", 0, top, 5),
    ]
    one.memory.mmu_notifier_unregister(classic, one.mm)


def test_classic_notifiers_hear_start_and_end_newest_first() -> None:
    one = Bench()
    first, second = Classic("first", one.log), Classic("second", one.log)
    one.memory.mmu_notifier_register(first, one.mm)
    one.memory.mmu_notifier_register(second, one.mm)
    range_ = notifier_start(one.memory, one.mm, 0, PAGE, MMU_NOTIFY_UNMAP)
    notifier_end(one.memory, range_)
    assert [entry[:2] for entry in one.log] == [
        ("second", "start"),
        ("first", "start"),
        ("second", "end"),
        ("first", "end"),
    ]
    one.log.clear()
    one.memory.mmu_notifier_unregister(second, one.mm)
    assert one.log == [("second", "release")]
    notifier_start(one.memory, one.mm, 0, PAGE, MMU_NOTIFY_UNMAP)
    assert [entry[:2] for entry in one.log[1:]] == [("first", "start")]


def test_a_classic_notifier_may_fail_only_when_it_must_not_block() -> None:
    one = Bench()
    one.memory.mmu_notifier_register(Classic("k", one.log, answer=-EAGAIN), one.mm)
    with pytest.raises(ModelError) as caught:
        one.open(0, 1)
    assert str(caught.value) == (
        "invalidate_range_start of Classic('k') returned -11 for a range that is blockable; "
        "only -EAGAIN, when it is not blockable, is allowed"
    )


def test_the_tree_finds_what_a_list_would_find() -> None:
    tree = IntervalTree()
    one = Bench()
    subs = []
    state = 12345
    for _ in range(200):
        state = (state * 6364136223846793005 + 1442695040888963407) & ((1 << 64) - 1)
        start, length = (state >> 40) % 1000, 1 + (state >> 20) % [1, 7, 300][state % 3 % 3] if state % 5 else 1
        subs.append(MmuIntervalNotifier(one.mm, start, start + length - 1, Ops("a", [])))
        tree.insert(subs[-1])
    for gone in subs[::3]:
        tree.remove(gone)
    left = sorted((sub for i, sub in enumerate(subs) if i % 3), key=lambda sub: (sub.start, sub.order))
    for start in range(0, 1300, 37):
        for length in (1, 10, 400):
            last = start + length - 1
            assert tree.overlapping(start, last) == [s for s in left if s.start <= last and s.last >= start]


def test_callbacks_are_charged_and_counted() -> None:
    class Costs:
        def __init__(self) -> None:
            self.table = {"notifier_callback": 700}

    kernel = Kernel(costs=Costs())
    memory = MemoryManager(kernel, ram_pages=64)
    mm = memory.mm_alloc("p")
    memory.mmu_interval_notifier_insert(mm, 0, PAGE, Ops("a", []))
    memory.mmu_interval_notifier_insert(mm, 0, PAGE, Ops("b", []))
    notifier_end(memory, notifier_start(memory, mm, 0, PAGE, MMU_NOTIFY_CLEAR))
    assert kernel.now_ns == 1400
    assert kernel.stats.notifier_events == 2
