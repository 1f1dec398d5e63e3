"""What of svmdev can be set: the parameters of the recorded module, and the places where 7.3 as written surprises."""

from typing import Final

from attrs import frozen
from gpusvm.driver import Variant, quirk, tunable

__all__ = ["SvmdevQuirks", "SvmdevTunables", "refuse"]

_K: Final = 1 << 10
_M: Final = 1 << 20


@frozen(kw_only=True)
class SvmdevTunables:
    """Set how svmdev is loaded; the defaults are those of the module that was recorded, unless it says otherwise."""

    same_owner: int = tunable(
        1,
        "1: all svmdev devices of a machine own their pages together, so that one maps and moves those of another; "
        "0: each its own",
        unit="count",
        minimum=0,
        maximum=1,
        cite="dev_pagemap.owner; the module's parameter same_owner",
    )
    notifier_size: int = tunable(
        512 * _M,
        "Size of the address space under one interval notifier",
        unit="bytes",
        minimum=4 * _K,
        power_of_two=True,
        cite="drm_gpusvm.c:drm_gpusvm_init; the module's parameter notifier_size",
    )
    device_pages: int = tunable(
        0,
        "Pages of device memory; 0: as much as the machine's device has VRAM (the module had 4096)",
        unit="pages",
        minimum=0,
        cite="the module's parameter devpages",
    )
    can_migrate_same_pagemap: int = tunable(
        0,
        "1: pages that are in the device's memory already move into the new allocation of a populate; 0: it is refused",
        unit="count",
        minimum=0,
        maximum=1,
        cite="drm_pagemap.h:struct drm_pagemap_migrate_details; the module's parameter same_pagemap",
    )
    chunk_sizes: tuple[int, ...] = tunable(
        (2 * _M, 64 * _K, 4 * _K),
        "Sizes of a range, largest first",
        unit="bytes",
        minimum=4 * _K,
        power_of_two=True,
        descending=True,
        cite="drm_gpusvm.c:drm_gpusvm_range_chunk_size",
    )
    make_room: int = tunable(
        0,
        "1: a populate that finds no room has the oldest allocations of the device go home; 0: ENOMEM",
        unit="count",
        minimum=0,
        maximum=1,
        cite="drm_pagemap.h:struct drm_pagemap_ops.populate_mm; the module's parameter make_room",
    )
    cached: int = tunable(
        0,
        "1: the device's drm_pagemap is made when it is wanted, and kept in a cache that a shrinker empties; 0: there "
        "is one as long as the device",
        unit="count",
        minimum=0,
        maximum=1,
        cite="drm_pagemap_util.c:drm_pagemap_cache_create_devm; the module's parameter cached",
    )
    coherent: int = tunable(
        0,
        "1: the CPU reaches the devices' memory too (MEMORY_DEVICE_COHERENT); 0: it is device-private",
        unit="count",
        minimum=0,
        maximum=1,
        cite="memremap.h:enum memory_type; the module's parameter coherent",
    )
    one_log: int = tunable(
        0,
        "1: recorded operations give the events of all files in one row, as they came; 0: one file's after the other's",
        unit="count",
        minimum=0,
        maximum=1,
        cite="the module's parameter one_log",
    )
    fault_rounds: int = tunable(
        3,
        "Rounds of a fault before the error of get_pages is its answer",
        unit="count",
        minimum=1,
        cite="the loop that drm_gpusvm.c documents for a fault handler; three rounds in the module",
    )


@frozen(kw_only=True)
class SvmdevQuirks:
    """Choose between the helpers as written and as a reviewer would want them; the driver itself has no quirk."""

    hole_count: Variant = quirk(
        "Populating a PMD in which nothing is mapped answers EBUSY although the migration is done: the count of what "
        "moved takes a compound hole for one page",
        cite="drm_pagemap.c:drm_pagemap_migrate_to_devmem; recorded on 7.3.4",
    )
    coherent_unmap: Variant = quirk(
        "With coherent=1, pages of one device that move to another are mapped as system memory for the copy, and "
        "unmapped as a device's: what was mapped for DMA stays, and the device is told of what it never mapped",
        cite="drm_pagemap.c:drm_pagemap_migrate_map_system_pages, drm_pagemap_migrate_unmap_pages; recorded on 7.3.4",
    )
    stale_cache: Variant = quirk(
        "With cached=1, the cache of pagemaps goes on pointing to one that was destroyed because the device was "
        "unplugged: whoever looks it up waits for ever",
        cite="drm_pagemap_util.c:drm_pagemap_shrinker_add; recorded on 7.3.4",
    )


def refuse(tunables: SvmdevTunables, quirks: SvmdevQuirks) -> list[str]:
    """Name the combinations that cannot work: svmdev has none. A chunk that exceeds a notifier is never used."""
    return []
