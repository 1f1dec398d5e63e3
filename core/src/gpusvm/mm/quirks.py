"""Say which suspected defects and surprises of Linux 7.3.4's mm the model repeats: one switch for each."""

from typing import Any, Literal

import attrs

Variant = Literal["as_written", "fixed"]


def quirk(doc: str, *, where: str, consequence: str) -> Any:
    """Declare a switch: what 7.3.4 does, where it does so (file:function), and what comes of it as written."""
    return attrs.field(default="as_written", metadata={"doc": doc, "cite": where, "consequence": consequence})


@attrs.frozen(kw_only=True)
class MmQuirks:
    """Choose, one by one, between what 7.3.4 does and what a reviewer would want."""

    mm_s1: Variant = quirk(
        "A walk that starts inside an owned device-private PMD reports the pfn of the folio's head",
        where="mm/hmm.c:hmm_vma_handle_absent_pmd",
        consequence="A device maps wrong pages of the folio, and its writes land there; recorded on 7.3.4",
    )
    mm_s2: Variant = quirk(
        "An owned device-private entry that is read-only answers HMM_PFN_REQ_WRITE",
        where="mm/hmm.c:hmm_vma_handle_pte, hmm_vma_handle_absent_pmd",
        consequence="A device that does not look at HMM_PFN_WRITE writes a page that a forked child shares; recorded "
        "on 7.3.4",
    )
    mm_s3: Variant = quirk(
        "Collecting goes on with the fault folio that it found before a split",
        where="mm/migrate_device.c:migrate_vma_collect_pmd",
        consequence="The faulting page is skipped; the old head, if in the range, is migrated without its lock and "
        "may be locked for ever",
    )
    mm_s4: Variant = quirk(
        "A hole of several PMDs below an empty PUD is collected as one compound entry",
        where="mm/migrate_device.c:migrate_vma_collect_hole; mm/pagewalk.c:walk_pud_range",
        consequence="Only the first block is populated, the others are skipped without a word; no driver here asks for "
        "more than one block at a time, so that no scenario reaches it",
    )
    mm_s5: Variant = quirk(
        "When a classic notifier fails a start that may not block, the interval side stays open",
        where="mm/mmu_notifier.c:__mmu_notifier_invalidate_range_start",
        consequence="Readers, insertions and removals of interval notifiers of that mm wait for ever",
    )
    mm_s6: Variant = quirk(
        "FOLL_DUMP takes a PMD that is not present for a hole",
        where="mm/gup.c:follow_pmd_mask, no_page_table",
        consequence="A core dump has zeros where a block of device-private memory was",
    )
    mm_s7: Variant = quirk(
        "memory_failure takes the mapping of a device page for an address_space before it looks at the memory type",
        where="mm/memory-failure.c:mf_generic_kill_procs; fs/dax.c:dax_lock_folio",
        consequence="An anon_vma is read as something else, with any result; an unmapped page answers EBUSY where a "
        "mapped one answers ENXIO",
    )
    mm_q2: Variant = quirk(
        "A foreign device-private PMD reads as ERROR where a foreign device-private PTE is just not mapped",
        where="mm/hmm.c:hmm_vma_handle_absent_pmd",
        consequence="A snapshot shows an error for memory that a fault would give; recorded on 7.3.4",
    )
    mm_q3: Variant = quirk(
        "Holes are collected whatever MIGRATE_VMA_SELECT_ says",
        where="mm/migrate_device.c:migrate_vma_collect_hole, migrate_vma_collect_pmd",
        consequence="A migration to system memory gets entries without a page, and cpages counts them",
    )
    mm_q5: Variant = quirk(
        "A fault folio that a PMD maps and that has to be split cannot be: the collecting reference is one too many",
        where="mm/migrate_device.c:migrate_vma_collect_huge_pmd",
        consequence="A migrate_to_ram without SELECT_COMPOUND, or over a part of the block, never gets anywhere, and "
        "the CPU faults for ever",
    )
    mm_q6: Variant = quirk(
        "The metadata of a page moves though its MIGRATE bit is clear",
        where="mm/migrate_device.c:__migrate_device_pages",
        consequence="A destination that nobody will map has the mapping, index and flags of a page that stays",
    )
    mm_q7: Variant = quirk(
        "The fault phase handles every page from the first that needs a fault to the end of the piece, all in one way",
        where="mm/hmm.c:hmm_do_fault",
        consequence="Pages that nobody asked for are faulted in, pages of the own device go home, and an error on one "
        "of them fails the call; recorded on 7.3.4",
    )
    mm_q8: Variant = quirk(
        "A coherent folio that a PMD maps is collected under SELECT_SYSTEM and no other flag, whoever owns it",
        where="mm/migrate_device.c:migrate_vma_collect_huge_pmd",
        consequence="It cannot be brought home with SELECT_DEVICE_COHERENT, and another driver may take it",
    )
    mm_q9: Variant = quirk(
        "A CPU fault on a locked device-private PMD does not wait for the lock",
        where="mm/huge_memory.c:do_huge_pmd_device_private",
        consequence="The CPU takes the same fault again and again until the folio is unlocked; a PTE fault waits",
    )
    mm_q10: Variant = quirk(
        "A fault folio that is unmapped and gets small destinations cannot be split: the fault's reference is one too "
        "many",
        where="mm/huge_memory.c:folio_split_unmapped",
        consequence="It stays on the device, mapped by PTEs, and the CPU faults once more; recorded on 7.3.4",
    )
    mm_q11: Variant = quirk(
        "cpages counts a compound entry as one",
        where="mm/migrate_device.c:migrate_vma_collect, migrate_device_unmap",
        consequence="A driver that compares cpages with npages takes a block that moves whole for one that does not",
    )
    mm_q12: Variant = quirk(
        "fork fails with ENOMEM when it meets a device-exclusive page that is locked",
        where="mm/memory.c:copy_nonpresent_pte, copy_pte_range",
        consequence="A fork fails for want of memory, which there is, while a device makes a page exclusive",
    )
    mm_q13: Variant = quirk(
        "A device-private entry that was write-protected never becomes writable in place",
        where="mm/mprotect.c:change_softleaf_pte; mm/huge_memory.c:change_non_present_huge_pmd",
        consequence="After mprotect to read-only and back a device cannot write its own page until a CPU has brought "
        "it home",
    )
    mm_q16: Variant = quirk(
        "Moving a VMA boundary into a block opens a CLEAR window over it though no PMD maps it",
        where="mm/huge_memory.c:vma_adjust_trans_huge, __split_huge_pmd",
        consequence="mprotect, munmap and madvise of a few pages invalidate 2 MiB around each new boundary; recorded "
        "on 7.3.4",
    )
    mm_q17: Variant = quirk(
        "When a compound source gets small destinations, its PMD migration entry is split in one mm only",
        where="mm/migrate_device.c:migrate_vma_split_unmapped_folio",
        consequence="A forked process that shares the block maps 2 MiB from the first of the new pages on, and reads "
        "whatever lies behind it; seen on 7.3.4, which stops in remove_migration_pte with CONFIG_DEBUG_VM",
    )
    mm_q18: Variant = quirk(
        "After the split of a fault folio its lock and reference go over to the fault page's new folio, which may be "
        "free by then",
        where="mm/migrate_device.c:migrate_vma_split_folio",
        consequence="MADV_DONTNEED of the page while migrate_to_ram collects its neighbours: a reference is taken on "
        "a free page, and the fault unlocks and puts it; found by exploring, the model stops there",
    )
