"""Pick evenly at every point."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from gpusvm.kernel import SeededChoices

if TYPE_CHECKING:
    from gpusvm.kernel import Task, Timer

__all__ = ["RandomWalk", "seed_of"]

# A seed of its own for each schedule, so that a walk can be continued anywhere; not the step of the generator itself,
# or neighbouring schedules would be one sequence, shifted.
_SEED_STEP: Final = 0xD1342543DE82EF95


def seed_of(seed: int, schedule: int) -> int:
    """Return the seed of one schedule of an exploration with a seed."""
    return (seed + schedule * _SEED_STEP) & ((1 << 64) - 1)


class RandomWalk:
    """Give every candidate the same chance at each point.

    It proves nothing by finding nothing, and rare orders stay rare. Schedule i has the same choices in every walk with
    the same `seed`, so a walk may begin at any schedule (`first`) and skip (`stride`).
    """

    def __init__(self, *, seed: int = 0, first: int = 0, stride: int = 1, failure_chance: int = 8) -> None:
        """Take the seed, and the schedules first, first + stride, …; one in `failure_chance` failures happens."""
        self._seed = seed
        self._schedule = first - stride
        self._stride = stride
        self._failure_chance = failure_chance
        self._choices = SeededChoices(0)

    def new_execution(self) -> bool:
        self._schedule += self._stride
        self._choices = SeededChoices(seed_of(self._seed, self._schedule))
        return True

    def next_task(self, candidates: Sequence[Task | Timer], running: Task | None) -> int:
        return self._choices.pick(len(candidates), "task")

    def next_int(self, n: int, label: str) -> int:
        if label.startswith("inject:"):
            return int(self._choices.pick(self._failure_chance, label) == 0)
        return self._choices.pick(n, label)
