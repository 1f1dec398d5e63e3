"""Defects of the modelled mm that exploring has found, each in the scenario that it was found in."""

import pytest
from gpusvm.explore.execution import execute
from gpusvm.explore.random_walk import RandomWalk
from gpusvm.explore.scenario import find_scenario
from gpusvm.explore.world import World
from gpusvm.plugins import load_drivers

DRIVERS = dict(load_drivers())

# A slot of swap got what its page held before it was unmapped, so that writes until then were lost.
SWAP = [("populate-swap", "nouveau"), ("populate-swap", "dmirror"), ("fault-swap", "dmirror")]
# A first subscriber did not wait for windows that were open without it, as mm_take_all_locks does.
FIRST = [("fault-dontneed", "nouveau"), ("fault-dontneed", "xe"), ("populate-dontneed", "xe")]
# A window that a classic notifier refused before there was an interval notifier was never told as closed.
REFUSED = [("suspect-s5", "nouveau")]


@pytest.mark.parametrize(("scenario", "driver"), SWAP + FIRST + REFUSED)
def test_what_was_found_once_is_mended(scenario, driver):
    (found,) = find_scenario(scenario)
    walk = RandomWalk(seed=5)
    for _ in range(20):
        walk.new_execution()
        world = World(found, driver, drivers=DRIVERS)
        assert execute(world, walk).failure is None
        world.kernel.close()
