"""drivers/gpu/drm/drm_pagemap.c:drm_pagemap_migrate_populate_ram_pfn and its like, as of Linux 7.3.4: the way back to
RAM.

CPU faults and eviction share it: they differ in how the source pages were collected.
"""

from errno import ENOMEM
from typing import TYPE_CHECKING

import numpy as np

from gpusvm.drm.addr import DMA_FROM_DEVICE, Orders, constant_u8
from gpusvm.drm.mapping import CopyMapping
from gpusvm.errors import KernelError, ModelError
from gpusvm.mm.api import (
    MIGRATE_PFN_COMPOUND,
    MIGRATE_PFN_MIGRATE,
    MIGRATE_PFN_SHIFT,
    MIGRATE_PFN_VALID,
    Bools,
    MemoryManagerApi,
    Pfns,
    Words,
)

if TYPE_CHECKING:
    from gpusvm.drm.zdd import Zdd

_LIVE = MIGRATE_PFN_VALID | MIGRATE_PFN_MIGRATE
_LIVE_WORD = np.uint64(_LIVE)
_VALID = np.uint64(MIGRATE_PFN_VALID)
_MIGRATE = np.uint64(MIGRATE_PFN_MIGRATE)
_COMPOUND = np.uint64(MIGRATE_PFN_COMPOUND)
_SHIFT = np.uint64(MIGRATE_PFN_SHIFT)


class RamPages:
    """Be the RAM that a migration brings device pages to: rows ready for a copy, and the destination words in `dst`.

    Takes the entries of `src` that migrate, those of `zdd` only if one is given. Each gets a folio of its own order;
    if there is none so large, small pages for that span, but not without `order_fallback`. ENOMEM, with nothing
    allocated then. `npages` may be 0.
    """

    __slots__ = ("_dst", "_memory", "_order_fallback", "device_pfns", "npages", "order", "ram_pfns")

    def __init__(
        self, memory: MemoryManagerApi, src: Words, dst: Words, zdd: "Zdd | None", *, order_fallback: bool = True
    ) -> None:
        self._memory = memory
        self._order_fallback = order_fallback
        self._dst = dst
        geometry = memory.geometry
        head = int(src[0])
        if len(src) == geometry.pmd_nr and head & MIGRATE_PFN_COMPOUND:
            self._compound(head, zdd, geometry.pmd_order)
        else:
            self._entries(src, zdd, geometry.pmd_order)

    def _compound(self, head: int, zdd: "Zdd | None", order: int) -> None:
        memory = self._memory
        pfn = head >> MIGRATE_PFN_SHIFT
        if head & _LIVE != _LIVE or (zdd is not None and not zdd.covers_page(pfn)):
            self._nothing()
            return
        self.npages = 1 << order
        ram = memory.alloc_folio(order)
        if ram is not None:
            memory.folio_trylock(ram)
            self.device_pfns = np.array((pfn,), np.int64)
            self.ram_pfns = np.array((ram,), np.int64)
            self.order = constant_u8(order, 1)
            self._dst[0] = ram << MIGRATE_PFN_SHIFT | MIGRATE_PFN_VALID | MIGRATE_PFN_COMPOUND
            return
        self._fall_back(order)
        self.ram_pfns = self._alloc_small(self.npages)
        self.device_pfns = np.arange(pfn, pfn + self.npages, dtype=np.int64)
        self.order = constant_u8(0, self.npages)
        self._dst[:] = (self.ram_pfns.view(np.uint64) << _SHIFT) | _VALID

    def _entries(self, src: Words, zdd: "Zdd | None", pmd_order: int) -> None:
        memory = self._memory
        live: Bools = (src & _LIVE_WORD) == _LIVE_WORD
        at = np.flatnonzero(live)
        words = src[at]
        pfns = (words >> _SHIFT).view(np.int64)
        if zdd is not None and len(at):
            mine = zdd.covers(pfns)
            if not mine.all():
                at, words, pfns = at[mine], words[mine], pfns[mine]
        if not len(at):
            self._nothing()
            return
        compound = (words & _COMPOUND) != 0
        if not compound.any():
            self.npages = len(at)
            self.ram_pfns = self._alloc_small(len(at))
            self.device_pfns = pfns
            self.order = constant_u8(0, len(at))
            self._dst[at] = (self.ram_pfns.view(np.uint64) << _SHIFT) | _VALID
            return
        # Both kinds: at most a few compound entries, one every PMD, and everything else.
        small = ~compound
        large: list[tuple[int, int, int]] = []  # index, device pfn, RAM pfn
        for i, pfn in zip(at[compound].tolist(), pfns[compound].tolist(), strict=True):
            ram = memory.alloc_folio(pmd_order)
            if ram is not None:
                memory.folio_trylock(ram)
            large.append((i, pfn, -1 if ram is None else ram))
        pieces = [(i, pfn) for i, pfn, ram in large if ram < 0]
        small_at = np.concatenate([at[small], *[np.arange(i, i + (1 << pmd_order)) for i, _ in pieces]])
        small_pfns = np.concatenate([pfns[small], *[np.arange(p, p + (1 << pmd_order)) for _, p in pieces]])
        try:
            if pieces:
                self._fall_back(pmd_order)
            small_ram = self._alloc_small(len(small_at)) if len(small_at) else small_pfns
        except KernelError:
            for _, _, ram in large:
                if ram >= 0:
                    memory.folio_unlock(ram)
                    memory.folio_put(ram)
            raise
        whole = [entry for entry in large if entry[2] >= 0]
        at = np.concatenate([small_at, np.array([entry[0] for entry in whole], np.int64)])
        in_order = np.argsort(at)
        self.device_pfns = np.concatenate([small_pfns, np.array([e[1] for e in whole], np.int64)])[in_order]
        self.ram_pfns = np.concatenate([small_ram, np.array([e[2] for e in whole], np.int64)])[in_order]
        self.order = np.repeat(np.array([0, pmd_order], np.uint8), [len(small_at), len(whole)])[in_order]
        self.npages = len(small_at) + (len(whole) << pmd_order)
        words = (self.ram_pfns.view(np.uint64) << _SHIFT) | _VALID
        words[self.order != 0] |= _COMPOUND
        self._dst[at[in_order]] = words

    def _fall_back(self, order: int) -> None:
        """Go on with small pages, or, where that is not done, refuse (ENOMEM)."""
        if not self._order_fallback:
            raise KernelError(ENOMEM, f"no folio of order {order}, and no small pages in its place")

    def _alloc_small(self, n: int) -> Pfns:
        pfns = self._memory.alloc_pages_bulk(n)
        if pfns is None:
            raise KernelError(ENOMEM, f"no {n} pages of system memory")
        self._memory.folios_lock_new(pfns)
        return pfns

    def _check_not_retired(self, zdd: "Zdd") -> None:
        """Assert that no page is copied out whose contents are in RAM already, and may have changed there since."""
        # The mark is the folio's: what a tail has is left from when it was a page by itself.
        heads = np.unique([self._memory.folio_head(pfn) for pfn in self.device_pfns.tolist()])
        retired = heads[zdd.retired(self._memory, heads)]
        if len(retired):
            raise ModelError(f"device page {int(retired[0]):#x} is copied to RAM again, where its contents are already")

    def _nothing(self) -> None:
        self.npages = 0
        self.device_pfns = self.ram_pfns = np.zeros(0, np.int64)
        self.order = _NO_ORDERS

    def copy(self, zdd: "Zdd") -> None:
        """Let the device that owns the allocation copy (DMA direction FROM_DEVICE); on an error everything is given
        back.
        """
        if self._memory.kernel.explored:
            self._check_not_retired(zdd)
        devmem = zdd.devmem
        mapping: CopyMapping | None = None
        try:
            mapping = CopyMapping(devmem.drm, self.ram_pfns, self.order, self.npages, DMA_FROM_DEVICE)
            devmem.ops.copy_to_ram(self.device_pfns, mapping.addrs, None)
        except BaseException:
            self._give_back(mapping)
            raise
        mapping.unmap()

    def _give_back(self, mapping: CopyMapping | None) -> None:
        """Unmap, if anything is mapped, and free the pages after that: the device may write to them until then."""
        if mapping is not None:
            mapping.unmap()
        self._memory.folios_unlock(self.ram_pfns)
        self._memory.folios_put(self.ram_pfns)
        self._dst[:] = 0


