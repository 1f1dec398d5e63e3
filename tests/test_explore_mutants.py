"""Exploration finds bugs that Linux had, by programs that were not written for them, and nothing without them.

docs/reference/mutants.json says in which schedule; the cheapest entry of each mutant is explored again. Where the model
has changed so that the numbers have, too: uv run python benchmarks/mutants.py --again, or with --mutant.
"""

from pathlib import Path

import pytest
from gpusvm.conformance.hunt import SCHEDULERS, cheapest, hunt, read_outcomes, read_plan
from gpusvm.conformance.mutants import MUTANTS

ROOT = Path(__file__).resolve().parent.parent
PLAN = read_plan(ROOT / "benchmarks" / "mutants.toml")
OUTCOMES = read_outcomes(ROOT / "docs" / "reference" / "mutants.json")
CHEAPEST = cheapest(OUTCOMES)


@pytest.mark.parametrize("mutant", CHEAPEST)
def test_a_mutant_is_found_in_the_schedule_that_the_file_names(mutant):
    told = CHEAPEST[mutant]
    outcome = hunt(told.hunt, schedules=told.schedules)
    assert (outcome.schedules, outcome.kind, outcome.invariant) == (told.schedules, told.kind, told.invariant)


@pytest.mark.parametrize("mutant", CHEAPEST)
def test_the_model_as_it_is_is_clean_for_as_many_schedules(mutant):
    told = CHEAPEST[mutant]
    outcome = hunt(told.hunt.without_mutant(), schedules=told.schedules)
    assert (outcome.kind, outcome.invariant) == ("", "")


def test_the_file_has_every_hunt_of_the_plan_and_the_same_without_a_mutant():
    have = {outcome.hunt: outcome for outcome in OUTCOMES}
    hunts = PLAN.hunts()
    assert set(have) == {*hunts, *(what.without_mutant() for what in hunts)}
    for what, budget in hunts.items():
        outcome, plain = have[what], have[what.without_mutant()]
        assert outcome.found or outcome.exhausted or outcome.schedules >= budget
        assert not plain.found
        assert plain.exhausted or plain.schedules >= max(outcome.schedules, budget)


def test_every_bug_graded_s_is_found_and_the_plan_says_why_others_are_not():
    grave = [mutant.id for mutant in MUTANTS.values() if mutant.importance == "S"]
    assert [mutant for mutant in grave if mutant not in CHEAPEST] == []
    assert sorted(PLAN.why) == sorted(mutant for mutant in MUTANTS if mutant not in CHEAPEST)


def test_each_scheduler_finds_a_third_of_them_at_least():
    for scheduler in SCHEDULERS:
        found = {each.hunt.mutant for each in OUTCOMES if each.found and each.hunt.scheduler == scheduler}
        assert 3 * len(found) >= len(CHEAPEST)
