"""mm/migrate_device.c, as of Linux 7.3.4: move pages between system memory and devices, the driver doing the copies.

Three calls, one word per page: setup collects and unmaps, pages moves what the pages are, finalize maps them
again. Between them the driver allocates, copies, and writes `dst`. `migrate_device_*` do so by pfn, without a VMA.

Words of small folios are handled in batches between one compound word and the next, a compound word by itself. In
explored mode, and where a batch is in any way unusual, everything goes page by page in the kernel's order.

Counted when finalized: bytes whose page really moved, by where it went; a hole filled with a device page counts as
migrated to the device.
"""

from errno import EAGAIN, EBUSY, EINVAL
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from gpusvm.errors import KernelError, ModelError
from gpusvm.mm.api import (
    MEMORY_DEVICE_COHERENT,
    MIGRATE_PFN_COMPOUND,
    MIGRATE_PFN_MIGRATE,
    MIGRATE_PFN_SHIFT,
    MIGRATE_PFN_VALID,
    MMU_NOTIFY_MIGRATE,
    VM_HUGETLB,
    VM_SPECIAL,
    MigrateVma,
    MmuNotifierRange,
    Pfns,
    Words,
)
from gpusvm.mm.filemap import AddressSpace
from gpusvm.mm.huge_memory import split_huge_pmd
from gpusvm.mm.lru import PG_ACTIVE, PG_REFERENCED
from gpusvm.mm.migrate_collect import migrate_vma_collect
from gpusvm.mm.migrate_insert import insert_huge_pmd_page, insert_pages
from gpusvm.mm.mmu_notifier import notifier_end, notifier_start
from gpusvm.mm.observer import tell
from gpusvm.mm.page import PG_DIRTY, PG_LOCKED, PG_LRU, PG_SWAPBACKED, PG_UPTODATE, Index, Zone
from gpusvm.mm.pgtable import PmdKind, PmdLeaf
from gpusvm.mm.ptemask import all_zero
from gpusvm.mm.rmap_walk import remove_migration_ptes, restore_pages, try_to_migrate
from gpusvm.mm.split import folio_split_unmapped

if TYPE_CHECKING:
    from gpusvm.mm.memory_manager import MemoryManager
    from gpusvm.mm.vma import Vma

__all__ = [
    "migrate_device_coherent_folio",
    "migrate_device_finalize",
    "migrate_device_pages",
    "migrate_device_pfns",
    "migrate_device_range",
    "migrate_vma_finalize",
    "migrate_vma_pages",
    "migrate_vma_setup",
]

# Below so many words a batch costs more than its pages one by one.
_BATCH: Final = 4
_FEW: Final = 16  # so many are looked at one by one
_NOT_MIGRATE: Final = ~np.uint64(MIGRATE_PFN_MIGRATE)
_KEPT_FLAGS: Final = PG_DIRTY | PG_UPTODATE | PG_SWAPBACKED | PG_REFERENCED | PG_ACTIVE


# --- setup


def migrate_vma_setup(memory: "MemoryManager", args: MigrateVma) -> None:
    """Collect, lock, isolate and unmap the pages of [args.start, args.end); afterwards args.src says which.

    mmap_lock is held from here to finalize. EINVAL: no such range in one ordinary VMA, or a fault page that is not a
    locked device-private one. Success with cpages 0 is usual.
    """
    geometry = memory.geometry
    vma: Any = args.vma
    nr_pages = (args.end - args.start) >> geometry.page_shift
    args.start &= -geometry.page_size
    args.end &= -geometry.page_size
    if vma is None or vma.flags & (VM_HUGETLB | VM_SPECIAL):
        raise KernelError(EINVAL, "migrate_vma_setup of no VMA, or of a special one")
    if nr_pages <= 0:
        raise KernelError(EINVAL, "migrate_vma_setup of no pages")
    if not vma.start <= args.start < vma.end or not vma.start < args.end <= vma.end:
        raise KernelError(EINVAL, f"{args.start:#x}-{args.end:#x} does not lie in {vma!r}")
    if len(args.src) < nr_pages or len(args.dst) < nr_pages:
        raise KernelError(EINVAL, f"src and dst are too short for {nr_pages} pages")
    fault = args.fault_page
    if fault is not None:
        if not memory.pages.zone(fault).private:
            raise KernelError(EINVAL, f"fault page {fault:#x} is not device-private")
        if not memory.pages.folio_locked(memory.pages.folio_head(fault)):
            raise KernelError(EINVAL, f"fault page {fault:#x} is not locked")
    kernel = memory.kernel
    if kernel.checked and not vma.mm.mmap_lock.is_locked:
        raise ModelError(f"migrate_vma_setup without the mmap_lock of {vma.mm.name}")
    args.src[:nr_pages] = 0
    args.dst[:nr_pages] = 0
    args.cpages = 0
    if kernel.observer is not None:
        tell(kernel.observer, "operation_begins", "migrate_vma_setup", args)
    migrate_vma_collect(memory, args, vma)
    if args.cpages:
        args.cpages = _unmap(memory, args.src, args.npages, fault)
    if kernel.observer is not None:
        tell(kernel.observer, "operation_ends", "migrate_vma_setup", args)
    if kernel.checked:
        _check_collected(memory, args.src[: args.npages], fault)
    kernel.charge("migrate_setup_base")
    kernel.charge("migrate_setup_per_folio", args.cpages)
    if args.cpages and memory.quirks.mm_q11 == "fixed":
        # Only the first word of a block can be compound.
        at = slice((-args.start >> geometry.page_shift) & (geometry.pmd_nr - 1), args.npages, geometry.pmd_nr)
        both = MIGRATE_PFN_MIGRATE | MIGRATE_PFN_COMPOUND
        for word in args.src[at].tolist():
            if word & both == both:
                args.cpages += geometry.pmd_nr - 1


