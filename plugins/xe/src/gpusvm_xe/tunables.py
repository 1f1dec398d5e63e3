"""What of xe can be set: its tunables, and the places where 7.3 as written surprises."""

from attrs import frozen
from gpusvm.driver import Variant, embedding_problems, format_size, quirk, tunable

__all__ = ["XeQuirks", "XeTunables", "refuse"]

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
        "Where the dev_pagemap lies: beside the drm_pagemap, in it, in a pagemap of PCI p2p, or in a chunk of VRAM",
        unit="choice",
        choices=("siblings", "dev_in_drm", "p2p_provider", "chunk"),
        cite="xe_svm.h:struct xe_pagemap",
    )
    page_to_bo: str = tunable(
        "zone_device_data",
        "How a device page leads to its zdd, and so to its buffer object: by a pointer in the page, by an ordered map "
        "of offsets, by an xarray, or through the chunk that it lies in",
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


@frozen(kw_only=True)
class XeQuirks:
    """Choose between xe as written and as a reviewer would want it."""

    acked_failure: Variant = quirk(
        "A get_pages error other than EOPNOTSUPP, EFAULT and EPERM is acknowledged as success; the GPU faults again",
        cite="xe_svm.c:__xe_svm_handle_pagefault",
    )
    hole_count: Variant = quirk(
        "Populating a PMD-sized hole moves it and still answers EBUSY, so xe evicts it and migrates it once more",
        cite="drm_pagemap.c:drm_pagemap_migrate_to_devmem; recorded on 7.3.4",
    )
    endless_retry: Variant = quirk(
        "A fault on a range of which a part was write-protected or made inaccessible is tried again for ever, the VM's "
        "lock held; fixed, the range is removed, and one that fits is made",
        cite="xe_svm.c:__xe_svm_handle_pagefault",
    )
    evict_dying: Variant = quirk(
        "An object whose process is ending answers EFAULT to eviction, which ends the walk for room of others as well",
        cite="drm_pagemap.c:drm_pagemap_evict_to_ram; ttm_bo.c:ttm_bo_evict_cb",
    )
    evict_all_stops: Variant = quirk(
        "One object that cannot be evicted keeps all behind it in VRAM when the device goes away or the system sleeps",
        cite="ttm_resource.c:ttm_resource_manager_evict_all; xe_bo_evict.c:xe_bo_pci_dev_remove_all",
    )
    sleep_race: Variant = quirk(
        "Before system sleep faults are served until after the last eviction: what they bring to VRAM is lost with it",
        cite="xe_pm.c:xe_pm_suspend, whose comment calls it racy",
    )
    not_detached: Variant = quirk(
        "An object that a failed populate leaves behind is busy until a worker frees it: what evicts everything "
        "meanwhile fails, the system's sleep, say",
        cite="drm_pagemap.c:drm_pagemap_migrate_to_devmem, drm_pagemap_evict_to_ram",
    )
    ioctl_unplug: Variant = quirk(
        "An unplug does not wait for ioctls that have begun: one that makes a VM may look for its pagemap in a "
        "cache that is freed, and make one that nobody takes away",
        cite="drm_ioctl.c:drm_ioctl_kernel; xe_device.c:xe_drm_ioctl; xe_svm.c:xe_pagemap_create",
    )
    devmem_mm: Variant = quirk(
        "An object points to the address space that its pages were for, without a reference: eviction may ask it after "
        "it was freed",
        cite="drm_pagemap.c:drm_pagemap_devmem_init, drm_pagemap_evict_to_ram",
    )
    pagemap_freed: Variant = quirk(
        "Whoever puts the last reference on a pagemap between unplug and the release of the device's resources frees "
        "the dev_pagemap that these have still to unmap",
        cite="xe_svm.c:xe_pagemap_destroy_work; drm_pagemap_util.c:drm_pagemap_shrinker_add",
    )
    create_unwind: Variant = quirk(
        "A pagemap that cannot be made is unwound, and then destroyed as if it had been made: its owner is given back "
        "twice",
        cite="xe_svm.c:xe_pagemap_create, xe_pagemap_destroy_work",
    )
    smem_stays: Variant = quirk(
        "Memory that is mapped in VRAM when RAM becomes its preferred location is mapped there again by the next "
        "fault: its DMA mapping is still valid, so get_pages does not look for its pages",
        cite="xe_vm_madvise.c:xe_zap_ptes_in_madvise_range; drm_gpusvm.c:drm_gpusvm_get_pages",
    )
    same_fd: Variant = quirk(
        "Another region of the device that is the preferred location already is taken for no change",
        cite="xe_vm_madvise.c:madvise_preferred_mem_loc",
    )
    last_fault_vma: Variant = quirk(
        "A fault that collects garbage remembers the VMA that it began with, for the next lookup, though resetting "
        "attributes may have freed that",
        cite="xe_pagefault.c:xe_pagefault_service; xe_svm.c:xe_svm_handle_pagefault",
    )
    reset_beyond: Variant = quirk(
        "Looking for a neighbour to merge with begins one byte beyond it, so that the one after it may be found, and "
        "the attributes between are lost",
        cite="xe_vm.c:xe_vm_find_cpu_addr_mirror_vma_range",
    )
    shrinker_forgets: Variant = quirk(
        "A shrinker that frees an unused pagemap may drop one in use from the cache: the next VM makes a second",
        cite="drm_pagemap_util.c:drm_pagemap_shrinker_scan",
    )


def refuse(tunables: XeTunables, quirks: XeQuirks) -> list[str]:
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
