"""lib/test_hmm.c, as of Linux 7.3.4: move pages to the device on request, and home on request or on a CPU fault.

All copies are the CPU's, between a page of the process and the backing page of a device page.
"""

import errno
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from gpusvm.errors import KernelError
from gpusvm.gpu import READ, WRITE, runs
from gpusvm.mm.api import (
    MIGRATE_PFN_COMPOUND,
    MIGRATE_PFN_MIGRATE,
    MIGRATE_PFN_SHIFT,
    MIGRATE_PFN_VALID,
    MIGRATE_PFN_WRITE,
    MIGRATE_VMA_SELECT_COMPOUND,
    MIGRATE_VMA_SELECT_SYSTEM,
    VM_FAULT_OOM,
    VM_FAULT_SIGBUS,
    VM_READ,
    MigrateVma,
    MmApi,
    Pfns,
    VmaApi,
    VmFault,
    Words,
    migrate_pfns,
    migrate_pfns_to_pages,
)

if TYPE_CHECKING:
    from gpusvm.driver import NotifierWindow

    from gpusvm_dmirror.backing import Backing
    from gpusvm_dmirror.device import DmirrorDevice
    from gpusvm_dmirror.mirror import Dmirror

__all__ = ["DmirrorPagemapOps", "migrate_to_device", "migrate_to_system"]

_VALID = np.uint64(MIGRATE_PFN_VALID)
_MIGRATE = np.uint64(MIGRATE_PFN_MIGRATE)
_WRITE = np.uint64(MIGRATE_PFN_WRITE)


def migrate_to_device(
    device: "DmirrorDevice", mirror: "Dmirror", start: int, end: int, *, window: "NotifierWindow | None"
) -> None:
    """Move what can move of [start, end) to the device, mmap_lock held (dmirror_migrate_to_device).

    `window` tells what others invalidate meanwhile; without one the mirror entries of what moved are, with the quirk
    `migrate_seq` fixed, left to faults.
    EINVAL at the first address without a readable VMA, or from migrate_vma_setup; the windows before it are done.
    """
    memory = device.memory
    for args in _windows(device, mirror, start, end, MIGRATE_VMA_SELECT_SYSTEM | MIGRATE_VMA_SELECT_COMPOUND):
        if window is not None:
            window.begin()
        memory.migrate_vma_setup(args)
        _alloc_and_copy(device, mirror, args)
        memory.migrate_vma_pages(args)
        _finalize_and_map(device, mirror, args, window)
        memory.migrate_vma_finalize(args)


def migrate_to_system(device: "DmirrorDevice", mirror: "Dmirror", start: int, end: int) -> int:
    """Move the device's pages of [start, end) home, mmap_lock held (dmirror_migrate_to_system); how many moved.

    A PMD folio counts as one (quirk compound_count). EINVAL as for `migrate_to_device`; ENOMEM leaves the window as it
    is.
    """
    memory = device.memory
    moved = 0
    for args in _windows(device, mirror, start, end, device.select | MIGRATE_VMA_SELECT_COMPOUND):
        memory.migrate_vma_setup(args)
        moved += _bring_home(device, mirror, mirror.mm, args)
    return moved


def _windows(device: "DmirrorDevice", mirror: "Dmirror", start: int, end: int, flags: int) -> Iterator[MigrateVma]:
    """Cut [start, end) into pieces of at most one page table, each within one readable VMA."""
    geometry = device.memory.geometry
    addr = start
    while addr < end:
        vma: VmaApi | None = mirror.mm.vma_lookup(addr)
        if vma is None or not vma.flags & VM_READ:
            raise KernelError(errno.EINVAL, f"no readable VMA at {addr:#x}")
        until = min(end, addr + geometry.pmd_size, vma.end)
        pages = (until - addr) >> geometry.page_shift
        yield MigrateVma(
            vma=vma,
            start=addr,
            end=until,
            src=np.zeros(pages, np.uint64),
            dst=np.zeros(pages, np.uint64),
            pgmap_owner=device,
            flags=flags,
        )
        addr = until


# ---- to the device ---------------------------------------------------------------------------------------------------


