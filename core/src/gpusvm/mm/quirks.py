"""Say which suspected defects of Linux 7.3.4's mm the model repeats."""

from typing import Literal

from attrs import frozen

Variant = Literal["as_written", "fixed"]


@frozen(kw_only=True)
class MmQuirks:
    """Choose, defect by defect, between what 7.3.4 does and what a reviewer would want."""

    mm_s1: Variant = "as_written"
    """mm/hmm.c:hmm_vma_handle_absent_pmd reports the head's pfn for a walk that starts inside an owned
    device-private PMD.
    """

    mm_s2: Variant = "as_written"
    """mm/hmm.c takes an owned device-private entry that is read-only for an answer to HMM_PFN_REQ_WRITE."""

    mm_s3: Variant = "as_written"
    """mm/migrate_device.c:migrate_vma_collect_pmd goes on with the fault folio that it found before a split."""

    mm_s4: Variant = "as_written"
    """mm/migrate_device.c:migrate_vma_collect_hole makes one compound entry of a hole of several PMDs."""

    mm_s5: Variant = "as_written"
    """mm/mmu_notifier.c:__mmu_notifier_invalidate_range_start leaves the interval side open when a classic notifier
    fails.
    """

    mm_q2: Variant = "as_written"
    """mm/hmm.c reports a foreign device-private PMD as ERROR where a foreign device-private PTE is just not mapped."""

    mm_q6: Variant = "as_written"
    """mm/migrate_device.c:__migrate_device_pages moves a page's metadata though its MIGRATE bit is clear."""
