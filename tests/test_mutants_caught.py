"""The conformance suite catches bugs that Linux had, and drivers that break a rule: of each mutant and each broken
driver one check is repeated, with it and without.

docs/reference/mutants-suite.json says which checks fail with which mutant. Where checks or the model have changed so
that it says something else now: uv run python benchmarks/mutants.py --suite, with --again and --mutant.
"""

from pathlib import Path

import pytest
from gpusvm.conformance.caught import Trial, catchers, places, read_trials, trial, write_trials
from gpusvm.conformance.hunt import read_plan
from gpusvm.conformance.mutants import BROKEN, MUTANTS, OPS_BROKEN
from gpusvm.conformance.suite.catalogue import catalogue

ROOT = Path(__file__).resolve().parent.parent
TRIALS = read_trials(ROOT / "docs" / "reference" / "mutants-suite.json")
CHECKS = {check.id: check for check in catalogue()}
ALL = (*MUTANTS, *BROKEN, *OPS_BROKEN)
CAUGHT = {name: {driver: names for driver, names in catchers(name, TRIALS).items() if names} for name in ALL}


@pytest.mark.parametrize("mutant", [name for name in ALL if CAUGHT[name]])
def test_a_check_that_is_named_fails_with_the_mutant_and_passes_without(mutant):
    driver, (name, *_) = next(iter(CAUGHT[mutant].items()))
    found, plain = trial(mutant, driver, [CHECKS[name]])
    assert (found.failed, plain.passed) == ((name,), (name,))


def test_every_mutant_and_every_broken_driver_is_caught():
    assert [name for name in ALL if not CAUGHT[name]] == []


def test_each_was_tried_where_its_cases_are():
    tried = {(mutant, driver) for mutant, driver in TRIALS if mutant}
    plan = read_plan(ROOT / "benchmarks" / "mutants.toml")
    assert tried == {(mutant, driver) for mutant, drivers in places(plan).items() for driver in drivers}


def test_what_is_written_is_read_and_checks_that_are_no_more_are_forgotten(tmp_path):
    one = Trial(mutant="GS-01", driver="xe", failed=("b", "c"), passed=("a",), unsupported=("d",), hung=("c",))
    path = tmp_path / "trials.json"
    write_trials([one], ["a", "b", "c"], path, command="nothing")
    kept = Trial(mutant="GS-01", driver="xe", failed=("b", "c"), passed=("a",), hung=("c",))
    assert read_trials(path) == {("GS-01", "xe"): kept}


def test_a_check_counts_only_if_it_passes_without_and_one_that_hangs_comes_last():
    plain = Trial(mutant="", driver="xe", failed=("b",), passed=("a", "c"))
    one = Trial(mutant="GS-01", driver="xe", failed=("a", "b", "c"), hung=("a",))
    assert catchers("GS-01", {("", "xe"): plain, ("GS-01", "xe"): one}) == {"xe": ("c", "a")}


def test_a_later_outcome_of_a_check_takes_the_place_of_an_earlier():
    early = Trial(mutant="GS-01", driver="xe", failed=("a",), passed=("b",), hung=("a",))
    late = Trial(mutant="GS-01", driver="xe", passed=("a",))
    assert early.and_also(late) == Trial(mutant="GS-01", driver="xe", passed=("b", "a"))
