"""mm/migrate_device.c:migrate_vma_insert_page, as of Linux 7.3.4: fill holes of a VMA with the driver's pages."""

from typing import TYPE_CHECKING

import numpy as np

from gpusvm.errors import ModelError
from gpusvm.mm.api import (
    MEMORY_DEVICE_COHERENT,
    MIGRATE_PFN_MIGRATE,
    MIGRATE_PFN_SHIFT,
    VM_UFFD_MISSING,
    VM_WRITE,
    MigrateVma,
    Pfns,
)
from gpusvm.mm.huge_memory import split_huge_pmd
from gpusvm.mm.mm_struct import MM_ANONPAGES, MMF_UNSTABLE
from gpusvm.mm.pgtable import PmdKind, PmdLeaf, PteTable
from gpusvm.mm.ptemask import bools, from_indices
from gpusvm.mm.vma import anon_vma_prepare

if TYPE_CHECKING:
    from gpusvm.mm.memory_manager import MemoryManager
    from gpusvm.mm.vma import Vma

__all__ = ["insert_huge_pmd_page", "insert_pages"]


def _may_insert(memory: "MemoryManager", vma: "Vma", pfn: int) -> bool:
    # Only private and coherent device pages and system pages can be mapped into an anonymous VMA.
    pgmap = memory.pages.zone(pfn).pgmap
    return vma.is_anonymous and (
        pgmap is None or memory.pages.zone(pfn).private or pgmap.type == MEMORY_DEVICE_COHERENT
    )


def insert_huge_pmd_page(memory: "MemoryManager", args: MigrateVma, vma: "Vma", address: int, pfn: int) -> bool:
    """Map a PMD-order folio into a PMD hole or over the huge zero page; False if that cannot be (any more).

    The mapping takes a reference and is exclusive (migrate_vma_insert_huge_pmd_page).
    """
    geometry = memory.geometry
    mm = vma.mm
    if not _may_insert(memory, vma, pfn) or not vma.covers(address, address + geometry.pmd_size):
        return False
    if memory.pages.folio_order(pfn) != geometry.pmd_order:
        raise ModelError(f"destination {pfn:#x} of a PMD hole has order {memory.pages.folio_order(pfn)}")
    anon_vma_prepare(memory, vma)
    if memory.kernel.inject("alloc.pte_table"):  # the one to deposit
        return False
    memory.kernel.step()
    block = address >> geometry.pmd_shift
    entry = mm.page_table.entries.get(block)
    if mm.flags & MMF_UNSTABLE or vma.flags & VM_UFFD_MISSING:
        return False
    if entry is not None and not (isinstance(entry, PmdLeaf) and entry.kind is PmdKind.HUGE_ZERO):
        return False
    zone = memory.pages.zone(pfn)
    zone.m_refcount[pfn - zone.base] += 1
    memory.rmap.folio_add_new_anon_rmap(pfn, vma, address)
    mm.rss[MM_ANONPAGES] += geometry.pmd_nr
    write = bool(vma.flags & VM_WRITE)
    mm.page_table.set_leaf(
        block, PmdKind.PRIVATE if zone.private else PmdKind.THP, pfn, write, dirty=write and not zone.private
    )
    return True


def insert_pages(memory: "MemoryManager", args: MigrateVma, vma: "Vma", where: Pfns) -> None:
    """Map the small destinations of the holes `where` (indices into args.src, ascending, all of one block).

    An entry of src becomes MIGRATE, or loses it where the PTE is no longer none or the zero page. Each mapping takes a
    reference and is exclusive; it is writable if the VMA is.
    """
    geometry = memory.geometry
    shift = geometry.page_shift
    pfns = (args.dst[where] >> MIGRATE_PFN_SHIFT).astype(np.int64)
    table = _table(memory, args, vma, args.start + (int(where[0]) << shift))
    if table is None or not _may_insert(memory, vma, int(pfns[0])):
        args.src[where] &= ~np.uint64(MIGRATE_PFN_MIGRATE)
        return
    mm = vma.mm
    positions = where + ((args.start - table.base) >> shift)
    mask = from_indices(positions, geometry.pmd_nr)
    taken = mask & table.used & ~table.zero
    if mm.flags & MMF_UNSTABLE or vma.flags & VM_UFFD_MISSING:
        taken = mask
    if taken:
        # Somebody was faster: a CPU fault, as a rule.
        free = ~bools(taken, geometry.pmd_nr)[positions]
        args.src[where[~free]] &= ~np.uint64(MIGRATE_PFN_MIGRATE)
        where, pfns, positions = where[free], pfns[free], positions[free]
        mask &= ~taken
        if not mask:
            return
    for zone, index, part in memory.pages.split(pfns):
        zone.refcount[index] += 1
        memory.rmap.folios_add_new_anon_rmap(pfns[part], vma, args.start + (where[part] << shift))
        some = mask if len(pfns) == len(pfns[part]) else from_indices(positions[part], geometry.pmd_nr)
        write = some if vma.flags & VM_WRITE else 0
        if zone.private:
            table.set_private(some, pfns[part], write)
        else:
            table.set_present(some, pfns[part], write, write)
    mm.rss[MM_ANONPAGES] += len(where)
    args.src[where] = MIGRATE_PFN_MIGRATE


def _table(memory: "MemoryManager", args: MigrateVma, vma: "Vma", address: int) -> PteTable | None:
    # The table to insert into, with the section of its lock begun; None if a leaf is in the way or there is no memory.
    if not vma.is_anonymous:
        return None
    page_table = vma.mm.page_table
    block = address >> memory.geometry.pmd_shift
    entry = page_table.entries.get(block)
    if isinstance(entry, PmdLeaf):
        if entry.kind is not PmdKind.HUGE_ZERO:
            return None
        split_huge_pmd(memory, vma, address)
    elif entry is None and memory.kernel.inject("alloc.pte_table"):
        return None
    anon_vma_prepare(memory, vma)
    memory.kernel.step()
    if isinstance(page_table.entries.get(block), PmdLeaf):
        return None
    return page_table.table(block)
