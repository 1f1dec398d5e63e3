"""The bundled scenarios on every driver: with quirks fixed none breaks a rule, and none has tasks that never meet."""

import pytest
from gpusvm.explore.campaign import Campaign
from gpusvm.explore.pct import Pct
from gpusvm.explore.random_walk import RandomWalk
from gpusvm.explore.scenario import Scenario, bundled
from gpusvm.explore.scheduler import Scheduler
from gpusvm.explore.world import World
from gpusvm.plugins import load_drivers

DRIVERS = load_drivers()
PAIRS = [
    pytest.param(scenario, name, id=f"{scenario.name}-{name}")
    for scenario in bundled()
    for name in DRIVERS
    if not scenario.refuses(DRIVERS[name])
]
EVERYWHERE = (
    "gpu_write", "cpu_write", "populate", "populate@1", "munmap 0 4", "munmap 2 2", "mprotect", "mremap", "fork",
    "child.cpu_write", "dontneed", "close", "exit", "oom_kill",
)  # fmt: skip
# Memory of nouveau is pinned, dmirror never sleeps, and only xe goes on when it is unplugged.
SOMEWHERE = (
    ("evict", "xe"), ("evict", "dmirror"), ("idle", "xe"), ("idle", "nouveau"), ("unplug", "xe"), ("destroy", "xe"),
)  # fmt: skip
SCHEDULES = 8
SCHEDULES_STANDARD = 24
SCHEDULES_MAX = 96


def campaign(scenario: Scenario, driver: str, scheduler: Scheduler, *, failures: int = 0) -> Campaign:
    return Campaign(
        lambda: World(scenario, driver, drivers=DRIVERS), scheduler, failures_max=failures, self_test_every=0
    )


@pytest.mark.parametrize(
    ("operation", "driver"), [*((operation, name) for operation in EVERYWHERE for name in DRIVERS), *SOMEWHERE]
)
def test_a_driver_meets_each_operation(operation: str, driver: str) -> None:
    meant = [scenario for scenario in bundled() if not scenario.refuses(DRIVERS[driver])]
    lines = [str(line) for scenario in meant for task in scenario.tasks.values() for line in task]
    assert any(f"{line} ".startswith(f"{operation} ") for line in lines)


@pytest.mark.parametrize(("scenario", "driver"), PAIRS)
def test_no_order_breaks_a_rule(scenario: Scenario, driver: str) -> None:
    budget = SCHEDULES_STANDARD if scenario.standard else SCHEDULES
    run = campaign(scenario, driver, RandomWalk(seed=1))
    assert [execution.failure for _, execution in run.run(schedules=budget)] == []


@pytest.mark.parametrize(("scenario", "driver"), PAIRS)
def test_the_tasks_meet(scenario: Scenario, driver: str) -> None:
    # Of tasks that have nothing to do with each other every order has the same steps: whoever waits, tries again or is
    # refused does so in some orders only.
    budget = SCHEDULES_STANDARD if scenario.standard else SCHEDULES
    run = campaign(scenario, driver, Pct(seed=3))
    seen = set()
    while run.schedules < budget or (len(seen) == 1 and run.schedules < SCHEDULES_MAX):
        before = run.steps
        assert [execution.failure for _, execution in run.run(schedules=run.schedules + 1)] == []
        seen.add(run.steps - before)
    assert len(seen) > 1


@pytest.mark.parametrize(("scenario", "driver"), PAIRS)
def test_a_failure_anywhere_breaks_no_rule(scenario: Scenario, driver: str) -> None:
    run = campaign(scenario, driver, RandomWalk(seed=2), failures=1)
    assert [execution.failure for _, execution in run.run(schedules=SCHEDULES // 2)] == []
