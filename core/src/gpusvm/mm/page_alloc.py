"""mm/page_alloc.c, as of Linux 7.3.4: where system pages come from.

Two levels instead of the kernel's eleven: whole blocks of PMD size, and one bit mask of free pages for each block
that is in part given out. A PMD-order folio is one pop; small pages come from blocks already broken, so that they
break no more than needed; blocks given back are used first again, so that the arrays of `gpusvm.mm.page` stay small
in real memory.
"""

from typing import Final

import numpy as np

from gpusvm.errors import ModelError
from gpusvm.mm.api import Pfns
from gpusvm.mm.ptemask import RAMP, from_indices, indices

__all__ = ["PageAllocator"]


class PageAllocator:
    """Give out the pfns [0, nr_pages) in naturally aligned powers of two up to the PMD order."""

    __slots__ = (
        "_aligned",
        "_fresh",
        "_full",
        "_iota",
        "_nr",
        "_order",
        "_tail",
        "_whole",
        "free_pages",
        "nr_pages",
        "partial",
    )

    def __init__(self, nr_pages: int, *, pmd_order: int) -> None:
        self.nr_pages: Final = nr_pages
        self.free_pages = nr_pages
        self._order: Final = pmd_order
        self._nr: Final = 1 << pmd_order
        self._full: Final = (1 << self._nr) - 1
        self._fresh = 0  # blocks from here on were never given out
        self._tail: Final = nr_pages >> pmd_order  # first block that is not whole
        self._whole: list[int] = []  # free blocks that were, the last freed on top
        self.partial: dict[int, int] = {}  # block -> mask of free pages, neither 0 nor full
        rest = nr_pages & (self._nr - 1)
        if rest:
            self.partial[self._tail] = (1 << rest) - 1
        self._aligned: Final = [sum(1 << i for i in range(0, self._nr, 1 << order)) for order in range(pmd_order + 1)]

    def _block(self) -> int:
        """Take a whole free block; -1 when there is none."""
        if self._whole:
            return self._whole.pop()
        if self._fresh < self._tail:
            self._fresh += 1
            return self._fresh - 1
        return -1

    def _fit(self, order: int) -> tuple[int, int]:
        """Find a broken block with room: the block and the mask of where `1 << order` aligned pages are free, else
        0.
        """
        for block, mask in self.partial.items():
            fit = mask
            for shift in range(order):  # after the loop bit i says that i and the `(1 << order) - 1` behind it are free
                fit &= fit >> (1 << shift)
            fit &= self._aligned[order]
            if fit:
                return block, fit
        return -1, 0

    def alloc(self, order: int) -> int:
        """Take `1 << order` consecutive, aligned pages; the first pfn, or -1."""
        nr = 1 << order
        if order == self._order:
            block = self._block()
            if block >= 0:
                self.free_pages -= nr
                return block << self._order
            return -1
        if order > self._order:
            return -1
        block, fit = self._fit(order)
        if fit:
            mask = self.partial[block]
        else:
            block = self._block()
            if block < 0:
                return -1
            mask = self._full
            fit = 1
        at = (fit & -fit).bit_length() - 1
        mask &= ~(((1 << nr) - 1) << at)
        if mask:
            self.partial[block] = mask
        else:
            del self.partial[block]
        self.free_pages -= nr
        return (block << self._order) + at

    def alloc_bulk(self, n: int) -> Pfns | None:
        """Take `n` single pages, in runs as long as can be had; all or None."""
        if n > self.free_pages:
            return None
        if not n:
            return RAMP[:0]
        width = self._nr
        if n == width and not self.partial:  # the usual case of a migration: a whole block
            block = self._block()
            self.free_pages -= n
            return RAMP[:n] + (block << self._order)
        parts: list[Pfns] = []
        left = n
        for block in list(self.partial):
            mask = self.partial[block]
            got = indices(mask)
            if len(got) > left:
                got = got[:left]
                self.partial[block] = mask & ~((2 << int(got[-1])) - 1)
            else:
                del self.partial[block]
            parts.append(got + (block << self._order))
            left -= len(got)
            if not left:
                break
        while left:
            block = self._block()
            take = min(left, width)
            if take < width:
                self.partial[block] = self._full & ~((1 << take) - 1)
            parts.append(RAMP[:take] + (block << self._order))
            left -= take
        self.free_pages -= n
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _free_mask(self, block: int, bits: int) -> None:
        mask = self.partial.get(block, 0)
        if mask & bits:
            raise ModelError(f"pages of block {block} freed twice: mask {mask & bits:#x}")
        mask |= bits
        if mask == self._full:
            self.partial.pop(block, None)
            self._whole.append(block)
        else:
            self.partial[block] = mask

    def free(self, pfn: int, order: int) -> None:
        """Give `1 << order` pages back."""
        nr = 1 << order
        self.free_pages += nr
        if order == self._order:
            self._whole.append(pfn >> order)
        else:
            self._free_mask(pfn >> self._order, ((1 << nr) - 1) << (pfn & (self._nr - 1)))

    def take(self, pfn: int) -> None:
        """Take one free page away for good (take_page_off_buddy)."""
        block = pfn >> self._order
        while self._fresh <= block and self._fresh < self._tail:
            self._whole.append(self._fresh)
            self._fresh += 1
        if block in self._whole:
            self._whole.remove(block)
            self.partial[block] = self._full
        mask = self.partial.get(block, 0)
        bit = 1 << (pfn & (self._nr - 1))
        if not mask & bit:
            raise ModelError(f"page {pfn:#x} is not free")
        if mask == bit:
            del self.partial[block]
        else:
            self.partial[block] = mask & ~bit
        self.free_pages -= 1

    def free_range(self, pfn: int, n: int) -> None:
        """Give `n` consecutive pages back."""
        self.free_pages += n
        width = self._nr
        while n:
            at = pfn & (width - 1)
            take = min(n, width - at)
            self._free_mask(pfn >> self._order, ((1 << take) - 1) << at)
            pfn += take
            n -= take

    def free_bulk(self, pfns: Pfns) -> None:
        """Give many single pages back, in any order, each once."""
        self.free_pages += len(pfns)
        blocks = pfns >> self._order
        first = int(blocks[0])
        if np.count_nonzero(blocks == first) == len(pfns):
            self._free_mask(first, from_indices(pfns & (self._nr - 1), self._nr))
            return
        for block in np.unique(blocks).tolist():
            self._free_mask(block, from_indices(pfns[blocks == block] & (self._nr - 1), self._nr))
