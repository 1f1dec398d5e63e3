"""drivers/gpu/drm/xe/xe_userptr.c and xe_pagefault.c:xe_pagefault_handle_vma, as of Linux 7.3.4: memory of the process
that a program binds itself.

The pages are got like those of a range, but under a notifier of their own, and they never migrate: what is in RAM and
what is in VRAM may be mixed, and is mapped where it is.
"""

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from gpusvm.drm import GpuSvmCtx, GpuSvmPages
from gpusvm.errors import KernelError
from gpusvm.mm.api import IntervalNotifier, MmuNotifierRange

from gpusvm_xe.gt import Batch, submit_range, wait_batch
from gpusvm_xe.pagemap import XE_INTERCONNECT_VRAM

if TYPE_CHECKING:
    from gpusvm_xe.tile import XeTile
    from gpusvm_xe.vm import XeVm

__all__ = ["XeUserptr"]


class XeUserptr:
    """Bind [start, end) of the process at the same addresses of the GPU (struct xe_userptr_vma).

    The lock of the VM is held for writing wherever it is made, bound or removed. The errors of get_pages come when it
    is made, with ENOMEM for EBUSY.
    """

    def __init__(self, vm: "XeVm", start: int, end: int) -> None:
        memory = vm.driver.memory
        self.vm = vm
        self.kernel = vm.kernel
        self.memory = memory
        self.start = start
        self.end = end
        self.tile_present = 0
        self.tile_invalidated = 0
        self.pages = GpuSvmPages(vm.driver.device)
        # As written, the device's own pages are as good as RAM here.
        self.ctx = GpuSvmCtx(device_private_page_owner=vm.ctx_fault.device_private_page_owner, allow_mixed=True)
        self._finishing = False
        self.notifier = memory.mmu_interval_notifier_insert(vm.mm, start, end - start, self)
        try:
            self.pin_pages()
        except KernelError as error:
            self.remove()
            if error.errno == errno.EBUSY:
                raise KernelError(errno.ENOMEM, error.detail) from error
            raise

    # ---- faults --------------------------------------------------------------------------------------------------

    def pin_pages(self) -> None:
        """Get the pages; nothing holds them (xe_vma_userptr_pin_pages). The errors are those of get_pages."""
        self.vm.gpusvm.get_pages(self.pages, self.notifier, self.start, self.end, self.ctx)

    @property
    def needs_pin(self) -> bool:
        """Tell whether they were invalidated since (xe_vma_userptr_check_repin)."""
        return self.memory.mmu_interval_check_retry(self.notifier, self.pages.notifier_seq)

    def handle_fault(self, tile: "XeTile", *, atomic: bool) -> None:
        """Bind it to the tile that faulted, as often as it is invalidated meanwhile (xe_pagefault_handle_vma).

        EACCES for an atomic that needs VRAM: this memory never moves. The errors of get_pages.
        """
        vm = self.vm
        if atomic and vm.driver.spec.discrete:
            raise KernelError(errno.EACCES, f"an atomic at userptr [{self.start:#x}, {self.end:#x})")
        tile.stats["vma_pagefault_count"] += 1
        tile.stats["vma_pagefault_kb"] += (self.end - self.start) >> 10
        if self.tile_present & ~self.tile_invalidated & tile.bit and not atomic:
            return
        while True:
            if self.needs_pin:
                self.pin_pages()
            with vm.resv:
                if self._commit(lambda: self._write_ptes(tile)):
                    return
            self.kernel.stats.retries += 1
            self.kernel.cond_resched()

    def _commit(self, write: Callable[[], None]) -> bool:
        """Write PTEs under the notifier lock unless the pages are stale (xe_pt.c:vma_check_userptr: EAGAIN)."""
        with self.vm.gpusvm.notifier_lock.read():
            if self.memory.mmu_interval_read_retry(self.notifier, self.pages.notifier_seq):
                return False
            write()
            return True

    def _write_ptes(self, tile: "XeTile") -> None:
        """Map each row where it is: what is in the VRAM of this device as such, everything else over the bus."""
        vm, addrs, kernel = self.vm, self.pages.dma_addr, self.kernel
        assert addrs is not None
        dpagemap = self.pages.dpagemap
        own = dpagemap is not None and dpagemap.drm is vm.driver.device
        in_vram, elsewhere = vm.pt.default_permissions
        perms = np.where((addrs.proto == XE_INTERCONNECT_VRAM) & own, in_vram, elsewhere).astype(np.uint8)
        sizes = np.left_shift(1, addrs.order.astype(np.int64))
        kernel.charge("bind_base")
        vm.page_tables[tile.index].map_pages(self.start >> vm.page_shift, addrs.page_pfns(), np.repeat(perms, sizes))
        kernel.charge("bind_per_pte", len(addrs))
        self.tile_present |= tile.bit
        self.tile_invalidated &= ~tile.bit

    # ---- invalidation, in two passes: the GPUs of all who are told forget at the same time -------------------------

    def invalidate(self, sub: IntervalNotifier, range_: MmuNotifierRange, cur_seq: int) -> bool:
        """Do both passes; the mm calls them one by one."""
        done, batch = self.invalidate_start(sub, range_, cur_seq)
        if batch is not None:
            self.invalidate_finish(batch)
        return done

    def invalidate_start(self, sub: IntervalNotifier, range_: MmuNotifierRange, cur_seq: int) -> tuple[bool, Any]:
        """Zap everything that is bound and send the TLBs their messages, whatever part is touched, and let `finish`
        wait for them; unmap the pages at once where nothing was ever bound, and where another invalidation has left
        its own for `finish` (xe_vma_userptr_invalidate_start). False, and nothing, if it may not sleep.
        """
        if not range_.blockable:
            return False, None
        with self.vm.gpusvm.notifier_lock.write():
            self.memory.mmu_interval_set_seq(sub, cur_seq)
            if not self.tile_present:
                self._unmap()
                return True, None
            batch = self._zap()
            if not self._finishing:
                self._finishing = True
                return True, batch
            wait_batch(batch)
            self._unmap()
            return True, None

    def invalidate_finish(self, token: Batch) -> None:
        """Wait for the TLBs, and unmap the pages from the device's DMA (xe_vma_userptr_invalidate_finish)."""
        with self.vm.gpusvm.notifier_lock.write():
            wait_batch(token)
            self._finishing = False
            self._unmap()

    def _unmap(self) -> None:
        """Take back what the device may reach by DMA, as soon as it has no entries for it any more: the pages may be
        somebody else's by the next fault.
        """
        self.pages.unmap()

    def _zap(self) -> Batch:
        """Clear the PTEs of all tiles and tell their TLBs (xe_vm_invalidate_vma_submit)."""
        vm = self.vm
        zapped = self.tile_present & ~self.tile_invalidated
        for tile in vm.driver.tiles:
            if zapped & tile.bit:
                vm.page_tables[tile.index].unmap(self.start >> vm.page_shift, self.end >> vm.page_shift)
        self.tile_invalidated = vm.driver.tile_mask
        try:
            return submit_range(vm.driver.tiles, zapped, self.start, self.end)
        except KernelError as error:
            self.kernel.warn("xe_vma_userptr_do_inval", str(error))
            return []

    # ---- the end -------------------------------------------------------------------------------------------------

    def remove(self) -> None:
        """Unmap the pages, and wait for notifiers that run (xe_userptr_remove); nothing is bound any more."""
        with self.vm.gpusvm.notifier_lock.read():
            self.pages.unmap()
        self.memory.mmu_interval_notifier_remove(self.notifier)
        self.kernel.free(self, self.notifier)
