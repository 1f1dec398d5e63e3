"""The checks of two drivers in one machine: each is seen to fail, and all drivers that ship stand beside each other."""

from itertools import permutations

import pytest
from gpusvm.conformance.caught import ended
from gpusvm.conformance.conforming import conform
from gpusvm.conformance.suite import Status
from gpusvm.conformance.suite.catalogue import catalogue
from gpusvm.conformance.suite.column import read_columns
from gpusvm.errors import InputError
from gpusvm.plugins import Installed
from pair_breaks import BREAKS, active

CHECKS = {check.id: check for check in catalogue() if check.id.startswith("pair.")}
DRIVERS = ("dmirror", "kfd", "nouveau", "svmdev", "xe")

# Which broken driver each fails with, that it is about if there is one; the others lose what a device holds.
FAILS = {
    **dict.fromkeys(CHECKS, "xe-copies-nothing"),
    **{name: "names-theirs" for name in CHECKS if name.startswith("pair.reach.")},
    **{name: "no-unmap" for name in CHECKS if name.startswith("pair.change.")},
    "pair.owner.none-of-theirs": "names-theirs",
    "pair.owner.migrates-its-own": "migrates-theirs",
    "pair.notify.their-migration": "skips-every-migration",
    "pair.notify.my-migration": "past-the-range",
    "pair.looked.they-take-it": "no-recheck",
    "pair.unmapped.both-refuse": "no-unmap",
    "pair.remove.mine": "stays-on-removal",
    "pair.exit.both": "no-unmap",
    "pair.orders.exit.device": "copies-nothing-in",
    "pair.path.removed-under": "stays-on-removal",
}


def column(driver, **options):
    (found,) = read_columns([driver], Installed(()).registry(), quirks="fixed", **options)
    return found


@pytest.mark.parametrize("name", CHECKS)
def test_a_check_fails_with_a_broken_driver_and_passes_without(name):
    driver, _ = BREAKS[FAILS[name]]
    with active(FAILS[name]):
        assert ended(CHECKS[name], column(driver)).verdict.status is Status.FAIL
    assert ended(CHECKS[name], column(driver)).verdict.status is Status.PASS


@pytest.mark.slow
@pytest.mark.parametrize(("driver", "beside"), [*permutations(DRIVERS, 2)])
def test_every_driver_beside_every_other(driver, beside):
    found = conform(driver, checks=["pair.*"], quirks="fixed", beside=beside)
    assert [(each.check, each.reason) for each in found.failures] == []
    assert found.beside == beside
    assert found.to_dict()["beside"] == beside


def test_the_other_driver_is_that_of_the_option():
    of = column("xe", beside="nouveau")
    lab = of.lab()
    try:
        bench = lab.bench(hardware="dual", beside=[lab.other])
        assert [driver.info.name for driver in bench.machine.drivers] == ["xe", "nouveau"]
        lab.close()
    finally:
        lab.abandon()


def test_the_command_that_repeats_a_cell_names_the_other_driver():
    found = conform("dmirror", checks=["pair.turns.all-see"], beside="svmdev:device_pages=64")
    (cell,) = found.results
    assert (cell.status, found.command(cell)) == (
        Status.PASS,
        "conform --driver dmirror --check pair.turns.all-see --beside svmdev:device_pages=64",
    )


def test_there_is_no_such_driver_to_stand_beside():
    with pytest.raises(InputError) as caught:
        column("xe", beside="nuveau")
    assert str(caught.value) == "driver spec 'nuveau': unknown driver 'nuveau'; did you mean 'nouveau'?"
