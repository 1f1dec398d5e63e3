"""drivers/gpu/drm/drm_pagemap.c:struct drm_pagemap_zdd, as of Linux 7.3.4: from a device page to its allocation."""

from typing import TYPE_CHECKING

import numpy as np

from gpusvm.kernel import Kref
from gpusvm.mm.api import Bools, MemoryManagerApi, Pfns

if TYPE_CHECKING:
    from gpusvm.drm.devmem import Devmem
    from gpusvm.drm.pagemap import DrmPagemap


def page_zdd(memory: MemoryManagerApi, pfn: int) -> "Zdd":
    """Return the zdd of a live device page: its folio's (drm_pagemap_page_zone_device_data)."""
    zdd: Zdd = memory.zone_device_data(memory.folio_head(pfn))
    return zdd


def hold_dpagemap(dpagemap: "DrmPagemap") -> None:
    """Keep a pagemap for its pages: they lead to it, and may stay when its driver and the last VM have put it."""
    dpagemap.get("zdd")


def drop_dpagemap(dpagemap: "DrmPagemap") -> None:
    """Let go of it, the allocation being released."""
    dpagemap.put("zdd")


class Zdd:
    """Be the zone_device_data of every page of one migration into device memory.

    References: one from creation to the end of that migration, one a device folio, one a tail that a folio split
    makes. The last completes ``devmem.detached``, calls ``devmem_release`` and drops the pagemap; that may be in
    atomic context.
    """

    __slots__ = ("_hi", "_lo", "_pfns", "devmem", "dpagemap", "kref")

    def __init__(self, dpagemap: "DrmPagemap", devmem: "Devmem") -> None:
        kernel = dpagemap.kernel
        hold_dpagemap(dpagemap)
        self.dpagemap = dpagemap
        self.devmem = devmem
        self.kref = Kref(kernel, "zdd", self._destroy, holder="migrate_to_devmem")
        kernel.gauges.inc("zdd")
        self._lo = self._hi = 0  # no pages yet
        self._pfns: Pfns | None = None  # sorted, only if they are not simply [lo, hi)

    def set_pfns(self, pfns: Pfns) -> None:
        """Remember which pages the allocation consists of."""
        self._lo = lo = int(pfns.min())
        self._hi = hi = int(pfns.max()) + 1
        if hi - lo != len(pfns):
            self._pfns = np.sort(pfns)

    def set_run(self, head: int, nr_pages: int) -> None:
        """Remember so for consecutive pages."""
        self._lo = head
        self._hi = head + nr_pages

    def covers_page(self, pfn: int) -> bool:
        """Tell whether `pfn`, a live device page, has this zone_device_data: an allocation has one zdd for all its
        life.
        """
        if not self._lo <= pfn < self._hi:
            return False
        if self._pfns is None:
            return True
        return bool(self._pfns[np.searchsorted(self._pfns, pfn)] == pfn)

    def covers(self, pfns: Pfns) -> Bools:
        """Tell so for many."""
        inside: Bools = (pfns >= self._lo) & (pfns < self._hi)
        if self._pfns is not None:
            inside &= np.isin(pfns, self._pfns)
        return inside

    def _destroy(self) -> None:
        devmem = self.devmem
        dpagemap = self.dpagemap
        kernel = dpagemap.kernel
        kernel.gauges.dec("zdd")
        devmem.detached.complete_all()
        devmem.release()
        drop_dpagemap(dpagemap)
        if kernel.explored:
            kernel.free(self)
