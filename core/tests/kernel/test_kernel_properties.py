"""Random tasks under random choices, against models that are simple enough to believe."""

import pytest
from gpusvm.errors import DeadlockError
from gpusvm.kernel import Kernel, Work
from hypothesis import given, settings
from hypothesis import strategies as st

SETTINGS = settings(max_examples=60, deadline=None, derandomize=True)
MODES = st.sampled_from(["timed", "explored"])


class Drawn:
    """Let Hypothesis pick, so that it can shrink a schedule."""

    def __init__(self, data):
        self.taken, self.widths = [], []
        self._data = data

    def pick(self, n, label):
        choice = self._data.draw(st.integers(0, n - 1), label=label)
        self.taken.append(choice)
        self.widths.append(n)
        return choice

    def pick_task(self, candidates, running):
        return self.pick(len(candidates), "task")


def kernel_of(mode, data):
    return Kernel(mode=mode, choices=Drawn(data))


@SETTINGS
@given(
    data=st.data(),
    mode=MODES,
    steps=st.lists(st.lists(st.sampled_from(["lock", "try", "spin"]), max_size=4), max_size=4),
)
def test_mutual_exclusion(data, mode, steps):
    with kernel_of(mode, data) as kernel:
        mutex, lock = kernel.mutex("m"), kernel.spinlock("s")
        inside = {"mutex": 0, "spin": 0}
        entered = []

        def section(which):
            inside[which] += 1
            assert inside[which] == 1
            kernel.charge_ns("work", 10)
            kernel.step()
            assert inside[which] == 1
            inside[which] -= 1
            entered.append(which)

        def work(ops):
            for op in ops:
                if op == "spin":
                    with lock:
                        section("spin")
                elif op == "lock":
                    with mutex:
                        section("mutex")
                elif mutex.trylock():
                    section("mutex")
                    mutex.unlock()
                else:
                    assert mutex.locked
                kernel.cond_resched()

        for n, ops in enumerate(steps):
            kernel.spawn(work, ops, name=f"task {n}")
        kernel.settle()
        assert [task.name for task in kernel.tasks] == ["main"]
        assert entered.count("spin") == sum(ops.count("spin") for ops in steps)
        assert not mutex.locked
        assert not lock.locked


@SETTINGS
@given(
    data=st.data(),
    mode=MODES,
    steps=st.lists(st.lists(st.sampled_from(["read", "write", "down", "tryr", "tryw"]), max_size=4), max_size=4),
)
def test_readers_share_and_writers_do_not(data, mode, steps):
    with kernel_of(mode, data) as kernel:
        sem = kernel.rwsem("s")
        readers, writers = set(), set()

        def check():
            assert len(writers) <= 1
            assert not (readers and writers)
            assert sem.is_write_locked is bool(writers)
            assert sem.is_locked is bool(readers or writers)

        def hold(holders, name):
            holders.add(name)
            check()
            kernel.charge_ns("work", 10)
            kernel.step()
            check()
            holders.discard(name)

        def work(name, ops):
            for op in ops:
                if op == "read":
                    with sem.read():
                        hold(readers, name)
                elif op == "write":
                    with sem.write():
                        hold(writers, name)
                elif op == "down":
                    with sem.write():
                        hold(writers, name)
                        sem.downgrade_write()
                        hold(readers, name)
                elif op == "tryr" and sem.down_read_trylock():
                    hold(readers, name)
                    sem.up_read()
                elif op == "tryw" and sem.down_write_trylock():
                    hold(writers, name)
                    sem.up_write()

        for n, ops in enumerate(steps):
            kernel.spawn(work, n, ops, name=f"task {n}")
        kernel.settle()
        assert [task.name for task in kernel.tasks] == ["main"]
        assert not sem.is_locked


@SETTINGS
@given(
    data=st.data(),
    mode=MODES,
    max_active=st.integers(1, 3),
    plan=st.lists(st.sampled_from(["queue0", "queue1", "queue2", "cancel0", "cancel1", "flush", "flush0"]), max_size=8),
)
def test_each_queued_work_runs_once_unless_cancelled(data, mode, max_active, plan):
    with kernel_of(mode, data) as kernel:
        queue = kernel.workqueue("wq", max_active)
        begun, ended, owed = [0] * 3, [0] * 3, [0] * 3
        running = set()

        def run(n):
            assert n not in running
            running.add(n)
            assert len(running) <= max_active
            begun[n] += 1
            kernel.charge_ns("work", 10)
            kernel.step()
            ended[n] += 1
            running.discard(n)

        works = [Work(lambda n=n: run(n), f"work {n}") for n in range(3)]
        for op in plan:
            n = int(op[-1]) if op[-1].isdigit() else 0
            if op.startswith("queue"):
                owed[n] += queue.queue(works[n])
            elif op.startswith("cancel"):
                owed[n] -= works[n].cancel_sync()
                assert n not in running
                assert begun[n] == ended[n] == owed[n]
            elif op == "flush":
                queue.flush()
                assert ended == owed
            else:
                works[n].flush()
                assert ended[n] == owed[n]
        queue.drain()
        assert begun == ended == owed
        assert not queue.busy


@SETTINGS
@given(data=st.data(), mode=MODES, pairs=st.lists(st.permutations(["a", "b", "c"]), min_size=2, max_size=3))
def test_locks_in_any_order_end_or_are_a_deadlock_that_is_found(data, mode, pairs):
    with Kernel(mode=mode, choices=Drawn(data), checked=False) as kernel:
        locks = {name: kernel.mutex(name) for name in "abc"}
        ended = []

        def work(names):
            with locks[names[0]]:
                kernel.sleep_ns(10)
                with locks[names[1]]:
                    kernel.sleep_ns(10)
            ended.append(names)

        for n, names in enumerate(pairs):
            kernel.spawn(work, names, name=f"task {n}")
        try:
            kernel.settle()
        except DeadlockError as error:
            assert "tasks wait for each other in a circle" in str(error)  # noqa: PT017  # either outcome is right
        else:
            assert len(ended) == len(pairs)


def test_hypothesis_shrinks_a_lost_update_to_few_preemptions():
    shortest = []

    @settings(max_examples=200, deadline=None, derandomize=True, database=None)
    @given(data=st.data())
    def search(data):
        choices = Drawn(data)
        with Kernel(mode="explored", choices=choices) as kernel:
            cell = type("Cell", (), {"value": 0})()

            def add():
                kernel.write_once(cell, "value", kernel.read_once(cell, "value") + 1)

            for name in "ab":
                kernel.spawn(add, name=name)
            kernel.settle()
            shortest[:] = choices.taken
            assert cell.value == 2

    with pytest.raises(AssertionError):
        search()
    assert len(shortest) == 5
    assert sum(map(bool, shortest)) <= 2
