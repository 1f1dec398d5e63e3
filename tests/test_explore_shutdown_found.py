"""A fault that fails as the driver goes leaves a page behind (docs/case-studies/nouveau-remove-failed-fault.md)."""

import pytest
from gpusvm.explore import explore


@pytest.mark.parametrize("driver", ["nouveau", "svmdev"])
def test_a_removal_waits_for_the_page_of_a_fault_that_has_failed(driver):
    explorations = explore(
        ["shutdown-cpu-write"], [driver], scheduler="pct", seed=1, schedules=400, failures_max=1, shrunk=False
    )
    (found,) = explorations.findings
    assert (found.finding.kind, found.finding.invariant) == ("deadlock", "I-PROG")
    assert "task 'driver' waits for completion 'dev_pagemap done'" in found.finding.message


@pytest.mark.parametrize("driver", ["nouveau", "svmdev"])
def test_it_does_not_where_nothing_fails(driver):
    explorations = explore(["shutdown-cpu-write"], [driver], scheduler="pct", seed=1, schedules=100)
    assert not explorations.findings
