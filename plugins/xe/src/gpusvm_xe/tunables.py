"""What of xe can be set, and what of that does not go together."""

from typing import TYPE_CHECKING

from attrs import frozen
from gpusvm.driver import embedding_problems, format_size, tunable

if TYPE_CHECKING:
    from gpusvm_xe.quirks import XeQuirks

__all__ = ["XeTunables", "refuse"]

_K = 1 << 10
_M = 1 << 20


@frozen(kw_only=True)
class XeTunables:
    """Set how xe serves faults and keeps memory; the defaults are those of Linux 7.3.4."""

    chunk_sizes: tuple[int, ...] = tunable(
        (2 * _M, 64 * _K, 4 * _K),
        "Sizes that a range may have, tried from the largest; one page where none of them fits",
        unit="bytes",
        minimum=4 * _K,
        maximum=2 * _M,
        power_of_two=True,
        descending=True,
        cite="xe_svm.c:fault_chunk_sizes",
    )
    notifier_size: int = tunable(
        512 * _M,
        "Width of the window that one interval notifier covers",
        unit="bytes",
        minimum=4 * _K,
        power_of_two=True,
        cite="xe_module.c:svm_notifier_size",
    )
    check_pages_threshold: int = tunable(
        64 * _K,
        "A chunk up to this size is only used if the CPU has all its pages present",
        unit="bytes",
        minimum=0,
        cite="xe_svm.c:__xe_svm_handle_pagefault",
    )
    queues: int = tunable(
        4,
        "Fault queues, and workers serving them; an address space uses the queue asid % queues",
        unit="count",
        minimum=1,
        maximum=64,
        cite="xe_device_types.h:XE_PAGEFAULT_QUEUE_COUNT",
    )
    eus: int = tunable(
        160,
        "Execution units of the device: a fault queue has room for eight faults of each, and of each of 27 engines",
        unit="count",
        minimum=1,
        maximum=4096,
        cite="xe_pagefault.c:xe_pagefault_queue_init; 160 are those of a Battlemage G21",
    )
    slice_ms: int = tunable(
        20,
        "How long a fault worker goes on before it lets others run; 0 for no limit",
        unit="ms",
        minimum=0,
        cite="xe_pagefault.c",
    )
    timeslice_ms: int = tunable(
        5,
        "How long memory that came for an atomic stays against CPU faults; doubles with every attempt",
        unit="ms",
        minimum=0,
        cite="xe_device.c:atomic_svm_timeslice_ms",
    )
    timeslice_growth: int = tunable(
        2,
        "By what that time is multiplied after every attempt",
        unit="count",
        minimum=1,
        maximum=16,
        cite="xe_svm.c:__xe_svm_handle_pagefault",
    )
    migrate_after: int = tunable(
        1,
        "Faults that a range takes before it migrates; atomics do not wait",
        unit="count",
        minimum=1,
        cite="xe_svm.c:xe_svm_range_needs_migrate_to_vram: at the first",
    )
    tries: int = tunable(
        1,
        "Attempts to migrate for one fault, before the memory is mapped where it is",
        unit="count",
        minimum=0,
        cite="xe_svm.c:__xe_svm_handle_pagefault",
    )
    atomic_tries: int = tunable(
        3,
        "Attempts to migrate for one atomic fault, before it is refused",
        unit="count",
        minimum=1,
        cite="xe_svm.c:__xe_svm_handle_pagefault",
    )
    fallback: str = tunable(
        "system",
        "What becomes of a fault whose last attempt to migrate failed: what it wants is mapped where it is, or refused",
        unit="choice",
        choices=("system", "nack"),
        cite="xe_svm.c:__xe_svm_handle_pagefault",
    )
    device_atomics_on_smem: int = tunable(
        1,
        "Whether the device can do atomics on system memory, where madvise gives them to it; 0 on PVC",
        unit="count",
        minimum=0,
        maximum=1,
        cite="xe_pci.c; xe_vm.c:xe_vma_need_vram_for_atomic",
    )
    populate_attempts: int = tunable(
        2,
        "Populates in one attempt; before each but the first the range is evicted to RAM",
        unit="count",
        minimum=1,
        cite="xe_svm.c:xe_svm_alloc_vram",
    )
    evict_attempts: int = tunable(
        3,
        "Rounds of moving an allocation's pages home before eviction answers EBUSY",
        unit="count",
        minimum=1,
        cite="drm_pagemap.c:drm_pagemap_evict_to_ram",
    )
    migrate_lock: str = tunable(
        "global",
        "Who waits while a range is evicted to be populated once more: migrations of all devices, of this one, or none",
        unit="choice",
        choices=("global", "device", "none"),
        cite="xe_svm.c:xe_svm_alloc_vram, driver_migrate_lock",
    )
    same_pagemap: bool = tunable(
        default=False,
        doc="What of a range is in the tile's VRAM already moves to its new allocation; else the range goes home first",
        unit="flag",
        cite="xe_svm.c:xe_drm_pagemap_populate_mm; drm_pagemap.h:struct drm_pagemap_migrate_details",
    )
    allow_mixed: bool = tunable(
        default=False,
        doc="A range may be mapped partly in VRAM, partly in system memory, but for atomics; else it goes home first",
        unit="flag",
        cite="drm_gpusvm.h:struct drm_gpusvm_ctx",
    )
    evict_order: str = tunable(
        "fifo",
        "Which allocation makes room: the oldest, that which a fault mapped the longest ago, or none, VRAM stays full",
        unit="choice",
        choices=("fifo", "lru", "none"),
        cite="ttm_bo.c:ttm_bo_alloc_resource; SVM's objects are never bumped",
    )
    order_fallback: bool = tunable(
        default=True,
        doc="A 2 MiB folio that comes home takes single pages where RAM has no large one; else the CPU gets SIGBUS",
        unit="flag",
        cite="drm_pagemap.c:drm_pagemap_migrate_populate_ram_pfn",
    )
    clear: str = tunable(
        "async",
        "Whether migrating into new VRAM begins while that is still being cleared: the copy waits, or populate does",
        unit="choice",
        choices=("async", "sync"),
        cite="xe_svm.c:xe_drm_pagemap_populate_mm, pre_migrate_fence",
    )
    owner: str = tunable(
        "clique",
        "Who may map the VRAM where it is: xe devices with a path to it, or its device alone",
        unit="choice",
        choices=("clique", "device"),
        cite="drm_pagemap_util.c:drm_pagemap_acquire_owner; xe_svm.c:xe_has_interconnect",
    )
    tlb_min: int = tunable(
        16 * _M,
        "The least that is invalidated in the TLB where it is more than 1 MiB",
        unit="bytes",
        minimum=2 * _M,
        power_of_two=True,
        cite="xe_guc_tlb_inval.c:normalize_invalidation_range",
    )
    tlb_timeout_ms: int = tunable(
        250,
        "How long an invalidation is waited for, besides the two seconds that a full queue of commands takes",
        unit="ms",
        minimum=1,
        cite="xe_guc_tlb_inval.c:tlb_inval_timeout_delay",
    )
    copy_chunk: int = tunable(
        8 * _M,
        "Largest piece of one copy command",
        unit="bytes",
        minimum=4 * _K,
        power_of_two=True,
        cite="xe_svm.c:xe_svm_copy",
    )
    media_gt: bool = tunable(
        True,
        "A tile has a second GT, for media, whose TLB is invalidated as well",
        unit="flag",
        cite="xe_pci.c: max_gt_per_tile is 2 on Battlemage, 1 on Ponte Vecchio",
    )
    need_64k: bool = tunable(
        False,
        "VRAM is mapped in pages of 64 KiB at least: smaller ranges stay in RAM",
        unit="flag",
        cite="xe_pci.c:XE_VRAM_FLAGS_NEED64K of Ponte Vecchio; xe_svm.c:supports_4K_migration",
    )
    embedding: tuple[str, ...] = tunable(
        ("siblings",),
        "Where the dev_pagemap lies: beside the drm_pagemap, in it, in a pagemap of PCI p2p, or in a chunk of VRAM "
        "(which is refused, with the reason)",
        unit="choice",
        choices=("siblings", "dev_in_drm", "p2p_provider", "chunk"),
        cite="xe_svm.h:struct xe_pagemap",
    )
    page_to_bo: str = tunable(
        "zone_device_data",
        "How a device page leads to its zdd, and so to its buffer object: by a pointer in the page, by an ordered map "
        "of offsets, by an xarray, or through the chunk that it lies in (which is "
        "refused, with the reason)",
        unit="choice",
        choices=("zone_device_data", "offset", "xarray", "chunk"),
        cite="xe_svm.c:to_xe_bo",
    )
    autosuspend_ms: int = tunable(
        1000,
        "How long the device stays awake after its last reference",
        unit="ms",
        minimum=0,
        cite="xe_pm.c",
    )
    d3cold_mib: int = tunable(
        300,
        "VRAM in use below which the device may lose power when it suspends",
        unit="MiB",
        minimum=0,
        cite="xe_pm.h:DEFAULT_VRAM_THRESHOLD",
    )


def refuse(tunables: XeTunables, quirks: "XeQuirks") -> list[str]:
    """Name the combinations that cannot work, each with its reason."""
    reasons = []
    largest = tunables.chunk_sizes[0]
    if tunables.notifier_size < largest:
        reasons.append(
            f"notifier_size={format_size(tunables.notifier_size)} is below the largest of chunk_sizes, "
            f"{format_size(largest)}: a range lies within one notifier window, so it would never be used"
        )
    if tunables.page_to_bo == "chunk":
        reasons.append(
            "page_to_bo=chunk: one dev_pagemap covers the VRAM of a tile, and many objects lie in it, so that it "
            "cannot lead to the one of a page"
        )
    if tunables.allow_mixed and tunables.need_64k:
        reasons.append(
            "allow_mixed=on, need_64k=on: a page of VRAM between pages of system memory is mapped by itself, and VRAM "
            "is mapped in pages of 64 KiB at least"
        )
    return reasons + embedding_problems(tunables.embedding, "xe_pagemap")
