"""Describe the driver dmirror, without building anything."""

from errno import EBADF, EFAULT, EINVAL, ENOENT, ENOMEM, EPERM
from typing import TYPE_CHECKING

from attrs import evolve
from gpusvm.driver import ABI, NEVER, Capabilities, DriverInfo, Errnos, FaultPolicy, Host, Refusals, no, yes

from gpusvm_dmirror.tunables import DmirrorQuirks, DmirrorTunables, refuse

if TYPE_CHECKING:
    from gpusvm.driver import Driver

__all__ = ["INFO"]


# Of the module's four devices, the last two, if there is memory for them.
_COHERENT = 2


def _make(host: Host) -> "Driver":
    from gpusvm.driver import chunk_pages

    from gpusvm_dmirror.device import DmirrorDevice

    if host.tunables.spm == "none" or host.device.index < _COHERENT:
        return DmirrorDevice(host)
    pages = chunk_pages(host.tunables.chunk_bytes, host.memory.geometry)
    return DmirrorDevice(host, spm=host.memory.request_free_mem_region(pages))


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

INFO = DriverInfo(
    name="dmirror",
    summary="lib/test_hmm.c, the kernel's own test device for HMM: memory is mapped in place, migration is by request",
    abi=ABI,
    kernel="7.3.4",
    capabilities=Capabilities(
        device_memory=yes("device-private pages, each with a page of system memory behind it"),
        migrate_on_fault=no("a fault maps the pages where they are"),
        explicit_populate=yes("MIGRATE_TO_DEV, page by page"),
        atomics=yes("device-exclusive system pages"),
        eviction=no("memory is unlimited; closing any file evicts the whole device"),
        runtime_pm=no("there is no hardware to put to sleep"),
        multi_device_p2p=no("a page on another device is faulted home"),
        large_folios=yes("PMD folios, falling back to single pages in both directions"),
        prefetch=no("only the 32-page fault window reaches ahead"),
        mixed_units=yes("every page of a window is mapped by itself"),
        unplug=no("RELEASE gives all chunks back, but the device stays"),
        drm_gpusvm=no("the pages of a process are mirrored one by one, under one interval notifier"),
        drm_pagemap=no("test_hmm.c calls migrate_vma_setup itself"),
        pagemap_cache=no("there is no drm_pagemap to keep"),
    ),
    tunables=DmirrorTunables,
    quirks=DmirrorQuirks,
    embedding="inside a 256 MiB chunk, found by container_of from page_pgmap",
    bo_mapping="none: page_pgmap leads to the chunk, zone_device_data to the system page that holds the data",
    pm="none",
    make=_make,
    unload="first_first",  # hmm_dmirror_exit
    refuse=refuse,
    strategies={"place": FaultPolicy},
    # test_hmm.c:dmirror_fault, dmirror_exclusive, dmirror_migrate_to_device. A fault looks a window of pages ahead.
    refusals=Refusals(
        access=_ACCESS,
        atomic=evolve(_ACCESS, forbidden={EFAULT}),
        populate=evolve(_ACCESS, unmapped={EINVAL}, forbidden={EINVAL}, exited={EINVAL}, killed=NEVER, failed={ENOMEM}),
        # A page that is not in the mirror table when the data is read back is ENOENT.
        ioctl=evolve(_ACCESS, contended={ENOENT}, failed={ENOENT, ENOMEM}, closed={EBADF}),
        reach_block=False,
        reach_ahead_pages=32,
    ),
)
