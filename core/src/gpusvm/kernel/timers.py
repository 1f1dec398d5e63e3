"""kernel/time/timer.c, as of Linux 7.3.4: call a function once at a time, in softirq context."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from gpusvm.kernel.task import Task, Waitable

if TYPE_CHECKING:
    from gpusvm.kernel.core import Kernel


class Timer(Waitable):
    """Call `fn` at the time it is armed for (struct timer_list). It runs in atomic context and must not sleep; it may
    queue work.
    """

    __slots__ = ("_fn", "_kernel", "_running", "_waiters", "counted", "entry", "name")
    kind = "timer"

    def __init__(self, kernel: Kernel, name: str, fn: Callable[[], object]) -> None:
        self.name = name
        self._kernel = kernel
        self._fn = fn
        self._running: Task | None = None
        self._waiters: list[Task] = []
        self.entry = 0
        self.counted = False

    def activity(self, task: Task | None = None) -> str:
        """Say whether it is armed or its function runs, `task` apart; empty if neither."""
        if self.entry:
            return "is armed"
        if self._running is not None and self._running is not task:
            return f"runs in task {self._running.name!r}"
        return ""

    @property
    def pending(self) -> bool:
        """Say whether it is armed and has not fired (timer_pending)."""
        self._kernel.touch(self, write=False)
        return self.entry != 0

    def arm(self, at_ns: int) -> None:
        """Fire at `at_ns`, or at once if that is past; an armed timer is moved (mod_timer)."""
        kernel = self._kernel
        if kernel.explored:
            kernel.yield_point("mod_timer", self)
        kernel.sched.unschedule(self)
        kernel.sched.schedule(self, max(at_ns, kernel.current.time_ns), counts=False)

    def cancel(self) -> bool:
        """Disarm and return whether it was pending; its function may still be running (timer_delete)."""
        kernel = self._kernel
        if kernel.explored:
            kernel.yield_point("timer_delete", self)
        pending = self.entry != 0
        kernel.sched.unschedule(self)
        return pending

    def cancel_sync(self) -> bool:
        """Disarm, wait for its function if that is running, and return whether it was pending (timer_delete_sync)."""
        self._kernel.might_sleep()
        pending = self.cancel()
        while self._running is not None:
            self._waiters.append(self._kernel.current)
            self._kernel.sched.block(self)
        return pending

    def fire(self) -> None:
        """Run the function; the scheduler calls this in the softirq task."""
        kernel = self._kernel
        self._running = kernel.current
        kernel.preempt_disable()
        try:
            self._fn()
        finally:
            kernel.preempt_enable()
            self._running = None
            waiters, self._waiters = self._waiters, []
            for waiter in waiters:
                kernel.sched.wake(waiter)

    def holders(self, task: Task) -> list[Task]:
        return [] if self._running is None else [self._running]

    def forget(self, task: Task) -> None:
        if task in self._waiters:
            self._waiters.remove(task)
