"""Describe the driver kfd, without building anything."""

from errno import EACCES, EFAULT, EINVAL, ENODEV, ENOMEM, EPERM
from typing import TYPE_CHECKING

from attrs import evolve
from gpusvm.driver import ABI, NEVER, Capabilities, DriverInfo, Errnos, FaultPolicy, Host, Refusals, no, yes

from gpusvm_kfd.tunables import KfdQuirks, KfdTunables, refuse

if TYPE_CHECKING:
    from gpusvm.driver import Driver

__all__ = ["INFO"]


def _make(host: Host) -> "Driver":
    from gpusvm_kfd.device import KfdDevice

    return KfdDevice(host)


# kfd_svm.c:svm_range_restore_pages; what it answers with EAGAIN the hardware tries again by itself.
_ACCESS = Errnos(
    unmapped={EFAULT},
    forbidden={EPERM, EFAULT, EACCES},
    closed={EINVAL},
    exited={EFAULT},
    killed={EFAULT},
    unplugged=NEVER,
    contended=NEVER,
    failed={ENOMEM, EFAULT},
)


def _with_settings(info: DriverInfo, tunables: KfdTunables, quirks: KfdQuirks) -> DriverInfo:
    found = info.capabilities
    if tunables.access == "in_place":
        found = evolve(found, migrate_on_fault=no("access=in_place: a fault maps the pages where they are"))
    if tunables.preferred_loc == "system":
        home = "preferred_loc=system: a GPU fault brings the granule to system memory"
        found = evolve(found, migrate_on_fault=no(home), mixed_units=no(home))
    if not tunables.runpm:
        found = evolve(found, runtime_pm=no("runpm=off: the device is always awake"))
    if tunables.xnack == "off":
        found = evolve(found, migrate_on_fault=no("xnack=off: there are no faults that are served"))
    return evolve(info, capabilities=found, registered_only=tunables.xnack == "off")


INFO = DriverInfo(
    name="kfd",
    summary="drivers/gpu/drm/amd/amdkfd with retry faults (XNACK): ranges of addresses, one buffer object behind each",
    abi=ABI,
    kernel="7.3.4",
    capabilities=Capabilities(
        device_memory=yes("device-private pages, 4 KiB each, in one buffer object for each range"),
        migrate_on_fault=yes("the granule of the fault, 2 MiB, page by page, as preferred location and access say"),
        explicit_populate=yes("the attribute PREFETCH_LOC, page by page, best effort"),
        atomics=yes("in place, by the bus where the page is in system memory"),
        eviction=yes("the oldest buffer object, by the addresses of its ranges"),
        runtime_pm=yes("a reference for each process on each device, for the life of the process"),
        multi_device_p2p=no(
            "but within a hive (hive=on), where it is mapped in place; memory moves between devices through RAM"
        ),
        large_folios=no("single pages only"),
        prefetch=yes("the attribute PREFETCH_LOC, once for the whole range"),
        mixed_units=yes("system and device pages are mapped in runs"),
        unplug=no("a device that is in use cannot be removed"),
        drm_gpusvm=no("ranges are the process's own, kept in an interval tree of kfd_svm.c"),
        drm_pagemap=no("kfd_migrate.c calls migrate_vma_setup itself"),
        pagemap_cache=no("there is no drm_pagemap to keep"),
    ),
    tunables=KfdTunables,
    quirks=KfdQuirks,
    embedding="inside the device, one for all of its VRAM",
    bo_mapping="zone_device_data is the svm_range_bo, which every page holds a reference of",
    pm="a reference per process and device, from open until the process is gone",
    make=_make,
    refuse=refuse,
    awake_with_pages=True,
    strategies={"place": FaultPolicy},
    refusals=Refusals(
        access=_ACCESS,
        atomic=_ACCESS,
        # svm_range_set_attr: an area has to be everywhere; that nothing could be moved is no error, but that it could
        # not be mapped afterwards is.
        populate=evolve(
            _ACCESS,
            forbidden={EFAULT},
            closed={EINVAL, ENODEV},
            exited={EINVAL, EFAULT},
            contended=NEVER,
            failed={ENOMEM, EFAULT},
        ),
        reach_block=True,
    ),
    with_settings=_with_settings,
)
