"""mm/rmap.c:try_to_migrate and mm/migrate.c:remove_migration_ptes, as of Linux 7.3.4: unmap a folio, map it again.

Both walk the VMAs in which a folio may be mapped, in the order of the tree of its anon_vma or address_space.
Unmapping opens a CLEAR window
in every VMA that it visits, also where the folio is no longer mapped, and stops when nothing maps the folio any more.
Restoring opens no window: what it installs was not visible to anybody.
"""

from typing import TYPE_CHECKING

import numpy as np

from gpusvm.errors import ModelError
from gpusvm.mm.api import MMU_NOTIFY_CLEAR, Pfns
from gpusvm.mm.huge_memory import split_huge_pmd_locked
from gpusvm.mm.mm_struct import MM_ANONPAGES
from gpusvm.mm.mmu_notifier import notifier_end, notifier_start
from gpusvm.mm.observer import tell
from gpusvm.mm.page import PG_ANON_EXCLUSIVE, PG_DIRTY, PG_HWPOISON, Index, Zone
from gpusvm.mm.pgtable import OtherPte, PmdKind, PmdLeaf, PteKind, PteTable
from gpusvm.mm.ptemask import RAMP, bools, from_bools, from_indices, indices, lowest, span
from gpusvm.mm.rmap import AnonVma

if TYPE_CHECKING:
    from gpusvm.mm.memory_manager import MemoryManager
    from gpusvm.mm.mm_struct import MmStruct
    from gpusvm.mm.vma import Vma

__all__ = [
    "mapcount_in",
    "ptes_to_migration",
    "remove_migration_ptes",
    "restore_pages",
    "set_pmd_migration_entry",
    "try_to_migrate",
]


def set_pmd_migration_entry(memory: "MemoryManager", mm: "MmStruct", block: int, leaf: PmdLeaf) -> bool:
    """Put a migration entry in place of a THP or device-private leaf, inside a page-table-lock section.

    The mapping's count and reference go; False, and nothing changed, if the folio may be pinned.
    """
    pages = memory.pages
    pfn = leaf.pfn
    zone = pages.zone(pfn)
    i = pfn - zone.base
    flags = zone.m_flags[i]
    exclusive = flags & PG_ANON_EXCLUSIVE
    if exclusive:
        if not zone.private and memory.pages.folio_maybe_dma_pinned(pfn):
            return False
        flags &= ~PG_ANON_EXCLUSIVE
    elif leaf.write:
        raise ModelError(f"PMD of block {block:#x} maps folio {pfn:#x} writable, which is not exclusive")
    write = leaf.write
    zone.m_flags[i] = flags | PG_DIRTY if leaf.dirty else flags
    mm.page_table.set_leaf(block, PmdKind.MIGRATION, pfn, write, rexcl=bool(exclusive) and not write, dirty=leaf.dirty)
    zone.m_mapcount[i] -= 1
    zone.m_entire[i] -= 1
    pages.folio_put(pfn)
    return True


def ptes_to_migration(memory: "MemoryManager", table: PteTable, mask: int) -> bool:
    """Turn PTEs that map pages of one folio into migration entries, inside a page-table-lock section.

    Their counts and references go; False, and nothing changed, if the folio may be pinned. A device-exclusive entry
    becomes READ_EXCL: it loses that it was writable. A poisoned page gets a hwpoison entry (mm/rmap.c:
    try_to_migrate_one).
    """
    if mask & (mask - 1) == 0:
        return _pte_to_migration(memory, table, mask)
    pages = memory.pages
    first = table.m_pfn[lowest(mask)]
    zone = pages.zone(first)
    head = first - zone.base - zone.m_head_off[first - zone.base]
    where = table.pfns(mask) - zone.base
    flags = zone.flags[where]
    if (flags & PG_HWPOISON).any():
        return all(_pte_to_migration(memory, table, 1 << i) for i in indices(mask).tolist())
    exclusive = flags & PG_ANON_EXCLUSIVE != 0
    rexcl = mask
    if not exclusive.all():
        width = len(table.pfn)
        rexcl = from_indices(indices(mask)[exclusive], width)
    write = table.write & mask
    if write & ~rexcl:
        raise ModelError(f"a page of folio {head + zone.base:#x} is mapped writable and is not exclusive")
    if rexcl and not zone.private and memory.pages.folio_maybe_dma_pinned(head + zone.base):
        return False
    zone.flags[where] = flags & ~np.uint16(PG_ANON_EXCLUSIVE)
    if table.dirty & mask:
        zone.m_flags[head] |= PG_DIRTY
    table.set_migration(mask, write, rexcl & ~write)
    n = mask.bit_count()
    left = zone.m_mapcount[head] - n
    if left < 0:
        raise ModelError(f"folio {head + zone.base:#x} unmapped more often than mapped")
    zone.m_mapcount[head] = left
    pages.folio_put(head + zone.base, n)
    return True


