"""Bugs of drivers/gpu/drm/drm_pagemap.c."""

from typing import Any, Final

import numpy as np

from gpusvm.conformance.mutants.mutant import Mutant, Swap, gone, instead
from gpusvm.mm.api import (
    MIGRATE_VMA_SELECT_COMPOUND,
    MIGRATE_VMA_SELECT_DEVICE_COHERENT,
    MIGRATE_VMA_SELECT_SYSTEM,
)

__all__ = ["PAGEMAP"]


def _give_back_first(ram: Any, mapping: Any) -> None:
    # The unmap loop looks each page up in dst, where there is none any more.
    memory = ram._memory
    memory.folios_unlock(ram.ram_pfns)
    memory.folios_put(ram.ram_pfns)
    ram._dst[:] = 0
    if mapping is not None and ram._dst.any():
        mapping.unmap()


def _give_all_back(migration: Any, dst: Any) -> None:
    memory = migration._memory
    memory.folios_unlock(dst)
    memory.folios_put(dst)


def _leave_driver_pfns(migration: Any) -> None:
    args, live = migration._args, migration._live
    args.dst[:] = 0
    if live >= 0:
        devmem = migration._devmem
        args.dst[live:] = devmem.ops.populate_devmem_pfn(devmem, migration._npages)[live:].astype(np.uint64)


def _release_the_device_first(dpagemap: Any) -> None:
    dpagemap._dev_hold._put()
    if dpagemap.cache is None:
        dpagemap.destroy(in_atomic=True)
    else:
        dpagemap.cache.shrinker.add(dpagemap)


PAGEMAP: Final = (
    Mutant(
        id="DP-01",
        title="A device page is copied to RAM twice, over what has been written there since",
        where="drm_pagemap.c:drm_pagemap_evict_to_ram",
        fix="c4126f1db36e, 7.3-rc1",
        evidence="T+V",
        importance="S",
        oracle=("I-DATA",),
        scope="drm",
        drivers=("xe",),
        swaps=(
            Swap("gpusvm.drm.evict:skip_retired_pages", gone),
            Swap("gpusvm.drm.cpu_fault:skip_retired_pages", gone),
        ),
    ),
    Mutant(
        id="DP-02",
        title="After a failed copy pages are freed before they are unmapped for DMA",
        where="drm_pagemap.c:drm_pagemap_evict_to_ram",
        fix="9e6372ec2a39, 7.3-rc; CVE-2026-93284",
        evidence="T+V",
        importance="S",
        oracle=("I-DMA", "I-LIFE"),
        scope="drm",
        drivers=("xe",),
        swaps=(Swap("gpusvm.drm.ram:RamPages._give_back", instead(_give_back_first)),),
        needs_failure=True,
    ),
    Mutant(
        id="DP-03",
        title="The unwinding of migrate_to_devmem unlocks pages that it never locked",
        where="drm_pagemap.c:drm_pagemap_migrate_to_devmem",
        fix="3902846af36b, 7.0",
        evidence="C",
        importance="S",
        oracle=("I-LOCK", "I-REF"),
        scope="drm",
        drivers=("xe",),
        swaps=(Swap("gpusvm.drm.migrate:_Migration._give_back", instead(_give_all_back)),),
        needs_failure=True,
    ),
    Mutant(
        id="DP-04",
        title="Pfns of the driver stay in dst and are taken for destinations",
        where="drm_pagemap.c:drm_pagemap_migrate_to_devmem",
        fix="1f1be4ba643f",
        evidence="T+V",
        importance="S",
        oracle=("I-DATA", "I-LIFE"),
        scope="drm",
        drivers=("xe",),
        swaps=(Swap("gpusvm.drm.migrate:_Migration._forget_destinations", instead(_leave_driver_pfns)),),
        needs_failure=True,
    ),
    Mutant(
        id="DP-06",
        title="Fresh device memory is filled before its clear, or the move of who had it before, is over",
        where="drm_pagemap.c:drm_pagemap_migrate_sys_to_dev",
        fix="16b5ad319524 and 754c23238438, 6.18",
        evidence="C",
        importance="S",
        oracle=("I-DATA",),
        scope="drm",
        drivers=("xe",),
        swaps=(Swap("gpusvm.drm.migrate:pre_migrate_fence", gone),),
    ),
    Mutant(
        id="DP-10",
        title="The device of a pagemap goes, and its module, while others have the pagemap",
        where="drm_pagemap.c:drm_pagemap_init",
        fix="a26084328ac4, 7.0",
        evidence="T+V",
        importance="S",
        oracle=("I-LIFE",),
        scope="drm",
        drivers=("xe",),
        swaps=(
            Swap("gpusvm.drm.pagemap:_DevHold._get", gone),
            Swap("gpusvm.drm.pagemap:_DevHold._put", gone),
        ),
    ),
    Mutant(
        id="DP-10b",
        title="The last reference of a pagemap takes the device along before the driver has destroyed the pagemap",
        where="drm_pagemap.c:drm_pagemap_release",
        fix="a26084328ac4, 7.0",
        evidence="T+V",
        importance="S",
        oracle=("I-LIFE",),
        scope="drm",
        drivers=("xe",),
        swaps=(Swap("gpusvm.drm.pagemap:DrmPagemap._release", instead(_release_the_device_first)),),
    ),
    Mutant(
        id="DP-11",
        title="Device pages lead to a pagemap that nobody holds for them",
        where="drm_pagemap.c:drm_pagemap_zdd_alloc",
        fix="565477dbca6e and a599b98607de",
        evidence="T",
        importance="A",
        oracle=("I-REF", "I-LIFE"),
        scope="drm",
        drivers=("xe",),
        swaps=(Swap("gpusvm.drm.zdd:hold_dpagemap", gone), Swap("gpusvm.drm.zdd:drop_dpagemap", gone)),
    ),
    Mutant(
        id="DP-14",
        title="Memory of other devices is never selected as a source",
        where="drm_pagemap.c:drm_pagemap_migrate_to_devmem",
        fix="ec265e1f1cfc, a part of it",
        evidence="T",
        importance="A",
        oracle=("I-RES",),
        scope="drm",
        drivers=("xe",),
        swaps=(
            Swap(
                "gpusvm.drm.migrate:_SOURCES",
                lambda _: MIGRATE_VMA_SELECT_SYSTEM | MIGRATE_VMA_SELECT_DEVICE_COHERENT | MIGRATE_VMA_SELECT_COMPOUND,
            ),
        ),
    ),
)
