"""Say what a scheduler answered in words that can be read, and give the same answers again, watching that they fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

from attrs import frozen

from gpusvm.kernel import ABANDON

if TYPE_CHECKING:
    from gpusvm.explore.scheduler import Scheduler
    from gpusvm.kernel import Task, Timer

__all__ = ["CARRY_ON", "Answer", "Repetition", "Stray", "Witness", "failures", "preemptions"]

_INJECT = "inject:"


@frozen
class Answer:
    """Be one answer.

    `kind` is "carry on" (0, whatever was asked), "switch" (another task goes on though the running one could), "next"
    (not the first one in turn goes on where the running one waits, spins or has ended), "fail" (an injection site
    fails) or "choose" (data). `value` is the index; `name` is who goes on, which site, or what the data is for.
    """

    kind: Literal["carry on", "switch", "next", "fail", "choose"]
    value: int = 0
    name: str = ""


CARRY_ON = Answer("carry on")


def _name(candidate: Task | Timer) -> str:
    return f"timer/{candidate.name}" if candidate.kind == "timer" else candidate.name


def _task_answer(choice: int, candidates: Sequence[Task | Timer], running: Task | None) -> Answer:
    if not choice:
        return CARRY_ON
    preempted = running is not None and candidates[0] is running  # and does not spin for another
    return Answer("switch" if preempted else "next", choice, _name(candidates[choice]))


def _int_answer(choice: int, label: str) -> Answer:
    if not choice:
        return CARRY_ON
    if label.startswith(_INJECT) and choice == 1:
        return Answer("fail", 1, label.removeprefix(_INJECT))
    return Answer("choose", choice, label)


def preemptions(answers: Sequence[Answer]) -> int:
    """Count how often a task that could go on did not."""
    return sum(answer.kind == "switch" for answer in answers)


def failures(answers: Sequence[Answer]) -> int:
    """Count the injected failures."""
    return sum(answer.kind == "fail" for answer in answers)


class Witness:
    """Note in words what a scheduler answers in one execution."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self.answers: list[Answer] = []

    def new_execution(self) -> bool:
        self.answers = []
        return self._scheduler.new_execution()

    def next_task(self, candidates: Sequence[Task | Timer], running: Task | None) -> int:
        choice = self._scheduler.next_task(candidates, running)
        if choice != ABANDON:
            self.answers.append(_task_answer(choice, candidates, running))
        return choice

    def next_int(self, n: int, label: str) -> int:
        choice = self._scheduler.next_int(n, label)
        self.answers.append(_int_answer(choice, label))
        return choice


@frozen
class Stray:
    """Say where an execution left the recorded one: the answer by number, the step, what was recorded and what is."""

    answer: int
    step: int
    recorded: str
    found: str

    def __str__(self) -> str:
        return f"strayed at step {self.step}: recorded is {self.recorded}, found {self.found}"


class Repetition:
    """Give recorded answers once, and see that each still means what it meant.

    ``stray`` is the first that does not, None if the execution is the recorded one. From there on those that fit are
    given, else 0. `steps` says how many steps the execution has made.
    """

    def __init__(self, answers: Sequence[Answer], *, steps: Callable[[], int]) -> None:
        self.stray: Stray | None = None
        self._answers = answers
        self._steps = steps
        self._at = 0
        self._begun = False

    def new_execution(self) -> bool:
        begun, self._begun = self._begun, True
        return not begun

    def finish(self) -> None:
        """Note that the execution is over: answers that nobody has asked for are a stray too."""
        left = len(self._answers) - self._at
        if left > 0:
            self._strayed(f"{left} more questions", "the end")

    def next_task(self, candidates: Sequence[Task | Timer], running: Task | None) -> int:
        recorded = self._next(f"a choice of {len(candidates)} tasks")
        if not recorded.value:
            return 0
        choice = min(recorded.value, len(candidates) - 1)
        meant = _task_answer(choice, candidates, running)
        if meant == recorded:
            return choice
        self._strayed(_said(recorded), _said(meant))
        names = [_name(candidate) for candidate in candidates]
        return names.index(recorded.name) if recorded.name in names else 0

    def next_int(self, n: int, label: str) -> int:
        recorded = self._next(f"a choice for {label}")
        if not recorded.value:
            return 0
        choice = min(recorded.value, n - 1)
        meant = _int_answer(choice, label)
        if meant == recorded:
            return choice
        self._strayed(_said(recorded), _said(meant))
        return 0

    def _next(self, asked: str) -> Answer:
        at = self._at
        self._at += 1
        if at < len(self._answers):
            return self._answers[at]
        self._strayed("the end", asked)
        return CARRY_ON

    def _strayed(self, recorded: str, found: str) -> None:
        if self.stray is None:
            self.stray = Stray(self._at - 1, self._steps(), recorded, found)


def _said(answer: Answer) -> str:
    match answer.kind:
        case "carry on":
            return "carry on"
        case "fail":
            return f"a failure of {answer.name}"
        case "choose":
            return f"choice {answer.value} for {answer.name}"
        case "next":
            return f"{answer.name} ({answer.value}) next"
    return f"a switch to {answer.name} ({answer.value})"
