"""include/drm/drm_pagemap.h:struct drm_pagemap_addr, as of Linux 7.3.4: how a device sees pages, as arrays."""

from functools import lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt

from gpusvm.mm.api import MemoryManagerApi, Pfns, Words

Orders = npt.NDArray[np.uint8]
Protos = npt.NDArray[np.uint8]

# include/drm/drm_pagemap.h:enum drm_interconnect_protocol: a driver numbers its own from DRM_INTERCONNECT_DRIVER on
DRM_INTERCONNECT_SYSTEM: Final = 0
DRM_INTERCONNECT_DRIVER: Final = 1

# include/linux/dma-direction.h
DMA_BIDIRECTIONAL: Final = 0
DMA_TO_DEVICE: Final = 1
DMA_FROM_DEVICE: Final = 2


@lru_cache(maxsize=4096)
def constant_u8(value: int, n: int) -> npt.NDArray[np.uint8]:
    """Return a shared read-only array of `n` times `value`: most mappings are uniform and need none."""
    array = np.full(n, value, np.uint8)
    array.flags.writeable = False
    return array


class PagemapAddrs:
    """Hold what pages are mapped to: one row a mapping segment, in the order of the pages.

    `pfns` is the first pfn of each row, `order` its size (``1 << order`` pages), `addr` the address that the device
    uses, `proto` how it gets there: DRM_INTERCONNECT_SYSTEM, or a number of the driver that owns the memory.
    `direction` is DMA_*. The arrays are not to be written.
    """

    __slots__ = ("addr", "direction", "npages", "order", "pfns", "proto")

    def __init__(self, pfns: Pfns, addr: Words, order: Orders, proto: Protos, direction: int, npages: int) -> None:
        self.pfns = pfns
        self.addr = addr
        self.order = order
        self.proto = proto
        self.direction = direction
        self.npages = npages

    def __len__(self) -> int:
        return len(self.pfns)

    def first_pages(self) -> npt.NDArray[np.int64]:
        """Return the index, counted in pages, of the first page of each row."""
        sizes = np.left_shift(1, self.order.astype(np.int64))
        return np.cumsum(sizes) - sizes

    def page_pfns(self) -> Pfns:
        """Return one pfn a page."""
        return expand(self.pfns, self.order, self.npages)

    def rows(self, select: "npt.NDArray[np.bool_] | slice") -> "PagemapAddrs":
        """Return some of the rows."""
        order = self.order[select]
        npages = int(np.left_shift(1, order.astype(np.int64)).sum())
        return PagemapAddrs(self.pfns[select], self.addr[select], order, self.proto[select], self.direction, npages)


def expand(pfns: Pfns, order: Orders, npages: int) -> Pfns:
    """Return one pfn a page for rows of ``1 << order`` consecutive pages."""
    if len(pfns) == npages:
        return pfns
    if len(pfns) == 1:
        head = int(pfns[0])
        return np.arange(head, head + npages, dtype=np.int64)
    sizes = np.left_shift(1, order.astype(np.int64))
    starts = np.cumsum(sizes) - sizes
    return np.repeat(pfns - starts, sizes) + np.arange(npages, dtype=np.int64)


def copy_contents(memory: MemoryManagerApi, dst: Pfns, src: Pfns, order: Orders, npages: int) -> None:
    """Move the contents of rows of ``1 << order`` pages from `src` to `dst`: what a copy engine does when its time
    has come.
    """
    if len(dst) == 1:
        memory.copy_folio(int(dst[0]), int(src[0]), npages)
    elif npages:
        memory.copy_pages(expand(dst, order, npages), expand(src, order, npages))
