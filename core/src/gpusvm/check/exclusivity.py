"""Invariants 8 to 13: exclusivity and writability."""

import numpy as np

from gpusvm.check.rules import rule
from gpusvm.check.shadow import (
    EXCLUSIVE,
    FEW,
    MIGRATION,
    NONE,
    PRESENT,
    PRIVATE,
    ZERO,
    Change,
    Shadow,
    ZoneShadow,
)
from gpusvm.mm.api import VM_MAYWRITE, VM_WRITE
from gpusvm.mm.mm_struct import MmStruct
from gpusvm.mm.page import PG_ANON_EXCLUSIVE
from gpusvm.mm.pgtable import PmdLeaf
from gpusvm.mm.ptemask import lowest, span
from gpusvm.mm.vma import Vma

__all__ = [
    "change_protection_done",
    "exclusive_once",
    "fork_done",
    "hole_permission",
    "may_write",
    "migration_exclusive",
    "migration_exclusive_page",
    "writable_exclusive",
]


@rule(8)
def exclusive_once(s: Shadow, shadow: ZoneShadow, head: int) -> None:
    """8: a mapped page that is AnonExclusive is mapped once; under a PMD only the head has the flag.

    A page of a large folio that nothing maps may keep the flag until the folio is split or freed
    (mm/huge_memory.c:__split_folio_to_order).
    """
    zone = shadow.zone
    nr = 1 << zone.m_order[head]
    pmd = shadow.m_pmd[head]
    if nr == 1:
        flagged = [head] if zone.m_flags[head] & PG_ANON_EXCLUSIVE else []
    elif nr <= FEW:
        flagged = [head + k for k, flags in enumerate(zone.m_flags[head : head + nr]) if flags & PG_ANON_EXCLUSIVE]
    else:
        flagged = (np.flatnonzero(zone.flags[head : head + nr] & PG_ANON_EXCLUSIVE) + head).tolist()
    for i in flagged:
        maps = shadow.m_pte[i] + pmd
        if maps > 1:
            s.report(
                8,
                f"the page is AnonExclusive, and {maps} entries map it",
                addresses=s.places(zone.base + i) if not pmd else s.places(zone.base + head, nr),
                pfns=(zone.base + i,),
            )


@rule(9)
def writable_exclusive(s: Shadow, change: Change, vma: Vma | None) -> None:
    """9: a writable entry of an anonymous page, or a device-exclusive one, names an AnonExclusive page.

    Not said of a page that two entries map: that is 12's.
    """
    kind, pfn, write, _ = change.new
    if not (kind == EXCLUSIVE or (write and kind in {PRESENT, PRIVATE})):
        return
    shadow = s.zone(pfn)
    zone = shadow.zone
    i = pfn - zone.base
    if zone.m_flags[i] & PG_ANON_EXCLUSIVE or zone.m_mapping[i - zone.m_head_off[i]] <= 0:
        return
    if shadow.m_pte[i] + shadow.m_pmd[i] > 1:
        return
    s.report(
        9,
        f"a {'device-exclusive' if kind == EXCLUSIVE else 'writable'} entry names a page that is not AnonExclusive",
        addresses=((change.mm.name, change.address),),
        pfns=(pfn,),
        tasks=(change.task,),
    )


@rule(9)
def lost_exclusive(s: Shadow, shadow: ZoneShadow, i: int) -> None:
    """9: a page that is not AnonExclusive any more has no such entry left."""
    zone = shadow.zone
    if zone.m_flags[i] & PG_ANON_EXCLUSIVE or not shadow.m_pte[i] + shadow.m_pmd[i]:
        return
    for mm, address, entry in s.namers(zone.base + i):
        pmd = entry[0] in {PRESENT, PRIVATE} and bool(shadow.m_pmd[i])
        writable_exclusive(s, Change(mm, address, entry, entry, s.kernel.current, pmd=pmd), None)


@rule(10)
def migration_exclusive(s: Shadow, change: Change, vma: Vma | None) -> None:
    """10: nothing else names an anonymous page that a WRITE or READ_EXCLUSIVE migration entry names."""
    kind, pfn, write, rexcl = change.new
    if kind != MIGRATION or not (write or rexcl):
        return
    shadow = s.zone(pfn)
    zone = shadow.zone
    i = pfn - zone.base
    if zone.m_mapping[i - zone.m_head_off[i]] <= 0:
        return
    others = shadow.m_pte[i] + shadow.m_pmd[i] + shadow.m_mig[i] - 1
    if others:
        s.report(
            10,
            f"a {'WRITE' if write else 'READ_EXCLUSIVE'} migration entry names a page that {others} others name",
            addresses=s.places(pfn),
            pfns=(pfn,),
            tasks=(change.task,),
        )