def _pte_to_migration(memory: "MemoryManager", table: PteTable, bit: int) -> bool:
    # ptes_to_migration for one entry, in scalars: evicting small pages comes here once for each.
    page = table.m_pfn[bit.bit_length() - 1]
    zone = memory.pages.zone(page)
    i = page - zone.base
    h = i - zone.m_head_off[i]
    write = table.write & bit
    flags = zone.m_flags[i]
    rexcl = 0
    if flags & PG_HWPOISON:
        table.set_other(bit.bit_length() - 1, OtherPte(PteKind.HWPOISON, page))
        table.mm.rss[MM_ANONPAGES] -= 1
        memory.rmap.folio_remove_rmap_pte(page)
        memory.pages.folio_put(zone.base + h)
        return True
    if flags & PG_ANON_EXCLUSIVE:
        if not zone.private and memory.pages.folio_maybe_dma_pinned(zone.base + h):
            return False
        zone.m_flags[i] = flags & ~PG_ANON_EXCLUSIVE
        rexcl = bit ^ write
    elif write and zone.m_mapping[h] > 0:
        raise ModelError(f"page {page:#x} is mapped writable and is not exclusive")
    if table.dirty & bit:
        zone.m_flags[h] |= PG_DIRTY
    table.set_migration(bit, write, rexcl)
    left = zone.m_mapcount[h] - 1
    if left < 0:
        raise ModelError(f"page {page:#x} unmapped more often than mapped")
    zone.m_mapcount[h] = left
    memory.pages.folio_put(zone.base + h)
    return True


def _naming(table: PteTable, at: int, n: int, pfn: int, kinds: int) -> int:
    # The entries among [at, at + n) of these kinds that name pfn, pfn + 1, …: page_vma_mapped_walk in one table.
    mask = kinds & span(at, n)
    if not mask:
        return 0
    if n == 1:
        return mask if table.m_pfn[at] == pfn else 0
    match = table.pfn[at : at + n] == RAMP[:n] + pfn
    return mask if match.all() else mask & (from_bools(match) << at)


def mapcount_in(memory: "MemoryManager", pfn: int, mm: "MmStruct") -> int:
    """Count the mappings of the folio headed by `pfn` in one address space, inside a page-table-lock section."""
    geometry = memory.geometry
    shift = geometry.page_shift
    zone = memory.pages.zone(pfn)
    index = zone.m_index[pfn - zone.base]
    found = 0
    for vma, start, end in memory.rmap.places(pfn):
        if vma.mm is not mm:
            continue
        address = start
        while address < end:
            block = address >> geometry.pmd_shift
            stop = min(end, (block + 1) << geometry.pmd_shift)
            entry = mm.page_table.entries.get(block)
            if isinstance(entry, PteTable):
                mapped = (entry.present & ~entry.zero) | entry.private | entry.devexcl
                page = pfn + memory.rmap.linear_index(vma, address) - index
                at, n = (address - entry.base) >> shift, (stop - address) >> shift
                found += _naming(entry, at, n, page, mapped).bit_count()
            elif entry is not None and entry.pfn == pfn and entry.kind in {PmdKind.THP, PmdKind.PRIVATE}:
                found += 1
            address = stop
    return found


