"""The message of an error says what the tasks do, and not who looked on: it is the same in every repetition."""

from gpusvm.conformance.mutants import load
from gpusvm.explore.case import Case
from gpusvm.explore.execution import execute
from gpusvm.explore.random_walk import RandomWalk
from gpusvm.explore.reached import reached
from gpusvm.explore.recording import recorded
from gpusvm.explore.scenario import find_scenario
from gpusvm.plugins import Installed


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
