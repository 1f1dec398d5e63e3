"""drivers/gpu/drm/xe/xe_device_types.h:struct xe_tile, as of Linux 7.3.4: a part of the GPU with VRAM and engines of
its own.

Tiles share the device: its runtime PM, its fault queues, its domain of eviction. What a tile has for itself is its
VRAM, the pagemap over that, the blitter that moves pages, and one or two GTs.
"""

from typing import TYPE_CHECKING

from gpusvm.drm import DrmPagemap, PagemapCache, PagemapShrinker
from gpusvm.gpu import CopyEngine

from gpusvm_xe.bo import XeVram
from gpusvm_xe.gt import XeGt
from gpusvm_xe.pagemap import XePagemap

if TYPE_CHECKING:
    from gpusvm.driver import Host

    from gpusvm_xe.driver import XeDriver

__all__ = ["XeTile"]


class XeTile:
    """Hold one tile; `bit` is its place in the masks of a range."""

    def __init__(self, driver: "XeDriver", host: "Host", index: int) -> None:
        self.driver = driver
        self.index = index
        self.bit = 1 << index
        name = host.device.name if index == 0 else f"{host.device.name} tile{index}"
        self.engine = CopyEngine(host.kernel, host.link, shape="gather", name=f"{name} migrate")
        self.vram: XeVram = XeVram(
            host, self.engine, validation=driver.validation, index=index, power=driver.power, pm=driver.pm
        )
        self.cache: PagemapCache | None = None
        tunables = host.tunables
        per_tile = 2 if tunables.media_gt else 1
        # What computes, and so faults, is the first.
        first = index * per_tile
        self.gts = [
            XeGt(
                host.kernel,
                host.device.name,
                first + each,
                driver.power,
                tlb_min=tunables.tlb_min,
                tlb_timeout_ms=tunables.tlb_timeout_ms,
            )
            for each in range(per_tile)
        ]
        self.stats = self.gts[0].stats

    def create_cache(self, shrinker: PagemapShrinker) -> None:
        """Prepare for pagemaps over the tile's VRAM (xe_pagemap_cache_create)."""
        self.cache = PagemapCache(shrinker)
        self.driver.device.devm_add_action(self.cache.fini)

    def find_or_create_pagemap(self, holder: object) -> DrmPagemap:
        """Return the pagemap of the tile's VRAM with a reference: that in use, or the cached one, or a new one
        (xe_pagemap_find_or_create).
        """
        cache = self.cache
        assert cache is not None
        with cache.lookup():
            dpagemap = cache.get(holder)
            if dpagemap is None:
                dpagemap = XePagemap(self, holder).dpagemap
                cache.set_pagemap(dpagemap)
            return dpagemap

    @property
    def dpagemap(self) -> DrmPagemap | None:
        """Return the active pagemap of the tile's VRAM without a reference (xe_tile_local_pagemap): a VM holds one.
        None without VRAM, and while no VM is open and no page in use.
        """
        cache = self.cache
        dpagemap = None if cache is None else cache.dpagemap
        return dpagemap if dpagemap is not None and dpagemap.refcount else None