def _alloc_and_copy(device: "DmirrorDevice", mirror: "Dmirror", args: MigrateVma) -> None:
    """Give every collected entry a device page and fill it (dmirror_migrate_alloc_and_copy)."""
    src, dst = args.src, args.dst
    if int(src[0]) & MIGRATE_PFN_COMPOUND:
        _copy_folio(device, mirror, src, dst)
        return
    wanted = np.flatnonzero(src & _MIGRATE)
    if not len(wanted):
        return
    if mirror.fail_alloc():
        wanted = wanted[1:]
    pages = device.alloc_pages(len(wanted), mirror)
    wanted = wanted[: len(pages)]  # an entry without a page is skipped
    if len(wanted):
        _fill(device, pages, src[wanted])
        # WRITE is taken from the source, so a filled hole has none in the mirror table.
        dst[wanted] = migrate_pfns(pages) | src[wanted] & _WRITE


def _copy_folio(device: "DmirrorDevice", mirror: "Dmirror", src: Words, dst: Words) -> None:
    """Give a PMD folio (or a hole of that size) a device folio, or as many single pages."""
    memory = device.memory
    nr = memory.geometry.pmd_nr
    word = int(src[0])
    source = word >> MIGRATE_PFN_SHIFT if word & MIGRATE_PFN_VALID else None
    write = word & MIGRATE_PFN_WRITE
    pfn = None if mirror.fail_alloc() else device.alloc_folio(mirror)
    if pfn is not None:
        table: Backing = device.table_of(pfn)
        if source is None:
            memory.clear_folio(table.of(pfn), nr)
        else:
            memory.copy_folio(table.of(pfn), source, nr)
        device.charge_copy(nr, 1)
        dst[0] = pfn << MIGRATE_PFN_SHIFT | MIGRATE_PFN_VALID | MIGRATE_PFN_COMPOUND | write
        return
    pages = device.alloc_pages(nr, mirror)
    if len(pages) < nr:  # the kernel would use what it did not get; the model declines the folio
        memory.folios_unlock(pages)
        memory.folios_put(pages)
        return
    if source is None:
        _fill(device, pages, np.zeros(nr, np.uint64))
    else:
        _fill(device, pages, migrate_pfns(np.arange(source, source + nr)))
    dst[:nr] = migrate_pfns(pages) | np.uint64(write)


def _fill(device: "DmirrorDevice", pages: Pfns, src: Words) -> None:
    """Copy the sources to device pages; those without a source are zeroed."""
    backing = device.backing_of(pages)
    present = (src & _VALID) != 0
    if present.all():
        device.copy(backing, migrate_pfns_to_pages(src))
        return
    holes = ~present
    device.memory.clear_pages(backing[holes])
    device.charge_copy(int(np.count_nonzero(holes)), int(np.count_nonzero(holes)))
    if present.any():
        device.copy(backing[present], migrate_pfns_to_pages(src[present]))


def _finalize_and_map(
    device: "DmirrorDevice", mirror: "Dmirror", args: MigrateVma, window: "NotifierWindow | None"
) -> None:
    """Put what really moved into the mirror table (dmirror_migrate_finalize_and_map).

    As written nobody asks whether what moved has been dropped meanwhile (quirk migrate_seq); `window` says so.
    """
    memory, src, dst = device.memory, args.src, args.dst
    geometry = memory.geometry
    vpn = args.start >> geometry.page_shift
    moved = np.flatnonzero(((src & _MIGRATE) != 0) & (dst != 0))
    if not len(moved):
        return
    _leave_others(device, mirror, mirror.mm, args, moved)
    try:
        mirror.pt_room()
    except KernelError:  # nobody looks at what this step returns; the pages are missing when they are read back
        return
    large = bool(int(dst[moved[0]]) & MIGRATE_PFN_COMPOUND)
    store: Callable[[], None]
    if large:
        pfn = int(dst[0]) >> MIGRATE_PFN_SHIFT
        table: Backing = device.table_of(pfn)
        perm = READ | WRITE if int(dst[0]) & MIGRATE_PFN_WRITE else READ
        store = partial(mirror.page_table.map_run, vpn, table.of(pfn), geometry.pmd_nr, perm)
    else:
        words = dst[moved]
        backing = np.zeros(len(dst), np.int64)
        perms = np.zeros(len(dst), np.uint8)
        backing[moved] = device.backing_of(migrate_pfns_to_pages(words))
        perms[moved] = np.where((words & _WRITE) != 0, np.uint8(READ | WRITE), np.uint8(READ))
        store = partial(mirror.page_table.map_pages, vpn, backing, perms)
    with mirror.mutex:
        if device.quirks.migrate_seq == "fixed" and (window is None or window.revoked()):
            # The entries of the old pages go, which the device's own migration may have left.
            mirror.page_table.unmap(vpn, vpn + len(dst))
            return
        store()
    device.kernel.charge("bind_per_pte", geometry.pmd_nr if large else len(moved))