def _check_collected(memory: "MemoryManager", src: Words, fault_page: int | None) -> None:
    """Raise ModelError unless what was collected is locked, unmapped and off the LRU (invariant 17).

    As written, MM-S3 collects the head of a split fault folio unlocked; only in checked mode.
    """
    head = int(src[0])
    if head & MIGRATE_PFN_COMPOUND and head & MIGRATE_PFN_VALID and len(src) == memory.geometry.pmd_nr:
        # One block, whose other words are 0: no need for arrays.
        pfn = head >> MIGRATE_PFN_SHIFT
        zone = memory.pages.zone(pfn)
        i = pfn - zone.base
        if head & MIGRATE_PFN_MIGRATE and zone.m_flags[i] & (PG_LOCKED | PG_LRU) == PG_LOCKED:
            if not zone.m_mapcount[i]:
                return
    if len(src) <= _FEW:
        checked = [_is_collected(memory, word) for word in src.tolist() if word & MIGRATE_PFN_VALID]
        if all(checked):
            return  # what is not as it should be is left to the arrays, which say why
    words = src[src & MIGRATE_PFN_VALID != 0]
    if not len(words):
        return
    if np.count_nonzero(words & MIGRATE_PFN_MIGRATE) != len(words):
        raise ModelError("setup left a VALID word without MIGRATE")
    for zone, index, _ in memory.pages.split((words >> MIGRATE_PFN_SHIFT).astype(np.int64)):
        flags = zone.flags[index]
        locked = np.count_nonzero(flags & PG_LOCKED)
        unlocked = locked != len(flags) and (fault_page is None or memory.quirks.mm_s3 == "fixed")
        if unlocked or np.count_nonzero(flags & PG_LRU) or not all_zero(zone.mapcount[index]):
            raise ModelError(f"setup left a folio of {zone!r} unlocked, mapped or on the LRU")


def _is_collected(memory: "MemoryManager", word: int) -> bool:
    pfn = word >> MIGRATE_PFN_SHIFT
    zone = memory.pages.zone(pfn)
    i = pfn - zone.base
    locked = zone.m_flags[i] & (PG_LOCKED | PG_LRU) == PG_LOCKED
    return bool(word & MIGRATE_PFN_MIGRATE) and locked and not zone.m_mapcount[i]


def migrate_device_range(memory: "MemoryManager", src: Words, start_pfn: int, npages: int) -> None:
    """Collect, lock and unmap the folios among `npages` consecutive pfns; src gets their words."""
    src[:npages] = np.arange(start_pfn, start_pfn + npages, dtype=np.uint64)
    migrate_device_pfns(memory, src, npages)


def migrate_device_pfns(memory: "MemoryManager", src: Words, npages: int) -> None:
    """Collect, lock and unmap the folios at the pfns in `src`, which gets their words; what is free or locked gets 0.

    No mmap_lock, no MIGRATE event. The word of a large folio, or of a free one that was large, has COMPOUND, and the
    words of its other pages are 0.
    """
    if memory.kernel.observer is not None:
        tell(memory.kernel.observer, "operation_begins", "migrate_device_pfns", src, npages)
    pages = memory.pages
    pfns = src[:npages].astype(np.int64)
    one = pages.select(pfns) if npages else None
    if one is not None and _lock_usual(one[0], one[1]):
        src[:npages] = (pfns.view(np.uint64) << MIGRATE_PFN_SHIFT) | (MIGRATE_PFN_VALID | MIGRATE_PFN_MIGRATE)
    else:
        words = src.data
        i = 0
        while i < npages:
            pfn = words[i]
            nr = 1 << pages.folio_order(pfn)
            if nr > npages - i:
                src[i:npages] = 0
                break
            word = 0
            if pages.folio_try_get(pfn):
                if pages.folio_trylock(pfn):
                    word = pfn << MIGRATE_PFN_SHIFT | MIGRATE_PFN_VALID | MIGRATE_PFN_MIGRATE
                else:
                    pages.folio_put(pfn)
            if nr > 1:
                word |= MIGRATE_PFN_COMPOUND
                src[i + 1 : i + nr] = 0
            words[i] = word
            i += nr
    cpages = _unmap(memory, src, npages, None)
    if memory.kernel.observer is not None:
        tell(memory.kernel.observer, "operation_ends", "migrate_device_pfns", src, npages)
    memory.kernel.charge("migrate_setup_base")
    memory.kernel.charge("migrate_setup_per_folio", cpages)


