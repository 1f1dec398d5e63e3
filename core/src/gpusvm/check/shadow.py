"""Follow a machine from what the mm tells its observer: how often each page is mapped, by whom, and who locked it.

A `Shadow` sees every entry twice, as it was before a page-table-lock section and as it is after, and keeps counts of
its own from the difference. Rules compare these counts with the struct pages; where they look for addresses, for a
message, they search the page tables themselves.
"""

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from gpusvm.check.violation import Violation
from gpusvm.kernel import Task
from gpusvm.mm import MemoryManager, MmStruct
from gpusvm.mm.api import Pfns
from gpusvm.mm.mm_struct import MM_ANONPAGES, MM_FILEPAGES, MM_SHMEMPAGES
from gpusvm.mm.page import PG_ANON_EXCLUSIVE, PG_HUGETLB, PG_LOCKED, PG_SWAPBACKED, Zone
from gpusvm.mm.pgtable import PageTable, PmdKind, PmdLeaf, PteKind, PteTable
from gpusvm.mm.sparse import zeros
from gpusvm.mm.vma import Vma

__all__ = [
    "COUNTED",
    "EXCLUSIVE",
    "FEW",
    "MIGRATION",
    "NONE",
    "NOTHING",
    "OTHER",
    "PRESENT",
    "PRIVATE",
    "SPECIAL",
    "SWAP",
    "ZERO",
    "Before",
    "Change",
    "Entry",
    "Lock",
    "Shadow",
    "ZoneShadow",
    "entries_at",
    "entry_at",
    "leaf_entry",
]

# What an entry is; a THP is PRESENT, the huge zero folio ZERO.
NONE: Final = 0
PRESENT: Final = 1
ZERO: Final = 2
SPECIAL: Final = 3
PRIVATE: Final = 4
MIGRATION: Final = 5
EXCLUSIVE: Final = 6
OTHER: Final = 7  # hwpoison or a marker
SWAP: Final = 8
COUNTED: Final = (PRESENT, PRIVATE, EXCLUSIVE)

Entry = tuple[int, int, bool, bool]
"""kind, pfn, writable, READ_EXCLUSIVE"""

NOTHING: Final[Entry] = (NONE, -1, False, False)

_OF_LEAF: Final = {
    PmdKind.THP: PRESENT,
    PmdKind.HUGE_ZERO: ZERO,
    PmdKind.PRIVATE: PRIVATE,
    PmdKind.MIGRATION: MIGRATION,
    PmdKind.HUGETLB: PRESENT,
}


# Where that many pages change at once, or there are no more pages than that, arrays are the faster way, or not.
_MANY: Final = 32
_SMALL: Final = 1024
FEW: Final = 16  # so many are looked at one by one


class Before:
    """Remember the entries of a table as they were; its attributes are named as the table's."""

    __slots__ = (
        "devexcl",
        "m_pfn",
        "mask",
        "migration",
        "other",
        "others",
        "present",
        "private",
        "rexcl",
        "special",
        "task",
        "write",
        "zero",
    )

    def __init__(self, table: PteTable, task: Task) -> None:
        self.mask = 0
        self.task = task
        self.present = table.present
        self.private = table.private
        self.migration = table.migration
        self.devexcl = table.devexcl
        self.other = table.other
        self.others = dict(table.others) if table.other else table.others
        self.zero = table.zero
        self.special = table.special
        self.write = table.write
        self.rexcl = table.rexcl
        self.m_pfn = table.pfn.copy().data


def entry_at(table: PteTable | Before, i: int) -> Entry:
    """Return what page `i` of a table is, or was."""
    bit = 1 << i
    if table.present & bit:
        kind = PRESENT
        if table.zero & bit:
            kind = SPECIAL if table.special & bit else ZERO
        return (kind, table.m_pfn[i], bool(table.write & bit), False)
    if table.private & bit:
        return (PRIVATE, table.m_pfn[i], bool(table.write & bit), False)
    if table.migration & bit:
        return (MIGRATION, table.m_pfn[i], bool(table.write & bit), bool(table.rexcl & bit))
    if table.devexcl & bit:
        return (EXCLUSIVE, table.m_pfn[i], False, False)
    if table.other & bit:
        other = table.others[i]
        return (SWAP if other.kind is PteKind.SWAP else OTHER, other.value, False, other.exclusive)
    return NOTHING


