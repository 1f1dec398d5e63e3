"""What drivers share above the mm: GpuSvm, DrmPagemap, device memory, runtime PM, DMA mapping, buffer objects."""

from gpusvm.drm.addr import (
    DMA_BIDIRECTIONAL,
    DMA_FROM_DEVICE,
    DMA_TO_DEVICE,
    DRM_INTERCONNECT_DRIVER,
    DRM_INTERCONNECT_SYSTEM,
    PagemapAddrs,
    constant_u8,
    copy_contents,
    expand,
)
from gpusvm.drm.bo import Bo, BoManager
from gpusvm.drm.buddy import Buddy
from gpusvm.drm.device import DrmDevice
from gpusvm.drm.devmem import Devmem, DevmemOps, MigrateDetails
from gpusvm.drm.dma import DmaDevice, IovaState
from gpusvm.drm.evict import evict_to_ram
from gpusvm.drm.fence import Fence
from gpusvm.drm.gpusvm import GpuSvm, GpuSvmCtx, GpuSvmOps
from gpusvm.drm.migrate import migrate_to_devmem
from gpusvm.drm.notifier import GpuSvmNotifier
from gpusvm.drm.owner import Owner, OwnerList, Peer
from gpusvm.drm.page_index import (
    INTERVAL_NODE_BYTES,
    XA_NODE_BYTES,
    AllPfns,
    IndexCosts,
    OffsetMap,
    PageIndex,
    XArray,
    page_index,
)
from gpusvm.drm.pagemap import DrmPagemap, PagemapDevOps, PagemapOps, page_to_dpagemap
from gpusvm.drm.pagemap_cache import PagemapCache, PagemapShrinker
from gpusvm.drm.pages import GpuSvmPages
from gpusvm.drm.quirks import DrmQuirks
from gpusvm.drm.range import GpuSvmRange
from gpusvm.drm.runtime_pm import D0, D3COLD, D3HOT, Awake, Inner, PmCallbacks, PmHeld, PmReference, RuntimePm
from gpusvm.drm.scan import (
    SCAN_EQUAL,
    SCAN_MIXED,
    SCAN_MIXED_DEVICE,
    SCAN_OTHER,
    SCAN_SYSTEM,
    SCAN_UNPOPULATED,
)
from gpusvm.drm.zdd import Zdd, page_zdd

__all__ = [
    "D0",
    "D3COLD",
    "D3HOT",
    "DMA_BIDIRECTIONAL",
    "DMA_FROM_DEVICE",
    "DMA_TO_DEVICE",
    "DRM_INTERCONNECT_DRIVER",
    "DRM_INTERCONNECT_SYSTEM",
    "INTERVAL_NODE_BYTES",
    "SCAN_EQUAL",
    "SCAN_MIXED",
    "SCAN_MIXED_DEVICE",
    "SCAN_OTHER",
    "SCAN_SYSTEM",
    "SCAN_UNPOPULATED",
    "XA_NODE_BYTES",
    "AllPfns",
    "Awake",
    "Bo",
    "BoManager",
    "Buddy",
    "Devmem",
    "DevmemOps",
    "DmaDevice",
    "DrmDevice",
    "DrmPagemap",
    "DrmQuirks",
    "Fence",
    "GpuSvm",
    "GpuSvmCtx",
    "GpuSvmNotifier",
    "GpuSvmOps",
    "GpuSvmPages",
    "GpuSvmRange",
    "IndexCosts",
    "Inner",
    "IovaState",
    "MigrateDetails",
    "OffsetMap",
    "Owner",
    "OwnerList",
    "PageIndex",
    "PagemapAddrs",
    "PagemapCache",
    "PagemapDevOps",
    "PagemapOps",
    "PagemapShrinker",
    "Peer",
    "PmCallbacks",
    "PmHeld",
    "PmReference",
    "RuntimePm",
    "XArray",
    "Zdd",
    "constant_u8",
    "copy_contents",
    "evict_to_ram",
    "expand",
    "migrate_to_devmem",
    "page_index",
    "page_to_dpagemap",
    "page_zdd",
]
