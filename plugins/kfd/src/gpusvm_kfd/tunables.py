"""What of kfd can be set: its tunables, and the places where 7.3 as written surprises."""

from attrs import frozen
from gpusvm.driver import quirk, tunable

__all__ = ["KfdQuirks", "KfdTunables", "refuse"]

_K = 1 << 10
_M = 1 << 20
_G = 1 << 30


@frozen(kw_only=True)
class KfdTunables:
    """Set how kfd serves faults and keeps memory; the defaults are those of Linux 7.3.4."""

    granularity: int = tunable(
        2 * _M,
        "What a fault of the GPU or a CPU moves at most, and how large a range is that a fault makes",
        unit="bytes",
        minimum=4 * _K,
        maximum=_G,
        power_of_two=True,
        cite="amdgpu_drv.c:amdgpu_svm_default_granularity, 9 for 2^9 pages; kfd_svm.c:svm_range_list_init",
    )
    range_min: int = tunable(
        2 * _M,
        "The least that a range of a 32nd of the VRAM is",
        unit="bytes",
        minimum=4 * _K,
        power_of_two=True,
        cite="kfd_svm.c:svm_range_set_max_pages",
    )
    range_max: int = tunable(
        _G,
        "The most that it is",
        unit="bytes",
        minimum=4 * _K,
        power_of_two=True,
        cite="kfd_svm.c:svm_range_set_max_pages",
    )
    xnack: str = tunable(
        "on",
        "With XNACK a GPU's fault is retried; without there are none: what is not mapped before ends the program",
        unit="choice",
        choices=("on", "off"),
        cite="kfd_process.c:kfd_process_xnack_mode; amdgpu_drv.c:amdgpu_noretry",
    )
    access: str = tunable(
        "access",
        "What a GPU may do with memory of which no attribute says otherwise: have it moved, or reach it in place",
        unit="choice",
        choices=("access", "in_place"),
        cite="kfd_svm.c:svm_range_new, svm_range_best_restore_location",
    )
    preferred_loc: str = tunable(
        "undefined",
        "Where memory is at home of which no attribute says otherwise",
        unit="choice",
        choices=("undefined", "system"),
        cite="kfd_svm.c:svm_range_set_default_attributes",
    )
    retry_window_us: int = tunable(
        2000,
        "How long after its range was mapped a fault is dropped as one that was raised before",
        unit="us",
        minimum=0,
        cite="kfd_svm.c:AMDGPU_SVM_RANGE_RETRY_FAULT_PENDING",
    )
    filter_entries: int = tunable(
        256,
        "Faults that the filter for repeated ones remembers",
        unit="count",
        minimum=1,
        cite="amdgpu_gmc.h:AMDGPU_GMC_FAULT_RING_SIZE",
    )
    filter_timeout_us: int = tunable(
        50,
        "For how long: 5000 ticks of the interrupt ring's clock (assumed: 100 MHz, of which no source says anything)",
        unit="us",
        minimum=0,
        cite="amdgpu_gmc.h:AMDGPU_GMC_FAULT_TIMEOUT",
    )
    ring_entries: int = tunable(
        512,
        "Faults that the soft interrupt ring holds, 32 bytes each",
        unit="count",
        minimum=1,
        cite="amdgpu_ih.h:IH_SW_RING_SIZE",
    )
    restore_delay_ms: int = tunable(
        1,
        "How long after its queues were stopped a process without XNACK has its ranges mapped again",
        unit="ms",
        minimum=0,
        cite="kfd_svm.c:AMDGPU_SVM_RANGE_RESTORE_DELAY_MS",
    )
    copy_window: int = tunable(
        4 * _M,
        "What one copy moves at most, through a window of the GART",
        unit="bytes",
        minimum=4 * _K,
        power_of_two=True,
        cite="amdgpu_ttm.h:AMDGPU_GTT_MAX_TRANSFER_SIZE",
    )
    home_tries: int = tunable(
        3,
        "How often a range is sent home that has to leave a device, for another one or for want of room",
        unit="count",
        minimum=1,
        cite="kfd_migrate.c:svm_migrate_vram_to_vram; kfd_svm.c:svm_range_evict_svm_bo",
    )
    hive: bool = tunable(
        default=False,
        doc="Devices with a path to each other are linked by XGMI, in one hive",
        unit="flag",
        cite="kfd_svm.h:SVM_ADEV_PGMAP_OWNER; amdgpu_xgmi.c:amdgpu_xgmi_same_hive",
    )
    runpm: bool = tunable(
        default=True,
        doc="Runtime PM is on, as with runpm=-1 on a board that supports it",
        unit="flag",
        cite="amdgpu_drv.c:amdgpu_runtime_pm",
    )
    autosuspend_ms: int = tunable(
        5000,
        "How long the device stays awake after the last process has left it",
        unit="ms",
        minimum=0,
        cite="amdgpu_drv.c:amdgpu_pci_probe",
    )


