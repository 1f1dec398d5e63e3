"""What the first program of a user found in xe (docs/case-studies/xe-endless-retry.md): as written, not when fixed."""

from gpusvm.explore.campaign import Campaign
from gpusvm.explore.case import Case
from gpusvm.explore.pct import Pct
from gpusvm.explore.scenario import find_scenario
from gpusvm.plugins import load_drivers

DRIVERS = dict(load_drivers())


def explore(spec, *, schedules):
    (scenario,) = find_scenario("fault-write-protect-part")
    case = Case(scenario=scenario, driver=spec, drivers=DRIVERS)
    campaign = Campaign(boot=case.boot, scheduler=Pct(seed=1))
    return next((execution.failure for _, execution in campaign.run(schedules=schedules)), None)


def test_a_fault_beside_memory_that_was_protected_never_ends():
    failure = explore("xe:quirk.endless_retry=as_written", schedules=200)
    assert failure is not None
    assert (failure.kind, failure.invariant) == ("livelock", "I-PROG")
    assert failure.message.startswith(
        "livelock: 'kworker/xe_page_fault_work_queue:0' began again 20 times each, and nobody got anything done"
    )


def test_it_ends_when_the_range_is_removed():
    assert explore("xe", schedules=100) is None
