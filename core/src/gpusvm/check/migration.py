"""Invariants 14 to 25: migration."""

import numpy as np

from gpusvm.check.operations import Migration, Operation, page_of
from gpusvm.check.rules import rule
from gpusvm.check.shadow import (
    COUNTED,
    EXCLUSIVE,
    MIGRATION,
    NONE,
    PRESENT,
    PRIVATE,
    ZERO,
    Change,
    Shadow,
    ZoneShadow,
)
from gpusvm.mm.api import MIGRATE_PFN_COMPOUND, MIGRATE_PFN_MIGRATE, MIGRATE_PFN_VALID, Words
from gpusvm.mm.contents import describe_token
from gpusvm.mm.page import PG_LOCKED, PG_LRU
from gpusvm.mm.vma import Vma

__all__ = [
    "collected",
    "compound_words",
    "contents",
    "cpages",
    "destination_lost",
    "destinations_given",
    "destinations_left",
    "finalized",
    "migrate_bits",
    "migration_locked",
    "migration_owned",
    "owned_at_rest",
    "preserved",
    "source_words",
    "unlocked_before",
    "vanished",
]

_S3 = "mm_s3"


def _of_s3(s: Shadow, operation: object, pfn: int) -> str | None:
    """Name quirk MM-S3 if it explains a device folio that a migration from a fault has and has not locked.

    As written, the old head of a fault folio that collect splits is taken for locked
    (mm/migrate_device.c:migrate_vma_collect_pmd).
    """
    if s.memory.quirks.mm_s3 != "as_written" or not isinstance(operation, Migration) or operation.fault_head < 0:
        return None
    return _S3 if s.memory.pages.zone(pfn).private else None


@rule(14)
def migration_locked(s: Shadow, shadow: ZoneShadow, head: int) -> None:
    """14: the folio that a migration entry names is locked and referenced."""
    zone = shadow.zone
    named = s.migrating(shadow, head)
    if not named or (zone.m_flags[head] & PG_LOCKED and zone.m_refcount[head] > 0):
        return
    pfn, nr = zone.base + head, 1 << zone.m_order[head]
    operation = next((s.owners[p] for p in range(pfn, pfn + nr) if p in s.owners), None)
    known = _of_s3(s, operation, pfn)
    if known:
        s.spoilt[pfn] = known
    locked = "locked" if zone.m_flags[head] & PG_LOCKED else "not locked"
    s.report(
        14,
        f"{named} migration entries name the folio, which is {locked} and has {zone.m_refcount[head]} references",
        **s.folio(shadow, head, known=known),
    )


@rule(15)
def migration_owned(s: Shadow, change: Change, operation: object | None) -> None:
    """15: whoever installs a migration entry is migrating or splitting; `operation` is what he is doing."""
    if operation is None:
        s.report(
            15,
            "a migration entry is installed outside of any migration or split",
            addresses=((change.mm.name, change.address),),
            pfns=(change.new[1],),
            tasks=(change.task,),
        )


@rule(15)
def owned_at_rest(s: Shadow, shadow: ZoneShadow) -> None:
    """15: nobody migrates, so there is no migration entry."""
    for i in np.flatnonzero(shadow.mig).tolist():
        s.report(
            15,
            f"nobody migrates, and {shadow.m_mig[i]} migration entries name the page",
            addresses=s.places(shadow.zone.base + i),
            pfns=(shadow.zone.base + i,),
        )


@rule(15)
def split_left(s: Shadow, operation: Operation) -> None:
    """15: a split has ended, and its migration entries with it."""
    for pfn in [pfn for pfn, owner in s.owners.items() if owner is operation and _migrating(s, pfn)]:
        s.report(15, f"{operation.name} has left a migration entry", addresses=s.places(pfn), pfns=(pfn,))


def _migrating(s: Shadow, pfn: int) -> bool:
    shadow = s.zone(pfn)
    return shadow.m_mig[pfn - shadow.zone.base] > 0


