"""What of dmirror can be set: its tunables, and the places where 7.3 as written surprises."""

from attrs import frozen
from gpusvm.driver import quirk, tunable

__all__ = ["DmirrorQuirks", "DmirrorTunables", "refuse"]

_M = 1 << 20


@frozen(kw_only=True)
class DmirrorTunables:
    """Set how dmirror serves faults and keeps memory; the defaults are those of Linux 7.3.4."""

    chunk_bytes: int = tunable(
        256 * _M,
        "Size of one chunk of device memory, with a dev_pagemap of its own",
        unit="bytes",
        minimum=2 * _M,
        power_of_two=True,
        cite="test_hmm.c:DEVMEM_CHUNK_SIZE",
    )
    page_to_bo: str = tunable(
        "zone_device_data",
        "How a device page leads to the page that backs it: by a pointer in the page, or through the chunk that its "
        "dev_pagemap lies in",
        unit="choice",
        choices=("zone_device_data", "chunk"),
        cite="test_hmm.c:BACKING_PAGE",
    )
    fault_window_pages: int = tunable(
        32,
        "Pages that one fault looks up and maps",
        unit="pages",
        minimum=1,
        maximum=512,
        cite="test_hmm.c:dmirror_fault",
    )
    spm: str = tunable(
        "none",
        "What spm_addr_dev0 and spm_addr_dev1, the module's parameters, name: nothing, or memory that only devices 2 "
        "and 3 use, which are then coherent",
        unit="choice",
        choices=("none", "both"),
        cite="test_hmm.c:hmm_dmirror_init, dmirror_allocate_chunk",
    )
    hmm_timeout_ms: int = tunable(
        1000,
        "How long a fault is tried again when its pages are invalidated under it, before it fails with EBUSY",
        unit="ms",
        minimum=1,
        cite="hmm.h:HMM_RANGE_DEFAULT_TIMEOUT",
    )


@frozen(kw_only=True)
class DmirrorQuirks:
    """Choose between dmirror as written and as a reviewer would want it."""

    inclusive_last: str = quirk(
        "An invalidation clears one page too many: it takes the exclusive end of the range for the last page (Q14)",
        cite="test_hmm.c:dmirror_do_update; recorded on 7.3.4",
    )
    device_page: str = quirk(
        "A device fault that finds the device's own page stores the device page, which has no memory, instead of the "
        "page behind it, and the access that follows oopses; fixed by default, as no program would run for long",
        cite="test_hmm.c:dmirror_do_fault; seen on 7.3.4, the recordings were made with it repaired",
        default="fixed",
    )
    own_migrate_seq: str = quirk(
        "A callback for the device's own migration returns without mmu_interval_set_seq, so a device fault that has "
        "read the pages before they move stores them after it, and the device goes on with pages that are free; and "
        "what the device writes through entries that stay, between the copy of a page and the new entry, is lost. "
        "Derived from the source, found in random orders",
        cite="test_hmm.c:dmirror_interval_invalidate",
    )
    other_files: str = quirk(
        "A migration erases pages from the mirror table of one file, the one that moved them last; another file on the "
        "same address space, such as a forked child's own, ignores the event as the device's own and keeps entries for "
        "pages that are gone. Derived from the source",
        cite="test_hmm.c:dmirror_interval_invalidate, dmirror_devmem_fault_alloc_and_copy",
    )
    exclusive_seq: str = quirk(
        "EXCLUSIVE stores a page without asking whether it was invalidated after make_device_exclusive: one that "
        "MADV_DONTNEED drops between the two is free, and the device goes on writing it. Derived from the source",
        cite="test_hmm.c:dmirror_exclusive, dmirror_atomic_map",
    )
    migrate_seq: str = quirk(
        "MIGRATE_TO_DEV maps what it has moved without asking whether it was invalidated meanwhile: MADV_DONTNEED zaps "
        "the migration entries, so the pages that the device is given are freed when the migration ends, and it goes "
        "on writing them. Derived from the source, found in random orders",
        cite="test_hmm.c:dmirror_migrate_to_device, dmirror_migrate_finalize_and_map; memory.c:zap_pte_range",
    )
    freed_file: str = quirk(
        "Closing a file sends every page home and frees it, but passes over a page that somebody has locked, such as a "
        "CPU fault that is bringing it home: the fault goes on with the freed file that the page names, and so does a "
        "later one. Derived from the source; only checked explored machines notice",
        cite="test_hmm.c:dmirror_fops_release, dmirror_devmem_fault; migrate_device.c:migrate_device_pfn_lock",
    )
    evict_unchecked: str = quirk(
        "Bringing a device's pages home waits for single pages and not for large ones: without one for a folio of "
        "2 MiB a NULL pointer is locked. Derived from the source",
        cite="test_hmm.c:dmirror_device_evict_chunk",
    )
    compound_count: str = quirk(
        "MIGRATE_TO_SYS counts a 2 MiB folio that went home as one page (Q15)",
        cite="test_hmm.c:dmirror_successful_migrated_pages; recorded on 7.3.4",
    )


def refuse(tunables: DmirrorTunables, quirks: DmirrorQuirks) -> list[str]:
    """Name the combinations that cannot work: dmirror has none."""
    return []
