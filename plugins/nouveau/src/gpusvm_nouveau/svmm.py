"""drivers/gpu/drm/nouveau/nouveau_svm.c, as of Linux 7.3.4: the address space of one process on the GPU.

Two notifiers keep it true to the process: a classic one over the whole mm, which clears entries, and a temporary
interval notifier for each group of faults, which only tells the fault that something changed.
"""

import errno
from typing import TYPE_CHECKING

from gpusvm.driver import QueueFaults
from gpusvm.gpu import GpuPageTable
from gpusvm.mm.api import MMU_NOTIFY_EXCLUSIVE, MMU_NOTIFY_MIGRATE, IntervalNotifier, MmApi, MmuNotifierRange

from gpusvm_nouveau.vmm import Vmm

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gpusvm.driver import GpuFault

    from gpusvm_nouveau.device import NouveauDevice

__all__ = ["NouveauSvmm", "SvmNotifier"]


class _Classic:
    """Be the persistent mmu_notifier of an svmm (nouveau_mn_ops): it has no release callback."""

    def __init__(self, start: "Callable[[MmuNotifierRange], int]") -> None:
        self.invalidate_range_start: Callable[[MmuNotifierRange], int] | None = start
        self.invalidate_range_end: Callable[[MmuNotifierRange], None] | None = None
        self.release: Callable[[MmApi], None] | None = None


class NouveauSvmm:
    """Mirror one address space (struct nouveau_svmm with its VMM); it is the Vm of the driver contract."""

    def __init__(self, device: "NouveauDevice", mm: MmApi, *, start: int, end: int, inst: int) -> None:
        memory = device.memory
        self.device = device
        self.memory = device.memory
        self.mm = mm
        self.start = start
        self.end = end
        self.inst = inst
        self.closed = False
        self.mutex = device.kernel.mutex("svmm->mutex")
        self.page_table = GpuPageTable(device.kernel, memory, mm)
        self.vmm = Vmm(device.kernel, self.page_table, device.device.dma, device.tlb, memory.geometry)
        self.source = QueueFaults(device.queues, inst=inst, queue=0)
        self._page_shift = memory.geometry.page_shift
        self._classic = _Classic(self.invalidate_range_start)
        self.memory.mmu_notifier_register(self._classic, mm)
        device.kernel.gauges.inc("notifier")

    @property
    def faults(self) -> "NouveauSvmm":
        """The fault source is the svmm itself: see `submit`."""
        return self

    def submit(self, faults: "Sequence[GpuFault]") -> int:
        """Write faults into the device's one buffer; how many it took.

        What faults was launched by an ioctl, which woke the device; nothing keeps it awake afterwards.
        """
        device = self.device
        if device.pm.asleep:
            with device.pm.ioctl():
                pass
        return self.source.submit(faults)

    def on_replay(self, listener: "Callable[[], None]") -> None:
        """Call `listener` after each replay of the device's buffer."""
        self.source.on_replay(listener)

    def populate(self, start: int, end: int) -> int:
        """Migrate [start, end) with SVM_BIND (nouveau_svmm_bind), results ignored; the bytes moved."""
        return self.device.bind_migrate(self, start, end)

    def close(self) -> None:
        """End the address space (nouveau_svmm_fini). Device pages of the process stay where they are."""
        if self.closed:
            return
        self._drain_faults()
        self.memory.mmu_notifier_unregister(self._classic, self.mm)
        self.device.kernel.gauges.dec("notifier")
        with self.mutex:
            self.closed = True
            self.vmm.unmap(0, 1 << 64 - self._page_shift)
        self.device.forget(self)

    def _drain_faults(self) -> None:
        """Wait for the fault worker: it has looked this address space up under a lock that it no longer holds."""
        self.device.queues.flush()

    def invalidate_range(self, start: int, end: int) -> None:
        """Clear the entries of [start, end), mutex held (nouveau_svmm_invalidate)."""
        if not self.closed:
            shift = self._page_shift
            self.vmm.unmap(start >> shift, (end + (1 << shift) - 1) >> shift)

    def invalidate_range_start(self, range_: MmuNotifierRange) -> int:
        """Clear the GPU's entries of a range (nouveau_svmm_invalidate_range_start); -EAGAIN if that must not sleep.

        What this device migrates itself is skipped: whoever migrates is expected to write the new entries.
        """
        if not range_.blockable:
            return -errno.EAGAIN
        with self.mutex:
            if self.closed or (range_.event == MMU_NOTIFY_MIGRATE and range_.owner is self.device.device):
                return 0
            self.invalidate_range(range_.start, range_.end)
        return 0


class SvmNotifier:
    """Watch the window of one group of faults (struct svm_notifier).

    `task`, if given, is the fault's own: what it invalidates itself while it makes the page exclusive is no change.
    """

    __slots__ = ("svmm", "task")

    def __init__(self, svmm: NouveauSvmm, task: object | None) -> None:
        self.svmm = svmm
        self.task = task

    def invalidate(self, sub: IntervalNotifier, range_: MmuNotifierRange, cur_seq: int) -> bool:
        """Tell the fault in this window that something changed (nouveau_svm_range_invalidate).

        It clears nothing, for the classic notifier is called next. Our own EXCLUSIVE event is no change.
        """
        svmm = self.svmm
        device = svmm.device
        if range_.event == MMU_NOTIFY_EXCLUSIVE and range_.owner is device.device:
            return True
        if self.task is not None and self.task is device.kernel.current:
            return True
        if range_.blockable:
            svmm.mutex.lock()
        elif not svmm.mutex.trylock():
            return False
        svmm.memory.mmu_interval_set_seq(sub, cur_seq)
        svmm.mutex.unlock()
        return True