def _lock_usual(zone: Zone, index: Index) -> bool:
    """Get and lock a batch of small folios, all live and free; False, and nothing done, otherwise."""
    flags = zone.flags[index]
    refs = zone.refcount[index]
    if np.count_nonzero(refs) != len(refs) or np.count_nonzero(flags & PG_LOCKED):
        return False
    if not (all_zero(zone.order[index]) and all_zero(zone.head_off[index])):
        return False
    zone.refcount[index] = refs + 1
    zone.flags[index] = flags | PG_LOCKED
    return True


def _next_compound(words: Words, i: int, end: int) -> int:
    """Return the index of the next COMPOUND word in [i, end), or `end`."""
    found = (words[i:end] & MIGRATE_PFN_COMPOUND).nonzero()[0]
    return i + int(found[0]) if len(found) else end


def _unmap(memory: "MemoryManager", src: Words, npages: int, fault_page: int | None) -> int:
    """Isolate what was collected and unmap it everywhere; return how many words have MIGRATE (migrate_device_unmap)."""
    pages = memory.pages
    words = src.data
    fault_head = -1 if fault_page is None else pages.folio_head(fault_page)
    count = 0
    restore: list[int] = []
    lru = pages.lru
    if lru is not None:
        lru.drain()
    if pages.activate is not None:
        pages.activate.drain()
    i = 0
    while i < npages:
        word = words[i]
        if word & MIGRATE_PFN_COMPOUND:
            j = i + 1
        else:
            j = _next_compound(src, i, npages)
            if j - i >= _BATCH and pages.lru is None:
                done = _unmap_batch(memory, src, i, j, fault_head, restore)
                if done is not None:
                    count += done
                    i = j
                    continue
        while i < j:
            word = words[i]
            if not word & MIGRATE_PFN_VALID:
                count += bool(word & MIGRATE_PFN_MIGRATE)
                i += 1
                continue
            pfn = word >> MIGRATE_PFN_SHIFT
            nr = 1 << pages.folio_order(pfn)
            if nr > 1:
                word |= MIGRATE_PFN_COMPOUND
            if lru is not None and pages.zone(pfn).pgmap is None and not pages.ram.m_flags[pfn] & PG_LRU:
                # In the batch of some CPU; once a call, and whatever comes of it (allow_drain).
                lru.drain_all()
                lru = None
            if _unmap_one(memory, pfn, fault_head):
                count += bool(word & MIGRATE_PFN_MIGRATE)
                words[i] = word
            else:
                words[i] = word & ~MIGRATE_PFN_MIGRATE
                restore.append(i)
            i += nr
    for i in restore:
        pfn = words[i] >> MIGRATE_PFN_SHIFT
        remove_migration_ptes(memory, pfn, pfn)
        words[i] = 0
        if pfn != fault_head:
            _unlock(memory, pfn)
        pages.folio_put(pfn)
    return count


def _unmap_one(memory: "MemoryManager", pfn: int, fault_head: int) -> bool:
    """Isolate one folio and unmap it everywhere; False if it has to go back."""
    zone = memory.pages.zone(pfn)
    i = pfn - zone.base
    extra = 1 + (pfn == fault_head)
    if zone.pgmap is None:
        if not zone.m_flags[i] & PG_LRU:
            return False
        # folio_isolate_lru takes a reference, and the one from collecting goes.
        zone.m_flags[i] &= ~PG_LRU
    else:
        extra += 1
    if zone.m_mapping[i] < 0:
        extra += 1  # the page cache's
    if zone.m_mapcount[i]:
        try_to_migrate(memory, pfn)
    # migrate_vma_check_page
    if zone.m_mapcount[i] or zone.m_refcount[i] - extra > 0:
        if zone.pgmap is None:
            memory.pages.folio_add_lru(pfn)  # folio_putback_lru
        return False
    return True


