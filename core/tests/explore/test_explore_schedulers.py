"""The schedulers, on programs of a kernel alone: planted bugs, determinism, fairness, failures, and their names."""

import pytest
from gpusvm.errors import InputError, ModelError
from gpusvm.explore import explore_program, random_walk, replay
from gpusvm.explore.delay import Delay
from gpusvm.explore.dfs import DepthFirst
from gpusvm.explore.footprint import Footprints
from gpusvm.explore.pct import Pct
from gpusvm.explore.random_walk import RandomWalk
from gpusvm.explore.schedulers import SCHEDULERS, read_scheduler
from gpusvm.kernel import Kernel


class Shared:
    def __init__(self):
        self.value = 0


def run(choices, *bodies, failures_max=0):
    with Kernel(mode="explored", choices=choices) as kernel:
        kernel.explore_failures(failures_max=failures_max)
        shared = Shared()
        for body in bodies:
            kernel.spawn(body, kernel, shared, name=body.__name__)
        kernel.settle()


def counts_to_three(kernel, shared):
    for value in (1, 2, 3):
        kernel.write_once(shared, "value", value)


def meets(*values):
    """Fail if, read one after the other, the shared value is just these."""

    def reads(kernel, shared):
        if [kernel.read_once(shared, "value") for _ in values] == list(values):
            raise ModelError(f"met {values}")

    return reads


# By their depth: after all, in between, in between and after all.
BUGS = {
    1: lambda choices: run(choices, counts_to_three, meets(3)),
    2: lambda choices: run(choices, counts_to_three, meets(1)),
    3: lambda choices: run(choices, counts_to_three, meets(1, 3)),
}

MAKERS = {
    "random": lambda: RandomWalk(seed=1),
    "pct": lambda: Pct(depth=4, seed=1),
    "delay": lambda: Delay(delays=3, seed=1),
    "dfs": lambda: DepthFirst(preemptions=3),
    "dfs-reduced": lambda: DepthFirst(preemptions=3, footprints=Footprints()),
}


@pytest.mark.parametrize("depth", BUGS)
@pytest.mark.parametrize("name", MAKERS)
def test_a_planted_bug_is_found_and_repeated(name, depth):
    found = next(explore_program(BUGS[depth], MAKERS[name](), schedules=500))
    with pytest.raises(ModelError) as raised:
        replay(BUGS[depth], found)
    assert str(raised.value) == str(found.error)


@pytest.mark.parametrize("name", MAKERS)
def test_the_same_seed_finds_the_same(name):
    def choices():
        return [found.choices for found in explore_program(BUGS[2], MAKERS[name](), schedules=200)]

    assert choices() == choices() != []


@pytest.mark.parametrize(("depth", "least"), [(1, 500), (2, 1000 // 12), (3, 1000 // 72)])
def test_pct_keeps_its_bound(depth, least):
    # n = 2 tasks; k = 6 choices at most: each task has 4 steps, and the last of all are none.
    scheduler = Pct(depth=depth, seed=7, steps=6)
    assert len(list(explore_program(BUGS[depth], scheduler, schedules=1000))) >= least


def test_pct_of_a_lower_depth_cannot_find_a_deeper_bug():
    assert list(explore_program(BUGS[2], Pct(depth=1, seed=1), schedules=300)) == []
    assert list(explore_program(BUGS[3], Pct(depth=2, seed=1), schedules=300)) == []


def test_delays_bound_what_is_reached():
    assert list(explore_program(BUGS[2], Delay(delays=0), schedules=20)) == []
    assert list(explore_program(BUGS[3], Delay(delays=1, seed=1), schedules=300)) == []


def test_a_walk_goes_on_anywhere():
    whole = [(each.schedule, each.choices) for each in random_walk(BUGS[2], schedules=60, seed=3)]
    parts = [
        (each.schedule, each.choices)
        for first in (0, 20, 40)
        for each in random_walk(BUGS[2], schedules=20, seed=3, first=first)
    ]
    assert whole == parts


def test_a_stride_takes_every_other_schedule():
    everything = [each.choices for each in explore_program(BUGS[1], RandomWalk(seed=5), schedules=40)]
    halves = [
        [each.choices for each in explore_program(BUGS[1], RandomWalk(seed=5, first=first, stride=2), schedules=20)]
        for first in (0, 1)
    ]
    assert sorted(everything) == sorted(halves[0] + halves[1])


def spins(kernel, shared):
    while not shared.value:
        kernel.cpu_relax()


def polls(kernel, shared):
    while not shared.value:
        kernel.cond_resched()


def sets(kernel, shared):
    kernel.write_once(shared, "value", 1)


@pytest.mark.parametrize("waits", [spins, polls])
@pytest.mark.parametrize("name", MAKERS)
def test_who_spins_starves_nobody(name, waits):
    def program(choices):
        run(choices, waits, waits, sets)

    assert [str(found.error) for found in explore_program(program, MAKERS[name](), schedules=5)] == []


def fails_late(kernel, shared):
    for _ in range(20):
        shared.value += kernel.inject("often") and shared.value >= 0
    if kernel.inject("once"):
        raise ModelError("once failed")


@pytest.mark.parametrize("name", MAKERS)
def test_a_failure_after_many_that_could_fail_is_found(name):
    def program(choices):
        run(choices, fails_late, failures_max=1)

    assert next(explore_program(program, MAKERS[name](), schedules=100)).error.args == ("once failed",)


def test_specs_are_read_and_normalised():
    assert list(SCHEDULERS) == ["random", "pct", "delay", "dfs"]
    assert read_scheduler("random").text == "random"
    assert read_scheduler("pct:steps=9,depth=2").text == "pct:depth=2,steps=9"
    assert read_scheduler("dfs:preemptions=all").values == {"preemptions": None, "reduction": "on"}
    assert type(read_scheduler("random").make(seed=1)) is RandomWalk
    assert type(read_scheduler("pct").make(seed=1, first=3, stride=2)) is Pct
    assert type(read_scheduler("delay:delays=1").make()) is Delay
    assert read_scheduler("dfs:reduction=off").make().footprints is None
    assert read_scheduler("dfs").make(packages=["gpusvm_xe"]).footprints.packages == ("gpusvm_xe",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rnadom", "scheduler 'rnadom': unknown scheduler 'rnadom'; did you mean 'random'?"),
        ("pct:dept=3", "scheduler 'pct:dept=3': unknown key 'dept' of pct; did you mean 'depth'?"),
        ("random:x=1", "scheduler 'random:x=1': random has no parameters, got 'x'"),
        ("pct:depth=0", "scheduler 'pct:depth=0': depth: expected a whole number from 1 on, got '0'"),
        (
            "dfs:preemptions=two",
            "scheduler 'dfs:preemptions=two': preemptions: expected a whole number from 0 on or all, got 'two'",
        ),
        (
            "dfs:reduction=of",
            "scheduler 'dfs:reduction=of': reduction: 'of' is none of its values; did you mean 'off'?",
        ),
        ("pct:depth", "scheduler 'pct:depth': expected KEY=VALUE after the colon, got 'depth'"),
    ],
)
def test_what_there_is_not_is_said(text, message):
    with pytest.raises(InputError) as raised:
        read_scheduler(text)
    assert str(raised.value) == message


def test_dfs_takes_no_part_of_its_tree():
    with pytest.raises(InputError) as raised:
        read_scheduler("dfs").make(first=1, stride=2)
    assert str(raised.value) == "scheduler 'dfs' explores one tree in one process and takes no part of it: use one job"
