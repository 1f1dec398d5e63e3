"""Repeat one execution from what it recorded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from gpusvm.kernel import RecordedChoices

if TYPE_CHECKING:
    from gpusvm.kernel import Task, Timer

__all__ = ["Replay"]


class Replay:
    """Give recorded answers once; after their end, and where one does not fit, 0 ("carry on").

    ``strayed`` counts those that did not fit: 0 if the execution is the recorded one.
    """

    def __init__(self, taken: Sequence[int]) -> None:
        self._choices = RecordedChoices(taken)
        self._begun = False

    @property
    def strayed(self) -> int:
        return self._choices.strayed

    def new_execution(self) -> bool:
        begun, self._begun = self._begun, True
        return not begun

    def next_task(self, candidates: Sequence[Task | Timer], running: Task | None) -> int:
        return self._choices.pick(len(candidates), "task")

    def next_int(self, n: int, label: str) -> int:
        return self._choices.pick(n, label)
