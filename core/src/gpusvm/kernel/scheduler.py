"""What both ways to run tasks share: switching, waiting, sleeping, failing, and the end when nothing can run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING, Any, NoReturn

from greenlet import GreenletExit, getcurrent, greenlet

from gpusvm.errors import DeadlockError, InputError, LockdepError
from gpusvm.kernel.deadlock import find_circle, report
from gpusvm.kernel.greenlets import IdleGreenlets
from gpusvm.kernel.place import caller
from gpusvm.kernel.task import Task, Waitable

if TYPE_CHECKING:
    from gpusvm.kernel.core import Kernel
    from gpusvm.kernel.timers import Timer

LAST = 1 << 62  # a counter that sorts behind all others of its time


class Scheduler(ABC):
    """Switch from task to task; `TimedScheduler` and `ExploredScheduler` decide to which.

    ``heap`` holds what has a time: ``(time_ns, counter, task or timer)``. An entry is valid while its object's
    ``entry`` is that counter, so that waking a task early or cancelling a timer costs nothing. ``busy`` counts the
    valid entries that settle() waits for.
    """

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.heap: list[tuple[int, int, Task | Timer]] = []
        self.counter = 0
        self.busy = 0
        self.tasks: dict[int, Task] = {}  # alive, in spawn order
        self.spawned = 0
        self.settlers: list[Task] = []
        self._idle = IdleGreenlets()
        self.failures: list[Task] = []  # failed, and nobody has been told
        self._spun: Task | None = None  # who spun when nobody else could go on, while nobody has
        self.main = self.new_task(None, name="main", daemon=False, args=(), at=0)
        self.root = self.main.greenlet = getcurrent()

    # -- what the two modes decide

    @abstractmethod
    def wake(self, task: Task) -> None:
        """Make a waiting task runnable, not before the time of the running one."""

    @abstractmethod
    def add(self, task: Task) -> None:
        """Make a new task runnable."""

    @abstractmethod
    def drop(self, task: Task) -> None:
        """Make a runnable or sleeping task neither."""

    @abstractmethod
    def next_task(self) -> Task:
        """Take the task that goes next, its time set; the running one cannot go on, unless it is taken."""

    @abstractmethod
    def cond_resched(self) -> None:
        """Let others go first."""

    @abstractmethod
    def cpu_relax(self) -> None:
        """Let others go first even if they are due only later."""

    @abstractmethod
    def give_way(self) -> None:
        """Let others go first if any can, in a loop that may also end by itself."""

    @abstractmethod
    def run_until(self, ns: int) -> None:
        """Run all that is due up to and including `ns`; the running task's time is at least `ns` then."""

    # -- the heap

    def schedule(self, what: Task | Timer, at: int, *, counts: bool, last: bool = False) -> None:
        """Enter `what` into the heap at a time; a valid older entry becomes void."""
        self.counter += 1
        counter = self.counter | LAST if last else self.counter
        what.entry = counter
        heappush(self.heap, (at, counter, what))
        if counts is not what.counted:
            what.counted = counts
            self.busy += 1 if counts else -1

    def unschedule(self, what: Task | Timer) -> None:
        """Make the entry of `what` void."""
        what.entry = 0
        if what.counted:
            what.counted = False
            self.busy -= 1

    def forget_timer(self, timer: Timer) -> None:
        """Take all void entries of a timer out: it is freed, and nobody may look at it any more."""
        self.heap[:] = [entry for entry in self.heap if entry[2] is not timer]
        heapify(self.heap)

    def top(self) -> int | None:
        """Return the time of the first valid entry, None if there is none."""
        heap = self.heap
        while heap:
            at, counter, what = heap[0]
            if what.entry == counter:
                return at
            heappop(heap)
        return None

    # -- tasks

    def new_task(
        self, fn: Callable[..., Any] | None, *, name: str, daemon: bool, args: tuple[object, ...], at: int
    ) -> Task:
        task = Task(self.kernel, fn, args=args, name=name, index=self.spawned, daemon=daemon, time_ns=at)
        self.tasks[self.spawned] = task
        self.spawned += 1
        return task

    def bind(self, task: Task, cpu: int) -> None:
        """Let a new task run on one CPU only."""
        raise InputError(f"task {task.name!r} is bound to CPU {cpu}, and this kernel does not count its CPUs")

    def timer_task(self, timer: Timer, at: int) -> Task:
        """Return the task in whose softirq context a due timer fires."""
        return self.new_task(timer.fire, name=f"timer/{timer.name}", daemon=False, args=(), at=at)

    def go(self, task: Task) -> None:
        """Switch to `task`; returns when the running task is switched to again."""
        kernel = self.kernel
        main = self.main
        running = kernel.current
        kernel.current = task
        self._spun = None
        if running is not main:
            if task.greenlet is not None:
                task.greenlet.switch()
            elif self._idle:
                task.greenlet = self._idle.pop()
                task.greenlet.switch(task)
            else:
                # A greenlet's stack begins where it is started: if tasks started each other, ever deeper. Main does it.
                self.root.switch()
            return
        while True:
            if task.greenlet is not None:
                task.greenlet.switch()
            else:
                if not self._idle:
                    fresh = greenlet(_body, self.root)
                    fresh.switch(self.root)
                    self._idle.append(fresh)
                task.greenlet = self._idle.pop()
                task.greenlet.switch(task)
            task = kernel.current
            if task is main:
                return

    def run(self, task: Task) -> None:
        """Run `task` in this greenlet to its end, and those that then go next and have not begun."""
        kernel = self.kernel
        while True:
            try:
                assert task._fn is not None
                task.result = task._fn(*task.args)
            except BaseException as error:  # noqa: BLE001  # whatever it is, whoever joins gets it
                task.exception = error
            if kernel.closing:
                return
            here, task.greenlet = task.greenlet, None
            task = kernel.current = self._finish(task)
            if task.greenlet is not None:
                assert here is not None
                self._idle.append(here)
                return
            task.greenlet = here

    def _finish(self, task: Task) -> Task:
        """Tell whoever joins that `task` is done and return the task that goes next."""
        if task.exception is None and task.held:
            held = ", ".join(lock.describe() for lock in task.held)
            task.exception = LockdepError(f"task {task.name!r} ends and holds {held}")
        task.done = True
        task._fn = None  # what it refers to may go now
        task.args = ()
        del self.tasks[task.index]
        joiners, task.joiners = task.joiners, []
        for joiner in joiners:
            self.wake(joiner)
        if task.exception is not None and not joiners:
            if not isinstance(task.exception, Exception):
                # The end of a test or of the program: no other task goes before that.
                return self.interrupt_main(task.exception)
            self.failures.append(task)
        try:
            return self.next_task()
        except BaseException as error:  # noqa: BLE001  # from Choices: there is no other place for it
            return self.interrupt_main(error)

    def delivered(self, task: Task) -> None:
        """Note that someone has been told that `task` failed."""
        if task in self.failures:
            self.failures.remove(task)

    def raise_failure(self) -> None:
        """Raise in main what a task that nobody joins has raised, the oldest first."""
        if self.failures:
            failed = self.failures.pop(0)
            assert failed.exception is not None
            raise failed.exception

    def interrupt_main(self, error: BaseException) -> Task:
        """Let main go next and raise `error` where it waits."""
        main = self.main
        if main.waiting_on is not None:
            main.waiting_on.forget(main)
            main.waiting_on = None
        if main in self.settlers:
            self.settlers.remove(main)
        self.drop(main)
        main.time_ns = max(main.time_ns, self.kernel.current.time_ns)
        main.interrupt = error
        return main

    # -- waiting

    def leave(self, task: Task, *, tell: bool = True) -> None:
        """Let another task go; returns when the running one goes on. `tell` main then of failed tasks."""
        following = self.next_task()
        if following is not task:
            self.go(following)
        self.resumed(task, tell=tell)

    def resumed(self, task: Task, *, tell: bool = True) -> None:
        if task.interrupt is not None:
            error, task.interrupt = task.interrupt, None
            raise error
        if tell and self.failures and task is self.main:
            self.raise_failure()

    def block(self, on: Waitable, *, until: int | None = None, tell: bool = True) -> bool:
        """Wait until woken or, if given, until the time `until`; return whether it was woken. The caller has entered
        the waiters.

        Raises DeadlockError if the task thereby closes a circle of tasks that wait for each other.
        """
        kernel = self.kernel
        if kernel.closing:
            raise GreenletExit
        task = kernel.current
        task.waiting_on = on
        if kernel.footprint is None:
            circle = find_circle(task)
        else:
            with kernel.footprint.aside():
                circle = find_circle(task)
        if circle:
            message = report("deadlock: tasks wait for each other in a circle", circle)
            task.waiting_on = None
            on.forget(task)
            raise DeadlockError(message)
        task.timed_out = False
        if until is not None:
            self.schedule(task, until, counts=not task.daemon)
        self.leave(task, tell=tell)
        return not task.timed_out

    def expired(self, task: Task) -> None:
        """Note that a waiting task's timeout came before anyone woke it."""
        if task.waiting_on is not None:
            task.waiting_on.forget(task)
            task.waiting_on = None
            task.timed_out = True

    def sleep_until(self, ns: int) -> None:
        """Sleep until the time `ns`."""
        if self.kernel.closing:
            raise GreenletExit
        task = self.kernel.current
        self.schedule(task, max(ns, task.time_ns), counts=not task.daemon)
        self.leave(task)

    def settle(self) -> None:
        """Wait until no other task can go on by itself."""
        task = self.kernel.current
        self.settlers.append(task)
        self.leave(task)

    def alone(self) -> None:
        """Note that the running task spins and that nobody is left who could end that.

        What it waits for may have come about since it last looked, so it looks again. Raises DeadlockError when it
        spins once more and nobody has run in between.
        """
        if self._spun is self.kernel.current:
            self.spins()
        self._spun = self.kernel.current

    def spins(self) -> NoReturn:
        """Raise DeadlockError: the running task spins, and nobody is left who could end that."""
        waiting = [task for task in self.tasks.values() if task.waiting_on is not None]
        raise DeadlockError(report(f"deadlock: task {self.kernel.current.name!r} spins at {caller()}", waiting))

    def stuck(self) -> Task:
        """Return main, with the reason why nothing can run."""
        if self.failures:
            error = self.failures.pop(0).exception
            assert error is not None
            return self.interrupt_main(error)
        waiting = [task for task in self.tasks.values() if not task.daemon or task.held]
        return self.interrupt_main(DeadlockError(report("deadlock: nothing can run", waiting)))


def _body(root: greenlet) -> None:
    """Be what a greenlet runs. While it is idle it must not refer to the kernel, or neither would ever be freed."""
    while True:
        task: Task | None = root.switch()  # main goes on to kernel.current
        assert task is not None
        task.kernel.sched.run(task)
        if task.kernel.closing:
            return
        task = None
