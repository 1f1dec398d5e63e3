"""mm/rmap.c:try_to_unmap, as of Linux 7.3.4: take a page away from everybody who maps it, for swap or for poison."""

from typing import TYPE_CHECKING

from gpusvm.mm.api import MMU_NOTIFY_CLEAR
from gpusvm.mm.mmu_notifier import notifier_end, notifier_start
from gpusvm.mm.page import PG_ANON_EXCLUSIVE, PG_DIRTY, PG_HWPOISON
from gpusvm.mm.pgtable import OtherPte, PteKind, PteTable

if TYPE_CHECKING:
    from gpusvm.mm.memory_manager import MemoryManager
    from gpusvm.mm.vma import Vma

__all__ = ["try_to_unmap"]


def try_to_unmap(memory: "MemoryManager", pfn: int, *, slot: int = -1) -> None:
    """Put an entry in place of every mapping of a small anonymous folio, which is locked and referenced.

    It is a hwpoison entry if the page is poisoned (TTU_HWPOISON), else the swap entry of `slot`. A page that is
    exclusive and may be pinned is not swapped: the walk ends, and it is still mapped. One CLEAR window in every area
    visited.
    """
    zone = memory.pages.zone(pfn)
    i = pfn - zone.base
    mapping = memory.rmap.mappings.get(zone.m_mapping[i])
    if mapping is None or not zone.m_mapcount[i]:
        return
    with mapping.lock.read():
        for vma, start, _ in memory.rmap.places(pfn):
            if not _try_to_unmap_one(memory, vma, start, pfn, slot) or not zone.m_mapcount[i]:
                return


def _try_to_unmap_one(memory: "MemoryManager", vma: "Vma", address: int, pfn: int, slot: int) -> bool:
    # False ends the walk.
    mm = vma.mm
    zone = memory.pages.zone(pfn)
    at = pfn - zone.base
    range_ = notifier_start(memory, mm, address, address + memory.geometry.page_size, MMU_NOTIFY_CLEAR)
    memory.kernel.step()
    table = mm.page_table.lookup(address)
    done = True
    i = (address >> memory.geometry.page_shift) & (memory.geometry.pmd_nr - 1)
    bit = 1 << i
    if isinstance(table, PteTable) and ((table.present & ~table.zero) | table.devexcl) & bit and table.m_pfn[i] == pfn:
        if zone.m_flags[at] & PG_HWPOISON:
            entry = OtherPte(PteKind.HWPOISON, pfn)
        else:
            exclusive = bool(zone.m_flags[at] & PG_ANON_EXCLUSIVE)
            done = not exclusive or memory.rmap.folio_try_share_anon_rmap(pfn)
            entry = OtherPte(PteKind.SWAP, slot, exclusive)
        if done:
            if table.dirty & bit:
                zone.m_flags[at] |= PG_DIRTY
            table.set_other(i, entry)
            mm.rss[memory.rmap.mm_counter(pfn)] -= 1
            if entry.kind is PteKind.SWAP:
                mm.swapents += 1
                memory.swap.dup(slot)
                memory.swap.write(slot, pfn)  # nobody can write the page any more who could until now
            memory.rmap.folio_remove_rmap_pte(pfn)
            memory.pages.folio_put(pfn)
    notifier_end(memory, range_)
    return done
