"""What the drivers that ship state of themselves is exact: each quirk that an entry names breaks its check alone, or
with those that it is joined to, and with none of them left the check passes.
"""

import random

import pytest
from gpusvm.conformance.caught import ended
from gpusvm.conformance.suite import Status
from gpusvm.conformance.suite.catalogue import catalogue
from gpusvm.conformance.suite.column import read_columns
from gpusvm.plugins import Installed

REGISTRY = Installed(()).registry()
CHECKS = {check.id: check for check in catalogue()}
STATED = {
    column.driver: [each for each in column.statement.expected.values() if each.quirks]
    for column in read_columns((), REGISTRY)
}
SEVERAL = [
    (driver, each)
    for driver, stated in sorted(STATED.items())
    for each in stated
    if len(each.quirks) > 1 or len(each.quirks[0]) > 1
]
SAMPLE = random.Random("1.0").sample(SEVERAL, 6)


def comes_to(driver, check, quirks, names, variant):
    """Return what a check comes to where the quirks of these names are of another variant than all others."""
    spec = driver + ":" + ",".join(f"quirk.{name}={variant}" for name in names)
    (column,) = read_columns([spec], REGISTRY, quirks=quirks)
    return ended(CHECKS[check], column).verdict.status


def otherwise(driver, expected):
    """Return what is otherwise than an entry says."""
    found = [
        f"{expected.check}: passes with {' + '.join(group)}"
        for group in expected.quirks
        if comes_to(driver, expected.check, "fixed", group, "as_written") is Status.PASS
    ]
    names = sorted({name for group in expected.quirks for name in group})
    left = comes_to(driver, expected.check, "as_written", names, "fixed")
    return found if left is Status.PASS else [*found, f"{expected.check}: {left} without {', '.join(names)}"]


def test_there_are_entries_with_several_quirks():
    assert {driver for driver, _ in SEVERAL} == {"dmirror", "kfd", "nouveau", "xe"}


@pytest.mark.parametrize(
    ("driver", "expected"), [pytest.param(*each, id=f"{each[0]}-{each[1].check}") for each in SAMPLE]
)
def test_some_that_fail_by_several_quirks_do_so_by_each(driver, expected):
    assert otherwise(driver, expected) == []


@pytest.mark.slow
@pytest.mark.parametrize("driver", sorted(STATED))
def test_each_quirk_of_an_entry_is_a_reason(driver):
    assert [problem for expected in STATED[driver] for problem in otherwise(driver, expected)] == []
