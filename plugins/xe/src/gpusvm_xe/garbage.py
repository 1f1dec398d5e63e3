"""drivers/gpu/drm/xe/xe_svm.c:xe_svm_garbage_collector, as of Linux 7.3.4: who removes ranges that lost their memory.

A notifier can only note them down.
"""

from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING

from gpusvm.drm import GpuSvmRange
from gpusvm.errors import KernelError
from gpusvm.kernel import Work
from gpusvm.mm.api import MmuNotifierRange

from gpusvm_xe.svm import XeSvmRange

if TYPE_CHECKING:
    from gpusvm_xe.vm import XeVm

__all__ = ["GarbageCollector"]


class GarbageCollector:
    """Keep the list of one VM, and the work that clears it (vm->svm.garbage_collector)."""

    def __init__(self, vm: "XeVm") -> None:
        self.vm = vm
        self.kernel = vm.kernel
        self.lock = vm.kernel.spinlock("garbage_collector.lock")
        self._ranges: deque[XeSvmRange] = deque()
        self.work = Work(self._worker, "xe_svm_garbage_collector")

    def __len__(self) -> int:
        return len(self._ranges)

    def wants(self) -> bool:
        """Tell whether there will be anybody to collect it: `close` takes the notifier lock, too."""
        return not self.vm.closed

    def add(self, range_: GpuSvmRange, mmu_range: MmuNotifierRange) -> None:
        """Note a range down and wake the worker (xe_svm_garbage_collector_add_range). The notifier lock is held."""
        assert isinstance(range_, XeSvmRange)
        self.vm.gpusvm.range_set_unmapped(range_, mmu_range)
        self.dismiss(range_)
        self.vm.driver.pf_wq.queue(self.work)

    def dismiss(self, range_: GpuSvmRange) -> None:
        """Note a range down, for `collect` to remove, unless it was before."""
        assert isinstance(range_, XeSvmRange)
        with self.lock:
            if not range_.queued:
                range_.queued = True
                self._ranges.append(range_)

    def collect(self) -> bool:
        """Remove what was noted down (xe_svm_garbage_collector); whether that changed the VMAs (EAGAIN). The VM's lock
        is held for writing. ENOENT if the VM is banned, and it is if attributes cannot be reset.
        """
        if self.kernel.explored:
            self.vm.assert_locked("xe_svm_garbage_collector")
        vm = self.vm
        if vm.banned:
            vm.assert_usable()
        changed = False
        if not self._ranges:
            return changed
        while True:
            with self.lock:
                if not self._ranges:
                    return changed
                # It stays `queued`: list_del leaves poison, of which list_empty says no, so a notifier that meets the
                # range until it is removed does not note it down again.
                range_ = self._ranges.popleft()
            start, end, unmapped = range_.start, range_.end, range_.unmapped
            # Not evicted, even if only a part of it was unmapped: what is left in VRAM keeps its whole object alive.
            if self.kernel.tracer.on:
                self.kernel.tracer.emit("svm_garbage", start, end, range_.partial_unmap)
            self.remove(range_)
            if not unmapped:  # dismissed by a fault: its memory is there, and so are the attributes
                continue
            try:
                changed |= vm.vmas.reset(start, end)
            except KernelError as error:
                self.kernel.warn("xe_svm_range_set_default_attr", f"no VMA for [{start:#x}, {end:#x}): {error}")
                vm.banned = True
                raise

    def remove(self, range_: XeSvmRange) -> None:
        """Take one range out of the page table, and away (__xe_svm_garbage_collector)."""
        vm = self.vm
        vm.pt.unbind(range_)
        vm.gpusvm.range_unmap_pages(range_, vm.ctx_fault)
        vm.gpusvm.range_remove(range_)

    def forget(self, range_: XeSvmRange) -> None:
        """Take a range that was removed off the list."""
        if range_.queued:
            with self.lock:
                self._ranges.remove(range_)

    def stop(self) -> None:
        """Wait for the worker and let none be queued again: the notifiers go on until the VM's end (xe_svm_close)."""
        if not self.vm.closed:
            self.kernel.warn("xe_svm_close", f"address space {self.vm.asid} still takes faults")
        self.work.disable_sync()

    def _worker(self) -> None:
        vm = self.vm
        vm.lock.down_write()
        try:
            if not (vm.closed or vm.banned):
                with suppress(KernelError):
                    self.collect()
        finally:
            vm.lock.up_write()
