"""What a driver promises depends on its settings, and exploration holds it to that: with `DriverInfo.with_settings`."""

import errno

import pytest
from attrs import evolve
from gpusvm.driver import NEVER
from gpusvm.errors import InputError
from gpusvm.explore import explore
from gpusvm.plugins import Registry, load_drivers

DRIVERS = load_drivers()

# What each of these drivers answers with its setting, in the first schedule or two, and would not answer without.
ANSWERS = {
    ("xe-preferred-unplug", "xe:fallback=nack"): "xe answered ENODEV for page 1 without a reason",
    ("unbind-preferred", "xe:fallback=nack"): "xe answered ENODEV for page 2 without a reason",
}


def _first_message(scenario, driver, registry=None):
    found = explore([scenario], [driver], scheduler="pct", schedules=2, shrunk=False, registry=registry)
    return [each.finding.message for result in found.results for each in result.findings]


@pytest.mark.parametrize(("scenario", "driver"), ANSWERS)
def test_an_answer_that_a_setting_brings_has_its_reason(scenario, driver):
    assert _first_message(scenario, driver) == []


@pytest.mark.parametrize(("scenario", "driver"), ANSWERS)
def test_without_the_declaration_it_is_a_finding(scenario, driver):
    xe = DRIVERS.find("xe")
    forgetful = evolve(xe, info=evolve(xe.info, with_settings=lambda info, _tunables, _quirks: info))
    (message,) = _first_message(scenario, driver, Registry((forgetful,)))
    assert ANSWERS[scenario, driver] in message


def test_a_scenario_of_what_a_setting_takes_away_is_left_out_with_the_reason():
    with pytest.raises(InputError) as caught:
        explore(["atomic-evict"], ["xe:evict_order=none"])
    assert str(caught.value) == (
        "none of the scenarios is for these drivers: atomic-evict on xe:evict_order=none: it needs the "
        "capability eviction, which xe does not have: evict_order=none: what is in VRAM stays until it is freed"
    )


def test_the_driver_as_it_ships_promises_what_it_did():
    refusals = DRIVERS["xe"].refusals
    assert (refusals.access.contended, refusals.access.peer_unplugged, refusals.atomic.crowded) == (NEVER, NEVER, NEVER)
    assert errno.ENODEV not in refusals.access.unplugged
