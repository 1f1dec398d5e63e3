"""drivers/gpu/drm/amd/amdkfd/kfd_migrate.c, as of Linux 7.3.4: move the pages of a range, those that can move.

To VRAM and home; between two devices through RAM. The holder of the range's migrate_mutex calls, with mmap_lock held.
"""

from errno import EDEADLK, EFAULT, ENODEV, ENOMEM
from typing import TYPE_CHECKING

import numpy as np
from gpusvm.drm import DMA_BIDIRECTIONAL, constant_u8
from gpusvm.errors import KernelError
from gpusvm.gpu import D2H, H2D, runs
from gpusvm.mm.api import (
    MIGRATE_PFN_MIGRATE,
    MIGRATE_PFN_VALID,
    MIGRATE_VMA_SELECT_DEVICE_PRIVATE,
    MIGRATE_VMA_SELECT_SYSTEM,
    MigrateVma,
    migrate_pfns,
    migrate_pfns_to_pages,
)

from gpusvm_kfd.svm_bo import vram_node_free, vram_node_new
from gpusvm_kfd.svm_range import SYSTEM

if TYPE_CHECKING:
    from gpusvm.mm.api import MmApi, Pfns, VmaApi, Words

    from gpusvm_kfd.device import KfdDevice
    from gpusvm_kfd.svm_range import SvmRange

__all__ = ["migrate_to_vram", "vma_to_ram", "vram_to_ram"]

_VALID = np.uint64(MIGRATE_PFN_VALID)
_MIGRATE = np.uint64(MIGRATE_PFN_MIGRATE)


def migrate_to_vram(prange: "SvmRange", location: int, start: int, end: int, mm: "MmApi") -> None:
    """Bring pages of a range to a device (svm_migrate_to_vram); what cannot move stays.

    ENOSPC, ENOMEM: no room. EDEADLK: the range lies on another device, and does not leave it. Else what
    migrate_vma_setup raises, EFAULT of DMA mappings.
    """
    device = _device(prange, location)
    if prange.actual_loc not in (SYSTEM, location):
        _leave(prange, mm)
    _ram_to_vram(device, prange, location, start, end, mm)


def _device(prange: "SvmRange", location: int) -> "KfdDevice":
    """Return the device of a location (svm_range_get_node_by_id). ENODEV."""
    pdd = prange.svms.process.pdds.get(location - 1)
    if pdd is None:
        raise KernelError(ENODEV, f"the process has no GPU {location - 1}")
    return pdd.device


def _check_within(prange: "SvmRange", start: int, end: int) -> None:
    """Demand pages of the range, which a notifier may have cut since they were chosen. EFAULT."""
    if start < prange.start or end > prange.end:
        raise KernelError(EFAULT, f"{start:#x}-{end:#x} is not in {prange!r}")


def _leave(prange: "SvmRange", mm: "MmApi") -> None:
    """Bring the whole range home, on its way to another device (svm_migrate_vram_to_vram). EDEADLK."""
    for _ in range(prange.svms.process.kfd.tunables.home_tries):
        vram_to_ram(prange, mm, prange.start, prange.end)
        if not prange.actual_loc:
            return
    raise KernelError(EDEADLK, f"{prange!r} does not leave GPU {prange.actual_loc - 1}")


def _ram_to_vram(device: "KfdDevice", prange: "SvmRange", location: int, start: int, end: int, mm: "MmApi") -> None:
    """Do so from RAM, area by area (svm_migrate_ram_to_vram)."""
    _check_within(prange, start, end)
    device.reserve(prange.pages)
    moved = 0
    try:
        vram_node_new(device, prange)
        size = device.page_shift
        at = start
        while at < end and (vma := mm.vma_lookup(at << size)) is not None:
            until = min(vma.end >> size, end)
            moved += _vma_to_vram(device, prange, vma, at, until)
            at = until
    finally:
        if moved:
            prange.actual_loc = location
            prange.counted_pages += moved
        elif not prange.actual_loc:
            vram_node_free(prange)
        device.unreserve(prange.pages)


