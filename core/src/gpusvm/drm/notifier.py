"""drivers/gpu/drm/drm_gpusvm.c:struct drm_gpusvm_notifier, as of Linux 7.3.4: one window over many ranges."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from operator import attrgetter
from typing import TYPE_CHECKING

from gpusvm.mm.api import IntervalNotifier, MmuNotifierRange

if TYPE_CHECKING:
    from gpusvm.drm.gpusvm import GpuSvm
    from gpusvm.drm.range import GpuSvmRange

_start = attrgetter("start")


class GpuSvmNotifier:
    """Be an aligned window of the address space, with the ranges in it; made with its first range, gone with its last.

    A range never crosses a PMD, so the ranges are kept by PMD block, each block's sorted: what a lookup or an
    insertion costs does not depend on how many ranges the window has. `removed`: it hears of no invalidation any more.
    A driver's own class derives from it and is built by ``GpuSvmOps.notifier_alloc``.
    """

    __slots__ = ("_blocks", "_shift", "end", "gpusvm", "notifier", "nr_ranges", "removed", "start")

    gpusvm: "GpuSvm"
    notifier: IntervalNotifier
    start: int
    end: int
    nr_ranges: int
    removed: bool

    def _init(self, gpusvm: "GpuSvm", start: int, end: int, block_shift: int) -> None:
        self.gpusvm = gpusvm
        self.start = start
        self.end = end
        self.nr_ranges = 0
        self.removed = False
        self._shift = block_shift
        self._blocks: dict[int, list[GpuSvmRange]] = {}

    def __repr__(self) -> str:
        return f"<{type(self).__name__} [{self.start:#x}, {self.end:#x}), {self.nr_ranges} ranges>"

    def range_find(self, start: int, end: int) -> "GpuSvmRange | None":
        """Return the first range that overlaps [start, end) (drm_gpusvm_range_find)."""
        shift = self._shift
        block = start >> shift
        if block == (end - 1) >> shift:
            ranges = self._blocks.get(block)
            if ranges is None:
                return None
            if len(ranges) == 1:
                only = ranges[0]
                return only if only.start < end and only.end > start else None
            i = bisect_right(ranges, start, key=_start)
            if i and ranges[i - 1].end > start:
                return ranges[i - 1]
            return ranges[i] if i < len(ranges) and ranges[i].start < end else None
        return next(self.ranges(start, end), None)

    def ranges(self, start: int, end: int) -> "Iterator[GpuSvmRange]":
        """Yield the ranges that overlap [start, end), ascending (drm_gpusvm_for_each_range).

        They are looked up block by block while iterating: a range may be removed when it has been yielded.
        """
        blocks = self._blocks
        shift = self._shift
        first = max(start, self.start) >> shift
        last = (min(end, self.end) - 1) >> shift
        if last - first < len(blocks):
            keys: Iterator[int] | list[int] = iter(range(first, last + 1))
        else:
            keys = sorted(key for key in blocks if first <= key <= last)
        for key in keys:
            ranges = blocks.get(key)
            if ranges is None:
                continue
            i = 0
            if len(ranges) > 1 and start > ranges[0].start:
                i = bisect_right(ranges, start, key=_start) - 1
            for found in ranges[i:]:
                if found.start >= end:
                    break
                if found.end > start:
                    yield found

    def insert(self, new: "GpuSvmRange") -> None:
        """Add a range that overlaps no other (drm_gpusvm_range_insert)."""
        block = new.start >> self._shift
        ranges = self._blocks.get(block)
        if ranges is None:
            self._blocks[block] = [new]
        elif new.start > ranges[-1].start:
            ranges.append(new)
        else:
            ranges.insert(bisect_left(ranges, new.start, key=_start), new)
        self.nr_ranges += 1

    def remove(self, old: "GpuSvmRange") -> None:
        """Take a range out (__drm_gpusvm_range_remove)."""
        block = old.start >> self._shift
        ranges = self._blocks[block]
        if len(ranges) == 1:
            del self._blocks[block]
        else:
            del ranges[bisect_left(ranges, old.start, key=_start)]
        self.nr_ranges -= 1

    def invalidate(self, sub: IntervalNotifier, range_: MmuNotifierRange, cur_seq: int) -> bool:
        """Let the driver drop what it mirrors (drm_gpusvm_notifier_invalidate); False, and nothing, if that may not
        sleep.
        """
        if not range_.blockable:
            return False
        gpusvm = self.gpusvm
        lock = gpusvm.notifier_lock
        lock.down_write()
        gpusvm.memory.mmu_interval_set_seq(sub, cur_seq)
        gpusvm.ops.invalidate(gpusvm, self, range_)
        lock.up_write()
        return True
