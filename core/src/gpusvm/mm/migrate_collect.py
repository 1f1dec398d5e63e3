"""mm/migrate_device.c:migrate_vma_collect, as of Linux 7.3.4: find, lock and unmap what a VMA maps in a range.

One word per page goes to `src`; `dst` was zeroed. A whole table whose pages are all small, unlocked and mapped as
usual is done in a few array operations (`_collect_usual`), anything else page by page in the kernel's order.
"""

from typing import TYPE_CHECKING, Final

import numpy as np

from gpusvm.errors import ModelError
from gpusvm.mm.api import (
    MEMORY_DEVICE_COHERENT,
    MIGRATE_PFN_COMPOUND,
    MIGRATE_PFN_MIGRATE,
    MIGRATE_PFN_SHIFT,
    MIGRATE_PFN_VALID,
    MIGRATE_PFN_WRITE,
    MIGRATE_VMA_SELECT_COMPOUND,
    MIGRATE_VMA_SELECT_DEVICE_COHERENT,
    MIGRATE_VMA_SELECT_DEVICE_PRIVATE,
    MIGRATE_VMA_SELECT_SYSTEM,
    MMU_NOTIFY_MIGRATE,
    MigrateVma,
)
from gpusvm.mm.mmu_notifier import notifier_end, notifier_start
from gpusvm.mm.page import GUP_PIN_COUNTING_BIAS, PG_ANON_EXCLUSIVE, PG_DIRTY, PG_LOCKED, Index, Zone
from gpusvm.mm.pgtable import PmdKind, PteTable
from gpusvm.mm.ptemask import all_zero, bools, from_indices, indices, is_run, lowest, span
from gpusvm.mm.rmap_walk import set_pmd_migration_entry
from gpusvm.mm.split import split_folio

if TYPE_CHECKING:
    from gpusvm.mm.memory_manager import MemoryManager
    from gpusvm.mm.vma import Vma

__all__ = ["migrate_vma_collect"]

_VALID_MIGRATE: Final = MIGRATE_PFN_VALID | MIGRATE_PFN_MIGRATE
_RETRY: Final = -1
_SKIP: Final = -2


def migrate_vma_collect(memory: "MemoryManager", args: MigrateVma, vma: "Vma") -> None:
    """Fill `args.src` and `args.cpages` for [args.start, args.end), inside one MIGRATE window."""
    range_ = notifier_start(memory, vma.mm, args.start, args.end, MMU_NOTIFY_MIGRATE, args.pgmap_owner)
    _Collect(memory, args, vma).walk()
    notifier_end(memory, range_)
    args.npages = (args.end - args.start) >> memory.geometry.page_shift


