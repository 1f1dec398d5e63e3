"""The conformance suite catches bugs that Linux had: of each mutant one check is repeated, with it and without.

docs/reference/mutants-suite.json says which checks fail with which mutant. Where checks or the model have changed so
that it says something else now: uv run python benchmarks/mutants.py --suite, with --again and --mutant.
"""

from pathlib import Path

import pytest
from gpusvm.conformance.caught import catchers, places, read_trials, trial
from gpusvm.conformance.hunt import read_plan
from gpusvm.conformance.mutants import MUTANTS
from gpusvm.conformance.suite.catalogue import catalogue

ROOT = Path(__file__).resolve().parent.parent
TRIALS = read_trials(ROOT / "docs" / "reference" / "mutants-suite.json")
CHECKS = {check.id: check for check in catalogue()}
CAUGHT = {mutant: {driver: names for driver, names in catchers(mutant, TRIALS).items() if names} for mutant in MUTANTS}


@pytest.mark.parametrize("mutant", [mutant for mutant in MUTANTS if CAUGHT[mutant]])
def test_a_check_that_is_named_fails_with_the_mutant_and_passes_without(mutant):
    driver, (name, *_) = next(iter(CAUGHT[mutant].items()))
    found, plain = trial(mutant, driver, [CHECKS[name]])
    assert (found.failed, plain.passed) == ((name,), (name,))


def test_every_mutant_is_caught():
    assert [mutant for mutant in MUTANTS if not CAUGHT[mutant]] == []


def test_each_was_tried_where_its_cases_are():
    tried = {(mutant, driver) for mutant, driver in TRIALS if mutant}
    plan = read_plan(ROOT / "benchmarks" / "mutants.toml")
    assert tried == {(mutant, driver) for mutant, drivers in places(plan).items() for driver in drivers}
