"""drivers/gpu/drm/amd/amdkfd/kfd_svm.c:svm_range_validate_and_map, as of Linux 7.3.4: map a range where its pages are.

Page tables are reserved in the kernel meanwhile; whoever would want them holds svms->lock, so that is left out. A
system page stays mapped for DMA until its place in the range is mapped anew, or the range goes.
"""

from errno import EAGAIN, EBUSY, EFAULT
from typing import TYPE_CHECKING, Final

import numpy as np
from gpusvm.driver import NotifierWindow
from gpusvm.errors import KernelError
from gpusvm.gpu import ATOMIC, READ, REMOTE, WRITE
from gpusvm.mm.api import HMM_PFN_PFN_MASK, HMM_PFN_REQ_FAULT, HMM_PFN_REQ_WRITE, HMM_PFN_WRITE, VM_READ, VM_WRITE

from gpusvm_kfd.migrate import vma_to_ram, vram_to_ram
from gpusvm_kfd.svm_range import GPU_ALWAYS_MAPPED, GPU_RO, bits

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt
    from gpusvm.mm.api import MmApi, Pfns, VmaApi, Words

    from gpusvm_kfd.device import KfdDevice
    from gpusvm_kfd.svm_range import SvmRange

__all__ = ["unmap_from_gpus", "validate_and_map"]

_PFN: Final = np.uint64(HMM_PFN_PFN_MASK)
_WRITABLE: Final = np.uint64(HMM_PFN_WRITE)


def validate_and_map(
    prange: "SvmRange",
    start: int,
    end: int,
    mm: "MmApi",
    *,
    gpu: int | None = None,
    on_get_pages: "Callable[[], None] | None" = None,
    on_bind: "Callable[[], None] | None" = None,
) -> None:
    """Map pages of a range for one GPU, or for all that should have it; mmap_lock and migrate_mutex are held.

    `on_get_pages` and `on_bind` are called before an area's pages are read, and before they are mapped.
    EAGAIN: something was invalidated meanwhile, or the range split. EFAULT: there is no area, or what hmm_range_fault
    raises. Area by area: those before the one that failed stay mapped. One that may not be read is passed over: as
    written without unmapping it, for addresses are taken for page numbers.
    """
    gpus = _gpus(prange) if gpu is None else 1 << gpu
    if not gpus:
        return
    memory, process = prange.svms.memory, prange.svms.process
    as_written = process.kfd.quirks.cut_range == "as_written"
    assert prange.notifier is not None
    size = memory.geometry.page_shift
    window = NotifierWindow(memory, prange.notifier, start=start << size, end=end << size, lock=prange.lock)
    owner = process.kfd.common_owner(gpus)
    at = start
    while at < end:
        vma = mm.vma_lookup(at << size)
        if vma is None:
            prange.mapping_done = False
            number = EFAULT if as_written else EAGAIN
            raise KernelError(number, f"page {at:#x} of {prange!r} is in no area")
        until = min(vma.end >> size, end)
        if vma.flags & VM_READ:
            prange.mapping_done = False
            window.start, window.end = at << size, until << size
            if on_get_pages is not None:
                on_get_pages()
            words = _get_pages(prange, window, vma, mm, owner)
            pfns = (words & _PFN).astype(np.int64)
            is_device = memory.device_private_mask(pfns)
            if process.kfd.quirks.va_fault == "as_written" and prange.svm_bo is None and is_device.any():
                process.kernel.warn("svm_range_dma_map_dev", f"{prange!r} has device pages and no object: NULL is read")
            if as_written:
                first = at - process.kernel.read_once(prange, "start")
                for each in bits(gpus):
                    prange.dma_map(process.pdds[each], first, pfns, is_device)
            else:
                with prange.lock:
                    if prange.children:
                        raise KernelError(EAGAIN, f"{prange!r} was split")
                    for each in bits(gpus):
                        prange.dma_map(process.pdds[each], at - prange.start, pfns, is_device)
            if on_bind is not None:
                on_bind()
            if not window.commit(lambda v=vma, a=at, w=words, d=is_device: _commit(prange, v, a, w, d, gpus)):  # type: ignore[misc]  # a lambda's default has no annotation
                raise KernelError(EAGAIN, f"{prange!r} was invalidated")
            prange.mapping_done = until == end
        elif process.kfd.quirks.no_access == "fixed":
            with prange.lock:
                unmap_from_gpus(prange, at, until, prange.mapped)
        at = until
    prange.validated_ns = memory.kernel.now_ns


def _gpus(prange: "SvmRange") -> int:
    """Return which GPUs are to have a range mapped: with XNACK those that have it, and the one that it is on."""
    if not prange.svms.process.xnack:
        return prange.access | prange.in_place
    gpus = prange.mapped | prange.in_place
    if prange.actual_loc:
        gpus |= prange.access & 1 << prange.actual_loc - 1
    if not gpus and prange.flags & GPU_ALWAYS_MAPPED:
        gpus = prange.access
    return gpus


