"""The places that count as coverage are those that a recording of the same execution has."""

import pytest
from gpusvm.explore.execution import execute
from gpusvm.explore.random_walk import RandomWalk
from gpusvm.explore.reached import reached
from gpusvm.explore.recording import recorded
from gpusvm.explore.scenario import find_scenario
from gpusvm.explore.stage import Stage
from gpusvm.explore.world import World
from gpusvm.plugins import load_drivers

DRIVERS = dict(load_drivers())


@pytest.mark.parametrize("name", ["fault-munmap", "exit-fault"])
@pytest.mark.parametrize("driver", sorted(DRIVERS))
def test_the_same_places_as_in_a_recording(name, driver):
    (scenario,) = find_scenario(name)
    stage = Stage(lambda: World(scenario, driver, drivers=DRIVERS))
    for seed in range(3):
        walk = RandomWalk(seed=seed)
        walk.new_execution()
        world = stage.ready()
        with recorded(world) as recording:
            first = execute(world, walk)
        walk = RandomWalk(seed=seed)
        walk.new_execution()
        world = stage.ready()
        with reached(world) as found:
            assert execute(world, walk) == first
        assert found.places == recording.places
        assert any(what == "mutex_lock" or what == "down_read" for what, _ in found.places)


def test_nothing_is_wrapped_any_more_afterwards():
    (scenario,) = find_scenario("fault-munmap")
    world = World(scenario, "dmirror", drivers=DRIVERS)
    kernel = world.kernel
    before = kernel.yield_point, dict(vars(kernel.sched))
    with reached(world):
        assert kernel.yield_point != before[0]
    assert (kernel.yield_point, dict(vars(kernel.sched))) == before
