"""drivers/gpu/buddy.c (gpu_buddy, once drm_buddy), as of Linux 7.3.4: who has which pages of a device's memory."""

from errno import ENOSPC
from heapq import heapify, heappop, heappush

from gpusvm.errors import KernelError, ModelError

Block = tuple[int, int]
"""First page and number of pages."""


class Buddy:
    """Allocate device memory in blocks of power-of-two sizes, each aligned to its size.

    Sizes and places are in pages of 4 KiB, counted from the start of the memory. `min_order` is the smallest block
    handed out. An allocation cuts up the smallest block that fits: the lowest such, or the highest with `top_down`.
    All steps are logarithmic in the number of free blocks, except a contiguous allocation that no single block can
    serve: that one looks at all of them.
    """

    __slots__ = ("_count", "_free", "_high", "_low", "free_pages", "min_order", "size_pages")

    def __init__(self, size_pages: int, *, min_order: int = 0) -> None:
        if size_pages <= 0 or size_pages & ((1 << min_order) - 1):
            raise ValueError(f"size_pages must be a positive multiple of {1 << min_order}, got {size_pages}")
        self.size_pages = size_pages
        self.min_order = min_order
        self.free_pages = size_pages
        top = size_pages.bit_length()
        self._free: dict[int, int] = {}  # first page -> order, of free blocks only
        self._count = [0] * top  # free blocks by order
        # Places by order, with entries that are no longer free: who takes one checks it against _free. The second set
        # serves top_down and exists only once that is asked for.
        self._low: list[list[int]] = [[] for _ in range(top)]
        self._high: list[list[int]] | None = None
        for start, order in _split(0, size_pages):
            self._insert(start, order)

    @property
    def used_pages(self) -> int:
        """Return how many pages are handed out."""
        return self.size_pages - self.free_pages

    def alloc(self, nr_pages: int, *, contiguous: bool = True, top_down: bool = False) -> list[Block]:
        """Return blocks of `nr_pages` pages in all; ENOSPC if there are not so many, or not in one piece.

        Contiguous allocations return one block: of the next power of two with the rest given back, as gpu_buddy trims
        it, or, if there is none so large, of neighbours. Others take the largest blocks first and return them in the
        order taken.
        """
        if nr_pages <= 0:
            raise ValueError(f"nr_pages must be positive, got {nr_pages}")
        unit = 1 << self.min_order
        size = (nr_pages + unit - 1) & -unit
        if size > self.free_pages:
            raise KernelError(ENOSPC, f"{nr_pages} pages wanted, {self.free_pages} of {self.size_pages} free")
        if not contiguous:
            return self._alloc_pieces(size, top_down)
        order = (size - 1).bit_length()
        start = self._take(order, top_down)
        if start is not None:
            if size != 1 << order:
                for piece, piece_order in _split(start + size, (1 << order) - size):
                    self._give(piece, piece_order)
        else:
            start = self._take_neighbours(size, top_down)
            if start is None:
                raise KernelError(
                    ENOSPC, f"{nr_pages} contiguous pages wanted, {self.free_pages} free in smaller pieces"
                )
        self.free_pages -= size
        return [(start, size)]

    def free(self, blocks: list[Block]) -> None:
        """Give blocks back; each may be part of what alloc returned."""
        for start, size in blocks:
            if start < 0 or size <= 0 or start + size > self.size_pages:
                raise ModelError(f"buddy: block {start}+{size} is not within {self.size_pages} pages")
            if not size & (size - 1) and not start & (size - 1):
                self._give(start, size.bit_length() - 1)
            else:
                for piece, order in _split(start, size):
                    self._give(piece, order)
            self.free_pages += size

    def _alloc_pieces(self, size: int, top_down: bool) -> list[Block]:
        blocks: list[Block] = []
        order = size.bit_length() - 1
        while size:
            order = min(order, size.bit_length() - 1)
            start = self._take(order, top_down)
            if start is None:
                order -= 1
                continue
            blocks.append((start, 1 << order))
            self.free_pages -= 1 << order
            size -= 1 << order
        return blocks

    def _take(self, order: int, top_down: bool) -> int | None:
        """Remove and return a block of exactly `order`, splitting the smallest larger one if need be."""
        count = self._count
        found = order
        while found < len(count) and not count[found]:
            found += 1
        if found >= len(count):
            return None
        start = self._pop(found, top_down)
        while found > order:
            found -= 1
            if top_down:
                self._insert(start, found)
                start += 1 << found
            else:
                self._insert(start + (1 << found), found)
        return start

    def _pop(self, order: int, top_down: bool) -> int:
        if top_down:
            if self._high is None:
                self._high = [[] for _ in self._count]
                for start, free_order in self._free.items():
                    heappush(self._high[free_order], -start)
            heap, sign = self._high[order], -1
        else:
            heap, sign = self._low[order], 1
        free = self._free
        while True:
            start = sign * heappop(heap)
            if free.get(start) == order:
                break
        del free[start]
        self._count[order] -= 1
        return start

    def _insert(self, start: int, order: int) -> None:
        self._free[start] = order
        count = self._count
        count[order] += 1
        heap = self._low[order]
        if len(heap) > 2 * count[order] + 64:  # mostly stale
            heap[:] = [place for place, free_order in self._free.items() if free_order == order]
            heapify(heap)
        else:
            heappush(heap, start)
        if self._high is not None:
            heap = self._high[order]
            if len(heap) > 2 * count[order] + 64:
                heap[:] = [-place for place, free_order in self._free.items() if free_order == order]
                heapify(heap)
            else:
                heappush(heap, -start)

    def _give(self, start: int, order: int) -> None:
        """Make a block free and merge it with its buddy as long as that is free too."""
        free = self._free
        if start in free:
            raise ModelError(f"buddy: block {start}+{1 << order} is free already")
        top = len(self._count) - 1
        while order < top:
            buddy = start ^ (1 << order)
            if free.get(buddy) != order:
                break
            del free[buddy]
            self._count[order] -= 1
            start &= ~(1 << order)
            order += 1
        self._insert(start, order)

    def _take_neighbours(self, size: int, top_down: bool) -> int | None:
        """Take `size` pages from free blocks that lie side by side (gpu_buddy's __alloc_contig_try_harder)."""
        runs: list[list[int]] = []
        for start in sorted(self._free):
            if runs and runs[-1][1] == start:
                runs[-1][1] = start + (1 << self._free[start])
            else:
                runs.append([start, start + (1 << self._free[start])])
        fitting = [run for run in runs if run[1] - run[0] >= size]
        if not fitting:
            return None
        place = fitting[-1][1] - size if top_down else fitting[0][0]
        end = place + size
        for start in [s for s, order in self._free.items() if s < end and s + (1 << order) > place]:
            order = self._free.pop(start)
            self._count[order] -= 1
            # what of the block lies outside stays free; it cannot merge, its buddy is about to be taken
            for piece, piece_order in _split(start, max(place - start, 0)):
                self._insert(piece, piece_order)
            for piece, piece_order in _split(end, max(start + (1 << order) - end, 0)):
                self._insert(piece, piece_order)
        return place


def _split(start: int, size: int) -> list[tuple[int, int]]:
    """Cut [start, start + size) into the fewest aligned power-of-two blocks: (first page, order)."""
    pieces = []
    while size:
        order = size.bit_length() - 1
        if start:
            order = min(order, (start & -start).bit_length() - 1)
        pieces.append((start, order))
        start += 1 << order
        size -= 1 << order
    return pieces
