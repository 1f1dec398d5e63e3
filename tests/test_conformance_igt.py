"""The checks of IGT's families are each seen to fail, and the page that says what is covered names checks."""

import re
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
from gpusvm.conformance.caught import ended
from gpusvm.conformance.suite import Status
from gpusvm.conformance.suite.catalogue import catalogue
from gpusvm.conformance.suite.column import read_columns
from gpusvm.plugins import Installed
from pair_breaks import BREAKS, active

CHECKS = {check.id: check for check in catalogue() if check.id.startswith(("inserted.", "partial.", "evict."))}
PAGE = Path(__file__).parent.parent / "docs" / "reference" / "igt-families.md"

FAILS = {
    **dict.fromkeys(CHECKS, "xe-copies-nothing"),
    **{name: "past-the-range" for name in CHECKS if name.startswith("inserted.")},
    **{name: "no-unmap" for name in CHECKS if name.startswith("partial.")},
    "inserted.atomic": "maps-nothing",
}


@pytest.mark.parametrize("name", CHECKS)
def test_a_check_fails_with_a_broken_driver_and_passes_without(name):
    driver, _ = BREAKS[FAILS[name]]
    (column,) = read_columns([driver], Installed(()).registry(), quirks="fixed")
    with active(FAILS[name]):
        assert ended(CHECKS[name], column).verdict.status is Status.FAIL
    assert ended(CHECKS[name], column).verdict.status is Status.PASS


def test_the_page_of_families_names_checks_that_there_are():
    ids = [check.id for check in catalogue()]
    rows = [line.split("|")[2] for line in PAGE.read_text("utf-8").splitlines() if line.startswith("| ")][2:]
    named = [name for row in rows for name in re.findall(r"`([a-z]+[-.][^`]*)`", row)]
    assert len(named) > 40
    assert [name for name in named if not any(fnmatchcase(each, name) for each in ids)] == []
