"""mm/memremap.c, as of Linux 7.3.4: device memory with struct pages.

One `DevPagemap` is one region of pfns and one `Zone` of struct pages. `DevPagemaps` creates and removes them, makes
device folios live, takes them back when their refcount reaches 0, and keeps zone_device_data as handles into a table of
objects, so that storing one object for the 512 pages of a block is one store into an array.
"""

import errno
from collections import Counter
from typing import Any, Final

import numpy as np

from gpusvm.errors import DeadlockError, KernelError, LockdepError, ModelError
from gpusvm.kernel import Kernel
from gpusvm.mm.api import (
    MEMORY_DEVICE_COHERENT,
    MEMORY_DEVICE_FS_DAX,
    MEMORY_DEVICE_GENERIC,
    MEMORY_DEVICE_PCI_P2PDMA,
    MEMORY_DEVICE_PRIVATE,
    Bools,
    DevPagemap,
    Geometry,
    Pfns,
)
from gpusvm.mm.observer import tell
from gpusvm.mm.page import (
    PG_ANON_EXCLUSIVE,
    PG_LOCKED,
    POISON_DEVICE,
    POISON_FREED,
    Index,
    PageMap,
    Zone,
    positions,
)
from gpusvm.mm.ptemask import all_zero

__all__ = ["DevPagemaps"]

_HELD_SHOWN: Final = 4