class _Collect:
    """Carry what one collect walk needs at every step."""

    __slots__ = ("args", "compound", "flags", "geometry", "holes", "memory", "page_table", "pages", "src", "vma")

    def __init__(self, memory: "MemoryManager", args: MigrateVma, vma: "Vma") -> None:
        self.memory = memory
        self.args = args
        self.vma = vma
        self.src = args.src.data
        self.flags = args.flags
        self.compound = bool(args.flags & MIGRATE_VMA_SELECT_COMPOUND)
        # MM-Q3: as written the flags have no say in whether holes are collected.
        self.holes = vma.is_anonymous and (
            bool(args.flags & MIGRATE_VMA_SELECT_SYSTEM) or memory.quirks.mm_q3 == "as_written"
        )
        self.geometry = memory.geometry
        self.page_table = vma.mm.page_table
        self.pages = memory.pages

    def walk(self) -> None:
        address, end = self.args.start, self.args.end
        shift = self.geometry.pmd_shift
        page_table = self.page_table
        step = self.memory.kernel.step
        while address < end:
            step()
            stop = min(end, ((address >> shift) + 1) << shift)
            entry = page_table.entries.get(address >> shift)
            if entry is None:
                stop = page_table.hole_end(address, end)
                if self.memory.quirks.mm_s4 == "fixed":
                    stop = min(stop, ((address >> shift) + 1) << shift)
                self.hole(address, stop)
            elif isinstance(entry, PteTable):
                self.table(entry, address, stop)
            else:
                while self.leaf(address, stop) == _RETRY:
                    pass
            address = stop

    def at(self, address: int) -> int:
        """Return the index of an address in src."""
        return (address - self.args.start) >> self.geometry.page_shift

    def hole(self, start: int, end: int) -> None:
        """Collect what has no PTE table and no leaf (migrate_vma_collect_hole)."""
        if not self.holes:
            return
        i = self.at(start)
        size = self.geometry.pmd_size
        if self.compound and start % size == 0 and end % size == 0:
            # A hole of several PMDs, seen from an empty PUD, is one compound too (MM-S4): its rest is skipped.
            self.src[i] = MIGRATE_PFN_MIGRATE | MIGRATE_PFN_COMPOUND
            self.args.cpages += 1
            return
        n = self.at(end) - i
        self.args.src[i : i + n] = MIGRATE_PFN_MIGRATE
        self.args.cpages += n

    def leaf(self, start: int, end: int) -> int:
        """Collect a chunk under a PMD leaf (migrate_vma_collect_huge_pmd); _RETRY if it has to be looked at again."""
        args = self.args
        memory = self.memory
        block = start >> self.geometry.pmd_shift
        leaf = self.page_table.entries.get(block)
        if leaf is None:
            self.hole(start, end)
            return 0
        if isinstance(leaf, PteTable):
            self.table(leaf, start, end)
            return 0
        kind = leaf.kind
        if kind is PmdKind.HUGE_ZERO:
            if self.flags & MIGRATE_VMA_SELECT_SYSTEM:
                self.hole(start, end)
            return 0
        pfn = leaf.pfn
        pages = self.pages
        zone = pages.zone(pfn)
        if kind is PmdKind.THP:
            # MM-Q8: as written there is no look at coherent folios or their owner here, other than for PTEs.
            if zone.pgmap is not None and memory.quirks.mm_q8 == "fixed":
                if not self.flags & MIGRATE_VMA_SELECT_DEVICE_COHERENT or zone.pgmap.owner != args.pgmap_owner:
                    return 0
            elif not self.flags & MIGRATE_VMA_SELECT_SYSTEM:
                return 0
        elif (
            kind is not PmdKind.PRIVATE
            or not self.flags & MIGRATE_VMA_SELECT_DEVICE_PRIVATE
            or zone.pgmap is None
            or zone.pgmap.owner != args.pgmap_owner
        ):
            return 0
        i = pfn - zone.base
        zone.m_refcount[i] += 1
        fault = args.fault_page
        is_fault = fault is not None and pages.folio_head(fault) == pfn
        if not is_fault and not pages.folio_trylock(pfn):
            pages.folio_put(pfn)
            return 0
        if self.compound and end - start == self.geometry.pmd_size:
            word = pfn << MIGRATE_PFN_SHIFT | _VALID_MIGRATE | MIGRATE_PFN_COMPOUND
            if leaf.write:
                word |= MIGRATE_PFN_WRITE
            if set_pmd_migration_entry(memory, self.vma.mm, block, leaf):
                self.src[self.at(start)] = word
                args.cpages += 1
                return 0
        # It has to be split: the range cuts it, the caller wants small folios, or it may be pinned. A fault folio has
        # one reference too many for that, always (MM-Q5).
        if fault is not None and is_fault and memory.quirks.mm_q5 == "fixed":
            pages.folio_put(pfn)
            return 0 if migrate_vma_split_folio(memory, pfn, fault) else _RETRY
        error = split_folio(memory, pfn)
        if not is_fault:
            pages.folio_unlock(pfn)
        pages.folio_put(pfn)
        return 0 if error else _RETRY

    def table(self, table: PteTable, start: int, end: int) -> None:
        """Collect a chunk of a PTE table (migrate_vma_collect_pmd)."""
        at = (start - table.base) >> self.geometry.page_shift
        n = (end - start) >> self.geometry.page_shift
        if self.usual(table, at, n, self.at(start)):
            return
        args = self.args
        fault = args.fault_page
        pages = self.pages
        # MM-S3: as written, the fault folio is looked up once, though a split may give the fault page another one.
        fault_head = -1 if fault is None else pages.folio_head(fault)
        i = self.at(start)
        last = at + n
        while at < last:
            word = self.pte(table, at, fault_head)
            if word == _SKIP:
                return
            if word == _RETRY:
                if fault is not None and self.memory.quirks.mm_s3 == "fixed":
                    fault_head = pages.folio_head(fault)
                found = self.page_table.entries.get(table.block)
                if not isinstance(found, PteTable):
                    # MADV_DONTNEED has emptied and freed it while nobody held its lock.
                    rest = table.base + (at << self.geometry.page_shift)
                    while self.leaf(rest, end) == _RETRY:
                        pass
                    return
                table = found
                continue
            if word:
                self.src[i] = word
                if word & MIGRATE_PFN_MIGRATE:
                    args.cpages += 1
            at += 1
            i += 1

    def pte(self, table: PteTable, at: int, fault_head: int) -> int:
        """Return the word of one PTE, _RETRY after a split, or _SKIP for it and the rest of the chunk."""
        bit = 1 << at
        flags = self.flags
        if not table.used & bit:
            return MIGRATE_PFN_MIGRATE if self.holes else 0
        if table.zero & bit:
            return MIGRATE_PFN_MIGRATE if flags & MIGRATE_VMA_SELECT_SYSTEM else 0
        if not (table.present | table.private) & bit:
            return 0  # migration or device-exclusive
        page = table.m_pfn[at]
        pages = self.pages
        zone = pages.zone(page)
        pgmap = zone.pgmap
        owner = self.args.pgmap_owner
        if table.private & bit:
            if not flags & MIGRATE_VMA_SELECT_DEVICE_PRIVATE or pgmap is None or pgmap.owner != owner:
                return 0
        elif pgmap is None:
            if not flags & MIGRATE_VMA_SELECT_SYSTEM:
                return 0
        elif pgmap.type == MEMORY_DEVICE_COHERENT:
            if not flags & MIGRATE_VMA_SELECT_DEVICE_COHERENT or pgmap.owner != owner:
                return 0
        i = page - zone.base
        head = page - zone.m_head_off[i]
        if zone.m_order[head - zone.base]:
            if head != fault_head:
                pages.folio_get(head)
            return _SKIP if migrate_vma_split_folio(self.memory, head, self.args.fault_page) else _RETRY
        if not zone.m_mapping[i]:
            return 0
        zone.m_refcount[i] += 1
        if page != fault_head and not pages.folio_trylock(page):
            pages.folio_put(page)
            return 0
        exclusive = zone.m_flags[i] & PG_ANON_EXCLUSIVE
        if exclusive and not self.memory.rmap.folio_try_share_anon_rmap(page):
            if page != fault_head:
                pages.folio_unlock(page)
            pages.folio_put(page)
            return 0
        word = page << MIGRATE_PFN_SHIFT | _VALID_MIGRATE
        if table.write & bit:
            if not exclusive and zone.m_mapping[i] > 0:
                raise ModelError(f"page {page:#x} is mapped writable and is not exclusive")
            word |= MIGRATE_PFN_WRITE
        if table.dirty & bit:
            zone.m_flags[i] |= PG_DIRTY
        table.set_migration(bit, table.write & bit, bit if exclusive and not table.write & bit else 0)
        self.memory.rmap.folio_remove_rmap_pte(page)
        pages.folio_put(page)
        return word

    def usual(self, table: PteTable, at: int, n: int, i: int) -> bool:
        """Collect a whole chunk at once, if nothing about its pages is unusual; False, and nothing done, otherwise."""
        if not self.vma.is_anonymous:
            return False  # pages of the file among private copies
        args = self.args
        flags = self.flags
        chunk = span(at, n)
        system = flags & MIGRATE_VMA_SELECT_SYSTEM
        present = table.present & chunk
        zero = present & table.zero
        present ^= zero
        groups: list[tuple[int, Zone, Index]] = []
        for mask, selected in ((present, system), (table.private & chunk, flags & MIGRATE_VMA_SELECT_DEVICE_PRIVATE)):
            if not mask:
                continue
            one = self.pages.select(table.pfns(mask))
            if one is None:
                return False
            zone = one[0]
            pgmap = zone.pgmap
            if pgmap is not None:
                if not zone.private:
                    return False  # coherent pages are seldom enough
                if pgmap.owner != args.pgmap_owner:
                    continue
            if selected:
                groups.append((mask, zone, one[1]))
        fault = args.fault_page
        for mask, zone, index in groups:
            page_flags = zone.flags[index]
            locked = np.count_nonzero(page_flags & PG_LOCKED)
            if locked and (locked > 1 or fault is None or not _names(table, mask, fault)):
                return False
            if not (all_zero(zone.order[index]) and all_zero(zone.head_off[index])):
                return False
            if np.count_nonzero(zone.mapping[index]) != len(page_flags):
                return False
            if zone.pgmap is None and int(zone.refcount[index].max()) >= GUP_PIN_COUNTING_BIAS:
                return False
        if self.holes:
            holes = (chunk & ~table.used) | (zero if system else 0)
            if holes:
                self.store(holes, at, i, MIGRATE_PFN_MIGRATE)
        for mask, zone, index in groups:
            self.take(table, mask, zone, index, at, i)
        return True

    def take(
        self,
        table: PteTable,
        mask: int,
        zone: Zone,
        index: Index,
        at: int,
        i: int,
    ) -> None:
        """Lock and unmap small pages that are all as usual; their references stay, as the mapping's becomes ours."""
        page_flags = zone.flags[index]
        width = len(table.pfn)
        n = len(page_flags)
        exclusive = page_flags & PG_ANON_EXCLUSIVE
        count = np.count_nonzero(exclusive)
        was = mask if count == n else (from_indices(indices(mask)[exclusive != 0], width) if count else 0)
        write = table.write & mask
        if write & ~was:
            raise ModelError(f"a page of block {table.block:#x} is mapped writable and is not exclusive")
        dirty = table.dirty & mask
        page_flags = (page_flags & ~np.uint16(PG_ANON_EXCLUSIVE)) | np.uint16(PG_LOCKED)
        if dirty == mask:
            page_flags |= PG_DIRTY
        elif dirty:
            page_flags |= np.where(bools(dirty, width)[indices(mask)], np.uint16(PG_DIRTY), np.uint16(0))
        zone.flags[index] = page_flags
        zone.mapcount[index] -= 1
        words = (table.pfns(mask).view(np.uint64) << MIGRATE_PFN_SHIFT) | _VALID_MIGRATE
        if write == mask:
            words |= MIGRATE_PFN_WRITE
        elif write:
            words |= np.where(bools(write, width)[indices(mask)], np.uint64(MIGRATE_PFN_WRITE), np.uint64(0))
        table.set_migration(mask, write, was & ~write)
        if is_run(mask):
            first = i + lowest(mask) - at
            self.args.src[first : first + n] = words
        else:
            self.args.src[indices(mask) + (i - at)] = words
        self.args.cpages += n

    def store(self, mask: int, at: int, i: int, word: int) -> None:
        """Give the pages of `mask` one word; page `at` of the table is entry `i`."""
        if is_run(mask):
            first = i + lowest(mask) - at
            self.args.src[first : first + mask.bit_count()] = word
        else:
            self.args.src[indices(mask) + (i - at)] = word
        self.args.cpages += mask.bit_count()


