"""kernel/sched/completion.c and wait.c, as of Linux 7.3.4: wait until something happened, or until something is so."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from gpusvm.kernel.task import Task, Waitable

if TYPE_CHECKING:
    from gpusvm.kernel.core import Kernel

_ALL = 1 << 62  # complete_all(): enough for everybody, for ever


class Completion(Waitable):
    """Count what is complete; each wait takes one, after ``complete_all`` none is missing. ``done`` is the count."""

    __slots__ = ("_kernel", "_waiters", "done", "name")
    kind = "completion"

    def __init__(self, kernel: Kernel, name: str) -> None:
        self.name = name
        self.done = 0
        self._kernel = kernel
        self._waiters: list[Task] = []  # a deque would be most of a completion, and there are thousands

    def complete(self) -> None:
        """Let one waiter through."""
        kernel = self._kernel
        if kernel.explored:
            kernel.yield_point("complete", self)
        if self.done < _ALL:
            self.done += 1
        if self._waiters:
            kernel.sched.wake(self._waiters.pop(0))

    def complete_all(self) -> None:
        """Let everybody through from now on, until ``reinit``."""
        kernel = self._kernel
        if kernel.explored:
            kernel.yield_point("complete_all", self)
        self.done = _ALL
        while self._waiters:
            kernel.sched.wake(self._waiters.pop(0))

    def reinit(self) -> None:
        self.done = 0

    def wait(self) -> None:
        """Sleep until complete (wait_for_completion)."""
        self._wait(None)

    def wait_timeout_ns(self, ns: int) -> bool:
        """Sleep until complete, `ns` at most; return whether it was (wait_for_completion_timeout)."""
        return self._wait(self._kernel.current.time_ns + ns)

    def _wait(self, until: int | None) -> bool:
        kernel = self._kernel
        kernel.might_sleep()
        if kernel.explored:
            kernel.yield_point("wait_for_completion", self)
        while not self.done:
            self._waiters.append(kernel.current)
            if not kernel.sched.block(self, until=until) and not self.done:
                return False
        if self.done < _ALL:
            self.done -= 1
        return True

    def forget(self, task: Task) -> None:
        if task in self._waiters:
            self._waiters.remove(task)


class WaitQueue(Waitable):
    """Hold tasks that sleep until a condition is true; whoever makes it true wakes them."""

    __slots__ = ("_kernel", "_waiters", "name")
    kind = "waitqueue"

    def __init__(self, kernel: Kernel, name: str) -> None:
        self.name = name
        self._kernel = kernel
        self._waiters: deque[Task] = deque()

    @property
    def active(self) -> bool:
        """Say whether anybody waits (waitqueue_active)."""
        return bool(self._waiters)

    def wait_event(self, cond: Callable[[], bool]) -> None:
        """Sleep until `cond()`; it is asked before sleeping and after each wake-up."""
        self._wait(cond, None)

    def wait_event_timeout_ns(self, cond: Callable[[], bool], ns: int) -> bool:
        """Sleep until `cond()`, `ns` at most; return what it last said."""
        return self._wait(cond, self._kernel.current.time_ns + ns)

    def wait_event_killable(self, cond: Callable[[], bool]) -> bool:
        """Sleep until `cond()` or a fatal signal; return False after a signal without it (-ERESTARTSYS)."""
        task = self._kernel.current
        task.killable = True
        try:
            return self._wait(cond, None)
        finally:
            task.killable = False

    def _wait(self, cond: Callable[[], bool], until: int | None) -> bool:
        kernel = self._kernel
        kernel.might_sleep()
        if kernel.explored:
            kernel.yield_point("wait_event", self)
        while not cond():
            task = kernel.current
            if task.killable and task.fatal_signal_pending:
                return False
            self._waiters.append(task)
            if not kernel.sched.block(self, until=until):
                return bool(cond())
            if kernel.explored:
                kernel.yield_point("wait_event", self)
        return True

    def wake_up(self) -> None:
        """Wake the first waiter."""
        kernel = self._kernel
        if kernel.explored:
            kernel.yield_point("wake_up", self)
        if self._waiters:
            kernel.sched.wake(self._waiters.popleft())

    def wake_up_all(self) -> None:
        kernel = self._kernel
        if kernel.explored:
            kernel.yield_point("wake_up_all", self)
        while self._waiters:
            kernel.sched.wake(self._waiters.popleft())

    def forget(self, task: Task) -> None:
        if task in self._waiters:
            self._waiters.remove(task)
