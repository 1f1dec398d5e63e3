"""What exploring finds of devices that fall asleep: the race before system sleep, and references that are forgotten."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from gpusvm.explore.campaign import Campaign
from gpusvm.explore.case import Case
from gpusvm.explore.execution import Failure
from gpusvm.explore.finding import read_finding
from gpusvm.explore.repeat import repeat_finding
from gpusvm.explore.scenario import find_scenario
from gpusvm.explore.schedulers import read_scheduler
from gpusvm.plugins import Installed, load_drivers
from gpusvm_xe.pm import XeRuntimePm

DRIVERS = dict(load_drivers())
SYSTEM = ["system-sleep-fault", "system-sleep-populate", "system-sleep-devices"]


def explore(name: str, driver: str, schedules: int, *, seed: int = 1) -> Failure | None:
    (scenario,) = find_scenario(name)
    case = Case(scenario=scenario, driver=driver, drivers=DRIVERS)
    campaign = Campaign(boot=case.boot, scheduler=read_scheduler("pct:depth=3").make(seed=seed))
    return next((execution.failure for _, execution in campaign.run(schedules=schedules)), None)


def test_as_written_a_fault_brings_pages_back_before_the_system_sleeps() -> None:
    """docs/case-studies/xe-sleep-race.md."""
    found = explore("system-sleep-fault", "xe:quirk.sleep_race=as_written", 100)
    assert found is not None
    assert (found.kind, found.invariant) == ("invariant", "sleep_race")
    assert found.message.startswith("invariant 53 (device-awake): gpu0 is in D3cold, and pages of it are in use: 2 [")
    assert found.message.endswith("(known: quirk sleep_race)")


@pytest.mark.parametrize("name", [*SYSTEM, "sleep-cpu-write", "sleep-close", "sleep-devices", "sleep-unplug"])
def test_nothing_is_found_when_it_is_fixed(name: str) -> None:
    assert explore(name, "xe", 40) is None


@pytest.mark.parametrize("name", [*SYSTEM, "sleep-cpu-write", "sleep-close", "sleep-devices"])
def test_nouveau_falls_asleep_under_its_pages_and_loses_none(name: str) -> None:
    assert explore(name, "nouveau", 25) is None


@pytest.mark.parametrize("name", ["close-other-file", "home-mprotect", "home-pin"])
def test_a_device_that_falls_asleep_after_every_answer_lets_an_access_end(name: str) -> None:
    """With moved_chunks fixed the device forgets its entries whenever it sleeps, so that the access faults again."""
    at_once = "nouveau:autosuspend_ms=0,page_to_bo=offset,populate=explicit"
    assert explore(name, at_once, 4, seed=9101) is None


FAILED_POPULATE = sorted((Path(__file__).parent / "findings").glob("system-sleep-*-after-failed-populate.txt"))


@pytest.mark.parametrize("file", FAILED_POPULATE, ids=[file.stem for file in FAILED_POPULATE])
def test_as_written_a_populate_that_failed_keeps_the_system_awake(file: Path) -> None:
    """The same schedule without the quirk is one of those that tests/test_explore_findings.py repeats."""
    finding = evolve(read_finding(file), driver="xe:quirk.not_detached=as_written")
    failure = repeat_finding(finding, drivers=Installed(without=())).execution.failure
    assert failure is not None
    assert failure.invariant == "I-ERRNO"
    assert failure.message.startswith(
        "system: sleep 1: the kernel answered ENOSPC without a reason (it answers so where contended or failed or "
        "touched; -ENOSPC: device pages are left after 3 attempts)"
    )


def does_nothing(*_: object) -> None:
    """Forget a reference."""


def gives_up_early(self: XeRuntimePm, bo: Any, *, plain: Callable[..., None] = XeRuntimePm.pages_present) -> None:
    """Take the reference of the pages, and give it back before they are there."""
    plain(self, bo)
    self.rpm.put("bo", bo)


@pytest.mark.parametrize("present", [does_nothing, gives_up_early])
def test_pages_without_a_reference_are_found_where_the_last_file_is_closed(
    present: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it is never taken or dropped too early: while the VM holds its own, nobody notices."""
    monkeypatch.setattr(XeRuntimePm, "pages_present", present)
    monkeypatch.setattr(XeRuntimePm, "pages_gone", does_nothing)
    found = explore("sleep-close", "xe:d3cold_mib=0", 40)
    assert found is not None
    assert (found.kind, found.invariant) == ("invariant", "53")
    assert re.match(
        r"invariant 53 \(device-awake\): gpu0 is in D3hot, and pages of it are in use: [12] \[", found.message
    )
