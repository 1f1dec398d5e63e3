"""Let Hypothesis decide who goes next and what fails in a test of your own, and shrink what it finds.

    from gpusvm.explore.hypothesis import given_schedules

    @given_schedules()
    def test_two_writers(schedule):
        schedule.run(program)

`program` takes the choices to build its kernel with (`gpusvm.explore.Program`); ``scenario_program("fault-munmap",
"xe")`` makes one of a scenario and a driver. It needs the package ``hypothesis`` (``gpusvm-core[hypothesis]``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from gpusvm.errors import InputError
from gpusvm.explore.delay import in_turn
from gpusvm.explore.sampled import INJECT, Patience
from gpusvm.explore.scheduler import SchedulerChoices

try:
    from hypothesis import currently_in_test_context, given, note
    from hypothesis import strategies as st
except ModuleNotFoundError as error:
    if error.name != "hypothesis":
        raise
    message = "gpusvm.explore.hypothesis needs the package hypothesis: install gpusvm-core[hypothesis]"
    raise ModuleNotFoundError(message, name="hypothesis") from None

if TYPE_CHECKING:
    from gpusvm.explore.programs import Program
    from gpusvm.kernel import Task, Timer

__all__ = ["HypothesisScheduler", "Schedule", "given_schedules", "schedules"]

DEVIATIONS_MAX = 6
TASKS = 4
POINTS = 40

Moment = tuple[int | Literal["next", "data"], int]
"""When something else is done: the nth choice (from 0 on) of a task, by number (from 0 on, in the order in which they
could go on first, those that can at once in spawn order), of "next" (the running task waits, spins or has ended), or of
"data" (data and failures)."""


class HypothesisScheduler:
    """Be the scheduler of one execution: the plain one, but at some moments.

    `deviations` says for these which of the alternatives is taken: 1 is the first of them, and after the last they
    begin again. The plain choice lets a task run until it waits or ends, then the first that can go; nothing fails. A
    moment is counted by its own task's choices, so that one deviation can be left out and the others stay what they
    are. ``story`` says in words which there were. A task that has been asked about 1000 times lets the next in turn go.
    """

    def __init__(self, deviations: Mapping[Moment, int]) -> None:
        self._deviations = deviations
        self._patience = Patience()
        self._numbers: dict[Task | Timer, int] = {}
        self._passed: dict[int | str, int] = {}
        self._begun = False
        self.asked = 0
        self.story: list[str] = []

    def new_execution(self) -> bool:
        begun, self._begun = self._begun, True
        return not begun

    def next_task(self, candidates: Sequence[Task | Timer], running: Task | None) -> int:
        for each in candidates:
            if each.kind != "timer":
                self._numbers.setdefault(each, len(self._numbers))
        goes_on = running is not None and candidates[0] is running
        plain = candidates[0]
        nth, choice = self._choice(self._numbers[plain] if goes_on else "next", len(candidates))
        if choice:
            where = f"{plain.name} at its choice {nth}" if goes_on else f"where somebody has to ({nth})"
            self.story.append(
                f"{where}: {_named(candidates[choice])} goes on" + ("" if goes_on else f", not {_named(plain)}")
            )
        elif goes_on and running is not None and self._patience.ends(running):
            choice = in_turn(candidates, running)[1]
        return choice

    def next_int(self, n: int, label: str) -> int:
        nth, choice = self._choice("data", n)
        if choice:
            fails = label.startswith(INJECT)
            what = f"{label.removeprefix(INJECT)} fails" if fails else f"{label} is {choice} of {n}"
            self.story.append(f"data {nth}: {what}")
        return choice

    def _choice(self, of: int | Literal["next", "data"], n: int) -> tuple[int, int]:
        nth = self._passed.get(of, 0)
        self._passed[of] = nth + 1
        self.asked += 1
        wanted = self._deviations.get((of, nth), 0)
        return nth, 1 + (wanted - 1) % (n - 1) if wanted else 0


def _named(candidate: Task | Timer) -> str:
    return f"timer {candidate.name}" if candidate.kind == "timer" else candidate.name


class Schedule:
    """Hold one schedule: at which moments it deviates from the plain one, and how (`HypothesisScheduler`).

    It is written as it can be given to `hypothesis.example`. InputError for what is no moment or no alternative.
    """

    __slots__ = ("deviations",)

    def __init__(self, deviations: Mapping[Moment, int]) -> None:
        for (of, nth), choice in deviations.items():
            if (of not in {"next", "data"} if isinstance(of, str) else of < 0) or nth < 0 or choice < 1:
                raise InputError(
                    "a schedule takes an alternative, from 1 on, at a choice, from 0 on, of a task, from 0 on, of "
                    f"'next' or of 'data': got {(of, nth)}: {choice}"
                )
        self.deviations = MappingProxyType(
            dict(sorted(deviations.items(), key=lambda each: (str(each[0][0]), each[0])))
        )

    def __repr__(self) -> str:
        return f"Schedule({dict(self.deviations)})"

    def run(self, program: Program) -> None:
        """Run a program by this schedule; what it raises is raised here, and Hypothesis is told who went when."""
        scheduler = HypothesisScheduler(self.deviations)
        scheduler.new_execution()
        try:
            program(SchedulerChoices(scheduler))
        except Exception:
            if currently_in_test_context():
                for line in scheduler.story:
                    note(line)
                note(f"of {scheduler.asked} choices; all others as without a schedule")
            raise


def schedules(
    *, deviations_max: int = DEVIATIONS_MAX, tasks: int = TASKS, points: int = POINTS
) -> st.SearchStrategy[Schedule]:
    """Return a strategy for schedules that deviate at most `deviations_max` times, at the first `points` choices of the
    first `tasks` tasks, where somebody has to go, and in data and failures.

    It shrinks to the fewest deviations, then to early ones. Orders that need more, or later ones, are never met.
    """
    if min(deviations_max, tasks, points) < 1:
        raise InputError(
            "schedules deviate once or more, among one task or more, at one point or more: got "
            f"{deviations_max}, {tasks}, {points}"
        )
    of = st.one_of(st.integers(0, tasks - 1), st.just("next"), st.just("data"))
    moments: st.SearchStrategy[Moment] = st.tuples(of, st.integers(0, points - 1))
    return st.dictionaries(moments, st.integers(1, 3), max_size=deviations_max).map(Schedule)


def given_schedules(
    *, deviations_max: int = DEVIATIONS_MAX, tasks: int = TASKS, points: int = POINTS
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a test schedules as its argument `schedule`; Hypothesis' own settings say how many (`schedules`)."""
    return given(schedule=schedules(deviations_max=deviations_max, tasks=tasks, points=points))
