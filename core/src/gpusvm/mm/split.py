"""mm/huge_memory.c:__folio_split and folio_split_unmapped, as of Linux 7.3.4: make a large folio many small ones.

Both answer 0 or a positive errno, as callers inside the mm take the answer for a decision and never hand it on.
"""

from errno import EAGAIN, EBUSY, EINVAL
from typing import TYPE_CHECKING

import numpy as np

from gpusvm.mm.api import Pfns
from gpusvm.mm.observer import tell
from gpusvm.mm.page import PG_ANON_EXCLUSIVE, PG_HWPOISON, Zone
from gpusvm.mm.ptemask import RAMP
from gpusvm.mm.rmap_walk import remove_migration_ptes, restore_pages, try_to_migrate

if TYPE_CHECKING:
    from gpusvm.mm.memory_manager import MemoryManager

__all__ = ["folio_split_unmapped", "split_folio"]


def split_folio(memory: "MemoryManager", pfn: int, *, lock_at: int | None = None) -> int:
    """Split the large folio headed by `pfn` to order 0; it is locked and the caller holds one reference.

    Afterwards the head, or the page `lock_at`, keeps the caller's lock and reference; every other page stands alone,
    unlocked, with the references of its mappings, and is free if it has none. EAGAIN: somebody else holds a reference.
    EBUSY: no anon_vma any more. EINVAL: it is not large. One CLEAR window in every VMA that maps it. Pages of system
    memory that hold zeros are mapped to the zero page instead.
    """
    zone = memory.pages.zone(pfn)
    i = pfn - zone.base
    order = zone.m_order[i]
    if not order:
        return EINVAL
    observer = memory.kernel.observer
    if observer is not None:
        tell(observer, "operation_begins", "split_folio", pfn)
    error = _split_folio(memory, pfn, zone, order, pfn if lock_at is None else lock_at)
    if observer is not None:
        tell(observer, "operation_ends", "split_folio", pfn)
    return error


def _split_folio(memory: "MemoryManager", pfn: int, zone: Zone, order: int, lock_at: int) -> int:
    pages = memory.pages
    i = pfn - zone.base
    anon_vma = memory.rmap.mappings.get(zone.m_mapping[i])  # only anonymous memory has large folios
    if anon_vma is None:
        return EBUSY
    with anon_vma.lock.write():
        if zone.m_refcount[i] != zone.m_mapcount[i] + 1:
            return EAGAIN
        try_to_migrate(memory, pfn, split=True, rmap_locked=True)
        if zone.m_refcount[i] != 1 or zone.m_mapcount[i]:
            remove_migration_ptes(memory, pfn, pfn, rmap_locked=True)
            return EAGAIN
        _make_small(memory, zone, i, order)
        _remap(memory, zone, i, 1 << order)
    others = RAMP[1 : 1 << order] + pfn
    if lock_at != pfn:
        others[lock_at - pfn - 1] = pfn
    pages.unlock_many(others)
    pages.put_many(others)
    return 0


def folio_split_unmapped(memory: "MemoryManager", pfn: int, *, fault_page: int | None = None) -> int:
    """Split a locked folio that nothing maps; every page stays locked with one reference. EAGAIN: other references.

    MM-Q10: as written the reference of a fault on `fault_page`, one of its pages, is such; fixed, it stays on the page.
    """
    zone = memory.pages.zone(pfn)
    i = pfn - zone.base
    extra = int(fault_page is not None and memory.quirks.mm_q10 == "fixed")
    if zone.m_mapcount[i] or zone.m_refcount[i] != 1 + extra:
        return EAGAIN
    observer = memory.kernel.observer
    if observer is not None:
        tell(observer, "operation_begins", "folio_split_unmapped", pfn)
    _make_small(memory, zone, i, zone.m_order[i])
    if fault_page is not None:
        zone.m_refcount[fault_page - zone.base] += extra
    if observer is not None:
        tell(observer, "operation_ends", "folio_split_unmapped", pfn)
    return 0


def _make_small(memory: "MemoryManager", zone: Zone, i: int, order: int) -> None:
    # __split_folio_to_order, with the frozen refcount unfrozen to 1; the driver hears of every part before that.
    nr = 1 << order
    own = PG_ANON_EXCLUSIVE | PG_HWPOISON  # the flags that each page has for itself
    zone.flags[i + 1 : i + nr] = (zone.flags[i + 1 : i + nr] & np.uint16(own)) | np.uint16(zone.m_flags[i] & ~own)
    zone.mapping[i : i + nr] = zone.m_mapping[i]
    zone.index[i : i + nr] = RAMP[:nr] + zone.m_index[i]
    zone.m_order[i] = 0
    zone.head_off[i : i + nr] = 0
    zone.mapcount[i : i + nr] = 0
    zone.m_entire[i] = 0
    pgmap = zone.pgmap
    if pgmap is not None and pgmap.ops.folio_split is not None:
        callback = pgmap.ops.folio_split
        head = zone.base + i
        with memory.kernel.atomic():
            for k in range(1, nr):
                callback(head, head + k)
            callback(head, None)
    zone.refcount[i : i + nr] = 1
    if pgmap is not None and memory.kernel.observer is not None:
        tell(memory.kernel.observer, "device_folio_split", zone, i, order)


def _remap(memory: "MemoryManager", zone: Zone, i: int, nr: int) -> None:
    # remap_page: the entries that the split made name the small folios now.
    pfns: Pfns = RAMP[:nr] + (zone.base + i)
    zero_pages = not zone.private and memory.contents.mode == "tokens"
    if not (zero_pages and np.count_nonzero(zone.token[i : i + nr]) != nr) and not memory.kernel.explored:
        if restore_pages(memory, pfns, zone, slice(i, i + nr), pfns, rmap_locked=True):
            return
    for page in pfns.tolist():
        remove_migration_ptes(memory, page, page, use_zero_page=zero_pages, rmap_locked=True)
