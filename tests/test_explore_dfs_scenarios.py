"""Exhaustive search on small scenarios: with reduction it reaches what it reaches without, in fewer executions."""

import pytest
from gpusvm.conformance.mutants import load
from gpusvm.explore import explore as explore_program
from gpusvm.explore.dfs import DepthFirst
from gpusvm.explore.execution import execute
from gpusvm.explore.footprint import Footprints, independent
from gpusvm.explore.scenario import Operation, Scenario
from gpusvm.explore.stage import Stage
from gpusvm.explore.world import World
from gpusvm.plugins import load_drivers

PROGRAMS = {
    "fault-munmap": (["gpu_write 0 1"], ["munmap 0 1"]),
    "fault-mprotect": (["gpu_write 0 1"], ["mprotect 0 1 ro"]),
    "populate-write": (["populate 0 1"], ["cpu_write 0 1"]),
}


def small(name):
    return Scenario(
        name=name,
        about="",
        setup=tuple(map(Operation.parse, ("map 0 2", "cpu_write 0 2"))),
        tasks={f"t{i}": tuple(map(Operation.parse, lines)) for i, lines in enumerate(PROGRAMS[name])},
    )


def explore(scenario, driver, *, preemptions, footprints=None):
    """Return the scheduler at its end, and all that executions came to."""
    scheduler = DepthFirst(preemptions=preemptions, footprints=footprints)
    if footprints is not None:
        footprints.boot()
    stage = Stage(lambda: World(scenario, driver, drivers=dict(load_drivers())))
    ends = set()
    while scheduler.new_execution():
        execution = execute(stage.ready(), scheduler, footprints=footprints)
        if not execution.abandoned:
            ends.add((tuple(sorted(execution.outcomes)), execution.failure))
    assert scheduler.exhausted
    return scheduler, ends


@pytest.mark.parametrize("name", PROGRAMS)
def test_reduction_reaches_the_same_ends(name):
    scenario = small(name)
    every, ends = explore(scenario, "dmirror", preemptions=2)
    footprints = Footprints("gpusvm_dmirror")
    with footprints.watching():
        fewer, ends_reduced = explore(scenario, "dmirror", preemptions=2, footprints=footprints)
    assert ends_reduced == ends
    assert fewer.executions < every.executions
    assert fewer.skipped > 0


class Everything(Footprints):
    """Watch every step of every execution."""

    def keep(self, steps):
        pass


@pytest.mark.parametrize("driver", ["dmirror", "xe"])
def test_steps_of_before_are_as_if_watched_again(driver):
    runs = []
    for kind in (Footprints, Everything):
        footprints, seen = kind(f"gpusvm_{driver}"), []
        scheduler = DepthFirst(preemptions=1, footprints=footprints)
        with footprints.watching():
            stage = Stage(lambda: World(small("fault-munmap"), driver, drivers=dict(load_drivers())))
            while len(seen) < 40 and scheduler.new_execution():
                taken = execute(stage.ready(), scheduler, footprints=footprints).taken
                steps = [
                    (each.task, each.label, len(each.reads), len(each.writes), sorted(each.before))
                    for each in footprints.steps
                ]
                seen.append((taken, steps, footprints.prefix_hash))
        runs.append(seen)
    assert len(runs[0]) == 40
    assert runs[0] == runs[1]


@pytest.mark.parametrize(("page", "meets"), [(0, False), (7, True)])
def test_an_answer_that_is_judged_by_who_was_there_meets_their_beginning(page, meets):
    scenario = Scenario(
        name="judged",
        about="",
        setup=tuple(map(Operation.parse, ("map 0 2", "cpu_write 0 2"))),
        tasks={"gpu": (Operation.parse(f"gpu_write {page} 1"),), "cpu": (Operation.parse("cpu_read 1 1"),)},
    )
    footprints = Footprints("gpusvm_dmirror")
    with footprints.watching():
        execution = execute(
            World(scenario, "dmirror", drivers=dict(load_drivers())), DepthFirst(), footprints=footprints
        )
    assert [outcome for _, _, outcome in execution.outcomes] == ["EFAULT" if meets else "ok", "ok"]
    (begins,) = (step for step in footprints.steps if step.task == (1,) and step.label == "starts")
    assert any(not independent(begins, step) for step in footprints.steps if step.task == (0,)) == meets


def test_what_a_mutant_assigns_is_watched_too():
    """MM-03 takes the fault page out of a driver's arguments: code that is in none of the model's packages."""
    mutant = load("MM-03")
    (found,) = explore_program(["home-child"], ["dmirror"], scheduler="dfs", schedules=30, mutant=mutant).results
    assert (found.schedules, found.findings) == (30, [])