def _unmap_batch(
    memory: "MemoryManager", src: Words, i: int, j: int, fault_head: int, restore: list[int]
) -> int | None:
    """Do so for the words [i, j), none of them compound; what has to go back is added to `restore`.

    None, and nothing done, if pages of several zones are mapped elsewhere: windows open in the order of the words.
    """
    words = src[i:j]
    valid = words & MIGRATE_PFN_VALID
    found = np.count_nonzero(valid)
    where: Pfns | None = None
    if found == len(words):
        pfns = (words >> MIGRATE_PFN_SHIFT).view(np.int64)
    else:
        where = valid.nonzero()[0]
        pfns = (words[where] >> MIGRATE_PFN_SHIFT).view(np.int64)
    parts = memory.pages.split(pfns)
    if len(parts) > 1 and not all(all_zero(zone.mapcount[index]) for zone, index, _ in parts):
        return None
    for zone, index, part in parts:
        bad: Any = None
        extra: Any
        if zone.pgmap is None:
            flags = zone.flags[index]
            if np.count_nonzero(flags & PG_LRU) != len(flags):
                bad = flags & PG_LRU == 0
            zone.flags[index] = flags & ~np.uint16(PG_LRU)
            extra = 1
        else:
            extra = 2
        if memory.rmap.has_files:
            extra = extra + (zone.mapping[index] < 0)  # the page cache's
        mapcount = zone.mapcount[index]
        if not all_zero(mapcount):
            todo = mapcount != 0 if bad is None else (mapcount != 0) & ~bad
            for pfn in pfns[part][todo].tolist():
                try_to_migrate(memory, pfn)
            mapcount = zone.mapcount[index]
        stuck = (zone.refcount[index] > extra) | (mapcount != 0)
        if fault_head >= 0 and stuck.any():
            at = np.flatnonzero(pfns[part] == fault_head)
            for k in at.tolist():
                # A fault page is a device's, so that no page cache has it.
                stuck[k] = zone.m_mapcount[fault_head - zone.base] or zone.m_refcount[fault_head - zone.base] > 3
        back = stuck if bad is None else stuck | bad
        if not all_zero(back):
            if zone.pgmap is None:
                again = pfns[part][back if bad is None else back & ~bad]
                zone.flags[again] |= PG_LRU
            positions = np.arange(len(pfns))[part][back]
            if where is not None:
                positions = where[positions]
            words[positions] &= _NOT_MIGRATE
            restore.extend((positions + i).tolist())
    restore.sort()
    return int(np.count_nonzero(words & MIGRATE_PFN_MIGRATE))


def migrate_device_coherent_folio(memory: "MemoryManager", pfn: int) -> int:
    """Move one small folio of coherent device memory to system memory; 0 or EBUSY (migrate_device_coherent_folio).

    Takes over the caller's reference. EBUSY: it is pinned or held by others, or there is no memory.
    """
    pages = memory.pages
    pages.folio_lock(pfn)
    src = np.array([pfn << MIGRATE_PFN_SHIFT | MIGRATE_PFN_VALID | MIGRATE_PFN_MIGRATE], np.uint64)
    dst = np.zeros(1, np.uint64)
    observer = memory.kernel.observer
    if observer is not None:
        tell(observer, "operation_begins", "migrate_device_pfns", src, 1)
    _unmap(memory, src, 1, None)
    if observer is not None:
        tell(observer, "operation_ends", "migrate_device_pfns", src, 1)
    if not int(src[0]) & MIGRATE_PFN_MIGRATE:
        if observer is not None:  # it is over, as _unmap has put everything back
            tell(observer, "operation_begins", "migrate_finalize", src, dst, 1, -1)
            tell(observer, "operation_ends", "migrate_finalize", src, dst, 1, -1)
        return EBUSY
    new = pages.alloc_folio(0)
    if new is not None:
        pages.folio_lock(new)
        dst[0] = new << MIGRATE_PFN_SHIFT | MIGRATE_PFN_VALID
    migrate_device_pages(memory, src, dst, 1)
    if int(src[0]) & MIGRATE_PFN_MIGRATE and new is not None:
        memory.contents.copy_folio(new, pfn, 1)
    moved = bool(int(src[0]) & MIGRATE_PFN_MIGRATE)
    migrate_device_finalize(memory, src, dst, 1)
    return 0 if moved else EBUSY


# --- pages


def migrate_vma_pages(memory: "MemoryManager", args: MigrateVma) -> None:
    """Move what the pages are to the driver's pages in args.dst and fill holes; MIGRATE stays on what moved."""
    _migrate_device_pages(memory, args.src, args.dst, args.npages, args)


def migrate_device_pages(memory: "MemoryManager", src: Words, dst: Words, npages: int) -> None:
    """Do so without a VMA: no holes, and a compound source needs a compound destination."""
    _migrate_device_pages(memory, src, dst, npages, None)


