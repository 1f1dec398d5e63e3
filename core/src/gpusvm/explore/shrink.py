"""Make a failing execution as small as it can be read: fewest preemptions, then failures, operations, steps.

Delta debugging (A. Zeller, R. Hildebrandt: Simplifying and Isolating Failure-Inducing Input, IEEE TSE 28, 2002) over
the deviations from the plain execution, then over the scenario's operations, until nothing can be taken out. What is
left is 1-minimal: no single deviation or operation can go. With one or two preemptions fewer, all executions are tried
as well, as far as the budget goes, so it is often the least there is; that is not promised.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Final, TypeVar

from attrs import define, evolve, field, frozen

from gpusvm.explore.answers import Answer, Witness, failures, preemptions
from gpusvm.explore.deviations import Deviation, Deviations, DeviationWitness
from gpusvm.explore.execution import STEPS_MAX, execute
from gpusvm.explore.replay import Replay
from gpusvm.explore.stage import Stage

if TYPE_CHECKING:
    from gpusvm.explore.case import Case
    from gpusvm.explore.execution import Failure
    from gpusvm.explore.scenario import Operation, Scenario
    from gpusvm.explore.scheduler import Scheduler

__all__ = ["EXECUTIONS_MAX", "Shrinking", "Shrunk", "Size", "shrink"]

EXECUTIONS_MAX: Final = 2000
"""Executions that shrinking one finding may take; a number and not a time, so that the outcome is always the same."""

_STEPS_MAX: Final = 3_000_000  # of all executions together: one that never ends counts for many
_ENDLESS_STEPS: Final = 20_000
_SEARCH_MAX: Final = 150  # executions for one program with fewer operations, whose deviations come at other moments
_Item = TypeVar("_Item")


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


@frozen(order=True)
class Size:
    """Compare executions: the one that is read sooner is less."""

    preemptions: int
    failures: int
    operations: int
    tasks: int
    other: int
    """Deviations that are neither: who is next where nobody could carry on, data."""
    steps: int

    def __str__(self) -> str:
        tasks, operations = _counted(self.tasks, "task"), _counted(self.operations, "operation")
        return (
            f"{_counted(self.preemptions, 'preemption')}, {_counted(self.failures, 'failure')}, "
            f"{operations} in {tasks}, {_counted(self.steps, 'step')}"
        )


@frozen(kw_only=True)
class _Attempt:
    scenario: Scenario
    size: Size
    answers: tuple[Answer, ...]
    deviations: tuple[Deviation, ...]
    alternatives: tuple[Deviation, ...]
    failure: Failure | None
    steps: int


@frozen(kw_only=True)
class Shrunk:
    """Hold the smallest execution found, with the scenario that is left, and what it was before."""

    scenario: Scenario
    answers: tuple[Answer, ...]
    failure: Failure
    before: Size
    after: Size
    executions: int
    complete: bool
    """Nothing more could be taken out; False if the budget was used up first."""


@frozen(kw_only=True)
class Shrinking:
    """Say how far a shrinking is."""

    executions: int
    executions_max: int
    size: Size


class _SpentError(Exception):
    """The budget is used up."""


def shrink(
    case: Case,
    taken: Sequence[int],
    *,
    executions_max: int = EXECUTIONS_MAX,
    progress: Callable[[Shrinking], None] | None = None,
) -> Shrunk | None:
    """Shrink the execution that answers `taken` lead to; the same kind and invariant must be broken all the time.

    None if those answers lead to no failure, which is nondeterminism or a mistake. The mutant, if there is one, is
    switched on by the caller (`Case.active`). Deterministic.
    """
    shrinker = _Shrinker(case, executions_max, progress)
    first = shrinker.run(case.scenario, Replay(taken))
    if first.failure is None:
        return None
    shrinker.best = first
    shrinker.steps_max = min(20 * first.steps + 1000, STEPS_MAX)
    if first.steps > _ENDLESS_STEPS:
        # It has no end. That shows as well, and much sooner, with fewer steps allowed.
        shrinker.steps_max = _ENDLESS_STEPS
        sooner = shrinker.run(case.scenario, Replay(taken))
        if shrinker.same(sooner):
            shrinker.best = sooner
        else:
            shrinker.steps_max = STEPS_MAX
    complete = True
    try:
        shrinker.shrink()
    except _SpentError:
        complete = False
    best = shrinker.best
    if first.steps > _ENDLESS_STEPS:
        shrinker.steps_max = STEPS_MAX
        best = shrinker.run(best.scenario, Deviations(best.deviations))
        if not shrinker.same(best):
            best = first
    assert best.failure is not None
    return Shrunk(
        scenario=best.scenario,
        answers=best.answers,
        failure=best.failure,
        before=first.size,
        after=best.size,
        executions=shrinker.executions,
        complete=complete,
    )


@define
class _Shrinker:
    case: Case
    executions_max: int
    progress: Callable[[Shrinking], None] | None
    executions: int = 0
    steps: int = 0
    steps_max: int = STEPS_MAX
    best: _Attempt = field(init=False)
    _stage: tuple[Scenario, Stage] | None = None
    _good: set[tuple[object, frozenset[Deviation]]] = field(factory=set)
    _searched: set[tuple[object, int, int]] = field(factory=set)

    def run(self, scenario: Scenario, scheduler: Scheduler) -> _Attempt:
        """Execute once, and note the answers in words, and as deviations."""
        if self._stage is None or self._stage[0] != scenario:
            self._stage = (scenario, Stage(evolve(self.case, scenario=scenario).boot))
        world = self._stage[1].ready()
        deviating = DeviationWitness(scheduler)
        witness = Witness(deviating)
        witness.new_execution()
        execution = execute(world, witness, failures_max=self.case.failures_max, steps_max=self.steps_max)
        self.executions += 1
        self.steps += execution.steps
        answers = tuple(witness.answers)
        kinds = [answer.kind for answer in answers]
        return _Attempt(
            scenario=scenario,
            size=Size(
                preemptions=preemptions(answers),
                failures=failures(answers),
                operations=sum(map(len, scenario.tasks.values())),
                tasks=len(scenario.tasks),
                other=kinds.count("next") + kinds.count("choose"),
                steps=execution.steps,
            ),
            answers=answers,
            deviations=tuple(deviating.found),
            alternatives=tuple(deviating.alternatives),
            failure=execution.failure,
            steps=execution.steps,
        )

    def attempt(self, scenario: Scenario, deviations: Sequence[Deviation]) -> _Attempt:
        """Execute the plain execution with some deviations; keep it if it fails in the same way and is smaller."""
        if self.executions >= self.executions_max or self.steps >= _STEPS_MAX:
            raise _SpentError
        attempt = self.run(scenario, Deviations(deviations))
        if self.same(attempt) and attempt.size < self.best.size:
            self.best = attempt
        if self.progress is not None:
            self.progress(
                Shrinking(executions=self.executions, executions_max=self.executions_max, size=self.best.size)
            )
        return attempt

    def _still(self, scenario: Scenario, deviations: Sequence[Deviation]) -> bool:
        """Say whether that fails in the same way; what did not once is not run again."""
        key = (tuple(scenario.tasks.items()), frozenset(deviations))
        if key in self._good:
            return False
        same = self.same(self.attempt(scenario, deviations))
        if not same:
            self._good.add(key)
        return same

    def same(self, attempt: _Attempt) -> bool:
        got, wanted = attempt.failure, self.best.failure
        return got is not None and wanted is not None and (got.kind, got.invariant) == (wanted.kind, wanted.invariant)

    def shrink(self) -> None:
        size = None
        while size is None or self.best.size < size:
            size = self.best.size
            self._shrink_deviations({"switch"})
            self._search_fewer()
            self._shrink_deviations({"fail"})
            self._shrink_operations()
            self._shrink_deviations({"next", "choose"})

    def _shrink_deviations(self, kinds: set[str]) -> None:
        best = self.best
        fixed = [each for each in best.deviations if each.kind not in kinds]

        def still(kept: Sequence[Deviation]) -> bool:
            return self._still(best.scenario, [*fixed, *kept])

        _minimise([each for each in best.deviations if each.kind in kinds], still)

    def _search_fewer(self) -> None:
        """Try all executions with fewer preemptions and few other deviations, while half of the budget lasts."""
        limit = self.executions + (self.executions_max - self.executions) // 2
        fixed = [each for each in self.best.deviations if each.kind in {"fail", "choose"}]
        size = self.best.size
        for deviations in range(1, size.preemptions + size.other):
            for switches in range(min(deviations + 1, size.preemptions)):
                left = {"switch": switches, "next": deviations - switches}
                if self._search(self.best.scenario, fixed, left, limit):
                    return

    def _search(self, scenario: Scenario, deviations: list[Deviation], left: dict[str, int], limit: int) -> bool:
        """Try `deviations` with so many more, each after those that are there."""
        if self.executions >= limit:
            return False
        attempt = self.attempt(scenario, deviations)
        if not any(left.values()):
            return self.same(attempt)
        for each in attempt.alternatives:
            less = {**left, each.kind: left[each.kind] - 1}
            if left[each.kind] and self._search(scenario, [*deviations, each], less, limit):
                return True
        return False

    def _search_program(self, scenario: Scenario) -> bool:
        """Try a program with fewer operations, where the deviations of the best may come at other moments."""
        size = self.best.size
        key = (tuple(scenario.tasks.items()), size.preemptions, size.other)
        if key in self._searched:
            return False
        self._searched.add(key)
        fixed = [each for each in self.best.deviations if each.kind in {"fail", "choose"}]
        limit = min(self.executions + _SEARCH_MAX, self.executions_max)
        most = size.preemptions + size.other
        return any(
            self._search(scenario, fixed, {"switch": switches, "next": deviations - switches}, limit)
            for deviations in range(most + 1)
            for switches in range(min(deviations, size.preemptions) + 1)
        )

    def _shrink_operations(self) -> None:
        best = self.best
        items = [(name, operation) for name, operations in best.scenario.tasks.items() for operation in operations]

        def still(kept: Sequence[tuple[str, Operation]]) -> bool:
            if not kept:
                return False
            tasks: dict[str, tuple[Operation, ...]] = {
                name: tuple(operation for owner, operation in kept if owner == name) for name in best.scenario.tasks
            }
            scenario = best.scenario.with_tasks(tasks)
            gone = best.scenario.tasks.keys() - scenario.tasks.keys()
            deviations = [each.without(gone) for each in self.best.deviations]
            return self._still(scenario, deviations) or self._search_program(scenario)

        _minimise(items, still)


def _minimise(items: Sequence[_Item], still: Callable[[Sequence[_Item]], bool]) -> list[_Item]:
    """Return a part of `items` for which `still` holds and from which nothing can be taken out (ddmin).

    It holds for all of them.
    """
    kept = list(items)
    if not kept or still([]):
        return []
    parts = 2
    while len(kept) > 1:
        bounds = [len(kept) * part // parts for part in range(parts + 1)]
        blocks = [kept[low:high] for low, high in pairwise(bounds)]
        rests = [[*kept[:low], *kept[high:]] for low, high in pairwise(bounds)]
        block = next((block for block in blocks if parts > 1 and still(block)), None)
        if block is not None:
            kept, parts = block, 2
            continue
        rest = next((rest for rest in rests if parts > 2 and still(rest)), None)
        if rest is not None:
            kept, parts = rest, max(parts - 1, 2)
        elif parts < len(kept):
            parts = min(parts * 2, len(kept))
        else:
            break
    return kept