def entries_at(table: PteTable | Before, at: list[int]) -> list[Entry]:
    """Return what some pages of a table are, or were."""
    present, private, migration, write, m_pfn = table.present, table.private, table.migration, table.write, table.m_pfn
    zero, rexcl = table.zero, table.rexcl
    found: list[Entry] = []
    for i in at:
        bit = 1 << i
        if present & bit and not zero & bit:
            found.append((PRESENT, m_pfn[i], bool(write & bit), False))
        elif private & bit:
            found.append((PRIVATE, m_pfn[i], bool(write & bit), False))
        elif migration & bit:
            found.append((MIGRATION, m_pfn[i], bool(write & bit), bool(rexcl & bit)))
        else:
            found.append(entry_at(table, i))
    return found


def leaf_entry(leaf: PmdLeaf) -> Entry:
    """Return what a PMD leaf is."""
    return (_OF_LEAF[leaf.kind], leaf.pfn, leaf.write, leaf.rexcl)


class Change:
    """Hold one entry before and after a section; `pmd` says that it is a PMD's."""

    __slots__ = ("address", "mm", "new", "old", "pmd", "task")

    def __init__(self, mm: MmStruct, address: int, old: Entry, new: Entry, task: Task, *, pmd: bool) -> None:
        self.mm = mm
        self.address = address
        self.old = old
        self.new = new
        self.task = task
        self.pmd = pmd


class Lock:
    """Say who holds a folio lock: the task that took it, and the operation it was in."""

    __slots__ = ("operation", "task")

    def __init__(self, task: Task, operation: object | None) -> None:
        self.task = task
        self.operation = operation


