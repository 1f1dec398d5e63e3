"""drivers/gpu/drm/nouveau/nouveau_dmem.c:nouveau_dmem_evict_chunk, as of Linux 7.3.4: bring home what is in a chunk."""

from typing import TYPE_CHECKING

import numpy as np
from gpusvm.driver import RETRY_NS, alloc_folio_nofail, alloc_pages_nofail
from gpusvm.drm import DMA_BIDIRECTIONAL, constant_u8
from gpusvm.errors import DriverError
from gpusvm.gpu import D2H
from gpusvm.mm.api import (
    MIGRATE_PFN_COMPOUND,
    MIGRATE_PFN_MIGRATE,
    MIGRATE_PFN_SHIFT,
    MIGRATE_PFN_VALID,
    Pfns,
    migrate_pfns,
    migrate_pfns_to_pages,
)

if TYPE_CHECKING:
    from gpusvm.driver import Chunk

    from gpusvm_nouveau.dmem import NouveauDmem

__all__ = ["evict_chunk"]

_BOTH = np.uint64(MIGRATE_PFN_VALID | MIGRATE_PFN_MIGRATE)


def evict_chunk(dmem: "NouveauDmem", chunk: "Chunk") -> None:
    """Move a whole chunk home by pfn, once, with one fence. What is locked just then stays.

    As written large folios stay as well (quirk evicted_folios), and nobody asks what became of an allocation or a
    mapping (quirk evict_unchecked).
    """
    memory, engine, dma = dmem.memory, dmem.device.engine, dmem.device.device.dma
    nr = chunk.pagemap.nr_pages
    src = np.zeros(nr, np.uint64)
    dst = np.zeros(nr, np.uint64)
    memory.migrate_device_range(src, chunk.first, nr)
    wanted = np.flatnonzero(src & _BOTH == _BOTH)
    large = (src[wanted] & np.uint64(MIGRATE_PFN_COMPOUND)) != 0
    rows = 0
    for i in wanted[large].tolist():
        source = int(src[i]) >> MIGRATE_PFN_SHIFT
        page = _alloc_folio(dmem, memory.geometry.pmd_order)
        memory.folio_lock(page)
        dst[i] = page << MIGRATE_PFN_SHIFT | MIGRATE_PFN_VALID
        if dmem.quirks.evicted_folios == "fixed":
            dst[i] |= np.uint64(MIGRATE_PFN_COMPOUND)
        if _map(dmem, np.array([page], np.int64), memory.geometry.pmd_order):
            rows += 1
            memory.copy_folio(page, source, memory.geometry.pmd_nr)
            engine.copy(D2H, memory.geometry.pmd_size, 1)
    small = wanted[~large]
    if len(small):
        pages = alloc_pages_nofail(dmem.kernel, memory, len(small))
        dst[small] = migrate_pfns(pages)
        mapped = _map(dmem, pages, 0)
        rows += mapped
        memory.copy_pages(pages[:mapped], migrate_pfns_to_pages(src[small[:mapped]]))
        engine.copy(D2H, mapped * memory.geometry.page_size, mapped)
    memory.migrate_device_pages(src, dst, nr)
    engine.wait(engine.busy_until_ns)
    memory.migrate_device_finalize(src, dst, nr)
    dma.unmap_pages(rows)


def _map(dmem: "NouveauDmem", pages: Pfns, order: int) -> int:
    """Map destinations; for how many a copy can be queued. As written those of the others stay without contents."""
    dma = dmem.device.device.dma
    done = len(dma.map_rows(pages, constant_u8(order, len(pages)), DMA_BIDIRECTIONAL))
    if dmem.quirks.evict_unchecked == "as_written":
        lost = pages[done:]
        if len(lost) and order:
            lost = np.arange(lost[0], lost[0] + (1 << order))
        dmem.memory.contents.taint_pfns(lost, "evict_unchecked")
        return done
    while done < len(pages):
        dmem.kernel.sleep_ns(RETRY_NS)
        rest = pages[done:]
        done += len(dma.map_rows(rest, constant_u8(order, len(rest)), DMA_BIDIRECTIONAL))
    return done


def _alloc_folio(dmem: "NouveauDmem", order: int) -> int:
    """Allocate a large page, which as written may fail (folio_alloc)."""
    if dmem.quirks.evict_unchecked == "fixed":
        return alloc_folio_nofail(dmem.kernel, dmem.memory, order)
    page = dmem.memory.alloc_folio(order)
    if page is None:
        raise DriverError(
            "nouveau_dmem_evict_chunk",
            f"no page of order {order} for a folio that goes home: a NULL pointer",
        )
    return page
