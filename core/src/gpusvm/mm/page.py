"""include/linux/{mm_types,page_ref,memremap}.h and mm/filemap.c (the folio lock), as of Linux 7.3.4: struct pages.

Every field of struct page is an array over pfns, one set of arrays (a `Zone`) for system RAM and one for each
device region. Their memory is committed lazily, so a page that was never touched costs nothing. Scalars go through
memoryviews (`zone.m_refcount[i]`), batches through slices or index arrays (`zone.refcount[index]`), where `i = pfn
- zone.base`.

A folio is named by its head pfn. `mapcount` is the page's for a small folio and large_mapcount, on the head, for a
large one; `mapping`, `index`, the lock and the reference count are the head's. The compound metadata of a *device*
folio (`order`, `head_off`) stays when it is freed, until its pages are initialised again, as in the kernel; only
live pages may be asked.
"""

from bisect import bisect_right
from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt

from gpusvm.errors import ModelError, UseAfterFreeError
from gpusvm.kernel import Kernel, WaitQueue
from gpusvm.mm.api import MEMORY_DEVICE_COHERENT, MEMORY_DEVICE_PRIVATE, DevPagemap, Geometry, Pfns
from gpusvm.mm.lru import PG_LRU, ActivateBatch, LruBatches
from gpusvm.mm.observer import tell
from gpusvm.mm.page_alloc import PageAllocator
from gpusvm.mm.page_owner import PageOwner
from gpusvm.mm.ptemask import RAMP, all_zero
from gpusvm.mm.sparse import zeros

__all__ = [
    "GUP_PIN_COUNTING_BIAS",
    "PG_ANON_EXCLUSIVE",
    "PG_DIRTY",
    "PG_HUGETLB",
    "PG_HWPOISON",
    "PG_LOCKED",
    "PG_LRU",
    "PG_RESERVED",
    "PG_SWAPBACKED",
    "PG_UPTODATE",
    "POISON_DEVICE",
    "POISON_FREED",
    "POISON_NEW",
    "Index",
    "PageMap",
    "Zone",
]

# include/linux/page-flags.h, ANON_EXCLUSIVE is per page (the head's for a PMD mapping), the rest the head's.
# PG_LRU, which is 2, comes from gpusvm.mm.lru.
PG_LOCKED: Final = 1
PG_UPTODATE: Final = 4
PG_DIRTY: Final = 8
PG_ANON_EXCLUSIVE: Final = 16
PG_SWAPBACKED: Final = 32
PG_HWPOISON: Final = 64
PG_RESERVED: Final = 128
PG_HUGETLB: Final = 256  # a page type in the kernel: the folio belongs to the pool of huge pages

# include/linux/mm.h: a pin of a small folio counts as so many references.
GUP_PIN_COUNTING_BIAS: Final = 1024

# Contents that nobody wrote, as tokens (see gpusvm.mm.contents): reading one of them is a data loss.
POISON_FREED: Final = -1
POISON_DEVICE: Final = -2
POISON_NEW: Final = -3

Index = slice | npt.NDArray[np.int64]  # what picks the pages of a batch out of a zone's arrays


