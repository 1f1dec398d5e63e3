"""Check the whole machine while no task is inside an operation of the mm: a migrate, split, zap, fault or fork.

The rules are those that a `Checker` applies step by step, here to everything, and some that hold only at rest.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Final

import numpy as np

from gpusvm.check import exclusivity, lifetime, mapping, migration, mirror, notifier, power, zone_device
from gpusvm.check.rules import rule
from gpusvm.check.shadow import (
    COUNTED,
    MIGRATION,
    NONE,
    PRESENT,
    PRIVATE,
    Change,
    Shadow,
    ZoneShadow,
    entry_at,
    leaf_entry,
)
from gpusvm.check.sweep import unusual_entries, unusual_folio, unusual_folios, unusually_held
from gpusvm.check.violation import InvariantError, Violation
from gpusvm.mm import MemoryManager, MmStruct
from gpusvm.mm.api import VM_MAYWRITE, VM_WRITE
from gpusvm.mm.page import PG_ANON_EXCLUSIVE, PG_LOCKED
from gpusvm.mm.pgtable import PmdLeaf
from gpusvm.mm.vma import Vma

__all__ = ["ENTRY_RULES", "FOLIO_RULES", "check_entry", "check_quiescent", "violations"]

FOLIO_RULES = (
    mapping.mapcount,
    mapping.refcount,
    exclusivity.exclusive_once,
    exclusivity.migration_exclusive_page,
    migration.migration_locked,
    zone_device.private_folio,
    zone_device.no_lru,
    zone_device.free_device_page,
)

# For an entry that names a page with a struct page; the area is the one in which rmap finds the page there.
ENTRY_RULES = (
    zone_device.entry_type,
    mapping.page_index,
    mapping.mapped_once,
    exclusivity.writable_exclusive,
    exclusivity.migration_exclusive,
    exclusivity.may_write,
    exclusivity.shared_read_only,
    exclusivity.hole_permission,
    migration.contents,
    zone_device.private_anon,
    zone_device.pmd_entry,
)


_FEW: Final = 64  # so many pages are looked at one by one
_WRITABLE: Final = VM_WRITE | VM_MAYWRITE


def check_entry(s: Shadow, change: Change) -> None:
    """Apply the rules to one entry as it is now."""
    kind, pfn, write, _ = change.new
    if kind == NONE:
        return
    if kind not in COUNTED and kind != MIGRATION:
        mapping.zero_entry(s, change, None)
        migration.contents(s, change, None)
        return
    shadow = s.zone(pfn)
    zone = shadow.zone
    i = pfn - shadow.base
    head = i - zone.m_head_off[i]
    vma = s.area_of(change.mm, change.address, zone, i, head)
    if vma is not None and not change.pmd and _usual(shadow, i, head, kind, write=write, vma=vma):
        if kind != MIGRATION:
            known = s.memory.contents
            # What the rule says, where it is said soonest.
            if (
                shadow.backing_of is not None
                or known.mode != "tokens"
                or zone.m_token[i] != known.expected(change.mm, change.address >> s.page_shift)
            ):
                migration.contents(s, change, vma)
        return
    for check in ENTRY_RULES:
        check(s, change, vma)


def _usual(shadow: ZoneShadow, i: int, head: int, kind: int, *, write: bool, vma: Vma) -> bool:
    """Tell whether a PTE where rmap finds it is as most are, so that no rule but the one on contents can be broken."""
    zone = shadow.zone
    if zone.m_mapping[head] <= 0 or shadow.m_pte[i] + shadow.m_pmd[head] + shadow.m_mig[i] != 1:
        return False
    if write and vma.flags & _WRITABLE != _WRITABLE:
        return False
    exclusive = zone.m_flags[i] & PG_ANON_EXCLUSIVE
    if kind == MIGRATION:
        return not exclusive
    if zone.private:
        return kind == PRIVATE and (not write or bool(exclusive)) and vma.is_cow and zone.m_refcount[head] > 0
    return kind == PRESENT and (not write or bool(exclusive))


def violations(
    memory: MemoryManager, *, holders: Mapping[int, int] | None = None, spoilt: Shadow | None = None
) -> list[Violation]:
    """Return every violation, what quirks break by design included.

    `holders` names references that somebody holds on purpose, by head pfn: pins, a driver's. `spoilt` is the shadow of
    a `Checker` that has seen which quirk spoilt what.
    """
    s = Shadow(memory)
    s.at_rest = True
    if spoilt is not None:
        s.spoilt = spoilt.spoilt
        s.spoilt_mms = spoilt.spoilt_mms
        s.misplaced = spoilt.misplaced
    s.recount()
    for shadow in s.zones.values():
        _check_zone(s, shadow, {} if holders is None else holders)
    for mm in memory.mms:
        _check_entries(s, mm)
        _check_mm(s, mm)
    _check_zero_page(s)
    mirror.mirror_entries(s)
    return s.violations


def check_quiescent(memory: MemoryManager, *, holders: Mapping[int, int] | None = None) -> None:
    """Raise InvariantError with every violation that no quirk explains; each task is outside of mm operations."""
    found = tuple(one for one in violations(memory, holders=holders) if one.known is None)
    if found:
        raise InvariantError(found)


def _check_zone(s: Shadow, shadow: ZoneShadow, holders: Mapping[int, int]) -> None:
    zone = shadow.zone
    nr = max(zone.used, shadow.top)
    if zone.pgmap is not None:
        zone_device.pgmap_refs(s, shadow, zone.pgmap, 0)
        power.device_awake(s, shadow)
    if nr <= _FEW:
        _check_few(s, shadow, nr, holders)
        return
    heads = np.flatnonzero(unusual_folios(shadow, slice(0, nr))).tolist()
    for head in heads:
        for check in FOLIO_RULES:
            check(s, shadow, head)
    held = unusually_held(shadow, nr).tolist()
    for head in held + [head for head in heads if zone.m_order[head]]:
        expected_refcount(s, shadow, head, holders.get(zone.base + head, 0))
    if (zone.flags[:nr] & PG_LOCKED).any():
        migration.locked_at_rest(s, shadow)
    if shadow.mig[:nr].any():
        migration.owned_at_rest(s, shadow)


def _check_few(s: Shadow, shadow: ZoneShadow, nr: int, holders: Mapping[int, int]) -> None:
    # The same one by one: for so few pages an array costs more than they do.
    zone = shadow.zone
    locked = moving = 0
    flags, order, refs, entire = zone.m_flags, zone.m_order, zone.m_refcount, zone.m_entire
    mapcount, pte, pmd, mig = zone.m_mapcount, shadow.m_pte, shadow.m_pmd, shadow.m_mig
    ram = zone.pgmap is None
    for i in range(nr):
        if ram and not (refs[i] or flags[i] or mapcount[i] or pte[i] or mig[i] or pmd[i] or order[i] or entire[i]):
            continue  # free, and nothing names it
        locked |= flags[i] & PG_LOCKED
        moving |= mig[i]
        if zone.m_head_off[i]:
            continue
        if unusual_folio(shadow, i):
            for check in FOLIO_RULES:
                check(s, shadow, i)
        if zone.m_order[i] or zone.m_refcount[i] != shadow.m_pte[i]:
            expected_refcount(s, shadow, i, holders.get(zone.base + i, 0))
    if locked:
        migration.locked_at_rest(s, shadow)
    if moving:
        migration.owned_at_rest(s, shadow)


@rule(3)
def expected_refcount(s: Shadow, shadow: ZoneShadow, head: int, held: int) -> None:
    """3: a mapped folio has the references of its mappings, of the page cache, and those held on purpose.

    Less than that is 2's.
    """
    zone = shadow.zone
    maps = s.mappings(shadow, head)
    if not maps:
        return
    cache = 1 << zone.m_order[head] if zone.m_mapping[head] < 0 else 0
    refs = zone.m_refcount[head]
    if refs < maps or refs == maps + cache + held:
        return
    also = (f", {cache} of the page cache" if cache else "") + (f", {held} held" if held else "")
    s.report(3, f"the folio has {refs} references: {maps} mappings{also}", **s.folio(shadow, head))


def _check_entries(s: Shadow, mm: MmStruct) -> None:
    task = s.kernel.current
    named: list[int] = []
    for block, entry in mm.page_table.entries.items():
        address = block << s.pmd_shift
        if isinstance(entry, PmdLeaf):
            now = leaf_entry(entry)
            check_entry(s, Change(mm, address, now, now, task, pmd=True))
            continue
        used = entry.used
        anon = used & ~(entry.zero | entry.other)
        if anon:
            named += entry.pfns(anon).tolist()
        left = unusual_entries(s, entry, used) if s.nr > _FEW else used
        while left:
            i = (left & -left).bit_length() - 1
            left &= left - 1
            now = entry_at(entry, i)
            check_entry(s, Change(mm, address + (i << s.page_shift), now, now, task, pmd=False))
    if len(set(named)) != len(named):
        _check_once(s, mm, named)


def _check_once(s: Shadow, mm: MmStruct, pfns: list[int]) -> None:
    for pfn in sorted(pfn for pfn, times in Counter(pfns).items() if times > 1):
        for other, address, now in s.namers(pfn):
            if other is mm:
                mapping.mapped_once(s, Change(mm, address, now, now, s.kernel.current, pmd=False), None)
                break


def _check_mm(s: Shadow, mm: MmStruct) -> None:
    counted = s.rss[mm]
    if mm.rss != counted:
        lifetime.rss(s, mm, counted)
    if mm.swapents != s.swapents.get(mm, 0):
        lifetime.swapents(s, mm, s.swapents.get(mm, 0))
    subs = mm.notifiers
    if subs is None:
        return
    if subs.has_itree:
        notifier.active_windows(s, mm, subs, [])
        if not subs.active_invalidate_ranges:
            notifier.sequence_parity(s, mm, subs, [])
    live = [entry[2] for entries in subs.itree.by_size.values() for entry in entries]
    notifier.deferred(s, mm, subs, [], live)
    for sub in live:
        notifier.subscription_sequence(s, mm, subs, sub)
    lifetime.mm_count(s, mm, subs, live)


@rule(5)
def _check_zero_page(s: Shadow) -> None:
    """5: at rest the zero page and the huge zero folio have one reference, the kernel's own."""
    memory = s.memory
    for pfn in (memory.zero_pfn, memory._huge_zero_pfn):
        if pfn is None:
            continue
        shadow = s.zone(pfn)
        i = pfn - shadow.zone.base
        mapping.zero_folio(s, shadow, i)
        if shadow.zone.m_refcount[i] != 1:
            s.report(5, f"the zero page has {shadow.zone.m_refcount[i]} references at rest", pfns=(pfn,))
