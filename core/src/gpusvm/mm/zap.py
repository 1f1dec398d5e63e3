"""mm/memory.c and mm/huge_memory.c, as of Linux 7.3.4: take down what a range maps, and the tables behind it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from gpusvm.mm.api import MMU_NOTIFY_CLEAR, MMU_NOTIFY_UNMAP, MmuNotifierRange, Pfns
from gpusvm.mm.huge_memory import walk_pmds
from gpusvm.mm.mm_struct import MM_ANONPAGES
from gpusvm.mm.mmu_notifier import invalidate_range_end, invalidate_range_start, notifier_end, notifier_start
from gpusvm.mm.observer import tell
from gpusvm.mm.pgtable import PmdKind, PmdLeaf, PteKind, PteTable
from gpusvm.mm.rss import add_rss

if TYPE_CHECKING:
    from gpusvm.mm.memory_manager import MemoryManager
    from gpusvm.mm.mm_struct import MmStruct
    from gpusvm.mm.vma import Vma


def unmap_vmas(memory: "MemoryManager", mm: "MmStruct", vmas: Sequence["Vma"], start: int, end: int) -> None:
    """Zap the areas inside one UNMAP window over all of [start, end), holes included."""
    gather: list[int] = []
    range_ = notifier_start(memory, mm, start, end, MMU_NOTIFY_UNMAP)
    for vma in vmas:
        zap_range(memory, vma, max(start, vma.start), min(end, vma.end), gather)
    notifier_end(memory, range_)
    _tlb_finish_mmu(memory, gather)


def zap_vma_range(memory: "MemoryManager", vma: "Vma", start: int, end: int, *, reclaim_pt: bool = False) -> None:
    """Zap [start, end) of an area that stays, inside one CLEAR window (zap_vma_range_batched).

    `reclaim_pt` frees the PTE tables of whole blocks too, as CONFIG_PT_RECLAIM does, which x86-64 has.
    """
    gather: list[int] = []
    range_ = notifier_start(memory, vma.mm, start, end, MMU_NOTIFY_CLEAR)
    zap_range(memory, vma, start, end, gather, stays=True, reclaim_pt=reclaim_pt)
    notifier_end(memory, range_)
    _tlb_finish_mmu(memory, gather)


def zap_vma_for_reaping(memory: "MemoryManager", vma: "Vma") -> bool:
    """Zap an area that stays, if everybody who watches it can follow at once; False, and nothing done, otherwise."""
    range_ = MmuNotifierRange(vma.mm, vma.start, vma.end, MMU_NOTIFY_CLEAR, flags=0)
    if invalidate_range_start(memory, range_):
        return False
    gather: list[int] = []
    zap_range(memory, vma, vma.start, vma.end, gather, stays=True)
    invalidate_range_end(memory, range_)
    _tlb_finish_mmu(memory, gather)
    return True


def _tlb_finish_mmu(memory: "MemoryManager", gather: list[int]) -> None:
    # mm/mmu_gather.c: what was kept until no CPU can reach it any more goes.
    for pfn in gather:
        memory.pages.folio_put(pfn)


def zap_range(
    memory: "MemoryManager",
    vma: "Vma",
    start: int,
    end: int,
    gather: list[int],
    *,
    stays: bool = False,
    reclaim_pt: bool = False,
) -> None:
    """Zap [start, end) of one area, in the caller's window; a leaf that is cut is split first (unmap_page_range).

    `stays` says that the area stays, so that others may use it meanwhile; `reclaim_pt` that tables of whole blocks go
    when they are empty. Pages of coherent device memory are left in `gather`, referenced, for when the window is closed
    and the TLB flushed. Charges zap_per_page for each entry.
    """
    mm = vma.mm
    observer = memory.kernel.observer
    if observer is not None:
        tell(observer, "operation_begins", "zap_range", vma, start, end)
    shift, order = memory.geometry.page_shift, memory.geometry.pmd_order
    zapped = 0
    for block, entry, mask in walk_pmds(memory, vma, start, end):
        if stays:
            # In the section that clears the entries, which freeing their pages may leave: others can map anew then.
            first, last = max(start >> shift, block << order), min(end >> shift, (block + 1) << order)
            memory.contents.forget(mm, first, last)
        if isinstance(entry, PmdLeaf):
            _zap_huge_pmd(memory, mm, block, entry, gather)
            zapped += 1
        else:
            if entry.other & mask:
                zapped += zap_others(memory, entry, mask, drop_markers=not stays)
                mask &= ~entry.other
            if not vma.is_anonymous:
                add_rss(memory, vma, entry, mask & entry.used & ~entry.zero, -1)
            zapped += _zap_ptes(memory, entry, mask, gather, anonymous=vma.is_anonymous)
            if reclaim_pt and not entry.used and start <= entry.base and entry.base + memory.geometry.pmd_size <= end:
                mm.page_table.clear(block)
    if not stays:
        memory.contents.forget(mm, start >> shift, end >> shift)
    memory.kernel.charge("zap_per_page", zapped)
    if observer is not None:
        tell(observer, "operation_ends", "zap_range", vma, start, end)


def _zap_huge_pmd(memory: "MemoryManager", mm: "MmStruct", block: int, leaf: PmdLeaf, gather: list[int]) -> None:
    # zap_huge_pmd: the deposited table goes with the leaf.
    mm.page_table.clear(block)
    if leaf.kind is PmdKind.HUGE_ZERO:
        return
    if leaf.kind is not PmdKind.HUGETLB:  # which is in no rss
        mm.rss[MM_ANONPAGES] -= memory.geometry.pmd_nr
    if leaf.kind is PmdKind.MIGRATION:
        return
    if leaf.kind is PmdKind.THP and memory.pagemaps.has_coherent:
        _hold_coherent(memory, np.array([leaf.pfn]), gather)
    memory.rmap.folio_remove_rmap_pmd(leaf.pfn)
    # A device-private folio is freed here, under the lock, so its folio_free must not sleep.
    memory.kernel.preempt_disable()
    memory.pages.folio_put(leaf.pfn)
    memory.kernel.preempt_enable()


def _hold_coherent(memory: "MemoryManager", pfns: Pfns, gather: list[int]) -> None:
    # A present page's reference goes when the TLB is flushed (__tlb_remove_folio_pages). For system memory, which
    # nobody is told of when it is freed, the model lets it go with the mapping.
    pages = memory.pages
    for zone, _, where in pages.split(pfns):
        if zone.pgmap is not None and not zone.private:
            for pfn in pfns[where].tolist():
                head = pages.folio_head(pfn)
                pages.folio_get(head)
                gather.append(head)


def _zap_ptes(memory: "MemoryManager", table: PteTable, mask: int, gather: list[int], *, anonymous: bool) -> int:
    # zap_present_folio_ptes and zap_nonpresent_ptes for all entries at once.
    mask &= table.used
    if not mask:
        return 0
    mapped = mask & ~(table.zero | table.migration)
    if anonymous:
        table.mm.rss[MM_ANONPAGES] -= (mask & ~table.zero).bit_count()
    pfns = np.array(table.pfns(mapped)) if mapped else None
    table.clear(mask)
    if pfns is not None:
        if memory.pagemaps.has_coherent:
            _hold_coherent(memory, pfns, gather)
        memory.kernel.preempt_disable()
        memory.rmap.unmap_pages(pfns)
        memory.kernel.preempt_enable()
    return mask.bit_count()


def zap_others(memory: "MemoryManager", table: PteTable, mask: int, *, drop_markers: bool) -> int:
    """Zap the swap entries, hwpoison entries and markers of a mask, inside a section; how many.

    Guard markers stay unless `drop_markers`: an area keeps them until it is unmapped (zap_nonpresent_ptes).
    """
    gone = 0
    for i, entry in table.others_of(mask):
        if entry.kind is PteKind.MARKER_GUARD and not drop_markers:
            continue
        gone |= 1 << i
        if entry.kind is PteKind.SWAP:
            table.mm.swapents -= 1
            memory.swap.free(entry.value)
    if gone:
        table.clear(gone)
    return gone.bit_count()


def free_pgtables(memory: "MemoryManager", mm: "MmStruct", vmas: Sequence["Vma"], floor: int, ceiling: int) -> None:
    """Free the tables that only detached areas used: between the end of the area before and the start of the one
    behind.

    `ceiling` 0 is the end of the address space. Areas less than a block apart are taken together, as the kernel does.
    """
    size = memory.geometry.pmd_size
    at = 0
    while at < len(vmas):
        start, end = vmas[at].start, vmas[at].end
        at += 1
        while at < len(vmas) and vmas[at].start <= end + size:
            end = vmas[at].end
            at += 1
        _free_pgd_range(mm, start, end, floor, vmas[at].start if at < len(vmas) else ceiling)


def _free_pgd_range(mm: "MmStruct", start: int, end: int, floor: int, ceiling: int) -> None:
    page_table = mm.page_table
    size = 1 << page_table.pmd_shift
    start &= -size
    if start < floor:
        start += size
    if ceiling:
        ceiling &= -size
        if not ceiling:
            return
        if end > ceiling:
            end -= size
    if start >= end:
        return
    for block in page_table.present_blocks(start, end):
        page_table.clear(block)
    pud_shift = page_table.pud_shift
    for pud in range(start >> pud_shift, ((end - 1) >> pud_shift) + 1):
        # free_pmd_range: the PMD table itself, if nothing else lies in its PUD
        if pud not in page_table.puds:
            continue
        low, high = pud << pud_shift, (pud + 1) << pud_shift
        if low >= floor and (not ceiling or min(end, high) <= ceiling & -(1 << pud_shift)):
            del page_table.puds[pud]
