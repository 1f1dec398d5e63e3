"""kernel/locking/mutex.c and spinlock.c, as of Linux 7.3.4: locks with one owner."""

from __future__ import annotations

from collections import deque
from sys import _getframe
from typing import TYPE_CHECKING, Final

from gpusvm.errors import LockdepError
from gpusvm.kernel.place import caller
from gpusvm.kernel.task import Task, Waitable

if TYPE_CHECKING:
    from gpusvm.kernel.core import Kernel


def not_owner(lock: Waitable, task: Task, doing: str, owner: Task | None) -> LockdepError:
    """Return the error of a task that gives back what it does not own."""
    whose = "nobody owns" if owner is None else f"task {owner.name!r} owns"
    return LockdepError(f"wrong owner: task {task.name!r} {doing} {lock.describe()} at {caller()}, which {whose}")


class Mutex(Waitable):
    """Let one task in; others sleep, first come first served, but a running task may take the lock before a woken one
    gets to run.

    A waiter that was overtaken that way is handed the lock at the next unlock (MUTEX_FLAG_HANDOFF). Use as ``with
    mutex:`` too.
    """

    __slots__ = ("_checked", "_cls", "_handoff", "_kernel", "_waiters", "name", "owner")
    kind = "mutex"

    def __init__(self, kernel: Kernel, name: str) -> None:
        self.name = name
        self.owner: Task | None = None
        self._kernel: Final = kernel
        self._checked: Final = kernel.checked
        self._cls: Final = kernel.lockdep.lock_class("mutex", name, sleeps=True)
        self._waiters: list[Task] = []  # a deque would be most of a mutex, and there are thousands
        self._handoff = False  # the first waiter was overtaken

    @property
    def locked(self) -> bool:
        return self.owner is not None

    def lock(self, subclass: int = 0) -> None:
        """Sleep until it is ours; `subclass` tells nested locks of one class apart (mutex_lock_nested)."""
        kernel = self._kernel
        if kernel.explored:
            kernel.yield_point("mutex_lock", self)
        task = kernel.current
        if self._checked:
            cls = kernel.lockdep.subclass(self._cls, subclass) if subclass else self._cls
            chain = task.chain.get(cls)
            if chain is None:
                chain = kernel.lockdep.acquire(task, self, cls)
            task.chain = chain
            task.held.append(self)
        if self.owner is None:
            self.owner = task
        else:
            self._wait(task)

    __enter__ = lock

    def _wait(self, task: Task) -> None:
        self._waiters.append(task)
        try:
            while True:
                self._kernel.sched.block(self, tell=False)
                if self.owner is task:  # handed over
                    return
                if self.owner is None:
                    del self._waiters[0]
                    self.owner = task
                    self._handoff = False
                    return
                self._handoff = True
        except BaseException:
            if self._checked:
                self._kernel.lockdep.release(task, self)
            if self.owner is task:
                self.owner = None
                self._wake_first()
            raise

    def trylock(self) -> bool:
        """Take it if it is free; never sleeps."""
        kernel = self._kernel
        if kernel.explored:
            kernel.yield_point("mutex_trylock", self)
        if self.owner is not None:
            return False
        task = kernel.current
        self.owner = task
        if self._checked:
            cls = self._cls.tried
            chain = task.chain.get(cls)
            if chain is None:
                chain = kernel.lockdep.acquire(task, self, cls)
            task.chain = chain
            task.held.append(self)
        return True

    def unlock(self) -> None:
        kernel = self._kernel
        if kernel.explored:
            kernel.yield_point("mutex_unlock", self)
        task = kernel.current
        if self.owner is not task:
            raise not_owner(self, task, "unlocks", self.owner)
        if self._checked:
            held = task.held
            if held[-1] is self:
                held.pop()
                task.chain = task.chain.parent  # type: ignore[assignment]  # what holds a lock has a parent
            else:
                kernel.lockdep.release(task, self)
        self.owner = None
        if self._waiters:
            self._wake_first()

    def __exit__(self, *_: object) -> None:
        self.unlock()

    def _wake_first(self) -> None:
        if not self._waiters:
            return
        first = self._waiters[0]
        if self._handoff:
            self._handoff = False
            del self._waiters[0]
            self.owner = first
        if first.waiting_on is self:  # not woken already
            self._kernel.sched.wake(first)

    def holders(self, task: Task) -> list[Task]:
        return [] if self.owner is None else [self.owner]

    def forget(self, task: Task) -> None:
        if task in self._waiters:
            if self._waiters[0] is task:
                self._handoff = False
            self._waiters.remove(task)