@rule(10)
def migration_exclusive_page(s: Shadow, shadow: ZoneShadow, head: int) -> None:
    """10: nor is the page AnonExclusive."""
    zone = shadow.zone
    if zone.m_mapping[head] < 0:
        return
    if not zone.m_order[head] and not (shadow.m_mig[head] and zone.m_flags[head] & PG_ANON_EXCLUSIVE):
        return
    end = head + (1 << zone.m_order[head])
    if not s.migrating(shadow, head):
        return
    named = (shadow.mig[head:end] > 0) & (zone.flags[head:end] & PG_ANON_EXCLUSIVE != 0)
    for i in (np.flatnonzero(named) + head).tolist():
        for mm, address, (kind, _, write, rexcl) in s.namers(zone.base + i):
            if kind == MIGRATION and (write or rexcl):
                s.report(
                    10,
                    f"a {'WRITE' if write else 'READ_EXCLUSIVE'} migration entry names a page that is AnonExclusive",
                    addresses=((mm.name, address),),
                    pfns=(zone.base + i,),
                )


@rule(11)
def may_write(s: Shadow, change: Change, vma: Vma | None) -> None:
    """11: a writable entry lies in an area that may be written."""
    if change.new[2] and vma is not None and not vma.flags & VM_MAYWRITE:
        s.report(
            11,
            f"a writable entry lies in {vma!r}, which may not be written",
            addresses=((change.mm.name, change.address),),
            pfns=(change.new[1],),
            tasks=(change.task,),
        )


@rule(11)
def change_protection_done(s: Shadow, vma: Vma, start: int, end: int) -> None:
    """11: mprotect has left no writable entry where it has taken VM_WRITE away."""
    if vma.flags & VM_WRITE:
        return
    page_table = vma.mm.page_table
    for block in page_table.present_blocks(start, end):
        entry = page_table.entries[block]
        base = block << page_table.pmd_shift
        if isinstance(entry, PmdLeaf):
            if entry.write:
                s.report(11, f"mprotect has left {entry!r}", addresses=((vma.mm.name, base),), pfns=(entry.pfn,))
            continue
        first, last = max(start, base), min(end, base + (1 << page_table.pmd_shift))
        left = entry.write & span((first - base) >> s.page_shift, (last - first) >> s.page_shift)
        if left:
            i = lowest(left)
            s.report(
                11,
                f"mprotect has left {left.bit_count()} writable PTEs",
                addresses=((vma.mm.name, base + (i << s.page_shift)),),
                pfns=(entry.m_pfn[i],),
            )


@rule(12)
def fork_done(s: Shadow, parent: MmStruct, child: MmStruct) -> None:
    """12: no anonymous page that parent and child map is writable in either."""
    for mm, address, entry in _shared_writable(s, child):
        _report_shared(s, mm, address, entry)


def _shared_writable(s: Shadow, only: MmStruct) -> list[tuple[MmStruct, int, tuple[int, int, bool, bool]]]:
    found = []
    for entry in only.page_table.entries.values():
        if isinstance(entry, PmdLeaf):
            pfns = [entry.pfn]
        else:
            mapped = (entry.present & ~entry.zero) | entry.private
            pfns = entry.pfns(mapped).tolist()
        for pfn in pfns:
            shadow = s.zone(pfn)
            i = pfn - shadow.zone.base
            if shadow.m_pte[i] + shadow.m_pmd[i] > 1 and shadow.zone.m_mapping[i - shadow.zone.m_head_off[i]] > 0:
                found += [name for name in s.namers(pfn) if name[2][2]]
    return found


def _report_shared(s: Shadow, mm: MmStruct, address: int, entry: tuple[int, int, bool, bool]) -> None:
    s.report(
        12,
        "a page that two address spaces map is writable in one",
        addresses=((mm.name, address),),
        pfns=(entry[1],),
    )


@rule(12)
def shared_read_only(s: Shadow, change: Change, vma: Vma | None) -> None:
    """12: nor does anybody make it so later."""
    kind, pfn, write, _ = change.new
    if not write or kind not in {PRESENT, PRIVATE}:
        return
    shadow = s.zone(pfn)
    zone = shadow.zone
    i = pfn - zone.base
    if shadow.m_pte[i] + shadow.m_pmd[i] > 1 and zone.m_mapping[i - zone.m_head_off[i]] > 0:
        if not zone.m_flags[i] & PG_ANON_EXCLUSIVE:
            _report_shared(s, change.mm, change.address, change.new)


@rule(13)
def hole_permission(s: Shadow, change: Change, vma: Vma | None) -> None:
    """13: what was none or the zero page becomes a device-private READ entry where the area lacks VM_WRITE."""
    if change.old[0] in {NONE, ZERO} and change.new[0] == PRIVATE and change.new[2]:
        if vma is not None and not vma.flags & VM_WRITE:
            s.report(
                13,
                f"a hole in {vma!r} is filled with a WRITE device-private entry",
                addresses=((change.mm.name, change.address),),
                pfns=(change.new[1],),
                tasks=(change.task,),
            )