def _vma_to_vram(device: "KfdDevice", prange: "SvmRange", vma: "VmaApi", start: int, end: int) -> int:
    """Move what moves of one area; how many pages (svm_migrate_vma_to_vram). The copy runs while the entries change."""
    memory, engine = device.memory, device.engine
    args = _args(device, vma, start, end, MIGRATE_VMA_SELECT_SYSTEM, None)
    memory.migrate_vma_setup(args)
    if not args.cpages:
        return 0
    error: KernelError | None = None
    rows = 0
    try:
        rows = _copy_to_vram(device, prange, args, prange.offset + start - prange.start)
    except KernelError as failed:
        error = failed
    fence_ns = engine.busy_until_ns
    memory.migrate_vma_pages(args)
    engine.wait(fence_ns)
    copied = np.flatnonzero(((args.src & _VALID) != 0) & (args.dst != 0))
    if len(copied):
        memory.copy_pages(migrate_pfns_to_pages(args.dst[copied]), migrate_pfns_to_pages(args.src[copied]))
    memory.migrate_vma_finalize(args)
    device.dma.unmap_pages(rows)
    if error is not None:
        raise error
    return _successful(args)


def _copy_to_vram(device: "KfdDevice", prange: "SvmRange", args: MigrateVma, offset: int) -> int:
    """Give each page its place in the range's object and queue the copies (svm_migrate_copy_to_vram).

    Returns the DMA mappings. EFAULT: one failed, and nothing moves.
    """
    memory, svm_bo = device.memory, prange.svm_bo
    assert svm_bo is not None
    wanted = np.flatnonzero(args.src & _MIGRATE)
    if device.quirks.live_slot == "fixed":
        wanted = wanted[~svm_bo.live[offset + wanted]]
    if not len(wanted):
        return 0
    slots = offset + wanted
    pages = svm_bo.pfns[slots]
    # svm_migrate_get_vram_page
    svm_bo.kref.get("page", len(pages))
    memory.zone_device_folios_init(pages, device.pagemap)
    memory.set_zone_device_data(pages, svm_bo)
    svm_bo.live[slots] = svm_bo.resident[slots] = True
    present = (args.src[wanted] & _VALID) != 0
    rows = int(np.count_nonzero(present))
    if rows:
        try:
            device.dma.map_pages(
                migrate_pfns_to_pages(args.src[wanted[present]]), constant_u8(0, rows), DMA_BIDIRECTIONAL
            )
        except KernelError:
            memory.folios_unlock(pages)
            memory.folios_put(pages)
            raise
        _queue_copies(device, "h2d", pages[present])
    holes = slots[~present]
    _clear(device, svm_bo.pfns[holes], svm_bo.dirty[holes])
    svm_bo.dirty[slots] = True
    args.dst[wanted] = migrate_pfns(pages)
    return rows


def _clear(device: "KfdDevice", pages: "Pfns", dirty: "np.typing.NDArray[np.bool_]") -> None:
    """Leave holes zero: the object was cleared when it was made; what was used since is, as written, not."""
    if device.quirks.stale_hole == "as_written":
        pages = pages[~dirty]
    elif dirty.any():
        device.engine.clear(int(np.count_nonzero(dirty)) << device.page_shift, len(runs(np.flatnonzero(dirty))))
    if len(pages):
        device.memory.clear_pages(pages)


def vram_to_ram(prange: "SvmRange", mm: "MmApi", start: int, end: int, *, fault_page: int | None = None) -> None:
    """Bring pages of a range home (svm_migrate_vram_to_ram); with the last the range gives its object up.

    EFAULT: a page is in no area or not in the range, or a DMA mapping failed; ENOMEM.
    """
    if not prange.actual_loc:
        return
    _check_within(prange, start, end)
    device = _device(prange, prange.actual_loc)
    size = device.page_shift
    moved = 0
    at = start
    while at < end:
        vma = mm.vma_lookup(at << size)
        if vma is None:
            if device.quirks.unmap_gap == "as_written":
                raise KernelError(EFAULT, f"page {at:#x} of {prange!r} is in no area")
            vma = mm.find_vma(at << size)
            if vma is None:
                break
            at = min(vma.start >> size, end)
            continue
        until = min(vma.end >> size, end)
        moved += vma_to_ram(device, vma, at, until, fault_page=fault_page)
        at = until
    if not prange.svms.exact and prange.counted_pages < moved:
        device.kernel.warn("svm_migrate_vram_to_ram", f"{prange.counted_pages} pages in VRAM, and {moved} came from it")
    prange.counted_pages -= moved  # below zero it wraps around in the kernel, and is as little zero
    if not prange.vram_pages and prange.has_res:
        prange.actual_loc = SYSTEM
        prange.counted_pages = 0
        vram_node_free(prange)


