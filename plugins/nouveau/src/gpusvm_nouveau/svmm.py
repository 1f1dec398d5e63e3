"""drivers/gpu/drm/nouveau/nouveau_svm.c, as of Linux 7.3.4: the address space of one process on the GPU.

Two notifiers keep it true to the process: a classic one over the whole mm, which clears entries, and a temporary
interval notifier for each group of faults, which only tells the fault that something changed.
"""

import errno
from typing import TYPE_CHECKING, ClassVar

from gpusvm.driver import QueueFaults
from gpusvm.errors import KernelError
from gpusvm.gpu import GpuPageTable
from gpusvm.kernel import Kref
from gpusvm.mm.api import MMU_NOTIFY_EXCLUSIVE, MMU_NOTIFY_MIGRATE, IntervalNotifier, MmApi, MmuNotifierRange

from gpusvm_nouveau.bind import SvmBind
from gpusvm_nouveau.vmm import Vmm

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gpusvm.driver import GpuFault

    from gpusvm_nouveau.device import NouveauDevice

__all__ = ["NouveauSvmm", "SvmNotifier"]


class _Classic:
    """Be the persistent mmu_notifier of an svmm (nouveau_mn_ops).

    In the kernel it has no release callback; here that is what the quirk `no_release` is about.
    """

    def __init__(self, start: "Callable[[MmuNotifierRange], int]", release: "Callable[[MmApi], None]") -> None:
        self.invalidate_range_start: Callable[[MmuNotifierRange], int] | None = start
        self.invalidate_range_end: Callable[[MmuNotifierRange], None] | None = None
        self.release: Callable[[MmApi], None] | None = release


class NouveauFaults(QueueFaults):
    """Bring the faults of one instance to the device's buffer."""

    def __init__(self, device: "NouveauDevice", inst: int) -> None:
        super().__init__(device.queues, inst=inst, queue=0)
        self._device = device

    def submit(self, faults: "Sequence[GpuFault]") -> int:
        """Write faults into the device's one buffer; how many it took."""
        pm = self._device.power
        for _ in faults:
            pm.fault_raised()
        taken = super().submit(faults)
        for _ in faults[taken:]:
            pm.fault_answered()
        return taken


class NouveauSvmm:
    """Mirror one address space (struct nouveau_svmm with its VMM); it is the Vm of the driver contract.

    The file holds it, and with the quirk `freed_svmm` fixed every device page that was migrated for it.
    """

    outlives: ClassVar = frozenset({"_open", "close", "closed", "faults", "fget", "page_table", "populate"})
    """What belongs to the program's handle and to its GPU, and so is there when the svmm is gone."""

    def __init__(self, device: "NouveauDevice", mm: MmApi, *, start: int, end: int, inst: int) -> None:
        memory = device.memory
        self.device = device
        self.memory = device.memory
        self.mm = mm
        self.start = start
        self.end = end
        self.inst = inst
        self.closed = False
        self._open = True
        self._users = 1  # the descriptor, and each ioctl that runs
        self._kref = Kref(device.kernel, "svmm", self._free, holder="file")
        self._pages_hold = device.quirks.freed_svmm == "fixed"
        self.mutex = device.kernel.mutex("svmm->mutex")
        self.page_table = GpuPageTable(device.kernel, memory, mm)
        self.vmm = Vmm(device.kernel, self.page_table, device.device.dma, device.tlb, memory.geometry)
        self.faults = NouveauFaults(device, inst)
        self._page_shift = memory.geometry.page_shift
        self._classic = _Classic(self.invalidate_range_start, self.release)
        self.memory.mmu_notifier_register(self._classic, mm)
        device.kernel.gauges.inc("notifier")

    def populate(self, start: int, end: int) -> int:
        """Migrate [start, end) with SVM_BIND, which answers 0 whatever moved; the bytes moved."""
        stats = self.device.kernel.stats
        before = stats.migrated_to_device_bytes
        self.bind(SvmBind(va_start=start, va_end=end))
        return stats.migrated_to_device_bytes - before

    def bind(self, args: SvmBind) -> int:
        """Do the ioctl SVM_BIND: 0. EINVAL for a request that is not known or after `close`; ENODEV after removal."""
        self.fget()
        try:
            return self.device.bind_migrate(self, args)
        finally:
            self.fput()

    def close(self) -> None:
        """Close the file; the address space ends as soon as no ioctl of it runs."""
        if self._open:
            self._open = False
            self.fput()

    @property
    def closing(self) -> bool:
        """Tell whether the file is closed, though an ioctl may still run."""
        return not self._open

    def fget(self) -> None:
        """Hold the file for the time of an ioctl. EINVAL if it is closed."""
        if not self._open:
            raise KernelError(errno.EINVAL, "the address space is closed")
        self._users += 1

    def fput(self) -> None:
        """Let go of it; the last ends the address space."""
        self._users -= 1
        if not self._users:
            self._postclose()

    def _postclose(self) -> None:
        """End with the file, the device awake; once that is unplugged, the removal does so (nouveau_drm_postclose)."""
        drm = self.device.device
        try:
            cookie = drm.dev_enter()
        except KernelError:
            return
        try:
            with self.device.pm.ioctl():
                self.fini()
        finally:
            drm.dev_exit(cookie)

    def fini(self) -> None:
        """End the channels, then the address space (nouveau_abi16_fini, nouveau_svmm_fini).

        Device pages of the process stay where they are.
        """
        self.page_table.retire()
        self.device.part(self)
        self._drain_faults()
        with self.mutex:
            self.closed = True
        self.memory.mmu_notifier_unregister(self._classic, self.mm)
        self.device.kernel.gauges.dec("notifier")
        self.vmm.unmap(0, 1 << 64 - self._page_shift)  # nvif_vmm_dtor
        self._open = False
        self._kref.put("file")

    def get(self, holder: str) -> None:
        """Keep the svmm while somebody works on it."""
        self._kref.get(holder)

    def put(self, holder: str) -> None:
        """Let go of it."""
        self._kref.put(holder)

    def get_pages(self, n: int) -> None:
        """Note that `n` folios of device memory name the svmm; as written nobody holds it for them."""
        if self._pages_hold:
            self._kref.get("page", n)

    def put_pages(self, n: int) -> None:
        """Note that they are free."""
        if self._pages_hold:
            self._kref.put("page", n)

    def _free(self) -> None:
        self.device.kernel.free(self, self.mutex, self._classic, self.vmm)

    def _drain_faults(self) -> None:
        """Wait for the fault worker: it has looked this address space up under a lock that it no longer holds."""
        self.device.queues.flush()

    def invalidate_range(self, start: int, end: int) -> None:
        """Clear the entries of [start, end), mutex held (nouveau_svmm_invalidate)."""
        if not self.closed:
            shift = self._page_shift
            self.vmm.unmap(start >> shift, (end + (1 << shift) - 1) >> shift)

    def release(self, mm: MmApi) -> None:
        """Let go of an address space that ends: from here on nobody is told any more what is unmapped of it.

        As written nothing happens, and until the file is closed the GPU reaches pages that have been freed.
        """
        with self.mutex:
            if self.device.quirks.no_release == "fixed":
                self.invalidate_range(self.start, self.end)
            else:
                self.page_table.mark_stale(0, 1 << 64 - self._page_shift, "no_release")

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
