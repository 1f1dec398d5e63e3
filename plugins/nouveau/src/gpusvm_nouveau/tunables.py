"""What of nouveau can be set: its tunables, and the places where 7.3 as written surprises."""

from attrs import frozen
from gpusvm.driver import quirk, tunable

__all__ = ["NouveauQuirks", "NouveauTunables", "refuse"]

_M = 1 << 20


@frozen(kw_only=True)
class NouveauTunables:
    """Set how nouveau serves faults and keeps memory; the defaults are those of Linux 7.3.4."""

    chunk_bytes: int = tunable(
        256 * _M,
        "Size of one chunk of device memory: one pinned buffer object, one dev_pagemap",
        unit="bytes",
        minimum=2 * _M,
        power_of_two=True,
        cite="nouveau_dmem.c:DMEM_CHUNK_SIZE, NR_CHUNKS",
    )
    page_to_bo: str = tunable(
        "chunk",
        "How a device page leads to its chunk, and so to its buffer object: through its dev_pagemap, by an ordered map "
        "of chunks, by an xarray, or by a pointer in the page",
        unit="choice",
        choices=("chunk", "offset", "xarray", "zone_device_data"),
        cite="nouveau_dmem.c:nouveau_page_to_chunk",
    )
    fault_entries: int = tunable(
        4096,
        "Faults that the replayable fault buffer holds, 32 bytes each (assumed: the hardware tells it in a register)",
        unit="count",
        minimum=1,
        cite="nvkm/subdev/fault/gp100.c:gp100_fault_buffer_info",
    )
    read_faults: str = tunable(
        "read",
        "What a read fault asks the CPU's page table for: to read, or to write, so that a write finds it done",
        unit="choice",
        choices=("read", "write"),
        cite="nouveau_svm.c:nouveau_svm_fault",
    )
    fault_batching: bool = tunable(
        default=True,
        doc="The worker takes all faults that are there, sorts them and replays once; else each is served by itself",
        unit="flag",
        cite="nouveau_svm.c:nouveau_svm_fault",
    )
    fault_dedupe: bool = tunable(
        default=True,
        doc="Faults of a batch that the one before them has served already are skipped; else each is looked up",
        unit="flag",
        cite="nouveau_svm.c:nouveau_svm_fault",
    )
    hmm_timeout_ms: int = tunable(
        1000,
        "How long a fault is tried again when its page is invalidated under it, before it is cancelled",
        unit="ms",
        minimum=1,
        cite="hmm.h:HMM_RANGE_DEFAULT_TIMEOUT",
    )
    runpm: bool = tunable(
        default=True,
        doc="Runtime PM is on, as with switchable graphics or runpm=1",
        unit="flag",
        cite="nouveau_drm.c:nouveau_runtime_pm",
    )
    autosuspend_ms: int = tunable(
        5000,
        "How long the device stays awake after its last ioctl",
        unit="ms",
        minimum=0,
        cite="nouveau_drm.c:nouveau_drm_device_init",
    )


