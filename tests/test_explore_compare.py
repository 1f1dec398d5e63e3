"""The operation `compare` sees what pages hold wherever they are, and what was lost."""

import numpy as np
import pytest
from gpusvm.explore.execution import execute
from gpusvm.explore.random_walk import RandomWalk
from gpusvm.explore.scenario import read_scenarios
from gpusvm.explore.world import World
from gpusvm.plugins import load_drivers

DRIVERS = load_drivers()


def boot(driver, setup, *, thp="always", end=("compare 0 4",)):
    text = f"""
[[scenario]]
name = "compared"
about = "pages that are somewhere"
thp = "{thp}"
setup = {list(setup)!r}
tasks.cpu = ["compare 0 4"]
tasks.other = ["cpu_read 8 1"]
end = {list(end)!r}
""".replace("'", '"')
    (scenario,) = read_scenarios(text, source="it")
    return World(scenario, driver, drivers=DRIVERS)


def run(world):
    walk = RandomWalk(seed=1)
    walk.new_execution()
    return execute(world, walk)


SETUPS = {
    "in no page": ["map 0 4", "map 8 1"],
    "in RAM": ["map 0 4", "map 8 1", "cpu_write 0 4"],
    "on the device": ["map 0 4", "map 8 1", "cpu_write 0 4", "populate 0 4"],
    "in both": ["map 0 4", "map 8 1", "cpu_write 0 4", "populate 0 4", "munmap 3 1", "cpu_write 1 1"],
    "zeros": ["map 0 4", "map 8 1", "cpu_read 0 4"],
}


@pytest.mark.parametrize("thp", ["always", "never"])
@pytest.mark.parametrize("setup", SETUPS.values(), ids=SETUPS)
@pytest.mark.parametrize("driver", DRIVERS)
def test_it_finds_what_was_written_and_moves_nothing(driver, setup, thp):
    world = boot(driver, setup, thp=thp)
    mm = world.actors["p"].process.mm
    pages = [world.base + page * world.page_size for page in range(4)]
    contents = world.machine.memory.contents
    before = [str(mm.page_table.entry(address)) for address in pages], contents.reads_checked, world.kernel.now_ns
    (step,) = world.scenario.tasks["cpu"]
    world.do(step)
    after = [str(mm.page_table.entry(address)) for address in pages], contents.reads_checked - 4, world.kernel.now_ns
    assert after == before
    assert run(world).failure is None


@pytest.mark.parametrize("place", ["in RAM", "on the device"])
@pytest.mark.parametrize("driver", DRIVERS)
def test_it_finds_what_is_wrong(driver, place):
    world = boot(driver, SETUPS[place], thp="never")
    memory = world.machine.memory
    mm = world.actors["p"].process.mm
    pfn = mm.page_table.entry(world.base).pfn
    pgmap = memory.pages.zone(pfn).pgmap
    backing_of = None if pgmap is None else getattr(pgmap.ops, "backing_of", None)
    if backing_of is not None:
        (pfn,) = backing_of(np.array([pfn])).tolist()
    zone = memory.pages.zone(pfn)
    zone.m_token[pfn - zone.base] += 1 << 8
    (step,) = world.scenario.tasks["cpu"]
    world.do(step)
    assert memory.contents.mismatch_count == 1


@pytest.mark.parametrize("driver", DRIVERS)
def test_it_misses_what_is_nowhere(driver):
    world = boot(driver, SETUPS["in no page"])
    memory = world.machine.memory
    mm = world.actors["p"].process.mm
    memory.contents._window(mm, world.base // world.page_size)[0] = 1 << 8
    (step,) = world.scenario.tasks["cpu"]
    world.do(step)
    assert [str(each).partition(" at ")[0] for each in memory.contents.mismatches] == [
        f"main read page {world.base // world.page_size:#x} of p"
    ]
