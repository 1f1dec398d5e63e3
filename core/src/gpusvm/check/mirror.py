"""Invariants 54 and 55: page tables of devices.

A notifier callback takes entries back before the mm changes what they mirror, so that they never outlive a page. What
the process has and what a device has may differ for as long as a fault is being served, and no longer. Entries that a
quirk of a driver, as written, leaves behind (`GpuPageTable.mark_stale`) are left out: what they do to contents names
the quirk.
"""

from collections.abc import Iterator, Sequence
from typing import TypeGuard

import numpy as np
import numpy.typing as npt

from gpusvm.check.rules import rule
from gpusvm.check.shadow import EXCLUSIVE, FEW, NONE, PRESENT, PRIVATE, ZERO, Entry, Shadow, entry_at, leaf_entry
from gpusvm.gpu.page_table import ATOMIC, STALE, WRITE, GpuPageTable, PteWindow
from gpusvm.mm import MmStruct
from gpusvm.mm.api import Pfns
from gpusvm.mm.pgtable import PmdLeaf, PteTable

__all__ = ["mirror_entries", "mirror_named", "mirror_written"]

_SAID = {NONE: "no page", ZERO: "the zero page"}


@rule(54)
def mirror_written(s: Shadow, mirror: GpuPageTable, vpn: int, end_vpn: int) -> None:
    """54: entries that were just written name no free page."""
    if mirror.stopped:  # nothing goes through them until it resumes, which is like writing them
        return
    for window in mirror.windows:
        first, end = max(vpn, window.base), min(end_vpn, window.end)
        if first < end:
            i = first - window.base
            _check_free(s, mirror, window, _mapped(window, i, end - window.base))


@rule(54)
def mirror_named(s: Shadow, freed: Sequence[int]) -> None:
    """54: no entry names one of the pages that have just become free."""
    for mirror in _mirrors(s):
        for window in mirror.windows:
            mapped = _mapped(window)
            if len(mapped) <= FEW:
                found = [i for i in mapped if window.m_pfn[i] in freed]
            else:
                at = np.array(mapped)
                found = at[np.isin(window.pfn[at], freed)].tolist()
            if found:
                _check_free(s, mirror, window, found)


@rule(54, 55)
def mirror_entries(s: Shadow) -> None:
    """54, 55: at rest each entry names what the process has there."""
    for mirror in _mirrors(s):
        for window in mirror.windows:
            mapped = _mapped(window)
            if not mapped:
                continue
            _check_free(s, mirror, window, mapped)
            if len(mapped) > FEW:
                at = np.array(mapped)
                mapped = at[_unlike(s, mirror, window, at)].tolist()
            for i in mapped:
                _check_entry(s, mirror, window, i)


def _is_alive(mm: object, s: Shadow) -> TypeGuard[MmStruct]:
    return any(mm is each for each in s.memory.mms)


def _mirrors(s: Shadow) -> Iterator[GpuPageTable]:
    for mirror in s.memory.mirrors:
        if isinstance(mirror, GpuPageTable) and mirror.mapped_pages and not mirror.stopped:
            yield mirror


def _mapped(window: PteWindow, first: int = 0, end: int | None = None) -> list[int]:
    """Return which entries of a window map something, from `first` on and before `end`."""
    perm = window.m_perm[first:end]
    if len(perm) <= FEW:
        return [i for i, each in enumerate(perm, first) if each]
    at = window.perm[first:end].nonzero()[0]
    found: list[int] = (at + first if first else at).tolist()
    return found


def _check_free(s: Shadow, mirror: GpuPageTable, window: PteWindow, mapped: list[int]) -> None:
    pages = s.memory.pages
    if len(mapped) <= FEW:
        for i in mapped:
            pfn = window.m_pfn[i]
            if pages.has_page(pfn):
                zone = pages.zone(pfn)
                if zone.m_refcount[pfn - zone.base - zone.m_head_off[pfn - zone.base]]:
                    continue
            _is_free(s, mirror, window, i)
        return
    at = np.array(mapped)
    pfns = window.pfn[at]
    alive = np.zeros(len(at), np.bool_)
    for zone in pages.zones:
        here = np.flatnonzero((pfns >= zone.base) & (pfns < zone.end))
        if len(here):
            where = pfns[here] - zone.base
            alive[here] = zone.refcount[where - zone.head_off[where]] != 0
    for i in at[~alive].tolist():
        _is_free(s, mirror, window, i)