_NO_ORDERS: Orders = np.zeros(0, np.uint8)


def skip_retired_pages(memory: MemoryManagerApi, src: Words, zdd: "Zdd") -> None:
    """Leave alone the folios of an allocation whose contents are in RAM already (drm_pagemap_skip_retired_pages)."""
    head = int(src[0])
    if len(src) == memory.geometry.pmd_nr and head & MIGRATE_PFN_COMPOUND:
        if head & MIGRATE_PFN_VALID and zdd.retired(memory, np.array((head >> MIGRATE_PFN_SHIFT,), np.int64))[0]:
            src[0] = head & ~MIGRATE_PFN_MIGRATE
        return
    at = np.flatnonzero(src & _VALID)
    if len(at):
        retired = zdd.retired(memory, (src[at] >> _SHIFT).view(np.int64))
        if retired.any():
            src[at[retired]] &= ~_MIGRATE


def retire_migrated_pages(memory: MemoryManagerApi, src: Words, dst: Words, zdd: "Zdd") -> None:
    """Mark the folios of an allocation whose contents have moved, so that none is copied out twice
    (drm_pagemap_retire_migrated_pages).
    """
    head = int(src[0])
    if len(src) == memory.geometry.pmd_nr and head & MIGRATE_PFN_COMPOUND:
        if head & _LIVE == _LIVE and int(dst[0]):
            zdd.retire(memory, head >> MIGRATE_PFN_SHIFT)
        return
    moved = ((src & _LIVE_WORD) == _LIVE_WORD) & (dst != 0)
    if moved.any():
        zdd.retire(memory, (src[moved] >> _SHIFT).view(np.int64))
