"""drivers/gpu/drm/xe/xe_vm.c:prefetch_ranges, as of Linux 7.3.4: memory is brought somewhere, and mapped, on request.

The ranges are made first, then brought one by one, then mapped together on all tiles. The first that cannot be brought
ends the operation with nothing mapped, and the ioctl succeeds all the same: ENODATA is kept from the program.
"""

import errno
from typing import TYPE_CHECKING, Final

from attrs import frozen
from gpusvm.drm import DrmPagemap
from gpusvm.errors import KernelError, ModelError

from gpusvm_xe.svm import MOVED, XeSvmRange, alloc_vram, evict_range, needs_migrate_to_vram

if TYPE_CHECKING:
    from gpusvm_xe.vm import XeVm
    from gpusvm_xe.vma import XeVma

__all__ = ["CONSULT_MADVISE", "prefetch"]

CONSULT_MADVISE: Final = -1
"""Prefetch to where the attributes of the memory say (DRM_XE_CONSULT_MEM_ADVISE_PREF_LOC)."""


@frozen
class _Prefetch:
    """Be one range that is to be brought to `dpagemap`, or to RAM for None, on behalf of a VMA."""

    vma: "XeVma"
    range: XeSvmRange
    dpagemap: DrmPagemap | None


def prefetch(vm: "XeVm", start: int, end: int, region: int) -> int:
    """Bring [start, end) to a region: 0 is RAM, n the VRAM of tile n-1. The bytes that moved; see `XeVm.populate`."""
    tiles = vm.driver.tiles if vm.driver.spec.discrete else []
    if region != CONSULT_MADVISE and not 0 <= region <= len(tiles):
        raise KernelError(errno.EINVAL, f"{vm.driver.spec.name} has no region {region}")
    vm.assert_usable()
    if any(vm.userptrs_in(start, end)):
        raise ModelError(f"xe: prefetch of [{start:#x}, {end:#x}), a part of which is userptr, is not modelled")
    moved = 0
    items = _items(vm, start, end, region)
    for item in items:
        nbytes = _bring(vm, item)
        if nbytes is None:
            return moved
        moved += nbytes
    _bind_all(vm, items)
    return moved


def _target(vm: "XeVm", vma: "XeVma", region: int) -> DrmPagemap | None:
    if region == CONSULT_MADVISE:
        return vma.attr.resolve_pagemap(vm.driver.tiles[0])
    return vm.driver.tiles[region - 1].dpagemap if region else None


def _items(vm: "XeVm", start: int, end: int, region: int) -> list[_Prefetch]:
    """Find or make the ranges of [start, end) that are not mapped where they should be (vm_bind_ioctl_ops_create).

    Holes are passed over; whatever else refuses a range ends the ioctl.
    """
    gpusvm = vm.gpusvm
    items = []
    addr = start
    for vma in vm.vmas.overlapping(start, end):
        dpagemap = _target(vm, vma, region)
        addr, last = max(addr, vma.start), min(end, vma.end)
        while addr < last:
            found = gpusvm.find_vma_start(addr, last)
            if found is None:
                break
            addr = max(addr, found)
            try:
                range_ = gpusvm.range_find_or_insert(addr, vma.start, vma.end, vm.ctx_insert)
            except KernelError as error:
                if error.errno == errno.ENOENT:
                    continue  # unmapped meanwhile
                raise
            assert isinstance(range_, XeSvmRange)
            if not _is_there(vm, range_, dpagemap):
                items.append(_Prefetch(vma, range_, dpagemap))
            addr = range_.end
    return items


def _is_there(vm: "XeVm", range_: XeSvmRange, dpagemap: DrmPagemap | None) -> bool:
    """Tell whether every tile maps a range from where it should be (xe_svm_range_validate)."""
    return range_.bound == vm.driver.tile_mask and range_.pages.dpagemap is dpagemap


def _bring(vm: "XeVm", item: _Prefetch) -> int | None:
    """Migrate one range and get its pages (xe_vm.c:prefetch_ranges); the bytes that moved, None for ENODATA."""
    range_, dpagemap, gpusvm, stats = item.range, item.dpagemap, vm.gpusvm, vm.kernel.stats
    before = stats.migrated_to_ram_bytes if dpagemap is None else stats.migrated_to_device_bytes
    if dpagemap is None:
        if range_.pages.has_devmem_pages:  # xe_svm_range_migrate_to_smem
            evict_range(gpusvm, range_)
    elif needs_migrate_to_vram(vm, range_, dpagemap):
        try:
            alloc_vram(vm, range_, dpagemap, 0)
        except KernelError:
            return None
    try:
        gpusvm.range_get_pages(range_, vm.ctx_fault if dpagemap is not None else vm.ctx_smem)
    except KernelError as error:
        if error.errno == errno.EOPNOTSUPP:
            evict_range(gpusvm, range_)
        if error.errno in MOVED:
            return None
        raise
    after = stats.migrated_to_ram_bytes if dpagemap is None else stats.migrated_to_device_bytes
    return min(range_.size_bytes, after - before)


def _bind_all(vm: "XeVm", items: list[_Prefetch]) -> None:
    """Write the PTEs of all ranges on all tiles, or of none if the pages of one went stale."""
    lock = vm.gpusvm.notifier_lock
    with vm.resv, lock.read():
        if all(vm.gpusvm.range_pages_valid(item.range) for item in items):
            for item in items:
                for tile in vm.driver.tiles:
                    vm.pt.bind(item.range, tile, item.vma)
