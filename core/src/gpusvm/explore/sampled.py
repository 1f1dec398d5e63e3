"""What the schedulers that draw at random share: schedules by number, points to act at, failures, patience."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from gpusvm.errors import InputError
from gpusvm.kernel import Drawn

if TYPE_CHECKING:
    from gpusvm.kernel import Task

__all__ = ["INJECT", "PATIENCE", "Estimated", "Patience", "Sampled", "seed_of"]

INJECT: Final = "inject:"
"""What the label of a choice begins with that is a failure."""

PATIENCE: Final = 1000
"""How many choices in a row one task may win before it counts as spinning."""

# A seed of its own for each schedule, so that a walk can be continued anywhere; not the step of the generator itself,
# or neighbouring schedules would be one sequence, shifted.
_SEED_STEP: Final = 0xD1342543DE82EF95

# Half of the sites never fail in an execution, each other one at one in so many passings: one that is passed twice
# and one that is passed a thousand times both get their turn, early passings and late ones.
_FAILS_ONE_IN: Final = (1, 4, 16, 64, 256)


def seed_of(seed: int, schedule: int) -> int:
    """Return the seed of one schedule of an exploration with a seed."""
    return (seed + schedule * _SEED_STEP) & ((1 << 64) - 1)


class Patience:
    """Notice the task that keeps going while others could: a loop around cond_resched that waits for one of them
    would be an execution without end.
    """

    __slots__ = ("_left",)

    def __init__(self) -> None:
        self._left: dict[Task, int] = {}

    def ends(self, task: Task) -> bool:
        """Say whether `task`, which is to go on once more, has used its patience up; then it gets a new one."""
        left = self._left.get(task, PATIENCE) - 1
        self._left[task] = left or PATIENCE
        return not left


class Sampled:
    """Begin numbered schedules, each with its own seed, and draw data and failures.

    Schedule i of a seed has a seed of its own, so a walk may begin at any schedule (`first`) and skip (`stride`).
    Failures: for each injection site, half of the executions leave it alone and the others let each passing fail
    with one chance out of 1, 1/4, 1/16, 1/64, 1/256. The m-th passing of a site is so the first to fail with a
    probability of 1/(50 m) or more, as long as m <= 256.
    """

    def __init__(self, *, seed: int = 0, first: int = 0, stride: int = 1) -> None:
        if stride < 1 or first < 0:
            raise InputError(f"schedules are first, first + stride, …: got first={first}, stride={stride}")
        self._seed = seed
        self._schedule = first - stride
        self._stride = stride
        self._drawn = Drawn(0)
        self._one_in: dict[str, int] = {}

    def new_execution(self) -> bool:
        self._schedule += self._stride
        self._drawn = Drawn(seed_of(self._seed, self._schedule))
        self._one_in = {}
        return True

    def next_int(self, n: int, label: str) -> int:
        if not label.startswith(INJECT):
            return self._drawn.below(n)
        one_in = self._one_in.get(label)
        if one_in is None:
            drawn = self._drawn.below(2 * len(_FAILS_ONE_IN))
            one_in = self._one_in[label] = _FAILS_ONE_IN[drawn] if drawn < len(_FAILS_ONE_IN) else 0
        return int(one_in == 1 or (one_in > 1 and self._drawn.below(one_in) == 0))


class Estimated(Sampled):
    """Draw points, besides, among the choices that an execution is expected to have.

    The expectation is the most that the executions before had, less an eighth for each later one, so that one that
    did not end does not spoil all others; or `steps`, if given. Schedule i therefore has the same choices again only
    in a walk with the same `first` and `stride` (the finding's file repeats it anyway).
    """

    def __init__(self, *, seed: int = 0, first: int = 0, stride: int = 1, steps: int | None = None) -> None:
        super().__init__(seed=seed, first=first, stride=stride)
        if steps is not None and steps < 1:
            raise InputError(f"steps, the expected number of choices of an execution, is 1 at least, got {steps}")
        self._fixed = steps
        self._expected = 0
        self._step = 0

    def new_execution(self) -> bool:
        self._expected = max(self._step, self._expected - self._expected // 8)
        self._step = 0
        return super().new_execution()

    def _draw_points(self, count: int) -> list[int]:
        """Return the numbers of `count` choices, counted from 1 and drawn apart from each other; none in a first
        execution.
        """
        expected = self._fixed or self._expected
        return [self._drawn.below(expected) + 1 for _ in range(count)] if expected else []