def try_to_migrate(memory: "MemoryManager", pfn: int, *, split: bool = False, rmap_locked: bool = False) -> None:
    """Turn every mapping of the folio headed by `pfn` into migration entries; the caller looks at what is still mapped.

    The folio is locked. One CLEAR window per VMA visited. `split` turns PMD mappings into PTE migration entries
    (TTU_SPLIT_HUGE_PMD); `rmap_locked` says that the caller holds the lock of its anon_vma (TTU_RMAP_LOCKED).
    """
    zone = memory.pages.zone(pfn)
    i = pfn - zone.base
    rmap = memory.rmap
    if not zone.m_mapcount[i]:
        return
    mapping = rmap.mappings.get(zone.m_mapping[i])
    if mapping is None:
        return
    if not rmap_locked:
        mapping.lock.down_read()
    try:
        for vma, start, end in rmap.places(pfn):
            if not _try_to_migrate_one(memory, vma, start, end, pfn, zone, split=split) or not zone.m_mapcount[i]:
                break
    finally:
        if not rmap_locked:
            mapping.lock.up_read()


def _try_to_migrate_one(
    memory: "MemoryManager", vma: "Vma", start: int, end: int, pfn: int, zone: Zone, *, split: bool
) -> bool:
    # False ends the walk: a page may be pinned.
    mm = vma.mm
    kernel = memory.kernel
    geometry = memory.geometry
    range_ = notifier_start(memory, mm, start, end, MMU_NOTIFY_CLEAR)
    first = start + ((zone.m_index[pfn - zone.base] - memory.rmap.linear_index(vma, start)) << geometry.page_shift)
    done = True
    address = start
    while address < end and done:
        kernel.step()
        block = address >> geometry.pmd_shift
        stop = min(end, (block + 1) << geometry.pmd_shift)
        entry = mm.page_table.entries.get(block)
        if isinstance(entry, PteTable):
            at = (address - entry.base) >> geometry.page_shift
            n = (stop - address) >> geometry.page_shift
            page = pfn + ((address - first) >> geometry.page_shift)
            mapped = (entry.present & ~entry.zero) | entry.private | entry.devexcl
            mask = _naming(entry, at, n, page, mapped)
            if mask:
                done = ptes_to_migration(memory, entry, mask)
        elif entry is not None and entry.pfn == pfn and entry.kind in {PmdKind.THP, PmdKind.PRIVATE}:
            if split:
                split_huge_pmd_locked(memory, mm, block, freeze=True)
            else:
                done = set_pmd_migration_entry(memory, mm, block, entry)
        address = stop
    notifier_end(memory, range_)
    return done


