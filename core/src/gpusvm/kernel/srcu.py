"""kernel/rcu/srcutree.c, as of Linux 7.3.4: readers that never wait, and a writer that waits for those who were there
before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpusvm.errors import ModelError
from gpusvm.kernel.lockdep import LockMap
from gpusvm.kernel.task import Task, Waitable

if TYPE_CHECKING:
    from gpusvm.kernel.core import Kernel


class Srcu(Waitable):
    """Let `synchronize` wait until every read section that began before it has ended; a section may sleep, and may
    nest.
    """

    __slots__ = ("_index", "_kernel", "_map", "_readers", "_synchronizing", "_waiters", "name")
    kind = "srcu"

    def __init__(self, kernel: Kernel, name: str) -> None:
        self.name = name
        self._kernel = kernel
        self._index = 0
        self._readers: tuple[list[Task], list[Task]] = ([], [])
        self._synchronizing = False
        self._waiters: list[Task] = []
        self._map = LockMap(kernel, "srcu", name)

    def read_lock(self) -> int:
        """Begin a read section and return the index that ends it (srcu_read_lock)."""
        kernel = self._kernel
        if kernel.explored:
            kernel.yield_point("srcu_read_lock", self)
        index = self._index
        self._readers[index].append(kernel.current)
        self._map.acquire(trylock=True)
        return index

    def read_unlock(self, index: int) -> None:
        """End a read section (srcu_read_unlock)."""
        kernel = self._kernel
        if kernel.explored:
            kernel.yield_point("srcu_read_unlock", self)
        task = kernel.current
        readers = self._readers[index]
        if task not in readers:
            raise ModelError(
                f"srcu {self.name!r}: task {task.name!r} ends a read section with index {index} that it did not begin"
            )
        self._map.release()
        readers.remove(task)
        if self._waiters and not readers:
            self._wake()

    def synchronize(self) -> None:
        """Wait until every read section that began before has ended (synchronize_srcu)."""
        kernel = self._kernel
        kernel.might_sleep()
        if kernel.explored:
            kernel.yield_point("synchronize_srcu", self)
        self._map.acquire()  # srcu_lock_sync(): whoever is inside a section would wait for itself
        self._map.release()
        while self._synchronizing:
            self._wait()
        self._synchronizing = True
        try:
            old = self._index
            self._index = old ^ 1
            while self._readers[old]:
                self._wait()
        finally:
            self._synchronizing = False
            self._wake()

    def _wait(self) -> None:
        self._waiters.append(self._kernel.current)
        self._kernel.sched.block(self)

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            self._kernel.sched.wake(waiter)

    def holders(self, task: Task) -> list[Task]:
        return self._readers[self._index ^ 1] if self._synchronizing else []

    def forget(self, task: Task) -> None:
        if task in self._waiters:
            self._waiters.remove(task)