class Zone:
    """Hold the struct pages of one run of pfns; `pgmap` is None for system RAM.

    No page from index `used` on was ever given out.
    """

    __slots__ = (
        "base",
        "device",
        "end",
        "entire",
        "flags",
        "head_off",
        "index",
        "m_entire",
        "m_flags",
        "m_head_off",
        "m_index",
        "m_mapcount",
        "m_mapping",
        "m_order",
        "m_refcount",
        "m_token",
        "m_zdd",
        "mapcount",
        "mapping",
        "nr",
        "order",
        "pgmap",
        "private",
        "refcount",
        "token",
        "used",
        "zdd",
    )

    def __init__(self, base: int, nr: int, pgmap: DevPagemap | None = None) -> None:
        self.base: Final = base
        self.nr: Final = nr
        self.end: Final = base + nr
        self.pgmap: Final = pgmap
        self.used = 0
        self.private: Final = pgmap is not None and pgmap.type == MEMORY_DEVICE_PRIVATE
        self.device: Final = self.private or (pgmap is not None and pgmap.type == MEMORY_DEVICE_COHERENT)
        self.refcount: Final = zeros(nr, np.int32)
        self.mapcount: Final = zeros(nr, np.int32)
        # entire_mapcount: PMD mappings, on the head; at most one an address space. A memoryview refuses one too many.
        self.entire: Final = zeros(nr, np.int16)
        self.flags: Final = zeros(nr, np.uint16)
        self.order: Final = zeros(nr, np.uint8)  # on the head of a large folio, else 0
        self.head_off: Final = zeros(nr, np.uint16)  # distance to the head
        # folio.mapping, on the head: 0 is NULL, the id of an anon_vma, or minus the id of an address_space.
        self.mapping: Final = zeros(nr, np.int32)
        self.index: Final = zeros(nr, np.int64)  # folio.index: linear page index in the mapping, on the head
        # zone_device_data: (slot in the handle table << 1) | flag. There are no more slots than device pages, and
        # neither way of storing a Python int lets one through that does not fit.
        self.zdd: Final = zeros(nr, np.int32)
        self.token: Final = zeros(nr, np.int64)  # contents
        self.m_refcount: Final = self.refcount.data
        self.m_mapcount: Final = self.mapcount.data
        self.m_entire: Final = self.entire.data
        self.m_flags: Final = self.flags.data
        self.m_order: Final = self.order.data
        self.m_head_off: Final = self.head_off.data
        self.m_mapping: Final = self.mapping.data
        self.m_index: Final = self.index.data
        self.m_zdd: Final = self.zdd.data
        self.m_token: Final = self.token.data

    def __repr__(self) -> str:
        """Show what a message needs."""
        return f"Zone({self.base:#x}-{self.end:#x}, {'RAM' if self.pgmap is None else 'device'})"


class _LockWait:
    """Be the tasks that wait for one folio's lock: their queue, where its flags are, and how many they are."""

    __slots__ = ("flags", "i", "queue", "users")

    def __init__(self, queue: WaitQueue, flags: memoryview, i: int) -> None:
        self.queue = queue
        self.flags = flags
        self.i = i
        self.users = 0