def _is_free(s: Shadow, mirror: GpuPageTable, window: PteWindow, i: int) -> None:
    if not window.m_perm[i] & STALE:
        place = (_place(s, mirror, window, i),)
        s.report(54, "a device has a free page mapped", addresses=place, pfns=(window.m_pfn[i],))


def _unlike(s: Shadow, mirror: GpuPageTable, window: PteWindow, at: Pfns) -> npt.NDArray[np.bool_]:
    """Tell which entries do not name, page for page, what the process has mapped writable; most do."""
    unlike = np.ones(len(at), np.bool_)
    mm = mirror.mm
    if not _is_alive(mm, s):
        return unlike
    vpns = at + window.base
    blocks = vpns // s.nr
    for block in np.unique(blocks).tolist():
        entry = mm.page_table.entries.get(block)
        here = blocks == block
        inside = vpns[here] - block * s.nr
        if isinstance(entry, PmdLeaf):
            if entry.write and leaf_entry(entry)[0] in {PRESENT, PRIVATE}:
                unlike[here] = window.pfn[at[here]] != entry.pfn + inside
        elif isinstance(entry, PteTable):
            alike = (entry.present | entry.private) & entry.write & ~entry.zero
            known = np.array([alike >> k & 1 for k in range(s.nr)], np.bool_)[inside]
            unlike[here] = ~known | (window.pfn[at[here]] != entry.pfn[inside])
    return unlike


def _check_entry(s: Shadow, mirror: GpuPageTable, window: PteWindow, i: int) -> None:
    perm, pfn = window.m_perm[i], window.m_pfn[i]
    if perm & STALE:
        return
    address = (window.base + i) << s.page_shift
    kind, named, write, _ = _entry(s, mirror.mm, address)
    place = (_place(s, mirror, window, i),)
    if kind in {PRESENT, PRIVATE, EXCLUSIVE}:
        if pfn != named and pfn != _behind(s, named):
            s.report(55, f"a device has page {pfn:#x} mapped, and the process {named:#x}", addresses=place, pfns=(pfn,))
        elif perm & (WRITE | ATOMIC) and not write and kind != EXCLUSIVE:
            what = f"a device may write page {pfn:#x}, and the process may not without a fault"
            s.report(55, what, addresses=place, pfns=(pfn,))
    elif kind == ZERO and pfn == named:
        if perm & (WRITE | ATOMIC):
            s.report(55, "a device may write the zero page", addresses=place, pfns=(pfn,))
    else:
        what = f"a device has page {pfn:#x} mapped, and the process {_SAID.get(kind, 'no page')}"
        s.report(55, what, addresses=place, pfns=(pfn,))


def _entry(s: Shadow, mm: object, address: int) -> Entry:
    """Return what a process has at an address, page by page."""
    found = mm.page_table.lookup(address) if _is_alive(mm, s) else None
    if found is None:
        return (NONE, -1, False, False)
    inside = (address >> s.page_shift) & (s.nr - 1)
    if isinstance(found, PteTable):
        return entry_at(found, inside)
    kind, pfn, write, rexcl = leaf_entry(found)
    return (kind, pfn + inside, write, rexcl)


def _behind(s: Shadow, pfn: int) -> int:
    """Return the page that holds what a driver's dummy stands for."""
    zone = s.memory.pages.zone(pfn)
    return int(s.holding(zone, np.array([pfn - zone.base]))[0])


def _place(s: Shadow, mirror: GpuPageTable, window: PteWindow, i: int) -> tuple[str, int]:
    return (mirror.mm.name, (window.base + i) << s.page_shift)