class DevPagemaps:
    """Keep the device regions of a machine."""

    __slots__ = (
        "_free_slots",
        "_objects",
        "_reserved",
        "_slots",
        "_top",
        "_users",
        "geometry",
        "has_coherent",
        "kernel",
        "pages",
        "regions",
    )

    def __init__(self, kernel: Kernel, pages: PageMap, *, geometry: Geometry) -> None:
        self.kernel: Final = kernel
        self.pages: Final = pages
        self.geometry: Final = geometry
        self.regions: list[DevPagemap] = []
        self.has_coherent = False  # some region is or was coherent device memory, so that a present page may be its
        # Device-private memory takes physical addresses that no RAM has (kernel/resource.c:request_free_mem_region).
        # The first begins a whole section above RAM, so that a pfn off by a few is never a valid one.
        self._top = ((pages.ram_pages >> 15) + 2) << 15
        self._reserved: dict[int, int] = {}
        self._objects: list[Any] = [None]  # the handle table: slot 0 is NULL
        self._users: list[int] = [0]  # pages that name a slot
        self._slots: dict[int, int] = {}  # id(object) -> slot, while the object is in the table
        self._free_slots: list[int] = []
        pages.free_device_folio = self.free_zone_device_folio
        pages.free_device_folios = self.free_zone_device_folios

    # --- regions

    def request_free_mem_region(self, nr_pages: int) -> int:
        """Reserve physical addresses that nothing uses; the first pfn, aligned to the PMD."""
        start = self._top
        nr = self.geometry.pmd_nr
        self._top = start + (nr_pages + 2 * nr - 1) // nr * nr  # one block stays free behind each region
        self._reserved[start] = nr_pages
        return start

    def release_mem_region(self, start_pfn: int) -> None:
        """Give addresses back in which no pages are (release_mem_region)."""
        del self._reserved[start_pfn]

    def memremap_pages(self, pgmap: DevPagemap) -> None:
        """Create the struct pages of `pgmap` and its reference, 1.

        EINVAL: no pages, an unknown type, or ops or owner missing that the type needs; ENOMEM: another pagemap lies
        there; ENXIO: system RAM does.
        """
        ops = pgmap.ops
        if pgmap.nr_pages <= 0:
            raise KernelError(errno.EINVAL, "memremap_pages of no pages")
        private = pgmap.type == MEMORY_DEVICE_PRIVATE
        if private or pgmap.type == MEMORY_DEVICE_COHERENT:
            if private and getattr(ops, "migrate_to_ram", None) is None:
                raise KernelError(errno.EINVAL, "a device-private pagemap needs migrate_to_ram")
            if getattr(ops, "folio_free", None) is None:
                raise KernelError(errno.EINVAL, "a device pagemap needs folio_free")
            if pgmap.owner is None:
                raise KernelError(errno.EINVAL, "a device pagemap needs an owner")
        elif pgmap.type not in {MEMORY_DEVICE_FS_DAX, MEMORY_DEVICE_GENERIC, MEMORY_DEVICE_PCI_P2PDMA}:
            raise KernelError(errno.EINVAL, f"no memory type has the number {pgmap.type}")
        start, end = pgmap.start_pfn, pgmap.start_pfn + pgmap.nr_pages
        for other in self.regions:
            if start < other.start_pfn + other.nr_pages and other.start_pfn < end:
                raise KernelError(errno.ENOMEM, f"pfns {start:#x}-{end:#x} overlap another pagemap's")
        if start < self.pages.ram_pages:
            raise KernelError(errno.ENXIO, f"pfns {start:#x}-{end:#x} overlap system RAM")
        pgmap.done = self.kernel.completion("dev_pagemap done")
        pgmap.ref = 1
        pgmap.killed = False
        zone = self.pages.add_region(start, pgmap.nr_pages, pgmap)
        self.regions.append(pgmap)
        if pgmap.type == MEMORY_DEVICE_COHERENT:
            self.has_coherent = True
        if not (private or pgmap.type == MEMORY_DEVICE_COHERENT):
            pgmap.ref += pgmap.nr_pages
        if pgmap.type == MEMORY_DEVICE_GENERIC:
            zone.refcount[:] = 1
            zone.used = zone.nr

    def memunmap_pages(self, pgmap: DevPagemap) -> None:
        """Kill the reference, sleep until every page is free and every reference put, remove the pages."""
        if pgmap not in self.regions:
            raise ModelError(f"memunmap_pages of a pagemap that is not mapped, pfn {pgmap.start_pfn:#x}")
        zone = self.pages.zone(pgmap.start_pfn)
        pgmap.killed = True
        refs = 1
        if pgmap.type not in {MEMORY_DEVICE_PRIVATE, MEMORY_DEVICE_COHERENT}:
            refs += pgmap.nr_pages
        self._ref_put(pgmap, refs)
        self.kernel.step()
        assert pgmap.done is not None
        try:
            pgmap.done.wait()
        except DeadlockError as error:
            raise DeadlockError(f"{error}{self._still_held(zone)}") from error
        if self.kernel.observer is not None:
            tell(self.kernel.observer, "pgmap_done", pgmap)
        if pgmap.ref:  # invariant 31
            raise ModelError(f"pagemap of pfn {pgmap.start_pfn:#x} is done with {pgmap.ref} references")
        if pgmap.type != MEMORY_DEVICE_GENERIC and not all_zero(zone.refcount):
            raise ModelError(f"pagemap of pfn {pgmap.start_pfn:#x} is done with pages in use")
        if not all_zero(zone.zdd):
            for slot, users in sorted(Counter((zone.zdd[zone.zdd != 0] >> 1).tolist()).items()):
                self._drop(slot, users)
        self.pages.remove_region(zone)
        self.regions.remove(pgmap)
        self._reserved.pop(pgmap.start_pfn, None)

    def _still_held(self, zone: Zone) -> str:
        """Say which pages of a region are held, and which lines of drivers took them, where that is known."""
        authors = self.kernel.authors
        if authors is None:
            return ""
        heads = np.flatnonzero((zone.refcount != 0) & (zone.head_off == 0))
        lines = []
        for i in heads[:_HELD_SHOWN].tolist():
            lines.append(f"\n  device page {zone.base + i:#x} is held, {int(zone.refcount[i])} references")
            lines += [f"\n    {n} taken {author}" for author, n in authors.takers(zone.base + i).items()]
        return "".join(lines) + authors.rule("folio-put")

    def page_pgmap(self, pfn: int) -> DevPagemap | None:
        """Return the pagemap of a ZONE_DEVICE page; None for system RAM."""
        pages = self.pages
        return None if pfn < pages.ram_pages else pages.zone(pfn).pgmap

    def get_dev_pagemap(self, pfn: int) -> DevPagemap | None:
        """Take a live reference on the pagemap of `pfn`; None without one, or once it is killed."""
        if not self.pages.has_page(pfn):
            return None
        pgmap = self.pages.zone(pfn).pgmap
        if pgmap is None or pgmap.killed:
            return None
        pgmap.ref += 1
        if self.kernel.observer is not None:
            tell(self.kernel.observer, "pgmap_got", pgmap)
        return pgmap

    def put_dev_pagemap(self, pgmap: DevPagemap) -> None:
        """Drop one reference; the last, once killed, completes `done`."""
        if self.kernel.observer is not None:
            tell(self.kernel.observer, "pgmap_put", pgmap)
        self._ref_put(pgmap, 1)

    def _ref_put(self, pgmap: DevPagemap, refs: int) -> None:
        pgmap.ref -= refs
        if pgmap.ref <= 0:
            if pgmap.ref < 0 or not pgmap.killed:
                raise ModelError(
                    f"pagemap of pfn {pgmap.start_pfn:#x} has {pgmap.ref} references, killed {pgmap.killed}"
                )
            assert pgmap.done is not None
            pgmap.done.complete_all()

    # --- folios

    def zone_device_folio_init(self, pfn: int, pgmap: DevPagemap, order: int) -> None:
        """Make a free device folio live: locked, refcount 1, contents poisoned; one pagemap reference a page."""
        zone = self.pages.zone(pfn)
        i = pfn - zone.base
        if zone.m_refcount[i] or zone.pgmap is not pgmap:
            raise ModelError(f"zone_device_folio_init of pfn {pfn:#x}, refcount {zone.m_refcount[i]}")
        if order:
            nr = 1 << order
            zone.order[i : i + nr] = 0
            self.pages.prep_compound(zone, i, order)
            zone.flags[i : i + nr] = 0
            zone.token[i : i + nr] = POISON_DEVICE
            pgmap.ref += nr
        else:
            zone.m_order[i] = 0
            zone.m_head_off[i] = 0
            zone.m_token[i] = POISON_DEVICE
            pgmap.ref += 1
        zone.m_mapping[i] = 0
        zone.m_mapcount[i] = 0
        zone.m_entire[i] = 0
        zone.m_refcount[i] = 1
        zone.m_flags[i] = PG_LOCKED
        zone.used = max(zone.used, i + (1 << order))
        if self.kernel.observer is not None:
            tell(self.kernel.observer, "device_folios_made", zone, i, order)
        if pgmap.killed:
            self._warn_killed(pgmap)

    def zone_device_folios_init(self, pfns: Pfns, pgmap: DevPagemap) -> None:
        """Do so for many order-0 folios at once."""
        for zone, index, _ in self.pages.split(pfns):
            if zone.pgmap is not pgmap or not all_zero(zone.refcount[index]):
                raise ModelError(f"zone_device_folios_init of pages in use in {zone!r}")
            zone.order[index] = 0
            zone.head_off[index] = 0
            zone.token[index] = POISON_DEVICE
            zone.mapping[index] = 0
            zone.refcount[index] = 1
            zone.flags[index] = PG_LOCKED
            zone.used = max(zone.used, index.stop if isinstance(index, slice) else int(index.max()) + 1)
            pgmap.ref += len(pfns)
            if self.kernel.observer is not None:
                tell(self.kernel.observer, "device_folios_made", zone, index, 0)
        if pgmap.killed:
            self._warn_killed(pgmap)

    def _warn_killed(self, pgmap: DevPagemap) -> None:
        """Record what the kernel only warns about: pages allocated after memunmap_pages began."""
        tracer = self.kernel.tracer
        if tracer.on:
            tracer.emit("warn", "zone_device_page_init", "pagemap killed", pgmap.start_pfn)

    def free_zone_device_folio(self, zone: Zone, i: int) -> None:
        """Take back a device folio whose refcount reached 0: the driver first, then the references on the pagemap."""
        pgmap = zone.pgmap
        assert pgmap is not None
        if zone.m_mapcount[i]:
            raise ModelError(f"device folio {zone.base + i:#x} freed while mapped {zone.m_mapcount[i]} times")
        order = zone.m_order[i]
        nr = 1 << order
        kind = pgmap.type
        if kind == MEMORY_DEVICE_GENERIC:
            zone.m_refcount[i] = 1
            return
        if kind == MEMORY_DEVICE_FS_DAX:
            return
        if self.pages.owner is not None:
            self.pages.owner.freed(zone, i, nr)
        if order:
            if zone.m_mapping[i]:
                zone.flags[i : i + nr] &= ~np.uint16(PG_ANON_EXCLUSIVE)
            zone.token[i : i + nr] = POISON_FREED
        else:
            zone.m_flags[i] &= ~PG_ANON_EXCLUSIVE
            zone.m_token[i] = POISON_FREED
        zone.m_mapping[i] = 0
        kernel = self.kernel
        kernel.preempt_disable()  # it may run under a page-table lock, so it must not sleep
        if kernel.observer is not None:
            tell(kernel.observer, "folio_free_begins", zone, i, order)
        try:
            pgmap.ops.folio_free(zone.base + i, order)
        except LockdepError as error:
            if kernel.observer is not None:
                tell(kernel.observer, "folio_free_slept", zone, i, error)
            raise
        finally:
            kernel.preempt_enable()
        if kernel.observer is not None:
            tell(kernel.observer, "folio_free_ends", zone, i, order)
        if kind != MEMORY_DEVICE_PCI_P2PDMA:
            self._ref_put(pgmap, nr)

    def free_zone_device_folios(self, zone: Zone, index: Index) -> None:
        """Take back many, in order; small ones in one call when the driver offers `folios_free`."""
        pgmap = zone.pgmap
        assert pgmap is not None
        bulk = pgmap.ops.folios_free if pgmap.type == MEMORY_DEVICE_PRIVATE else None
        if bulk is None or not all_zero(zone.order[index]):
            for i in positions(index):
                self.free_zone_device_folio(zone, i)
            return
        if not all_zero(zone.mapcount[index]):
            raise ModelError(f"a device folio of {zone!r} freed while mapped")
        if self.pages.owner is not None:
            self.pages.owner.freed(zone, index)
        zone.flags[index] &= ~np.uint16(PG_ANON_EXCLUSIVE)
        zone.token[index] = POISON_FREED
        zone.mapping[index] = 0
        if isinstance(index, slice):
            pfns = np.arange(zone.base + index.start, zone.base + index.stop)
        else:
            pfns = index + zone.base
        kernel = self.kernel
        kernel.preempt_disable()
        if kernel.observer is not None:
            tell(kernel.observer, "folio_free_begins", zone, index, 0)
        try:
            bulk(pfns)
        except LockdepError as error:
            if kernel.observer is not None:
                tell(kernel.observer, "folio_free_slept", zone, index, error)
            raise
        finally:
            kernel.preempt_enable()
        if kernel.observer is not None:
            tell(kernel.observer, "folio_free_ends", zone, index, 0)
        self._ref_put(pgmap, len(pfns))

    # --- zone_device_data

    def zone_device_data(self, pfn: int) -> Any:
        """Return what set_zone_device_data stored, without the flag bit."""
        zone = self.pages.zone(pfn)
        return self._objects[zone.m_zdd[pfn - zone.base] >> 1]

    def set_zone_device_data(self, pfn: int | Pfns, data: object | None) -> None:
        """Store the driver's object for one page or for many distinct ones; clears the flag bit."""
        if isinstance(pfn, int):
            zone = self.pages.zone(pfn)
            i = pfn - zone.base
            old = zone.m_zdd[i] >> 1
            zone.m_zdd[i] = self._take(data, 1) << 1
            if old:
                self._drop(old, 1)
            return
        for zone, index, _ in self.pages.split(pfn):
            slots = zone.zdd[index] >> 1
            zone.zdd[index] = self._take(data, len(slots)) << 1
            first = int(slots[0])
            if np.count_nonzero(slots == first) == len(slots):
                self._drop(first, len(slots))
            else:
                for slot, users in zip(*np.unique(slots, return_counts=True), strict=True):
                    self._drop(int(slot), int(users))

    def zone_device_flag(self, pfn: int) -> bool:
        """Read the low bit of zone_device_data."""
        zone = self.pages.zone(pfn)
        return bool(zone.m_zdd[pfn - zone.base] & 1)

    def zone_device_flags(self, pfns: Pfns) -> Bools:
        """Read the low bits of many."""
        flags = np.zeros(len(pfns), np.bool_)
        for zone, index, where in self.pages.split(pfns):
            flags[where] = zone.zdd[index] & 1
        return flags

    def set_zone_device_flag(self, pfn: int | Pfns) -> None:
        """Set the low bit of one page or of many, leaving the object."""
        if isinstance(pfn, int):
            zone = self.pages.zone(pfn)
            zone.m_zdd[pfn - zone.base] |= 1
            return
        for zone, index, _ in self.pages.split(pfn):
            zone.zdd[index] |= 1

    def _take(self, data: object | None, users: int) -> int:
        """Return the slot of an object, counting `users` more pages that name it."""
        if data is None:
            return 0
        slot = self._slots.get(id(data))
        if slot is None:
            if self._free_slots:
                slot = self._free_slots.pop()
                self._objects[slot] = data
                self._users[slot] = 0
            else:
                slot = len(self._objects)
                self._objects.append(data)
                self._users.append(0)
            self._slots[id(data)] = slot
        self._users[slot] += users
        return slot

    def _drop(self, slot: int, users: int) -> None:
        """Count `users` pages less for a slot; one that no page names is free again."""
        if not slot:
            return
        self._users[slot] -= users
        if not self._users[slot]:
            del self._slots[id(self._objects[slot])]
            self._objects[slot] = None
            self._free_slots.append(slot)
