"""drivers/gpu/drm/drm_pagemap.c:drm_pagemap_evict_to_ram, as of Linux 7.3.4: device memory is wanted for something
else.
"""

from errno import EBUSY, EFAULT
from typing import Final

import numpy as np

from gpusvm.drm.devmem import Devmem
from gpusvm.drm.ram import RamPages, retire_migrated_pages, skip_retired_pages
from gpusvm.drm.zdd import folio_zdd
from gpusvm.errors import KernelError
from gpusvm.mm.api import MEMORY_DEVICE_PRIVATE, MIGRATE_PFN_SHIFT, MIGRATE_PFN_VALID

ATTEMPTS: Final = 3

_VALID: Final = np.uint64(MIGRATE_PFN_VALID)


def evict_to_ram(devmem: Devmem, *, attempts: int = ATTEMPTS) -> None:
    """Bring all pages of an allocation to RAM, wherever they are mapped. No mmap_lock is needed, no timeslice heeded.

    Goes by the physical pages, of which each that cannot be locked is skipped; success is that no page of the
    allocation is left (`Devmem.is_empty`), for which there are `attempts`, three in the kernel. EFAULT the mm has no
    user (quirk `evict_dying`; fixed: EBUSY until its pages are gone); else, after the last attempt, its error or EBUSY.
    """
    kernel = devmem.drm.kernel
    for attempt in range(attempts):
        error: KernelError | None = None
        if not devmem.mm.mmget_not_zero():
            if devmem.dpagemap.quirks.evict_dying == "as_written":
                raise KernelError(EFAULT, "the mm is gone")
            if devmem.is_empty:
                return
            raise KernelError(EBUSY, "the mm is being torn down, and takes its pages with it")
        try:
            _evict_once(devmem)
        except KernelError as raised:
            error = raised
        finally:
            # Whoever evicts may hold the bo's reservation, which comes after mmap_lock.
            devmem.mm.mmput_async()
        if devmem.is_empty:
            return
        if attempt < attempts - 1:
            kernel.cond_resched()
    raise error or KernelError(EBUSY, f"device pages are left after {attempts} attempts")


def _evict_once(devmem: Devmem) -> None:
    dpagemap = devmem.dpagemap
    memory = dpagemap.memory
    kernel = memory.kernel
    private = dpagemap.pagemap.type == MEMORY_DEVICE_PRIVATE  # only such pages are marked
    npages = devmem.size_bytes >> memory.geometry.page_shift
    src = devmem.ops.populate_devmem_pfn(devmem, npages).astype(np.uint64)
    dst = np.zeros(npages, np.uint64)
    memory.migrate_device_pfns(src, npages)
    moved = 0
    live = src[(src & _VALID) != 0]
    try:
        if len(live):
            zdd = folio_zdd(memory, int(live[0]) >> MIGRATE_PFN_SHIFT)
            if private:
                skip_retired_pages(memory, src, zdd)
            ram = RamPages(memory, src, dst, None, order_fallback=dpagemap.order_fallback)
            if ram.npages:
                ram.copy(zdd)
                moved = ram.npages
    finally:
        memory.migrate_device_pages(src, dst, npages)
        if moved and private:
            retire_migrated_pages(memory, src, dst, zdd)
        memory.migrate_device_finalize(src, dst, npages)
    if kernel.tracer.on:
        kernel.tracer.emit("evict_to_ram", dpagemap.drm.name, moved)
