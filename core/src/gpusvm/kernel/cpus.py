"""kernel/sched/core.c and kernel/Kconfig.preempt, as of Linux 7.3.4: count CPUs, and say where a task loses its own.

Who may run where follows Linux as far as an order of operations shows it:

* A task stands on one CPU, and one task at a time on each. It begins on the next CPU in turn; when that is taken and
  another is free it goes there, as idle CPUs pull tasks (sched_balance_newidle). A task that is bound to its CPU does
  not: the kworkers of per-CPU work, and what is spawned with `cpu`.
* A kworker of an ordinary workqueue is such a task too, as if the queue were WQ_UNBOUND. Nothing says of a modelled
  queue that it is per-CPU but `Workqueue.queue_on`, so that no starvation is reported that an unbound queue would not
  have.
* A timer's softirq has no CPU of its own and may go at any time: it runs on the way out of an interrupt, whatever the
  preemption model, and on which CPU is not known (kernel/softirq.c:irq_exit_rcu).
* Whoever spins, for a SpinLock or in a loop with ``cpu_relax`` or ``give_way``, keeps the CPU, and so does in every
  model whoever is atomic.
* A preemptive kernel (CONFIG_PREEMPT) may put another task of the CPU in at any operation. One that is not
  (CONFIG_PREEMPT_NONE) does so where a task sleeps, ends, calls ``cond_resched`` or returns to user space, between two
  system calls or between a CPU fault and the access that it was for.

With CONFIG_PREEMPT_LAZY a task keeps its CPU likewise, but to the next tick only: what is found here without
preemption is a delay of a tick there, and no end with CONFIG_PREEMPT_NONE, or CONFIG_PREEMPT_VOLUNTARY if the loop does
not sleep anywhere.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, NoReturn

from gpusvm.errors import InputError, LivelockError
from gpusvm.kernel.deadlock import report
from gpusvm.kernel.explored import ExploredScheduler
from gpusvm.kernel.footprint import EVERYTHING
from gpusvm.kernel.place import caller, stack

if TYPE_CHECKING:
    from gpusvm.kernel.core import Kernel
    from gpusvm.kernel.task import Task
    from gpusvm.kernel.timers import Timer

WATCHDOG_STEPS = 10_000
_NO_CPU = -1


class CpuScheduler(ExploredScheduler):
    """Offer to ``kernel.choices`` the task of each CPU and, where a CPU is free, the tasks that may have it.

    A task that has kept its CPU for `watchdog_steps` operations, while tasks waited for that CPU and nobody else could
    go on, gets LivelockError: a CPU that is stuck (kernel/watchdog.c).
    """

    def __init__(self, kernel: Kernel, cpus: int, *, preemptive: bool) -> None:
        self.cpus = cpus
        self.preemptive = preemptive
        self.watchdog_steps = WATCHDOG_STEPS
        self._on: list[Task | None] = [None] * cpus
        self._since_ns = [0] * cpus  # when the task on it came
        self._alone = 0  # operations in a row of a task that nobody else could interrupt
        self._in_turn = 0
        self._offered: list[Task] = []
        super().__init__(kernel)
        self.main.cpu = 0
        self._on[0] = self.main

    def bind(self, task: Task, cpu: int) -> None:
        if not 0 <= cpu < self.cpus:
            raise InputError(f"task {task.name!r} is bound to CPU {cpu}, and there are {self.cpus}, counted from 0")
        task.cpu = cpu
        task.bound = True

    def add(self, task: Task) -> None:
        if task.cpu is None:
            task.cpu = self._in_turn
            self._in_turn = (self._in_turn + 1) % self.cpus
        super().add(task)

    # -- who leaves a CPU

    def yield_point(self, label: str, what: object) -> None:
        if not self.preemptive and not self.kernel.closing:
            self._watch()
        super().yield_point(label, what)

    def cond_resched(self) -> None:
        kernel = self.kernel
        if kernel.closing:
            return
        task = kernel.current
        if task.preempt_count:
            self.yield_point("cond_resched", None)
            return
        self._leave_cpu(task)
        self._alone = 0
        try:
            super().yield_point("cond_resched", None)
        finally:
            self._enter_cpu(task)  # it went on, and nobody has taken its place

    def next_task(self) -> Task:
        task = self.kernel.current
        if task.done or not task.preempt_count:  # or it spins for a lock
            self._leave_cpu(task)
        self._alone = 0
        return super().next_task()

    def _step(self) -> None:
        super()._step()
        # Who goes may keep a CPU from another, who waits or ends gives one away: no two steps can be swapped.
        if self.kernel.footprint is not None:
            self.kernel.footprint.touch(EVERYTHING, True)

    def interrupt_main(self, error: BaseException) -> Task:
        main = super().interrupt_main(error)
        self._enter_cpu(main)
        return main

    def spins(self) -> NoReturn:
        if not self._ready:
            super().spins()
        self._stuck_cpu(f"spins at {caller()}")

    def _watch(self) -> None:
        # The operations of a task that others keep company are none of a stuck CPU: those may end what it does.
        if not self._ready:
            self._alone = 0
            return
        self._alone += 1
        if self._alone > self.watchdog_steps:
            kept, self._alone = self._alone, 0  # on the way out of here it is not stuck
            self._stuck_cpu(f"has kept it for {kept} operations")

    def _stuck_cpu(self, how: str) -> NoReturn:
        task = self.kernel.current
        kept = ", ".join(repr(other.name) for other in self._ready)
        lines = [
            f"livelock: task {task.name!r} on CPU {task.cpu} {how}, and nobody else can go on; for a CPU wait {kept}"
        ]
        lines.extend(f"    {line}" for line in stack(sys._getframe()))
        raise LivelockError(
            report("\n".join(lines), [other for other in self.tasks.values() if other.waiting_on is not None])
        )

    # -- who may have one

    def kept_off(self, task: Task, since_ns: int) -> bool:
        if task.cpu is None:
            return False
        cpus = [task.cpu] if task.bound else range(self.cpus)
        return not self.preemptive and all(
            self._on[cpu] is not None and self._on[cpu] is not task and self._since_ns[cpu] <= since_ns for cpu in cpus
        )

    def _candidates(self) -> list[Task | Timer]:
        self._offered = [task for task in self._ready if self._cpu_for(task) is not None]
        if self._offered or self._due:
            self._alone = 0
        return [*self._offered, *(timer for _, timer in self._due)]

    def _take(self, choice: int) -> Task:
        if choice < len(self._offered):
            task = self._offered[choice]
            self._ready.remove(task)
            return self._resume(task)
        return self._fire(choice - len(self._offered))

    def _resume(self, task: Task) -> Task:
        self._enter_cpu(task)
        return super()._resume(task)

    def _cpu_for(self, task: Task) -> int | None:
        """Return the CPU on which a runnable task may go on now, -1 if it needs none, None if there is none."""
        cpu = task.cpu
        if cpu is None:
            return _NO_CPU
        if self._on[cpu] is task or self._free(cpu):
            return cpu
        if task.bound:
            return None
        return next((other for other in range(self.cpus) if self._free(other)), None)

    def _free(self, cpu: int) -> bool:
        on = self._on[cpu]
        return on is None or (self.preemptive and not on.preempt_count)

    def _enter_cpu(self, task: Task) -> None:
        cpu = task.cpu
        if cpu is None or self._on[cpu] is task:
            return
        place = self._cpu_for(task)
        if place is not None:
            task.cpu = cpu = place
        self._since_ns[cpu] = self.now
        self._on[cpu] = task  # main, when it is told that something failed, has its CPU whoever is there

    def _leave_cpu(self, task: Task) -> None:
        if task.cpu is not None and self._on[task.cpu] is task:
            self._on[task.cpu] = None
