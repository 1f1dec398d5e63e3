"""Find tasks that keep each other from getting anything done: all of them run, and every one begins again and again.

A round is over when everybody who could go on has begun again what it tried in vain (`Kernel.on_retry`). Some such
rounds in a row, in which no access of memory and no operation was done, are a livelock: nobody was neglected, so that
no scheduler is to blame, and nobody was on the way to an end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from gpusvm.errors import LivelockError
from gpusvm.kernel.deadlock import report

if TYPE_CHECKING:
    from collections.abc import Callable

    from gpusvm.kernel import Kernel, Task
    from gpusvm.kernel.explored import ExploredScheduler
    from gpusvm.mm import MemoryManager

__all__ = ["ROUNDS_MAX", "LivelockWatch"]

ROUNDS_MAX: Final = 5
"""Rounds in vain that are one too many. One or two may be bad luck."""


class LivelockWatch:
    """Raise LivelockError in main when nobody gets anywhere.

    `done` counts what is done besides accesses of memory: operations. What a clock ends is no livelock: a round does
    not count while a timer is due or a task sleeps, nor with an attempt that was in vain because its time had not come
    (a timeslice) or that is repeated for a time only (get_pages, a fault that a notifier sends back: 1 s, then EBUSY).
    A task that others keep off its CPU all the while, without preemption, could not go on.
    """

    def __init__(self, memory: MemoryManager, done: Callable[[], int], *, rounds_max: int = ROUNDS_MAX) -> None:
        self._kernel: Kernel = memory.kernel
        self._contents = memory.contents
        self._done = done
        self._rounds_max = rounds_max
        self._rounds = 0
        self._begun_ns = self._round_ns = 0
        self._again: set[Task] = set()  # who has begun again in this round; asked, never gone through
        self._progress: tuple[int, ...] = ()

    def begin(self) -> None:
        """Listen from now on."""
        self._progress = ()
        self._kernel.on_retry = self._retry

    def end(self) -> None:
        """Stop listening."""
        self._kernel.on_retry = None

    def _retry(self, by_clock: bool) -> None:
        kernel = self._kernel
        sched: ExploredScheduler = kernel.sched  # type: ignore[assignment]  # only explored kernels are watched
        progress = (self._contents.accesses, self._done())
        if progress != self._progress or by_clock or sched.waits_for_clock:
            self._progress = progress
            self._rounds = 0
            self._begun_ns = self._round_ns = sched.now
            self._again = set()
            if by_clock:
                return
        self._again.add(kernel.current)
        runnable = sched.runnable
        for task in sched.tasks.values():
            if task not in self._again and (
                task.time_ns > self._round_ns or (task in runnable and not sched.kept_off(task, self._round_ns))
            ):
                return
        self._rounds += 1
        if self._rounds == self._rounds_max:
            self._found(sched)
        self._round_ns = sched.now
        self._again = set()

    def _found(self, sched: ExploredScheduler) -> None:
        ran = [task for task in sched.tasks.values() if task is sched.kernel.current or task.time_ns > self._begun_ns]
        kept = [task for task in sched.runnable if task not in ran]
        names = ", ".join(repr(task.name) for task in ran)
        off = f"; kept off their CPUs: {', '.join(repr(task.name) for task in kept)}" if kept else ""
        title = f"livelock: {names} began again {self._rounds} times each, and nobody got anything done{off}"
        sched.fail(LivelockError(report(title, sched.tasks.values())))