def _leave_others(device: "DmirrorDevice", mirror: "Dmirror", mm: MmApi, args: MigrateVma, moved: Pfns) -> None:
    """Erase what moves from the other files that mirror the same address space; as written nobody does.

    They ignore the device's own MIGRATE event. A compound word stands for its block.
    """
    others = [file for file in device.files if file is not mirror and file.mm is mm]
    if not others or not len(moved):
        return
    vpn = args.start >> device.memory.geometry.page_shift
    spans = [(0, len(args.src))] if int(args.src[0]) & MIGRATE_PFN_COMPOUND else runs(moved)
    for file in others:
        if not file.get_unless_released():
            continue
        try:
            with file.mutex:
                for first, last in spans:
                    if device.quirks.other_files == "fixed":
                        file.page_table.unmap(vpn + first, vpn + last)
                    else:
                        file.page_table.mark_stale(vpn + first, vpn + last, "other_files")
        finally:
            file.fput()


# ---- home ------------------------------------------------------------------------------------------------------------


def _bring_home(device: "DmirrorDevice", mirror: "Dmirror", mm: MmApi, args: MigrateVma) -> int:
    """Copy what was collected home and end the migration; how many entries moved. ENOMEM: none did."""
    memory = device.memory
    try:
        _fault_alloc_and_copy(device, mirror, args)
    except KernelError:
        memory.migrate_vma_finalize(args)
        raise
    _leave_others(device, mirror, mm, args, np.flatnonzero(args.src & _VALID))
    memory.migrate_vma_pages(args)
    # dmirror_successful_migrated_pages
    moved = int(np.count_nonzero(((args.src & _MIGRATE) != 0) & ((args.src & _VALID) != 0)))
    if moved and int(args.src[0]) & MIGRATE_PFN_COMPOUND and device.quirks.compound_count == "fixed":
        moved = len(args.src)
    memory.migrate_vma_finalize(args)
    return moved


def _fault_alloc_and_copy(device: "DmirrorDevice", mirror: "Dmirror", args: MigrateVma) -> None:
    """Give every device page a system page and copy (dmirror_devmem_fault_alloc_and_copy); erase it from the mirror."""
    memory, src, dst = device.memory, args.src, args.dst
    geometry = memory.geometry
    wanted = np.flatnonzero(((src & _VALID) != 0) & ((src & _MIGRATE) != 0))
    if not len(wanted):
        return
    vpn = args.start >> geometry.page_shift
    word = int(src[wanted[0]])
    if word & MIGRATE_PFN_COMPOUND:
        nr = geometry.pmd_nr
        table: Backing = device.table_of(word >> MIGRATE_PFN_SHIFT)
        backing = table.of(word >> MIGRATE_PFN_SHIFT)
        write = word & MIGRATE_PFN_WRITE
        folio = None if mirror.fail_alloc() else memory.alloc_folio(geometry.pmd_order)
        if folio is not None:
            memory.folio_lock(folio)
            dst[0] = folio << MIGRATE_PFN_SHIFT | MIGRATE_PFN_VALID | MIGRATE_PFN_COMPOUND | write
            mirror.page_table.unmap(vpn, vpn + nr)
            memory.copy_folio(folio, backing, nr)
            device.charge_copy(nr, 1)
            return
        pages = _system_pages(device, nr)
        dst[:nr] = migrate_pfns(pages)
        mirror.page_table.unmap(vpn, vpn + nr)
        device.copy(pages, np.arange(backing, backing + nr))
        return
    if mirror.fail_alloc():
        raise KernelError(errno.ENOMEM, "an allocation was asked to fail")
    pages = _system_pages(device, len(wanted))
    words = src[wanted]
    dst[wanted] = migrate_pfns(pages) | words & _WRITE
    for first, last in runs(wanted):
        mirror.page_table.unmap(vpn + first, vpn + last)
    device.copy(pages, device.backing_of(migrate_pfns_to_pages(words)))


