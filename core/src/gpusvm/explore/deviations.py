"""See an execution as the plain one with deviations, each at a moment of its own task's progress.

Choices by number mean something else as soon as one before them is changed. "When gpu reaches its 12th yield point, cpu
goes first" goes on to mean what it meant when a deviation elsewhere is taken out, so that executions can be shrunk.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Sequence
from typing import TYPE_CHECKING, Literal

from attrs import evolve, frozen

from gpusvm.kernel import ABANDON

if TYPE_CHECKING:
    from gpusvm.explore.scheduler import Scheduler
    from gpusvm.kernel import Task, Timer

__all__ = ["Deviation", "DeviationWitness", "Deviations"]


@frozen
class Deviation:
    """Be one answer that is not 0: the `nth` time that `moment` comes, `value` is done.

    "switch": `moment` is the running task's name, `value` who goes on instead, by name and number among those of this
    name. "next": the same where the running task cannot go on (`moment` names the candidates) or spins. "fail" and
    "choose": `moment` is the label, `value` the number.
    """

    kind: Literal["switch", "next", "fail", "choose"]
    moment: Hashable
    nth: int
    value: tuple[str, int] | int

    def without(self, tasks: Collection[str]) -> Deviation:
        """Return the same where some tasks are not there: they cannot be among the candidates."""
        if not isinstance(self.moment, tuple):
            return self
        return evolve(self, moment=tuple(name for name in self.moment if name not in tasks))


def _named(candidate: Task | Timer) -> str:
    return f"timer/{candidate.name}" if candidate.kind == "timer" else candidate.name


class _Moments:
    """Number the moments of an execution."""

    def __init__(self) -> None:
        self._seen: Counter[tuple[str, Hashable]] = Counter()

    def task(
        self, candidates: Sequence[Task | Timer], running: Task | None
    ) -> tuple[Literal["switch", "next"], Hashable, int]:
        if running is not None and candidates[0] is running:
            return "switch", running.name, self._count("switch", running.name)
        moment = tuple(map(_named, candidates))
        return "next", moment, self._count("next", moment)

    def data(self, label: str) -> int:
        return self._count("int", label)

    def _count(self, kind: str, moment: Hashable) -> int:
        self._seen[kind, moment] += 1
        return self._seen[kind, moment]


class DeviationWitness:
    """Note how an execution under a scheduler deviates from the plain one.

    ``alternatives`` lists who else could have gone on at each moment after the last such deviation.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._moments = _Moments()
        self.found: list[Deviation] = []
        self.alternatives: list[Deviation] = []

    def new_execution(self) -> bool:
        self._moments = _Moments()
        self.found = []
        self.alternatives = []
        return self._scheduler.new_execution()

    def next_task(self, candidates: Sequence[Task | Timer], running: Task | None) -> int:
        kind, moment, nth = self._moments.task(candidates, running)
        choice = self._scheduler.next_task(candidates, running)
        names = [_named(candidate) for candidate in candidates]
        values = [(name, names[:at].count(name)) for at, name in enumerate(names)]
        if choice > 0:
            self.found.append(Deviation(kind, moment, nth, values[choice]))
            self.alternatives = []
        elif choice != ABANDON:
            self.alternatives += [Deviation(kind, moment, nth, value) for value in values[1:]]
        return choice

    def next_int(self, n: int, label: str) -> int:
        nth = self._moments.data(label)
        choice = self._scheduler.next_int(n, label)
        if choice:
            kind: Literal["fail", "choose"] = "fail" if label.startswith("inject:") else "choose"
            self.found.append(Deviation(kind, label, nth, choice))
        return choice


class Deviations:
    """Be the scheduler of one execution: the plain one with some deviations, where they still apply."""

    def __init__(self, deviations: Iterable[Deviation]) -> None:
        self._values: dict[tuple[str, Hashable, int], tuple[str, int] | int] = {}
        for each in deviations:
            kind = "int" if each.kind in {"fail", "choose"} else each.kind
            self._values[kind, each.moment, each.nth] = each.value
        self._moments = _Moments()
        self._begun = False

    def new_execution(self) -> bool:
        begun, self._begun = self._begun, True
        return not begun

    def next_task(self, candidates: Sequence[Task | Timer], running: Task | None) -> int:
        value = self._values.get(self._moments.task(candidates, running))
        if not isinstance(value, tuple):
            return 0
        name, number = value
        matching = [at for at, candidate in enumerate(candidates) if _named(candidate) == name]
        return matching[number] if number < len(matching) else 0

    def next_int(self, n: int, label: str) -> int:
        value = self._values.get(("int", label, self._moments.data(label)))
        return value if isinstance(value, int) and value < n else 0
