"""Every scheduler explores the same scenario on a shipped driver, through the one call that the command line makes."""

import pytest
from gpusvm.errors import InputError
from gpusvm.explore import explore
from gpusvm.explore.world import World

SCENARIO = "fault-munmap"


def once(scheduler, **options):
    return explore([SCENARIO], ["dmirror"], scheduler=scheduler, **options).results[0]


@pytest.mark.parametrize("scheduler", ["random", "pct:depth=2", "delay:delays=1"])
def test_one_that_draws_gives_the_same_however_it_is_cut(scheduler):
    whole = once(scheduler, schedules=300)
    assert (whole.schedules, whole.exhausted, whole.skipped) == (300, False, None)
    assert not whole.findings
    parts = [once(scheduler, schedules=100, first=first) for first in (0, 100, 200)]
    assert sum(part.steps for part in parts) == whole.steps


def test_depth_first_comes_to_an_end_and_says_what_it_skipped():
    reduced = once("dfs:preemptions=2", schedules=100_000)
    assert reduced.exhausted
    assert not reduced.findings
    assert reduced.skipped > 0
    every = once("dfs:preemptions=2,reduction=off", schedules=100_000)
    assert every.exhausted
    assert reduced.schedules < every.schedules
    # A switch behind steps that nobody else sees counts as one before them, so the bound reaches further.
    assert set(reduced.coverage.outcomes) >= set(every.coverage.outcomes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"jobs": 2}, "--jobs: 'dfs' explores one tree from its root in one process; leave it out"),
        ({"first": 5}, "--first: 'dfs' explores one tree from its root in one process; leave it out"),
    ],
)
def test_depth_first_takes_no_part_of_its_tree(options, message):
    with pytest.raises(InputError) as error:
        once("dfs", **options)
    assert str(error.value) == message


def test_a_tree_says_how_far_it_is(monkeypatch):
    quiet = once("dfs:preemptions=1")
    monkeypatch.setattr("gpusvm.explore.campaign.PROGRESS_S", 0)
    told = []
    whole = once("dfs:preemptions=1", progress=lambda each: told.append((each.exploration.schedules, each.failed)))
    assert told[: whole.schedules + 1] == [(number, 0) for number in range(whole.schedules + 1)]
    assert (whole.schedules, whole.steps, whole.skipped) == (quiet.schedules, quiet.steps, quiet.skipped)


@pytest.mark.parametrize("scheduler", ["pct", "delay"])
def test_choices_are_counted_once_for_all_chunks(scheduler, monkeypatch):
    boots = []
    monkeypatch.setattr("gpusvm.explore.case.World", lambda *given, **named: boots.append(1) or World(*given, **named))
    assert once(scheduler, schedules=600, seed=7).schedules == 600
    # To see that it boots, to count, and to explore.
    assert len(boots) == 3
