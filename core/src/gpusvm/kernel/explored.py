"""Run tasks in any order that Choices say: every primitive operation is a point where another task may go on."""

from __future__ import annotations

from bisect import bisect_right, insort
from heapq import heappop
from typing import TYPE_CHECKING

from gpusvm.errors import ProgressError
from gpusvm.kernel.choices import Abandoned, CarryOn
from gpusvm.kernel.deadlock import report
from gpusvm.kernel.footprint import EVERYTHING, READS
from gpusvm.kernel.scheduler import Scheduler
from gpusvm.kernel.task import Task

if TYPE_CHECKING:
    from gpusvm.kernel.core import Kernel
    from gpusvm.kernel.footprint import Footprint
    from gpusvm.kernel.timers import Timer

STEP_NS = 1000
STEPS_MAX = 1_000_000


class ExploredScheduler(Scheduler):
    """Ask ``kernel.choices`` at each yield point: 0 carries on, then the other runnable tasks in spawn order, then due
    timers.

    All tasks share one clock; a step advances it by 1 us. Only when nothing can run does it jump to the next sleeper or
    timer.
    """

    def __init__(self, kernel: Kernel) -> None:
        super().__init__(kernel)
        self.now = 0
        self.steps = 0
        self.steps_max = STEPS_MAX
        self.steps_begun = 0  # where they count from
        self._endless = ""
        self._limits: dict[object, tuple[int, int]] = {}  # what is under way -> its last step, and how many it has
        self._unlimited = STEPS_MAX  # steps_max without those
        self._ready: list[Task] = []  # runnable, without the running one, in spawn order
        self._due: list[tuple[int, Timer]] = []  # due and not fired, in that order, with the counter of their entry
        self._until: list[tuple[int, Task]] = []

    def wake(self, task: Task) -> None:
        footprint = self.kernel.footprint
        if footprint is not None:
            footprint.touch(task, True)
        task.waiting_on = None
        self.unschedule(task)
        insort(self._ready, task)

    def add(self, task: Task) -> None:
        footprint = self.kernel.footprint
        if footprint is not None:
            footprint.spawned(task, self.kernel.current)
        insort(self._ready, task)

    def drop(self, task: Task) -> None:
        self.unschedule(task)
        if task in self._ready:
            self._ready.remove(task)
        self._until = [(ns, other) for ns, other in self._until if other is not task]

    def forget_timer(self, timer: Timer) -> None:
        super().forget_timer(timer)
        self._due = [(counter, other) for counter, other in self._due if other is not timer]

    def yield_point(self, label: str, what: object) -> None:
        """Let Choices decide who goes on; `label` names the operation that follows and `what` the thing it touches."""
        kernel = self.kernel
        if kernel.closing:
            return
        task = kernel.current
        footprint = kernel.footprint
        if footprint is not None or self.steps >= self.steps_max:
            self._step()
        else:  # the same, without a call
            self.now += STEP_NS
            self.steps += 1
        task.time_ns = now = self.now
        observer = kernel.observer
        if observer is not None:
            step = getattr(observer, "step", None)
            if step is not None:
                step(task, label, what)
        if footprint is not None:
            footprint.step(task, label, what, label not in READS)
        heap = self.heap
        if self._due or (heap and heap[0][0] <= now):
            self._collect()
        elif not self._ready:
            return
        choices = kernel.choices
        if type(choices) is CarryOn and not kernel.cpus:
            return
        candidates = self._candidates()
        if not candidates:
            return
        candidates.insert(0, task)
        choice = choices.pick_task(candidates, task)
        if choice:
            following = self._take(choice - 1) if choice > 0 else self._abandon()
            if following is not task:
                insort(self._ready, task)
                self.go(following)
            self.resumed(task)

    def cond_resched(self) -> None:
        self.yield_point("cond_resched", None)

    def cpu_relax(self) -> None:
        if self.kernel.closing:
            return
        self._relax("cpu_relax")
        while not self._candidates():
            at = self.top()
            if at is None:
                self.alone()
                return
            self.now = max(self.now, at)
            self._collect()
        self._give_way()

    def give_way(self) -> None:
        if self.kernel.closing:
            return
        self._relax("give_way")
        if self._candidates():
            self._give_way()

    def _relax(self, label: str) -> None:
        kernel = self.kernel
        self._step()
        kernel.current.time_ns = self.now
        if kernel.footprint is not None:
            kernel.footprint.step(kernel.current, label, None, False)
        self._collect()

    def _give_way(self) -> None:
        # Choice 0 is the next task in turn and not the running one, or a loop that waits for another would never end.
        task = self.kernel.current
        turn = bisect_right(self._ready, task)
        self._ready = self._ready[turn:] + self._ready[:turn]
        candidates = [*self._candidates(), task]
        choice = self.kernel.choices.pick_task(candidates, task)
        if choice < 0:
            following = self._abandon()
        else:
            following = self._take(choice) if choice < len(candidates) - 1 else self._resume(task)
        self._ready.sort()
        if following is not task:
            insort(self._ready, task)
            self.go(following)
            self.resumed(task)

    def _step(self) -> None:
        self.now += STEP_NS
        self.steps += 1
        if self.steps > self.steps_max:
            raise ProgressError(self._no_end())

    def limit(self, what: object, steps: int) -> None:
        """Give what is under way so many steps from now on, of all tasks together, until `unlimit`."""
        if not self._limits:
            self._unlimited = self.steps_max
        self._limits[what] = (self.steps + steps, steps)
        self.steps_max = min(self.steps_max, self.steps + steps)

    def unlimit(self, what: object) -> None:
        """Note that it is done."""
        del self._limits[what]
        self.steps_max = min((self._unlimited, *(last for last, _ in self._limits.values())))

    def _no_end(self) -> str:
        # Every step from now on ends whoever takes it; all say what the first found.
        if not self._endless:
            title = f"no end after {self.steps_max - self.steps_begun} steps: tasks keep each other busy"
            for what, (last, steps) in self._limits.items():
                if last == self.steps_max:
                    title = f"no end after {steps} steps of all tasks: {what} is still not done"
            self._endless = report(title, self.tasks.values(), running=[*self._ready, self.kernel.current])
        return self._endless

    def next_task(self) -> Task:
        observer = self.kernel.observer
        if observer is not None and not self.kernel.closing:
            leaves = getattr(observer, "leaves", None)
            if leaves is not None:
                leaves(self.kernel.current)
        if self.kernel.footprint is not None and not self.kernel.closing:
            self._left(self.kernel.footprint, self.kernel.current)
        self._step()
        while True:
            self._collect()
            candidates = self._candidates()
            if candidates:
                choice = self.kernel.choices.pick_task(candidates, None) if len(candidates) > 1 else 0
                return self._take(choice) if choice >= 0 else self._abandon()
            at = self.top()
            if self._until:
                ns, task = min(self._until)
                if at is None or at > ns:
                    self._until.remove((ns, task))
                    self.now = max(self.now, ns)
                    return self._resume(task)
            elif self.settlers and not self.busy:
                return self._resume(self.settlers.pop())
            elif at is None:
                return self.stuck()
            assert at is not None
            self.now = max(self.now, at)

    def _left(self, footprint: Footprint, task: Task) -> None:
        # What `task`, which cannot go on now, goes on with when it can.
        if task.done:
            footprint.touch(task, True)
            footprint.ended(task)
        elif task.waiting_on is not None:
            footprint.step(task, "woken", task.waiting_on, True)
        elif task in self.settlers or any(other is task for _, other in self._until):
            footprint.step(task, "settled", EVERYTHING, True)
        else:
            footprint.step(task, "slept", None, False)

    def run_until(self, ns: int) -> None:
        task = self.kernel.current
        self._until.append((ns, task))
        self.leave(task)

    @property
    def runnable(self) -> list[Task]:
        """List the tasks that could go on now, without the running one."""
        return [*self._ready]

    def kept_off(self, task: Task, since_ns: int) -> bool:
        """Tell whether a runnable task could not go on at any time since `since_ns`, as others kept all CPUs."""
        return False

    @property
    def waits_for_clock(self) -> bool:
        """Tell whether a timer is due, or a task sleeps that will go on by itself."""
        return bool(self._due) or any(
            isinstance(what, Task) and what.entry == counter for _, counter, what in self.heap
        )

    def _candidates(self) -> list[Task | Timer]:
        if self._due:
            return [*self._ready, *(timer for _, timer in self._due)]
        return [*self._ready]

    def fail(self, error: Exception) -> None:
        """Raise `error` in main at once: the running task found it, and others might go on for ever."""
        task = self.kernel.current
        if task is self.main:
            raise error
        main = self.interrupt_main(error)
        insort(self._ready, task)
        self.go(main)
        self.resumed(task)

    def _abandon(self) -> Task:
        return self.interrupt_main(Abandoned())

    def _resume(self, task: Task) -> Task:
        task.time_ns = self.now
        return task

    def _collect(self) -> None:
        """Make ready what has fallen due."""
        at = self.top()
        while at is not None and at <= self.now:
            _, counter, what = heappop(self.heap)
            if isinstance(what, Task):
                self.unschedule(what)
                self.expired(what)
                insort(self._ready, what)
            else:
                self._due.append((counter, what))  # its entry stays valid: it may still be cancelled
            at = self.top()
        if self._due:
            self._due = [(counter, timer) for counter, timer in self._due if timer.entry == counter]

    def _take(self, choice: int) -> Task:
        if choice < len(self._ready):
            return self._resume(self._ready.pop(choice))
        return self._fire(choice - len(self._ready))

    def _fire(self, due: int) -> Task:
        _, timer = self._due.pop(due)
        self.unschedule(timer)
        task = self.timer_task(timer, self.now)
        if self.kernel.footprint is not None:
            self.kernel.footprint.spawned(task, timer)
        return self._resume(task)
