"""Invariants 26 to 35: device-private and ZONE_DEVICE memory."""

import numpy as np

from gpusvm.check.rules import rule
from gpusvm.check.shadow import COUNTED, EXCLUSIVE, MIGRATION, PRESENT, PRIVATE, Change, Shadow, ZoneShadow
from gpusvm.errors import LockdepError
from gpusvm.mm.api import MEMORY_DEVICE_COHERENT, MEMORY_DEVICE_PRIVATE, DevPagemap
from gpusvm.mm.page import PG_ANON_EXCLUSIVE, PG_LRU, Index, Zone, positions
from gpusvm.mm.vma import Vma

__all__ = [
    "entry_type",
    "folios_freed",
    "folios_made",
    "free_device_page",
    "free_slept",
    "no_lru",
    "pgmap_done",
    "pgmap_given",
    "pgmap_refs",
    "pmd_entry",
    "private_anon",
    "split_parts",
]


@rule(26)
def entry_type(s: Shadow, change: Change, vma: Vma | None) -> None:
    """26: the entry's kind is the one for its page's memory."""
    kind, pfn, _, _ = change.new
    private = s.memory.pages.zone(pfn).private
    if kind == PRESENT and private:
        what = "a present entry names a device-private page"
    elif kind == PRIVATE and not private:
        what = "a device-private entry names a page that is not"
    elif kind == EXCLUSIVE and private:
        what = "a device-exclusive entry names a device-private page"
    else:
        return
    s.report(26, what, addresses=((change.mm.name, change.address),), pfns=(pfn,), tasks=(change.task,))


@rule(27)
def private_anon(s: Shadow, change: Change, vma: Vma | None) -> None:
    """27: a device-private entry names a live anonymous folio, in an area with copy-on-write."""
    kind, pfn, _, _ = change.new
    if kind != PRIVATE:
        return
    zone = s.memory.pages.zone(pfn)
    i = pfn - zone.base
    head = i - zone.m_head_off[i]
    found = []
    if zone.m_mapping[head] <= 0:
        found.append(f"its mapping is {zone.m_mapping[head]}")
    if zone.m_refcount[head] < 1:
        found.append("it is free")
    if zone.pgmap is not None and zone.pgmap not in s.memory.pagemaps.regions:
        found.append("its pagemap is gone")
    if vma is not None and not vma.is_cow:
        found.append(f"{vma!r} has no copy-on-write")
    if found:
        s.report(
            27,
            f"a device-private entry names a folio, and {', '.join(found)}",
            addresses=((change.mm.name, change.address),),
            pfns=(pfn,),
            tasks=(change.task,),
        )


@rule(27)
def private_folio(s: Shadow, shadow: ZoneShadow, head: int) -> None:
    """27: nor does the folio lose its mapping later."""
    zone = shadow.zone
    if zone.private and zone.m_mapping[head] <= 0 and s.mappings(shadow, head):
        s.report(
            27,
            f"a device-private entry names a folio, and its mapping is {zone.m_mapping[head]}",
            **s.folio(shadow, head),
        )


@rule(28)
def no_lru(s: Shadow, shadow: ZoneShadow, head: int) -> None:
    """28: a ZONE_DEVICE folio is on no LRU."""
    if shadow.zone.pgmap is not None and shadow.zone.m_flags[head] & PG_LRU:
        s.report(28, "a ZONE_DEVICE folio is on an LRU", **s.folio(shadow, head))


@rule(29)
def free_device_page(s: Shadow, shadow: ZoneShadow, head: int) -> None:
    """29: a free private or coherent page is unmapped and clean, and nothing names it."""
    zone = shadow.zone
    if zone.pgmap is None or zone.pgmap.type not in {MEMORY_DEVICE_PRIVATE, MEMORY_DEVICE_COHERENT}:
        return
    if zone.m_refcount[head]:
        return
    found = []
    if zone.m_mapping[head]:
        found.append(f"its mapping is {zone.m_mapping[head]}")
    end = head + (1 << zone.m_order[head])
    maps = shadow.pte[head:end] + shadow.pmd[head:end]
    flagged = np.flatnonzero(zone.flags[head:end] & PG_ANON_EXCLUSIVE).tolist()
    found += [f"page {zone.base + head + i:#x} is AnonExclusive" for i in flagged]
    found += [f"{maps[i]} entries map page {zone.base + head + i:#x}" for i in np.flatnonzero(maps).tolist()]
    if found:
        s.report(29, f"a device folio is free, and {', '.join(found)}", **s.folio(shadow, head))


