"""A fault buffer or queue in memory: the GPU writes entries, the driver reads them, and it can be full."""

from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from gpusvm.kernel import Kernel

__all__ = ["FaultBuffer"]

T = TypeVar("T")


class FaultBuffer(Generic[T]):
    """Hold at most `capacity` entries in order; `on_put` is the interrupt, called when an entry is written.

    `put` returns False when it is full, and the unit that faulted has to hold its fault back.
    """

    def __init__(self, kernel: Kernel, capacity: int, *, on_put: Callable[[], None] | None = None) -> None:
        self.kernel = kernel
        self.capacity = capacity
        self.on_put = on_put
        self.refused = 0
        self._entries: deque[T] = deque()

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[T]:
        """Go through what is there, oldest first, and leave it there."""
        return iter(self._entries)

    @property
    def room(self) -> int:
        """Return how many entries still fit."""
        return self.capacity - len(self._entries)

    def put(self, entry: T) -> bool:
        """Write one entry and raise the interrupt; False (and nothing written) if the buffer is full."""
        if len(self._entries) >= self.capacity:
            self.refused += 1
            return False
        self._entries.append(entry)
        if self.on_put is not None:
            self.on_put()
        return True

    def take(self) -> T | None:
        """Read and remove the oldest entry; None if there is none."""
        return self._entries.popleft() if self._entries else None

    def drain(self, limit: int | None = None) -> list[T]:
        """Read and remove up to `limit` entries, oldest first; all that are there if None."""
        if limit is None or limit >= len(self._entries):
            entries = list(self._entries)
            self._entries.clear()
            return entries
        return [self._entries.popleft() for _ in range(limit)]
