"""drivers/gpu/drm/amd/amdkfd/kfd_migrate.c:svm_migrate_to_ram, as of Linux 7.3.4: bring home what a CPU touches.

A granule of the range, found by the address in the process that the object was made for: the way from a page to its
range goes through the virtual address, which another process, or mremap, may have changed since.
"""

from typing import TYPE_CHECKING

import numpy as np
from gpusvm.drm import DMA_BIDIRECTIONAL, constant_u8
from gpusvm.errors import KernelError
from gpusvm.gpu import D2H
from gpusvm.mm.api import (
    MIGRATE_PFN_MIGRATE,
    MIGRATE_PFN_VALID,
    VM_FAULT_SIGBUS,
    migrate_pfns,
    migrate_pfns_to_pages,
)

from gpusvm_kfd.migrate import vma_to_ram, vram_to_ram

if TYPE_CHECKING:
    from gpusvm.mm.api import VmFault

    from gpusvm_kfd.device import KfdDevice
    from gpusvm_kfd.process import KfdProcess
    from gpusvm_kfd.svm_bo import SvmRangeBo

__all__ = ["cpu_fault", "evacuate"]

_WANTED = np.uint64(MIGRATE_PFN_VALID | MIGRATE_PFN_MIGRATE)


def cpu_fault(device: "KfdDevice", vmf: "VmFault") -> int:
    """Bring the granule home that a CPU faults in (svm_migrate_to_ram); 0 or VM_FAULT_SIGBUS.

    With va_fault fixed, memory that no range knows comes home with what of the same device lies around it in its area.
    """
    svm_bo: SvmRangeBo = device.memory.zone_device_data(vmf.page)
    mm = svm_bo.mm
    if mm.mmget_not_zero():
        try:
            process = device.kfd.lookup_by_mm(mm)
            if process is not None:
                try:
                    return _in_process(process, svm_bo, vmf)
                finally:
                    process.put("lookup")
        finally:
            if device.quirks.last_user == "as_written":
                mm.mmput()
            else:
                mm.mmput_async()
    return _without_range(device, vmf)


def _in_process(process: "KfdProcess", svm_bo: "SvmRangeBo", vmf: "VmFault") -> int:
    """Bring it home by the range that the process has at the address."""
    kernel, svms, device = process.kernel, process.svms, svm_bo.device
    if kernel.read_once(process, "faulting_task") is kernel.current:
        return 0
    page = vmf.address >> device.page_shift
    with svms.lock:
        prange = svms.from_addr(page)
        if prange is None:
            return _without_range(device, vmf)
        with prange.migrate_mutex:
            its_own = vmf.mm is svm_bo.mm and prange.actual_loc and prange.svm_bo is svm_bo
            if device.quirks.va_fault == "fixed" and not its_own:
                return _without_range(device, vmf)
            start, end = prange.window(page)
            try:
                vram_to_ram(prange, vmf.mm, start, end, fault_page=vmf.page)
            except KernelError:
                return VM_FAULT_SIGBUS
    return 0


def _without_range(device: "KfdDevice", vmf: "VmFault") -> int:
    if device.quirks.va_fault == "as_written":
        return VM_FAULT_SIGBUS
    size = device.page_shift
    page, granule = vmf.address >> size, device.tunables.granularity >> size
    first = page // granule * granule
    start, end = max(first, vmf.vma.start >> size), min(first + granule, vmf.vma.end >> size)
    try:
        vma_to_ram(device, vmf.vma, start, end, fault_page=vmf.page)
    except KernelError:
        return VM_FAULT_SIGBUS
    return 0


def evacuate(device: "KfdDevice") -> None:
    """Bring every page of a device home by pfn, before its dev_pagemap goes; what is busy may stay.

    Nothing in amdkfd does so: devm_memunmap_pages would wait for the pages of whoever outlived its process's GPUs.
    """
    memory, engine, dma = device.memory, device.engine, device.dma
    nr = device.pagemap.nr_pages
    src, dst = np.zeros(nr, np.uint64), np.zeros(nr, np.uint64)
    memory.migrate_device_range(src, device.first_pfn, nr)
    wanted = np.flatnonzero(src & _WANTED == _WANTED)
    rows = 0
    if len(wanted) and (pages := memory.alloc_pages_bulk(len(wanted))) is not None:
        memory.folios_lock_new(pages)
        try:
            dma.map_pages(pages, constant_u8(0, len(pages)), DMA_BIDIRECTIONAL)
        except KernelError:
            memory.folios_unlock(pages)
            memory.folios_put(pages)
        else:
            rows = len(pages)
            dst[wanted] = migrate_pfns(pages)
            engine.copy(D2H, rows << device.page_shift, rows)
            memory.copy_pages(pages, migrate_pfns_to_pages(src[wanted]))
    memory.migrate_device_pages(src, dst, nr)
    engine.wait(engine.busy_until_ns)
    memory.migrate_device_finalize(src, dst, nr)
    dma.unmap_pages(rows)
