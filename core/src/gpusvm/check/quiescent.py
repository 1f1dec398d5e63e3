"""Check what must hold of the mm while no task is inside a migrate, split, zap or fault operation.

Each function checks one or two of the numbered rules (docs/reference/invariants.md) and yields a `Violation` for each
place that breaks one. They read only; struct pages are compared a zone at a time.
"""

from collections.abc import Callable, Iterator
from typing import Final

import numpy as np
import numpy.typing as npt
from attrs import define, frozen

from gpusvm.errors import ModelError
from gpusvm.mm import MemoryManager, MmStruct
from gpusvm.mm.api import VM_MAYWRITE
from gpusvm.mm.mm_struct import MM_ANONPAGES
from gpusvm.mm.page import PG_ANON_EXCLUSIVE, PG_LOCKED, PG_LRU, Zone
from gpusvm.mm.pgtable import PmdKind, PmdLeaf

__all__ = ["QUIESCENT", "Violation", "check_quiescent", "violations"]

Counts = npt.NDArray[np.int64]

# A broken rule is reported this many times; the rest would say the same.
_SHOWN: Final = 8


@frozen(kw_only=True)
class Violation:
    """Say which rule is broken where: its number, what was expected and found, and the pfn or address."""

    invariant: int
    what: str

    def __str__(self) -> str:
        """Say it in one line."""
        return f"invariant {self.invariant}: {self.what}"


class _Pages:
    """Show the first struct pages of a zone: the rest was never given out, and no entry names it."""

    def __init__(self, zone: Zone, nr: int) -> None:
        self.whole = zone
        self.base = zone.base
        self.nr = nr
        self.pgmap = zone.pgmap
        self.private = zone.private
        self.refcount = zone.refcount[:nr]
        self.mapcount = zone.mapcount[:nr]
        self.entire = zone.entire[:nr]
        self.flags = zone.flags[:nr]
        self.order = zone.order[:nr]
        self.head_off = zone.head_off[:nr]
        self.mapping = zone.mapping[:nr]

    def __repr__(self) -> str:
        """Show the zone."""
        return repr(self.whole)


@define(eq=False)
class _Mappings:
    """Count, for each page of one zone, the entries of all address spaces that name it."""

    zone: _Pages
    pte: Counts  # present, device-private and device-exclusive PTEs that name the page
    pmd: Counts  # PMD leaves that name the folio, on the head
    migration: Counts  # migration entries of both levels


def _mappings(memory: MemoryManager) -> list[_Mappings]:
    zones = memory.pages.zones
    counts = [{column: np.zeros(zone.nr, np.int64) for column in ("pte", "pmd", "migration")} for zone in zones]
    used = [zone.used for zone in zones]

    def add(pfns: npt.NDArray[np.int64], column: str) -> None:
        for k, zone in enumerate(zones):
            inside = pfns[(pfns >= zone.base) & (pfns < zone.end)] - zone.base
            if len(inside):
                np.add.at(counts[k][column], inside, 1)
                used[k] = max(used[k], int(inside.max()) + 1)

    for mm in memory.mms:
        for entry in mm.page_table.entries.values():
            if isinstance(entry, PmdLeaf):
                if entry.kind is not PmdKind.HUGE_ZERO:
                    column = "migration" if entry.kind is PmdKind.MIGRATION else "pmd"
                    add(np.array([entry.pfn], np.int64), column)
                continue
            named = (entry.present & ~entry.zero) | entry.private | entry.devexcl
            if named:
                add(entry.pfns(named), "pte")
            if entry.migration:
                add(entry.pfns(entry.migration), "migration")
    return [
        _Mappings(_Pages(zone, nr), **{column: count[:nr] for column, count in columns.items()})
        for zone, nr, columns in zip(zones, used, counts, strict=True)
    ]


def _mapcounts(memory: MemoryManager, mappings: list[_Mappings]) -> Iterator[Violation]:
    """1: mapcount is the number of mappings; entire_mapcount that of PMD mappings."""
    for each in mappings:
        zone = each.zone
        large = np.flatnonzero((zone.order > 0) & (zone.refcount > 0))
        expected = each.pte.copy()
        for head in large.tolist():
            nr = 1 << int(zone.order[head])
            total = int(each.pte[head : head + nr].sum() + each.pmd[head])
            expected[head : head + nr] = 0
            expected[head] = total
        for i in np.flatnonzero(zone.mapcount != expected)[:_SHOWN].tolist():
            yield Violation(
                invariant=1,
                what=f"pfn {zone.base + i:#x} has mapcount {zone.mapcount[i]}, but {expected[i]} entries map it",
            )
        for i in np.flatnonzero(zone.entire != each.pmd)[:_SHOWN].tolist():
            yield Violation(
                invariant=1,
                what=f"folio {zone.base + i:#x} has entire_mapcount {zone.entire[i]}, but {each.pmd[i]} PMDs map it",
            )