@rule(30)
def pgmap_refs(s: Shadow, shadow: ZoneShadow, pgmap: DevPagemap, given: int) -> None:
    """30: the pagemap's references are its live pages', get_dev_pagemap's, and its own until it is killed."""
    expected = given + shadow.live_pages
    if pgmap.type not in {MEMORY_DEVICE_PRIVATE, MEMORY_DEVICE_COHERENT}:
        expected = given + (0 if pgmap.killed else pgmap.nr_pages)
    expected += 0 if pgmap.killed else 1
    if pgmap.ref != expected:
        s.report(
            30,
            f"the pagemap of pfn {pgmap.start_pfn:#x} has {pgmap.ref} references, {expected} are accounted for: "
            f"{shadow.live_pages} pages live, {given} given, {'killed' if pgmap.killed else 'not killed'}",
            pfns=(pgmap.start_pfn,),
        )


@rule(31)
def pgmap_done(s: Shadow, pgmap: DevPagemap) -> None:
    """31: the pagemap is done, so nothing refers to it and no entry names its pages."""
    if pgmap.ref:
        s.report(31, f"the pagemap is done with {pgmap.ref} references", pfns=(pgmap.start_pfn,))
    shadow = s.zone(pgmap.start_pfn)
    for i in np.flatnonzero((shadow.pte > 0) | (shadow.pmd > 0) | (shadow.mig > 0)).tolist():
        pfn = shadow.zone.base + i
        s.report(31, "the pagemap is done, and its page is mapped", addresses=s.places(pfn), pfns=(pfn,))


@rule(31)
def pgmap_given(s: Shadow, pgmap: DevPagemap) -> None:
    """31: a pagemap that is killed gives no reference."""
    if pgmap.killed:
        s.report(31, "a killed pagemap gives a reference", pfns=(pgmap.start_pfn,))


@rule(32)
def folios_made(s: Shadow, shadow: ZoneShadow, index: "Index | int", order: int) -> None:
    """32: a life begins where none is."""
    for i in [index] if isinstance(index, int) else positions(index):
        if shadow.m_live[i]:
            s.report(32, "a device folio is made that was not freed", pfns=(shadow.zone.base + i,))
        else:
            shadow.live_pages += 1 << order
        shadow.m_live[i] = order + 1


@rule(32)
def folios_freed(s: Shadow, shadow: ZoneShadow, index: "Index | int", order: int) -> None:
    """32: a life ends once, at refcount 0, with the order it had."""
    zone = shadow.zone
    for i in [index] if isinstance(index, int) else positions(index):
        live = shadow.m_live[i]
        if live != order + 1:
            was = f"a folio of order {live - 1}" if live else "free"
            s.report(32, f"folio_free of order {order}, and the page is {was}", pfns=(zone.base + i,))
        if zone.m_refcount[i]:
            s.report(32, f"folio_free at refcount {zone.m_refcount[i]}", pfns=(zone.base + i,))
        if live:
            shadow.live_pages -= 1 << (live - 1)
        shadow.m_live[i] = 0


@rule(33)
def split_parts(s: Shadow, shadow: ZoneShadow, i: int, order: int) -> None:
    """33: each part of the split folio has the driver's data and is of the same pagemap; each is a life of its own."""
    zone: Zone = shadow.zone
    nr = 1 << order
    shadow.live[i : i + nr] = 1
    if i + nr > zone.nr:
        s.report(33, f"a folio of {nr} pages reaches out of its pagemap", pfns=(zone.base + i,))
    if not zone.m_zdd[i] >> 1:
        return
    for k in np.flatnonzero(zone.zdd[i : i + nr] >> 1 == 0).tolist():
        s.report(33, "a part of a split device folio has no zone_device_data", pfns=(zone.base + i + k,))


@rule(34)
def free_slept(s: Shadow, zone: Zone, index: "Index | int", error: LockdepError) -> None:
    """34: folio_free may run under a page-table lock, so it does not sleep."""
    i = index if isinstance(index, int) else positions(index)[0]
    s.report(34, f"folio_free sleeps: {str(error).splitlines()[0]}", pfns=(zone.base + i,))


@rule(35)
def pmd_entry(s: Shadow, change: Change, vma: Vma | None) -> None:
    """35: a PMD names the head of a PMD-order folio, in an area that covers the block."""
    kind, pfn, _, _ = change.new
    if not change.pmd or (kind not in COUNTED and kind != MIGRATION):
        return
    zone = s.memory.pages.zone(pfn)
    i = pfn - zone.base
    found = []
    if zone.m_head_off[i] or zone.m_order[i] != s.memory.geometry.pmd_order:
        found.append("names no head of a PMD-order folio")
    if kind == EXCLUSIVE:
        found.append("is device-exclusive")
    if vma is not None and not vma.covers(change.address, change.address + s.memory.geometry.pmd_size):
        found.append(f"lies in {vma!r}, which does not cover the block")
    if found:
        known = None
        if s.memory.quirks.mm_q17 == "as_written" and {pfn, change.old[1]} & s.split_unmapped.keys():
            known = "mm_q17"
            s.spoilt.update(dict.fromkeys(range(pfn, pfn + s.nr), known))
        s.report(
            35,
            f"a PMD {' and '.join(found)}",
            addresses=((change.mm.name, change.address),),
            pfns=(pfn,),
            tasks=(change.task,),
            known=known,
        )
