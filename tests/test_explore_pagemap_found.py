"""What exploring found of xe's pagemap cache (docs/case-studies/xe-pagemap-cache.md): as written, not when fixed."""

import pytest
from gpusvm.explore.campaign import Campaign
from gpusvm.explore.case import Case
from gpusvm.explore.random_walk import RandomWalk
from gpusvm.explore.scenario import find_scenario
from gpusvm.plugins import load_drivers

DRIVERS = dict(load_drivers())


def explore(name, spec, *, schedules, failures=0):
    (scenario,) = find_scenario(name)
    case = Case(scenario=scenario, driver=spec, drivers=DRIVERS, failures_max=failures)
    campaign = Campaign(boot=case.boot, scheduler=RandomWalk(seed=0), failures_max=failures)
    return next((execution.failure.message for _, execution in campaign.run(schedules=schedules)), None)


def test_the_shrinker_forgets_a_pagemap_in_use():
    found = explore("pagemap-cache", "xe:quirk.shrinker_forgets=as_written", schedules=300)
    assert found == "gpu0: 1 pagemaps are on the shrinker's list, and no cache knows them"


def test_a_pagemap_that_cannot_be_made_is_unwound_twice():
    found = explore("pagemap-cache", "xe:quirk.create_unwind=as_written", schedules=300, failures=1)
    assert found == "release_owner: the peer has no owner"


@pytest.mark.parametrize("name", ["pagemap-cache", "pagemap-last-close"])
def test_nothing_is_found_when_both_are_fixed(name):
    assert explore(name, "xe", schedules=60, failures=1) is None
