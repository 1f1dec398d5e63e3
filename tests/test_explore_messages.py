"""The message of an error says what the tasks do, and not who looked on: it is the same in every repetition."""

import pytest
from gpusvm.conformance.mutants import load
from gpusvm.errors import DeadlockError
from gpusvm.explore.case import Case
from gpusvm.explore.execution import execute
from gpusvm.explore.random_walk import RandomWalk
from gpusvm.explore.reached import reached
from gpusvm.explore.recording import recorded
from gpusvm.explore.scenario import find_scenario
from gpusvm.explore.world import World
from gpusvm.plugins import Installed, load_drivers


def message(look_on):
    (scenario,) = find_scenario("home-two-threads")
    case = Case(scenario=scenario, driver="xe", drivers=Installed(()), mutant=load("MM-03b"))
    with case.active():
        world = case.boot()
        walk = RandomWalk(seed=1)
        walk.new_execution()
        failure = look_on(world, walk).failure
        world.kernel.close()
    assert failure is not None
    assert failure.kind == "livelock"
    return failure.message


def test_a_livelock_reads_the_same_whoever_looks_on():
    def recording(world, walk):
        with recorded(world):
            return execute(world, walk)

    def counting(world, walk):
        with reached(world):
            return execute(world, walk)

    plain = message(execute)
    assert "task 'main' waits for end of task 'one'" in plain
    assert "execution.py" not in plain
    assert message(recording) == plain
    assert message(counting) == plain


@pytest.mark.parametrize("look_on", [reached, recorded])
def test_the_place_of_a_loop_is_not_that_of_who_looks_on(look_on):
    """A campaign counts what some executions reach; repeated without, the others have to fail in the same words."""
    (scenario,) = find_scenario("fault-munmap")
    world = World(scenario, "xe", drivers=load_drivers())

    def spin():
        while True:
            world.kernel.cpu_relax()

    with look_on(world), pytest.raises(DeadlockError, match=r"^deadlock: task 'main' spins at tests/\w+\.py:\d+$"):
        spin()
