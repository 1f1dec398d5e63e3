"""Livelocks that Linux had are found by random walks, on every driver whose code goes there, and are mended."""

from contextlib import nullcontext

import pytest
from gpusvm.conformance.mutants import load
from gpusvm.explore.execution import execute
from gpusvm.explore.random_walk import RandomWalk
from gpusvm.explore.scenario import read_scenarios
from gpusvm.explore.world import World
from gpusvm.plugins import load_drivers

DRIVERS = dict(load_drivers())
(READERS,) = read_scenarios(
    """
[[scenario]]
name = "readers"
about = "CPUs read the same device page at the same time"
setup = ["map 0 1", "cpu_write 0 1", "populate 0 1"]
tasks.a = ["cpu_read 0 1"]
tasks.b = ["cpu_read 0 1"]
tasks.c = ["cpu_read 0 1"]
tasks.d = ["cpu_read 0 1"]
""",
    source="test",
)


def schedules(scenario, driver, n, *, mutant=None):
    """Run n schedules at most; the number of the first that fails, and its failure."""
    walk = RandomWalk(seed=1)
    with load(mutant).active() if mutant else nullcontext():
        for number in range(1, n + 1):
            walk.new_execution()
            world = World(scenario, driver, drivers=DRIVERS)
            failure = execute(world, walk).failure
            world.kernel.close()
            if failure is not None:
                return number, failure
    return None


@pytest.mark.parametrize("driver", ["xe", "nouveau", "dmirror"])
def test_mm_02_cpus_whose_references_keep_each_other_from_migrating(driver):
    assert schedules(READERS, driver, 120) is None
    found = schedules(READERS, driver, 120, mutant="MM-02")
    assert found is not None
    _, failure = found
    assert (failure.kind, failure.invariant) == ("livelock", "I-PROG")
    assert failure.message.splitlines()[0].endswith("began again 5 times each, and nobody got anything done")
