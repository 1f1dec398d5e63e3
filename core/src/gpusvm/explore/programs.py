"""Run any concurrent program under any scheduler, and keep the orders that end in an error."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from attrs import frozen

from gpusvm.errors import ModelError
from gpusvm.explore.random_walk import RandomWalk
from gpusvm.explore.replay import Replay
from gpusvm.explore.scheduler import SchedulerChoices
from gpusvm.kernel import Abandoned, Choices, Kernel

if TYPE_CHECKING:
    from gpusvm.explore.scheduler import Scheduler

__all__ = ["Finding", "Program", "explore_program", "random_walk", "replay"]

Program = Callable[[Choices], None]
"""A program builds its machine in mode "explored" with the choices it is given, runs its tasks to the end and checks
what has to hold. It has to do the same for the same choices."""


@frozen(kw_only=True)
class Finding:
    """Hold one schedule that broke a rule: the choices that repeat it and the error they lead to."""

    schedule: int
    choices: tuple[int, ...]
    error: ModelError


class _ProgramChoices(SchedulerChoices):
    """Be the choices of a kernel that the program builds: the scheduler's footprints learn here which it is."""

    __slots__ = ("_footprints",)

    def __init__(self, scheduler: "Scheduler") -> None:
        super().__init__(scheduler)
        self._footprints = getattr(scheduler, "footprints", None)

    def begin(self, kernel: Kernel) -> None:
        if self._footprints is not None:
            self._footprints.begin(kernel)


def explore_program(program: Program, scheduler: "Scheduler", *, schedules: int | None = None) -> Iterator[Finding]:
    """Run `program` under a scheduler, `schedules` times at most; yield a finding for each execution that raises
    ModelError.

    `schedules` None ends when nothing is left, which only an exhaustive scheduler ever says. `Finding.schedule` counts
    the executions from 0. A program that boots a machine for a scheduler with footprints does so while these watch.
    """
    schedule = 0
    while (schedules is None or schedule < schedules) and scheduler.new_execution():
        choices = _ProgramChoices(scheduler)
        try:
            program(choices)
        except Abandoned:
            pass
        except ModelError as error:
            yield Finding(schedule=schedule, choices=tuple(choices.taken), error=error)
        schedule += 1


def random_walk(program: Program, *, schedules: int, seed: int = 0, first: int = 0) -> Iterator[Finding]:
    """Run `program` under `schedules` random orders from schedule `first` on, and yield a finding for each that raises
    ModelError.
    """
    for found in explore_program(program, RandomWalk(seed=seed, first=first), schedules=schedules):
        yield Finding(schedule=first + found.schedule, choices=found.choices, error=found.error)


def replay(program: Program, finding: Finding) -> None:
    """Run `program` again in the order of a finding; raises its error again, if the program is deterministic."""
    scheduler = Replay(finding.choices)
    scheduler.new_execution()
    program(SchedulerChoices(scheduler))
