"""`gpusvm conform --mutant ID`: the suite on a driver with a bug that Linux had, or with a rule broken."""

import re

import gpusvm
import pytest
from gpusvm.conformance.caught import catchers
from gpusvm.conformance.conforming import conform
from gpusvm.conformance.suite import Status
from gpusvm.errors import InputError
from test_mutants_caught import TRIALS


@pytest.mark.parametrize("jobs", [0, 1])
@pytest.mark.parametrize("mutant", ["GS-01", "never-evicts"])
def test_a_check_fails_with_it_and_passes_without(mutant, jobs):
    driver, (name, *_) = next(iter(catchers(mutant, TRIALS).items()))
    found = conform(driver, checks=[name], quirks="fixed", mutant=mutant.upper() if jobs else mutant, jobs=jobs)
    (result,) = found.results
    assert result.status in {Status.FAIL, Status.ERROR}
    assert found.to_dict()["mutant"].lower() == mutant.lower()
    assert found.command(result).endswith(f" --quirks fixed --mutant {found.mutant}")
    assert conform(driver, checks=[name], quirks="fixed").ok


def test_one_that_there_is_not():
    said = "unknown mutant 'never-evict', did you mean 'never-evicts'?"
    with pytest.raises(InputError, match=re.escape(said)):
        conform("xe", checks=["access.*"], mutant="never-evict")


def test_a_page_says_so():
    found = gpusvm.conform("xe", checks=["access.unmapped.refused"], mutant="GS-01")
    assert "quirks as_written, mutant GS-01: 1 checks." in found._repr_html_()
