"""kernel/workqueue.c, as of Linux 7.3.4: run a function later, in a kworker."""

from __future__ import annotations

from collections.abc import Callable
from sys import _getframe
from typing import TYPE_CHECKING, Final

from gpusvm.errors import InputError, ModelError
from gpusvm.kernel.lockdep import LockMap
from gpusvm.kernel.place import Site, name_site
from gpusvm.kernel.task import Task, Waitable
from gpusvm.kernel.timers import Timer

if TYPE_CHECKING:
    from gpusvm.kernel.core import Kernel


class Work(Waitable):
    """Be one function that can be queued (struct work_struct, struct delayed_work).

    It is queued once at a time, but may be queued again while it runs; it never runs twice at the same time.
    """

    __slots__ = ("_by", "_queue", "_seq", "_timer", "_waiters", "disabled", "fn", "name", "pending", "running")
    kind = "work"

    def __init__(self, fn: Callable[[], object], name: str) -> None:
        self.fn: Final = fn
        self.name = name
        self.pending = False  # queued, or its delay is running (work_pending)
        self.disabled = 0  # how often disable_sync was called more than enable: it is not queued then
        self._by: tuple[str, Site] | None = None  # who queued it last, in an explored kernel
        self.running: Task | None = None
        self._queue: Workqueue | None = None
        self._seq = 0
        self._timer: Timer | None = None
        self._waiters: list[Task] = []

    def cancel(self) -> bool:
        """Take it off its queue and return whether it was pending; it may still be running (cancel_work)."""
        queue = self._queue
        if queue is None:
            return False
        if queue._kernel.explored:
            queue._kernel.yield_point("cancel_work", self)
        pending = self.pending
        self.pending = False
        if self._timer is not None:
            queue._kernel.touch(self._timer)
            queue._kernel.sched.unschedule(self._timer)
        if self in queue._works:
            queue._works.remove(self)
            queue._progress()
        return pending

    def cancel_sync(self) -> bool:
        """Take it off its queue, wait until it does not run, and return whether it was pending (cancel_work_sync)."""
        queue = self._queue
        if queue is None:
            return False
        queue._kernel.might_sleep()
        pending = self.cancel()
        queue._touch(self)
        self._wait_idle(queue._kernel)
        return pending

    def disable_sync(self) -> bool:
        """Do so, and refuse to be queued from now on, until `enable` (disable_work_sync)."""
        self.disabled += 1
        return self.cancel_sync()

    def enable(self) -> None:
        """Undo one disable_sync (enable_work)."""
        if not self.disabled:
            raise ModelError(f"work {self.name!r} is enabled and was not disabled")
        self.disabled -= 1

    def activity(self, task: Task | None = None) -> str:
        """Say whether it is queued or running, and who queued it; empty if neither. `task` may be the worker itself."""
        by = ""
        if self._by is not None:
            name, site = self._by
            by = f" (queued by task {name!r} at {name_site(site)})"
        if self.pending:
            return f"is queued{by}"
        if self.running is not None and self.running is not task:
            return f"runs in task {self.running.name!r}{by}"
        return ""

    def flush(self) -> None:
        """Wait until what is queued or running of it now is done (flush_work)."""
        queue = self._queue
        if queue is None:
            return
        queue._kernel.might_sleep()
        queue._touch(self)
        if self.pending and self in queue._works:
            queue._wait_for(self._seq)
        self._wait_idle(queue._kernel)

    def _wait_idle(self, kernel: Kernel) -> None:
        running = self.running
        if running is kernel.current:
            raise ModelError(f"work {self.name!r} waits for its own end")
        while running is not None and self.running is running:
            self._waiters.append(kernel.current)
            kernel.sched.block(self)

    def holders(self, task: Task) -> list[Task]:
        return [] if self.running is None else [self.running]

    def forget(self, task: Task) -> None:
        if task in self._waiters:
            self._waiters.remove(task)


