"""What xe declares: Intel's driver for Xe GPUs, the only user of drm_gpusvm and drm_pagemap in Linux 7.3.4."""

from typing import TYPE_CHECKING

from gpusvm.driver import Capabilities, DriverInfo, DrmEmbedding, FaultPolicy, Host, RuntimePmPolicy, no, yes
from gpusvm.driver.operations import OperationTarget
from gpusvm.drm import PageIndex
from gpusvm.plugins import hookimpl

from gpusvm_xe.quirks import XeQuirks
from gpusvm_xe.refusals import REFUSALS, with_settings
from gpusvm_xe.tunables import XeTunables, refuse

if TYPE_CHECKING:
    from gpusvm.driver import Driver

__all__ = ["INFO", "gpusvm_drivers", "gpusvm_operations"]


def _make(host: Host) -> "Driver":
    from gpusvm_xe.driver import XeDriver

    return XeDriver(host)


INFO = DriverInfo(
    name="xe",
    summary="Intel Xe: a GPU fault migrates its range to VRAM, one buffer object per range",
    abi=(1, 0),
    kernel="7.3.4",
    capabilities=Capabilities(
        device_memory=yes("all VRAM of the tile as MEMORY_DEVICE_PRIVATE pages"),
        migrate_on_fault=yes("the range of the fault, 2 MiB, 64 KiB or 4 KiB, all or nothing"),
        explicit_populate=yes("the prefetch operation of VM_BIND, range by range"),
        atomics=yes("in VRAM; the range is brought there and held against the CPU for 5 ms, doubling"),
        eviction=yes("oldest buffer object first, by physical pages, without the mmap lock"),
        runtime_pm=yes("a reference per buffer object until its last page is gone, and one per VM"),
        multi_device_p2p=yes("among xe devices with a path between them: mapped in place, copied directly"),
        large_folios=yes("PMD folios both ways, with single pages when RAM has no large one"),
        prefetch=yes("by VM_BIND only; nothing is fetched around a fault"),
        mixed_units=no("a range is all in RAM or all in one allocation; a mixture is evicted first"),
        unplug=yes("VRAM is evacuated; populate then answers ENODEV and faults map system memory"),
        drm_gpusvm=yes("one gpusvm for each VM, whose lock protects the ranges"),
        drm_pagemap=yes("one pagemap for each tile, whose populate_mm makes one buffer object for each range"),
        pagemap_cache=yes("one cache for each tile; the shrinker of the device destroys what nobody uses"),
    ),
    tunables=XeTunables,
    quirks=XeQuirks,
    embedding="dev_pagemap and drm_pagemap side by side in xe_pagemap, one per tile, covering all VRAM",
    bo_mapping="page -> zone_device_data -> zdd -> devmem -> bo: one contiguous bo per migrated range",
    pm="one reference per bo until its last page is gone, one per VM, one per call that needs the device awake",
    make=_make,
    tiles_max=2,
    integrated=True,
    awake_with_pages=True,
    refuse=refuse,
    strategies={
        "pm": RuntimePmPolicy,
        "embedding": DrmEmbedding,
        "page_to_bo": PageIndex,
        "place": FaultPolicy,
    },
    refusals=REFUSALS,
    with_settings=with_settings,
)


@hookimpl
def gpusvm_drivers() -> DriverInfo:
    """Offer the driver."""
    return INFO


@hookimpl
def gpusvm_operations() -> OperationTarget:
    """Offer xe's own ioctls."""
    from gpusvm_xe.operations import OPERATIONS

    return OPERATIONS