def _system_pages(device: "DmirrorDevice", n: int) -> Pfns:
    """Allocate `n` locked system pages; ENOMEM."""
    memory = device.memory
    pages: Pfns | None
    if n == 1:
        pfn = memory.alloc_folio(0)
        pages = None if pfn is None else np.array([pfn], np.int64)
    else:
        pages = memory.alloc_pages_bulk(n)
    if pages is None:
        raise KernelError(errno.ENOMEM, f"no {n} pages of system memory")
    memory.folios_lock_new(pages)
    return pages


class DmirrorPagemapOps:
    """Be the dev_pagemap_ops of dmirror (dmirror_devmem_ops)."""

    def __init__(self, device: "DmirrorDevice") -> None:
        self.device = device

    def backing_of(self, pfns: Pfns) -> Pfns:
        """Return the pages that hold the data of device pages, for whoever checks contents."""
        return self.device.backing_of(pfns)

    def migrate_to_ram(self, vmf: VmFault) -> int:
        """Bring one page home, or the folio if a PMD maps it (dmirror_devmem_fault)."""
        device = self.device
        memory = device.memory
        order = 0 if vmf.pte_level else memory.folio_order(vmf.page)
        size = memory.geometry.page_size << order
        start = vmf.address & -size
        args = MigrateVma(
            vma=vmf.vma,
            start=start,
            end=start + size,
            src=np.zeros(1 << order, np.uint64),
            dst=np.zeros(1 << order, np.uint64),
            pgmap_owner=device,
            flags=device.select | (MIGRATE_VMA_SELECT_COMPOUND if order else 0),
            fault_page=vmf.page,
        )
        # The file that last migrated to the page, which after a fork or mremap need not be the one that faults.
        table: Backing = device.table_of(memory.folio_head(vmf.page))
        try:
            memory.migrate_vma_setup(args)
        except KernelError:
            return VM_FAULT_SIGBUS
        try:
            _bring_home(device, table.mirror_of(vmf.page), vmf.mm, args)
        except KernelError:
            return VM_FAULT_OOM
        return 0

    def folio_free(self, pfn: int, order: int) -> None:
        """Free the backing and put the page on its list (dmirror_devmem_free)."""
        device = self.device
        memory = device.memory
        table: Backing = device.table_of(pfn)
        if not table.own:
            memory.folio_put(memory.folio_head(table.of(pfn)))
        table.forget(np.arange(pfn, pfn + (1 << order)))
        device.freed(pfn, 1 << order)
        device.pool.free(pfn, order)

    def folios_free(self, pfns: Pfns) -> None:
        """Do so for many single pages."""
        device = self.device
        for chunk, some in device.pool.by_chunk(pfns):
            table: Backing = chunk.private
            table.forget(some)
            device.freed(int(some[0]), len(some))
            if table.has_split:
                for pfn in some.tolist():
                    device.memory.folio_put(device.memory.folio_head(table.of(pfn)))
            else:
                device.memory.folios_put(table.of_many(some))
        device.pool.free_many(pfns)

    def folio_split(self, head: int, tail: int | None) -> None:
        """Give a tail its part of the backing (dmirror_devmem_folio_split).

        The kernel takes the backing folio apart as well. Here it stays whole, with one reference for each device page
        that lies on it, so its memory comes back with the last of them.
        """
        if tail is None:
            return
        memory = self.device.memory
        table: Backing = self.device.table_of(head)
        self.device.lead_to(tail, table)
        if not table.own:
            memory.folio_get(memory.folio_head(table.of(tail)))
            table.has_split = True
        self.device.pool.chunk_of(tail).callocated += 1