class Workqueue(Waitable):
    """Run queued works in order, `max_active` at a time, in tasks ``kworker/NAME:n`` that live while there is work.

    What is queued on one CPU has workers there, bound to it, ``kworker/NAME/CPU:n``, `max_active` on each CPU.
    """

    __slots__ = ("_cpu", "_flushers", "_kernel", "_map", "_percpu", "_seq", "_workers", "_works", "max_active", "name")
    kind = "workqueue"

    def __init__(self, kernel: Kernel, name: str, max_active: int = 1, *, cpu: int | None = None) -> None:
        if max_active < 1:
            raise ModelError(f"workqueue {name!r}: max_active is {max_active} and counts from 1")
        self.name = name
        self.max_active: Final = max_active
        self._kernel: Final = kernel
        self._cpu: Final = cpu  # of the workers, if they are bound
        self._percpu: Final[dict[int, Workqueue]] = {}  # what is queued on one CPU (struct pool_workqueue)
        self._works: list[Work] = []
        self._workers: list[tuple[Task, Work | None] | None] = [None] * max_active
        self._flushers: list[tuple[int, Task]] = []
        self._seq = 0
        self._map: Final = LockMap(kernel, "workqueue", name)

    def queue(self, work: Work) -> bool:
        """Queue `work` and return True, or return False if it is pending already (queue_work)."""
        kernel = self._kernel
        if kernel.explored:
            kernel.yield_point("queue_work", work)
        if work.pending or work.disabled:
            return False
        work.pending = True
        if kernel.explored:
            frame = _getframe(1)
            work._by = (kernel.current.name, (frame.f_code, frame.f_lasti))
        self._insert(work)
        return True

    def queue_on(self, cpu: int, work: Work) -> bool:
        """Queue `work` on one CPU, whose worker runs it when it gets that CPU (queue_work_on).

        The kernel counts its CPUs; InputError for one that there is not.
        """
        queue = self._percpu.get(cpu)
        if queue is None:
            if not 0 <= cpu < self._kernel.cpus:
                raise InputError(
                    f"work {work.name!r} is queued on CPU {cpu}, and this kernel counts {self._kernel.cpus}"
                )
            queue = self._percpu[cpu] = Workqueue(self._kernel, f"{self.name}/{cpu}", self.max_active, cpu=cpu)
        return queue.queue(work)

    def queue_delayed(self, work: Work, delay_ns: int) -> bool:
        """Queue `work` in `delay_ns` and return True, or return False if it is pending already (queue_delayed_work)."""
        kernel = self._kernel
        if kernel.explored:
            kernel.yield_point("queue_delayed_work", work)
        if work.pending or work.disabled:
            return False
        work.pending = True
        if kernel.explored:
            frame = _getframe(1)
            work._by = (kernel.current.name, (frame.f_code, frame.f_lasti))
        work._queue = self
        work._timer = Timer(kernel, work.name, lambda: self._insert(work))
        kernel.touch(work._timer)
        kernel.sched.schedule(work._timer, kernel.current.time_ns + delay_ns, counts=False)
        return True

    def flush(self) -> None:
        """Wait until everything queued before is done (flush_workqueue)."""
        kernel = self._kernel
        kernel.might_sleep()
        if kernel.explored:
            kernel.yield_point("flush_workqueue", self)
        self._touch(None)
        self._wait_for(self._seq)
        for queue in self._percpu.values():
            queue._wait_for(queue._seq)

    def drain(self) -> None:
        """Wait until nothing is queued or running, however often works queue each other (drain_workqueue)."""
        while self.busy:
            self.flush()

    def activity(self) -> list[tuple[Work, str]]:
        """List the works that are queued or running, with what `Work.activity` says of each."""
        running = [worker[1] for worker in self._workers if worker is not None and worker[1] is not None]
        return [(work, work.activity()) for work in [*running, *(w for w in self._works if w not in running)]]

    @property
    def busy(self) -> bool:
        """Say whether something is queued or running."""
        return self._oldest() <= self._seq or any(queue.busy for queue in self._percpu.values())

    def _insert(self, work: Work) -> None:
        self._seq += 1
        work._seq = self._seq
        work._queue = self
        self._works.append(work)
        for slot, worker in enumerate(self._workers):
            if worker is None:
                self._workers[slot] = (self._spawn_worker(slot), None)
                return

    def _spawn_worker(self, slot: int) -> Task:
        return self._kernel.spawn(self._worker, slot, name=f"kworker/{self.name}:{slot}", cpu=self._cpu)

    def _worker(self, slot: int) -> None:
        # process_one_work() in a loop, until nothing is left that may run now
        kernel = self._kernel
        task = kernel.current
        try:
            while True:
                work = next((work for work in self._works if work.running is None), None)
                if work is None:
                    return
                self._works.remove(work)
                work.pending = False
                work.running = task
                self._workers[slot] = (task, work)
                seq = work._seq
                kind = type(work)
                self._map.acquire()
                try:
                    if kernel.explored:
                        kernel.yield_point("process_one_work", work)
                    work.fn()
                finally:
                    self._map.release()
                    self._workers[slot] = (task, None)
                    freed = type(work) is not kind  # a work may free what it is embedded in, itself included
                    if not freed:
                        work.running = None
                    if not kernel.closing:
                        if not freed:
                            waiters, work._waiters = work._waiters, []
                            for waiter in waiters:
                                kernel.sched.wake(waiter)
                        self._progress()
                assert freed or work._seq >= seq
                if kernel.cpus:
                    kernel.cond_resched()  # a work that queues itself does not keep the CPU (process_one_work)
        finally:
            self._workers[slot] = None
            if not kernel.closing:
                self._progress()
                if self._works and any(work.running is None for work in self._works):
                    # only after a work that raised: the rest still gets its worker
                    self._workers[slot] = (self._spawn_worker(slot), None)

    def _touch(self, work: Work | None) -> None:
        """Let lockdep see that whoever flushes waits for what the works take (touch_work_lockdep_map)."""
        self._map.acquire()
        self._map.release()

    def _oldest(self) -> int:
        """Return the number of the oldest work that is not done; the next number if there is none."""
        seqs = [work._seq for work in self._works]
        seqs += [worker[1]._seq for worker in self._workers if worker is not None and worker[1] is not None]
        return min(seqs, default=self._seq + 1)

    def _wait_for(self, seq: int) -> None:
        kernel = self._kernel
        while self._oldest() <= seq:
            self._flushers.append((seq, kernel.current))
            kernel.sched.block(self)

    def _progress(self) -> None:
        """Wake whoever waits for works that are done now."""
        if self._flushers:
            oldest = self._oldest()
            ready = [task for seq, task in self._flushers if seq < oldest]
            self._flushers = [(seq, task) for seq, task in self._flushers if seq >= oldest]
            for task in ready:
                self._kernel.sched.wake(task)

    def holders(self, task: Task) -> list[Task]:
        return [worker[0] for worker in self._workers if worker is not None]

    def forget(self, task: Task) -> None:
        self._flushers = [entry for entry in self._flushers if entry[1] is not task]
