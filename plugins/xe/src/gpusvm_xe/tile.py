"""drivers/gpu/drm/xe/xe_device_types.h:struct xe_tile, as of Linux 7.3.4: a part of the GPU with VRAM and engines of
its own.

Tiles share the device: its runtime PM, its fault queues, its domain of eviction. What a tile has for itself is its
VRAM, the pagemap over that, and the blitter that moves pages.
"""

from typing import TYPE_CHECKING

from gpusvm.gpu import CopyEngine

from gpusvm_xe.bo import XeVram
from gpusvm_xe.pagemap import XePagemap

if TYPE_CHECKING:
    from gpusvm.driver import Host
    from gpusvm.drm import DrmPagemap

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
            host, self.engine, validation=driver.validation, mapping=driver.bo_mapping, index=index
        )
        self.xpagemap: XePagemap | None = None

    def find_or_create_pagemap(self) -> XePagemap:
        """Return the tile's pagemap, made when it is first needed and cached (xe_pagemap_find_or_create)."""
        if self.xpagemap is None:
            self.xpagemap = XePagemap(self)
        return self.xpagemap

    @property
    def dpagemap(self) -> "DrmPagemap | None":
        """Return the drm_pagemap of the tile's VRAM (xe_tile_local_pagemap); None before it is made, and without
        VRAM.
        """
        return None if self.xpagemap is None else self.xpagemap.dpagemap
