"""Exploration finds bugs that Linux had, by programs that were not written for them, and nothing without them."""

from contextlib import nullcontext

import pytest
from gpusvm.conformance.mutants import load
from gpusvm.explore.campaign import Campaign
from gpusvm.explore.case import Case
from gpusvm.explore.random_walk import RandomWalk
from gpusvm.explore.scenario import read_scenarios
from gpusvm.plugins import load_drivers

PROGRAMS = """
[[scenario]]
name = "discard"
about = "a CPU reads device memory that another discards"
setup = ["map 0 4", "cpu_write 0 4", "populate 0 4"]
tasks.cpu = ["cpu_read 0 4"]
tasks.drop = ["dontneed 0 4"]
end = ["cpu_read 0 4"]

[[scenario]]
name = "home"
about = "the GPU and a CPU write device memory"
setup = ["map 0 4", "cpu_write 0 4", "populate 0 4"]
tasks.gpu = ["gpu_write 0 4"]
tasks.cpu = ["cpu_write 0 4"]
"""
SCENARIOS = {scenario.name: scenario for scenario in read_scenarios(PROGRAMS, source="test")}


def explore(name, driver, mutant_id, schedules):
    case = Case(scenario=SCENARIOS[name], driver=driver, drivers=dict(load_drivers()))
    with nullcontext() if mutant_id is None else load(mutant_id).active():
        campaign = Campaign(boot=case.boot, scheduler=RandomWalk(seed=1))
        return next((execution.failure.message for _, execution in campaign.run(schedules=schedules)), None)


@pytest.mark.parametrize("driver", ["xe", "nouveau", "dmirror", "svmdev"])
def test_a_fault_without_a_reference_is_found(driver):
    found = explore("discard", driver, "MM-03", 60)
    assert found is not None
    assert found.startswith("use after free: ")


@pytest.mark.parametrize("driver", ["xe", "nouveau", "dmirror", "svmdev"])
def test_a_fault_that_can_never_migrate_is_found(driver):
    assert explore("home", driver, "MM-03b", 20) is not None


@pytest.mark.parametrize("driver", ["xe", "nouveau", "dmirror", "svmdev"])
@pytest.mark.parametrize("name", SCENARIOS)
def test_nothing_is_found_without_a_mutant(name, driver):
    assert explore(name, driver, None, 60) is None
