"""Embed the dev_pagemap in a chunk of device memory, and keep what is free on LIFO lists (nouveau_dmem.c, test_hmm.c).

A device's pool grows by whole chunks and never shrinks before the driver does it. A chunk is carved for whoever asked
first, into single pages or into PMD folios; nothing is coalesced or split afterwards, so a request that its own list
cannot serve gets a new chunk although the other list may be full.

Free pages are linked through page->zone_device_data in the kernel. Here the list holds the pfns in that order, as one
array, and zone_device_data of a free page is the list that it is on.
"""

from array import array
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from attrs import define

from gpusvm.driver.adapter import Populate, PopulateOnly
from gpusvm.drm import DrmDevice, DrmPagemap, PageIndex
from gpusvm.errors import KernelError
from gpusvm.mm.api import MEMORY_DEVICE_PRIVATE, DevPagemap, DevPagemapOps, Geometry, MemoryManagerApi, Pfns

if TYPE_CHECKING:
    from gpusvm.kernel import Kernel

__all__ = ["Chunk", "ChunkPool", "FreeList", "chunk_pages"]


class FreeList:
    """Hold the free folios of one order, last in, first out."""

    __slots__ = ("_pfns", "order")

    def __init__(self, order: int) -> None:
        self.order = order
        self._pfns = array("q")

    def __len__(self) -> int:
        return len(self._pfns)

    def __repr__(self) -> str:
        return f"FreeList(order={self.order}, {len(self._pfns)} free)"

    @property
    def head(self) -> int | None:
        """Return the pfn that `pop` would return."""
        return self._pfns[-1] if self._pfns else None

    def push(self, pfn: int) -> None:
        """Put one folio at the head."""
        self._pfns.append(pfn)

    def push_many(self, pfns: Pfns) -> None:
        """Put folios at the head one after the other: the last of `pfns` is the new head."""
        self._pfns.frombytes(np.ascontiguousarray(pfns, np.int64).tobytes())

    def pop(self) -> int:
        """Take the head. The list must not be empty."""
        return self._pfns.pop()

    def pop_many(self, n: int) -> Pfns:
        """Take up to `n` folios, the head first."""
        if not n or not self._pfns:
            return np.zeros(0, np.int64)
        taken = np.array(self._pfns[: -n - 1 : -1], np.int64)
        del self._pfns[-n:]
        return taken


@define(eq=False)
class Chunk:
    """Hold one piece of device memory: the dev_pagemap lies inside, `container_of` leads from it to the chunk.

    `bo` is the buffer object that the chunk is pinned to, if the driver has one; `callocated` counts the allocations
    outstanding, a PMD folio as one. `retired` chunks are on their way out: what is freed stays off the lists.
    `private` is the driver's.
    """

    pool: "ChunkPool"
    pagemap: DevPagemap
    bo: Any = None
    callocated: int = 0
    retired: bool = False
    private: Any = None

    @property
    def first(self) -> int:
        """Return the first pfn."""
        return self.pagemap.start_pfn

    @property
    def end(self) -> int:
        """Return the pfn behind the last."""
        return self.pagemap.start_pfn + self.pagemap.nr_pages


def chunk_pages(chunk_bytes: int, geometry: Geometry, *, vram_bytes: int | None = None) -> int:
    """Return how many pages a chunk of `chunk_bytes` has in a machine of a geometry.

    A machine whose PMDs are smaller than real ones is small as a whole: there a chunk has 128 PMDs at most, as one of
    256 MiB has, and of `vram_bytes`, if it is taken from there, at most half, but not less than one PMD.
    """
    pages = chunk_bytes >> geometry.page_shift
    if geometry.pmd_order >= Geometry().pmd_order:
        return pages
    pages = min(pages, geometry.pmd_nr << 7)
    if vram_bytes is not None:
        half = vram_bytes >> geometry.page_shift + 1
        pages = min(pages, max(geometry.pmd_nr, 1 << max(half.bit_length() - 1, 0)))
    return pages


