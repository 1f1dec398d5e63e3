"""Test that steps which footprints call independent may be swapped: run both orders and compare what comes out.

Reductions of a search are as sound as the footprints. `swaps` runs a scenario in a random order, finds two adjacent
steps of different tasks that are independent, runs it again with those two swapped, and compares the state of the
machine behind them, every later step with what it touched, what the operations answered and the state at the end. A
difference is a thing that both steps touched and nobody was told of.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from attrs import Factory, define, frozen

from gpusvm.errors import ModelError
from gpusvm.explore.execution import execute
from gpusvm.explore.footprint import Footprints, Path, Step, independent
from gpusvm.explore.stage import Stage
from gpusvm.kernel import ABANDON, SeededChoices, Task

if TYPE_CHECKING:
    from gpusvm.explore.execution import Execution
    from gpusvm.explore.world import World
    from gpusvm.kernel import Timer

__all__ = ["Difference", "Swaps", "swaps"]

_TIME: Final = re.compile(r" at \d+ ns")

State = Callable[["World"], Sequence[str]]
"""Say what the state of a world is, as lines to compare, without time and identities."""


@frozen(kw_only=True)
class Difference:
    """Two independent steps that were swapped, and what was different."""

    first: Step
    second: Step
    what: str


@define
class Swaps:
    """Count what was tried; `differences` are the findings."""

    executions: int = 0
    adjacent: int = 0  # pairs of steps of different tasks, one after the other
    conflicting: int = 0
    swapped: int = 0
    impossible: list[tuple[Step, Step]] = Factory(list)  # the second cannot go first
    differences: list[Difference] = Factory(list)


class _Watched(Footprints):
    """Take the state behind one step, and at the end."""

    def __init__(self, *packages: str, state: State) -> None:
        super().__init__(*packages)
        self.state = state
        self.world: World | None = None
        self.at = -1
        self.behind: Sequence[str] = ()
        self.last: Sequence[str] = ()

    def step(self, task: Task, label: str, what: object, write: bool) -> None:
        super().step(task, label, what, write)
        self._look()

    def ended(self, task: Task) -> None:
        super().ended(task)
        self._look()

    def end(self) -> None:
        if self.world is not None and self.world.kernel.footprint is self:
            self.last = self.state(self.world)
        super().end()

    def _look(self) -> None:
        if len(self.steps) == self.at and self.world is not None:
            self.behind = self.state(self.world)


class _Random:
    """Go anywhere, but keep to a task for a while: where tasks alternate at every step, few operations ever end."""

    def __init__(self, footprints: Footprints, seed: int) -> None:
        self.footprints = footprints
        self.random = SeededChoices(seed)
        self.keep = self.random.pick(4, "how often to change")
        self.data: dict[tuple[Path, int], list[int]] = {}

    def new_execution(self) -> bool:
        return True

    def next_task(self, candidates: Sequence[Task | Timer], running: Task | None) -> int:
        if running is not None and self.keep and self.random.pick(self.keep + 1, "keep"):
            return 0
        return self.random.pick(len(candidates), "task")

    def next_int(self, n: int, label: str) -> int:
        choice = self.random.pick(n, label)
        self.data.setdefault(_now(self.footprints), []).append(choice)
        return choice


class _Scripted:
    """Go in a given order of tasks, each with the data it had; ABANDON where that cannot be."""

    def __init__(self, footprints: Footprints, order: list[Path], data: dict[tuple[Path, int], list[int]]) -> None:
        self.footprints = footprints
        self.order = order
        self.data = {at: list(choices) for at, choices in data.items()}

    def new_execution(self) -> bool:
        return True

    def next_task(self, candidates: Sequence[Task | Timer], running: Task | None) -> int:
        done = len(self.footprints.steps)
        if done < len(self.order):
            wanted = self.order[done]
            for i, each in enumerate(candidates):
                path = self.footprints.path(each)
                if (path if isinstance(each, Task) else (*path, self.footprints.children(path))) == wanted:
                    return i
        return ABANDON

    def next_int(self, n: int, label: str) -> int:
        choices = self.data.get(_now(self.footprints), [])
        return choices.pop(0) if choices else 0


def _now(footprints: Footprints) -> tuple[Path, int]:
    path = footprints.running()
    return path, footprints.number(path)


def swaps(
    boot: Callable[[], World],
    *packages: str,
    state: State,
    seeds: Sequence[int],
    pairs: int = 4,
    failures_max: int = 0,
) -> Iterator[Swaps]:
    """Swap up to `pairs` independent neighbours in the execution of each seed; yield the counts after each."""
    counts = Swaps()
    footprints = _Watched(*packages, state=state)
    stage = Stage(boot)
    with footprints.watching():

        def run(scheduler: _Random | _Scripted, at: int) -> tuple[Execution, list[Step], Sequence[str], Sequence[str]]:
            world = stage.ready()
            footprints.world, footprints.at, footprints.behind, footprints.last = world, at, (), ()
            execution = execute(world, scheduler, failures_max=failures_max, footprints=footprints)
            return execution, footprints.steps, footprints.behind, footprints.last

        for seed in seeds:
            random = _Random(footprints, seed)
            _, steps, _, _ = run(random, -1)
            counts.executions += 1
            order = [step.task for step in steps]
            found = []
            for i, (one, other) in enumerate(pairwise(steps)):
                if one.task != other.task:
                    counts.adjacent += 1
                    if independent(one, other):
                        found.append(i)
                    else:
                        counts.conflicting += 1
            chosen = SeededChoices(seed)
            for _ in range(min(pairs, len(found))):
                i = found.pop(chosen.pick(len(found), "pair") if len(found) > 1 else 0)
                as_was = run(_Scripted(footprints, order, random.data), i + 2)
                if [step.task for step in as_was[1]] != order:
                    raise ModelError(f"seed {seed}: the same order cannot be repeated")
                swapped = [*order[:i], order[i + 1], order[i], *order[i + 2 :]]
                other_way = run(_Scripted(footprints, swapped, random.data), i + 2)
                if [step.task for step in other_way[1][: i + 2]] != swapped[: i + 2]:
                    counts.impossible.append((steps[i], steps[i + 1]))
                    continue
                counts.swapped += 1
                what = _difference(as_was, other_way, i)
                if what:
                    counts.differences.append(Difference(first=as_was[1][i], second=as_was[1][i + 1], what=what))
            yield counts


def _difference(
    one: tuple[Execution, list[Step], Sequence[str], Sequence[str]],
    other: tuple[Execution, list[Step], Sequence[str], Sequence[str]],
    at: int,
) -> str:
    """Say what is different in two executions of which the second has the steps `at` and `at + 1` swapped."""
    if one[2] != other[2]:
        return f"the state behind both: {_first(one[2], other[2])}"
    steps, others = list(one[1]), list(other[1])
    others[at : at + 2] = others[at + 1], others[at]
    for i in range(max(len(steps), len(others))):
        a, b = (_shown(each[i]) if i < len(each) else "none" for each in (steps, others))
        if a != b:
            return f"step {i}: {a} and {b}"
    if one[3] != other[3]:
        return f"the state at the end: {_first(one[3], other[3])}"
    ends = [(sorted(each[0].outcomes), _TIME.sub("", str(each[0].failure))) for each in (one, other)]
    return "" if ends[0] == ends[1] else f"the end: {ends[0]} and {ends[1]}"


def _shown(step: Step) -> str:
    return f"{step.task} {step.label} reads {sorted(step.reads)} writes {sorted(step.writes)}"


def _first(one: Sequence[str], other: Sequence[str]) -> str:
    for a, b in zip(one, other, strict=False):
        if a != b:
            return f"{a} and {b}"
    return f"{len(one)} and {len(other)} lines"
