"""Describe the driver svmdev, without building anything."""

from errno import EBADF, EBUSY, EFAULT, EINVAL, EIO, ENOENT, ENOMEM, EOPNOTSUPP, EPERM
from typing import TYPE_CHECKING

from attrs import evolve
from gpusvm.driver import ABI, NEVER, Capabilities, DriverInfo, Errnos, FaultPolicy, Host, Refusals, no, yes

from gpusvm_svmdev.tunables import SvmdevQuirks, SvmdevTunables, refuse

if TYPE_CHECKING:
    from gpusvm.driver import Driver

__all__ = ["INFO"]


def _make(host: Host) -> "Driver":
    from gpusvm_svmdev.device import Svmdev

    return Svmdev(host)


# What range_find_or_insert and get_pages answer; after the last round of a fault their error is the answer.
_ACCESS = Errnos(
    unmapped={ENOENT, EFAULT},
    forbidden={EPERM, EFAULT},
    closed={EINVAL},
    exited={EFAULT},
    killed={EFAULT},
    unplugged=NEVER,
    contended={EBUSY, EOPNOTSUPP},
    failed={ENOMEM, EFAULT, EOPNOTSUPP},
)


def _with_settings(info: DriverInfo, tunables: SvmdevTunables, quirks: SvmdevQuirks) -> DriverInfo:
    found = info.capabilities
    if not tunables.same_owner:
        alone = no("same_owner=0: each device has an owner of its own, and a page on another one is faulted home")
        found = evolve(found, multi_device_p2p=alone)
    if tunables.cached:
        found = evolve(found, pagemap_cache=yes("cached=1: an unused pagemap is kept until the shrinker takes it"))
    if tunables.make_room:
        found = evolve(found, eviction=yes("make_room=1: the oldest allocations make room for a populate"))
    return evolve(info, capabilities=found)


INFO = DriverInfo(
    name="svmdev",
    summary="a device without hardware on the kernel's own drm_gpusvm and drm_pagemap, as its answers were recorded",
    abi=ABI,
    kernel="7.3.4",
    capabilities=Capabilities(
        device_memory=yes("device-private pages, each backed by a page of plain RAM of the driver's own"),
        migrate_on_fault=yes("the range of the fault, 2 MiB, 64 KiB or 4 KiB, all or nothing"),
        explicit_populate=yes("POPULATE, one allocation a block"),
        atomics=yes("the device's accesses are the CPU's own; an atomic is taken for a write, as there is none else"),
        eviction=no("a populate without room is refused; a command brings an allocation home"),
        runtime_pm=no("there is no hardware to put to sleep"),
        multi_device_p2p=yes("among devices with one owner: mapped in place, moved by the source's copy"),
        large_folios=yes("PMD folios both ways, with single pages when RAM has no large one"),
        prefetch=no("nothing is fetched around a fault"),
        mixed_units=yes("where a FAULT command allows it; otherwise a mixture is evicted first"),
        unplug=no("the module stays loaded"),
        drm_gpusvm=yes("one gpusvm for each open file, whose lock protects the ranges"),
        drm_pagemap=yes("one pagemap for each device, whose populate_mm makes one allocation"),
        pagemap_cache=no("the pagemap stays for the life of the device"),
    ),
    tunables=SvmdevTunables,
    quirks=SvmdevQuirks,
    embedding="dev_pagemap and drm_pagemap side by side in the device, found by container_of",
    bo_mapping="the page's index, looked up among the device's allocations: one contiguous allocation a populate",
    pm="none",
    make=_make,
    unload="never",  # svmdev.c has an init function only
    refuse=refuse,
    strategies={"place": FaultPolicy},
    refusals=Refusals(
        access=_ACCESS,
        atomic=_ACCESS,
        # drm_pagemap_populate_mm of a block; that what cannot move stays is no error.
        populate=evolve(
            _ACCESS,
            unmapped={ENOENT},
            forbidden=NEVER,
            closed={EBADF},
            contended=NEVER,
            failed={EFAULT, EIO},
        ),
        ioctl=evolve(
            _ACCESS,
            closed={EBADF, EINVAL},
            contended={EBUSY, EFAULT, ENOENT, EOPNOTSUPP},
            failed={ENOMEM, EBUSY, EFAULT, EIO},
        ),
        reach_block=True,
        read_needs_write=True,
    ),
    with_settings=_with_settings,
)
