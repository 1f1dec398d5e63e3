"""What is dropped while a driver takes it (docs/case-studies/dropped-while-moved.md): as written, not when fixed."""

from functools import partial

import pytest
from gpusvm.explore.campaign import Campaign
from gpusvm.explore.execution import Failure
from gpusvm.explore.random_walk import RandomWalk
from gpusvm.explore.scenario import find_scenario
from gpusvm.explore.world import World
from gpusvm.plugins import load_drivers

DRIVERS = load_drivers()


def explore(scenario: str, spec: str, schedules: int, *, checked: bool = True) -> list[Failure]:
    (found,) = find_scenario(scenario)
    world = partial(World, found, spec, drivers=DRIVERS, checked=checked)
    campaign = Campaign(world, RandomWalk(seed=0), self_test_every=0)
    return [x.failure for _, x in campaign.run(schedules=schedules) if x.failure is not None]


@pytest.mark.parametrize("scenario", ["populate-dropped", "populate-dropped-huge"])
@pytest.mark.parametrize("driver", ["nouveau", "dmirror"])
def test_pages_dropped_while_they_migrate_are_not_mapped(driver: str, scenario: str) -> None:
    failure, *_ = explore(scenario, f"{driver}:quirk.migrate_seq=as_written", 8)
    assert failure.kind == "invariant"
    assert failure.message.startswith("invariant 54 (mirror-free-page): a device has a free page mapped [p:0x1000000")
    assert explore(scenario, f"{driver}:quirk.migrate_seq=fixed", 60) == []


@pytest.mark.parametrize("driver", ["nouveau", "dmirror"])
def test_the_gpu_writes_a_page_that_is_free_which_shows_without_the_invariant_too(driver: str) -> None:
    failures = explore("populate-dropped", f"{driver}:quirk.migrate_seq=as_written", 8, checked=False)
    assert {failure.kind for failure in failures} == {"use-after-free"}
    assert failures[0].message.startswith("use after free: task 'program' writes to free page 0x")


def test_a_device_as_written_but_for_this_finds_the_entries_of_old_pages_gone() -> None:
    """The device's own migration leaves them as written, and what is not mapped anew must not leave them either."""
    spec = "dmirror:quirk.own_migrate_seq=as_written,quirk.migrate_seq=fixed"
    assert explore("populate-dropped", spec, 60) == []


def test_a_page_dropped_after_it_was_made_exclusive_is_not_stored() -> None:
    failure, *_ = explore("dmirror-exclusive-dropped", "dmirror:quirk.exclusive_seq=as_written", 8)
    assert failure.kind == "invariant"
    assert failure.message == (
        "invariant 54 (mirror-free-page): a device has a free page mapped [p:0x100000000000, pfn 0x0, task 'device']"
    )
    assert explore("dmirror-exclusive-dropped", "dmirror:quirk.exclusive_seq=fixed", 60) == []