class _Pages:
    """Carry what __migrate_device_pages needs at every word."""

    __slots__ = ("args", "d", "dst", "fault_head", "folios", "memory", "npages", "range_", "s", "src", "vma")

    def __init__(self, memory: "MemoryManager", src: Words, dst: Words, npages: int, args: MigrateVma | None) -> None:
        self.memory = memory
        self.src = src
        self.dst = dst
        self.s = src.data
        self.d = dst.data
        self.npages = npages
        self.args = args
        vma: Any = None if args is None else args.vma
        self.vma: Vma | None = vma
        fault = None if args is None else args.fault_page
        self.fault_head = -1 if fault is None else memory.pages.folio_head(fault)
        self.range_: MmuNotifierRange | None = None
        self.folios = 0

    def open(self, i: int) -> None:
        """Open the MIGRATE window, once, at the first hole that is filled."""
        args, vma = self.args, self.vma
        if self.range_ is None and args is not None and vma is not None:
            address = args.start + (i << self.memory.geometry.page_shift)
            self.range_ = notifier_start(self.memory, vma.mm, address, args.end, MMU_NOTIFY_MIGRATE, args.pgmap_owner)

    def one(self, i: int) -> int:
        """Handle the words at `i`; return how many they stand for."""
        s, d = self.s, self.d
        sw, dw = s[i], d[i]
        if not dw & MIGRATE_PFN_VALID:
            s[i] = sw & ~MIGRATE_PFN_MIGRATE
            return 1
        memory = self.memory
        pages = memory.pages
        self.folios += 1
        dst = dw >> MIGRATE_PFN_SHIFT
        if not sw & MIGRATE_PFN_VALID:
            return self.fill(i, sw, dw, dst)
        src = sw >> MIGRATE_PFN_SHIFT
        nr = 1 << pages.folio_order(src)
        if sw & MIGRATE_PFN_COMPOUND and sw & MIGRATE_PFN_MIGRATE and not dw & MIGRATE_PFN_COMPOUND:
            if self.vma is None:
                s[i] = sw & ~(MIGRATE_PFN_MIGRATE | MIGRATE_PFN_COMPOUND)
                return nr
            if self.split(i, src):
                s[i] = sw & ~(MIGRATE_PFN_MIGRATE | MIGRATE_PFN_COMPOUND)
                return nr
            flags = sw & ((1 << MIGRATE_PFN_SHIFT) - 1) & ~MIGRATE_PFN_COMPOUND
            self.src[i : i + nr] = (np.arange(src, src + nr, dtype=np.uint64) << MIGRATE_PFN_SHIFT) | flags
            self.folios -= 1
            return 0  # the same words again, as small ones
        if dw & MIGRATE_PFN_COMPOUND and not sw & MIGRATE_PFN_COMPOUND:
            # MM-Q6: as written the metadata move goes on though the page will be restored.
            sw &= ~MIGRATE_PFN_MIGRATE
            s[i] = sw
        if not sw & MIGRATE_PFN_MIGRATE and memory.quirks.mm_q6 == "fixed":
            return nr
        if not self.may_go_to(dst, src) or folio_migrate_mapping(memory, src, dst, src == self.fault_head):
            s[i] = sw & ~MIGRATE_PFN_MIGRATE
        return nr

    def may_go_to(self, dst: int, src: int) -> bool:
        """Tell whether a page may move to `dst`: system memory, or, not a file's, private or coherent device memory."""
        zone = self.memory.pages.zone(dst)
        if zone.pgmap is None:
            return True
        if self.memory.rmap.has_files:
            from_ = self.memory.pages.zone(src)
            if from_.m_mapping[src - from_.base] < 0:
                return False
        return zone.private or zone.pgmap.type == MEMORY_DEVICE_COHERENT

    def fill(self, i: int, sw: int, dw: int, dst: int) -> int:
        """Fill one hole, compound or not."""
        args, vma = self.args, self.vma
        if not sw & MIGRATE_PFN_MIGRATE:
            return 1
        if args is None or vma is None:
            raise ModelError(f"word {i} asks to fill a hole, and there is no VMA")
        self.open(i)
        memory = self.memory
        nr = 1
        if sw & MIGRATE_PFN_COMPOUND:
            nr = min(memory.geometry.pmd_nr, self.npages - i)
            if dw & MIGRATE_PFN_COMPOUND:
                address = args.start + (i << memory.geometry.page_shift)
                if not insert_huge_pmd_page(memory, args, vma, address, dst):
                    self.src[i : i + nr] &= _NOT_MIGRATE
                return nr
            self.s[i] = sw & ~MIGRATE_PFN_COMPOUND
            if np.count_nonzero(self.dst[i : i + nr] & MIGRATE_PFN_VALID) != nr:
                raise ModelError(f"a compound hole at word {i} got small destinations, but not all {nr}")
            self.src[i : i + nr] |= np.uint64(MIGRATE_PFN_MIGRATE)
            self.folios += nr - 1
        elif dw & MIGRATE_PFN_COMPOUND:
            raise ModelError(f"word {i} is a hole of one page, and its destination {dst:#x} is compound")
        self.fill_run(np.arange(i, i + nr))
        return nr

    def fill_run(self, where: Pfns) -> None:
        """Fill holes with small folios, block by block; page by page in explored mode."""
        args, vma, memory = self.args, self.vma, self.memory
        assert args is not None
        assert vma is not None
        if memory.kernel.explored:
            for i in range(len(where)):
                insert_pages(memory, args, vma, where[i : i + 1])
            return
        order = memory.geometry.pmd_order
        blocks = (where + (args.start >> memory.geometry.page_shift)) >> order
        if int(blocks[0]) == int(blocks[-1]):
            insert_pages(memory, args, vma, where)
            return
        for block in range(int(blocks[0]), int(blocks[-1]) + 1):
            part = where[blocks == block]
            if len(part):
                insert_pages(memory, args, vma, part)

    def split(self, i: int, src: int) -> int:
        """Split a compound source with small destinations: its PMD migration entry, then the folio; 0 or an errno."""
        args, vma, memory = self.args, self.vma, self.memory
        assert args is not None
        assert vma is not None
        address = args.start + (i << memory.geometry.page_shift)
        entry = vma.mm.page_table.lookup(address)
        if isinstance(entry, PmdLeaf) and entry.kind is PmdKind.MIGRATION and entry.pfn == src:
            split_huge_pmd(memory, vma, address)
        self.split_elsewhere(vma, src)
        if src != self.fault_head:
            return folio_split_unmapped(memory, src)
        error = folio_split_unmapped(memory, src, fault_page=args.fault_page)
        if not error and args.fault_page is not None:
            self.fault_head = args.fault_page  # a folio of its own now
        return error

    def split_elsewhere(self, vma: "Vma", src: int) -> None:
        """Split the PMD migration entries that name `src` in the other areas, too; as written, MM-Q17, nobody does.

        What their processes read in the block afterwards is then put down to the quirk.
        """
        memory = self.memory
        geometry = memory.geometry
        for other, start, _ in memory.rmap.places(src):
            entry = other.mm.page_table.lookup(start)
            if other is vma or not isinstance(entry, PmdLeaf) or entry.kind is not PmdKind.MIGRATION:
                continue
            if entry.pfn == src and memory.quirks.mm_q17 == "fixed":
                split_huge_pmd(memory, other, start)
            elif entry.pfn == src:
                vpns = np.arange(geometry.pmd_nr) + (start >> geometry.page_shift)
                memory.contents.taint(other.mm, vpns, "mm_q17")

    def batch(self, i: int, j: int) -> None:
        """Handle the words [i, j), none of them compound."""
        src, dst = self.src[i:j], self.dst[i:j]
        n = j - i
        have = dst & MIGRATE_PFN_VALID != 0
        given = int(np.count_nonzero(have))
        if given != n:
            src[~have] &= _NOT_MIGRATE
            if not given:
                return
        page = src & MIGRATE_PFN_VALID != 0
        with_page = np.count_nonzero(page)
        self.folios += given
        if with_page != n:
            holes = np.flatnonzero(have & ~page & (src & MIGRATE_PFN_MIGRATE != 0))
            if len(holes):
                if self.vma is None:
                    raise ModelError(f"word {i + int(holes[0])} asks to fill a hole, and there is no VMA")
                self.open(i + int(holes[0]))
                self.fill_run(holes + i)
            if not with_page:
                return
        if with_page == n == given:
            self.move(src, dst, None)
        else:
            both = np.flatnonzero(have & page)
            if len(both):
                self.move(src, dst, both)

    def move(self, src: Words, dst: Words, where: Pfns | None) -> None:
        """Move the metadata of small folios; those that somebody else holds lose MIGRATE."""
        memory = self.memory
        if memory.quirks.mm_q6 == "fixed":
            migrate = src & MIGRATE_PFN_MIGRATE != 0
            where = np.flatnonzero(migrate) if where is None else where[migrate[where]]
        sw, dw = (src, dst) if where is None else (src[where], dst[where])
        if not len(sw):
            return
        from_pfns = (sw >> MIGRATE_PFN_SHIFT).view(np.int64)
        to_pfns = (dw >> MIGRATE_PFN_SHIFT).view(np.int64)
        pages = memory.pages
        from_, to = pages.select(from_pfns), pages.select(to_pfns)
        bad: Any = None
        batch = from_ is not None and not (memory.rmap.has_files and (from_[0].mapping[from_[1]] < 0).any())
        if batch and from_ is not None and to is not None and self.may_go_to(int(to_pfns[0]), int(from_pfns[0])):
            bad = self.move_selected(from_[0], from_[1], to[0], to[1], from_pfns)
        else:
            bad = np.array(
                [
                    not self.may_go_to(new, old) or folio_migrate_mapping(memory, old, new, old == self.fault_head) != 0
                    for old, new in zip(from_pfns.tolist(), to_pfns.tolist(), strict=True)
                ]
            )
        if bad is not None and bad.any():
            src[bad if where is None else where[bad]] &= _NOT_MIGRATE

    def move_selected(self, zone: Zone, index: Index, to: Zone, at: Index, from_pfns: Pfns) -> Any:
        """Move the metadata from one zone to another; None, or which folios somebody else holds."""
        if self.memory.kernel.checked:
            check_destinations(to, at)
        refs = zone.refcount[index]
        if self.fault_head >= 0:
            refs = refs - (from_pfns == self.fault_head)
        refs = refs - zone.mapcount[index]
        bad: Any = None
        if np.count_nonzero(refs == 1) != len(refs):
            bad = refs != 1
            good = np.flatnonzero(~bad)
            index = good + index.start if isinstance(index, slice) else index[good]
            at = good + at.start if isinstance(at, slice) else at[good]
        to.mapping[at] = zone.mapping[index]
        to.index[at] = zone.index[index]
        to.flags[at] |= zone.flags[index] & np.uint16(_KEPT_FLAGS)
        return bad


