"""drivers/gpu/drm/xe/xe_pt.c, as of Linux 7.3.4: the page tables of a VM, one for each tile.

The CPU writes them under the notifier lock: for reading to bind, for writing to zap.
"""

from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np
from gpusvm.drm import DrmPagemap, GpuSvmRange
from gpusvm.errors import KernelError
from gpusvm.gpu import GpuPageTable

from gpusvm_xe.attributes import ATOMIC_CPU, ATOMIC_DEVICE, ATOMIC_GLOBAL, ATOMIC_UNDEFINED, permissions
from gpusvm_xe.gt import submit_range, wait_batch
from gpusvm_xe.pagemap import XE_INTERCONNECT_VRAM
from gpusvm_xe.svm import XeSvmRange

if TYPE_CHECKING:
    from gpusvm_xe.tile import XeTile
    from gpusvm_xe.vm import XeVm
    from gpusvm_xe.vma import XeVma

__all__ = ["XePt"]


class XePt:
    """Write the page tables of one VM, and tell the TLBs; `roots` has a table for each tile (vm->pt_root[])."""

    def __init__(self, vm: "XeVm") -> None:
        driver = vm.driver
        self.vm = vm
        self.driver = driver
        self.kernel = vm.kernel
        self.page_shift = driver.memory.geometry.page_shift
        self.pmd_order = driver.memory.geometry.pmd_order
        self.roots = [GpuPageTable(vm.kernel, driver.memory, vm.mm) for _ in driver.tiles]
        self._mixes = driver.tunables.allow_mixed
        self._bumps = driver.tunables.evict_order == "lru"
        discrete = driver.spec.discrete
        atomics_in_ram = bool(driver.tunables.device_atomics_on_smem)
        self._perms = [
            permissions(access, discrete=discrete, atomics_in_ram=atomics_in_ram)
            for access in (ATOMIC_UNDEFINED, ATOMIC_DEVICE, ATOMIC_GLOBAL, ATOMIC_CPU)
        ]

    @property
    def default_permissions(self) -> tuple[int, int]:
        """Return the permissions of entries for VRAM and for everything else where nothing was advised."""
        return self._perms[ATOMIC_UNDEFINED]

    @staticmethod
    def is_valid(range_: XeSvmRange, tile: "XeTile", dpagemap: DrmPagemap | None) -> bool:
        """Tell whether a tile maps the range, and from `dpagemap` if that is asked for (xe_svm_range_is_valid)."""
        return bool(range_.bound & tile.bit) and (dpagemap is None or range_.is_in(dpagemap))

    def bind(self, range_: GpuSvmRange, tile: "XeTile", vma: "XeVma") -> None:
        """Map what get_pages found for one tile, in the largest leaves that fit (xe_pt_stage_bind). The notifier lock
        is held.

        Entries are 4 KiB each, also where the 64 KiB hint applies; a segment of at least 2 MiB is one leaf.
        """
        addrs = range_.pages.dma_addr
        assert addrs is not None
        assert isinstance(range_, XeSvmRange)
        # A range without mixed mappings is all in one place. A peer's VRAM is no VRAM for the page table: every access
        # leaves over the bus. Protocols are numbers of the driver whose memory it is: those of others mean nothing.
        dpagemap = range_.pages.dpagemap
        vram = dpagemap is not None and dpagemap.drm is self.driver.device
        assert not vram or self._mixes or int(addrs.proto[0]) == XE_INTERCONNECT_VRAM
        perms = self._perms[vma.attr.atomic_access]
        perm = perms[0 if vram else 1]
        vpn = range_.start >> self.page_shift
        root = self.roots[tile.index]
        kernel = self.kernel
        kernel.charge("bind_base")
        if len(addrs.pfns) == 1:
            leaves = 1 if int(addrs.order[0]) >= self.pmd_order else addrs.npages
            root.map_run(vpn, int(addrs.pfns[0]), addrs.npages, perm)
        else:
            leaves = addrs.npages
            if vram and self._mixes:
                each = np.where(addrs.proto == XE_INTERCONNECT_VRAM, np.uint8(perms[0]), np.uint8(perms[1]))
                root.map_pages(vpn, addrs.page_pfns(), np.repeat(each, np.left_shift(1, addrs.order)))
            else:
                root.map_pages(vpn, addrs.page_pfns(), perm)
        if range_.pages.has_devmem_pages and range_.pages.protected is not None:
            for page in range_.pages.protected.tolist():
                root.mark_stale(vpn + page, vpn + page + 1, "mm_s2")
        kernel.charge("bind_per_pte", leaves)
        range_.tile_present |= tile.bit
        range_.tile_invalidated &= ~tile.bit
        if vram and self._bumps:
            first = int(addrs.pfns[int((addrs.proto == XE_INTERCONNECT_VRAM).argmax())])
            bo = self.driver.bo_mapping.bo_of(first)
            bo.manager.bump(bo)

    def zap(self, range_: XeSvmRange) -> int:
        """Clear the PTEs of a range (xe_pt_zap_ptes_range: memset through the mapped page table); the mask of the tiles
        that had any. The entries are there no more, the TLBs may have them still.
        """
        zapped = range_.bound
        for tile in self.driver.tiles:
            if zapped & tile.bit:
                self.roots[tile.index].unmap(range_.start >> self.page_shift, range_.end >> self.page_shift)
        range_.tile_invalidated |= zapped
        return zapped

    def flush(self, tiles: int, start: int, end: int) -> None:
        """Invalidate [start, end) in the TLBs of a mask of tiles, and wait; EPIPE."""
        wait_batch(submit_range(self.driver.tiles, tiles, start, end))

    def unbind(self, range_: XeSvmRange) -> None:
        """Take a range out (xe_vm_range_unbind); one that was zapped needs no flush."""
        with self.vm.resv:
            zapped = self.zap(range_)
            if zapped:
                with suppress(KernelError):  # the job that sends the message does not look
                    self.flush(zapped, range_.start, range_.end)
            range_.tile_present = 0

    def clear(self) -> None:
        """Empty all tables, and tell every GT unless the device is gone (xe_pt_clear)."""
        for root in self.roots:
            root.unmap(self.vm.start >> self.page_shift, self.vm.end >> self.page_shift)
            root.retire()
        if not self.driver.device.unplugged:
            for tile in self.driver.tiles:
                for gt in tile.gts:
                    gt.tlb.invalidate_vm()
