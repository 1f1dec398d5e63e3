"""The drivers that ship, held to the suite: as written, and with every quirk fixed."""

import pytest
from gpusvm.conformance.conforming import conform
from gpusvm.conformance.suite import Status

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("quirks", ["as_written", "fixed"])
def test_nothing_is_otherwise_than_the_drivers_state(quirks):
    found = conform(quirks=quirks, jobs=2)
    assert found.drivers == ("dmirror", "kfd", "nouveau", "svmdev", "xe")
    assert [(each.check, each.driver, each.reason) for each in found.failures] == []
    assert [each for each in found.results if each.status is Status.NOT_RUN] == []
    claimed = [each for driver in found.drivers for each in found.standing(driver).values() if each.claimed]
    assert {each.conforms for each in claimed} <= {True, None}


def test_what_a_driver_is_stated_to_do_wrong_is_mended_where_its_quirks_are_fixed():
    found = conform(quirks="fixed", jobs=2)
    statements = {column.driver: column.statement.expected for column in found.columns}
    stated = [(each, statements[each.driver][each.check]) for each in found.results if each.status is Status.XFAIL]
    assert [(each.check, each.driver) for each, entry in stated if entry.kind == "bug"] == []