@rule(16)
def finalized(s: Shadow, migration: Migration) -> None:
    """16: finalize has ended: no entry is left, and the call holds no lock but the fault folio's."""
    for pfn in [pfn for pfn, owner in s.owners.items() if owner is migration and _migrating(s, pfn)]:
        s.report(
            16,
            "finalize has left a migration entry",
            addresses=s.places(pfn),
            pfns=(pfn,),
            known=s.spoilt.get(s.memory.pages.folio_head(pfn)),
        )
    for pfn, lock in s.locks.items():
        if lock.operation is migration and not _of_fault(s, migration, pfn):
            s.report(
                16,
                "finalize has left a folio locked",
                addresses=s.places(pfn),
                pfns=(pfn,),
                known=s.spoilt.get(pfn),
            )


def _of_fault(s: Shadow, migration: Migration, pfn: int) -> bool:
    # After a split the lock that the fault path holds is on the folio that contains the fault page.
    args = migration.args
    return args is not None and args.fault_page is not None and s.memory.pages.folio_head(args.fault_page) == pfn


@rule(17)
def collected(s: Shadow, migration: Migration, words: list[int]) -> None:
    """17: what setup collected is locked, unmapped, off the LRU and held once."""
    pages = s.memory.pages
    for word in words:
        pfn = page_of(word)
        if pfn < 0:
            continue
        zone = pages.zone(pfn)
        i = pfn - zone.base
        flags = zone.m_flags[i]
        found = []
        if not word & MIGRATE_PFN_MIGRATE:
            found.append("its word lacks MIGRATE")
        if not flags & PG_LOCKED:
            found.append("it is not locked")
        if zone.m_mapcount[i]:
            found.append(f"its mapcount is {zone.m_mapcount[i]}")
        if flags & PG_LRU and zone.pgmap is None:
            found.append("it is on the LRU")
        allowed = 1 + (pfn == migration.fault_head) + (zone.pgmap is not None)
        if zone.m_mapping[i] < 0:
            allowed += 1 << zone.m_order[i]
        if not 0 < zone.m_refcount[i] <= allowed:
            found.append(f"it has {zone.m_refcount[i]} references")
        if found:
            known = _of_s3(s, migration, pfn) if found == ["it is not locked"] else None
            s.report(17, f"setup has collected a folio: {', '.join(found)}", pfns=(pfn,), known=known)


@rule(18)
def source_words(s: Shadow, migration: Migration, words: list[int], dst: Words | None) -> None:
    """18: a source word is one of the kinds that setup may leave, a destination word is 0."""
    plain = [0, MIGRATE_PFN_MIGRATE, MIGRATE_PFN_MIGRATE | MIGRATE_PFN_COMPOUND]
    if migration.args is None:
        plain.append(MIGRATE_PFN_COMPOUND)
    for i, word in enumerate(words):
        if not word & MIGRATE_PFN_VALID and word not in plain:
            s.report(18, f"source word {i} is {word:#x} after setup", addresses=_address(s, migration, i))
    if dst is not None:
        for i in np.flatnonzero(dst[: len(words)]).tolist():
            s.report(18, f"destination word {i} is {int(dst[i]):#x} after setup", addresses=_address(s, migration, i))


def _address(s: Shadow, migration: Migration, i: int) -> tuple[tuple[str, int], ...]:
    args = migration.args
    if args is None or args.vma is None:
        return ()
    return ((args.vma.mm.name, args.start + (i << s.page_shift)),)  # type: ignore[attr-defined]  # a Vma, here


@rule(19)
def compound_words(s: Shadow, migration: Migration, words: list[int]) -> None:
    """19: a COMPOUND word names a whole aligned block, and the words behind it are 0."""
    geometry = s.memory.geometry
    for i, word in enumerate(words):
        if not word & MIGRATE_PFN_COMPOUND:
            continue
        pfn = page_of(word)
        nr = s.nr if pfn < 0 else 1 << s.memory.pages.folio_order(pfn)
        if pfn >= 0 and (s.memory.pages.folio_head(pfn) != pfn or nr != s.nr):
            s.report(
                19,
                f"COMPOUND word {i} names no head of a PMD-order folio",
                addresses=_address(s, migration, i),
                pfns=(pfn,),
            )
        if migration.args is not None and (migration.args.start + (i << s.page_shift)) % geometry.pmd_size:
            s.report(19, f"COMPOUND word {i} is not at a block's begin", addresses=_address(s, migration, i))
        if migration.args is None and pfn < 0:
            continue  # a folio that is free: its order is not known any more
        for k in range(i + 1, min(i + nr, len(words))):
            if words[k]:
                s.report(
                    19, f"word {k}, behind COMPOUND word {i}, is {words[k]:#x}", addresses=_address(s, migration, k)
                )


