"""drivers/gpu/drm/drm_pagemap.c:__drm_pagemap_migrate_to_ram, as of Linux 7.3.4: a CPU touches what a device has."""

from typing import TYPE_CHECKING

import numpy as np

from gpusvm.drm.observer import tell
from gpusvm.drm.ram import RamPages, retire_migrated_pages, skip_retired_pages
from gpusvm.drm.zdd import page_zdd
from gpusvm.mm.api import (
    MIGRATE_VMA_SELECT_COMPOUND,
    MIGRATE_VMA_SELECT_DEVICE_COHERENT,
    MIGRATE_VMA_SELECT_DEVICE_PRIVATE,
    MemoryManagerApi,
    MigrateVma,
    VmFault,
)

if TYPE_CHECKING:
    from gpusvm.drm.devmem import Devmem


def timeslice_lasts(devmem: "Devmem", now_ns: int) -> bool:
    """Tell whether the device may keep an allocation a little longer, so that it gets something done with it."""
    return now_ns < devmem.timeslice_expiration_ns


def migrate_to_ram(memory: MemoryManagerApi, vmf: VmFault) -> None:
    """Bring the allocation that holds the faulting page home, as far as the VMA and one window of its size reach.

    Returns without doing anything while the allocation's timeslice lasts: the CPU faults again. So it does when
    others have taken everything meanwhile. A KernelError (of setup, ENOMEM, of a mapping or of the copy) becomes
    SIGBUS.
    """
    zdd = page_zdd(memory, vmf.page)
    devmem = zdd.devmem
    kernel = memory.kernel
    if timeslice_lasts(devmem, kernel.now_ns):
        kernel.retried(by_clock=True)
        return
    # ALIGN_DOWN(addr, size), ALIGN(addr + 1, size): the kernel's bit arithmetic, also for sizes that are no power of
    # two
    size_mask = devmem.size_bytes - 1
    vma = vmf.vma
    start = max(vmf.address & ~size_mask, vma.start)
    end = min((vmf.address + 1 + size_mask) & ~size_mask, vma.end)
    npages = (end - start) >> memory.geometry.page_shift
    pgmap = zdd.dpagemap.pagemap
    args = MigrateVma(
        vma=vma,
        start=start,
        end=end,
        src=np.zeros(npages, np.uint64),
        dst=np.zeros(npages, np.uint64),
        pgmap_owner=pgmap.owner,
        flags=MIGRATE_VMA_SELECT_DEVICE_PRIVATE | MIGRATE_VMA_SELECT_DEVICE_COHERENT | MIGRATE_VMA_SELECT_COMPOUND,
        fault_page=vmf.page,
    )
    memory.migrate_vma_setup(args)
    if not args.cpages:
        return
    moved = 0
    try:
        skip_retired_pages(memory, args.src, zdd)
        ram = RamPages(memory, args.src, args.dst, zdd, order_fallback=zdd.dpagemap.order_fallback)
        if ram.npages:
            if kernel.observer is not None:
                tell(kernel.observer, "cpu_fault_takes", devmem)
            ram.copy(zdd)
            moved = ram.npages
    finally:
        memory.migrate_vma_pages(args)
        if moved:
            retire_migrated_pages(memory, args.src, args.dst, zdd)
        memory.migrate_vma_finalize(args)
    if kernel.tracer.on:
        kernel.tracer.emit("migrate_to_ram", start, end, zdd.dpagemap.drm.name, moved)