def vma_to_ram(device: "KfdDevice", vma: "VmaApi", start: int, end: int, *, fault_page: int | None = None) -> int:
    """Bring the pages of `device` home that lie in a part of one area; how many moved (svm_migrate_vma_to_ram)."""
    memory, engine = device.memory, device.engine
    args = _args(device, vma, start, end, MIGRATE_VMA_SELECT_DEVICE_PRIVATE, fault_page)
    memory.migrate_vma_setup(args)
    if not args.cpages:
        return 0
    error: KernelError | None = None
    rows = 0
    try:
        rows = _copy_to_ram(device, args)
    except KernelError as failed:
        error = failed
    fence_ns = engine.busy_until_ns
    memory.migrate_vma_pages(args)
    moved = _successful(args)
    engine.wait(fence_ns)
    copied = np.flatnonzero(args.dst)
    if len(copied):
        memory.copy_pages(migrate_pfns_to_pages(args.dst[copied]), migrate_pfns_to_pages(args.src[copied]))
    device.gone_home(migrate_pfns_to_pages(args.src[((args.src & _MIGRATE) != 0) & (args.dst != 0)]))
    memory.migrate_vma_finalize(args)
    device.dma.unmap_pages(rows)
    if error is not None:
        raise error
    return moved


def _copy_to_ram(device: "KfdDevice", args: MigrateVma) -> int:
    """Allocate a page for each, single ones, and queue the copies (svm_migrate_copy_to_ram). Returns the DMA mappings.

    ENOMEM, EFAULT: nothing moves.
    """
    memory = device.memory
    wanted = np.flatnonzero(((args.src & _VALID) != 0) & ((args.src & _MIGRATE) != 0))
    if not len(wanted):
        return 0
    pages = memory.alloc_pages_bulk(len(wanted))
    if pages is None:
        raise KernelError(ENOMEM, f"{len(wanted)} pages of RAM")
    memory.folios_lock_new(pages)
    try:
        device.dma.map_pages(pages, constant_u8(0, len(pages)), DMA_BIDIRECTIONAL)
    except KernelError:
        memory.folios_unlock(pages)
        memory.folios_put(pages)
        raise
    _queue_copies(device, "d2h", migrate_pfns_to_pages(args.src[wanted]))
    args.dst[wanted] = migrate_pfns(pages)
    return len(pages)


def _queue_copies(device: "KfdDevice", direction: str, pages: "Pfns") -> None:
    """Queue a copy for each run of VRAM, in pieces of the GART window (svm_migrate_copy_memory_gart).

    The RAM side lies scattered, an entry of the window a page.
    """
    window = device.tunables.copy_window >> device.page_shift
    with device.entity_lock:
        chained = False
        for first, last in _consecutive(pages):
            for at in range(first, last, window):
                n = min(window, last - at)
                device.engine.copy(D2H if direction == "d2h" else H2D, n << device.page_shift, n, chained=chained)
                chained = True


def _consecutive(pages: "Pfns") -> "list[tuple[int, int]]":
    """Cut pages into runs of consecutive ones, as positions."""
    cuts = (np.flatnonzero(np.diff(pages) != 1) + 1).tolist()
    return list(zip([0, *cuts], [*cuts, len(pages)], strict=True))


def _args(device: "KfdDevice", vma: "VmaApi", start: int, end: int, flags: int, fault_page: int | None) -> MigrateVma:
    """Allocate the words of a migration, and an address for each page (the kvcalloc of both ways). ENOMEM."""
    if device.kernel.inject("kfd.migrate"):
        raise KernelError(ENOMEM, "injected at kfd.migrate")

    def words() -> "Words":
        return np.zeros(end - start, np.uint64)

    return MigrateVma(
        vma=vma,
        start=start << device.page_shift,
        end=end << device.page_shift,
        src=words(),
        dst=words(),
        pgmap_owner=device.owner,
        flags=flags,
        fault_page=fault_page,
    )


def _successful(args: MigrateVma) -> int:
    """Count the pages that moved (svm_migrate_successful_pages)."""
    return int(np.count_nonzero(((args.src & _MIGRATE) != 0) & (args.dst != 0)))
