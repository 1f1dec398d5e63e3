"""Run the task of the highest random priority, and change d - 1 priorities at random points.

S. Burckhardt, P. Kothari, M. Musuvathi, S. Nagarakatte: A Randomized Scheduler with Probabilistic Guarantees of Finding
Bugs, ASPLOS 2010.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from gpusvm.errors import InputError
from gpusvm.explore.sampled import Estimated, Patience
from gpusvm.kernel import Task

if TYPE_CHECKING:
    from gpusvm.kernel import Timer

__all__ = ["Pct"]


class Pct(Estimated):
    """Find each bug of depth `depth` with a probability of 1/(n k^(depth - 1)) or more per execution.

    A bug has depth d if d orders between two steps each are enough to make it happen. n is the number of tasks of the
    execution, kworkers and fired timers included, k the expected number of choices (`steps`; by default what the
    executions before had). Each task gets a random priority when it first could go, a timer when it is due, and the
    highest goes; at depth - 1 points, drawn evenly among the k choices, the task that would go gets a priority below
    all first ones. The bound holds for a bug whose execution has at most k choices and in which no task has to spin;
    with f failures, it is that times the chance of the failures (`Sampled`).

    A task that spins (cpu_relax), or that has won 1000 choices, falls below all others, so that nobody starves for
    ever. Deterministic by `seed`.
    """

    def __init__(
        self, *, depth: int = 3, seed: int = 0, first: int = 0, stride: int = 1, steps: int | None = None
    ) -> None:
        super().__init__(seed=seed, first=first, stride=stride, steps=steps)
        if depth < 1:
            raise InputError(f"depth, the number of orders that a bug needs, is 1 at least, got {depth}")
        self._depth = depth
        self._changes: dict[int, list[int]] = {}
        self._priorities: dict[Task | Timer, int] = {}
        self._lowest = 0
        self._fired: dict[str, int] = {}
        self._patience = Patience()

    def new_execution(self) -> bool:
        begins = super().new_execution()
        self._changes = {}
        for priority, point in enumerate(self._draw_points(self._depth - 1), start=1):
            self._changes.setdefault(point, []).append(priority)
        self._priorities = {}
        self._lowest = 0
        self._fired = {}
        self._patience = Patience()
        return begins

    def next_task(self, candidates: Sequence[Task | Timer], running: Task | None) -> int:
        self._step += 1
        priorities = self._priorities
        for each in candidates:
            if each not in priorities:
                priorities[each] = self._first_priority(each, running)
        if running is not None and (candidates[0] is not running or self._patience.ends(running)):
            self._lowest -= 1
            priorities[running] = self._lowest
        for change in self._changes.get(self._step, ()):
            priorities[max(candidates, key=priorities.__getitem__)] = change
        best = max(candidates, key=priorities.__getitem__)
        if not isinstance(best, Task):
            self._fired[f"timer/{best.name}"] = priorities.pop(best)
        return candidates.index(best)

    def _first_priority(self, what: Task | Timer, running: Task | None) -> int:
        # A timer that fires goes on as a task, with the timer's priority. All are above all changes; ties are
        # practically none, and then the first candidate goes.
        if what is running and what.name in self._fired:
            return self._fired.pop(what.name)
        return self._depth + self._drawn.below(1 << 62)
