"""The suspected defects of the mm, MM-S1 to MM-S7: found as written, by random walks, and gone when fixed."""

import pytest
from gpusvm.explore.execution import execute
from gpusvm.explore.random_walk import RandomWalk
from gpusvm.explore.scenario import find_scenario
from gpusvm.explore.world import World
from gpusvm.plugins import load_drivers

DRIVERS = load_drivers()
SCHEDULES = 60

# Which oracle finds it on which driver, and how its message begins. S4 is in no scenario: no driver here migrates more
# than one block at a time.
FOUND = [
    ("s1", "nouveau", "contents", "mm_s1", "2 reads did not see the last write, by the quirk mm_s1"),
    ("s1", "dmirror", "contents", "mm_s1", "2 reads did not see the last write, by the quirk mm_s1"),
    ("s1-range", "svmdev", "contents", "mm_s1", "2 reads did not see the last write, by the quirk mm_s1"),
    ("s2", "svmdev", "contents", "mm_s2", "1 reads did not see the last write, by the quirk mm_s2"),
    ("s2", "xe", "contents", "mm_s2", "1 reads did not see the last write, by the quirk mm_s2"),
    ("s3", "svmdev", "invariant", "mm_s3", "invariant 14 (migration-locked): 1 migration entries name the folio"),
    ("s3", "xe", "invariant", "mm_s3", "invariant 14 (migration-locked): 1 migration entries name the folio"),
    ("s5", "nouveau", "deadlock", "I-PROG", "deadlock: nothing can run"),
    (
        "s6",
        "xe",
        "errno",
        "I-ERRNO",
        "dump: core_dump 0 4: the core dump has a hole where page 0 holds what was written",
    ),
    ("s6", "nouveau", "errno", "I-ERRNO", "dump: core_dump 0 4: the core dump has a hole where page "),
    ("s6", "dmirror", "errno", "I-ERRNO", "dump: core_dump 0 4: the core dump has a hole where page "),
    ("s7", "nouveau", "errno", "I-ERRNO", "hardware: memory_failure 0 2: the failure of device memory answered EBUSY "),
    ("s7", "dmirror", "errno", "I-ERRNO", "hardware: memory_failure 0 2: the failure of device memory answered EBUSY "),
]


def first_failure(suspect, spec):
    (scenario,) = find_scenario(f"suspect-{suspect}")
    walk = RandomWalk(seed=1)
    for _ in range(SCHEDULES):
        walk.new_execution()
        world = World(scenario, spec, drivers=DRIVERS)
        failure = execute(world, walk).failure
        world.kernel.close()
        if failure is not None:
            return failure
    return None


def test_every_scenario_of_a_suspect_is_tried_on_every_driver_it_is_for():
    tried = {}
    for suspect, driver, *_ in FOUND:
        tried.setdefault(suspect, set()).add(driver)
    for suspect, drivers in tried.items():
        assert set(find_scenario(f"suspect-{suspect}")[0].drivers) == drivers


@pytest.mark.parametrize(("suspect", "driver", "kind", "invariant", "message"), FOUND)
def test_a_suspect_is_found_as_written(suspect, driver, kind, invariant, message):
    failure = first_failure(suspect, f"{driver}:quirk.mm_{suspect[:2]}=as_written")
    assert failure is not None
    assert (failure.kind, failure.invariant) == (kind, invariant)
    assert failure.message.startswith(message)


@pytest.mark.parametrize(("suspect", "driver"), [found[:2] for found in FOUND])
def test_nothing_is_found_once_it_is_fixed(suspect, driver):
    assert first_failure(suspect, driver) is None