@frozen(kw_only=True)
class NouveauQuirks:
    """Choose between nouveau as written and as a reviewer would want it."""

    pfns_map_rejected: str = quirk(
        "After a migration the new GPU mappings are rejected, for an order stands where a shift is expected, and own "
        "MIGRATE events are skipped: GPU mappings of moved pages stay behind, stale",
        cite="nouveau_dmem.c:nouveau_dmem_migrate_chunk; nvkm vmm.c:nvkm_vmm_pfn_map",
    )
    migrate_seq: str = quirk(
        "SVM_BIND maps what it has moved without asking whether it was invalidated meanwhile: MADV_DONTNEED zaps "
        "the migration entries, so the pages that the device is given are freed when the migration ends, and it goes "
        "on writing them. It takes `pfns_map_rejected` fixed, for else nothing is mapped. Derived from the source, "
        "found in random orders",
        cite="nouveau_dmem.c:nouveau_dmem_migrate_chunk; memory.c:zap_pte_range",
    )
    sticky_atomic: str = quirk(
        "Once a batch had an atomic fault, every later fault of the batch is served as an atomic one",
        cite="nouveau_svm.c:nouveau_svm_fault",
    )
    exclusive_retry: str = quirk(
        "What make_device_exclusive itself invalidates (a PMD split, a page brought home, its own entry of the last "
        "attempt) sends the atomic fault back, every time, until it is cancelled. Derived from the source, seen by "
        "nobody, and no program with atomics would run on huge pages or after a migration: fixed by default",
        cite="nouveau_svm.c:nouveau_atomic_range_fault; memory.c:remove_device_exclusive_entry",
        default="fixed",
    )
    freed_svmm: str = quirk(
        "A device page names the svmm that it was migrated for, and closing the file frees the svmm while its pages "
        "stay in VRAM: a CPU fault on one then takes a mutex in freed memory. Derived from the source, seen by nobody; "
        "only checked explored machines notice",
        cite="nouveau_dmem.c:nouveau_dmem_migrate_to_ram; nouveau_svm.c:nouveau_svmm_fini",
    )
    no_release: str = quirk(
        "The notifier has no release callback, and the end of an address space takes it off the list before the pages "
        "go: until the file is closed, the GPU reaches pages that have been freed. Derived from the source, seen by "
        "nobody",
        cite="nouveau_svm.c:nouveau_mn_ops; mmu_notifier.c:mn_hlist_release",
    )
    other_files: str = quirk(
        "A migration clears entries of the svmm that asked for it, or that the page names, and the notifiers of all "
        "skip it as the device's own: a second file on the same address space keeps entries for pages that have been "
        "freed. Derived from the source, found by checking page tables at rest; seen by nobody",
        cite="nouveau_svm.c:nouveau_svmm_invalidate_range_start; nouveau_dmem.c:nouveau_dmem_migrate_to_ram",
    )
    sleeping_copy: str = quirk(
        "A CPU fault on a device page wakes nobody, though the device may be suspended and its object be in system "
        "memory: the copy never runs, the fence times out after 15 s, which nobody asks about, and the process finds "
        "zeros. Derived from the source, seen by nobody",
        cite="nouveau_dmem.c:nouveau_dmem_migrate_to_ram; nouveau_fence.c:nouveau_fence_wait",
    )
    moved_chunks: str = quirk(
        "A suspend moves the chunks' objects to system memory and a resume pins them again, the newest first, at "
        "whatever place is free: from the second chunk on the GPU's entries name the VRAM of another chunk. Derived "
        "from the source, seen by nobody",
        cite="nouveau_dmem.c:nouveau_dmem_resume, nouveau_dmem_page_addr; nouveau_bo.c:nouveau_bo_move_ntfy",
    )
    failed_copy: str = quirk(
        "A CPU fault whose copy cannot be queued leaves its destination in `dst`: the page is taken for migrated, its "
        "entries stay migration entries for ever, and the device page is freed under them. Derived from the source, "
        "seen by nobody",
        cite="nouveau_dmem.c:nouveau_dmem_migrate_to_ram; migrate_device.c:__migrate_device_finalize",
    )
    filled_hole: str = quirk(
        "A CPU fault on a page that is dropped (MADV_DONTNEED) before the migration collects it finds a hole, which "
        "migrate_vma_setup counts as well (MM-Q3): the old page is copied all the same, into a page that is "
        "mapped before the copy is done. What was dropped is back, over what has been written there since. Derived "
        "from the source, found in random orders; seen by nobody",
        cite="nouveau_dmem.c:nouveau_dmem_migrate_to_ram; migrate_device.c:migrate_vma_collect_pmd",
    )
    evicted_folios: str = quirk(
        "The end of the driver brings no large folio home, for their destinations are not marked as compound, and "
        "then waits until the process lets go of them. Derived from the source, seen by nobody",
        cite="nouveau_dmem.c:nouveau_dmem_evict_chunk; migrate_device.c:__migrate_device_pages",
    )
    evicted_once: str = quirk(
        "The end of the driver evicts each chunk once: a page that a CPU fault has isolated just then is left out, and "
        "if that fault fails, the end waits until the process lets go of it. Derived from the source, found by "
        "exploring; seen by nobody",
        cite="nouveau_dmem.c:nouveau_dmem_fini; mm/memremap.c:memunmap_pages",
    )
    evict_unchecked: str = quirk(
        "The end of the driver asks neither whether it was given a large page to bring a folio home to, nor whether "
        "the copy could be queued: the one is a NULL pointer, the other a page without its contents. Derived from the "
        "source, seen by nobody",
        cite="nouveau_dmem.c:nouveau_dmem_evict_chunk",
    )
    bo_before_wait: str = quirk(
        "The end of the driver puts a chunk's object before it waits for the chunk's pages: a CPU fault that is under "
        "way asks a NULL pointer where its page is. Derived from the source, seen by nobody",
        cite="nouveau_dmem.c:nouveau_dmem_fini, nouveau_dmem_page_addr",
    )
    unbind_open: str = quirk(
        "Taking the driver from a device that is open frees the fault handler before the channels of the open files "
        "leave it, through a NULL pointer, and waits for no ioctl that is under way. Derived from the source, seen by "
        "nobody",
        cite="nouveau_drm.c:nouveau_drm_device_fini; nouveau_svm.c:nouveau_svm_fini, nouveau_svmm_part",
    )
    sort_overflow: str = quirk(
        "The faults of a batch are compared by 64-bit differences that an int holds: two that lie 2 GiB apart or more "
        "may be sorted the other way round, and a fault in front of a group is skipped as if the group served it. "
        "Derived from the source, seen by nobody",
        cite="nouveau_svm.c:nouveau_svm_fault_cmp",
    )
    bind_unreadable: str = quirk(
        "SVM_BIND migrates memory that the process may not read, and has it mapped as far as the push of mappings is "
        "not rejected (pfns_map_rejected): nobody looks at the area's rights. Derived from the source, found by the "
        "conformance suite; seen by nobody",
        cite="nouveau_svm.c:nouveau_svmm_bind; nouveau_dmem.c:nouveau_dmem_migrate_chunk",
    )


def refuse(tunables: NouveauTunables, quirks: NouveauQuirks) -> list[str]:
    """Name the combinations that cannot work, each with its reason."""
    if tunables.page_to_bo == "zone_device_data":
        return ["page_to_bo=zone_device_data: the one word that a page has names the svmm that it was migrated for"]
    return []
