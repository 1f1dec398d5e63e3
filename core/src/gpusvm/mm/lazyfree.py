"""mm/madvise.c and mm/huge_memory.c, as of Linux 7.3.4: MADV_FREE, which makes pages ready to be dropped.

A page loses its dirty marks and would go when memory is short; nothing reclaims pages in the model, so it keeps what
it holds. Entries that are not present, device-private ones at either level above all, are left alone, but for swapped
and poisoned pages, which go at once.
"""

from errno import EINVAL
from typing import TYPE_CHECKING, Final

from gpusvm.errors import KernelError
from gpusvm.mm.api import MMU_NOTIFY_CLEAR
from gpusvm.mm.mmu_notifier import notifier_end, notifier_start
from gpusvm.mm.page import PG_DIRTY, PG_SWAPBACKED
from gpusvm.mm.pgtable import PmdKind, PmdLeaf, PteKind, PteTable
from gpusvm.mm.ptemask import span
from gpusvm.mm.split import split_folio
from gpusvm.mm.zap import zap_others

if TYPE_CHECKING:
    from gpusvm.mm.memory_manager import MemoryManager
    from gpusvm.mm.vma import Vma


_DROPPED: Final = frozenset({PteKind.SWAP, PteKind.HWPOISON, PteKind.MARKER_POISONED})


def madvise_free_single_vma(memory: "MemoryManager", vma: "Vma", start: int, end: int) -> None:
    """Make the pages of [start, end) of one area free to go, inside a CLEAR window; it must be anonymous. EINVAL."""
    if not vma.is_anonymous:
        raise KernelError(EINVAL, f"MADV_FREE of {vma!r}, which is not anonymous")
    mm = vma.mm
    geometry = memory.geometry
    range_ = notifier_start(memory, mm, start, end, MMU_NOTIFY_CLEAR)
    for block in mm.page_table.present_blocks(start, end):
        base = block << geometry.pmd_shift
        first, stop = max(start, base), min(end, base + geometry.pmd_size)
        memory.kernel.step()
        leaf = mm.page_table.entries.get(block)
        if isinstance(leaf, PmdLeaf) and _free_huge_pmd(
            memory, vma, block, leaf, whole=stop - first == geometry.pmd_size
        ):
            continue
        at, n = (first - base) >> geometry.page_shift, (stop - first) >> geometry.page_shift
        _free_ptes(memory, vma, block, at, at + n)
    notifier_end(memory, range_)


def _free_huge_pmd(memory: "MemoryManager", vma: "Vma", block: int, leaf: PmdLeaf, *, whole: bool) -> bool:
    # madvise_free_huge_pmd: False to go on with the PTEs, as there is a table now.
    pages = memory.pages
    if leaf.kind is not PmdKind.THP:
        return True
    zone = pages.zone(leaf.pfn)
    i = leaf.pfn - zone.base
    if zone.pgmap is not None or zone.m_mapcount[i] != 1 or not pages.folio_trylock(leaf.pfn):
        return True
    if not whole:
        pages.folio_get(leaf.pfn)
        split_folio(memory, leaf.pfn)
        pages.folio_unlock(leaf.pfn)
        pages.folio_put(leaf.pfn)
        return False
    zone.m_flags[i] &= ~(PG_DIRTY | PG_SWAPBACKED)
    if leaf.dirty:
        vma.mm.page_table.set_leaf(block, leaf.kind, leaf.pfn, leaf.write)
    pages.folio_unlock(leaf.pfn)
    return True


def _free_ptes(memory: "MemoryManager", vma: "Vma", block: int, at: int, end: int) -> None:
    # madvise_free_pte_range, page by page: a large folio is taken whole or split, which gives the lock up.
    pages = memory.pages
    page_table = vma.mm.page_table
    memory.kernel.step()
    while at < end:
        table = page_table.entries.get(block)
        if not isinstance(table, PteTable):
            return
        bit = 1 << at
        nr = 1
        if table.other & bit and table.others[at].kind in _DROPPED:
            # Reading it in again would be more work than a page of zeros.
            zap_others(memory, table, bit, drop_markers=False)
            vpn = (block << memory.geometry.pmd_order) + at
            memory.contents.forget(vma.mm, vpn, vpn + 1)
        elif table.present & ~table.zero & bit:
            page = table.m_pfn[at]
            zone = pages.zone(page)
            if zone.pgmap is None:
                head = pages.folio_head(page)
                size = 1 << zone.m_order[head - zone.base]
                nr = _batch(table, at, end, page, head + size)
                if nr < size:
                    nr = _split(memory, head, size)
                else:
                    _mark_lazyfree(memory, table, span(at, nr), head, size)
        at += nr


def _batch(table: PteTable, at: int, end: int, page: int, stop: int) -> int:
    # folio_pte_batch: how many entries from `at` on map the next pages of the folio, whatever they allow
    n = 1
    while at + n < end and page + n < stop and table.present >> (at + n) & 1 and table.m_pfn[at + n] == page + n:
        n += 1
    return n


def _split(memory: "MemoryManager", head: int, size: int) -> int:
    # A folio that is not all in the range: 0 to look again after the split, else what to skip.
    pages = memory.pages
    zone = pages.zone(head)
    if zone.m_mapcount[head - zone.base] > size or not pages.folio_trylock(head):
        return 1
    pages.folio_get(head)
    error = split_folio(memory, head)
    pages.folio_unlock(head)
    pages.folio_put(head)
    memory.kernel.step()
    return 1 if error else 0


def _mark_lazyfree(memory: "MemoryManager", table: PteTable, mask: int, head: int, size: int) -> None:
    pages = memory.pages
    zone = pages.zone(head)
    i = head - zone.base
    if zone.m_flags[i] & PG_DIRTY:
        # Others may map it too.
        if zone.m_mapcount[i] != size or not pages.folio_trylock(head):
            return
        zone.m_flags[i] &= ~PG_DIRTY
        pages.folio_unlock(head)
    table.dirty &= ~mask
    zone.m_flags[i] &= ~PG_SWAPBACKED
