"""Invariants 1 to 7: mapping and reference accounting."""

from gpusvm.check.rules import rule
from gpusvm.check.shadow import COUNTED, MIGRATION, ZERO, Change, Shadow, ZoneShadow
from gpusvm.mm.page import PG_ANON_EXCLUSIVE, Index, Zone, positions
from gpusvm.mm.vma import Vma

__all__ = ["mapcount", "mapped_before_referenced", "mapped_once", "page_index", "put_before_uncounted", "refcount"]


@rule(1)
def mapcount(s: Shadow, shadow: ZoneShadow, head: int) -> None:
    """1: the folio's mapcount is the number of entries that map it, entire_mapcount that of PMDs."""
    zone = shadow.zone
    expected = s.mappings(shadow, head)
    if zone.m_mapcount[head] != expected:
        s.report(
            1, f"mapcount is {zone.m_mapcount[head]}, and {expected} entries map the folio", **s.folio(shadow, head)
        )
    if zone.m_entire[head] != shadow.m_pmd[head]:
        s.report(
            1,
            f"entire_mapcount is {zone.m_entire[head]}, and {shadow.m_pmd[head]} PMDs map the folio",
            **s.folio(shadow, head),
        )


@rule(2)
def refcount(s: Shadow, shadow: ZoneShadow, head: int) -> None:
    """2: the folio has a reference for each entry that maps it.

    Compared with the entries and not with the mapcount, so that a wrong mapcount is 1's alone. The exact count, with
    every other holder, is 3's, at rest.
    """
    refs, maps = shadow.zone.m_refcount[head], s.mappings(shadow, head)
    if refs < maps:
        s.report(2, f"the folio has {refs} references, and {maps} entries map it", **s.folio(shadow, head))


def _short(zone: Zone, index: "Index | int") -> list[int]:
    """Return the folios of a batch that have fewer references than mappings."""
    if isinstance(index, int):
        return [index] if zone.m_refcount[index] < zone.m_mapcount[index] else []
    few = zone.refcount[index] < zone.mapcount[index]
    return [i for i, short in zip(positions(index), few.tolist(), strict=True) if short] if few.any() else []


@rule(4)
def mapped_before_referenced(s: Shadow, zone: Zone, index: "Index | int") -> None:
    """4: what has just been counted as a mapping has its reference already."""
    for i in _short(zone, index):
        s.report(
            4,
            f"a mapping is counted before its reference is taken: refcount {zone.m_refcount[i]}, "
            f"mapcount {zone.m_mapcount[i]}",
            pfns=(zone.base + i,),
        )


@rule(4)
def put_before_uncounted(s: Shadow, zone: Zone, index: "Index | int") -> None:
    """4: what has just lost a reference has one for each mapping still counted."""
    for i in _short(zone, index):
        s.report(
            4,
            f"a mapping's reference is put before the mapping is uncounted: refcount {zone.m_refcount[i]}, "
            f"mapcount {zone.m_mapcount[i]}",
            pfns=(zone.base + i,),
        )


@rule(5)
def zero_entry(s: Shadow, change: Change, vma: Vma | None) -> None:
    """5: the zero page and the huge zero folio are mapped read-only."""
    kind, pfn, write, _ = change.new
    if kind == ZERO and write:
        s.report(
            5,
            f"the {'huge ' if change.pmd else ''}zero page is mapped writable",
            addresses=((change.mm.name, change.address),),
            pfns=(pfn,),
            tasks=(change.task,),
        )


@rule(5)
def zero_folio(s: Shadow, shadow: ZoneShadow, head: int) -> None:
    """5: nor are they counted or exclusive."""
    zone = shadow.zone
    if zone.m_mapcount[head] or zone.m_flags[head] & PG_ANON_EXCLUSIVE:
        exclusive = ", and it is AnonExclusive" if zone.m_flags[head] & PG_ANON_EXCLUSIVE else ""
        s.report(5, f"the zero page has mapcount {zone.m_mapcount[head]}{exclusive}", pfns=(zone.base + head,))


@rule(6)
def mapped_once(s: Shadow, change: Change, vma: Vma | None) -> None:
    """6: no other entry of the mm names the anonymous page that this one names.

    Only places that rmap would search are looked at: an entry elsewhere breaks 7 first.
    """
    kind, pfn, _, _ = change.new
    shadow = s.zone(pfn)
    i = pfn - shadow.zone.base
    if shadow.m_pte[i] + shadow.m_pmd[i] + shadow.m_mig[i] < 2:
        return
    if (kind not in COUNTED and kind != MIGRATION) or shadow.zone.m_mapping[i - shadow.zone.m_head_off[i]] <= 0:
        return
    here = [address for mm, address, _ in s.namers(pfn) if mm is change.mm]
    if len(here) > 1:
        s.report(
            6,
            f"{len(here)} entries of one address space name one anonymous page",
            addresses=tuple((change.mm.name, address) for address in here),
            pfns=(pfn,),
            tasks=(change.task,),
        )


@rule(7)
def page_index(s: Shadow, change: Change, vma: Vma | None) -> None:
    """7: the entry lies where the page's index says, in an area that rmap finds; `vma` is what rmap found there."""
    if vma is not None:
        return
    pfn = change.new[1]
    zone = s.memory.pages.zone(pfn)
    i = pfn - zone.base
    head = i - zone.m_head_off[i]
    if not zone.m_mapping[head] and not s.at_rest and change.mm.vma_lookup(change.address) is None:
        return  # a page that a driver has inserted, in an area that munmap has detached and is about to zap
    s.report(
        7,
        f"rmap does not find the page here: mapping {zone.m_mapping[head]}, index {zone.m_index[head] + i - head:#x}",
        addresses=((change.mm.name, change.address),),
        pfns=(pfn,),
        tasks=(change.task,),
    )
