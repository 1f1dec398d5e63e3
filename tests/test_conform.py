"""The drivers that ship, held to the suite: as written, and with every quirk fixed.

One test for each driver: a test that takes longer than `faulthandler_timeout` ends the whole run.
"""

import pytest
from gpusvm.conformance.conforming import conform
from gpusvm.conformance.suite import Status
from gpusvm.plugins import load_drivers

pytestmark = pytest.mark.slow

DRIVERS = sorted(load_drivers())


def test_five_drivers_ship():
    assert DRIVERS == ["dmirror", "kfd", "nouveau", "svmdev", "xe"]


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("quirks", ["as_written", "fixed"])
def test_nothing_is_otherwise_than_the_driver_states(driver, quirks):
    found = conform(driver, quirks=quirks, jobs=2)
    assert [(each.check, each.reason) for each in found.failures] == []
    assert [each for each in found.results if each.status is Status.NOT_RUN] == []
    claimed = [each for each in found.standing(driver).values() if each.claimed]
    assert {each.conforms for each in claimed} == {True}
    if quirks == "fixed":
        (column,) = found.columns
        stated = [each.check for each in found.results if each.status is Status.XFAIL]
        assert [name for name in stated if column.statement.expected[name].kind == "bug"] == []
