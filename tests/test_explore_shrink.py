"""Shrinking leaves the fewest preemptions, failures and operations that break the same, each shown by a planted bug."""

from contextlib import contextmanager

import pytest
from gpusvm.errors import ModelError
from gpusvm.explore import shrink as shrinking
from gpusvm.explore.answers import failures, preemptions
from gpusvm.explore.case import Case
from gpusvm.explore.execution import STEPS_MAX, execute
from gpusvm.explore.random_walk import RandomWalk
from gpusvm.explore.scenario import read_scenarios
from gpusvm.explore.shrink import shrink
from gpusvm.explore.stage import Stage
from gpusvm.explore.world import World
from gpusvm.plugins import Installed

PROGRAM = """\
[[scenario]]
name = "three"
about = "three tasks that have nothing to do with each other"
setup = ["map 0 4", "map 8 4", "map 16 4"]
tasks.writer = ["cpu_write 16 2", "cpu_write 0 1", "cpu_write 18 1"]
tasks.remover = ["cpu_read 16 1", "munmap 8 4"]
tasks.reader = ["cpu_read 16 1", "cpu_read 17 1"]
"""
(SCENARIO,) = read_scenarios(PROGRAM, source="three.toml")
RACE = SCENARIO.with_tasks({name: SCENARIO.tasks[name][1:2] for name in ("writer", "remover")})


class Planted:
    """A bug that shows when `breaks(world, operation, running)` says so, as an operation begins."""

    id = "planted"

    def __init__(self, breaks):
        self.breaks = breaks

    @contextmanager
    def active(self):
        plain, running = World.do, []

        def do(world, operation):
            if self.breaks(world, str(operation), running):
                raise ModelError("planted")
            running.append(str(operation))
            try:
                plain(world, operation)
            finally:
                running.remove(str(operation))

        World.do = do
        try:
            yield
        finally:
            World.do = plain


def during_a_write(world, operation, running):
    return operation == "munmap 8 4" and "cpu_write 0 1" in running


def after_a_failure(world, operation, running):
    return operation == "munmap 8 4" and bool(world.kernel.injector.failed)


def always(world, operation, running):
    return operation == "munmap 8 4"


def for_ever(world, operation, running):
    while operation == "munmap 8 4":
        world.kernel.step()
    return False


def during_a_write_or_for_ever(world, operation, running):
    return during_a_write(world, operation, running) or for_ever(world, operation, running)


@pytest.fixture
def steps(monkeypatch):
    """List how many steps each execution of a shrinking takes."""
    taken = []

    def counted(*args, **kwargs):
        execution = execute(*args, **kwargs)
        taken.append(execution.steps)
        return execution

    monkeypatch.setattr(shrinking, "execute", counted)
    return taken


def large(case, *, preempted=0, failed=0):
    """Return the first execution of a random walk that breaks with so many preemptions and failures at least."""
    stage = Stage(case.boot)
    walk = RandomWalk(seed=1)
    while walk.new_execution():
        world = stage.ready()
        execution = execute(world, walk, failures_max=case.failures_max)
        switches = sum(
            label == "task" and taken > 0 for label, taken in zip(execution.labels, execution.taken, strict=True)
        )
        if execution.failure is None or switches < preempted or len(world.kernel.injector.failed) < failed:
            continue
        assert execution.failure.message.startswith(("planted", "no end"))
        world.kernel.close()  # what was under way is no longer
        return execution.taken
    raise AssertionError


def shrunk(breaks, *, scenario=SCENARIO, failures_max=0, executions_max=2000, **least):
    case = Case(
        scenario=scenario,
        driver="dmirror",
        drivers=Installed(()),
        failures_max=failures_max,
        mutant=Planted(breaks),
    )
    with case.active():
        return shrink(case, large(case, **least), executions_max=executions_max)


def written(scenario):
    return {name: [str(each) for each in operations] for name, operations in scenario.tasks.items()}


@pytest.fixture(scope="module")
def one_race():
    return shrunk(during_a_write, preempted=8)


def test_the_fewest_preemptions(one_race):
    found = one_race
    assert found.before.preemptions > 1
    assert (found.after.preemptions, preemptions(found.answers)) == (1, 1)
    assert written(found.scenario) == {"writer": ["cpu_write 0 1"], "remover": ["munmap 8 4"]}
    assert found.complete


def test_the_fewest_failures():
    found = shrunk(after_a_failure, failures_max=3, failed=3)
    assert found.before.failures == 3
    assert (found.after.failures, failures(found.answers)) == (1, 1)
    assert found.after.preemptions == 0
    assert found.complete


def test_the_fewest_operations():
    found = shrunk(always, preempted=4)
    assert (found.before.operations, found.before.tasks) == (7, 3)
    assert (found.after.operations, found.after.tasks) == (1, 1)
    assert written(found.scenario) == {"remover": ["munmap 8 4"]}
    assert {answer.kind for answer in found.answers} <= {"carry on"}


def test_what_the_budget_does_not_allow_is_said():
    found = shrunk(during_a_write, preempted=8, executions_max=3)
    assert not found.complete
    assert found.executions == 3
    assert found.failure.message == "planted"


def test_what_has_no_end_is_shrunk_with_fewer_steps_and_told_with_all(steps):
    found = shrunk(for_ever, scenario=RACE)
    assert found.failure.kind == "progress"
    assert found.failure.message.startswith(f"no end after {STEPS_MAX} steps: tasks keep each other busy")
    assert steps[0] > STEPS_MAX
    assert steps[-1] > STEPS_MAX
    assert len(steps) > 3
    assert 20_000 < max(steps[1:-1]) < 20_010


def test_an_attempt_without_an_end_is_given_up_soon_where_the_finding_has_one(steps):
    found = shrunk(during_a_write_or_for_ever, scenario=RACE)
    assert found.failure.message == "planted"
    assert 20 * steps[0] + 1000 < max(steps) < 20 * steps[0] + 1010


def test_it_is_the_same_every_time(one_race):
    assert shrunk(during_a_write, preempted=8) == one_race


def test_what_does_not_fail_is_not_shrunk():
    case = Case(scenario=SCENARIO, driver="dmirror", drivers=Installed(()))
    assert shrink(case, ()) is None