def _migrate_device_pages(
    memory: "MemoryManager", src: Words, dst: Words, npages: int, args: MigrateVma | None
) -> None:
    if memory.kernel.observer is not None:
        tell(memory.kernel.observer, "operation_begins", "migrate_pages", src, dst, npages, args)
    state = _Pages(memory, src, dst, npages, args)
    s, d = state.s, state.d
    i = 0
    explored = memory.kernel.explored
    while i < npages:
        if explored or (s[i] | d[i]) & MIGRATE_PFN_COMPOUND:
            i += state.one(i)
            continue
        j = min(_next_compound(src, i, npages), _next_compound(dst, i, npages))
        if j - i >= _BATCH:
            state.batch(i, j)
            i = j
        else:
            while i < j:
                i += state.one(i)
    notifier_end(memory, state.range_)
    if memory.kernel.observer is not None:
        tell(memory.kernel.observer, "operation_ends", "migrate_pages", src, dst, npages, args)
    memory.kernel.charge("migrate_pages_per_folio", state.folios)


def check_destinations(zone: Zone, index: Index) -> None:
    """Raise ModelError unless the driver's pages are locked, referenced once and unmapped (invariant 22)."""
    flags = zone.flags[index]
    if np.count_nonzero(flags & PG_LOCKED) != len(flags):
        raise ModelError(f"a destination in {zone!r} is not locked")
    if not all_zero(zone.mapcount[index]) or np.count_nonzero(zone.refcount[index] == 1) != len(flags):
        raise ModelError(f"a destination in {zone!r} is mapped, or not referenced exactly once")


