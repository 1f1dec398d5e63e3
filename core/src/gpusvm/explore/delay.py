"""Run every task to its next wait, in turn, but for at most so many delays at random points.

M. Emmi, S. Qadeer, Z. Rakamarić: Delay-Bounded Scheduling, POPL 2011.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gpusvm.errors import InputError
from gpusvm.explore.sampled import Estimated, Patience
from gpusvm.kernel import Task

if TYPE_CHECKING:
    from gpusvm.kernel import Timer

__all__ = ["Delay", "in_turn"]


def in_turn(candidates: Sequence[Task | Timer], last: Task | None) -> list[int]:
    """Return the indices of the candidates in the order of a deterministic scheduler: round robin by spawn order from
    `last` on, who comes first if it can go on, then due timers.
    """
    after = -1 if last is None else last.index - 1
    tasks = sorted((each.index, i) for i, each in enumerate(candidates) if isinstance(each, Task))
    turn = bisect_right(tasks, after, key=lambda task: task[0])
    return [i for _, i in tasks[turn:] + tasks[:turn]] + list(range(len(tasks), len(candidates)))


class Delay(Estimated):
    """Deviate from a deterministic scheduler by at most `delays` delays per execution, drawn at random.

    The deterministic one lets a task run until it waits, spins or ends, then the next in turn (round robin in spawn
    order), due timers after all tasks. A delay at a choice passes over whoever would go; it comes after the others
    then. How many there are is drawn from 1 to `delays`; their points are drawn evenly among the choices that an
    execution is expected to have (`steps`; by default what the executions before had, so the first has no delay), and
    two may coincide. It does not enumerate the k^delays ways to delay, as `DepthFirst` does preemptions.
    Orders that need more delays are never met, however long it runs, and the number of delays that an order needs grows
    with the number of tasks. Data and failures are drawn as by `Sampled`.

    A task that has been asked about 1000 times in an execution lets the next in turn go, without counting that a
    delay. Deterministic by `seed`.
    """

    def __init__(
        self, *, delays: int = 2, seed: int = 0, first: int = 0, stride: int = 1, steps: int | None = None
    ) -> None:
        super().__init__(seed=seed, first=first, stride=stride, steps=steps)
        if delays < 0:
            raise InputError(f"delays, the most that an execution deviates by, is 0 at least, got {delays}")
        self._delays = delays
        self._points: list[int] = []
        self._last: Task | None = None
        self._patience = Patience()

    def new_execution(self) -> bool:
        begins = super().new_execution()
        count = 1 + self._drawn.below(self._delays) if self._delays else 0
        self._points = self._draw_points(count)
        self._last = None
        self._patience = Patience()
        return begins

    def next_task(self, candidates: Sequence[Task | Timer], running: Task | None) -> int:
        self._step += 1
        if running is not None:
            self._last = running
        order = in_turn(candidates, self._last)
        if running is not None and (candidates[0] is not running or self._patience.ends(running)):
            order.remove(candidates.index(running))
            order.append(candidates.index(running))
        chosen = order[self._points.count(self._step) % len(order)]
        going = candidates[chosen]
        self._last = going if isinstance(going, Task) else self._last
        return chosen
