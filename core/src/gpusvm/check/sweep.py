"""Find, in whole zones and tables at once, the folios and entries for which some rule might be broken.

The rules themselves are about one folio or one entry. Most are as they should be, and arrays say so at once; what an
array cannot say is left to the rules.
"""

import numpy as np
import numpy.typing as npt

from gpusvm.check.shadow import Shadow, ZoneShadow
from gpusvm.mm.api import VM_MAYWRITE, Pfns
from gpusvm.mm.page import PG_ANON_EXCLUSIVE, PG_LRU, Index, Zone
from gpusvm.mm.pgtable import PteTable
from gpusvm.mm.ptemask import bools, from_indices, indices

__all__ = ["unusual_entries", "unusual_folio", "unusual_folios", "unusually_held"]


def unusual_folio(shadow: ZoneShadow, i: int) -> bool:
    """Tell whether the rules have to look at page `i`, which is no tail: most small folios are in a state in which no
    rule about folios can be broken.
    """
    zone = shadow.zone
    if zone.m_order[i]:
        return True
    maps = shadow.m_pte[i]
    refs = zone.m_refcount[i]
    if zone.m_mapcount[i] != maps or refs < maps or shadow.m_mig[i] or shadow.m_pmd[i] or zone.m_entire[i]:
        return True
    flags = zone.m_flags[i]
    if flags & PG_ANON_EXCLUSIVE and maps > 1:
        return True
    if zone.pgmap is None:
        return False
    mapping = zone.m_mapping[i]
    if flags & PG_LRU or (not refs and (mapping or flags & PG_ANON_EXCLUSIVE)):
        return True
    return maps > 0 and mapping <= 0


def unusual_folios(shadow: ZoneShadow, index: Index) -> npt.NDArray[np.bool_]:
    """Tell which pages of a batch are heads of folios that the rules have to look at."""
    zone = shadow.zone
    maps = shadow.pte[index] + shadow.pmd[index]
    refs, flags = zone.refcount[index], zone.flags[index]
    exclusive = flags & PG_ANON_EXCLUSIVE != 0
    unusual = (zone.mapcount[index] != maps) | (refs < maps) | (shadow.mig[index] != 0)
    unusual |= (zone.entire[index] != shadow.pmd[index]) | (exclusive & (maps > 1))
    if zone.pgmap is not None:
        mapping = zone.mapping[index]
        unusual |= (flags & PG_LRU != 0) | ((refs == 0) & (exclusive | (mapping != 0))) | ((maps > 0) & (mapping <= 0))
    unusual &= zone.head_off[index] == 0
    unusual |= zone.order[index] > 0
    return np.asarray(unusual, np.bool_)


def unusually_held(shadow: ZoneShadow, nr: int) -> Pfns:
    """Return the mapped small folios of a zone that have another number of references than mappings."""
    zone = shadow.zone
    maps = shadow.pte[:nr]
    return np.flatnonzero(
        (maps > 0) & (zone.refcount[:nr] != maps) & (zone.order[:nr] == 0) & (zone.head_off[:nr] == 0)
    )


def unusual_entries(s: Shadow, table: PteTable, mask: int) -> int:
    """Return the part of `mask` that the rules about entries have to look at."""
    zero = table.zero & mask
    zero &= ~table.special
    unusual = zero & table.write
    named = mask & (table.present | table.private | table.migration | table.devexcl) & ~table.zero
    vpn = table.base >> s.page_shift
    known = s.memory.contents
    if zero and known.mode == "tokens":
        at = indices(zero)
        wrong = known.expected_many(table.mm, at + vpn) != 0
        if wrong.any():
            unusual |= from_indices(at[wrong], s.nr)
    if not named:
        return unusual
    at = indices(named)
    pfns = np.array(table.pfns(named))
    one = s.memory.pages.select(pfns)
    if one is None:
        return unusual | named
    bad = _unusual(s, table, named, at, *one)
    return unusual | (from_indices(at[bad], s.nr) if bad.any() else 0)


def _unusual(s: Shadow, table: PteTable, named: int, at: Pfns, zone: Zone, index: Index) -> npt.NDArray[np.bool_]:
    where = np.arange(index.start, index.stop) if isinstance(index, slice) else index
    shadow = s.zone(zone.base)
    heads = where - zone.head_off[where]
    mapping = zone.mapping[heads]
    offsets = zone.index[heads] + zone.head_off[where]
    writable = bools(table.write & named, s.nr)[at]
    private = bools(table.private, s.nr)[at]
    devexcl = bools(table.devexcl, s.nr)[at]
    moving = bools(table.migration, s.nr)[at]
    exclusive = zone.flags[where] & PG_ANON_EXCLUSIVE != 0
    maps = shadow.pte[where] + shadow.pmd[heads] + shadow.mig[where]
    bad = private != zone.private
    bad &= ~moving
    bad |= moving
    bad |= (mapping > 0) & ((writable & (~exclusive | (maps > 1))) | (devexcl & ~exclusive))
    if zone.private:
        bad |= (mapping <= 0) | (zone.refcount[heads] < 1)
    bad |= ~_in_areas(s, table, at, mapping, offsets, writable)
    known = s.memory.contents
    if known.mode == "tokens":
        wrong = s.tokens(zone, where) != known.expected_many(table.mm, at + (table.base >> s.page_shift))
        bad |= wrong & ~moving & (mapping != 0)
    return np.asarray(bad, np.bool_)


def _in_areas(
    s: Shadow,
    table: PteTable,
    at: Pfns,
    mapping: npt.NDArray[np.int32],
    offsets: npt.NDArray[np.int64],
    writable: npt.NDArray[np.bool_],
) -> npt.NDArray[np.bool_]:
    """Tell which entries lie, by their pages' index, in an area of their mapping that allows them."""
    good = np.zeros(len(at), np.bool_)
    rmap = s.memory.rmap
    for vma in table.mm.vma_tree.overlapping(table.base, table.base + (1 << s.pmd_shift)):
        first = max((vma.start - table.base) >> s.page_shift, 0)
        last = min((vma.end - table.base) >> s.page_shift, s.nr)
        inside = (at >= first) & (at < last)
        linear = vma.pgoff + at + ((table.base - vma.start) >> s.page_shift)
        fits = inside & (offsets == linear)
        if not vma.flags & VM_MAYWRITE:
            fits &= ~writable
        if not vma.is_cow:
            fits &= mapping <= 0
        for number in np.unique(mapping[fits]).tolist():
            found = rmap.mappings.get(number)
            if found is None or vma not in found.vmas:
                fits &= mapping != number
        good |= fits
    return good
