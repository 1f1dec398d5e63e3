"""Describe the driver nouveau, without building anything."""

from errno import EFAULT, EINVAL, ENOMEM, EPERM
from typing import TYPE_CHECKING

from attrs import evolve
from gpusvm.driver import (
    ABI,
    NEVER,
    Capabilities,
    DriverInfo,
    Errnos,
    FaultPolicy,
    Host,
    Refusals,
    RuntimePmPolicy,
    no,
    yes,
)
from gpusvm.drm import PageIndex

from gpusvm_nouveau.tunables import NouveauQuirks, NouveauTunables, refuse

if TYPE_CHECKING:
    from gpusvm.driver import Driver

__all__ = ["INFO"]


def _make(host: Host) -> "Driver":
    from gpusvm_nouveau.device import NouveauDevice

    return NouveauDevice(host)


_ACCESS = Errnos(
    unmapped={EFAULT},
    forbidden={EFAULT, EPERM},
    closed={EINVAL},
    exited={EFAULT},
    killed={EFAULT},
    unplugged=NEVER,
    contended=NEVER,
    failed={ENOMEM, EFAULT},
)


def _with_settings(info: DriverInfo, tunables: NouveauTunables, quirks: NouveauQuirks) -> DriverInfo:
    refusals, capabilities = info.refusals, info.capabilities
    if tunables.read_faults == "write":
        refusals = evolve(refusals, read_needs_write=True)
    if not tunables.runpm:
        capabilities = evolve(capabilities, runtime_pm=no("runpm=off: the device is always awake"))
    return evolve(info, refusals=refusals, capabilities=capabilities)


INFO = DriverInfo(
    name="nouveau",
    summary="drivers/gpu/drm/nouveau on Pascal: a fault maps the page where it is, migration is by request",
    abi=ABI,
    kernel="7.3.4",
    capabilities=Capabilities(
        device_memory=yes("device-private pages from pinned 256 MiB chunks, 4 KiB or 2 MiB"),
        migrate_on_fault=no("a fault maps the page where it is"),
        explicit_populate=yes("SVM_BIND with MIGRATE, page by page, best effort"),
        atomics=yes("device-exclusive system pages"),
        eviction=no("the chunks are pinned; without room pages stay in system memory"),
        runtime_pm=yes("a reference for each ioctl, none for pages, faults or copies"),
        multi_device_p2p=no("a page on another GPU is faulted home"),
        large_folios=yes("PMD folios, without falling back to single pages"),
        prefetch=no("only prefetch faults of the hardware, which map what is present"),
        mixed_units=yes("every page is mapped by itself"),
        unplug=no("only the driver's end evacuates the chunks"),
        drm_gpusvm=no("faults are mapped page by page, under an interval notifier for as long as that takes"),
        drm_pagemap=no("nouveau_dmem.c calls migrate_vma_setup itself"),
        pagemap_cache=no("there is no drm_pagemap to keep"),
    ),
    tunables=NouveauTunables,
    quirks=NouveauQuirks,
    embedding="inside a 256 MiB chunk, found by container_of from page_pgmap",
    bo_mapping="one pinned buffer object per chunk, found through the pagemap; zone_device_data is the svmm",
    pm="a reference per ioctl; pages hold none, so the device may suspend under them",
    make=_make,
    refuse=refuse,
    strategies={"pm": RuntimePmPolicy, "page_to_bo": PageIndex, "place": FaultPolicy},
    # nouveau_svm.c:nouveau_svm_fault, nouveau_range_fault, nouveau_atomic_range_fault, nouveau_svmm_bind. A fault that
    # ends with any of these is cancelled.
    refusals=Refusals(
        access=_ACCESS,
        # Every error of make_device_exclusive becomes EINVAL.
        atomic=evolve(_ACCESS, unmapped={EINVAL}, forbidden={EINVAL}, killed={EINVAL}, failed={EINVAL, ENOMEM, EFAULT}),
        # Whatever could not be migrated, the ioctl succeeds.
        populate=Errnos(
            unmapped=NEVER,
            forbidden=NEVER,
            closed={EINVAL},
            exited={EINVAL},
            killed=NEVER,
            unplugged=NEVER,
            contended=NEVER,
            failed=NEVER,
        ),
        reach_block=False,
    ),
    with_settings=_with_settings,
)
