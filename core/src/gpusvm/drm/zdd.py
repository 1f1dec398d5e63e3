"""drivers/gpu/drm/drm_pagemap.c:struct drm_pagemap_zdd, as of Linux 7.3.4: from a device page to its allocation."""

from typing import TYPE_CHECKING, Final, cast

import numpy as np

from gpusvm.errors import KernelError
from gpusvm.kernel import Kref
from gpusvm.mm.api import Bools, DevPagemap, MemoryManagerApi, Pfns

if TYPE_CHECKING:
    from gpusvm.drm.devmem import Devmem
    from gpusvm.drm.page_index import PageIndex
    from gpusvm.drm.pagemap import DrmPagemap, PagemapDevOps

MARKS_GAUGE: Final = "page_marks_bytes"
"""The gauge that counts the bytes of what marks pages that have left, where zone_device_data has no bit for that."""


def marks_bytes(nr_pages: int) -> int:
    """Return the size of a bitmap for the pages of an allocation, in whole words of 64 bits."""
    return -(-nr_pages // 64) * 8


def page_zdd(memory: MemoryManagerApi, pfn: int) -> "Zdd":
    """Return the zdd of a live device page: its folio's (drm_pagemap_page_zone_device_data)."""
    return folio_zdd(memory, memory.folio_head(pfn))


def folio_zdd(memory: MemoryManagerApi, head: int) -> "Zdd":
    """Return the zdd of a device folio: zone_device_data, or what the index of its pagemap leads to in its place."""
    zdd: Zdd | None = memory.zone_device_data(head)
    if zdd is None:
        pgmap = memory.page_pgmap(head)
        assert pgmap is not None
        index = dpagemap_of(pgmap).index
        assert index is not None
        zdd = index.find(head)
        assert zdd is not None
    return zdd


def dpagemap_of(pgmap: DevPagemap) -> "DrmPagemap":
    """Return the drm_pagemap of a dev_pagemap, as the embedding has it. Linux 7.3.4 knows no such way in core: it goes
    through the zdd.
    """
    ops = cast("PagemapDevOps", pgmap.ops)
    assert ops.dpagemap_of is not None
    return ops.dpagemap_of(pgmap)


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

    __slots__ = ("_hi", "_index", "_lo", "_pfns", "_retired", "devmem", "dpagemap", "kref")

    def __init__(self, dpagemap: "DrmPagemap", devmem: "Devmem") -> None:
        kernel = dpagemap.kernel
        hold_dpagemap(dpagemap)
        self.dpagemap = dpagemap
        self.devmem = devmem
        self.kref = Kref(kernel, "zdd", self._destroy, holder="migrate_to_devmem")
        kernel.gauges.inc("zdd")
        self._index = dpagemap.index
        self._retired: set[int] = set()  # the marks of folios, where there is no zone_device_data to have them
        self._lo = self._hi = 0  # no pages yet
        self._pfns: Pfns | None = None  # sorted, only if they are not simply [lo, hi)

    @property
    def by_index(self) -> bool:
        """Tell whether pages lead here through an index, and not by themselves."""
        return self._index is not None

    def set_pfns(self, pfns: Pfns) -> None:
        """Remember which pages the allocation consists of, before they are live. ENOMEM of an index outside of them."""
        self._lo = lo = int(pfns.min())
        self._hi = hi = int(pfns.max()) + 1
        if hi - lo != len(pfns):
            self._pfns = np.sort(pfns)
        if self._index is not None:
            self._enter(self._index)

    def set_run(self, head: int, nr_pages: int) -> None:
        """Remember so for consecutive pages."""
        self._lo = head
        self._hi = head + nr_pages
        if self._index is not None:
            self._enter(self._index)

    def store(self, memory: MemoryManagerApi, pfn: int | Pfns) -> None:
        """Let folios that have become live lead to the zdd, unless an index does already."""
        if self._index is None:
            memory.set_zone_device_data(pfn, self)

    def retire(self, memory: MemoryManagerApi, pfn: int | Pfns) -> None:
        """Mark folios of which the contents have moved: the low bit of zone_device_data, where there is one."""
        if self._index is None:
            memory.set_zone_device_flag(pfn)
        else:
            self._retired.update((pfn,) if isinstance(pfn, int) else pfn.tolist())

    def retired(self, memory: MemoryManagerApi, pfns: Pfns) -> Bools:
        """Tell which folios are marked."""
        if self._index is None:
            return memory.zone_device_flags(pfns)
        return np.fromiter((pfn in self._retired for pfn in pfns.tolist()), np.bool_, len(pfns))

    def split(self, memory: MemoryManagerApi, head: int, tail: int) -> None:
        """Take a reference for a tail that a split makes a folio, and give it the mark of the head."""
        self.kref.get("folio")
        self.store(memory, tail)
        if self.retired(memory, np.array((head,), np.int64))[0]:
            self.retire(memory, tail)

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
        if self._index is not None and self._hi:
            pfns = self._all_pfns()
            self._index.detach(pfns)
            kernel.gauges.dec(MARKS_GAUGE, marks_bytes(len(pfns)))
        devmem.detached.complete_all()
        devmem.release()
        drop_dpagemap(dpagemap)
        if kernel.explored:
            kernel.free(self)

    def _all_pfns(self) -> Pfns:
        return np.arange(self._lo, self._hi, dtype=np.int64) if self._pfns is None else self._pfns

    def _enter(self, index: "PageIndex") -> None:
        pfns = self._all_pfns()
        try:
            index.attach(self, pfns)
        except KernelError:
            self._lo = self._hi = 0
            raise
        self.dpagemap.kernel.gauges.inc(MARKS_GAUGE, marks_bytes(len(pfns)))