def _refcounts(memory: MemoryManager, mappings: list[_Mappings]) -> Iterator[Violation]:
    """2 and 3: a mapped folio has at least a reference for each mapping; a device-private one exactly that."""
    for each in mappings:
        zone = each.zone
        heads = zone.head_off == 0
        low = heads & (zone.refcount < zone.mapcount)
        for i in np.flatnonzero(low)[:_SHOWN].tolist():
            yield Violation(
                invariant=2,
                what=f"folio {zone.base + i:#x} has {zone.refcount[i]} references for {zone.mapcount[i]} mappings",
            )
        if zone.private:
            wrong = heads & (zone.mapcount > 0) & (zone.refcount != zone.mapcount)
            for i in np.flatnonzero(wrong)[:_SHOWN].tolist():
                yield Violation(
                    invariant=3,
                    what=(
                        f"device folio {zone.base + i:#x} is mapped {zone.mapcount[i]} times, "
                        f"but has {zone.refcount[i]} references"
                    ),
                )


def _no_migration(memory: MemoryManager, mappings: list[_Mappings]) -> Iterator[Violation]:
    """15 and 25: nothing migrates, so there is no migration entry and no folio is locked."""
    for each in mappings:
        zone = each.zone
        for i in np.flatnonzero(each.migration)[:_SHOWN].tolist():
            yield Violation(
                invariant=15,
                what=f"pfn {zone.base + i:#x} has {each.migration[i]} migration entries, nobody migrates it",
            )
        for i in np.flatnonzero(zone.flags & PG_LOCKED)[:_SHOWN].tolist():
            yield Violation(invariant=25, what=f"folio {zone.base + i:#x} is still locked")


def _exclusive(memory: MemoryManager, mappings: list[_Mappings]) -> Iterator[Violation]:
    """8 and 9: an exclusive page is mapped at most once; a writable entry of an anonymous page names such a one."""
    zone_of = memory.pages.zone
    for each in mappings:
        zone = each.zone
        shared = ((zone.flags & PG_ANON_EXCLUSIVE) != 0) & (each.pte > 1)
        for i in np.flatnonzero(shared)[:_SHOWN].tolist():
            yield Violation(invariant=8, what=f"pfn {zone.base + i:#x} is AnonExclusive, but {each.pte[i]} PTEs map it")
    for mm in memory.mms:
        for block, entry in mm.page_table.entries.items():
            if isinstance(entry, PmdLeaf):
                if entry.write and entry.kind is not PmdKind.MIGRATION:
                    named = zone_of(entry.pfn)
                    if not named.flags[entry.pfn - named.base] & PG_ANON_EXCLUSIVE:
                        yield _writable_shared(mm, block << mm.page_table.pmd_shift, entry.pfn)
                continue
            writable = (entry.write & ((entry.present & ~entry.special) | entry.private)) | entry.devexcl
            if not writable:
                continue
            for pfn in entry.pfns(writable).tolist():
                named = zone_of(pfn)
                i = pfn - named.base
                if not named.flags[i] & PG_ANON_EXCLUSIVE and named.mapping[i - named.head_off[i]] > 0:
                    yield _writable_shared(mm, entry.base, pfn)
                    break


def _writable_shared(mm: MmStruct, address: int, pfn: int) -> Violation:
    return Violation(
        invariant=9, what=f"{mm.name} maps pfn {pfn:#x} writable in the block at {address:#x}, but it is not exclusive"
    )


def _writable(memory: MemoryManager, mappings: list[_Mappings]) -> Iterator[Violation]:
    """11: a writable entry lies in an area that may be written."""
    for mm in memory.mms:
        table = mm.page_table
        for block, entry in table.entries.items():
            start = block << table.pmd_shift
            if isinstance(entry, PmdLeaf):
                vma = mm.vma_lookup(start)
                if entry.write and (vma is None or not vma.flags & VM_MAYWRITE):
                    yield Violation(invariant=11, what=f"{mm.name} has a writable PMD at {start:#x} in {vma}")
                continue
            if entry.write:
                first = (entry.write & -entry.write).bit_length() - 1
                address = entry.base + (first << table.page_shift)
                vma = mm.vma_lookup(address)
                if vma is None or not vma.flags & VM_MAYWRITE:
                    yield Violation(invariant=11, what=f"{mm.name} has a writable PTE at {address:#x} in {vma}")