class PageMap:
    """Keep every struct page of a machine: references, locks, orders, and the system allocator.

    Where a method takes `pfns`, they are distinct heads, in any order, unless it says pages. Methods on many folios
    never sleep. `free_device_folios` is what `folio_put` calls for ZONE_DEVICE folios that reach 0 (set by memremap).
    """

    __slots__ = (
        "_bases",
        "_last",
        "_waiters",
        "activate",
        "allocator",
        "checked",
        "free_device_folio",
        "free_device_folios",
        "free_huge_folio",
        "geometry",
        "kernel",
        "lock_owner",
        "lru",
        "owner",
        "pincounts",
        "ram",
        "ram_pages",
        "zones",
    )

    def __init__(self, kernel: Kernel, *, geometry: Geometry, ram_pages: int) -> None:
        self.kernel: Final = kernel
        self.geometry: Final = geometry
        self.checked: Final = kernel.checked
        self.ram_pages: Final = ram_pages
        self.owner: Final = PageOwner(self) if kernel.explored and kernel.checked else None
        self.ram: Final = Zone(0, ram_pages)
        self.zones: list[Zone] = [self.ram]
        self._bases: list[int] = [0]
        self._last = self.ram  # the device zone asked for last
        self.allocator: Final = PageAllocator(ram_pages, pmd_order=geometry.pmd_order)
        self.free_device_folio: Callable[[Zone, int], None] = _no_device
        self.free_device_folios: Callable[[Zone, Index], None] = _no_devices
        self.free_huge_folio: Callable[[int], None] = _no_pool
        self.pincounts: Final[dict[int, int]] = {}  # of large folios that are pinned, by head pfn
        self._waiters: dict[int, _LockWait] = {}  # by head pfn, only while somebody waits
        self.lru = LruBatches(kernel, self.ram) if kernel.cpus else None
        self.activate: ActivateBatch | None = None
        self.lock_owner: Final[dict[int, str]] = {}  # folios locked one by one, in checked mode: who, for messages

    # --- where a pfn lies

    def zone(self, pfn: int) -> Zone:
        """Return the zone that holds `pfn`."""
        if 0 <= pfn < self.ram_pages:
            return self.ram
        zone = self._last
        if zone.base <= pfn < zone.end:
            return zone
        zone = self.zones[bisect_right(self._bases, pfn) - 1]
        if not zone.base <= pfn < zone.end:
            raise self._no_page(pfn)
        self._last = zone
        return zone

    def _no_page(self, pfn: int) -> ModelError:
        removed = "" if self.owner is None else self.owner.last(pfn)
        if removed:
            task = self.kernel.current
            return UseAfterFreeError(f"use after free: task {task.name!r} uses page {pfn:#x}{removed}")
        return ModelError(f"pfn {pfn:#x} has no struct page")

    def _free_used(self, doing: str, pfn: int, refs: int) -> UseAfterFreeError:
        by = "" if self.owner is None else self.owner.last(pfn)
        return UseAfterFreeError(f"{doing} folio {pfn:#x}, refcount {refs}{by}")

    def has_page(self, pfn: int) -> bool:
        """Tell whether `pfn` has a struct page (pfn_valid)."""
        zone = self.zones[bisect_right(self._bases, pfn) - 1]
        return zone.base <= pfn < zone.end

    def add_region(self, base: int, nr: int, pgmap: DevPagemap) -> Zone:
        """Create the struct pages of a device region; the pfns must be free (`memremap` checks)."""
        zone = Zone(base, nr, pgmap)
        at = bisect_right(self._bases, base)
        self.zones.insert(at, zone)
        self._bases.insert(at, base)
        return zone

    def remove_region(self, zone: Zone) -> None:
        """Remove the struct pages of a device region."""
        if self.owner is not None:
            self.owner.removed(zone)
        at = self.zones.index(zone)
        del self.zones[at]
        del self._bases[at]
        if self._last is zone:
            self._last = self.ram

    def select(self, pfns: Pfns) -> tuple[Zone, Index] | None:
        """Return the zone of a batch and its index there, a slice if it is a run; None if it spans zones."""
        n = len(pfns)
        first = int(pfns[0])
        zone = self.zone(first)
        at = first - zone.base
        if n == 1:
            return zone, slice(at, at + 1)
        # The ends first: a scattered batch is told by them alone. Bytes compare faster than numbers.
        if int(pfns[-1]) - first == n - 1 and n <= len(RAMP) and pfns.tobytes() == (RAMP[:n] + first).tobytes():
            return (zone, slice(at, at + n)) if first + n <= zone.end else None
        if int(pfns.min()) < zone.base or int(pfns.max()) >= zone.end:
            return None
        return zone, (pfns - zone.base if zone.base else pfns)

    def split(self, pfns: Pfns) -> list[tuple[Zone, Index, Index]]:
        """Cut a batch by zone: (zone, index into its arrays, index into `pfns`)."""
        if not len(pfns):
            return []
        one = self.select(pfns)
        if one is not None:
            return [(one[0], one[1], slice(0, len(pfns)))]
        found: list[tuple[Zone, Index, Index]] = []
        for zone in self.zones:
            where = np.flatnonzero((pfns >= zone.base) & (pfns < zone.end))
            if len(where):
                found.append((zone, pfns[where] - zone.base, where))
        if sum(len(where) for _, _, where in found if not isinstance(where, slice)) != len(pfns):
            raise ModelError("a batch names pfns without struct pages")
        return found

    # --- folios

    def folio_head(self, pfn: int) -> int:
        """Return the head pfn of the folio that holds page `pfn` (page_folio)."""
        zone = self.ram if pfn < self.ram_pages else self.zone(pfn)
        return pfn - zone.m_head_off[pfn - zone.base]

    def folio_order(self, pfn: int) -> int:
        """Return the order of the folio that holds page `pfn`."""
        zone = self.ram if pfn < self.ram_pages else self.zone(pfn)
        i = pfn - zone.base
        return zone.m_order[i - zone.m_head_off[i]]

    def folio_test_anon(self, pfn: int) -> bool:
        """Tell whether page `pfn` belongs to an anonymous folio: one with an anon_vma (folio_test_anon)."""
        zone = self.ram if pfn < self.ram_pages else self.zone(pfn)
        i = pfn - zone.base
        return zone.m_mapping[i - zone.m_head_off[i]] > 0

    def folio_orders(self, pfns: Pfns) -> npt.NDArray[np.uint8]:
        """Return the orders of the folios headed by `pfns`."""
        one = self.select(pfns) if len(pfns) else None
        if one is not None:
            return one[0].order[one[1]].copy()
        orders = np.zeros(len(pfns), np.uint8)
        for zone, index, where in self.split(pfns):
            orders[where] = zone.order[index]
        return orders

    def prep_compound(self, zone: Zone, i: int, order: int) -> None:
        """Make `1 << order` pages one large folio headed by page `i` of the zone (prep_compound_page)."""
        zone.m_order[i] = order
        nr = 1 << order
        zone.head_off[i : i + nr] = RAMP[:nr]

    def folio_get(self, pfn: int) -> None:
        """Take a reference on a live folio."""
        zone = self.ram if pfn < self.ram_pages else self.zone(pfn)
        i = pfn - zone.base
        if zone.m_refcount[i] <= 0:
            raise self._free_used("folio_get of free", pfn, zone.m_refcount[i])
        zone.m_refcount[i] += 1

    def folio_try_get(self, pfn: int) -> bool:
        """Take a reference unless the refcount is 0, which free pages and tails have."""
        zone = self.ram if pfn < self.ram_pages else self.zone(pfn)
        i = pfn - zone.base
        if zone.m_refcount[i] <= 0:
            return False
        zone.m_refcount[i] += 1
        return True

    def folio_put(self, pfn: int, refs: int = 1) -> None:
        """Drop references; the last frees the folio (mm/folio.c:__folio_put)."""
        zone = self.ram if pfn < self.ram_pages else self.zone(pfn)
        i = pfn - zone.base
        left = zone.m_refcount[i] - refs
        if left < 0:
            raise self._free_used("folio_put of", pfn, left + refs)
        zone.m_refcount[i] = left
        if self.kernel.observer is not None:
            tell(self.kernel.observer, "put", zone, i)
        if left:
            return
        if zone.pgmap is not None:
            self.free_device_folio(zone, i)
        else:
            self._free_folio(i)

    def put_many(self, pfns: Pfns) -> None:
        """Drop a reference on each of many folios and free those that reach 0."""
        for zone, index, _ in self.split(pfns):
            self.put_selected(zone, index)

    def put_selected(self, zone: Zone, index: Index) -> None:
        """Drop a reference on each folio of a batch already cut to one zone."""
        left = zone.refcount[index] - 1
        zone.refcount[index] = left
        if self.kernel.observer is not None:
            tell(self.kernel.observer, "put", zone, index)
        dead = len(left) - np.count_nonzero(left)
        if self.checked and left.min() < 0:
            raise ModelError(f"folio_put of a free folio in {zone!r}")
        if not dead:
            return
        if dead != len(left):
            gone = np.flatnonzero(left == 0)
            index = gone + index.start if isinstance(index, slice) else index[gone]
        if zone.pgmap is not None:
            self.free_device_folios(zone, index)
        else:
            self._free_folios(index)

    def folio_add_lru(self, pfn: int) -> None:
        """Put a system folio on the LRU, or on its way there."""
        if self.lru is None:
            self.ram.m_flags[pfn] |= PG_LRU
        else:
            self.lru.add(pfn)

    # --- pins

    def pin(self, pfn: int) -> None:
        """Pin the folio headed by `pfn` once (mm/gup.c:try_grab_folio with FOLL_PIN)."""
        zone = self.ram if pfn < self.ram_pages else self.zone(pfn)
        i = pfn - zone.base
        if zone.m_refcount[i] <= 0:
            raise self._free_used("pin of free", pfn, zone.m_refcount[i])
        if zone.m_order[i]:
            zone.m_refcount[i] += 1
            self.pincounts[pfn] = self.pincounts.get(pfn, 0) + 1
        else:
            zone.m_refcount[i] += GUP_PIN_COUNTING_BIAS

    def unpin(self, pfn: int) -> None:
        """Undo one pin of the folio headed by `pfn` (mm/gup.c:gup_put_folio)."""
        if not self.folio_order(pfn):
            self.folio_put(pfn, GUP_PIN_COUNTING_BIAS)
            return
        left = self.pincounts.get(pfn, 0) - 1
        if left < 0:
            raise ModelError(f"unpin of folio {pfn:#x}, which is not pinned")
        if left:
            self.pincounts[pfn] = left
        else:
            del self.pincounts[pfn]
        self.folio_put(pfn)

    def folio_maybe_dma_pinned(self, pfn: int) -> bool:
        """Tell whether the folio headed by `pfn` may be pinned: a small one has so many references that some may be
        pins.
        """
        zone = self.ram if pfn < self.ram_pages else self.zone(pfn)
        i = pfn - zone.base
        return pfn in self.pincounts if zone.m_order[i] else zone.m_refcount[i] >= GUP_PIN_COUNTING_BIAS

    # --- locks

    def folio_trylock(self, pfn: int) -> bool:
        """Lock if free; never sleeps."""
        zone = self.ram if pfn < self.ram_pages else self.zone(pfn)
        i = pfn - zone.base
        if self.owner is not None and not zone.m_refcount[i - zone.m_head_off[i]]:
            raise self.owner.used("locks", pfn)
        flags = zone.m_flags[i]
        if flags & PG_LOCKED:
            return False
        zone.m_flags[i] = flags | PG_LOCKED
        if self.checked:
            self.lock_owner[pfn] = self.kernel.current.name
        return True

    def folio_lock(self, pfn: int) -> None:
        """Lock; sleeps until the folio is free."""
        self.kernel.might_sleep()
        if self.kernel.observer is not None:
            tell(self.kernel.observer, "folio_locking", pfn)
        while not self.folio_trylock(pfn):
            self.folio_wait_locked(pfn)

    def folio_lock_killable(self, pfn: int) -> bool:
        """Lock; sleeps until the folio is free or the task is killed, and returns False then."""
        self.kernel.might_sleep()
        while not self.folio_trylock(pfn):
            if not self.folio_wait_locked(pfn, killable=True):
                return False
        return True

    def folio_wait_locked(self, pfn: int, *, killable: bool = False) -> bool:
        """Sleep, holding nothing, until the lock bit is seen clear (mm/filemap.c:softleaf_entry_wait_on_locked).

        `killable` waits end with False when the task gets a fatal signal.
        """
        zone = self.zone(pfn)
        i = pfn - zone.base
        flags = zone.m_flags
        if not flags[i] & PG_LOCKED:
            return True
        wait = self._waiters.get(pfn)
        if wait is None:
            owner = self.lock_owner.get(pfn)
            held = f", locked by {owner}" if owner else ""
            queue = self.kernel.waitqueue(f"folio lock of pfn {pfn:#x}{held}")
            wait = self._waiters[pfn] = _LockWait(queue, flags, i)
        # Who is woken may find it locked again and sleep on, so the queue stays until the last has gone.
        wait.users += 1
        if self.kernel.observer is not None:
            tell(self.kernel.observer, "folio_wait_begins", pfn)
        wait_event = wait.queue.wait_event_killable if killable else wait.queue.wait_event
        try:
            free = wait_event(lambda: not flags[i] & PG_LOCKED)
        finally:
            wait.users -= 1
            if not wait.users:
                del self._waiters[pfn]
        if self.kernel.observer is not None:
            tell(self.kernel.observer, "folio_wait_ends", pfn)
        return free is not False

    def folio_unlock(self, pfn: int) -> None:
        """Unlock and wake who waits."""
        zone = self.ram if pfn < self.ram_pages else self.zone(pfn)
        i = pfn - zone.base
        flags = zone.m_flags[i]
        if not flags & PG_LOCKED:
            raise ModelError(f"folio_unlock of folio {pfn:#x}, which is not locked")
        zone.m_flags[i] = flags & ~PG_LOCKED
        if self.checked:
            self.lock_owner.pop(pfn, None)
        if self._waiters:
            self._wake()

    def folio_locked(self, pfn: int) -> bool:
        """Tell whether the folio headed by `pfn` is locked."""
        zone = self.ram if pfn < self.ram_pages else self.zone(pfn)
        return bool(zone.m_flags[pfn - zone.base] & PG_LOCKED)

    def lock_new(self, pfns: Pfns) -> None:
        """Lock many folios that nobody else can know yet."""
        for zone, index, _ in self.split(pfns):
            if self.checked and not all_zero(zone.flags[index] & PG_LOCKED):
                raise ModelError(f"a folio said to be new is locked, in {zone!r}")
            zone.flags[index] |= PG_LOCKED

    def unlock_many(self, pfns: Pfns) -> None:
        """Unlock many and wake who waits."""
        for zone, index, _ in self.split(pfns):
            self.unlock_selected(zone, index)

    def unlock_selected(self, zone: Zone, index: Index) -> None:
        """Unlock a batch already cut to one zone."""
        flags = zone.flags[index]
        if self.checked:
            held = flags & PG_LOCKED
            if not held.all():
                where = int(np.flatnonzero(held == 0)[0])
                pfn = zone.base + (index.start + where if isinstance(index, slice) else int(index[where]))
                raise ModelError(f"folio_unlock of folio {pfn:#x}, which is not locked")
        zone.flags[index] = flags & ~np.uint16(PG_LOCKED)
        if self.lock_owner:
            for pfn in [pfn for pfn in self.lock_owner if not self.folio_locked(pfn)]:
                del self.lock_owner[pfn]
        if self._waiters:
            self._wake()

    def _wake(self) -> None:
        """Wake who waits for a lock that is free now; there are seldom any."""
        for wait in list(self._waiters.values()):
            if not wait.flags[wait.i] & PG_LOCKED:
                wait.queue.wake_up_all()

    # --- the system allocator

    def alloc_folio(self, order: int) -> int | None:
        """Allocate a system folio: refcount 1, unlocked, contents poisoned; None if memory or an injection says so."""
        self.kernel.might_alloc()
        if self.kernel.inject("alloc.folio"):
            return None
        pfn = self.allocator.alloc(order)
        if pfn < 0:
            return None
        zone = self.ram
        if order:
            self.prep_compound(zone, pfn, order)
        zone.m_refcount[pfn] = 1
        if pfn + (1 << order) > zone.used:
            self._poison_fresh(pfn + (1 << order))
        return pfn

    def alloc_pages_bulk(self, n: int) -> Pfns | None:
        """Allocate `n` small system folios, each refcount 1, unlocked, contents poisoned; all or None."""
        self.kernel.might_alloc()
        if self.kernel.inject("alloc.pages"):
            return None
        pfns = self.allocator.alloc_bulk(n)
        if pfns is None or not n:
            return pfns
        for zone, index, _ in self.split(pfns):
            zone.refcount[index] = 1
        top = int(pfns.max()) + 1
        if top > self.ram.used:
            self._poison_fresh(top)
        return pfns

    def _poison_fresh(self, top: int) -> None:
        """Poison pages given out for the first time, by whole blocks; freed ones are poisoned when they are freed."""
        nr = self.geometry.pmd_nr
        top = min((top + nr - 1) // nr * nr, self.ram_pages)
        self.ram.token[self.ram.used : top] = POISON_NEW
        self.ram.used = top

    def _free_folio(self, i: int) -> None:
        """Give a system folio back (mm/page_alloc.c:free_frozen_pages); a bad page is an error."""
        zone = self.ram
        flags = zone.m_flags[i]
        if flags & PG_LOCKED or zone.m_mapcount[i]:
            raise ModelError(
                f"bad page {i:#x} freed: mapcount {zone.m_mapcount[i]}, {'locked' if flags & PG_LOCKED else 'unlocked'}"
            )
        if self.lru is not None:
            self.lru.forget(i)
        order = zone.m_order[i]
        if self.owner is not None:
            self.owner.freed(zone, i, 1 << order)
        zone.m_mapping[i] = 0
        if order:
            if flags & PG_HUGETLB:
                self.free_huge_folio(i)
                return
            nr = 1 << order
            zone.m_order[i] = 0
            zone.m_entire[i] = 0
            zone.head_off[i : i + nr] = 0
            zone.flags[i : i + nr] = 0
            zone.token[i : i + nr] = POISON_FREED
        else:
            zone.m_flags[i] = 0
            zone.m_token[i] = POISON_FREED
        self.allocator.free(i, order)

    def _free_folios(self, index: Index) -> None:
        """Give many system folios back, small ones as one batch."""
        zone = self.ram
        if not all_zero(zone.order[index]):
            for i in positions(index):
                self._free_folio(i)
            return
        if self.checked and not (all_zero(zone.flags[index] & PG_LOCKED) and all_zero(zone.mapcount[index])):
            raise ModelError("a bad page among many freed: mapped or locked")
        if self.lru is not None:
            for i in positions(index):
                self.lru.forget(i)
        if self.owner is not None:
            self.owner.freed(zone, index)
        zone.mapping[index] = 0
        zone.flags[index] = 0
        zone.token[index] = POISON_FREED
        if isinstance(index, slice):
            self.allocator.free_range(index.start, index.stop - index.start)
        else:
            self.allocator.free_bulk(index)


def positions(index: Index) -> list[int]:
    """List the positions that an index picks."""
    return list(range(index.start, index.stop)) if isinstance(index, slice) else index.tolist()


def _no_device(zone: Zone, i: int) -> None:
    raise ModelError(f"no dev_pagemap frees page {i} of {zone!r}")


def _no_pool(i: int) -> None:
    raise ModelError(f"no pool takes the huge page {i:#x} back")


def _no_devices(zone: Zone, index: Index) -> None:
    raise ModelError(f"no dev_pagemap frees pages of {zone!r}")
