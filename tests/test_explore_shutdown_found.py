"""A fault that fails as the driver goes leaves a page behind (docs/case-studies/nouveau-remove-failed-fault.md)."""

import pytest
from gpusvm.explore import explore


def test_as_written_a_removal_waits_for_the_page_of_a_fault_that_has_failed():
    driver = "nouveau:quirk.evicted_once=as_written"
    explorations = explore(
        ["shutdown-cpu-write"], [driver], scheduler="pct", seed=1, schedules=400, failures_max=1, shrunk=False
    )
    (found,) = explorations.findings
    assert (found.finding.kind, found.finding.invariant) == ("deadlock", "I-PROG")
    assert "task 'driver' waits for completion 'dev_pagemap done'" in found.finding.message


@pytest.mark.parametrize("driver", ["nouveau", "svmdev"])
def test_what_comes_back_for_it_does_not(driver):
    explorations = explore(["shutdown-cpu-write"], [driver], scheduler="pct", seed=1, schedules=400, failures_max=1)
    assert not explorations.findings


def test_it_does_not_where_nothing_fails():
    driver = "nouveau:quirk.evicted_once=as_written"
    explorations = explore(["shutdown-cpu-write"], [driver], scheduler="pct", seed=1, schedules=100)
    assert not explorations.findings
