"""Exhaustive search: numbers in closed form, and with reduction the same outcomes as without."""

import re
from math import comb, factorial

import pytest
from gpusvm.errors import ModelError
from gpusvm.explore import explore_program
from gpusvm.explore.dfs import DepthFirst
from gpusvm.explore.footprint import Footprints
from gpusvm.kernel import Kernel, Work


class Cell:
    pass


def writers(tasks, writes, log, *, shared=True):
    """Let tasks write a field, the same one if it is `shared`."""

    def program(choices):
        with Kernel(mode="explored", choices=choices) as kernel:
            cell, order = Cell(), []

            def body(task):
                for _ in range(writes):
                    field = "shared" if shared else f"own{task}"
                    kernel.write_once(cell, field, task)
                    order.append((field, task))

            for task in range(tasks):
                kernel.spawn(body, task, name=f"t{task}")
            kernel.settle()
            # What distinguishes orders: who wrote the shared field when.
            log.append(tuple(task for field, task in order if field == "shared"))

    return program


def search(program, *, preemptions=None, reduced=False):
    scheduler = DepthFirst(preemptions=preemptions, footprints=Footprints() if reduced else None)
    findings = {str(each.error) for each in explore_program(program, scheduler)}
    assert scheduler.exhausted
    assert not scheduler.new_execution()
    return scheduler, findings


def interleavings(tasks, steps):
    return factorial(tasks * steps) // factorial(steps) ** tasks


@pytest.mark.parametrize(("tasks", "writes"), [(2, 1), (2, 2), (2, 3), (3, 1), (3, 2)])
def test_without_reduction_every_interleaving_is_run(tasks, writes):
    # A task's first step is the one up to its first write.
    scheduler, _ = search(writers(tasks, writes, []))
    assert scheduler.executions == interleavings(tasks, writes + 1)
    assert scheduler.beyond == scheduler.skipped == scheduler.abandoned == 0


@pytest.mark.parametrize("bound", [0, 1, 2, 3])
def test_preemptions_are_bounded(bound):
    # Two tasks of 4 steps, cut into pieces that take turns: i and j pieces have i + j - 2 switches that count.
    pieces = [(i, j) for i in range(1, 5) for j in range(1, 5) if abs(i - j) <= 1]
    orders = sum((2 if i == j else 1) * comb(3, i - 1) * comb(3, j - 1) for i, j in pieces if i + j - 2 <= bound)
    scheduler, _ = search(writers(2, 3, []), preemptions=bound)
    assert scheduler.executions == orders
    assert scheduler.beyond > 0


@pytest.mark.parametrize(("tasks", "writes"), [(2, 1), (2, 2), (2, 3), (3, 1), (3, 2)])
def test_with_reduction_every_trace_is_run_once(tasks, writes):
    log = []
    scheduler, _ = search(writers(tasks, writes, log), reduced=True)
    assert len(set(log)) == interleavings(tasks, writes)
    assert len(log) == len(set(log)) + scheduler.restarts
    assert scheduler.abandoned == 0


@pytest.mark.parametrize("bound", [0, 1, 2, None])
def test_steps_apart_have_one_order(bound):
    scheduler, _ = search(writers(3, 2, [], shared=False), preemptions=bound, reduced=True)
    assert (scheduler.executions, scheduler.restarts) == (1, 0)


def locks(kernel, cell, name):
    """Take two locks, the second only if what the first protects says so."""
    with cell.one:
        cell.count += 1
        mine = cell.count
    if mine == 2:
        with cell.two:
            cell.log.append(name)
    kernel.write_once(cell, "last", name)


def circle(kernel, cell, name):
    first, second = (cell.one, cell.two) if name == "a" else (cell.two, cell.one)
    with first, second:
        cell.log.append(name)


def lost_update(kernel, cell, name):
    value = kernel.read_once(cell, "last")
    cell.done.complete()
    kernel.write_once(cell, "last", f"{value}{name}")


def waits(kernel, cell, name):
    if name == "b":
        cell.done.wait()
        cell.log.append(kernel.read_once(cell, "last"))
    else:
        kernel.write_once(cell, "last", name)
        cell.done.complete()
        kernel.write_once(cell, "last", name + name)
        cell.done.complete()


def queues(kernel, cell, name):
    cell.queue.queue(cell.work)
    kernel.write_once(cell, "last", name)


def fails(kernel, cell, name):
    kernel.read_once(cell, "last")
    cell.log.append((name, kernel.inject("site"), kernel.choose(2, "data")))
    kernel.write_once(cell, "last", name)


def with_kernel(body, names, log):
    def program(choices):
        with Kernel(mode="explored", choices=choices, checked=False) as kernel:
            cell = Cell()
            cell.one, cell.two = kernel.mutex("one"), kernel.mutex("two")
            cell.done = kernel.completion("done")
            cell.queue = kernel.workqueue("queue")
            cell.count, cell.last, cell.log = 0, "", []

            def work():
                cell.log.append(kernel.read_once(cell, "last"))

            cell.work = Work(work, "work")
            kernel.explore_failures(failures_max=1)
            for name in names:
                kernel.spawn(body, kernel, cell, name, name=name)
            kernel.settle()
            log.append((cell.last, tuple(cell.log) if body is not fails else tuple(sorted(cell.log))))
            if cell.last == names[0]:
                raise ModelError(f"{names[0]} was last")

    return program


PROGRAMS = {
    "locks": (locks, "ab"),
    "circle": (circle, "ab"),
    "lost-update": (lost_update, "ab"),
    "completion": (waits, "ab"),
    "workqueue": (queues, "ab"),
    "failures": (fails, "ab"),
    "locks-3": (locks, "abc"),
    "lost-update-3": (lost_update, "abc"),
}


@pytest.mark.parametrize("bound", [0, 1, 2])
@pytest.mark.parametrize("name", PROGRAMS)
def test_reduction_loses_no_outcome(name, bound):
    body, names = PROGRAMS[name]
    naive, reduced = [], []
    every, found = search(with_kernel(body, names, naive), preemptions=bound)
    fewer, found_reduced = search(with_kernel(body, names, reduced), preemptions=bound, reduced=True)
    assert set(reduced) == set(naive)
    assert {_apart(each) for each in found_reduced} == {_apart(each) for each in found}
    if bound == 2:
        assert fewer.executions < every.executions
        assert fewer.skipped > 0


def _apart(message):
    # Where the tasks stood is no part of what was found.
    return re.sub(r" at .*", "", message.split("\n")[0])


def test_what_is_not_the_same_again_is_said():
    tasks = [2]

    def program(choices):
        writers(tasks[0], 1, [])(choices)
        tasks[0] = 3

    found = next(explore_program(program, DepthFirst()))
    assert str(found.error) == (
        "nondeterminism: choice 0 of execution 1 is one of 3, and with the same choices before it was one of 2"
    )
