"""The checks of two drivers run where core and one driver are all there is."""

import pytest
from gpusvm.conformance.lab import Lab
from gpusvm.conformance.partner import PARTNER
from gpusvm.conformance.suite import Statement
from gpusvm.conformance.suite.catalogue import catalogue
from gpusvm.conformance.suite.verdict import before
from gpusvm.errors import InputError

PAIRS = [check for check in catalogue() if check.id.startswith("pair.")]


def test_a_new_driver_keeps_to_what_is_its_own_beside_that_of_the_suite(acme):
    ran = [check for check in PAIRS if before(check, acme.capabilities, Statement()) is None]
    assert {check.profile for check in ran} == {"core", "atomics"}
    for check in ran:
        lab = Lab("acme", {"acme": acme}, watched=True)
        check.run(lab)
        lab.close()


def test_the_suites_own_driver_keeps_to_it_beside_a_new_one_and_itself():
    for check in PAIRS:
        if before(check, PARTNER.capabilities, Statement()) is None and not check.id.startswith("pair.path."):
            lab = Lab(PARTNER.name, {PARTNER.name: PARTNER}, "fixed", watched=True)
            check.run(lab)
            lab.close()


def test_a_driver_without_memory_of_its_own_stands_beside_none(acme):
    lab = Lab("acme", {"acme": acme}, beside="acme")
    with pytest.raises(InputError) as caught:
        lab.bench(beside=[lab.other])
    assert str(caught.value) == ("driver 'acme' cannot stand beside another: device_memory: nothing migrates yet")


def test_the_checker_knows_pages_that_a_driver_has_inserted():
    """They have no mapping, count as a file's, and lie in no area any more when munmap zaps them."""
    inserted = [check for check in catalogue() if check.id.startswith("inserted.")]
    assert len(inserted) == 10
    for check in inserted:
        lab = Lab(PARTNER.name, {PARTNER.name: PARTNER}, "fixed", watched=True)
        check.run(lab)
        lab.close()
