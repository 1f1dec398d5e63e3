"""Check a machine while it runs: listen to the mm, and look at what each step touched as soon as the state is whole.

A page-table-lock section ends at the running task's next yield point. There the entries that the section changed are
compared with what they were, the struct pages that differ from what they were are found by comparing columns, and the
rules of strength "always" look at those pages and entries only. Where a task may be switched away inside a section (a
driver's folio_free, for one, may be preempted there in explored mode) nothing is looked at until it has left it.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Self

from gpusvm.check import exclusivity, lifetime, mapping, migration, mirror, notifier, power, svm, zone_device
from gpusvm.check.operations import Migration, Operation
from gpusvm.check.quiescent import FOLIO_RULES, check_entry, violations
from gpusvm.check.shadow import (
    MIGRATION,
    NONE,
    NOTHING,
    PRESENT,
    PRIVATE,
    Before,
    Change,
    Entry,
    Lock,
    Shadow,
    ZoneShadow,
    entries_at,
    entry_at,
    leaf_entry,
)
from gpusvm.check.sweep import unusual_folio
from gpusvm.check.violation import InvariantError, Violation
from gpusvm.drm import Devmem, GpuSvmPages
from gpusvm.errors import LockdepError, ModelError
from gpusvm.gpu import GpuPageTable
from gpusvm.kernel import Task
from gpusvm.mm import MemoryManager, MmStruct
from gpusvm.mm.api import DevicePower, DevPagemap, HmmRange, IntervalNotifier, MigrateVma, MmuNotifierRange, Words
from gpusvm.mm.hmm_dma import HmmDmaMap
from gpusvm.mm.mmu_notifier import MmuIntervalNotifier
from gpusvm.mm.page import PG_LOCKED, Index, Zone
from gpusvm.mm.pgtable import PageTable, PmdLeaf, PteTable

__all__ = ["Checker"]

_WRITE_ENDS = frozenset({"up_write", "downgrade_write"})
_DUTIES = {54: "zap", 56: "dma-unmap"}
"""What a driver's invalidate owes, by the invariant that is broken if it does not."""
_LOCK_STEPS = frozenset({"mutex_lock", "down_read", "down_write", "spin_lock"})
_MAPPED = frozenset({PRESENT, PRIVATE})
_NO_WINDOWS: list[MmuNotifierRange] = []