@rule(20)
def cpages(s: Shadow, migration: Migration, words: list[int]) -> None:
    """20: cpages counts the words with MIGRATE, npages the pages of the range.

    That is before MM-Q11, fixed, makes a compound word count as the pages it stands for.
    """
    args = migration.args
    if args is None:
        return
    count = sum(1 for word in words if word & MIGRATE_PFN_MIGRATE)
    if args.cpages != count:
        s.report(20, f"cpages is {args.cpages}, and {count} words have MIGRATE", addresses=_address(s, migration, 0))
    npages = (args.end - args.start) >> s.page_shift
    if args.npages != npages:
        s.report(20, f"npages is {args.npages}, and the range has {npages}", addresses=_address(s, migration, 0))


@rule(21)
def migrate_bits(s: Shadow, migration: Migration, words: list[int]) -> None:
    """21: since the words were last seen MIGRATE has only gone, but where a compound word became words of its pages."""
    before = migration.words
    compound = -1  # the last word that was compound
    for i, (old, new) in enumerate(zip(before, words, strict=False)):
        if old & MIGRATE_PFN_COMPOUND:
            compound = i
        if new & MIGRATE_PFN_MIGRATE and not old & MIGRATE_PFN_MIGRATE:
            if compound < 0 or i - compound >= s.nr or words[compound] & MIGRATE_PFN_COMPOUND:
                pfn = page_of(new)
                s.report(
                    21,
                    f"source word {i} was {old:#x} and is {new:#x}: MIGRATE has come",
                    addresses=_address(s, migration, i),
                    pfns=() if pfn < 0 else (pfn,),
                )


@rule(22)
def destinations_given(s: Shadow, migration: Migration, words: list[int], dst: list[int]) -> None:
    """22: each destination that the driver gives is locked, referenced once, unmapped, and given once."""
    sources = {page_of(word) for word in words}
    given: dict[int, int] = {}
    pages = s.memory.pages
    for i, word in enumerate(dst):
        pfn = page_of(word)
        if pfn < 0:
            continue
        zone = pages.zone(pfn)
        k = pfn - zone.base
        found = []
        if not zone.m_flags[k] & PG_LOCKED:
            found.append("it is not locked")
        if zone.m_refcount[k] != 1:
            found.append(f"it has {zone.m_refcount[k]} references")
        if zone.m_mapcount[k]:
            found.append(f"its mapcount is {zone.m_mapcount[k]}")
        if pfn in given:
            found.append(f"it is word {given[pfn]} too")
        if pfn in sources:
            found.append("it is a source")
        given[pfn] = i
        migration.destinations[pfn] = None
        if found:
            s.report(22, f"destination word {i}: {', '.join(found)}", addresses=_address(s, migration, i), pfns=(pfn,))


def destinations_left(s: Shadow, migration: Migration) -> list[int]:
    """Return the destinations of a finalized migration that are neither mapped nor free, nor taken on by another."""
    pages = s.memory.pages
    left = []
    for pfn in migration.destinations:
        if not pages.has_page(pfn):
            continue
        zone = pages.zone(pfn)
        i = pfn - zone.base
        if zone.m_refcount[i] and not zone.m_mapcount[i] and not zone.m_flags[i] & PG_LOCKED:
            if not s.migrating(s.zone(pfn), i):
                left.append(pfn)
    return left


@rule(22)
def destination_lost(s: Shadow, migration: Migration, pfn: int) -> None:
    """22: after finalize each of them is mapped, or has been freed."""
    zone = s.memory.pages.zone(pfn)
    s.report(
        22,
        f"finalize has left a destination unmapped with {zone.m_refcount[pfn - zone.base]} references",
        pfns=(pfn,),
        tasks=(migration.task,),
    )


