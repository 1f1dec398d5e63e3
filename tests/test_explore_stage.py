"""A world that is put back runs as one that has just been booted, whatever happened in between."""

import pytest
from gpusvm.explore.execution import execute
from gpusvm.explore.random_walk import RandomWalk
from gpusvm.explore.scenario import find_scenario
from gpusvm.explore.stage import Stage
from gpusvm.explore.world import World
from gpusvm.kernel import ABANDON
from gpusvm.plugins import load_drivers

DRIVERS = dict(load_drivers())


class Abandons:
    """Go on at random for a while, then give up."""

    def __init__(self, seed: int, after: int) -> None:
        self._walk = RandomWalk(seed=seed)
        self._walk.new_execution()
        self._left = after

    def next_task(self, candidates, running) -> int:
        self._left -= 1
        return self._walk.next_task(candidates, running) if self._left >= 0 else ABANDON

    def next_int(self, n: int, label: str) -> int:
        return self._walk.next_int(n, label)


def a_world(driver: str) -> World:
    (scenario,) = find_scenario("fault-munmap")
    world = World(scenario, driver, drivers=DRIVERS)
    world.kernel.tracer.on = True
    return world


def run(world: World, seed: int) -> tuple:
    walk = RandomWalk(seed=seed)
    walk.new_execution()
    return execute(world, walk, failures_max=1), repr(world.kernel.tracer.events)


@pytest.mark.parametrize("driver", sorted(DRIVERS))
def test_a_world_put_back_runs_as_a_new_one(driver):
    fresh = [run(a_world(driver), seed) for seed in range(4)]
    stage = Stage(lambda: a_world(driver))
    for round_ in range(3):
        for seed in range(4):
            assert run(stage.ready(), seed) == fresh[seed]
        assert execute(stage.ready(), Abandons(round_, after=3 + 4 * round_)).abandoned
    assert [task.name for task in stage.ready().kernel.tasks] == ["main"]