def folio_migrate_mapping(memory: "MemoryManager", src: int, dst: int, is_fault: bool) -> int:
    """Give the folio `dst` what `src` is: mapping, index, flags; 0, or EAGAIN if somebody else holds `src`.

    mm/migrate.c:folio_migrate_mapping and folio_migrate_flags.
    """
    pages = memory.pages
    zone, to = pages.zone(src), pages.zone(dst)
    i, j = src - zone.base, dst - to.base
    if memory.kernel.checked and (not to.m_flags[j] & PG_LOCKED or to.m_mapcount[j] or to.m_refcount[j] != 1):
        check_destinations(to, slice(j, j + 1))
    mapping = zone.m_mapping[i]
    if zone.m_refcount[i] != zone.m_mapcount[i] + 1 + is_fault + (mapping < 0):
        return EAGAIN
    to.m_mapping[j] = mapping
    to.m_index[j] = zone.m_index[i]
    to.m_flags[j] |= zone.m_flags[i] & _KEPT_FLAGS
    if mapping < 0:
        file = memory.rmap.mappings[mapping]
        assert isinstance(file, AddressSpace)
        file.replace(src, dst)
    return 0


# --- finalize


def migrate_vma_finalize(memory: "MemoryManager", args: MigrateVma) -> None:
    """Map what moved at its new place and the rest at its old one; unlock and drop everything."""
    fault = args.fault_page
    _finalize(memory, args.src, args.dst, args.npages, -1 if fault is None else memory.pages.folio_head(fault))


def migrate_device_finalize(memory: "MemoryManager", src: Words, dst: Words, npages: int) -> None:
    """Do so without a VMA."""
    _finalize(memory, src, dst, npages, -1)


def _finalize(memory: "MemoryManager", src: Words, dst: Words, npages: int, fault_head: int) -> None:
    if memory.kernel.observer is not None:
        tell(memory.kernel.observer, "operation_begins", "migrate_finalize", src, dst, npages, fault_head)
    s, d = src.data, dst.data
    explored = memory.kernel.explored
    folios = 0
    i = 0
    while i < npages:
        sw, dw = s[i], d[i]
        if sw & dw & MIGRATE_PFN_COMPOUND and dw & MIGRATE_PFN_VALID:
            # The other words of a compound are 0: there is nothing to do for them.
            nr = 1 << memory.pages.folio_order(dw >> MIGRATE_PFN_SHIFT)
            folios += 1
            _finalize_one(memory, sw, dw, fault_head)
            i += nr
            continue
        if explored or (sw | dw) & MIGRATE_PFN_COMPOUND:
            j = i + 1
        else:
            j = min(_next_compound(src, i, npages), _next_compound(dst, i, npages))
            if j - i >= _BATCH:
                folios += _finalize_batch(memory, src[i:j], dst[i:j], fault_head)
                i = j
                continue
        while i < j:
            if (s[i] | d[i]) & MIGRATE_PFN_VALID:
                folios += 1
                _finalize_one(memory, s[i], d[i], fault_head)
            i += 1
    if memory.kernel.observer is not None:
        tell(memory.kernel.observer, "operation_ends", "migrate_finalize", src, dst, npages, fault_head)
    memory.kernel.charge("migrate_finalize_base")
    memory.kernel.charge("migrate_finalize_per_folio", folios)


def _finalize_one(memory: "MemoryManager", sw: int, dw: int, fault_head: int) -> None:
    """Map, unlock and drop one source and its destination."""
    pages = memory.pages
    dst = dw >> MIGRATE_PFN_SHIFT if dw & MIGRATE_PFN_VALID else -1
    if not sw & MIGRATE_PFN_VALID:
        if sw & MIGRATE_PFN_MIGRATE:
            _count(memory, dst, 1 << pages.folio_order(dst))
        pages.folio_unlock(dst)
        pages.folio_put(dst)
        return
    src = sw >> MIGRATE_PFN_SHIFT
    if dst < 0 or not sw & MIGRATE_PFN_MIGRATE:
        if dst >= 0:
            pages.folio_unlock(dst)
            pages.folio_put(dst)
        dst = src
    zone = pages.zone(dst)
    i = dst - zone.base
    if dst != src:
        nbytes = 1 << (memory.geometry.page_shift + zone.m_order[i])
        if zone.pgmap is None:
            memory.kernel.stats.migrated_to_ram_bytes += nbytes
        else:
            memory.kernel.stats.migrated_to_device_bytes += nbytes
    if zone.pgmap is None:
        pages.folio_add_lru(dst)
    remove_migration_ptes(memory, src, dst)
    if src != fault_head:
        _unlock(memory, src)
    pages.folio_put(src)
    if dst != src:
        pages.folio_unlock(dst)
        pages.folio_put(dst)