@rule(23)
def contents(s: Shadow, change: Change, vma: Vma | None) -> None:
    """23: what the entry maps holds what was last written at its address."""
    kind, pfn, _, _ = change.new
    known = s.memory.contents
    if known.mode != "tokens" or kind not in {PRESENT, PRIVATE, EXCLUSIVE, ZERO}:
        return
    vpn = change.address >> s.page_shift
    nr = s.nr if change.pmd else 1
    zone = s.memory.pages.zone(pfn)
    i = pfn - zone.base
    if not zone.m_mapping[i - zone.m_head_off[i]] and kind != ZERO:
        return  # a driver's page: nobody knows what it should hold
    if change.pmd and kind != ZERO and not zone.m_order[i]:
        return  # a block mapped from a small page: others say so (35), and what lies behind it may be no page at all
    if nr == 1 and (zone.pgmap is None or s.zone(pfn).backing_of is None):
        found, wanted = [zone.m_token[i]], [known.expected(change.mm, vpn)]
    else:
        found = s.tokens(zone, np.arange(i, i + nr)).tolist()
        wanted = known.expected_many(change.mm, np.arange(vpn, vpn + nr)).tolist()
    if found == wanted:
        return
    held = s.holding(zone, np.arange(i, i + nr)).tolist() if known.tainted_pfns else ()
    for k, (token, expected) in enumerate(zip(found, wanted, strict=True)):
        if token != expected:
            quirk = known.tainted_vpns.get((change.mm, vpn + k))
            quirk = quirk or (known.tainted_pfns.get(held[k]) if held else None)
            quirk = quirk or s.misplaced.get((change.mm, (vpn + k) << s.page_shift))
            s.report(
                23,
                f"the page holds {describe_token(token)}, and {describe_token(expected)} was written last",
                addresses=((change.mm.name, (vpn + k) << s.page_shift),),
                pfns=(pfn + k,),
                tasks=(change.task,),
                known=quirk,
            )


@rule(24)
def preserved(s: Shadow, change: Change) -> None:
    """24: an entry stays writable, or not, on its way into a migration entry and out of it.

    A device-exclusive entry loses that it was writable (mm/rmap.c:try_to_migrate_one).
    """
    old, new = change.old, change.new
    if old[0] == MIGRATION and new[0] in COUNTED:
        if old[2] != new[2]:
            was = "WRITE" if old[2] else "READ"
            now = "writable" if new[2] else "read-only"
            s.report(
                24,
                f"a {was} migration entry has come back {now}",
                addresses=((change.mm.name, change.address),),
                pfns=(new[1],),
                tasks=(change.task,),
            )
    elif new[0] == MIGRATION and old[0] in {PRESENT, PRIVATE} and old[2] != new[2]:
        was = "writable" if old[2] else "read-only"
        now = "WRITE" if new[2] else "READ"
        s.report(
            24,
            f"a {was} entry has become a {now} migration entry",
            addresses=((change.mm.name, change.address),),
            pfns=(new[1],),
            tasks=(change.task,),
        )


@rule(24)
def vanished(s: Shadow, change: Change, operation: Operation | None) -> None:
    """24: only a zap, or a move, ends a migration entry otherwise; `operation` is what the task is doing."""
    assert change.new[0] == NONE
    if operation is None or operation.name not in {"zap_range", "exit_mmap"}:
        s.report(
            24,
            "a migration entry has gone without a zap",
            addresses=((change.mm.name, change.address),),
            pfns=(change.old[1],),
            tasks=(change.task,),
        )


@rule(25)
def unlocked_before(s: Shadow, migration: Migration, words: list[int]) -> None:
    """25: finalize begins, and what it will unlock nobody has unlocked yet."""
    pages = s.memory.pages
    for word in words:
        pfn = page_of(word)
        if pfn < 0 or pfn == migration.fault_head or pages.folio_head(pfn) != pfn:
            continue
        if not pages.folio_locked(pfn):
            s.report(
                25,
                "a source is unlocked before finalize, which will unlock it again",
                addresses=s.places(pfn),
                pfns=(pfn,),
                known=_of_s3(s, migration, pfn),
            )


@rule(25)
def locked_at_rest(s: Shadow, shadow: ZoneShadow) -> None:
    """25: nobody migrates, so no folio is locked."""
    zone = shadow.zone
    for i in np.flatnonzero(zone.flags[: zone.used] & PG_LOCKED).tolist():
        pfn = zone.base + i
        if zone.pgmap is not None and not zone.m_refcount[i]:
            continue  # a free device page may keep the bit: initialising it again sets it
        s.report(25, "the folio is still locked", **s.folio(shadow, i, known=s.spoilt.get(pfn)))
