"""What footprints say of small programs: which steps are independent, and which orders are the same."""

from functools import partial

import pytest
from gpusvm.explore.footprint import Footprints, independent
from gpusvm.kernel import Choices, Kernel, SeededChoices, Work


def footprints_of(body, choices: Choices | None = None) -> Footprints:
    """Run a program as main of a kernel with locks alone."""
    footprints = Footprints()
    with Kernel(mode="explored", choices=choices) as kernel:
        footprints.begin(kernel)
        body(kernel)
        footprints.end()
    return footprints


def steps_of(footprints, path):
    return [step for step in footprints.steps if step.task == path]


def test_readers_of_one_lock_and_users_of_two_are_independent():
    def body(kernel):
        sem, one, other = kernel.rwsem("sem"), kernel.mutex("one"), kernel.mutex("other")

        def run(mutex):
            with sem.read(), mutex:
                pass

        kernel.spawn(run, one, name="a")
        kernel.spawn(run, other, name="b")
        kernel.settle()

    footprints = footprints_of(body)
    first, second = steps_of(footprints, (0,)), steps_of(footprints, (1,))
    assert [step.label for step in first] == ["starts", "down_read", "mutex_lock", "mutex_unlock", "up_read"]
    assert all(independent(a, b) for a in first for b in second)
    assert not independent(first[0], steps_of(footprints, ())[0])
    settled = steps_of(footprints, ())[-1]
    assert settled.label == "settled"
    assert not any(independent(settled, step) for step in first)


def test_one_lock_orders_two_tasks():
    def body(kernel):
        mutex = kernel.mutex("m")

        def run():
            with mutex:
                pass

        for name in "ab":
            kernel.spawn(run, name=name)
        kernel.settle()

    footprints = footprints_of(body)
    order = [(step.task, step.label) for step in footprints.steps]
    unlock = order.index(((0,), "mutex_unlock"))
    lock = order.index(((1,), "mutex_lock"))
    assert footprints.happens_before(unlock, lock)
    assert not footprints.happens_before(lock, unlock)
    assert not footprints.happens_before(lock, lock)


def test_what_a_step_names_conflicts_and_what_names_nothing_conflicts_with_all():
    def body(kernel):
        def run(what, write):
            kernel.step(what, write=write)

        for what, write in [("x", True), ("x", False), ("x", False), ("y", True), (None, True)]:
            kernel.spawn(run, what, write, name="t")
        kernel.settle()

    footprints = footprints_of(body)
    writes, reads, again, apart, unknown = (steps_of(footprints, (i,))[-1] for i in range(5))
    assert not independent(writes, reads)
    assert independent(reads, again)
    assert independent(writes, apart)
    assert not independent(unknown, apart)


@pytest.mark.parametrize("shared", [False, True])
def test_orders_are_the_same_if_and_only_if_no_conflict_turned_round(shared):
    def body(kernel):
        def run(mine):
            for _ in range(3):
                kernel.step("ours" if shared else mine)

        for name in "ab":
            kernel.spawn(run, name, name=name)
        kernel.settle()

    hashes, orders = set(), set()
    for seed in range(60):
        footprints = footprints_of(body, SeededChoices(seed))
        hashes.add(footprints.prefix_hash)
        orders.add(tuple(step.task for step in footprints.steps if step.label == "step"))
    assert len(orders) > 10
    assert len(hashes) == (len(orders) if shared else 1)


def test_tasks_and_timers_are_named_by_who_started_them():
    def body(kernel):
        queue = kernel.workqueue("q")
        timer = kernel.timer("t", lambda: queue.queue(Work(lambda: None, "w")))
        timer.arm(2000)
        kernel.run_until(50_000)

    footprints = footprints_of(body)
    paths = list(dict.fromkeys(step.task for step in footprints.steps))
    assert paths[0] == ()
    fired, worker = paths[1], paths[2]
    assert fired[:1] == (-1,)
    assert worker == (*fired, 0)
    assert steps_of(footprints, worker)[-1].label == "process_one_work"


def test_a_choice_of_data_tells_executions_apart():
    def body(kernel, choice):
        kernel.step("x")
        kernel.footprint.chose(choice)
        kernel.step("y")

    hashes = [footprints_of(partial(body, choice=choice)).prefix_hash for choice in (0, 0, 1)]
    assert hashes[0] == hashes[1] != hashes[2]


def test_a_failure_is_taken_from_the_others():
    def body(kernel):
        kernel.explore_failures(failures_max=1)

        def run():
            kernel.step("x", write=False)
            kernel.inject("site")

        for name in "ab":
            kernel.spawn(run, name=name)
        kernel.settle()

    class Fail(SeededChoices):
        def pick(self, n, label):
            return 1 if label == "inject:site" else 0

        def pick_task(self, candidates, running):
            return 0

    failing = footprints_of(body, Fail(0))
    assert not independent(steps_of(failing, (0,))[-1], steps_of(failing, (1,))[-1])

    class Pass(Fail):
        def pick(self, n, label):
            return 0

    passing = footprints_of(body, Pass(0))
    assert independent(steps_of(passing, (0,))[-1], steps_of(passing, (1,))[-1])


def test_what_a_step_frees_has_the_name_that_it_had():
    """Where nobody watches the classes, an operation's object is named when the step is over."""

    class Thing:
        name = "thing"

    def body(kernel):
        def run(last):
            thing = Thing()
            kernel.step(thing)
            if last:
                kernel.free(thing)

        for last in (False, True):
            kernel.spawn(run, last, name="t")
        kernel.settle()

    footprints = footprints_of(body)
    kept, freed = (steps_of(footprints, (i,))[-1] for i in range(2))
    assert (kept.label, freed.label) == ("step", "step")
    assert not independent(kept, freed)
