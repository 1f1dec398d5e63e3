"""Find tasks that keep each other from getting anything done: all of them run, and every one begins again and again.

A round is over when everybody who could go on has begun again what it tried in vain (`Kernel.on_retry`). Some such
rounds in a row, in which no access of memory and no operation was done, are a livelock: nobody was neglected, so that
no scheduler is to blame, and nobody was on the way to an end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from gpusvm.errors import LivelockError
from gpusvm.kernel import Task
from gpusvm.kernel.deadlock import report
from gpusvm.kernel.place import leave_out

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gpusvm.kernel import Choices, Kernel, Timer
    from gpusvm.kernel.explored import ExploredScheduler
    from gpusvm.mm import MemoryManager

__all__ = ["ROUNDS_MAX", "LivelockWatch"]

ROUNDS_MAX: Final = 5
"""Rounds in vain that are one too many. One or two may be bad luck."""

CHANCES_MAX: Final = 10
"""So many where others get in the way by chance; after them nobody is preempted any more, for as many again."""


leave_out(__file__)


class _Calm:
    """Preempt nobody but who begins again, and let nothing fail: each may try undisturbed, in turn."""

    def __init__(self) -> None:
        self.taken: list[int] = []
        self.widths: list[int] = []
        self.turn = False

    def pick(self, n: int, label: str) -> int:
        return 0

    def pick_task(self, candidates: Sequence[Task | Timer], running: Task | None) -> int:
        if not self.turn or running is None:
            return 0
        self.turn = False
        later = (i for i, one in enumerate(candidates) if isinstance(one, Task) and one.index > running.index)
        return next(later, next(i for i, one in enumerate(candidates) if one is not running))


class LivelockWatch:
    """Raise LivelockError in main when nobody gets anywhere, or when a task gives itself more time while it tries.

    `done` counts what is done besides accesses of memory: operations. What a clock ends is no livelock: a round does
    not count while a timer is due or a task sleeps, nor with an attempt that was in vain because its time had not come
    (a timeslice). A task that others keep off its CPU all the while, without preemption, could not go on. Where it is
    chance that others get in the way (an invalidation under a fault, a GPU's access that faults again), rounds in vain
    have to go on when nobody is preempted any more; then only the clock would end them, if anything does.
    """

    def __init__(self, memory: MemoryManager, done: Callable[[], int], *, rounds_max: int = ROUNDS_MAX) -> None:
        self._kernel: Kernel = memory.kernel
        self._contents = memory.contents
        self._done = done
        self._rounds_max = rounds_max
        self._rounds = 0
        self._by_chance = False
        self._round_ns = 0
        self._again: set[Task] = set()  # who has begun again in this round; asked, never gone through
        self._tried: set[Task] = set()  # who has in any of the rounds
        self._progress: tuple[int, ...] = ()
        self._calm: _Calm | None = None
        self._choices: Choices | None = None  # those that decide when all is calm

    def begin(self) -> None:
        """Listen from now on."""
        self._progress = ()
        self._kernel.on_retry = self._retry

    def end(self) -> None:
        """Stop listening."""
        self._kernel.on_retry = None
        self._excite()

    def _retry(self, by_clock: bool, by_chance: bool, deadlines: tuple[int, int] | None) -> None:
        kernel = self._kernel
        sched: ExploredScheduler = kernel.sched  # type: ignore[assignment]  # only explored kernels are watched
        if deadlines is not None and deadlines[1] > deadlines[0]:
            self._unbounded(sched, *deadlines)
        progress = (self._contents.accesses, self._done())
        if progress != self._progress or by_clock or sched.waits_for_clock:
            self._progress = progress
            self._rounds = 0
            self._tried = set()
            self._by_chance = False
            self._round_ns = sched.now
            self._again = set()
            self._excite()
            if by_clock:
                return
        self._by_chance = self._by_chance or by_chance
        self._again.add(kernel.current)
        if self._calm is not None:
            self._calm.turn = True
        runnable = sched.runnable
        left = False
        for task in sched.tasks.values():
            if task in self._again:
                continue
            if task in runnable:
                if task.time_ns > self._round_ns or not sched.kept_off(task, self._round_ns):
                    return
            elif task.time_ns > self._round_ns:
                left = True  # it went on, and waits now: for one of those, perhaps
        if left:
            self._round_ns = sched.now
            return
        self._rounds += 1
        self._tried |= self._again
        if not self._by_chance:
            if self._rounds >= self._rounds_max:
                self._found(sched)
        elif self._rounds == CHANCES_MAX:
            self._calm_down()
        elif self._rounds == 2 * CHANCES_MAX:
            self._found(sched)
        self._round_ns = sched.now
        self._again = set()

    def _calm_down(self) -> None:
        kernel = self._kernel
        if self._calm is None:
            self._calm, self._choices = _Calm(), kernel.choices
            kernel.set_choices(self._calm)

    def _excite(self) -> None:
        if self._calm is not None:
            if self._kernel.choices is self._calm:
                assert self._choices is not None
                self._kernel.set_choices(self._choices)
            self._calm = self._choices = None

    def _unbounded(self, sched: ExploredScheduler, was_ns: int, is_ns: int) -> None:
        task = self._kernel.current
        title = (
            f"livelock: {task.name!r} was to give up at {was_ns} ns, and begins again with time until {is_ns} ns: "
            "nothing bounds its attempts"
        )
        sched.fail(LivelockError(report(title, sched.tasks.values(), running=[task])))

    def _found(self, sched: ExploredScheduler) -> None:
        ran = [task for task in sched.tasks.values() if task in self._tried]
        kept = [task for task in sched.runnable if task not in ran]
        names = ", ".join(repr(task.name) for task in ran)
        off = f"; kept off their CPUs: {', '.join(repr(task.name) for task in kept)}" if kept else ""
        title = f"livelock: {names} began again {self._rounds} times each, and nobody got anything done{off}"
        sched.fail(LivelockError(report(title, sched.tasks.values(), running=ran)))
