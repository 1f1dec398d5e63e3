"""List the 58 invariants: number, name, rule, when it is checked, where it comes from, and how a test breaks it.

`ALWAYS` rules are about state: they hold whenever no page-table-lock section is open, and in explored runs they are
checked after every section, for what it touched. `EVENT` rules are about behaviour: they are checked where it happens,
in every run that has a `Checker`. `QUIESCENT` rules are checked for the whole machine when no task is inside an
operation of the mm. Sources are functions of Linux 7.3.4 that assert or rely on the rule; "derived" follows from
several functions together.
"""

from typing import Final

from attrs import frozen

__all__ = ["ALWAYS", "EVENT", "GROUPS", "INVARIANTS", "QUIESCENT", "Invariant"]

ALWAYS: Final = "always"
EVENT: Final = "event"
QUIESCENT: Final = "quiescent"


@frozen(kw_only=True)
class Invariant:
    """Describe one rule; `module` of this package holds its functions, `broken_by` says what the test does to it."""

    number: int
    name: str
    module: str
    statement: str
    strengths: tuple[str, ...]
    source: str
    broken_by: str


GROUPS: Final = {
    "mapping": "Mapping and reference accounting",
    "exclusivity": "Exclusivity and writability",
    "migration": "Migration",
    "zone_device": "Device-private and ZONE_DEVICE",
    "notifier": "Notifiers",
    "lifetime": "Address spaces, accounting and locks",
    "power": "Power",
    "mirror": "Page tables of devices",
    "svm": "Pages that drm_gpusvm maps and drm_pagemap moves",
}


