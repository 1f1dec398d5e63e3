"""What xe declares: Intel's driver for Xe GPUs, the only user of drm_gpusvm and drm_pagemap in Linux 7.3.4."""

from errno import EBUSY, EFAULT, EINVAL, ENODEV, ENOENT, ENOMEM, EOPNOTSUPP, EPERM
from typing import TYPE_CHECKING

from gpusvm.driver import (
    NEVER,
    Capabilities,
    DriverInfo,
    DrmEmbedding,
    Errnos,
    FaultPolicy,
    Host,
    Refusals,
    RuntimePmPolicy,
    no,
    yes,
)
from gpusvm.driver.operations import OperationTarget
from gpusvm.drm import PageIndex
from gpusvm.plugins import hookimpl

from gpusvm_xe.tunables import XeQuirks, XeTunables, refuse

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
    # xe_pagefault.c:xe_pagefault_service, xe_svm.c:__xe_svm_handle_pagefault. A read or write is tried again for as
    # long as mappings change under it, and is served from system memory where the device's cannot be had.
    refusals=Refusals(
        access=Errnos(
            unmapped={ENOENT},
            forbidden={EPERM},
            closed={ENOENT, EINVAL},
            exited={EFAULT},
            killed={EFAULT},
            unplugged=NEVER,
            contended=NEVER,
            failed={ENOMEM},
        ),
        # An atomic needs VRAM, and after the last try the error of migration or get_pages is the answer.
        atomic=Errnos(
            unmapped={ENOENT, EINVAL, EFAULT},
            forbidden={EPERM, EFAULT},
            closed={ENOENT, EINVAL},
            exited={EFAULT},
            killed={EFAULT},
            unplugged={ENODEV},
            contended={EBUSY, ENOMEM, EFAULT, EOPNOTSUPP},
            # A CPU cannot take the pages away between the migration and its use: it has to wait for the timeslice.
            touched={EBUSY, ENOMEM, EOPNOTSUPP},
            failed={ENOMEM, EBUSY, EFAULT},
        ),
        # What cannot be brought is no error (ENODATA is kept from the program).
        populate=Errnos(
            unmapped=NEVER,
            forbidden={EPERM},
            closed={ENOENT},
            exited={EFAULT},
            killed=NEVER,
            unplugged={ENODEV},
            contended=NEVER,
            failed={ENOMEM},
        ),
        reach_block=True,
        read_needs_write=True,
    ),
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
