"""mm/huge_memory.c, as of Linux 7.3.4: split what a PMD maps into the entries of its deposited PTE table."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from gpusvm.mm.api import MMU_NOTIFY_CLEAR
from gpusvm.mm.mmu_notifier import notifier_end, notifier_start
from gpusvm.mm.page import PG_ANON_EXCLUSIVE
from gpusvm.mm.pgtable import PmdKind, PmdLeaf, PteKind, PteTable
from gpusvm.mm.ptemask import span

if TYPE_CHECKING:
    from gpusvm.mm.memory_manager import MemoryManager
    from gpusvm.mm.mm_struct import MmStruct
    from gpusvm.mm.vma import Vma


def split_huge_pmd_address(memory: "MemoryManager", vma: "Vma", address: int, *, freeze: bool = False) -> None:
    """Split the PMD around an address if its PUD is populated.

    The CLEAR window opens whether there is a leaf or not: the test whether there is one lies inside it (MM-Q16).
    """
    page_table = vma.mm.page_table
    if not page_table.pud_present(address):
        return
    if memory.quirks.mm_q16 == "fixed" and not isinstance(page_table.lookup(address), PmdLeaf):
        return
    split_huge_pmd(memory, vma, address, freeze=freeze)


def split_huge_pmd(memory: "MemoryManager", vma: "Vma", address: int, *, freeze: bool = False) -> None:
    """Split the PMD around an address inside a CLEAR window over its block (__split_huge_pmd)."""
    mm = vma.mm
    size = memory.geometry.pmd_size
    start = address & -size
    range_ = notifier_start(memory, mm, start, start + size, MMU_NOTIFY_CLEAR)
    memory.kernel.step()
    split_huge_pmd_locked(memory, mm, start >> memory.geometry.pmd_shift, freeze=freeze)
    notifier_end(memory, range_)


def split_huge_pmd_locked(memory: "MemoryManager", mm: "MmStruct", block: int, *, freeze: bool = False) -> bool:
    """Split the leaf of a block, if there is one, inside a page-table-lock section; tell whether there was.

    The folio stays large: its PMD mapping becomes one mapping, with one reference, for each of its pages. With
    `freeze` a mapping becomes migration entries instead and its reference goes; not if the folio may be pinned
    (__split_huge_pmd_locked).
    """
    leaf = mm.page_table.entries.get(block)
    if not isinstance(leaf, PmdLeaf):
        return False
    table = PteTable(mm.page_table, block)
    kind = leaf.kind
    if kind is PmdKind.HUGE_ZERO:
        table.fill(PteKind.PRESENT, memory.zero_pfn, write=False, zero=True)
        mm.page_table.install(table)
        return True
    if kind is PmdKind.MIGRATION:
        table.fill(PteKind.MIGRATION, leaf.pfn, write=leaf.write, rexcl=leaf.rexcl, dirty=leaf.dirty)
        mm.page_table.install(table)
        return True
    pages = memory.pages
    zone = pages.zone(leaf.pfn)
    i = leaf.pfn - zone.base
    exclusive = bool(zone.m_flags[i] & PG_ANON_EXCLUSIVE)
    if freeze and exclusive and not memory.rmap.folio_try_share_anon_rmap(leaf.pfn):
        freeze = False
    if freeze:
        table.fill(PteKind.MIGRATION, leaf.pfn, write=leaf.write, rexcl=exclusive and not leaf.write, dirty=leaf.dirty)
        mm.page_table.install(table)
        memory.rmap.folio_remove_rmap_pmd(leaf.pfn)
        pages.folio_put(leaf.pfn)
        return True
    table.fill(
        PteKind.PRIVATE if kind is PmdKind.PRIVATE else PteKind.PRESENT, leaf.pfn, write=leaf.write, dirty=leaf.dirty
    )
    nr = memory.geometry.pmd_nr
    # The mapping's own reference becomes the first page's.
    zone.m_refcount[i] += nr - 1
    zone.m_mapcount[i] += nr - 1
    zone.m_entire[i] -= 1
    if exclusive:
        zone.flags[i : i + nr] |= PG_ANON_EXCLUSIVE
    mm.page_table.install(table)
    return True


def walk_pmds(
    memory: "MemoryManager", vma: "Vma", start: int, end: int
) -> Iterator[tuple[int, PmdLeaf | PteTable, int]]:
    """Yield what maps [start, end) of an area: block, PMD entry, mask of the pages inside; a leaf that is cut is split.

    Each comes at the begin of a page-table-lock section: so walk unmap_page_range and change_protection_range.
    """
    page_table = vma.mm.page_table
    geometry = memory.geometry
    shift, page_shift = geometry.pmd_shift, geometry.page_shift
    step = memory.kernel.step
    for block in page_table.present_blocks(start, end):
        base = block << shift
        first, stop = max(start, base), min(end, base + geometry.pmd_size)
        if isinstance(page_table.entries.get(block), PmdLeaf) and stop - first != geometry.pmd_size:
            split_huge_pmd(memory, vma, first)
        step()
        entry = page_table.entries.get(block)
        if entry is not None:
            yield block, entry, span((first - base) >> page_shift, (stop - first) >> page_shift)