def remove_migration_ptes(
    memory: "MemoryManager", src: int, dst: int, *, use_zero_page: bool = False, rmap_locked: bool = False
) -> None:
    """Map folio `dst` wherever a migration entry names folio `src`, which may be the same; both are heads.

    Each mapping takes a reference and counts; it is writable if the entry was, exclusive unless the entry was READ.
    `use_zero_page` maps the zero page in place of pages that hold zeros (RMP_USE_SHARED_ZEROPAGE).
    """
    rmap = memory.rmap
    zone = memory.pages.zone(dst)
    i = dst - zone.base
    mapping = rmap.mappings.get(zone.m_mapping[i])
    if mapping is None:
        return
    if not rmap_locked:
        mapping.lock.down_read()
    geometry = memory.geometry
    shift = geometry.page_shift
    vmas = mapping.vmas
    if len(vmas) == 1 and zone.m_order[i] == geometry.pmd_order:
        # The usual case of a block: one VMA, and the PMD migration entry where it was.
        vma = vmas[0]
        memory.kernel.step()
        address = vma.start + ((zone.m_index[i] - vma.pgoff) << shift)
        entry = vma.mm.page_table.entries.get(address >> geometry.pmd_shift)
        if isinstance(entry, PmdLeaf) and entry.kind is PmdKind.MIGRATION and entry.pfn == src:
            restore_pmd(memory, vma.mm, address >> geometry.pmd_shift, entry, dst, zone)
            if not rmap_locked:
                mapping.lock.up_read()
            return
    for vma, start, end in rmap.places(dst):
        first = start + ((zone.m_index[i] - rmap.linear_index(vma, start)) << shift)
        address = start
        while address < end:
            memory.kernel.step()
            block = address >> geometry.pmd_shift
            stop = min(end, (block + 1) << geometry.pmd_shift)
            entry = vma.mm.page_table.entries.get(block)
            if isinstance(entry, PteTable):
                skip = (address - first) >> shift
                at, n = (address - entry.base) >> shift, (stop - address) >> shift
                mask = _naming(entry, at, n, src + skip, entry.migration)
                if mask:
                    _restore_ptes(memory, entry, mask, dst + skip - at, zone, use_zero_page=use_zero_page)
            elif entry is not None and entry.kind is PmdKind.MIGRATION and entry.pfn == src:
                restore_pmd(memory, vma.mm, block, entry, dst, zone)
            address = stop
    if not rmap_locked:
        mapping.lock.up_read()


def restore_pmd(memory: "MemoryManager", mm: "MmStruct", block: int, leaf: PmdLeaf, dst: int, zone: Zone) -> None:
    """Map folio `dst` in place of a PMD migration entry (mm/huge_memory.c:remove_migration_pmd)."""
    i = dst - zone.base
    zone.m_refcount[i] += 1
    zone.m_entire[i] += 1
    zone.m_mapcount[i] += 1
    if memory.kernel.observer is not None:
        tell(memory.kernel.observer, "mapped", zone, i)
    if leaf.write or leaf.rexcl:
        zone.m_flags[i] |= PG_ANON_EXCLUSIVE
    kind = PmdKind.PRIVATE if zone.private else PmdKind.THP
    mm.page_table.set_leaf(block, kind, dst, leaf.write, dirty=leaf.dirty and not zone.private)


def _restore_ptes(
    memory: "MemoryManager", table: PteTable, mask: int, first: int, zone: Zone, *, use_zero_page: bool
) -> None:
    # remove_migration_pte for the entries of one table that name one folio; page k of the table maps pfn first + k.
    if use_zero_page and not zone.private and memory.contents.mode == "tokens":
        # try_to_map_unused_to_zeropage
        where = indices(mask) + (first - zone.base)
        unused = (zone.token[where] == 0) & (zone.flags[where] & PG_HWPOISON == 0)
        zero = from_indices(indices(mask)[unused], len(table.pfn))
        if zero:
            table.set_zero(zero, memory.zero_pfn)
            table.mm.rss[MM_ANONPAGES] -= zero.bit_count()
            mask &= ~zero
            if not mask:
                return
    write = table.write & mask
    n = mask.bit_count()
    low = lowest(mask)
    page = first + low - zone.base
    head = page - zone.m_head_off[page]
    exclusive = write | (table.rexcl & mask) if zone.m_mapping[head] > 0 else 0
    zone.m_refcount[head] += n
    zone.m_mapcount[head] += n
    if table.kernel.observer is not None:
        tell(table.kernel.observer, "mapped", zone, head)
    if n == 1:
        if exclusive:
            zone.m_flags[page] |= PG_ANON_EXCLUSIVE
    elif exclusive:
        zone.flags[indices(exclusive) + (first - zone.base)] |= PG_ANON_EXCLUSIVE
    if zone.private:
        table.set_private(mask, first + low, write)
    else:
        table.set_present(mask, first + low, write, table.dirty & mask)


