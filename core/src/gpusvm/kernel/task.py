"""kernel/sched/core.c, as of Linux 7.3.4: a task is a greenlet, so model code is ordinary nested functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from greenlet import greenlet

from gpusvm.errors import ModelError

if TYPE_CHECKING:
    from gpusvm.kernel.core import Kernel
    from gpusvm.kernel.lockdep import Chain
    from gpusvm.kernel.place import Site


class Waitable:
    """Be something that a task can wait for: it can say who holds it and forget a waiter."""

    __slots__ = ()
    kind: ClassVar[str] = "?"
    name: str

    def holders(self, task: Task) -> list[Task]:
        """Return the tasks that `task`, blocked here, waits for; empty if anyone may wake it."""
        return []

    def ahead_of(self, task: Task) -> list[Task]:
        """Return those of the holders that do not hold it, but stand before `task` in its queue."""
        return []

    def how_held(self, task: Task) -> str:
        """Say in which way `task` holds it, if there are several."""
        return ""

    def wanted_by(self, task: Task) -> str:
        """Describe it, and in which way `task` waits for it."""
        return self.describe()

    def forget(self, task: Task) -> None:
        """Take `task` off the waiters: it was interrupted or its timeout came."""
        raise NotImplementedError

    def describe(self) -> str:
        return f"{self.kind} {self.name!r}"


class Task(Waitable):
    """Be one thread of control: a CPU thread, a kworker, a softirq; built by ``Kernel.spawn``.

    ``time_ns`` is the task's own virtual time. ``held`` lists what lockdep has it holding, in order (checked kernels
    only). ``preempt_count`` > 0 means atomic context. ``in_notifier`` > 0 means inside an mmu notifier callback; the mm
    counts it. ``cpu`` is the CPU that it runs on, or ran on last, and ``bound`` that it may run on no other; None where
    CPUs do not count, and for a softirq (`gpusvm.kernel.cpus`).
    """

    __slots__ = (
        "_fn",
        "_in_notifier",
        "args",
        "atomic_site",
        "bound",
        "chain",
        "counted",
        "cpu",
        "daemon",
        "done",
        "entry",
        "exception",
        "fatal_signal_pending",
        "greenlet",
        "held",
        "index",
        "interrupt",
        "joiners",
        "kernel",
        "killable",
        "name",
        "preempt_count",
        "result",
        "time_ns",
        "timed_out",
        "waiting_on",
    )
    kind = "end of task"

    def __init__(
        self,
        kernel: Kernel,
        fn: Callable[..., Any] | None,
        *,
        args: tuple[Any, ...] = (),
        name: str,
        index: int,
        daemon: bool,
        time_ns: int,
    ) -> None:
        self.kernel = kernel
        self.name = name
        self.index = index
        self.daemon = daemon
        self.time_ns = time_ns
        self._fn = fn
        self.args = args
        self.greenlet: greenlet | None = None  # None until it first runs
        self.done = False
        self.result: Any = None
        self.exception: BaseException | None = None
        self.joiners: list[Task] = []
        self.waiting_on: Waitable | None = None
        self.timed_out = False
        self.fatal_signal_pending = False  # it has been killed (include/linux/sched/signal.h)
        self.killable = False  # it waits, if it waits, in a way that a fatal signal ends (TASK_KILLABLE)
        self.interrupt: BaseException | None = None  # to be raised where the task resumes
        self.entry = 0  # counter of its valid entry in the scheduler's heap, 0 if none
        self.counted = False  # that entry keeps settle() going
        self.preempt_count = 0
        self.atomic_site: Site | None = None  # where preempt_count left 0
        self._in_notifier = 0
        self.cpu: int | None = None
        self.bound = False
        self.chain: Chain = kernel.lockdep.root
        self.held: list[Any] = []

    def __repr__(self) -> str:
        return f"<Task {self.name!r}>"

    def __lt__(self, other: Task) -> bool:
        return self.index < other.index

    @property
    def in_notifier(self) -> int:
        """Count how deep the task is in mmu notifier callbacks; set by the mm around each callback."""
        return self._in_notifier

    @in_notifier.setter
    def in_notifier(self, depth: int) -> None:
        change = depth - self._in_notifier
        self._in_notifier = depth
        if self.kernel.checked:
            self.kernel.lockdep.notifier(self, change)

    def join(self) -> Any:
        """Wait until the task is done and return its result; raise again what it raised."""
        kernel = self.kernel
        if kernel.current is self:
            raise ModelError(f"task {self.name!r} joins itself")
        kernel.might_sleep()
        if kernel.explored:
            kernel.yield_point("join", self)
        while not self.done:
            self.joiners.append(kernel.current)
            kernel.sched.block(self)
        if self.exception is not None:
            kernel.sched.delivered(self)
            raise self.exception
        return self.result

    def kill(self) -> None:
        """Send it a fatal signal (SIGKILL): from now on killable waits end at once, others as they would."""
        self.kernel.touch(self)
        self.fatal_signal_pending = True
        if self.killable and self.waiting_on is not None:
            self.waiting_on.forget(self)
            self.kernel.sched.wake(self)

    def holders(self, task: Task) -> list[Task]:
        return [self]

    def forget(self, task: Task) -> None:
        if task in self.joiners:
            self.joiners.remove(task)
