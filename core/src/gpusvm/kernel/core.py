"""Be the kernel that drivers run in: one object that owns the tasks, the clock, the primitives and what is counted."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from sys import _getframe
from typing import Any, Literal, Self

from greenlet import GreenletExit, getcurrent

from gpusvm.errors import DriverError, InputError, LateWorkError, LockdepError, ModelError, nearest
from gpusvm.kernel.authors import Authors, PlacedLedger
from gpusvm.kernel.choices import Choices, FirstChoice
from gpusvm.kernel.costs import Costs
from gpusvm.kernel.cpus import CpuScheduler
from gpusvm.kernel.explored import ExploredScheduler
from gpusvm.kernel.footprint import Footprint
from gpusvm.kernel.inject import Injector
from gpusvm.kernel.lockdep import Lockdep, LockMap
from gpusvm.kernel.locks import Mutex, SpinLock
from gpusvm.kernel.place import caller
from gpusvm.kernel.poison import Graveyard
from gpusvm.kernel.refs import Gauges, Ledger
from gpusvm.kernel.rwsem import RwSemaphore
from gpusvm.kernel.scheduler import Scheduler
from gpusvm.kernel.srcu import Srcu
from gpusvm.kernel.stats import Stats
from gpusvm.kernel.task import Task
from gpusvm.kernel.timed import NEVER, TimedScheduler
from gpusvm.kernel.timers import Timer
from gpusvm.kernel.trace import Tracer
from gpusvm.kernel.wait import Completion, WaitQueue
from gpusvm.kernel.work import Workqueue

Mode = Literal["timed", "explored"]


class _Free(dict[str, int]):
    """Be the table of a kernel without costs."""

    def __missing__(self, event: str) -> int:
        return 0


class _Charged(dict[str, int]):
    def __missing__(self, event: str) -> int:
        return 0


class _Atomic:
    __slots__ = ("_kernel",)

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel

    # preempt_disable() and preempt_enable() without the calls: page-table sections pass here all the time.

    def __enter__(self) -> None:
        kernel = self._kernel
        task = kernel.current
        if kernel.checked:
            section = kernel.lockdep.section
            chain = task.chain.get(section)
            task.chain = kernel.lockdep.enter(task, section) if chain is None else chain
            task.held.append(section)
            if not task.preempt_count:
                frame = _getframe(1)
                task.atomic_site = (frame.f_code, frame.f_lasti)
        task.preempt_count += 1

    def __exit__(self, *_: object) -> None:
        kernel = self._kernel
        task = kernel.current
        if kernel.checked:
            held = task.held
            if held[-1] is kernel.lockdep.section:
                held.pop()
                task.chain = task.chain.parent  # type: ignore[assignment]  # a section has a parent
            else:
                kernel.lockdep.release(task, kernel.lockdep.section)
        task.preempt_count -= 1
        if task.time_ns > kernel.next_due and not task.preempt_count:
            kernel.resched()


class Kernel:
    """Run tasks on one virtual machine, deterministically.

    The code that creates a Kernel is its task "main": it calls kernel, mm and driver functions directly, and when it
    waits, others run. In mode "timed" tasks run in the order of their virtual time; in "explored" every operation of a
    primitive is a point where `choices` decide who goes on, and a step costs 1 us. A `checked` kernel has lockdep and a
    ledger with named holders. `costs` gives the ns of each charged event; without it nothing costs anything.

    In explored mode every task has a CPU of its own, unless `cpus` says how many there are: then one task at a time
    runs on each, and a `preemptive` kernel lets another have the CPU at any operation, one that is not only where a
    task waits, ends, returns to user space or asks (`cond_resched`). See `gpusvm.kernel.cpus`.

    `authors` are the files and directories of drivers: with them, in a checked kernel, an error that is about the code
    of a driver ends with the op, the line and the rule (`gpusvm.kernel.authors`).

    ``observer`` is None or an object with methods that are looked up by name when something happens: in explored mode
    ``step(task, operation, what)`` at each yield point, `what` being the lock, queue or (object, field) that is touched
    next, and ``leaves(task)`` when the running task waits or has ended. ``footprint`` is None or, in explored mode, is
    told what each step touches. ``charged`` sums the ns that were charged to
    tasks or accounted for engines, by event. One GPU fault that has begun again more than ``restarts_max`` times, where
    its driver has no limit of its own, is taken for a loop without end. Close a kernel that may have waiting tasks, or
    use it as a context manager.
    """

    def __init__(
        self,
        *,
        mode: Mode = "timed",
        choices: Choices | None = None,
        costs: Costs | None = None,
        checked: bool = True,
        cpus: int | None = None,
        preemptive: bool = True,
        authors: Sequence[str] | None = None,
    ) -> None:
        if mode not in {"timed", "explored"}:
            raise InputError(f"kernel mode {mode!r}: {nearest(mode, ['timed', 'explored'])}")
        if cpus is not None and (mode == "timed" or cpus < 1):
            raise InputError(f"a kernel of {cpus} CPUs in {mode} mode: CPUs count in explored mode, from 1")
        if authors is not None and not checked:
            raise InputError("a kernel that names the code of drivers is a checked one")
        if cpus is None and not preemptive:
            raise InputError("a kernel without preemption needs a number of CPUs that its tasks keep")
        self.mode: Mode = mode
        self.explored = mode == "explored"
        self.cpus = cpus or 0  # 0: every task has its own
        self.preemptive = preemptive
        self.checked = checked
        self.costs = costs
        self.choices: Choices = FirstChoice() if choices is None else choices
        self.observer: Any = None
        self.on_retry: Callable[[bool, bool, tuple[int, int] | None], None] | None = None
        self.footprint: Footprint | None = None
        self.stats = Stats()
        self.gauges = Gauges()
        self.authors = None if authors is None else Authors(self, authors)
        self.ledger = Ledger(checked=checked) if self.authors is None else PlacedLedger(self.authors)
        self.lockdep = Lockdep(self)
        self.tracer = Tracer(self)
        self.injector = Injector(self.choices)
        # Whether the operation at a site is to fail here: six times a fault, so without a call more in timed mode.
        self.inject: Callable[[str], bool] = self._inject if self.explored else self.injector.passing
        self.charged: dict[str, int] = _Charged()
        self.graveyard = Graveyard(self)
        self.workqueues: list[Workqueue] = []
        self.closing = False
        self.restarts_max = 2_000
        self.next_due = NEVER  # when another task or timer is due; timed mode only
        self._table: Mapping[str, int] = _Free() if costs is None else costs.table
        self._atomic = _Atomic(self)
        self.sched: Scheduler
        if self.explored:
            explored = CpuScheduler(self, cpus, preemptive=preemptive) if cpus else ExploredScheduler(self)
            self.sched = explored
            self.yield_point: Callable[[str, object], None] = explored.yield_point
            self.resched: Callable[[], None] = _nothing
        else:
            timed = TimedScheduler(self)
            self.sched = timed
            self.yield_point = _no_yield
            self.resched = timed.resched
        self.current: Task = self.sched.main
        begin = getattr(self.choices, "begin", None)  # who explores a program learns here which kernel it has built
        if begin is not None:
            begin(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def blame(self, duty: str) -> str:
        """Return the end of a message about a driver's code: its op, its line, and the rule (`gpusvm.kernel.duties`).

        Empty where no driver's code is on the stack, or this kernel names none.
        """
        authors = self.authors
        return "" if authors is None else authors.says(duty, authors.find())

    # -- time

    @property
    def now_ns(self) -> int:
        """Return the virtual time of the running task."""
        return self.current.time_ns

    def charge(self, event: str, n: int = 1) -> None:
        """Advance the running task by `n` times the cost of `event`; others go first that are due earlier, unless it is
        atomic.
        """
        if self.explored:  # where a step costs the same whatever is charged
            return
        try:
            ns = self._table[event] * n
        except KeyError:
            raise InputError(f"costs: no cost for event {event!r}; {nearest(event, self._table)}") from None
        self.charged[event] += ns
        task = self.current
        task.time_ns = now = task.time_ns + ns
        if now > self.next_due and not task.preempt_count:
            self.resched()

    def charge_ns(self, event: str, ns: int) -> None:
        """Advance the running task by a computed time, accounted under `event`."""
        if self.explored:
            return
        self.charged[event] += ns
        task = self.current
        task.time_ns = now = task.time_ns + ns
        if now > self.next_due and not task.preempt_count:
            self.resched()

    def account(self, event: str, ns: int) -> None:
        """Account time that no task spends, an engine's or the link's, under `event`; whoever waits for it sleeps."""
        self.charged[event] += ns

    def sleep_ns(self, ns: int) -> None:
        """Sleep; everything due before the end of it, timers too, happens first."""
        self.might_sleep()
        self.sched.sleep_until(self.current.time_ns + ns)

    def cond_resched(self) -> None:
        """Let others go first that are due by now; a yield point."""
        if not self.current.preempt_count:
            self.sched.cond_resched()

    def cpu_relax(self) -> None:
        """Let others go first, in a loop that waits for them without sleeping; raise DeadlockError if nobody is left
        and it is called again.

        It keeps its CPU meanwhile. In timed mode the running task spins until the next task or timer is due. In
        explored mode choice 0 is the next task in turn. It may be called in atomic context, as the kernel's may.
        """
        self.sched.cpu_relax()

    def give_way(self) -> None:
        """Let others go first if any can, in a loop that tries again at once and does not ask to be rescheduled.

        It keeps its CPU meanwhile. In timed mode it is ``cond_resched``.
        """
        self.sched.give_way()

    def retried(
        self, *, by_clock: bool = False, by_chance: bool = False, deadlines: tuple[int, int] | None = None
    ) -> None:
        """Note that the running task begins again what it has just tried in vain.

        `by_clock`: and will until its time has come, whatever others do. `by_chance`: others got in its way, as they
        may from time to time. `deadlines`: when it was to give up as it began, and when it will now. Whoever looks for
        tasks that get nowhere hears of it (``on_retry``), in explored mode.
        """
        if self.on_retry is not None:
            self.on_retry(by_clock, by_chance, deadlines)

    def exit_to_user_mode(self) -> None:
        """Return to user space for a moment, where others may get the CPU whatever the kernel's preemption model.

        Nothing where CPUs do not count: there is an operation of the task's own before and after.
        """
        if self.cpus:
            self.sched.cond_resched()

    @property
    def smp_processor_id(self) -> int:
        """Return the number of the CPU that the running task is on; 0 for a softirq and where CPUs do not count."""
        return self.current.cpu or 0

    def step(self, what: object = None, *, write: bool = True) -> None:
        """Begin an atomic step, such as a section under a page-table lock: a yield point in explored mode, nothing
        otherwise. `what` names what the section touches, `write` whether it may change it.
        """
        if self.explored:
            self.yield_point("step" if write else "step_read", what)

    def touch(self, what: object, *, write: bool = True) -> None:
        """Note that the running step touches `what`, which no lock operation and no field of a model object names.

        It costs nothing unless footprints are recorded. `what` is an object with a stable identity, or a tuple of such.
        """
        if self.footprint is not None:
            self.footprint.touch(what, write)

    # -- tasks

    def spawn(
        self, fn: Callable[..., Any], *args: Any, name: str, daemon: bool = False, cpu: int | None = None
    ) -> Task:
        """Start a task at the running task's time.

        What it raises comes out of ``join``, or, if nobody joins, in main where that is next switched to. A daemon may
        wait for ever. With `cpu` it runs on that CPU only; otherwise, where CPUs count, it begins on the next in turn.
        """
        sched = self.sched
        task = sched.new_task(fn, name=name, daemon=daemon, args=args, at=self.current.time_ns)
        if cpu is not None:
            sched.bind(task, cpu)
        sched.add(task)
        return task

    @property
    def tasks(self) -> list[Task]:
        """List the tasks that are not done, in spawn order."""
        return list(self.sched.tasks.values())

    def settle(self) -> None:
        """Let others run until none can go on by itself; sleeping tasks finish, timers of the future and sleeping
        daemons do not.
        """
        self.might_sleep()
        self.sched.settle()
        self.sched.raise_failure()

    def run_until(self, ns: int) -> None:
        """Let everything happen that is due up to and including the time `ns`, timers too."""
        self.might_sleep()
        self.sched.run_until(ns)
        self.sched.raise_failure()

    def close(self) -> None:
        """End every task where it waits, so that the kernel can be freed; call it from main, and nothing else
        afterwards.
        """
        if self.closing:
            return
        if getcurrent() is not self.sched.root:
            raise ModelError("a kernel is closed by its main task")
        self.closing = True
        for task in self.tasks:
            if task.greenlet is not None and task is not self.sched.main:
                self.current = task
                task.greenlet.throw(GreenletExit)
        self.current = self.sched.main

    # -- context

    def might_sleep(self) -> None:
        """Raise LockdepError if the running task must not sleep."""
        task = self.current
        if task.preempt_count or task._in_notifier:
            if self.checked:
                self.lockdep.check_sleep(task, "sleeping")
            elif task.preempt_count:
                raise LockdepError(f"sleeping while atomic: task {task.name!r} is sleeping at {caller()}")

    def might_alloc(self) -> None:
        """Raise LockdepError if the running task must not allocate memory with reclaim: in atomic context, in an mmu
        notifier.
        """
        task = self.current
        if task.preempt_count or task._in_notifier:
            self.might_sleep()
            if self.checked:
                self.lockdep.check_alloc(task)

    def atomic(self) -> _Atomic:
        """Return a context in which the running task must not sleep and is not preempted in timed mode."""
        return self._atomic

    def preempt_disable(self) -> None:
        task = self.current
        if self.checked:
            section = self.lockdep.section
            task.chain = self.lockdep.enter(task, section)
            task.held.append(section)
            if not task.preempt_count:
                frame = _getframe(1)
                task.atomic_site = (frame.f_code, frame.f_lasti)
        task.preempt_count += 1

    def preempt_enable(self) -> None:
        task = self.current
        if not task.preempt_count:
            raise LockdepError(f"task {task.name!r} enables preemption at {caller()} and has not disabled it")
        if self.checked:
            self.lockdep.release(task, self.lockdep.section)
        task.preempt_count -= 1
        if task.time_ns > self.next_due and not task.preempt_count:
            self.resched()

    # -- primitives; `name` is the lock class: instances of one name share what lockdep learns

    def mutex(self, name: str) -> Mutex:
        return Mutex(self, name)

    def rwsem(self, name: str) -> RwSemaphore:
        return RwSemaphore(self, name)

    def spinlock(self, name: str) -> SpinLock:
        return SpinLock(self, name)

    def lock_map(self, kind: str, name: str, *, sleeps: bool = False) -> LockMap:
        return LockMap(self, kind, name, sleeps=sleeps)

    def completion(self, name: str) -> Completion:
        return Completion(self, name)

    def waitqueue(self, name: str) -> WaitQueue:
        return WaitQueue(self, name)

    def workqueue(self, name: str, max_active: int = 1) -> Workqueue:
        workqueue = Workqueue(self, name, max_active)
        self.workqueues.append(workqueue)
        return workqueue

    def timer(self, name: str, fn: Callable[[], object]) -> Timer:
        return Timer(self, name, fn)

    def srcu(self, name: str) -> Srcu:
        return Srcu(self, name)

    # -- memory

    def free(self, obj: object, *parts: object) -> None:
        """Free a modelled object with its embedded `parts` (kfree): locks, works, completions, other structures.

        In checked explored kernels whoever uses one of them afterwards gets UseAfterFreeError; a work or timer among
        the parts that is queued or runs is a LateWorkError, a lock that is held a LockdepError. Otherwise nothing
        happens. Call it where the kernel frees, last: the object is not to be touched any more.
        """
        if self.explored and self.checked:
            self.graveyard.bury(obj, parts)

    def assert_idle(self) -> None:
        """Raise LateWorkError that lists every work that is queued or runs and every timer that is armed: who owned
        them has ended.
        """
        late = [f"  work {work.name!r} {state}" for queue in self.workqueues for work, state in queue.activity()]
        timers = [what for _, counter, what in self.sched.heap if isinstance(what, Timer) and what.entry == counter]
        timers.sort(key=lambda timer: timer.entry)
        late += [f"  timer {timer.name!r} is armed" for timer in timers]
        if late:
            raise LateWorkError("\n".join(["late work: all owners have ended", *late]))

    # -- fields that tasks share without a lock

    def read_once(self, obj: object, field: str) -> Any:
        """Read a shared field (READ_ONCE); a yield point."""
        if self.explored:
            self.yield_point("read_once", (obj, field))
        return getattr(obj, field)

    def write_once(self, obj: object, field: str, value: Any) -> None:
        """Write a shared field (WRITE_ONCE); a yield point."""
        if self.explored:
            self.yield_point("write_once", (obj, field))
        setattr(obj, field, value)

    # -- choices and failures

    def choose(self, n: int, label: str) -> int:
        """Return a choice of data out of range(n), from the Choices that order the tasks; 0 if n is 1."""
        return self.choices.pick(n, label) if n > 1 else 0

    def _inject(self, site: str) -> bool:
        fails = self.injector.passing(site)
        if self.footprint is not None:
            # Who fails takes it from the others: so many failures there are in all.
            self.footprint.touch("inject", fails or bool(self.injector.armed))
        return fails

    def arm(self, site: str, nth: int = 1, times: int = 1) -> None:
        """Let `site` fail on its nth passing from now on, and on the next times - 1."""
        self.injector.arm(site, nth, times)

    def explore_failures(self, sites: Collection[str] | None = None, *, failures_max: int = 1) -> None:
        """Make it a choice whether the sites (None: all) fail when passed, `failures_max` times in all."""
        self.injector.explore(sites, failures_max)

    def set_choices(self, choices: Choices) -> None:
        """Let other choices decide from now on, about tasks, data and failures."""
        self.choices = choices
        self.injector.set_choices(choices)

    # -- what a driver asserts

    def warn(self, assertion: str, detail: str) -> None:
        """Note that an assertion of a driver does not hold (WARN_ON); the caller goes on, as it does in the kernel.

        `assertion` names it, as a rule by the kernel function that it stands in. In a checked explored kernel main gets
        a DriverError at once, unless a failure was injected before: a driver may well warn of that. Everywhere a trace
        event "warn" says it.
        """
        if self.tracer.on:
            self.tracer.emit("warn", assertion, detail)
        if self.explored and self.checked and not self.closing and not self.injector.failed:
            error = DriverError(assertion, f"{detail}; task {self.current.name!r} at {caller()}")
            self.sched.fail(error)  # type: ignore[attr-defined]  # an explored kernel's scheduler can

    @property
    def inject_sites(self) -> dict[str, int]:
        """Return how often each site was passed, in the order in which they were first reached."""
        return self.injector.sites


def _nothing() -> None:
    """Be ``resched`` where time orders nothing."""


def _no_yield(label: str, what: object) -> None:
    """Be ``yield_point`` where operations are none."""