def _get_pages(prange: "SvmRange", window: NotifierWindow, vma: "VmaApi", mm: "MmApi", owner: object | None) -> "Words":
    """Read one area's pages (amdgpu_hmm_range_get_pages): to write, unless the area is read-only.

    What the walk faults in may be on a device: a CPU fault, which is skipped if it is this task's own.
    """
    process, kernel = prange.svms.process, prange.svms.kernel
    flags = HMM_PFN_REQ_FAULT | (HMM_PFN_REQ_WRITE if vma.flags & VM_WRITE else 0)
    kernel.write_once(process, "faulting_task", kernel.current)
    try:
        if process.kfd.quirks.fault_under_lock == "fixed":
            for device in process.kfd.by_owner():
                _bring_home(prange, window, vma, mm, device, owner)
        return window.read_pages(flags, owner, mmap_locked=True)
    except KernelError as error:
        if error.errno != EBUSY:
            raise
        raise KernelError(EAGAIN, str(error)) from error
    finally:
        kernel.write_once(process, "faulting_task", None)


def _bring_home(
    prange: "SvmRange", window: NotifierWindow, vma: "VmaApi", mm: "MmApi", device: "KfdDevice", owner: object | None
) -> None:
    """Leave hmm_range_fault no page of a device to fault on: one of another owner, or one that is to be made writable.

    EAGAIN: one stays, whose lock somebody may have who waits for ours.
    """
    size = device.page_shift
    start, end = window.start >> size, window.end >> size

    def stuck() -> bool:
        words = window.read_pages(0, device.owner, mmap_locked=True)
        there = device.memory.device_private_mask((words & _PFN).astype(np.int64))
        if device.owner is owner:
            there &= ((words & _WRITABLE) == 0) & bool(vma.flags & VM_WRITE)
        return bool(there.any())

    if not stuck():
        return
    vram_to_ram(prange, mm, start, end)
    vma_to_ram(device, vma, start, end)
    if stuck():
        raise KernelError(EAGAIN, f"{prange!r} has pages on a device that stay there")


def _commit(
    prange: "SvmRange", vma: "VmaApi", start: int, words: "Words", is_device: "npt.NDArray[np.bool_]", gpus: int
) -> None:
    """Write the page tables of GPUs, the range's lock held (svm_range_map_to_gpus)."""
    if prange.children:
        raise KernelError(EAGAIN, f"{prange!r} was split")
    # What is left of the range if it has been cut at an end since.
    first, last = max(start, prange.start), min(start + len(words), prange.end)
    if first >= last:
        return
    part = slice(first - start, last - start)
    words, is_device = words[part], is_device[part]
    process = prange.svms.process
    pfns = (words & _PFN).astype(np.int64)
    readonly = not vma.flags & VM_WRITE
    perm = READ if readonly or prange.flags & GPU_RO else READ | WRITE | ATOMIC
    protected = () if readonly else np.flatnonzero(is_device & ((words & _WRITABLE) == 0)).tolist()
    home = prange.actual_loc - 1 if prange.has_res else None
    for gpu in bits(gpus):
        pdd = process.pdds[gpu]
        if home not in (None, gpu) and not process.kfd.same_hive(gpu, home):
            continue
        prange.mapped |= 1 << gpu
        far = ~is_device if home in (None, gpu) else np.ones(len(pfns), np.bool_)
        perms = np.where(far, np.uint8(perm | REMOTE), np.uint8(perm))
        pdd.map_pages(first, pfns, perms, entries=_entries(first, pfns, process.kfd.pmd_pages))
        for page in protected:
            pdd.page_table.mark_stale(first + page, first + page + 1, "mm_s2")


def _entries(vpn: int, pfns: "Pfns", large: int) -> int:
    """Count what is written: an entry a page, or one for a whole PMD of consecutive pages at its place."""
    first = -vpn % large
    blocks = (len(pfns) - first) // large
    if blocks <= 0:
        return len(pfns)
    table = pfns[first : first + blocks * large].reshape(blocks, large)
    whole = ((np.diff(table, axis=1) == 1).all(axis=1)) & (table[:, 0] % large == 0)
    return len(pfns) - int(np.count_nonzero(whole)) * (large - 1)


def unmap_from_gpus(prange: "SvmRange", start: int, end: int, gpus: int) -> None:
    """Unmap pages from GPUs, wait until the entries are clear and flush their TLBs (svm_range_unmap_from_gpus)."""
    process = prange.svms.process
    for gpu in bits(gpus):
        if (start, end) == (prange.start, prange.end):
            prange.mapped &= ~(1 << gpu)
        process.pdds[gpu].unmap(start, end)