def _kinds(memory: MemoryManager, mappings: list[_Mappings]) -> Iterator[Violation]:
    """26, 27, 35: present entries name no device-private page, private ones nothing else, live and anonymous."""
    pages = memory.pages
    for mm in memory.mms:
        table = mm.page_table
        for block, entry in table.entries.items():
            start = block << table.pmd_shift
            if isinstance(entry, PmdLeaf):
                if entry.kind is PmdKind.HUGE_ZERO:
                    continue
                zone = pages.zone(entry.pfn)
                if (entry.kind is PmdKind.PRIVATE) != zone.private and entry.kind is not PmdKind.MIGRATION:
                    yield Violation(
                        invariant=26, what=f"{mm.name} has {entry} at {start:#x}, which names a page of {zone}"
                    )
                if zone.order[entry.pfn - zone.base] != memory.geometry.pmd_order:
                    yield Violation(invariant=35, what=f"{mm.name} has {entry} at {start:#x}, no head of a PMD folio")
                continue
            for mask, private in ((entry.present & ~entry.zero, False), (entry.private, True)):
                if not mask:
                    continue
                pfns = entry.pfns(mask)
                for zone, index, where in pages.split(pfns):
                    if zone.private != private:
                        yield Violation(
                            invariant=26,
                            what=f"{mm.name} has {'device-private' if private else 'present'} PTEs in the block at "
                            f"{start:#x} that name pages of {zone}",
                        )
                    elif private:
                        heads = np.asarray(pfns)[where] - zone.head_off[index]
                        for head in heads[zone.mapping[heads - zone.base] == 0][:_SHOWN].tolist():
                            yield Violation(
                                invariant=27, what=f"device page {head:#x} mapped by {mm.name} is not anonymous"
                            )


def _zone_device(memory: MemoryManager, mappings: list[_Mappings]) -> Iterator[Violation]:
    """28, 29 and 30: device folios are on no LRU; free ones are clean; the pagemap's references add up."""
    for each in mappings:
        zone, pgmap = each.zone, each.zone.pgmap
        if pgmap is None:
            continue
        for i in np.flatnonzero(zone.flags & PG_LRU)[:_SHOWN].tolist():
            yield Violation(invariant=28, what=f"device folio {zone.base + i:#x} is on an LRU")
        live = zone.refcount > 0
        heads = np.flatnonzero(live)
        used = np.zeros(zone.nr, np.bool_)
        pages = 0
        for head in heads.tolist():
            nr = 1 << int(zone.order[head])
            used[head : head + nr] = True
            pages += nr
        dirty = ~used & ((each.pte > 0) | (zone.mapping != 0) | ((zone.flags & PG_ANON_EXCLUSIVE) != 0))
        for i in np.flatnonzero(dirty)[:_SHOWN].tolist():
            yield Violation(
                invariant=29,
                what=f"free device page {zone.base + i:#x} is mapped {each.pte[i]} times, mapping "
                f"{zone.mapping[i]}, flags {zone.flags[i]:#x}",
            )
        expected = pages + (0 if pgmap.killed else 1)
        if pgmap.ref != expected:
            yield Violation(
                invariant=30, what=f"pagemap of {zone} has {pgmap.ref} references, {pages} pages are allocated"
            )


def _notifiers(memory: MemoryManager, mappings: list[_Mappings]) -> Iterator[Violation]:
    """36 and 37: no window is open, and the sequence says so."""
    for mm in memory.mms:
        subs = mm.notifiers
        if subs is None:
            continue
        if subs.active_invalidate_ranges:
            yield Violation(
                invariant=36, what=f"{mm.name} has {subs.active_invalidate_ranges} open windows, nobody invalidates"
            )
        elif subs.invalidate_seq & 1 or subs.deferred_list:
            yield Violation(
                invariant=37,
                what=f"{mm.name} is idle with sequence {subs.invalidate_seq}, {len(subs.deferred_list)} deferred",
            )


def _rss(memory: MemoryManager, mappings: list[_Mappings]) -> Iterator[Violation]:
    """46: rss is the number of pages that entries name, by kind, zero pages apart."""
    for mm in memory.mms:
        pages = [0, 0, 0]
        for entry in mm.page_table.entries.values():
            if isinstance(entry, PmdLeaf):
                if entry.kind not in {PmdKind.HUGE_ZERO, PmdKind.HUGETLB}:
                    pages[MM_ANONPAGES] += memory.geometry.pmd_nr
                continue
            named = entry.used & ~(entry.zero | entry.other)
            if not memory.rmap.has_files:
                pages[MM_ANONPAGES] += named.bit_count()
            else:
                for pfn in entry.pfns(named).tolist() if named else ():
                    pages[memory.rmap.mm_counter(pfn)] += 1
        if pages != mm.rss:
            yield Violation(invariant=46, what=f"{mm.name} counts {mm.rss} pages, its entries name {pages}")


Check = Callable[[MemoryManager, list[_Mappings]], Iterator[Violation]]

QUIESCENT: Final[tuple[Check, ...]] = (
    _mapcounts,
    _refcounts,
    _no_migration,
    _exclusive,
    _writable,
    _kinds,
    _zone_device,
    _notifiers,
    _rss,
)


def violations(memory: MemoryManager) -> list[Violation]:
    """Return every violation of the quiescent rules, by rule."""
    mappings = _mappings(memory)
    return [violation for check in QUIESCENT for violation in check(memory, mappings)]


def check_quiescent(memory: MemoryManager) -> None:
    """Raise ModelError with every violation; each task must be outside of mm operations."""
    found = violations(memory)
    if found:
        raise ModelError("\n".join(map(str, found)))
