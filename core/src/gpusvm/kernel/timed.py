"""Run tasks in the order of virtual time: the runnable task with the smallest (time_ns, counter) goes next."""

from __future__ import annotations

from heapq import heappop
from typing import TYPE_CHECKING

from gpusvm.kernel.scheduler import Scheduler
from gpusvm.kernel.task import Task

if TYPE_CHECKING:
    from gpusvm.kernel.core import Kernel
    from gpusvm.kernel.timers import Timer

NEVER = 1 << 62


class TimedScheduler(Scheduler):
    """Keep runnable tasks, sleeping tasks and timers in one heap; ``kernel.next_due`` is the time of its first entry.

    The running task goes on until its time passes that, so charging costs one comparison.
    """

    def __init__(self, kernel: Kernel) -> None:
        super().__init__(kernel)
        self._horizon = 0  # the latest time that any task has reached: settle() ends there

    def schedule(self, what: Task | Timer, at: int, *, counts: bool, last: bool = False) -> None:
        super().schedule(what, at, counts=counts, last=last)
        self.kernel.next_due = min(self.kernel.next_due, at)

    def wake(self, task: Task) -> None:
        task.time_ns = max(task.time_ns, self.kernel.current.time_ns)
        task.waiting_on = None
        self.schedule(task, task.time_ns, counts=True)

    def add(self, task: Task) -> None:
        self.schedule(task, task.time_ns, counts=True)

    def drop(self, task: Task) -> None:
        self.unschedule(task)

    def next_task(self) -> Task:
        kernel = self.kernel
        self._horizon = max(self._horizon, kernel.current.time_ns)
        at = self.top()
        if at is None or (self.settlers and not self.busy and at > self._horizon):
            if not self.settlers:
                return self.stuck()
            task = self.settlers.pop()
            task.time_ns = max(task.time_ns, self._horizon)
        else:
            what = heappop(self.heap)[2]
            self.unschedule(what)
            if isinstance(what, Task):
                task = what
                task.time_ns = max(task.time_ns, at)
                self.expired(task)
            else:
                task = self.timer_task(what, at)
            at = self.top()
        kernel.next_due = NEVER if at is None else at
        return task

    def resched(self) -> None:
        """Let those go first that are due before the running task's time."""
        at = self.top()
        task = self.kernel.current
        if at is not None and at < task.time_ns and not self.kernel.closing:
            self.schedule(task, task.time_ns, counts=True)
            self.leave(task)
        else:
            self.kernel.next_due = NEVER if at is None else at

    def cond_resched(self) -> None:
        at = self.top()
        task = self.kernel.current
        if at is not None and at <= task.time_ns and not self.kernel.closing:
            self.schedule(task, task.time_ns, counts=True)
            self.leave(task)

    def cpu_relax(self) -> None:
        at = self.top()
        if at is None:
            self.alone()
            return
        task = self.kernel.current
        task.time_ns = max(task.time_ns, at)
        self.cond_resched()

    def give_way(self) -> None:
        self.cond_resched()

    def sleep_until(self, ns: int) -> None:
        """Sleep; where nobody is due before, nobody has to be switched to, and time passes."""
        kernel = self.kernel
        task = kernel.current
        # What settles goes before a daemon that sleeps, and main hears of failures when it is through.
        at = max(ns, task.time_ns)
        if at < kernel.next_due and not self.failures and not kernel.closing and not (task.daemon and self.settlers):
            task.time_ns = at
            return
        super().sleep_until(ns)

    def run_until(self, ns: int) -> None:
        task = self.kernel.current
        self.schedule(task, max(ns, task.time_ns), counts=not task.daemon, last=True)
        self.leave(task)