class ZoneShadow:
    """Count the entries that name each page of a zone, and remember the columns of its struct pages."""

    __slots__ = (
        "backing_of",
        "base",
        "counter",
        "end",
        "first",
        "live",
        "live_pages",
        "lost",
        "m_counter",
        "m_live",
        "m_mig",
        "m_pmd",
        "m_pte",
        "mig",
        "nr",
        "pgmap",
        "pmd",
        "pte",
        "seen",
        "seen_first",
        "small",
        "top",
        "touched",
        "views",
        "zone",
    )

    def __init__(self, zone: Zone) -> None:
        self.zone: Final = zone
        self.base: Final = zone.base
        self.end: Final = zone.end
        self.pgmap: Final = zone.pgmap
        self.pte: Final = zeros(
            zone.nr, np.int32
        )  # present, device-private and device-exclusive PTEs that name the page
        self.pmd: Final = zeros(zone.nr, np.int32)  # PMDs that map the folio, on the head
        self.mig: Final = zeros(zone.nr, np.int32)  # migration entries of both levels
        self.counter: Final = zeros(zone.nr, np.int8)  # the RSS counter that its mappings are in
        self.live: Final = zeros(zone.nr, np.uint8)  # device memory: order + 1 on the head of a folio that is not free
        self.live_pages = 0
        self.touched: dict[int, None] = {}  # pages to look at, in order
        # Where a driver's dummies have their data (gpusvm.mm.api.DevPagemapOps).
        self.backing_of: Final = None if zone.pgmap is None else getattr(zone.pgmap.ops, "backing_of", None)
        self.m_pte: Final = self.pte.data
        self.m_pmd: Final = self.pmd.data
        self.m_mig: Final = self.mig.data
        self.m_counter: Final = self.counter.data
        self.m_live: Final = self.live.data
        self.top = 0  # no page from here on was named when everything was counted
        self.lost: list[int] = []  # pages that lost AnonExclusive since it was last asked
        self.nr = 0
        self.small: Final = zone.nr <= _SMALL
        self.views: tuple[memoryview, ...] = ()
        self.first: tuple[memoryview, ...] = ()  # flags and references
        self.seen = self.seen_first = b""

    def count_live(self) -> None:
        """Count the folios of device memory that are not free."""
        zone = self.zone
        if zone.used > _SMALL:
            heads = np.flatnonzero(zone.refcount[: zone.used])
            orders = zone.order[heads]
            self.live[heads] = orders + 1
            self.live_pages = int((1 << orders.astype(np.int64)).sum())
            return
        order = zone.m_order
        for i, refs in enumerate(zone.m_refcount[: zone.used].tolist()):
            if refs:
                self.m_live[i] = order[i] + 1
                self.live_pages += 1 << order[i]

    def look(self, *, whole: bool = True) -> list[int] | None:
        """Return the pages whose struct page differs from what it was when last looked at; None if none does.

        Without `whole` only flags and references are compared: nothing that the mm does to a page leaves both.
        """
        if self.zone.used != self.nr:
            self._grow()
        elif not whole and b"".join(self.first) == self.seen_first:
            return None
        now = b"".join(self.views)
        return None if now == self.seen else self.differ(now)

    def differ(self, now: bytes) -> list[int]:
        """Return the pages whose struct page differs, the columns being `now`, in no particular order."""
        before, self.seen = self.seen, now
        nr = self.nr
        self.seen_first = now[: 6 * nr]
        if nr <= _MANY:
            return self._few(before, now)
        old, new = np.frombuffer(before, np.uint16), np.frombuffer(now, np.uint16)
        at = (old != new).nonzero()[0].tolist()
        if len(at) > _MANY:
            return self._many(old, new)
        found: dict[int, None] = {}
        for k in at:
            # The columns are flags, refcount, mapcount, entire and mapping, one behind the other: two bytes a step.
            if k < nr:
                found[k] = None
                if old[k] & ~new[k] & PG_ANON_EXCLUSIVE:
                    self.lost.append(k)
            elif k < 5 * nr:
                found[(k - nr) % (2 * nr) >> 1] = None
            else:
                found[k - 5 * nr if k < 6 * nr else (k - 6 * nr) >> 1] = None
        return list(found)

    def _few(self, before: bytes, now: bytes) -> list[int]:
        # The same in one number, which for so few pages is several times as fast.
        nr = self.nr
        flags = self.zone.m_flags
        differ = int.from_bytes(before, "little") ^ int.from_bytes(now, "little")
        found: dict[int, None] = {}
        k = 0
        while differ:
            skip = ((differ & -differ).bit_length() - 1) >> 4
            k += skip
            if k < nr:
                found[k] = None
                if (before[2 * k] | before[2 * k + 1] << 8) & ~flags[k] & PG_ANON_EXCLUSIVE:
                    self.lost.append(k)
            elif k < 5 * nr:
                found[(k - nr) % (2 * nr) >> 1] = None
            else:
                found[k - 5 * nr if k < 6 * nr else (k - 6 * nr) >> 1] = None
            differ >>= (skip + 1) << 4
            k += 1
        return list(found)

    def _many(self, old: npt.NDArray[np.uint16], new: npt.NDArray[np.uint16]) -> list[int]:
        nr = self.nr
        self.lost += (old[:nr] & ~new[:nr] & PG_ANON_EXCLUSIVE).nonzero()[0].tolist()
        differ = old != new
        pages = differ[:nr] | differ[5 * nr : 6 * nr]
        for column in (differ[nr : 3 * nr], differ[3 * nr : 5 * nr], differ[6 * nr :]):
            pages |= column[::2] | column[1::2]
        found: list[int] = pages.nonzero()[0].tolist()
        return found

    def _grow(self) -> None:
        # New pages differ from the zeros that they were.
        zone = self.zone
        before, old = self.nr, self.seen
        nr = self.nr = zone.used
        self.views = tuple(
            column[:nr] for column in (zone.m_flags, zone.m_refcount, zone.m_mapcount, zone.m_entire, zone.m_mapping)
        )
        self.first = self.views[:2]
        columns, at = [], 0
        for view in self.views:
            size = before * view.itemsize
            columns.append(old[at : at + size].ljust(view.nbytes, b"\0"))
            at += size
        self.seen = b"".join(columns)
        self.seen_first = self.seen[: 6 * nr]


