"""Livelocks that Linux had are found by random walks, on every driver whose code goes there, and are mended."""

from contextlib import nullcontext

import pytest
from attrs import evolve
from gpusvm.conformance.mutants import load
from gpusvm.explore.execution import execute
from gpusvm.explore.livelock import CHANCES_MAX
from gpusvm.explore.random_walk import RandomWalk
from gpusvm.explore.scenario import find_scenario, read_scenarios
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


@pytest.mark.parametrize("driver", ["xe", "nouveau", "dmirror"])  # in svmdev, 400 random orders do not show it
def test_mm_02_cpus_whose_references_keep_each_other_from_migrating(driver):
    assert schedules(READERS, driver, 120) is None
    found = schedules(READERS, driver, 120, mutant="MM-02")
    assert found is not None
    _, failure = found
    assert (failure.kind, failure.invariant) == ("livelock", "I-PROG")
    assert failure.message.splitlines()[0].endswith("began again 5 times each, and nobody got anything done")


def test_mm_01_a_cpu_that_spins_keeps_the_owner_of_the_lock_from_draining_it():
    (scenario,) = find_scenario("cpus-drain")
    assert schedules(scenario, "xe", 60) is None
    found = schedules(scenario, "xe", 60, mutant="MM-01")
    assert found is not None
    _, failure = found
    assert (failure.kind, failure.invariant) == ("livelock", "I-PROG")
    title, *stack = failure.message.splitlines()
    assert title.startswith("livelock: task 'kworker/xe_page_fault_work_queue:0' on CPU ")
    assert title.endswith(
        f"nobody else can go on; for a CPU wait 'kworker/mm_percpu_wq/{title.split(' on CPU ')[1][0]}:0'"
    )
    assert any(line.endswith("in _range_fault_locked") for line in stack)


def test_mm_01_is_none_where_the_kernel_preempts():
    (scenario,) = find_scenario("cpus-drain")
    assert schedules(evolve(scenario, preemptive=True), "xe", 60, mutant="MM-01") is None


@pytest.mark.parametrize(("driver", "n"), [("nouveau", 410), ("dmirror", 60)])  # nouveau's worker has more steps
def test_kf_05_a_sequence_that_is_stale_for_ever_is_found_within_some_rounds(driver, n):
    (scenario,) = find_scenario("fault-munmap")
    found = schedules(scenario, driver, n, mutant="KF-05")
    assert found is not None
    _, failure = found
    assert (failure.kind, failure.invariant) == ("livelock", "I-PROG")
    title, *stacks = failure.message.splitlines()
    assert title.endswith(f"began again {2 * CHANCES_MAX} times each, and nobody got anything done")
    assert any(line.startswith("    driver/pipeline.py:") and line.endswith(" in serve") for line in stacks)


def test_gs_06_a_budget_of_time_that_begins_anew_is_found_at_the_first_retry():
    (scenario,) = find_scenario("devices-fault")
    found = schedules(scenario, "xe", 100, mutant="GS-06")
    assert found is not None
    _, failure = found
    assert (failure.kind, failure.invariant) == ("livelock", "I-PROG")
    title, *stacks = failure.message.splitlines()
    assert title.startswith("livelock: 'kworker/xe_page_fault_work_queue:0' was to give up at ")
    assert title.endswith(" ns: nothing bounds its attempts")
    assert any(line.startswith("    drm/pages.py:") and line.endswith(" in get_pages") for line in stacks)


@pytest.mark.parametrize("driver", ["xe", "nouveau", "dmirror"])
def test_two_devices_that_take_a_page_from_each_other_get_it_in_the_end(driver):
    (scenario,) = find_scenario("devices-atomic")
    assert schedules(scenario, driver, 30) is None
