"""Exploring finds a module that goes too early, or is kept for no reason, and otherwise nothing."""

from functools import partial

import pytest
from gpusvm.conformance.mutants import load
from gpusvm.drm.pagemap import _DevHold
from gpusvm.explore.campaign import Campaign
from gpusvm.explore.execution import execute
from gpusvm.explore.pct import Pct
from gpusvm.explore.scenario import find_scenario
from gpusvm.explore.schedulers import read_scheduler
from gpusvm.explore.stage import Stage
from gpusvm.explore.world import World
from gpusvm.kernel import Module
from gpusvm.plugins import load_drivers

DRIVERS = load_drivers()


def explore(name: str, driver: str, scheduler: str = "pct:depth=3") -> str:
    """Return the kind and message of the first failure; empty if there is none."""
    (scenario,) = find_scenario(name)
    boot = partial(World, scenario, driver, drivers=DRIVERS)
    campaign = Campaign(boot=boot, scheduler=read_scheduler(scheduler).make(seed=1), self_test_every=0)
    failure = next((execution.failure for _, execution in campaign.run(schedules=40)), None)
    return "" if failure is None else f"{failure.kind}: {failure.message}"


def test_pages_without_a_reference_on_their_pagemap() -> None:
    with load("DP-11").active():
        assert explore("unload-pages", "xe") == (
            "errno: the module of xe was unloaded though a process had pages of its drm_pagemap"
        )


@pytest.mark.parametrize("mutant", ["DP-10", "DP-10b"])
def test_a_device_that_is_freed_under_its_pagemap(mutant: str) -> None:
    with load(mutant).active():
        message = explore("unbind-preferred", "xe")
    assert message.startswith("use-after-free: use after free: task ")
    assert " reads .dev_enter of <DrmDevice 'gpu1'> at drm/pagemap_cache.py:" in message


def test_a_module_that_goes_under_an_open_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Module, "try_get", lambda _module, _holder: True)
    monkeypatch.setattr(Module, "put", lambda _module, _holder: None)
    assert (
        explore("unload-close", "dmirror") == "errno: the module of dmirror was unloaded though a file of it was open"
    )


def test_a_module_that_nobody_gives_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_DevHold, "_put", lambda hold: hold._drm.put("drm_pagemap"))
    message = explore("unload-close", "xe")
    assert message.startswith(
        "errno: main: unload: the kernel answered EAGAIN without a reason "
        "(it answers so where held; -EAGAIN: xe is in use, "
    )


def test_a_worker_that_outlives_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the wait for xe's destroy worker, at the end of the device (xe_device_destroy)."""
    monkeypatch.setattr("gpusvm.drm.device.DrmDevice.drmm_add_action", lambda _drm, _action: None)
    message = explore("unbind-preferred", "xe", "random")
    assert message.startswith("use-after-free: use after free: task 'kworker/xe-destroy-wq:0' reads .")
    assert "<DrmDevice 'gpu1'> at " in message


@pytest.mark.parametrize("name", ["unload-close", "unload-open", "unload-exit", "unload-pages", "unload-child"])
@pytest.mark.parametrize("driver", ["xe", "nouveau", "dmirror"])
def test_it_goes_sooner_or_later(name: str, driver: str) -> None:
    (scenario,) = find_scenario(name)
    stage = Stage(partial(World, scenario, driver, drivers=DRIVERS))
    pct, answers = Pct(seed=1), set()
    for _ in range(40):
        assert pct.new_execution()
        execution = execute(stage.ready(), pct)
        assert execution.failure is None
        unloads = [outcome for _, operation, outcome in execution.outcomes if operation == "unload"]
        assert unloads.count("ok") == 1
        assert unloads[-1] in {"ok", "ENOENT"}
        answers.update(unloads)
    # What nobody has open is held by xe's drm_pagemap alone.
    assert ("EAGAIN" in answers) == (driver == "xe" or name not in {"unload-pages", "unload-child"})
