"""kernel/locking/rwsem.c, as of Linux 7.3.4: many readers or one writer, served in the order in which they came."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from gpusvm.kernel.locks import not_owner
from gpusvm.kernel.task import Task, Waitable

if TYPE_CHECKING:
    from gpusvm.kernel.core import Kernel


class _Killed(Exception):  # noqa: N818  # no error: it ends a wait
    """A fatal signal came before the lock."""


class RwSemaphore(Waitable):
    """Let many readers or one writer in; a waiting writer keeps new readers out.

    When readers are next, all waiting readers get in together, and writers keep their order (rwsem_mark_wake). Use as
    ``with sem.read():`` and ``with sem.write():`` too. A task must not read-lock twice: a writer between would deadlock
    it.
    """

    __slots__ = ("_checked", "_cls", "_kernel", "_queue", "_read", "_readers", "_write", "_writer", "name", "writes")
    kind = "rwsem"

    def __init__(self, kernel: Kernel, name: str) -> None:
        self.name = name
        self._kernel: Final = kernel
        self._checked: Final = kernel.checked
        self._cls: Final = kernel.lockdep.lock_class("rwsem", name, sleeps=True)
        self._writer: Task | None = None
        self._readers: list[Task] = []
        self._queue: deque[tuple[Task, bool]] = deque()  # who waits, and whether to write
        # How often it was locked for write: what was noted under one hold can be told from a later one's.
        self.writes = 0
        self._read: Final = _ReadSection(self)
        self._write: Final = _WriteSection(self)

    @property
    def is_locked(self) -> bool:
        return self._writer is not None or bool(self._readers)

    @property
    def is_write_locked(self) -> bool:
        return self._writer is not None

    @property
    def is_mine_to_write(self) -> bool:
        """Tell whether the running task holds it for writing (lockdep_is_held_type)."""
        return self._writer is not None and self._writer is self._kernel.current

    @property
    def is_contended(self) -> bool:
        """Say whether someone waits (rwsem_is_contended)."""
        return bool(self._queue)

    def read(self) -> _ReadSection:
        return self._read

    def write(self) -> _WriteSection:
        return self._write

    def down_read(self, subclass: int = 0) -> None:
        """Sleep until we may read; `subclass` as in down_read_nested."""
        kernel = self._kernel
        if kernel.explored:
            kernel.yield_point("down_read", self)
        task = kernel.current
        if self._checked:
            cls = kernel.lockdep.subclass(self._cls, subclass) if subclass else self._cls
            chain = task.chain.get(cls)
            if chain is None:
                chain = kernel.lockdep.acquire(task, self, cls)
            task.chain = chain
            task.held.append(self)
        if self._writer is None and not self._queue:
            self._readers.append(task)
        else:
            self._wait(task, writing=False)

    def down_read_killable(self) -> bool:
        """Sleep until we may read or are killed; return False then, without the lock (down_read_killable, -EINTR)."""
        task = self._kernel.current
        task.killable = True
        try:
            self.down_read()
        except _Killed:
            return False
        finally:
            task.killable = False
        return True

    def down_write(self, subclass: int = 0) -> None:
        """Sleep until we may write; `subclass` as in down_write_nested."""
        kernel = self._kernel
        if kernel.explored:
            kernel.yield_point("down_write", self)
        task = kernel.current
        if self._checked:
            cls = kernel.lockdep.subclass(self._cls, subclass) if subclass else self._cls
            chain = task.chain.get(cls)
            if chain is None:
                chain = kernel.lockdep.acquire(task, self, cls)
            task.chain = chain
            task.held.append(self)
        if self._writer is None and not self._readers and not self._queue:
            self._writer = task
        else:
            self._wait(task, writing=True)
        self.writes += 1

    def _wait(self, task: Task, *, writing: bool) -> None:
        try:
            if task.killable and task.fatal_signal_pending:
                raise _Killed
            self._queue.append((task, writing))
            self._kernel.sched.block(self, tell=False)  # until let in
            if task.killable and self._writer is not task and task not in self._readers:
                raise _Killed
        except BaseException:
            if self._checked:
                self._kernel.lockdep.release(task, self)
            if self._writer is task:
                self._writer = None
            elif task in self._readers:
                self._readers.remove(task)
            self._let_in()
            raise

    def down_read_trylock(self) -> bool:
        """Read-lock it if no writer holds it and nobody waits (RWSEM_READ_FAILED_MASK in __down_read_trylock)."""
        kernel = self._kernel
        if kernel.explored:
            kernel.yield_point("down_read_trylock", self)
        if self._writer is not None or self._queue:
            return False
        self._readers.append(kernel.current)
        self._tried(kernel.current)
        return True

    def down_write_trylock(self) -> bool:
        kernel = self._kernel
        if kernel.explored:
            kernel.yield_point("down_write_trylock", self)
        if self._writer is not None or self._readers or self._queue:
            return False
        self._writer = kernel.current
        self.writes += 1
        self._tried(kernel.current)
        return True

    def _tried(self, task: Task) -> None:
        if self._checked:
            cls = self._cls.tried
            chain = task.chain.get(cls)
            if chain is None:
                chain = self._kernel.lockdep.acquire(task, self, cls)
            task.chain = chain
            task.held.append(self)

    def up_read(self) -> None:
        kernel = self._kernel
        if kernel.explored:
            kernel.yield_point("up_read", self)
        task = kernel.current
        readers = self._readers
        if task not in readers:
            raise not_owner(self, task, "read-unlocks", self._writer or (readers[0] if readers else None))
        if self._checked:
            held = task.held
            if held[-1] is self:
                held.pop()
                task.chain = task.chain.parent  # type: ignore[assignment]  # what holds a lock has a parent
            else:
                kernel.lockdep.release(task, self)
        readers.remove(task)
        if self._queue and not readers:
            self._let_in()

    def up_write(self) -> None:
        kernel = self._kernel
        if kernel.explored:
            kernel.yield_point("up_write", self)
        task = kernel.current
        if self._writer is not task:
            raise not_owner(self, task, "write-unlocks", self._writer or (self._readers[0] if self._readers else None))
        if self._checked:
            held = task.held
            if held[-1] is self:
                held.pop()
                task.chain = task.chain.parent  # type: ignore[assignment]  # what holds a lock has a parent
            else:
                kernel.lockdep.release(task, self)
        self._writer = None
        if self._queue:
            self._let_in()

    def downgrade_write(self) -> None:
        """Turn our write lock into a read lock without letting a writer in between."""
        kernel = self._kernel
        if kernel.explored:
            kernel.yield_point("downgrade_write", self)
        task = kernel.current
        if self._writer is not task:
            raise not_owner(self, task, "downgrades", self._writer)
        self._writer = None
        self._readers.append(task)
        self._let_in()

    def _let_in(self) -> None:
        """Hand the lock to who is next in the queue, if that is possible now."""
        queue = self._queue
        if not queue or self._writer is not None:
            return
        wake = self._kernel.sched.wake
        task, writing = queue[0]
        if writing:
            if not self._readers:
                queue.popleft()
                self._writer = task
                wake(task)
            return
        readers = [waiter for waiter, writes in queue if not writes]
        self._queue = deque(entry for entry in queue if entry[1])
        for reader in readers:
            self._readers.append(reader)
            wake(reader)

    def holders(self, task: Task) -> list[Task]:
        """Return who holds it, and who stands before `task` in the queue."""
        return ([] if self._writer is None else [self._writer]) + self._readers + self.ahead_of(task)

    def ahead_of(self, task: Task) -> list[Task]:
        ahead = []
        for waiter, _ in self._queue:
            if waiter is task:
                break
            ahead.append(waiter)
        return ahead

    def how_held(self, task: Task) -> str:
        return " to write" if self._writer is task else " to read"

    def wanted_by(self, task: Task) -> str:
        writing = next((writing for waiter, writing in self._queue if waiter is task), False)
        return f"{self.describe()} to {'write' if writing else 'read'}"

    def forget(self, task: Task) -> None:
        self._queue = deque(entry for entry in self._queue if entry[0] is not task)


class _ReadSection:
    __slots__ = ("_sem",)

    def __init__(self, sem: RwSemaphore) -> None:
        self._sem = sem

    def __enter__(self) -> None:
        self._sem.down_read()

    def __exit__(self, *_: object) -> None:
        self._sem.up_read()


class _WriteSection:
    __slots__ = ("_sem",)

    def __init__(self, sem: RwSemaphore) -> None:
        self._sem = sem

    def __enter__(self) -> None:
        self._sem.down_write()

    def __exit__(self, *_: object) -> None:
        # A section that downgraded ends as a reader, as mmap_lock does after vms_complete_munmap_vmas().
        if self._sem.is_write_locked:
            self._sem.up_write()
        else:
            self._sem.up_read()
