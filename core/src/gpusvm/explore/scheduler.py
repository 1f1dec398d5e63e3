"""Decide, execution by execution, who goes next and what data and failures there are: what every scheduler does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from gpusvm.kernel import ABANDON

if TYPE_CHECKING:
    from gpusvm.kernel import Task, Timer

__all__ = ["Scheduler", "SchedulerChoices"]


class Scheduler(Protocol):
    """Be the oracle of one exploration: it answers every question of every execution.

    It must be deterministic: the same answers to the same questions after the same construction. What it covers and
    what not is in docs/explanation/exploration.md.
    """

    def new_execution(self) -> bool:
        """Begin another execution; False if there is none left to explore (only exhaustive schedulers ever say so)."""
        ...

    def next_task(self, candidates: Sequence[Task | Timer], running: Task | None) -> int:
        """Return the index of the candidate that goes on, or ABANDON when the rest is known to bring nothing new.

        `running` stands at a yield point and is candidate 0, or the last one if it spins; None if it cannot go on.
        There are two candidates at least.
        """
        ...

    def next_int(self, n: int, label: str) -> int:
        """Return an int in ``range(n)``, n > 1: a choice of data, or with a label ``inject:SITE`` whether (1) an
        operation fails. 0 is the plain one.
        """
        ...


class SchedulerChoices:
    """Put a scheduler's questions to it as the kernel's Choices, and record the answers.

    ``taken`` replays the execution; ``widths`` and ``labels`` say of each answer what it was picked from and what for.
    """

    __slots__ = ("_next_int", "_next_task", "labels", "taken", "widths")

    def __init__(self, scheduler: Scheduler) -> None:
        self._next_int = scheduler.next_int
        self._next_task = scheduler.next_task
        self.taken: list[int] = []
        self.widths: list[int] = []
        self.labels: list[str] = []

    def pick(self, n: int, label: str) -> int:
        choice = self._next_int(n, label)
        self.taken.append(choice)
        self.widths.append(n)
        self.labels.append(label)
        return choice

    def pick_task(self, candidates: Sequence[Task | Timer], running: Task | None) -> int:
        choice = self._next_task(candidates, running)
        if choice != ABANDON:
            self.taken.append(choice)
            self.widths.append(len(candidates))
            self.labels.append("task")
        return choice
