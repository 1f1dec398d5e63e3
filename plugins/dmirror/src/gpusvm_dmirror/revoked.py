"""What a reviewer would add to lib/test_hmm.c: hear what is dropped while pages are taken or moved for the device."""

from contextlib import contextmanager
from typing import TYPE_CHECKING

from gpusvm.driver import NotifierWindow

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gpusvm.mm.api import IntervalNotifier, MmuNotifierRange

    from gpusvm_dmirror.mirror import Dmirror

__all__ = ["migration_window", "open_revoked"]


def open_revoked(mirror: "Dmirror", start: int, end: int) -> NotifierWindow:
    """Open a window over [start, end) that is told of what every other task invalidates there.

    It is opened before mmap_lock is taken, which mmu_interval_notifier_insert may lock.
    """
    ops = _Revoked(mirror)
    return NotifierWindow.open(mirror.memory, mirror.mm, start=start, end=end, ops=ops, lock=mirror.mutex)


@contextmanager
def migration_window(mirror: "Dmirror", start: int, end: int) -> "Iterator[NotifierWindow | None]":
    """Keep such a window open for a migration; as written there is none (quirk migrate_seq)."""
    if mirror.device.quirks.migrate_seq == "as_written" or start >= end:
        yield None
        return
    window = open_revoked(mirror, start, end)
    try:
        yield window
    finally:
        window.close()


class _Revoked:
    """Hear what others invalidate. What the task itself invalidates, to take or to move a page, is no change."""

    __slots__ = ("_mirror", "_task")

    def __init__(self, mirror: "Dmirror") -> None:
        self._mirror = mirror
        self._task = mirror.memory.kernel.current

    def invalidate(self, sub: "IntervalNotifier", range_: "MmuNotifierRange", cur_seq: int) -> bool:
        mirror = self._mirror
        if mirror.memory.kernel.current is self._task:
            return True
        if range_.blockable:
            mirror.mutex.lock()
        elif not mirror.mutex.trylock():
            return False
        mirror.memory.mmu_interval_set_seq(sub, cur_seq)
        # The mirror's own notifier may have been called before, and a page been stored since.
        shift = mirror.memory.geometry.page_shift
        mirror.page_table.unmap(range_.start >> shift, range_.end >> shift)
        mirror.mutex.unlock()
        return True
