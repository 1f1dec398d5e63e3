"""Bounded progress of what is no access of a GPU: an eviction or an ioctl that has no end is reported, by its name."""

from functools import partial

import pytest
from gpusvm.explore.campaign import Campaign
from gpusvm.explore.random_walk import RandomWalk
from gpusvm.explore.scenario import find_scenario
from gpusvm.explore.world import OPERATION_STEPS_MAX, World
from gpusvm.plugins import load_drivers
from gpusvm_dmirror.mirror import Dmirror
from gpusvm_xe.driver import XeDriver
from gpusvm_xe.vm import XeVm

DRIVERS = load_drivers()


def polls_for_ever(self, *_args, **_kwargs):
    """Wait for what nobody does, without saying so."""
    kernel = self.device.kernel if isinstance(self, Dmirror) else self.kernel
    while True:
        kernel.step()


def explore(scenario, driver):
    (found,) = find_scenario(scenario)
    campaign = Campaign(partial(World, found, driver, drivers=DRIVERS), RandomWalk(seed=0), self_test_every=0)
    return next((execution for _, execution in campaign.run(schedules=3)), None)


@pytest.mark.parametrize(
    ("target", "method", "scenario", "driver", "what"),
    [
        (XeDriver, "evict", "evict-cpu-write", "xe", "pressure: evict"),
        (XeVm, "populate", "populate-munmap-part", "xe", "program: populate 0 4"),
        (Dmirror, "populate", "populate-munmap-part", "dmirror", "program: populate 0 4"),
        (XeVm, "madvise", "xe-madvise-munmap", "xe", "program: ioctl prefer_ram 0 2"),
    ],
)
def test_what_never_ends_is_reported_by_its_name(target, method, scenario, driver, what, monkeypatch):
    assert explore(scenario, driver) is None
    monkeypatch.setattr(target, method, polls_for_ever)
    execution = explore(scenario, driver)
    assert execution.failure.kind == "progress"
    title = execution.failure.message.splitlines()[0]
    assert title == f"no end after {OPERATION_STEPS_MAX} steps of all tasks: {what} is still not done"
    assert execution.steps < 2 * OPERATION_STEPS_MAX


def test_an_operation_that_is_done_bounds_nothing_any_more():
    (found,) = find_scenario("evict-cpu-write")
    world = World(found, "xe", drivers=DRIVERS)
    sched = world.kernel.sched
    before = sched.steps_max
    world.run_task(found.tasks[next(iter(found.tasks))])
    assert sched.steps_max == before
    world.kernel.close()