class Checker:
    """Check every invariant of one machine: `always` and `event` rules as it runs, `quiescent` ones when asked.

    ::

        checker = Checker(memory).attach()
        ...                          # raises InvariantError where a rule breaks
        checker.check_quiescent()    # when no task is inside an operation of the mm

    With `collect` nothing is raised while the machine runs: `findings` fills. What a quirk of Linux, as written, breaks
    by design never raises: it goes to `known`.
    """

    def __init__(self, memory: MemoryManager, *, collect: bool = False) -> None:
        self.memory = memory
        self.kernel = memory.kernel
        self.collect = collect
        self.findings: list[Violation] = []
        self.known: list[Violation] = []
        self._said: set[str] = set()
        self._reset()

    def _reset(self) -> None:
        self.shadow = Shadow(self.memory)
        self._tables: dict[PteTable, Before] = {}
        self._pmds: dict[tuple[PageTable, int], tuple[PmdLeaf | PteTable | None, Task]] = {}
        self._changes: list[Change] = []
        self._deferred = False
        self._half: dict[Task, None] = {}
        self._written: list[tuple[GpuPageTable, int, int]] = []
        self._pages: dict[GpuSvmPages, tuple[int, int]] = {}  # what drm_gpusvm has mapped, between which pfns
        self._turn = 0
        self._heard = False  # something was told since the state was last looked at
        self._freeing: dict[Task, int] = {}
        self._stacks: dict[Task, list[Operation]] = {}
        self._migrations: dict[int, Migration] = {}
        self._windows: dict[MmStruct, list[MmuNotifierRange]] = {}
        self._refused: dict[Task, MmuNotifierRange] = {}
        self._subs: dict[MmStruct, list[MmuIntervalNotifier]] = {}
        self._noted: dict[MmStruct, None] = {}  # address spaces whose subscriptions changed
        self._sequences: dict[MmStruct, int] = {}
        self._vma_changes: dict[MmStruct, int] = {}
        self._removed: set[MmuIntervalNotifier] = set()
        self._calling: dict[Task, list[tuple[Any, MmuNotifierRange, int]]] = {}
        self._hits: dict[MmuIntervalNotifier, int] = {}
        self._filtered: dict[MmuIntervalNotifier, list[MmuNotifierRange]] = {}
        self._readers: dict[tuple[Task, MmuIntervalNotifier], tuple[int, int, int]] = {}
        self._words: dict[Task, list[HmmRange]] = {}
        self._given: dict[DevPagemap, int] = {}
        self._user_locks: dict[int, Any] = {}
        self._waiting: dict[Task, int] = {}
        self._dma_maps: dict[int, tuple[HmmDmaMap, set[int]]] = {}
        self._left: dict[int, Migration] = {}  # destinations that finalize has left unmapped

    # --- what a user calls

    def attach(self) -> Self:
        """Listen to the machine from now on; no migration, window or callback may be under way. ModelError."""
        kernel = self.kernel
        if kernel.observer is not None:
            raise ModelError(f"{kernel.observer!r} listens to this kernel already, and there is room for one")
        self._reset()
        self.shadow.rebuild()
        for mm in self.memory.mms:
            self._vma_changes[mm] = mm.vma_tree.changes
            subs = mm.notifiers
            if subs is not None:
                self._sequences[mm] = subs.invalidate_seq
                self._subs[mm] = [entry[2] for entries in subs.itree.by_size.values() for entry in entries]
        for zone in self.memory.pages.zones:
            pgmap = zone.pgmap
            if pgmap is not None:
                # Whoever holds a reference of get_dev_pagemap now is not known by name.
                self._given[pgmap] = pgmap.ref - self._pgmap_own(self.shadow.zones[zone], pgmap)
        kernel.observer = self
        return self

    @classmethod
    def of(cls, memory: MemoryManager) -> "Checker":
        """Return the checker that listens to a machine; attach one if none does."""
        observer = memory.kernel.observer
        return observer if isinstance(observer, cls) else cls(memory).attach()

    def detach(self) -> None:
        """Listen no longer."""
        if self.kernel.observer is self:
            self.kernel.observer = None

    def check_quiescent(self, *, holders: Mapping[int, int] | None = None) -> None:
        """Check the whole machine; no task is inside an operation of the mm. Raises InvariantError.

        `holders` names references that somebody holds on purpose, by head pfn: pins, a driver's.
        """
        if self.kernel.observer is self:
            self.flush()
            self._check_left()
        for violation in violations(self.memory, holders=holders, spoilt=self.shadow):
            self.shadow.violations.append(violation)
        self._tell()
        if self.findings:
            raise InvariantError(tuple(self.findings), self._blame(self.findings))

    def _check_left(self) -> None:
        left, self._left = self._left, {}
        for pfn, one in left.items():
            if pfn in migration.destinations_left(self.shadow, one):
                migration.destination_lost(self.shadow, one, pfn)

    def flush(self) -> None:
        """Look at what was touched since the last yield point; the running task is outside of any section."""
        self._flush(whole=True)

    def _flush(self, *, whole: bool = False) -> None:
        touched = self._look(self.kernel.current, whole=whole)
        if self._half:
            self._deferred = True
        elif whole or touched or self._told():
            self._settle()

    def _tell(self) -> None:
        found = self.shadow.violations
        if not found:
            return
        self.shadow.violations = []
        news: list[Violation] = []
        for violation in found:
            said = f"{violation}"
            if said in self._said:
                continue
            self._said.add(said)
            (self.known if violation.known else news).append(violation)
        if news and self.collect:
            self.findings += news
        elif news:
            raise InvariantError(tuple(news), self._blame(news))

    def _blame(self, found: Sequence[Violation]) -> str:
        """Name the op of a driver that owes what is broken, on a kernel that names drivers' code."""
        authors = self.kernel.authors
        duty = _DUTIES.get(found[0].invariant)
        return "" if authors is None or duty is None else authors.blames(duty, "invalidate")

    # --- steps

    def step(self, task: Task, operation: str, what: Any) -> None:
        """Look, at a yield point of the running task, at what it has touched since the last.

        Most steps touch nothing that anybody told of. Then a few columns are compared, and every eighth time all.
        """
        self._turn = (self._turn + 1) & 7
        whole = not self._turn
        touched = self._look(task, whole=whole)
        if task.preempt_count and (task in self._freeing or self._stacks.get(task)):
            self._half[task] = None
            return
        if self._half:
            self._half.pop(task, None)
        if operation in _LOCK_STEPS:
            if self._calling or (operation != "spin_lock" and what.name == "mmap_lock"):
                self._locking(task, operation, what)
        elif operation in _WRITE_ENDS:
            self._check_vmas(what)
        if self._half:
            self._deferred = True
            return
        if whole or touched or self._heard or self._changes or self.shadow.violations:
            self._settle()

    def leaves(self, task: Task) -> None:
        """Do so where it waits or ends."""
        if self._look(task, whole=False) or self._told():
            if not self._half:
                self._settle()

    def _check_vmas(self, released: object) -> None:
        # Whoever holds mmap_lock for write may have changed areas; as he lets go of it, it is noted that he has.
        explored = self.kernel.explored
        for mm in self.memory.mms:
            changes = mm.vma_tree.changes
            if changes != self._vma_changes.get(mm, 0):
                self._vma_changes[mm] = changes
                if explored and mm.mmap_lock is not released and not mm.mmap_lock.is_write_locked:
                    lifetime.vmas_locked(self.shadow, mm, self.kernel.current)

    def _told(self) -> bool:
        return self._heard or bool(self._changes or self.shadow.violations)

    def _look(self, task: Task, *, whole: bool = True) -> bool:
        # Whether some struct page has changed.
        if self._tables or self._pmds:
            self._absorb()
        shadow = self.shadow
        if whole:
            if len(self.memory.pages.zones) != len(shadow.zones):
                shadow.follow_zones()
        touched = False
        owner: tuple[Operation | None] | None = None
        for each in shadow.zones.values():
            if each.small and each.zone.used == each.nr:
                now = b"".join(each.views)
                if now == each.seen:
                    continue  # most often
                found: list[int] | None = each.differ(now)
            else:
                found = each.look(whole=whole or each.small)
            if found is None:
                continue
            touched = True
            flags, base, locks, pages = each.zone.m_flags, each.base, shadow.locks, each.touched
            for i in found:
                pages[i] = None
                if flags[i] & PG_LOCKED:
                    if base + i not in locks:
                        if owner is None:
                            owner = (self._owner(task),)
                        locks[base + i] = Lock(task, owner[0])
                elif base + i in locks:
                    del locks[base + i]
        return touched

    def _owner(self, task: Task) -> Operation | None:
        stack = self._stacks.get(task)
        if not stack:
            return None
        for one in reversed(stack):
            if isinstance(one, Migration):
                return one
        return stack[-1]

    # --- what a section changed

    def _absorb(self) -> None:
        shadow = self.shadow
        tables, self._tables = self._tables, {}
        pmds, self._pmds = self._pmds, {}
        changes: list[Change] = []
        page_shift, pmd_shift = shadow.page_shift, shadow.pmd_shift
        count, count_all = shadow.count, shadow.count_all
        for (page_table, block), (old_entry, task) in pmds.items():
            new_entry = page_table.entries.get(block)
            if new_entry is old_entry:
                continue
            mm = page_table.mm
            # A table with a record counts as it was; what changed in it follows below, while it is installed.
            count_all(mm, _recorded(tables, old_entry), -1)
            count_all(mm, _recorded(tables, new_entry), 1)
            address = block << pmd_shift
            if isinstance(old_entry, PteTable) and new_entry is None and not old_entry.used:
                if self.kernel.explored:
                    lifetime.tables_locked(shadow, mm, address, address + (1 << pmd_shift), task, self._zaps(task))
                continue
            if isinstance(old_entry, PteTable) and isinstance(new_entry, PmdLeaf):
                # A collapse: the table was emptied before, and what it lost is told of below.
                changes.append(Change(mm, address, NOTHING, leaf_entry(new_entry), task, pmd=True))
                continue
            if isinstance(old_entry, PteTable) or isinstance(new_entry, PteTable):
                for i in range(shadow.nr):
                    old, new = _page_of(old_entry, i), _page_of(new_entry, i)
                    if old != new or (old[0] == MIGRATION and isinstance(old_entry, PmdLeaf)):
                        changes.append(Change(mm, address + (i << page_shift), old, new, task, pmd=False))
                continue
            old = NOTHING if old_entry is None else leaf_entry(old_entry)
            new = NOTHING if new_entry is None else leaf_entry(new_entry)
            if old != new:
                changes.append(Change(mm, address, old, new, task, pmd=True))
        for table, before in tables.items():
            mm = table.mm
            installed = mm.page_table.entries.get(table.block) is table
            mask = before.mask
            at = []
            while mask:
                low = mask & -mask
                at.append(low.bit_length() - 1)
                mask ^= low
            for i, old, new in zip(at, entries_at(before, at), entries_at(table, at), strict=True):
                if old != new:
                    if installed:
                        count(mm, old, -1, pmd=False)
                        count(mm, new, 1, pmd=False)
                    changes.append(Change(mm, table.base + (i << page_shift), old, new, before.task, pmd=False))
        moved = {(change.mm, change.new[1]) for change in changes if change.new[0] == MIGRATION}
        for change in changes:
            self._transition(change, moved)
        self._changes += changes

    def _transition(self, change: Change, moved: set[tuple[MmStruct, int]]) -> None:
        shadow = self.shadow
        old, new, mm = change.old, change.new, change.mm
        if mm.notifiers is not None and notifier.loses(old, new):
            size = 1 << (shadow.pmd_shift if change.pmd else shadow.page_shift)
            refused = self._refused.get(change.task)
            if refused is not None and refused.mm is mm and refused.start <= change.address < refused.end:
                notifier.changed_after_refusal(shadow, change, refused)
            else:
                notifier.change_in_window(shadow, change, self._windows.get(mm, []), size)
        if new[0] == MIGRATION:
            if new[1] not in shadow.owners:
                self._own(change)
        elif old[0] == MIGRATION and new[0] == NONE and (mm, old[1]) not in moved:
            migration.vanished(shadow, change, self._zaps(change.task))
        if old[0] == MIGRATION or new[0] == MIGRATION:
            migration.preserved(shadow, change)
        if self._migrations and new[0] in _MAPPED:
            # Once it is a page of the process, others may unmap it and hold it on for a moment.
            head = self.memory.pages.folio_head(new[1])
            for one in self._migrations.values():
                one.destinations.pop(head, None)

    def _zaps(self, task: Task) -> Operation | None:
        stack = self._stacks.get(task, ())
        return next((one for one in reversed(stack) if one.name == "zap_range"), None)

    def _own(self, change: Change) -> None:
        shadow = self.shadow
        pfn = change.new[1]
        # A PMD migration entry that somebody splits keeps its owner, whoever that is.
        owner = shadow.owners.get(self.memory.pages.folio_head(pfn))
        if owner is None:
            stack = self._stacks.get(change.task, ())
            owner = next((one for one in reversed(stack) if isinstance(one, Migration)), None)
            if owner is None:
                owner = next((one for one in reversed(stack) if one.name == "split_folio"), None)
            migration.migration_owned(shadow, change, owner)
        if owner is not None:
            shadow.owners[pfn] = owner

    # --- the state, whole again

    def _settle(self) -> None:
        self._heard = False
        shadow = self.shadow
        if self._written:
            # By now it is known which entries a quirk has left wrong.
            written, self._written = self._written, []
            for table, vpn, end_vpn in written:
                mirror.mirror_written(shadow, table, vpn, end_vpn)
        zones = shadow.zones.values()
        if self._changes:
            self._check_touched()
        else:
            for each in zones:
                if each.touched:
                    self._check_touched()
                    break
        if self._check_mms():
            self._check_vmas(None)
        given = self._given
        for each in zones:
            if each.lost:
                lost, each.lost = each.lost, []
                for i in lost:
                    exclusivity.lost_exclusive(shadow, each, i)
            pgmap = each.pgmap
            if pgmap is not None and pgmap.ref != self._pgmap_own(each, pgmap) + (given.get(pgmap, 0) if given else 0):
                zone_device.pgmap_refs(shadow, each, pgmap, given.get(pgmap, 0))
        if shadow.violations:
            self._tell()

    @staticmethod
    def _pgmap_own(shadow: ZoneShadow, pgmap: DevPagemap) -> int:
        own = 0 if pgmap.killed else 1
        if pgmap.type in {1, 2}:
            return own + shadow.live_pages
        return own * (1 + pgmap.nr_pages)

    def _check_touched(self) -> None:
        shadow = self.shadow
        changes, self._changes = self._changes, []
        # Without steps, or with some left out, an entry may have changed again since.
        stale, self._deferred = self._deferred or not self.kernel.explored, False
        zero = self.memory.zero_pfn
        huge_zero = self.memory._huge_zero_pfn
        heads: dict[int, ZoneShadow] = {}
        owners = shadow.owners
        mirrored, freed = self._is_mirrored(), list[int]()
        for each in shadow.zones.values():
            if not each.touched:
                continue
            touched, each.touched = each.touched, {}
            zone = each.zone
            base, mig, off = zone.base, each.m_mig, zone.m_head_off
            for i in touched:
                if owners and not mig[i]:
                    owners.pop(base + i, None)
                if off[i]:
                    heads[base + i - off[i]] = each
                elif unusual_folio(each, i) or base + i == zero:
                    heads[base + i] = each
            if mirrored or self._pages:
                refs = zone.m_refcount
                freed += [base + i for i in touched if not refs[i - off[i]]]
        if freed:
            mirror.mirror_named(shadow, freed)
            svm.pages_freed(shadow, self._pages, freed)
        for change in changes:
            if stale:
                change.new = self._now(change)
            check_entry(shadow, change)
        for head, each in heads.items():
            i = head - each.zone.base
            if head in {zero, huge_zero}:
                mapping.zero_folio(shadow, each, i)
            for rule in FOLIO_RULES:
                rule(shadow, each, i)

    def _is_mirrored(self) -> bool:
        return any(mirror.mapped_pages for mirror in self.memory.mirrors)  # type: ignore[attr-defined]

    def _now(self, change: Change) -> Entry:
        entry = change.mm.page_table.lookup(change.address)
        if change.pmd:
            return leaf_entry(entry) if isinstance(entry, PmdLeaf) else NOTHING
        if not isinstance(entry, PteTable):
            return NOTHING
        return entry_at(entry, (change.address - entry.base) >> self.shadow.page_shift)

    def _check_mms(self) -> bool:
        # Whether the areas of some have changed.
        shadow = self.shadow
        areas, changed = self._vma_changes, False
        for mm in self.memory.mms:
            if mm.vma_tree.changes != areas.get(mm, 0):
                changed = True
            counted = shadow.rss.get(mm)
            if counted is None:
                counted = shadow.rss[mm] = [0] * len(mm.rss)
            if mm.rss != counted:
                lifetime.rss(shadow, mm, counted)
            if mm.swapents != shadow.swapents.get(mm, 0):
                lifetime.swapents(shadow, mm, shadow.swapents.get(mm, 0))
            subs = mm.notifiers
            if subs is None or not subs.has_itree:
                continue
            windows = self._windows.get(mm, _NO_WINDOWS)
            if subs.active_invalidate_ranges != len(windows):
                notifier.active_windows(shadow, mm, subs, windows)
            seq = subs.invalidate_seq
            if not windows and (seq & 1 or subs.deferred_list):
                notifier.sequence_parity(shadow, mm, subs, windows)
            if seq < self._sequences.get(mm, 0):
                notifier.sequence_grows(shadow, mm, subs, self._sequences[mm])
            self._sequences[mm] = seq
            if mm in self._noted:
                del self._noted[mm]
                live = self._subs.get(mm, [])
                notifier.deferred(shadow, mm, subs, windows, live)
                for sub in live:
                    notifier.subscription_sequence(shadow, mm, subs, sub)
                lifetime.mm_count(shadow, mm, subs, live)
        return changed

    # --- page tables and struct pages

    def ptes_changing(self, table: PteTable, mask: int) -> None:
        before = self._tables.get(table)
        if before is None:
            before = self._tables[table] = Before(table, self.kernel.current)
        before.mask |= mask

    def pmd_changing(self, page_table: PageTable, block: int) -> None:
        key = (page_table, block)
        if key not in self._pmds:
            self._pmds[key] = (page_table.entries.get(block), self.kernel.current)

    def mapped(self, zone: Zone, index: "Index | int") -> None:
        if type(index) is not int or zone.m_refcount[index] < zone.m_mapcount[index]:
            mapping.mapped_before_referenced(self.shadow, zone, index)

    def put(self, zone: Zone, index: "Index | int") -> None:
        if type(index) is not int or zone.m_refcount[index] < zone.m_mapcount[index]:
            mapping.put_before_uncounted(self.shadow, zone, index)
        if self._migrations or self._left:
            self._forget_destinations(zone, index)

    def _forget_destinations(self, zone: Zone, index: "Index | int") -> None:
        for one in self._migrations.values():
            for pfn in [pfn for pfn in one.destinations if zone.base <= pfn < zone.end]:
                if not zone.m_refcount[pfn - zone.base]:
                    del one.destinations[pfn]
        for pfn in [pfn for pfn in self._left if zone.base <= pfn < zone.end]:
            if not zone.m_refcount[pfn - zone.base]:
                del self._left[pfn]

    # --- device memory

    def device_folios_made(self, zone: Zone, index: "Index | int", order: int) -> None:
        self._heard = True
        zone_device.folios_made(self.shadow, self.shadow.zone(zone.base), index, order)
        if zone.pgmap is not None and zone.pgmap.power is not None:
            power.device_awake(self.shadow, self.shadow.zone(zone.base))

    def folio_free_begins(self, zone: Zone, index: "Index | int", order: int) -> None:
        task = self.kernel.current
        self._freeing[task] = self._freeing.get(task, 0) + 1
        self._freed_zone = zone
        zone_device.folios_freed(self.shadow, self.shadow.zone(zone.base), index, order)

    def folio_free_ends(self, zone: Zone, index: "Index | int", order: int) -> None:
        self._heard = True
        task = self.kernel.current
        self._freeing[task] -= 1
        if not self._freeing[task]:
            del self._freeing[task]

    def folio_free_slept(self, zone: Zone, index: "Index | int", error: LockdepError) -> None:
        zone_device.free_slept(self.shadow, zone, index, error)
        self._tell()

    def device_folio_split(self, zone: Zone, i: int, order: int) -> None:
        self._heard = True
        zone_device.split_parts(self.shadow, self.shadow.zone(zone.base), i, order)

    def pgmap_got(self, pgmap: DevPagemap) -> None:
        self._heard = True
        self._given[pgmap] = self._given.get(pgmap, 0) + 1
        zone_device.pgmap_given(self.shadow, pgmap)

    def pgmap_put(self, pgmap: DevPagemap) -> None:
        self._given[pgmap] = self._given.get(pgmap, 0) - 1

    def pgmap_done(self, pgmap: DevPagemap) -> None:
        self._look(self.kernel.current)
        zone_device.pgmap_done(self.shadow, pgmap)
        self._given.pop(pgmap, None)
        # Its pages go now, and the driver may free it.
        self.shadow.forget_zone(self.memory.pages.zone(pgmap.start_pfn))
        self._tell()

    def device_sleeps(self, device: DevicePower) -> None:
        """Hear that a device whose driver promises to keep it awake for its pages goes to sleep."""
        self._look(self.kernel.current)
        zones = self.shadow.zones.values()
        power.devices_awake(
            self.shadow, [each for each in zones if each.zone.pgmap is not None and each.zone.pgmap.power is device]
        )
        self._tell()

    # --- devices

    def mirror_written(self, table: GpuPageTable, vpn: int, end_vpn: int) -> None:
        self._heard = True
        self._written.append((table, vpn, end_vpn))

    # --- drm_gpusvm and drm_pagemap

    def pages_got(self, pages: GpuSvmPages, sub: IntervalNotifier, owner: object | None) -> None:
        """Hear that get_pages has mapped pages, for a caller who takes device pages of `owner`."""
        self._pages[pages] = svm.bounds(pages)
        svm.pages_present(self.shadow, pages)
        svm.pages_of_the_owner(self.shadow, pages, owner)
        self._tell()

    def pages_unmapped(self, pages: GpuSvmPages) -> None:
        """Hear that they are mapped no longer."""
        self._pages.pop(pages, None)

    def cpu_fault_takes(self, devmem: Devmem) -> None:
        """Hear that a CPU fault is going to bring pages of an allocation home."""
        svm.timeslice_kept(self.shadow, devmem)
        self._tell()

    # --- address spaces

    def mm_freed(self, mm: MmStruct) -> None:
        if self._tables or self._pmds:
            self._absorb()
        self._changes = [change for change in self._changes if change.mm is not mm]  # the entries are none by now

    # --- notifiers

    def window_opened(self, range_: MmuNotifierRange) -> None:
        self._heard = True
        task = self.kernel.current
        mm = range_.mm
        assert isinstance(mm, MmStruct)
        self._windows.setdefault(mm, []).append(range_)
        self._refused.pop(task, None)
        notifier.window_owner(self.shadow, range_, self._stacks.get(task, []))

    def window_closed(self, range_: MmuNotifierRange) -> None:
        self._heard = True
        mm = range_.mm
        assert isinstance(mm, MmStruct)
        if self._tables or self._pmds:
            self._absorb()  # what was done inside the window, in timed mode, where no step comes before its end
        windows = self._windows.get(mm, [])
        if any(range_ is refused for refused in self._refused.values()):
            notifier.closed_after_refusal(self.shadow, range_)
        for k, window in enumerate(windows):
            if window is range_:
                del windows[k]
                break
        if mm.notifiers is not None and mm.notifiers.deferred_list:
            self._noted[mm] = None

    def window_refused(self, range_: MmuNotifierRange) -> None:
        self._heard = True
        self._refused[self.kernel.current] = range_
        mm = range_.mm
        assert isinstance(mm, MmStruct)
        if any(window is range_ for window in self._windows.get(mm, [])) and self.memory.quirks.mm_s5 == "as_written":
            self.shadow.spoilt_mms[mm] = "mm_s5"

    def callback_begins(self, sub: Any, range_: MmuNotifierRange) -> None:
        if sub in self._removed:
            notifier.callback_after_removal(self.shadow, sub, range_)
        self._calling.setdefault(self.kernel.current, []).append((sub, range_, self._hits.get(sub, 0)))

    def callback_ends(self, sub: Any, range_: MmuNotifierRange) -> None:
        calls = self._calling.get(self.kernel.current)
        while calls:
            called, _, hits = calls.pop()
            if called is sub:
                if self._hits.get(sub, 0) == hits:
                    self._filtered.setdefault(sub, []).append(range_)
                break

    def callback_slept(self, range_: MmuNotifierRange, error: LockdepError) -> None:
        notifier.non_blockable_slept(self.shadow, range_, error)
        self._tell()

    def subscription_inserted(self, sub: MmuIntervalNotifier) -> None:
        self._heard = True
        self._subs.setdefault(sub.mm, []).append(sub)
        self._noted[sub.mm] = None

    def subscription_removing(self, sub: MmuIntervalNotifier) -> None:
        self._heard = True
        live = self._subs.get(sub.mm, [])
        if sub in live:
            live.remove(sub)
        self._noted[sub.mm] = None

    def subscription_removed(self, sub: MmuIntervalNotifier) -> None:
        self._removed.add(sub)
        tasks = [task for task, calls in self._calling.items() if any(call[0] is sub for call in calls)]
        if tasks:
            notifier.removed_while_called(self.shadow, sub, tasks)

    def sequence_set(self, sub: MmuIntervalNotifier, cur_seq: int) -> None:
        self._hits[sub] = self._hits.get(sub, 0) + 1
        subs = sub.mm.notifiers
        if subs is not None:
            notifier.subscription_sequence(self.shadow, sub.mm, subs, sub)

    def read_began(self, sub: MmuIntervalNotifier, seq: int) -> None:
        notifier.read_begin_collides(self.shadow, sub, seq)
        filtered = len(self._filtered.get(sub, ()))
        self._readers[self.kernel.current, sub] = (seq, self._hits.get(sub, 0), filtered)

    def read_retried(self, sub: MmuIntervalNotifier, seq: int, retry: bool) -> None:
        task = self.kernel.current
        ranges = self._words.get(task, [])
        mine = [range_ for range_ in ranges if range_.notifier is sub and range_.notifier_seq == seq]
        self._words[task] = [range_ for range_ in ranges if range_.notifier is not sub]
        reader = self._readers.get((task, sub))
        if retry or reader is None or reader[0] != seq:
            return
        _, hits, filtered = reader
        notifier.no_invalidation_since(self.shadow, sub, seq, self._hits.get(sub, 0) - hits)
        for range_ in mine:
            notifier.hmm_words(self.shadow, range_, self._filtered.get(sub, [])[filtered:])
        self._tell()

    # --- locks

    def folio_locking(self, pfn: int) -> None:
        task = self.kernel.current
        for lock in task.held:
            if id(lock) in self._user_locks:
                lifetime.lock_order(self.shadow, task, "a folio lock", f"the callbacks' {lock.describe()}", (pfn,))
        self._tell()

    def folio_wait_begins(self, pfn: int) -> None:
        task = self.kernel.current
        self._look(task)
        self._waiting[task] = pfn
        lock = self.shadow.locks.get(pfn)
        if lock is None or not self.kernel.explored:
            return  # in timed mode there are no steps that tell who took a lock
        lifetime.live_owner(self.shadow, pfn, task, lock.task)
        circle = self._circle(task)
        if circle:
            lifetime.waits_in_circle(self.shadow, pfn, circle)
        self._tell()

    def folio_wait_ends(self, pfn: int) -> None:
        self._waiting.pop(self.kernel.current, None)

    def _circle(self, start: Task) -> list[Task]:
        """Return the tasks that wait for each other, beginning with `start`; none, if it waits for nobody who does."""
        path = [start]
        while True:
            task = path[-1]
            if task in self._waiting:
                lock = self.shadow.locks.get(self._waiting[task])
                owners = [] if lock is None else [lock.task]
            else:
                owners = [] if task.waiting_on is None else task.waiting_on.holders(task)
            # The first holder is as good as any: all of them have to let go.
            if not owners or owners[0] in path[1:]:
                return []
            if owners[0] is start:
                return path
            path.append(owners[0])

    def _locking(self, task: Task, operation: str, what: Any) -> None:
        if self._calling.get(task):
            self._user_locks[id(what)] = what
            return
        if operation == "spin_lock" or what.name != "mmap_lock":
            return
        for lock in task.held:
            if id(lock) in self._user_locks:
                lifetime.lock_order(self.shadow, task, "mmap_lock", f"the callbacks' {lock.describe()}", ())
        shadow = self.shadow
        folios = tuple(pfn for pfn, lock in shadow.locks.items() if lock.task is task and pfn not in shadow.spoilt)
        if folios:
            lifetime.lock_order(self.shadow, task, "mmap_lock", "a folio lock", folios)

    # --- operations

    def operation_begins(self, name: str, *what: Any) -> None:
        if name == "handle_mm_fault":
            vma, address = what
            lifetime.mm_users(self.shadow, vma.mm, address, "a fault is handled")
            if self.shadow.violations:
                self._tell()
            return
        self._flush()
        task = self.kernel.current
        operation = self._begin(name, task, what)
        self._stacks.setdefault(task, []).append(operation)
        self._tell()

    def _begin(self, name: str, task: Task, what: tuple[Any, ...]) -> Operation:
        shadow = self.shadow
        if name == "migrate_vma_setup":
            args: MigrateVma = what[0]
            lifetime.mm_users(shadow, args.vma.mm, args.start, "a migration begins")  # type: ignore[union-attr]
            fault = -1 if args.fault_page is None else self.memory.pages.folio_head(args.fault_page)
            one = Migration("migrate_vma", task, args.src, args, fault_head=fault)
            self._migrations[_key(args.src)] = one
            return one
        if name == "migrate_device_pfns":
            one = Migration("migrate_device", task, what[0], None, fault_head=-1)
            one.npages = what[1]
            self._migrations[_key(what[0])] = one
            return one
        if name in {"migrate_pages", "migrate_finalize"}:
            src, dst, npages = what[:3]
            found = self._migration_of(src)
            if found is None:
                return Operation(name, task, what)
            words = src[:npages].tolist()
            migration.migrate_bits(shadow, found, words)
            if name == "migrate_pages":
                migration.destinations_given(shadow, found, words, dst[:npages].tolist())
                for pfn in found.destinations:
                    if pfn in shadow.locks:
                        shadow.locks[pfn].operation = found
            else:
                migration.unlocked_before(shadow, found, words)
            return found
        return Operation(name, task, what)

    def _migration_of(self, words: Words) -> Migration | None:
        for one in self._migrations.values():
            if one.src is words:  # most often
                return one
        return self._migrations.get(_key(words))

    def _forget_migration(self, migration: Migration) -> None:
        for key, one in self._migrations.items():
            if one is migration:
                del self._migrations[key]
                break

    def operation_ends(self, name: str, *what: Any) -> None:
        task = self.kernel.current
        if name == "hmm_range_fault":
            range_: HmmRange = what[0]
            self._words.setdefault(task, []).append(range_)
            lifetime.opaque_valid(self.shadow, range_)
            self._tell()
            return
        if name in {"hmm_dma_map_pfn", "hmm_dma_unmap_pfn"}:
            self._dma(name, *what)
            return
        self._flush()
        stack = self._stacks.get(task)
        shadow = self.shadow
        if name == "change_protection":
            exclusivity.change_protection_done(shadow, *what)
        elif name == "exit_mmap":
            lifetime.rss_after_exit(shadow, what[0])
        elif stack:
            one = stack.pop()
            if not stack:
                del self._stacks[task]
            self._end(name, one, what)
        self._tell()

    def _dma(self, name: str, map_: HmmDmaMap, idx: int) -> None:
        # Maps are few and live long; held here, so that an id belongs to one of them.
        _, mapped = self._dma_maps.setdefault(id(map_), (map_, set()))
        if name == "hmm_dma_map_pfn":
            lifetime.dma_mapped(self.shadow, map_, idx)
            mapped.add(idx)
        else:
            lifetime.dma_unmapped(self.shadow, map_, idx, mapped=idx in mapped)
            mapped.discard(idx)
        self._tell()

    def _end(self, name: str, one: Operation, what: tuple[Any, ...]) -> None:
        shadow = self.shadow
        if name == "dup_mmap":
            exclusivity.fork_done(shadow, *what)
        elif name == "split_folio":
            migration.split_left(shadow, one)
        elif name == "folio_split_unmapped":
            shadow.split_unmapped[what[0]] = None
        if not isinstance(one, Migration):
            return
        if name in {"migrate_vma_setup", "migrate_device_pfns"}:
            dst: Words | None = None
            if one.args is not None:
                one.npages = one.args.npages
                dst = one.args.dst
            words = one.src[: one.npages].tolist()
            for check in (
                migration.collected,
                migration.compound_words,
                migration.cpages,
                lifetime.opaque_collected,
            ):
                check(shadow, one, words)
            migration.source_words(shadow, one, words, dst)
            one.words = words
            if not any(words):
                self._forget_migration(one)  # whoever finds nothing collected need not finalize
        elif name == "migrate_pages":
            words = one.src[: one.npages].tolist()
            migration.migrate_bits(shadow, one, words)
            one.words = words
        elif name == "migrate_finalize":
            migration.finalized(shadow, one)
            self._forget_migration(one)
            # Others may hold a destination for a moment, who met it as a page of the process.
            for pfn in migration.destinations_left(shadow, one):
                self._left[pfn] = one
            if not self._migrations and not self._stacks:
                self._check_left()


def _key(words: Words) -> int:
    """Return what two views of the same words have in common."""
    return int(words.__array_interface__["data"][0])


def _recorded(tables: dict[PteTable, Before], entry: PmdLeaf | PteTable | None) -> PmdLeaf | PteTable | Before | None:
    """Return a table as it was before it changed, if it did."""
    return tables.get(entry, entry) if isinstance(entry, PteTable) else entry


def _page_of(entry: PmdLeaf | PteTable | None, i: int) -> Entry:
    """Return what a PMD entry makes of page `i` of its block."""
    if entry is None:
        return NOTHING
    if isinstance(entry, PteTable):
        return entry_at(entry, i)
    kind, pfn, write, rexcl = leaf_entry(entry)
    return (kind, pfn + i, write, rexcl)
