"""Every check of the conformance suite has been seen to fail: with a mutant, or with a driver that breaks a rule.

docs/reference/mutants-suite.json says with which. For a check that is new: uv run python benchmarks/mutants.py --suite
--quiet. Where nothing fails it, either it cannot fail, and is to be mended, or a mistake is missing that an author may
make (gpusvm.conformance.mutants.broken).
"""

import random
from collections import defaultdict
from pathlib import Path

import pytest
from gpusvm.conformance.caught import Trial, read_trials, trial, write_trials
from gpusvm.conformance.shown import Showing, quiet, shown
from gpusvm.conformance.suite.catalogue import catalogue

ROOT = Path(__file__).resolve().parent.parent
TRIALS = read_trials(ROOT / "docs" / "reference" / "mutants-suite.json")
CHECKS = {check.id: check for check in catalogue()}
SHOWN = shown(TRIALS)
SAMPLE = random.Random("1.0").sample(sorted(SHOWN), 24)


def by_breakage(checks):
    """Group what showed some checks, so that each breakage of each driver is put in place once."""
    found = defaultdict(list)
    for name in checks:
        first = SHOWN[name][0]
        found[first.by, first.driver].append(name)
    return [pytest.param(*key, names, id=f"{key[0]}-{key[1]}") for key, names in sorted(found.items())]


def test_every_check_has_been_seen_to_fail():
    assert quiet(CHECKS, TRIALS) == []


@pytest.mark.parametrize(("by", "driver", "names"), by_breakage(SAMPLE))
def test_what_failed_some_checks_fails_them_still(by, driver, names):
    found, plain = trial(by, driver, [CHECKS[name] for name in names], every=True)
    assert (found.failed, plain.passed) == (tuple(names), tuple(names))


@pytest.mark.slow
@pytest.mark.parametrize(("by", "driver", "names"), by_breakage(name for name in SHOWN if name in CHECKS))
def test_what_failed_a_check_fails_it_still(by, driver, names):
    found, plain = trial(by, driver, [CHECKS[name] for name in names], every=True)
    assert (found.failed, plain.passed) == (tuple(names), tuple(names))


def test_what_fails_least_shows_most_and_what_fails_without_it_shows_nothing():
    trials = {
        ("", "xe"): Trial(mutant="", driver="xe", passed=("a", "b", "c"), failed=("d",)),
        ("wide", "xe"): Trial(mutant="wide", driver="xe", failed=("a", "b", "c", "d")),
        ("narrow", "xe"): Trial(mutant="narrow", driver="xe", failed=("a",), passed=("b", "c", "d")),
        ("leak", "xe"): Trial(mutant="leak", driver="xe", failed=("b",), passed=("a", "c", "d"), late=("b",)),
        ("other", "kfd"): Trial(mutant="other", driver="kfd", failed=("d",)),
    }
    found = shown(trials)
    assert {check: [each.by for each in some] for check, some in found.items()} == {
        "a": ["narrow", "wide"],
        "b": ["wide", "leak"],
        "c": ["wide"],
    }
    assert found["a"][0] == Showing(check="a", by="narrow", driver="xe", fails=1, ran=4, late=False, hung=False)
    assert quiet("abcd", trials) == ["d"]


def test_a_failure_that_any_check_might_have_shows_nothing_of_one():
    trials = {
        ("", "xe"): Trial(mutant="", driver="xe", passed=("a", "b", "c")),
        ("leak", "xe"): Trial(mutant="leak", driver="xe", failed=("a", "b", "c"), late=("a",), hung=("b",)),
    }
    assert quiet("abc", trials) == ["a", "b"]


def test_what_is_written_in_runs_of_numbers_is_read(tmp_path):
    names = list("abcdefgh")
    one = Trial(mutant="no-unmap", driver="xe", failed=("a", "b", "c", "f"), passed=("e",), late=("f",))
    path = tmp_path / "trials.json"
    write_trials([one], names, path, command="nothing")
    assert '"failed":"0-2 5"' in path.read_text("utf-8")
    assert read_trials(path) == {("no-unmap", "xe"): one}


def test_of_checks_that_are_forgotten_nothing_is_known():
    one = Trial(mutant="no-unmap", driver="xe", failed=("a", "b"), passed=("c",), hung=("a",), late=("b",))
    assert one.without({"a", "c"}) == Trial(mutant="no-unmap", driver="xe", failed=("b",), late=("b",))
