"""drivers/gpu/drm/drm_pagemap.c:drm_pagemap_migrate_map_system_pages, as of Linux 7.3.4: what a copy may touch."""

from typing import TYPE_CHECKING

from gpusvm.drm.addr import DRM_INTERCONNECT_SYSTEM, Orders, PagemapAddrs, constant_u8
from gpusvm.drm.device import DrmDevice
from gpusvm.drm.dma import IovaState
from gpusvm.mm.api import Pfns

if TYPE_CHECKING:
    from gpusvm.drm.pagemap import DrmPagemap


class CopyMapping:
    """Map system pages for `drm` while a copy runs, in one IOVA reservation if there can be one; EFAULT, nothing
    mapped then.
    """

    __slots__ = ("_dma", "_state", "addrs")

    def __init__(self, drm: DrmDevice, pfns: Pfns, order: Orders, npages: int, direction: int) -> None:
        self._dma = dma = drm.dma
        n = len(pfns)
        self._state: IovaState | None = None
        if dma.iommu and n:
            self._state = state = dma.iova_try_alloc(npages << dma.page_shift)
            assert state is not None
            try:
                addr = dma.iova_link(state, pfns, order, direction)
                dma.iova_sync(state, 0, state.linked_bytes)
            except BaseException:
                dma.iova_destroy(state)
                raise
        else:
            addr = dma.map_pages(pfns, order, direction)
        self.addrs = PagemapAddrs(pfns, addr, order, constant_u8(DRM_INTERCONNECT_SYSTEM, n), direction, npages)

    def unmap(self) -> None:
        """Unmap all rows; before the pages are given back to anyone, also when the copy failed."""
        if self._state is not None:
            self._dma.iova_destroy(self._state)
        else:
            self._dma.unmap_pages(len(self.addrs))


class PeerMapping:
    """Map pages of `dpagemap` for another device, `drm`, while that one copies; EFAULT, nothing mapped then."""

    __slots__ = ("_dpagemap", "_drm", "addrs")

    def __init__(
        self, dpagemap: "DrmPagemap", drm: DrmDevice, pfns: Pfns, order: Orders, npages: int, direction: int
    ) -> None:
        self._dpagemap = dpagemap
        self._drm = drm
        addr, proto = dpagemap.ops.device_map(dpagemap, drm, pfns, order, direction)
        self.addrs = PagemapAddrs(pfns, addr, order, proto, direction, npages)

    def unmap(self) -> None:
        """Unmap all rows."""
        self._dpagemap.ops.device_unmap(self._dpagemap, self._drm, self.addrs)
