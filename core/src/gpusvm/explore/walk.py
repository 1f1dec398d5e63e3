"""Walk through random orders of a concurrent program, and keep the orders that end in an error."""

from collections.abc import Callable, Iterator
from typing import Final

from attrs import frozen

from gpusvm.errors import ModelError
from gpusvm.kernel import Choices, RecordedChoices, SeededChoices

__all__ = ["Finding", "Program", "random_walk", "replay"]

Program = Callable[[Choices], None]
"""A program builds its machine in mode "explored" with the choices it is given, runs its tasks to the end and checks
what has to hold. It has to do the same for the same choices."""

# A seed of its own for each schedule, so that a walk can be continued anywhere; not the step of the generator itself,
# or neighbouring schedules would be one sequence, shifted.
_SEED_STEP: Final = 0xD1342543DE82EF95


@frozen(kw_only=True)
class Finding:
    """Hold one schedule that broke a rule: the choices that repeat it and the error they lead to."""

    schedule: int
    choices: tuple[int, ...]
    error: ModelError


def random_walk(program: Program, *, schedules: int, seed: int = 0, first: int = 0) -> Iterator[Finding]:
    """Run `program` under `schedules` random orders, and yield a finding for each that raises ModelError.

    A plain random walk: every choice is equally likely at each point. It proves nothing by finding nothing, and rare
    orders stay rare. Schedule i has the same choices in every walk with the same `seed`.
    """
    for schedule in range(first, first + schedules):
        choices = SeededChoices((seed + schedule * _SEED_STEP) & ((1 << 64) - 1))
        try:
            program(choices)
        except ModelError as error:
            yield Finding(schedule=schedule, choices=tuple(choices.taken), error=error)


def replay(program: Program, finding: Finding) -> None:
    """Run `program` again in the order of a finding; raises its error again, if the program is deterministic."""
    program(RecordedChoices(list(finding.choices)))