class Shadow:
    """Know what the rules need to know of one machine."""

    def __init__(self, memory: MemoryManager) -> None:
        self.memory = memory
        self.kernel = memory.kernel
        self.zones: dict[Zone, ZoneShadow] = {}
        self._near: ZoneShadow | None = None  # the one asked for last; `forget_near` when zones go
        self.rss: dict[MmStruct, list[int]] = {}
        self.swapents: dict[MmStruct, int] = {}
        self.locks: dict[int, Lock] = {}  # by head pfn, as far as it is known who locked it
        self.owners: dict[int, object] = {}  # page -> the operation that its migration entries belong to
        self.split_unmapped: dict[int, None] = {}  # heads of what folio_split_unmapped has split
        self.misplaced: dict[tuple[MmStruct, int], str] = {}  # address -> the quirk that misplaced what was written
        self.spoilt: dict[int, str] = {}  # folio -> the quirk that keeps its lock wrong
        self.spoilt_mms: dict[MmStruct, str] = {}  # address space -> the quirk that keeps a window of it open
        self.violations: list[Violation] = []
        self.at_rest = False  # what is reported is nobody's doing in particular
        self.nr = memory.geometry.pmd_nr
        self.page_shift = memory.geometry.page_shift
        self.pmd_shift = memory.geometry.pmd_shift

    def zone(self, pfn: int) -> ZoneShadow:
        """Return the shadow of the zone that holds `pfn`."""
        near = self._near
        if near is not None and near.base <= pfn < near.end:
            return near
        zone = self.memory.pages.zone(pfn)
        found = self.zones.get(zone)
        if found is None:
            found = self.zones[zone] = ZoneShadow(zone)
        self._near = found
        return found

    def follow_zones(self) -> None:
        """Take notice of zones that have come or gone."""
        known = self.zones
        self.zones = {zone: known.get(zone) or ZoneShadow(zone) for zone in self.memory.pages.zones}
        self._near = None

    def forget_zone(self, zone: Zone) -> None:
        """Take notice of one that goes."""
        self.zones.pop(zone, None)
        self._near = None

    def rebuild(self) -> None:
        """Count everything from the page tables, as they are now, and remember the struct pages."""
        self.recount()
        for shadow in self.zones.values():
            shadow.look()
            zone = shadow.zone
            for i in np.flatnonzero(zone.flags[: zone.used] & PG_LOCKED).tolist():
                self.locks[zone.base + i] = Lock(self.kernel.current, None)
            shadow.touched.clear()

    def recount(self) -> None:
        """Count everything from the page tables, as they are now."""
        self.zones = {}
        self.follow_zones()
        for shadow in self.zones.values():
            if shadow.zone.pgmap is not None:
                shadow.count_live()
        self.rss = {}
        self.swapents = {}
        for mm in self.memory.mms:
            self.rss[mm] = [0] * len(mm.rss)
            for entry in mm.page_table.entries.values():
                if not isinstance(entry, PteTable):
                    self.count(mm, leaf_entry(entry), 1, pmd=True)
                elif self.nr > FEW:
                    self._count_table(mm, entry)
                else:
                    self.count_all(mm, entry, 1)
                    named = (entry.present & ~entry.zero) | entry.private | entry.migration | entry.devexcl
                    for pfn in entry.pfns(named).tolist():
                        shadow = self.zone(pfn)
                        shadow.top = max(shadow.top, pfn - shadow.zone.base + 1)

    def _count_table(self, mm: MmStruct, table: PteTable) -> None:
        """Count all entries of a table in, at once."""
        mapped = (table.present & ~table.zero) | table.private | table.devexcl
        rss = self.rss[mm]
        for i, _ in table.others_of(table.other):
            self.count(mm, entry_at(table, i), 1, pmd=False)
        for mask, moving in ((mapped, False), (table.migration, True)):
            if not mask:
                continue
            for zone, index, _ in self.memory.pages.split(np.array(table.pfns(mask))):
                shadow = self.zones[zone]
                where = np.arange(index.start, index.stop) if isinstance(index, slice) else index
                np.add.at(shadow.mig if moving else shadow.pte, where, 1)
                counters = self.counters(zone, where)
                shadow.counter[where] = counters
                for counter, pages in enumerate(np.bincount(counters, minlength=len(rss)).tolist()):
                    rss[counter] += pages
                shadow.top = max(shadow.top, int(where.max()) + 1)

    def counters(self, zone: Zone, where: Pfns) -> npt.NDArray[np.int8]:
        """Return the RSS counters that mapped pages are in."""
        heads = where - zone.head_off[where]
        swapbacked = zone.flags[heads] & PG_SWAPBACKED != 0
        of_file = np.where(swapbacked, np.int8(MM_SHMEMPAGES), np.int8(MM_FILEPAGES))
        return np.where(zone.mapping[heads] > 0, np.int8(MM_ANONPAGES), of_file)

    def count_all(self, mm: MmStruct, entry: PmdLeaf | PteTable | Before | None, sign: int) -> None:
        """Count everything that a PMD entry maps."""
        if isinstance(entry, PmdLeaf):
            self.count(mm, leaf_entry(entry), sign, pmd=True)
        elif entry is not None:
            used = entry.present | entry.private | entry.migration | entry.devexcl | entry.other
            while used:
                i = (used & -used).bit_length() - 1
                used &= used - 1
                self.count(mm, entry_at(entry, i), sign, pmd=False)

    def count(self, mm: MmStruct, entry: Entry, sign: int, *, pmd: bool) -> None:
        """Count one entry in, or out."""
        kind, pfn = entry[0], entry[1]
        if kind not in COUNTED and kind != MIGRATION:
            if kind == SWAP:
                self.swapents[mm] = self.swapents.get(mm, 0) + sign
            return
        shadow = self.zone(pfn)
        i = pfn - shadow.base
        if kind == MIGRATION:
            shadow.m_mig[i] += sign
        elif pmd:
            shadow.m_pmd[i] += sign
        else:
            shadow.m_pte[i] += sign
        shadow.touched[i] = None
        rss = self.rss.get(mm)
        if rss is None:
            rss = self.rss[mm] = [0] * len(mm.rss)
        counter = shadow.m_counter[i]
        if sign > 0:
            zone = shadow.zone
            in_what = zone.m_mapping[i - zone.m_head_off[i]]
            # A migration entry may be counted when its page is free again already: it counts where it did.
            # What a driver inserts (vm_insert_page) has no mapping either, and counts as a file's.
            if in_what or kind != MIGRATION:
                small = in_what > 0 and not zone.m_flags[i] & PG_HUGETLB
                shadow.m_counter[i] = counter = MM_ANONPAGES if small else self.counter(pfn)
        if counter >= 0:
            rss[counter] += sign * self.nr if pmd else sign

    def counter(self, pfn: int) -> int:
        """Return the RSS counter that a mapped page is in (include/linux/mm.h:mm_counter); -1 for hugetlb's pages."""
        zone = self.memory.pages.zone(pfn)
        if zone.m_flags[pfn - zone.base] & PG_HUGETLB:
            return -1
        return self.memory.rmap.mm_counter(pfn)

    def mappings(self, shadow: ZoneShadow, head: int) -> int:
        """Return how many entries map the folio at index `head` of its zone."""
        order = shadow.zone.m_order[head]
        if not order:
            return shadow.m_pte[head] + shadow.m_pmd[head]
        nr = 1 << order
        if nr <= FEW:
            return sum(shadow.m_pte[head : head + nr]) + shadow.m_pmd[head]
        return int(shadow.pte[head : head + nr].sum()) + shadow.m_pmd[head]

    def migrating(self, shadow: ZoneShadow, head: int) -> int:
        """Return how many migration entries name a page of the folio at index `head` of its zone."""
        order = shadow.zone.m_order[head]
        if not order:
            return shadow.m_mig[head]
        nr = 1 << order
        return sum(shadow.m_mig[head : head + nr]) if nr <= FEW else int(shadow.mig[head : head + nr].sum())

    def area_of(self, mm: MmStruct, address: int, zone: Zone, i: int, head: int) -> "Vma | None":
        """Return the area in which rmap finds page `i` of a zone, whose folio begins at `head`, at an address of `mm`;
        None if it does not find it there.
        """
        index = zone.m_index[head] + i - head
        mapping = zone.m_mapping[head]
        if not mapping:
            # What a driver inserts (mm/memory.c:vm_insert_page) belongs to no file; rmap does not find it.
            vma = mm.vma_lookup(address)
            return None if vma is None or vma.is_anonymous else vma
        found = self.memory.rmap.mappings.get(mapping)
        if found is not None:
            # As `places` of the folio would, of which this page is one.
            for vma in found.vmas:
                if vma.mm is mm and vma.start <= address < vma.end:
                    if vma.pgoff + ((address - vma.start) >> self.page_shift) == index:
                        return vma
        return None

    def holding(self, zone: Zone, where: Pfns) -> Pfns:
        """Return the pages that hold what pages of a zone do: a driver's dummies have other pages behind them."""
        backing_of = self.zone(zone.base).backing_of
        pfns: Pfns = where + zone.base if backing_of is None else backing_of(where + zone.base)
        return pfns

    def tokens(self, zone: Zone, where: Pfns) -> npt.NDArray[np.int64]:
        """Return what pages of a zone hold."""
        if self.zone(zone.base).backing_of is None:
            return zone.token[where]
        pfns = self.holding(zone, where)
        found = np.zeros(len(pfns), np.int64)
        for behind, index, part in self.memory.pages.split(pfns):
            found[part] = behind.token[index]
        return found

    # --- for messages

    def namers(self, pfn: int, nr: int = 1) -> list[tuple[MmStruct, int, Entry]]:
        """List every entry that names one of `nr` pages: mm, address, entry. Slow: it searches all page tables."""
        found: list[tuple[MmStruct, int, Entry]] = []
        for mm in self.memory.mms:
            table: PageTable = mm.page_table
            for block, entry in sorted(table.entries.items()):
                if isinstance(entry, PmdLeaf):
                    if entry.kind is not PmdKind.HUGE_ZERO and pfn <= entry.pfn < pfn + nr:
                        found.append((mm, block << self.pmd_shift, leaf_entry(entry)))
                    continue
                used = (entry.present & ~entry.zero) | entry.private | entry.migration | entry.devexcl
                while used:
                    i = (used & -used).bit_length() - 1
                    used &= used - 1
                    if pfn <= entry.m_pfn[i] < pfn + nr:
                        found.append((mm, entry.base + (i << self.page_shift), entry_at(entry, i)))
        return found

    def places(self, pfn: int, nr: int = 1) -> tuple[tuple[str, int], ...]:
        """Return the addresses of every entry that names one of `nr` pages."""
        return tuple((mm.name, address) for mm, address, _ in self.namers(pfn, nr))

    def report(
        self,
        invariant: int,
        what: str,
        *,
        addresses: tuple[tuple[str, int], ...] = (),
        pfns: tuple[int, ...] = (),
        tasks: tuple[Task | str, ...] | None = None,
        known: str | None = None,
    ) -> None:
        """Note a violation; without `tasks` it is the running task's."""
        if tasks is None:
            tasks = (self.kernel.current,)
        if self.at_rest:
            tasks = ()
        if known is None and self.spoilt:
            known = next((self.spoilt[pfn] for pfn in pfns if pfn in self.spoilt), None)
        names = tuple(task if isinstance(task, str) else task.name for task in tasks)
        self.violations.append(
            Violation(invariant=invariant, what=what, addresses=addresses, pfns=pfns, tasks=names, known=known)
        )

    def folio(self, shadow: ZoneShadow, head: int, **more: Any) -> dict[str, Any]:
        """Return the places of a folio, as `report` takes them."""
        zone = shadow.zone
        pfn = zone.base + head
        return {"addresses": self.places(pfn, 1 << zone.m_order[head]), "pfns": (pfn,), **more}