def restore_pages(
    memory: "MemoryManager", src: Pfns, dst_zone: Zone, dst_index: Index, dst: Pfns, *, rmap_locked: bool = False
) -> bool:
    """Map small folios `dst[i]` where migration entries name `src[i]`, all at once; False if it has to go one by one.

    Usual is: one anon_vma, VMAs that cover all of them, one PTE table in each, addresses ascending. Entries that are
    gone stay so. The new mappings take references.
    """
    ids = dst_zone.mapping[dst_index]
    n = len(ids)
    anon_vma = memory.rmap.mappings.get(int(ids[0]))
    if not isinstance(anon_vma, AnonVma) or np.count_nonzero(ids == ids[0]) != n:
        return False
    index = dst_zone.index[dst_index]
    if n > 1 and np.count_nonzero(index[1:] > index[:-1]) != n - 1:
        return False
    if not rmap_locked:
        anon_vma.lock.down_read()
    done = _restore_in_vmas(memory, anon_vma, src, index, dst_zone, dst_index, dst)
    if not rmap_locked:
        anon_vma.lock.up_read()
    return done


def _restore_in_vmas(
    memory: "MemoryManager", anon_vma: AnonVma, src: Pfns, index: Pfns, dst_zone: Zone, dst_index: Index, dst: Pfns
) -> bool:
    low, high = int(index[0]), int(index[-1])
    shift = memory.geometry.page_shift
    pmd_order = memory.geometry.pmd_order
    places: list[tuple[Vma, int, int]] = []  # area, base, block; index + base is a page number
    for vma in anon_vma.vmas:
        last = vma.pgoff + ((vma.end - vma.start) >> shift) - 1
        if vma.pgoff > high or last < low:
            continue
        base = (vma.start >> shift) - vma.pgoff
        block = (low + base) >> pmd_order
        if vma.pgoff > low or last < high or (high + base) >> pmd_order != block:
            return False
        if isinstance(vma.mm.page_table.entries.get(block), PmdLeaf):
            return False  # nothing of these pages, or what MM-Q17 leaves
        places.append((vma, base, block))
    for vma, base, block in places:
        memory.kernel.step()
        table = vma.mm.page_table.entries.get(block)
        if isinstance(table, PteTable):
            _restore_in_table(table, index + (base - (block << pmd_order)), src, dst_zone, dst_index, dst)
    return True


def _restore_in_table(table: PteTable, where: Pfns, src: Pfns, dst_zone: Zone, dst_index: Index, dst: Pfns) -> None:
    # `where` are the pages of the table that mapped src, ascending.
    n = len(where)
    width = len(table.pfn)
    at = int(where[0])
    if int(where[-1]) - at == n - 1:
        mask = span(at, n)
        named = table.pfn[at : at + n]
    else:
        mask = from_indices(where, width)
        named = table.pfn[where]
    if mask & table.migration != mask or np.count_nonzero(named == src) != n:
        # Some entries were zapped meanwhile: keep the pages whose entry is still theirs.
        keep = np.flatnonzero(bools(table.migration, width)[where] & (named == src))
        if not len(keep):
            return
        mask = from_indices(where[keep], width)
        dst = dst[keep]
        dst_index = keep + dst_index.start if isinstance(dst_index, slice) else dst_index[keep]
    write = table.write & mask
    exclusive = write | (table.rexcl & mask)
    dst_zone.refcount[dst_index] += 1
    dst_zone.mapcount[dst_index] += 1
    if table.kernel.observer is not None:
        tell(table.kernel.observer, "mapped", dst_zone, dst_index)
    if exclusive == mask:
        dst_zone.flags[dst_index] |= PG_ANON_EXCLUSIVE
    elif exclusive:
        flagged = bools(exclusive, width)[indices(mask)]
        dst_zone.flags[dst_index] |= np.where(flagged, np.uint16(PG_ANON_EXCLUSIVE), np.uint16(0))
    if dst_zone.private:
        table.set_private(mask, dst, write)
    else:
        table.set_present(mask, dst, write, table.dirty & mask)