def _rules() -> dict[int, Invariant]:
    rules: dict[int, Invariant] = {}
    module = ""

    def group(name: str) -> None:
        nonlocal module
        assert name in GROUPS, name
        module = name

    def rule(number: int, name: str, strengths: str, source: str, statement: str, broken_by: str) -> None:
        assert number == len(rules) + 1, number
        rules[number] = Invariant(
            number=number,
            name=name,
            module=module,
            statement=statement,
            strengths=tuple({"A": ALWAYS, "E": EVENT, "Q": QUIESCENT}[letter] for letter in strengths),
            source=source,
            broken_by=broken_by,
        )

    group("mapping")
    rule(
        1,
        "mapcount",
        "AQ",
        "mm/rmap.c:__folio_add_rmap, __folio_remove_rmap",
        "A folio's mapcount is the number of PTEs (present, device-private, device-exclusive) and PMDs that map its "
        "pages; `entire_mapcount` counts the PMDs.",
        "the mapcount of a mapped page is counted up",
    )
    rule(
        2,
        "refcount",
        "AQ",
        "mm/rmap.c, derived",
        "A folio has at least as many references as entries that map it.",
        "a reference of a page mapped twice is dropped",
    )
    rule(
        3,
        "expected-refcount",
        "Q",
        "include/linux/mm.h:folio_expected_ref_count",
        "At rest a mapped folio has exactly the references of its mappings and of its page cache, besides those that "
        "the caller names as held.",
        "a reference is taken and never put",
    )
    rule(
        4,
        "mapcount-order",
        "E",
        "mm/memory.c:__wp_can_reuse_large_anon_folio",
        "A mapping is counted after its reference is taken, and uncounted before its reference is put.",
        "a PTE mapping's reference is put before the mapping is uncounted",
    )
    rule(
        5,
        "zero-page",
        "AQ",
        "mm/memory.c:do_anonymous_page, mm/huge_memory.c:set_huge_zero_folio",
        "The zero page and the huge zero folio are never counted per mapping, never writable and never AnonExclusive.",
        "a zero-page PTE is made writable",
    )
    rule(
        6,
        "mapped-once",
        "AQ",
        "mm/rmap.c, derived",
        "No two entries of one mm name the same anonymous page.",
        "a page is mapped a second time through a second area of the same anon_vma",
    )
    rule(
        7,
        "page-index",
        "AQ",
        "mm/rmap.c:__page_check_anon_rmap",
        "An entry that names a page lies where the page's index says in its area, and the rmap of the page's mapping "
        "finds the area.",
        "the index of a mapped folio is changed",
    )

    group("exclusivity")
    rule(
        8,
        "exclusive-once",
        "AQ",
        "mm/rmap.c:__folio_add_anon_rmap",
        "A mapped page that is AnonExclusive is mapped exactly once; of a folio that a PMD maps only the head is so.",
        "a page mapped by two address spaces is flagged AnonExclusive",
    )
    rule(
        9,
        "writable-exclusive",
        "AQ",
        "mm/rmap.c:try_to_migrate_one, derived",
        "A writable entry of an anonymous page, or a device-exclusive one, names an AnonExclusive page.",
        "AnonExclusive is cleared under a writable PTE",
    )
    rule(
        10,
        "migration-exclusive",
        "AQ",
        "include/linux/rmap.h:__folio_try_share_anon_rmap",
        "An anonymous page named by a WRITE or READ_EXCLUSIVE migration entry is not AnonExclusive any more, and "
        "nothing else names it.",
        "AnonExclusive is set while a WRITE migration entry names the page",
    )
    rule(
        11,
        "may-write",
        "AEQ",
        "mm/mprotect.c:change_pte_range, change_softleaf_pte",
        "A writable entry lies in an area that may be written; mprotect leaves no writable entry where it takes "
        "VM_WRITE away.",
        "an area loses VM_MAYWRITE under a writable PTE",
    )
    rule(
        12,
        "fork-shares",
        "EQ",
        "mm/memory.c:copy_present_ptes, copy_nonpresent_pte",
        "No anonymous page that two address spaces map is writable in either.",
        "a PTE of a page shared with another address space is made writable",
    )
    rule(
        13,
        "hole-permission",
        "A",
        "mm/migrate_device.c:migrate_vma_insert_page",
        "A hole or zero page that is filled in an area without VM_WRITE becomes a READ entry.",
        "a read-only area is filled with a WRITE device-private entry",
    )

    group("migration")
    rule(
        14,
        "migration-locked",
        "A",
        "include/linux/leafops.h:softleaf_migration_sync",
        "The folio that a migration entry names is locked and referenced.",
        "a folio is unlocked between setup and finalize",
    )
    rule(
        15,
        "migration-owned",
        "AQ",
        "derived",
        "A migration entry belongs to a migration or a split that is under way; at rest there is none.",
        "a migration entry is installed outside of any migration",
    )
    rule(
        16,
        "finalized",
        "E",
        "mm/migrate_device.c:__migrate_device_finalize",
        "After finalize no migration entry of that call is left and no folio is locked by it, except the fault folio.",
        "the driver takes a source out of the words between setup and finalize",
    )
    rule(
        17,
        "collected",
        "E",
        "mm/migrate_device.c:migrate_vma_check_page",
        "After setup a VALID word has MIGRATE, and its folio is locked, unmapped, off the LRU and held once (twice if "
        "it is the fault folio, once more tolerated for ZONE_DEVICE).",
        "the rmap walk of setup puts a page back on the LRU",
    )
    rule(
        18,
        "source-words",
        "E",
        "mm/migrate_device.c:migrate_vma_collect_pmd",
        "After setup a source word is 0, MIGRATE, MIGRATE|COMPOUND or a page with MIGRATE (migrate_device_*: or bare "
        "COMPOUND), and every destination word is 0.",
        "a destination word is set while setup runs",
    )
    rule(
        19,
        "compound-words",
        "E",
        "mm/migrate_device.c:migrate_vma_collect_huge_pmd",
        "A COMPOUND word names the head of a PMD-order folio at a PMD-aligned address or a PMD hole, and the words of "
        "its other pages are 0.",
        "the word behind a COMPOUND word is set while setup runs",
    )
    rule(
        20,
        "cpages",
        "E",
        "mm/migrate_device.c:migrate_device_unmap",
        "`cpages` is the number of source words with MIGRATE, and `npages` that of the pages of the range.",
        "a word loses MIGRATE while setup runs and is still counted",
    )
    rule(
        21,
        "migrate-bits",
        "E",
        "mm/migrate_device.c:__migrate_device_pages",
        "Between setup and finalize MIGRATE only goes, except where a compound word becomes words of its pages.",
        "the driver sets MIGRATE in a word that setup skipped",
    )
    rule(
        22,
        "destinations",
        "E",
        "include/linux/migrate.h, mm/migrate_device.c:__migrate_device_finalize",
        "A destination that the driver gives is locked, referenced once, unmapped and given once; after finalize it is "
        "mapped or free.",
        "the driver gives a destination that it has unlocked",
    )
    rule(
        23,
        "contents",
        "AQ",
        "derived",
        "What an entry maps holds what was last written at its address; a page never written holds zeros.",
        "the driver migrates a page without copying it",
    )
    rule(
        24,
        "preserved",
        "A",
        "mm/migrate.c:remove_migration_pte, mm/huge_memory.c:remove_migration_pmd",
        "Migration keeps every mapping and whether it is writable; only a zap ends a migration entry otherwise.",
        "a WRITE migration entry comes back read-only",
    )
    rule(
        25,
        "unlocked-once",
        "EQ",
        "mm/migrate_device.c:__migrate_device_finalize",
        "A folio that a migration locked is unlocked exactly once: at rest none is locked.",
        "a folio is locked and never unlocked",
    )

    group("zone_device")
    rule(
        26,
        "entry-type",
        "AQ",
        "mm/memory.c:do_swap_page, derived",
        "A present entry names no device-private page, a device-private entry nothing else, a device-exclusive entry "
        "none.",
        "a device-private page is mapped by a present PTE",
    )
    rule(
        27,
        "private-anon",
        "AQ",
        "mm/memory.c:copy_nonpresent_pte, derived",
        "A device-private entry names a live anonymous folio of a registered pagemap, in an area with copy-on-write.",
        "the mapping of a mapped device-private folio is cleared",
    )
    rule(
        28,
        "no-lru",
        "AQ",
        "include/linux/mm_types.h:struct folio",
        "A ZONE_DEVICE folio is on no LRU.",
        "a device folio is flagged as being on an LRU",
    )
    rule(
        29,
        "free-device-page",
        "AQ",
        "mm/memremap.c:free_zone_device_folio",
        "A free device page is unmapped, has no mapping, is not AnonExclusive and no entry names it.",
        "a free device page is flagged AnonExclusive",
    )
    rule(
        30,
        "pgmap-refs",
        "AQ",
        "mm/memremap.c:zone_device_page_init, free_zone_device_folio",
        "A pagemap has one reference for each allocated page, one until it is killed, and those of get_dev_pagemap.",
        "a reference on a pagemap is lost",
    )
    rule(
        31,
        "pgmap-done",
        "E",
        "mm/memremap.c:memunmap_pages",
        "A pagemap is done only when nothing refers to it; no entry names its pages then, and it gives no reference.",
        "a pagemap is completed while a page of it is mapped",
    )
    rule(
        32,
        "freed-once",
        "E",
        "mm/memremap.c:free_zone_device_folio",
        "folio_free is called exactly once in a device folio's life, at refcount 0; each part of a split is a life.",
        "a free device folio is freed again",
    )
    rule(
        33,
        "split-parts",
        "E",
        "mm/huge_memory.c:__folio_freeze_and_split_unmapped",
        "Every part of a split device folio belongs to its pagemap and has zone_device_data if the whole had.",
        "a driver's folio_split forgets zone_device_data",
    )
    rule(
        34,
        "free-never-sleeps",
        "E",
        "mm/memory.c:zap_nonpresent_ptes",
        "folio_free never sleeps and takes neither mmap_lock nor a folio lock.",
        "a driver's folio_free takes a mutex",
    )
    rule(
        35,
        "pmd-entry",
        "AQ",
        "include/linux/leafops.h:softleaf_is_valid_pmd_entry",
        "A PMD entry is a THP, the huge zero folio, a migration or a device-private entry; it names the head of a "
        "PMD-order folio, in an area that covers the block.",
        "a PMD names the middle of a folio",
    )

    group("notifier")
    rule(
        36,
        "active-windows",
        "AQ",
        "mm/mmu_notifier.c:mn_itree_inv_start_range, mn_itree_inv_end",
        "The count of active invalidations is the number of open windows: at rest 0.",
        "the count of active invalidations is counted up",
    )
    rule(
        37,
        "sequence-parity",
        "AQ",
        "mm/mmu_notifier.c:mn_itree_is_invalidating",
        "Without an open window the sequence is even, and nothing is deferred.",
        "the sequence of an idle mm is made odd",
    )
    rule(
        38,
        "deferred",
        "AQ",
        "mm/mmu_notifier.c:__mmu_interval_notifier_insert, mmu_interval_notifier_remove",
        "What is deferred waits for an odd sequence, and a subscription is in the tree, waits to be, or waits to go.",
        "a subscription says that it is deferred, and no list has it",
    )
    rule(
        39,
        "subscription-sequence",
        "AQ",
        "mm/mmu_notifier.c:__mmu_interval_notifier_insert",
        "A subscription's sequence is odd and at most the mm's, which only grows.",
        "a subscription's sequence is set past the mm's",
    )
    rule(
        40,
        "change-in-window",
        "A",
        "include/linux/mmu_notifier.h, derived",
        "An entry that a device may use is removed, replaced or write-protected only while a window of its mm covers "
        "it.",
        "a PTE is write-protected without a window",
    )
    rule(
        41,
        "window-owner",
        "E",
        "include/linux/mmu_notifier.h:mmu_notifier_range_init_owner",
        "A MIGRATE or EXCLUSIVE window carries the owner of its operation, every other window none.",
        "a CLEAR window carries an owner",
    )
    rule(
        42,
        "non-blockable",
        "E",
        "mm/mmu_notifier.c:mn_itree_invalidate, mn_hlist_invalidate_range_start",
        "A callback for a window that is not blockable does not sleep; after -EAGAIN nothing changes in the range and "
        "nobody closes it.",
        "a PTE changes in a range whose start answered -EAGAIN",
    )
    rule(
        43,
        "hmm-words",
        "E",
        "Documentation/mm/hmm.rst, mm/hmm.c:hmm_range_fault",
        "After hmm_range_fault, and read_retry false, a VALID word has the entry's pfn, WRITE only if the entry is "
        "writable, and WRITE if it was asked for.",
        "a device reads the tail of its own PMD, with quirk mm_s1 as written, and then a word is altered",
    )
    rule(
        44,
        "reader-collides",
        "E",
        "mm/mmu_notifier.c:mmu_interval_read_begin",
        "read_begin returns no sequence that equals the mm's, and a reader that need not retry has seen no "
        "invalidation since.",
        "a callback sets a sequence that the reader already has",
    )
    rule(
        45,
        "removed-is-silent",
        "E",
        "mm/mmu_notifier.c:mmu_interval_notifier_remove",
        "No callback of a subscription runs after its removal has returned.",
        "a removed subscription is put back into the tree",
    )

    group("lifetime")
    rule(
        46,
        "rss",
        "AEQ",
        "mm/memory.c:zap_nonpresent_ptes, copy_nonpresent_pte",
        "Each RSS counter of an mm is the number of its pages that entries name, zero and special pages apart; after "
        "exit all are 0.",
        "an RSS counter is counted up",
    )
    rule(
        47,
        "mm-users",
        "EQ",
        "kernel/fork.c:__mmdrop, mm/mmu_notifier.c:__mmu_notifier_register",
        "A task faults and migrates only in an mm that has users; mm_count covers the users and every subscription.",
        "a task faults in an mm whose users are gone",
    )
    rule(
        48,
        "vma-locked",
        "A",
        "mm/vma.c:vms_complete_munmap_vmas, mm/mmap_lock.c",
        "Areas change, and tables of attached areas go, only under mmap_lock held for write by the task that does so; "
        "empty tables also where MADV_DONTNEED has the area locked for reading.",
        "an area is removed without mmap_lock",
    )
    rule(
        49,
        "lock-order",
        "E",
        "include/linux/mmu_notifier.h:invalidate_range_start",
        "A task that holds a lock which notifier callbacks take does not take mmap_lock or a folio lock; one that "
        "holds a folio lock does not take mmap_lock; nobody sleeps under a page-table lock.",
        "a driver takes mmap_lock under the lock of its invalidate callback",
    )
    rule(
        50,
        "live-owner",
        "E",
        "mm/filemap.c:folio_wait_bit_common, derived",
        "Whoever waits for a folio lock waits for a task that lives and does not wait for him.",
        "a task waits for a folio that a finished task has locked",
    )
    rule(
        51,
        "opaque-entries",
        "E",
        "mm/migrate_device.c:migrate_vma_collect_pmd, mm/hmm.c:hmm_vma_handle_pte",
        "Swap, hwpoison and marker entries are never collected and never VALID for hmm.",
        "a word of a hwpoison entry is made VALID",
    )
    rule(
        52,
        "dma-mapped",
        "E",
        "mm/hmm.c:hmm_dma_map_pfn, hmm_dma_unmap_pfn",
        "hmm_dma maps only VALID words, BUS implies DMA_MAPPED, and each mapping is undone exactly once.",
        "an entry is unmapped twice, its bits put back by hand",
    )

    group("power")
    rule(
        53,
        "device-awake",
        "EQ",
        "drivers/gpu/drm/xe/xe_svm.c:xe_drm_pagemap_populate_mm, xe_svm_devmem_release; xe_pm.c:xe_pm_suspend",
        "While a device sleeps no page of its memory is in use, if its driver promises that "
        "(`DriverInfo.awake_with_pages`).",
        "a device falls asleep with a page in an address space",
    )

    group("mirror")
    rule(
        54,
        "mirror-free-page",
        "AEQ",
        "Documentation/mm/hmm.rst, derived",
        "No entry of a device's page table names a free page.",
        "a page is unmapped, and the device keeps its entry",
    )
    rule(
        55,
        "mirror-entries",
        "Q",
        "Documentation/mm/hmm.rst, derived",
        "At rest an entry of a device's page table names the page that the process has at the address, and is writable "
        "only if the process may write the page without a fault.",
        "the device has a writable entry where the process has the zero page",
    )

    group("svm")
    rule(
        56,
        "dma-free-page",
        "AE",
        "drivers/gpu/drm/drm_gpusvm.c:drm_gpusvm_get_pages, drm_gpusvm_unmap_pages",
        "No page that drm_gpusvm has mapped for a device is free: an invalidation unmaps it before the mm lets it go, "
        "and what was found before an invalidation is not mapped after it. drm_gpusvm_fini removes notifiers first: a "
        "driver unmaps what its ranges have mapped before it calls that.",
        "pages are mapped for a device, and freed without a word to it",
    )
    rule(
        57,
        "page-owner",
        "E",
        "drivers/gpu/drm/drm_gpusvm.c:drm_gpusvm_get_pages, struct drm_gpusvm_ctx",
        "Who gets pages is given device pages of no other owner than he named, and none if he named none.",
        "get_pages is made to ask for the owner of the device, for a caller who can take no device pages",
    )
    rule(
        58,
        "timeslice",
        "E",
        "drivers/gpu/drm/drm_pagemap.c:__drm_pagemap_migrate_to_ram",
        "A CPU fault takes home nothing of what was brought to a device for a timeslice before that is over.",
        "it is told that a CPU fault takes pages 5 ms before their timeslice is over",
    )
    return rules


INVARIANTS: Final[dict[int, Invariant]] = _rules()