@frozen(kw_only=True)
class KfdQuirks:
    """Choose between kfd as written and as a reviewer would want it."""

    range_window: str = quirk(
        "A fault is dropped for 2 ms after any part of its range was mapped, though it maps a granule only: in a range "
        "of several the GPU waits 2 ms for each next one, and 2 ms for memory that a CPU has taken back. Derived from "
        "the source",
        cite="kfd_svm.c:svm_range_restore_pages: validate_timestamp",
    )
    va_fault: str = quirk(
        "A CPU fault finds the range by the address, in the process that the memory was moved for: memory that mremap "
        "has moved since, and a forked child's once the parent is gone or has unmapped its own, ends with SIGBUS, or "
        "the fault is taken for ever; and a GPU's fault on it reads a NULL pointer. Derived from the source",
        cite="kfd_migrate.c:svm_migrate_to_ram; kfd_svm.c:svm_range_dma_map_dev",
    )
    last_user: str = quirk(
        "A forked child's CPU fault on memory in VRAM holds its parent's memory, and takes it down if the parent has "
        "gone meanwhile, with the page still locked: mmap_lock after a folio lock. Derived from the source, found in "
        "random orders",
        cite="kfd_migrate.c:svm_migrate_to_ram; memory.c:do_swap_page; khugepaged.c:__khugepaged_exit",
    )
    unmap_gap: str = quirk(
        "A CPU that touches memory in VRAM gets SIGBUS when another thread unmaps a part of the same granule: the area "
        "is gone before the notifier is called that cuts the range. Derived from the source, found in random orders",
        cite="kfd_migrate.c:svm_migrate_vram_to_ram; mm/vma.c:vms_complete_munmap_vmas",
    )
    fault_under_lock: str = quirk(
        "A GPU's fault reads pages with svms->lock held, and waits for one that is on another device and locked by a "
        "CPU's fault, which waits for svms->lock. Derived from the source, found in random orders",
        cite="kfd_svm.c:svm_range_validate_and_map; memory.c:do_swap_page",
    )
    non_blockable: str = quirk(
        "The notifier takes a mutex and waits for the GPU whether the event may block or not. Derived from the source; "
        "fixed by default, as the model lets nobody sleep there",
        cite="kfd_svm.c:svm_range_cpu_invalidate_pagetables",
        default="fixed",
    )
    cut_range: str = quirk(
        "A munmap cuts a range in its notifier, which takes no lock of a GPU's fault that is being served there: the "
        "fault, on memory that is still there, ends with EFAULT, which ends the wave, and what it maps is written "
        "behind the end of the range's array of DMA addresses, which is shorter now. Derived from the source",
        cite="kfd_svm.c:svm_range_restore_pages, svm_range_validate_and_map, svm_range_split_array",
    )
    split_unchecked: str = quirk(
        "A munmap cuts a range in its notifier, with memory that is taken without reclaim and may not be there; nobody "
        "asks, and the range that could not be made is a NULL pointer. Derived from the source",
        cite="kfd_svm.c:svm_range_unmap_split, svm_range_split, svm_range_lock",
    )
    notifier_gap: str = quirk(
        "After a munmap of its part a worker removes a range's notifier before it inserts the new one, and takes what "
        "was split off from the list where the old one finds it: of a change that takes no mmap_lock meanwhile, of "
        "reclaim, say, a GPU that has the page mapped never hears. Derived from the source, found in random orders",
        cite="kfd_svm.c:svm_range_update_notifier_and_interval_tree, svm_range_deferred_list_work",
    )
    child_mapped: str = quirk(
        "The notifier asks the range that was cut which GPUs have its children mapped, and forgets those once all that "
        "is left of the range was unmapped: what is invalidated of a child after that stays mapped until a worker has "
        "given the child a notifier of its own, and longer. Derived from the source, found in random orders",
        cite="kfd_svm.c:svm_range_evict, svm_range_unmap_from_cpu, svm_range_unmap_from_gpus",
    )
    no_access: str = quirk(
        "Memory that no one may access any more stays mapped where nothing is unmapped by the notifier, without XNACK: "
        "the worker that resumes the queues takes addresses for page numbers, and unmaps nothing; of what becomes of "
        "the pages then the GPU does not hear either. Derived from the source",
        cite="kfd_svm.c:svm_range_validate_and_map",
    )
    split_invalid: str = quirk(
        "Without XNACK a range that is split or cloned while it waits to be mapped anew does not tell the new one so: "
        "the queues go on, and the GPU still has the pages mapped that the new one had lost. Derived from the source, "
        "found in random orders",
        cite="kfd_svm.c:svm_range_split_adjust, svm_range_clone, svm_range_restore_work",
    )
    clone_reference: str = quirk(
        "Attributes of a part of a range whose last page has just come home clone it with a reference of the object "
        "that it has given back: one that waits for a worker to free it, or that nobody would drop. Derived from the "
        "source, found in random orders; fixed by default, as a run has to end with nothing held",
        cite="kfd_svm.c:svm_range_clone, svm_range_bo_ref, svm_range_vram_node_free",
        default="fixed",
    )
    freed_range: str = quirk(
        "The end of an object, by a worker once its last page is free, takes the lock of each range that named it, "
        "which may have been freed since it was taken off the object's list. Derived from the source; only checked "
        "explored machines notice",
        cite="kfd_svm.c:svm_range_bo_release, svm_range_free",
    )
    evict_leftovers: str = quirk(
        "An eviction that brings only a part home succeeds, and the object's memory is given to others: what mremap "
        "moved or a forked child alone has is lost. Pages that are dropped stay counted as in VRAM, so that a range "
        "may believe in an object it lost. Derived from the source; fixed by default, as no such program would run "
        "for long without room",
        cite="kfd_svm.c:svm_range_evict_svm_bo; kfd_migrate.c:svm_migrate_folio_free, svm_migrate_vram_to_ram",
        default="fixed",
    )
    live_slot: str = quirk(
        "A page goes to the place in its range's object that its address says, whether the page that was there before "
        "is free or not: one that a forked child still has, or of which a CPU fault has not yet dropped its last "
        "reference, is made anew. Derived from the source; fixed by default, as the model has no two pages in a place",
        cite="kfd_migrate.c:svm_migrate_copy_to_vram, svm_migrate_get_vram_page",
        default="fixed",
    )
    stale_hole: str = quirk(
        "An object is cleared when it is made, and no more: a page that was dropped and is not there when its range "
        "migrates again holds what was there before it was dropped. Derived from the source, seen by nobody; fixed by "
        "default, as what CPUs then read could not be told from a defect of the model",
        cite="kfd_migrate.c:svm_migrate_copy_to_vram; kfd_svm.c:svm_range_vram_node_new",
        default="fixed",
    )


def refuse(tunables: KfdTunables, quirks: KfdQuirks) -> list[str]:
    """Name the combinations that cannot work."""
    refused = []
    if tunables.range_min > tunables.range_max:
        refused.append(
            f"range_min={tunables.range_min} is above range_max={tunables.range_max}: a range cannot be both"
        )
    return refused