def _names(table: PteTable, mask: int, pfn: int) -> bool:
    """Tell whether an entry of `mask` names the page; asked only when one page of a chunk is locked."""
    return bool((table.pfns(mask) == pfn).any())


def migrate_vma_split_folio(memory: "MemoryManager", pfn: int, fault_page: int | None) -> int:
    """Split a large folio that PTEs map, so that its pages can be collected; 0 or a positive errno.

    Takes over one reference unless it is the fault folio, and sleeps on the lock then. After a split the lock and
    reference that the fault path holds are on the folio that now contains the fault page (migrate_vma_split_folio).
    """
    pages = memory.pages
    fault_head = -1 if fault_page is None else pages.folio_head(fault_page)
    if pfn != fault_head:
        pages.folio_lock(pfn)
    else:
        assert fault_page is not None
        if memory.quirks.mm_q18 == "fixed":
            return split_folio(memory, pfn, lock_at=fault_page)
    error = split_folio(memory, pfn)
    if error:
        if pfn != fault_head:
            pages.folio_unlock(pfn)
            pages.folio_put(pfn)
        return error
    new_fault = -1 if fault_page is None else pages.folio_head(fault_page)
    if new_fault == pfn:
        return 0
    if new_fault >= 0 and fault_head == pfn:
        zone = pages.zone(new_fault)
        if not zone.m_refcount[new_fault - zone.base]:
            raise ModelError(
                f"folio_get of page {new_fault:#x}, which was freed when its folio was split: nothing maps it any "
                "more, and the reference of its fault was the head's (MM-Q18)"
            )
        pages.folio_get(new_fault)
        pages.folio_lock(new_fault)
    pages.folio_unlock(pfn)
    pages.folio_put(pfn)
    return 0