class SpinLock(Waitable):
    """Let one task in and make it atomic: it must not sleep until it unlocks. Waiters spin, first come first served
    (qspinlock).

    In timed mode a holder is never switched away from, so others find the lock free; they start when it was unlocked.
    """

    __slots__ = ("_checked", "_cls", "_free_ns", "_kernel", "_waiters", "name", "owner")
    kind = "spinlock"

    def __init__(self, kernel: Kernel, name: str) -> None:
        self.name = name
        self.owner: Task | None = None
        self._kernel: Final = kernel
        self._checked: Final = kernel.checked
        self._cls: Final = kernel.lockdep.lock_class("spinlock", name, atomic=True)
        self._waiters: deque[Task] = deque()
        self._free_ns = 0

    @property
    def locked(self) -> bool:
        return self.owner is not None

    def lock(self, subclass: int = 0) -> None:
        """Spin until it is ours; `subclass` tells nested locks of one class apart (spin_lock_nested)."""
        kernel = self._kernel
        if kernel.explored:
            kernel.yield_point("spin_lock", self)
        task = kernel.current
        if self._checked:
            cls = kernel.lockdep.subclass(self._cls, subclass) if subclass else self._cls
            chain = task.chain.get(cls)
            if chain is None:
                chain = kernel.lockdep.acquire(task, self, cls)
            task.chain = chain
            task.held.append(self)
            if not task.preempt_count:
                frame = _getframe(1)
                task.atomic_site = (frame.f_code, frame.f_lasti)
        task.preempt_count += 1
        if self.owner is None:
            self.owner = task
            spun_ns = self._free_ns - task.time_ns
            if spun_ns > 0:
                task.time_ns += spun_ns
        else:
            self._wait(task)

    __enter__ = lock

    def _wait(self, task: Task) -> None:
        self._waiters.append(task)
        try:
            self._kernel.sched.block(self, tell=False)  # until handed over
        except BaseException:
            task.preempt_count -= 1
            if self._checked:
                self._kernel.lockdep.release(task, self)
            if self.owner is task:
                self._pass_on()
            raise

    def unlock(self) -> None:
        kernel = self._kernel
        if kernel.explored:
            kernel.yield_point("spin_unlock", self)
        task = kernel.current
        if self.owner is not task:
            raise not_owner(self, task, "unlocks", self.owner)
        if self._checked:
            held = task.held
            if held[-1] is self:
                held.pop()
                task.chain = task.chain.parent  # type: ignore[assignment]  # what holds a lock has a parent
            else:
                kernel.lockdep.release(task, self)
        task.preempt_count -= 1
        self._free_ns = task.time_ns
        self.owner = None
        if self._waiters:
            self._pass_on()
        if task.time_ns > kernel.next_due and not task.preempt_count:
            kernel.resched()

    def __exit__(self, *_: object) -> None:
        self.unlock()

    def _pass_on(self) -> None:
        self.owner = None
        if self._waiters:
            self.owner = self._waiters.popleft()
            self._kernel.sched.wake(self.owner)

    def holders(self, task: Task) -> list[Task]:
        return [] if self.owner is None else [self.owner]

    def forget(self, task: Task) -> None:
        if task in self._waiters:
            self._waiters.remove(task)