def _finalize_batch(memory: "MemoryManager", src: Words, dst: Words, fault_head: int) -> int:
    """Do so for words of small folios; return how many folios there were."""
    pages = memory.pages
    n = len(src)
    flags = src & (MIGRATE_PFN_VALID | MIGRATE_PFN_MIGRATE)
    have = dst & MIGRATE_PFN_VALID
    moved = (flags == MIGRATE_PFN_VALID | MIGRATE_PFN_MIGRATE) & (have != 0)
    count = np.count_nonzero(moved)
    if count == n:
        from_pfns = (src >> MIGRATE_PFN_SHIFT).view(np.int64)
        to_pfns = (dst >> MIGRATE_PFN_SHIFT).view(np.int64)
        _finalize_moved(memory, from_pfns, to_pfns, fault_head)
        return n
    page = flags & MIGRATE_PFN_VALID != 0
    # Destinations whose source did not move, or had no page: a filled hole stays mapped, the rest is free again.
    loose = (have != 0) & ~moved
    folios = 0
    if not all_zero(loose):
        pfns = (dst[loose] >> MIGRATE_PFN_SHIFT).view(np.int64)
        filled = (dst[loose & (flags == MIGRATE_PFN_MIGRATE)] >> MIGRATE_PFN_SHIFT).view(np.int64)
        if len(filled):
            _count_many(memory, filled)
        pages.unlock_many(pfns)
        pages.put_many(pfns)
        folios = len(pfns)
    if count:
        from_pfns = (src[moved] >> MIGRATE_PFN_SHIFT).view(np.int64)
        to_pfns = (dst[moved] >> MIGRATE_PFN_SHIFT).view(np.int64)
        _finalize_moved(memory, from_pfns, to_pfns, fault_head)
    stay = page & ~moved
    if not all_zero(stay):
        pfns = (src[stay] >> MIGRATE_PFN_SHIFT).view(np.int64)
        _finalize_moved(memory, pfns, pfns, fault_head)
    return folios + int(np.count_nonzero(page))


def _finalize_moved(memory: "MemoryManager", src: Pfns, dst: Pfns, fault_head: int) -> None:
    """Map small folios at `dst` where `src` was, which may be the same; unlock and drop both."""
    pages = memory.pages
    same = dst is src
    if not same:
        _count_many(memory, dst)
    from_ = pages.select(src)
    to = from_ if same else pages.select(dst)
    if to is not None and to[0].pgmap is None:
        to[0].flags[to[1]] |= PG_LRU
    batch = from_ is not None and to is not None
    if same and from_ is not None and not memory.rmap.small(*from_):
        batch = False  # a large folio that could not be split, and its word lost COMPOUND
    if not batch or to is None or not restore_pages(memory, src, to[0], to[1], dst):
        for old, new in zip(src.tolist(), dst.tolist(), strict=True):
            zone = pages.zone(new)
            if zone.pgmap is None:
                zone.m_flags[new - zone.base] |= PG_LRU
            remove_migration_ptes(memory, old, new)
    mine = src
    if fault_head >= 0:
        others = src != fault_head
        if np.count_nonzero(others) != len(src):
            mine = src[others]
    if mine is src and from_ is not None and (from_[0].flags[from_[1]] & PG_LOCKED).all():
        pages.unlock_selected(*from_)
    else:
        for pfn in mine.tolist():
            _unlock(memory, pfn)
    if from_ is not None:
        pages.put_selected(*from_)
    else:
        pages.put_many(src)
    if not same:
        if to is not None:
            pages.unlock_selected(*to)
            pages.put_selected(*to)
        else:
            pages.unlock_many(dst)
            pages.put_many(dst)


def _unlock(memory: "MemoryManager", pfn: int) -> None:
    """Unlock a source; the kernel toggles the bit, so one collected without its lock (MM-S3) is locked for ever."""
    pages = memory.pages
    if memory.quirks.mm_s3 == "fixed" or pages.folio_locked(pfn):
        pages.folio_unlock(pfn)
    else:
        zone = pages.zone(pfn)
        zone.m_flags[pfn - zone.base] |= PG_LOCKED


def _count(memory: "MemoryManager", dst: int, nr: int) -> None:
    stats = memory.kernel.stats
    if memory.pages.zone(dst).pgmap is None:
        stats.migrated_to_ram_bytes += nr << memory.geometry.page_shift
    else:
        stats.migrated_to_device_bytes += nr << memory.geometry.page_shift


def _count_many(memory: "MemoryManager", dst: Pfns) -> None:
    for zone, _, where in memory.pages.split(dst):
        n = where.stop - where.start if isinstance(where, slice) else len(where)
        _count(memory, zone.base, n)