class ChunkPool:
    """Own the chunks of one device; it is the `PagemapEmbedding` of a driver whose dev_pagemap lies inside a chunk.

    `lost_pages` pages at the end of a chunk that is carved small stay unused. `on_new` is called with each new chunk
    before its pages exist and may attach a buffer object, or refuse with a KernelError. Chunks are of `memory_type`,
    at whatever pfn `region(pages)` gives the next one: device-private addresses that nothing uses, if it is None.
    What-if: with an `index`, of all pfns, a page leads to its chunk through that, and not through its dev_pagemap.
    """

    def __init__(
        self,
        kernel: "Kernel",
        memory: MemoryManagerApi,
        *,
        chunk_pages: int,
        owner: object,
        ops: DevPagemapOps,
        lost_pages: int = 0,
        on_new: Callable[[Chunk], None] | None = None,
        memory_type: int = MEMORY_DEVICE_PRIVATE,
        region: Callable[[int], int] | None = None,
        index: PageIndex | None = None,
    ) -> None:
        self.kernel = kernel
        self.memory = memory
        self.chunk_pages = chunk_pages
        self.owner = owner
        self.ops = ops
        self.lost_pages = lost_pages
        self.on_new = on_new
        self.memory_type = memory_type
        self.index = index
        self.region = region or memory.request_free_mem_region
        self.large_order = memory.geometry.pmd_order
        self.chunks: list[Chunk] = []
        self.free_pages = FreeList(0)
        self.free_folios = FreeList(self.large_order)
        self.lock = kernel.spinlock("dmem->lock")
        self.mutex = kernel.mutex("dmem->mutex")
        self.drm_pagemap: DrmPagemap | None = None
        kernel.gauges.declare("pagemap")
        self._uncounted = False  # the gauge has the drm_pagemap in place of the first chunk to come

    # ---- the embedding -------------------------------------------------------------------------------------------

    def container_of(self, pgmap: DevPagemap) -> Chunk:
        """Return the chunk that embeds `pgmap`."""
        chunk: Chunk = pgmap.container
        return chunk

    def dev_pagemaps(self) -> list[DevPagemap]:
        """Return one for each chunk, in order of creation."""
        return [chunk.pagemap for chunk in self.chunks]

    def pagemap_of(self, pgmap: DevPagemap) -> "DrmPagemap | None":
        """Return the one drm_pagemap that stands for all chunks."""
        return self.drm_pagemap

    def offer(self, drm: DrmDevice, populate: Populate) -> DrmPagemap:
        """Return the one drm_pagemap that stands for all chunks, making it if need be: a way in for populate_mm.

        It is an adapter, as drivers of this kind have no drm_pagemap in Linux. Its dev_pagemap is a template without
        pages, which has the owner of all chunks; the gauge "pagemap" counts the chunks alone, once there are any.
        """
        if self.drm_pagemap is None:
            template = DevPagemap(
                type=self.memory_type, start_pfn=0, nr_pages=0, owner=self.owner, ops=self.ops, container=self
            )
            self._uncounted = not self.chunks
            if self.chunks:
                self.kernel.gauges.dec("pagemap")
            self.drm_pagemap = DrmPagemap(self.memory, drm, template, PopulateOnly(populate), container=self)
        return self.drm_pagemap

    def withdraw(self) -> None:
        """Drop the drm_pagemap."""
        if self.drm_pagemap is not None:
            if not self._uncounted:
                self.kernel.gauges.inc("pagemap")
            self.drm_pagemap.put()
            self.drm_pagemap = None
            self._uncounted = False

    def chunk_of(self, pfn: int) -> Chunk:
        """Return the chunk of a device page: container_of(page_pgmap(page))."""
        if self.index is not None:
            return cast("Chunk", self.index.find(pfn))
        pgmap = self.memory.page_pgmap(pfn)
        assert pgmap is not None
        chunk: Chunk = pgmap.container
        return chunk

    def by_chunk(self, pfns: Pfns) -> list[tuple[Chunk, Pfns]]:
        """Cut device pages by chunk, in the order in which they stand."""
        cut: list[tuple[Chunk, Pfns]] = []
        while len(pfns):
            chunk = self.chunk_of(int(pfns[0]))
            n = len(pfns)
            if n > 1:
                other = (pfns < chunk.first) | (pfns >= chunk.end)
                if np.count_nonzero(other):
                    n = int(other.argmax())
            cut.append((chunk, pfns[:n]))
            pfns = pfns[n:]
        return cut

    # ---- allocation ----------------------------------------------------------------------------------------------

    def alloc(self, order: int) -> int | None:
        """Take one folio, growing the pool if its list is empty; None if it cannot grow. Sleeps. Not live yet."""
        pfns = self.alloc_many(order, 1)
        return int(pfns[0]) if len(pfns) else None

    def alloc_many(self, order: int, n: int) -> Pfns:
        """Take up to `n` folios as `n` requests would get them; fewer when the pool cannot grow. Sleeps."""
        free = self.free_folios if order else self.free_pages
        with self.lock:
            pfns = self._take(free, n)
        while len(pfns) < n:
            if not self.grow(order):
                break
            with self.lock:
                pfns = np.concatenate((pfns, self._take(free, n - len(pfns))))
        return pfns

    def free(self, pfn: int, order: int) -> None:
        """Take a folio back; never sleeps."""
        free = self.free_folios if order else self.free_pages
        with self.lock:
            chunk = self.chunk_of(pfn)
            chunk.callocated -= 1
            if not chunk.retired:
                free.push(pfn)
                self.memory.set_zone_device_data(pfn, free)

    def free_many(self, pfns: Pfns) -> None:
        """Take many single pages back in order; never sleeps."""
        with self.lock:
            for chunk, some in self.by_chunk(pfns):
                chunk.callocated -= len(some)
                if not chunk.retired:
                    self.free_pages.push_many(some)
                    self.memory.set_zone_device_data(some, self.free_pages)

    def grow(self, order: int) -> bool:
        """Add a chunk and carve it into folios of `order`; False if there is no memory for it."""
        try:
            self.add_chunk(order)
        except KernelError:
            return False
        return True

    def add_chunk(self, order: int) -> Chunk:
        """Do so, and return the chunk. Raises what `on_new` or memremap_pages refuse it with."""
        memory = self.memory
        pagemap = DevPagemap(
            type=self.memory_type,
            start_pfn=self.region(self.chunk_pages),
            nr_pages=self.chunk_pages,
            owner=self.owner,
            ops=self.ops,
        )
        chunk = pagemap.container = Chunk(self, pagemap)
        if self.on_new is not None:
            self.on_new(chunk)
        if self.index is not None:
            self.index.attach(chunk, np.arange(chunk.first, chunk.end))
        memory.memremap_pages(pagemap)
        with self.mutex:
            self.chunks.append(chunk)
            if self._uncounted:
                self._uncounted = False
            else:
                self.kernel.gauges.inc("pagemap")
        if order:
            free, pfns = self.free_folios, np.arange(chunk.first, chunk.end, 1 << order)
        else:
            free, pfns = self.free_pages, np.arange(chunk.first, chunk.end - self.lost_pages)
        with self.lock:
            free.push_many(pfns)
            memory.set_zone_device_data(pfns, free)
        return chunk

    def remove(self, chunk: Chunk) -> None:
        """Take an evacuated chunk out of the pool: its pages leave the lists and cease to exist. Sleeps."""
        with self.mutex:
            self.chunks.remove(chunk)
        self.retire(chunk)
        self.memory.memunmap_pages(chunk.pagemap)
        if self.index is not None:
            self.index.detach(np.arange(chunk.first, chunk.end))
        self.kernel.gauges.dec("pagemap")
        self.kernel.free(chunk.pagemap, chunk.pagemap.done)  # the chunk around it goes when its bo has been put

    def retire(self, chunk: Chunk) -> None:
        """Let nobody have pages of a chunk any more, before its evacuation: they leave the lists and stay off them."""
        with self.lock:
            chunk.retired = True
            for free in (self.free_pages, self.free_folios):
                rest = free.pop_many(len(free))[::-1]
                free.push_many(rest[(rest < chunk.first) | (rest >= chunk.end)])

    def _take(self, free: FreeList, n: int) -> Pfns:
        """Pop under the lock and count the pages as allocated."""
        pfns = free.pop_many(n)
        for chunk, some in self.by_chunk(pfns):
            chunk.callocated += len(some)
        return pfns
