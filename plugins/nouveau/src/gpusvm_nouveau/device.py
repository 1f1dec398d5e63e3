"""drivers/gpu/drm/nouveau/nouveau_drm.c and nouveau_svm.c, as of Linux 7.3.4: one GPU as far as SVM needs it."""

import errno
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from gpusvm.driver import DriverInfo, FaultAccounts, FaultQueues, GpuFault, Host, NotifierWindow, RuntimePmPolicy
from gpusvm.drm import DmaDevice, DrmDevice, DrmPagemap
from gpusvm.errors import DriverError, KernelError
from gpusvm.gpu import CopyEngine, Tlb
from gpusvm.mm.api import DevPagemap, MmApi

from gpusvm_nouveau.bind import SvmBind
from gpusvm_nouveau.dmem import NouveauDmem
from gpusvm_nouveau.faults import NouveauPipeline
from gpusvm_nouveau.info import INFO
from gpusvm_nouveau.pm import IoctlPm
from gpusvm_nouveau.svmm import NouveauSvmm, SvmNotifier

if TYPE_CHECKING:
    from gpusvm_nouveau.tunables import NouveauQuirks

__all__ = ["NouveauDevice"]


class NouveauDevice:
    """Drive one GPU (struct nouveau_drm with its nouveau_svm). Its drm_device is the owner of its device pages."""

    info: DriverInfo = INFO
    pm: RuntimePmPolicy
    queues: FaultQueues

    def __init__(self, host: Host) -> None:
        kernel, memory = host.kernel, host.memory
        quirks: NouveauQuirks = host.quirks
        self.host = host
        self.kernel = kernel
        self.memory = memory
        self.quirks = quirks
        name = host.device.name
        self.power = IoctlPm(host, self)
        self.pm = host.strategy("pm", self.power, self.power)
        dma = DmaDevice(kernel, name, iommu=host.device.iommu, page_shift=memory.geometry.page_shift)
        self.device = DrmDevice(kernel, name, pm=self.power.rpm, dma=dma, module=host.module)
        self.accounts = FaultAccounts()
        self.tlb = Tlb(kernel, name)
        self.engine = CopyEngine(kernel, host.link, shape="per_piece", name=name)
        self.dmem = NouveauDmem(host, self)
        self.embedding = self.dmem.pool
        self.bo_mapping = self.dmem.bo_mapping
        self.svm_mutex = kernel.mutex("svm->mutex")
        self.svmms: dict[int, NouveauSvmm] = {}  # by instance: the list of nouveau_ivmm, each channel's
        self._has_svm = True
        self._instances = 0
        self.queues = FaultQueues(
            kernel,
            NouveauPipeline(self),
            workqueue=kernel.workqueue("events"),
            queues=1,
            capacity=host.tunables.fault_entries,
            slice_ms=0,
            guard=self.pm.fault,
        )
        if host.tunables.runpm:
            self.power.rpm.enable()

    def pagemaps(self) -> list[DrmPagemap]:
        """Return one: populate takes a page from any chunk."""
        return [self.dmem.pool.offer(self.device, self._populate)]

    def dev_pagemaps(self) -> list[DevPagemap]:
        """Return one for each chunk."""
        return self.dmem.pool.dev_pagemaps()

    def vm_create(self, mm: MmApi, *, start: int, end: int) -> NouveauSvmm:
        """Mirror `mm` (nouveau_svmm_init)."""
        with self.ioctl():
            self._instances += 1
            svmm = NouveauSvmm(self, mm, start=start, end=end, inst=self._instances)
            with self.svm_mutex:  # nouveau_svmm_join
                self.svmms[svmm.inst] = svmm
            return svmm

    @contextmanager
    def ioctl(self) -> Iterator[None]:
        """Surround an ioctl (nouveau_drm_ioctl, drm_ioctl): the device is awake. ENODEV if it is unplugged.

        As written unplug does not wait for those that have begun (quirk unbind_open).
        """
        with self.pm.ioctl():
            if self.device.unplugged:
                raise KernelError(errno.ENODEV, f"{self.device.name} is unplugged")
            if self.quirks.unbind_open == "as_written":
                yield
                return
            cookie = self.device.dev_enter()
            try:
                yield
            finally:
                self.device.dev_exit(cookie)

    def shutdown(self) -> None:
        """Remove the device (nouveau_drm_device_remove, nouveau_drm_device_fini): it is awake for that.

        What is on it comes home while its faults are still served. Clients of files that are open end here, and their
        closing does nothing any more (nouveau_drm_postclose).
        """
        self.device.unplug()
        with self.pm.ioctl():
            self.power.rpm.disable()
            self.dmem.pool.withdraw()
            self.dmem.fini()
            if self.quirks.unbind_open == "as_written":
                self._svm_fini()
                self._clients_fini()
            else:
                self._clients_fini()
                self._svm_fini()
        self.device.put()

    def _svm_fini(self) -> None:
        """Take the fault handler down (nouveau_svm_fini)."""
        self.queues.stop()
        for _ in self.queues.buffers[0].drain():  # raised in an address space that was being closed
            self.power.fault_answered()
        self._has_svm = False

    def _clients_fini(self) -> None:
        """End the clients of files that are open, channels first (nouveau_abi16_fini, nouveau_cli_fini)."""
        for svmm in list(self.svmms.values()):
            svmm.fini()

    def describe(self) -> Mapping[str, Any]:
        """Return chunks, free lists, address spaces, and copies that woke nobody."""
        pool = self.dmem.pool
        return {
            "chunks": len(pool.chunks),
            "free_pages": len(pool.free_pages),
            "free_folios": len(pool.free_folios),
            "allocations": sum(chunk.callocated for chunk in pool.chunks),
            "svmms": len(self.svmms),
            "sleeping_copies": self.power.sleeping_copies,
        }

    def find(self, faults: Sequence[GpuFault]) -> dict[int, NouveauSvmm | None]:
        """Look up the address space of each instance that faulted (nouveau_ivmm_find)."""
        with self.svm_mutex:
            return {fault.inst: self.svmms.get(fault.inst) for fault in faults}

    def part(self, svmm: NouveauSvmm) -> None:
        """Take the channel of an address space off the list, so that no batch finds it (nouveau_svmm_part)."""
        if not self._has_svm:
            raise DriverError(
                "nouveau_svmm_part",
                f"drm->svm of {self.device.name} is NULL when instance {svmm.inst} leaves",
            )
        with self.svm_mutex:
            del self.svmms[svmm.inst]

    def bind_migrate(self, svmm: NouveauSvmm, args: SvmBind) -> int:
        """Do DRM_IOCTL_NOUVEAU_SVM_BIND (nouveau_svmm_bind): 0, whatever moved.

        EINVAL for anything but migrating to VRAM, or if the address space is gone; ENODEV.
        """
        mm = svmm.mm
        with self.ioctl():
            page_size = self.memory.geometry.page_size
            start, end = args.va_start & -page_size, -(-args.va_end // page_size) * page_size
            args.check(start, end)
            if svmm.closed or not mm.mmget_not_zero():
                raise KernelError(errno.EINVAL, f"{mm.name} has no address space on {self.device.name}")
            try:
                # Before mmap_lock: the first interval notifier of an address space is inserted with it held for write.
                window = self._window(svmm, start, end)
                try:
                    mm.mmap_lock.down_read()
                    try:
                        self._migrate_vmas(svmm, mm, start, end, best_effort=True, window=window)
                    finally:
                        mm.mmap_lock.up_read()
                finally:
                    if window is not None:
                        window.close()
            finally:
                mm.mmput()
        return 0

    def _window(self, svmm: NouveauSvmm, start: int, end: int) -> NotifierWindow | None:
        """Open what tells a migration of what others invalidate; as written there is none (quirk migrate_seq)."""
        if self.quirks.migrate_seq == "as_written" or start >= end:
            return None
        ops = SvmNotifier(svmm, self.kernel.current)
        return NotifierWindow.open(self.memory, svmm.mm, start=start, end=end, ops=ops, lock=svmm.mutex)

    def _migrate_vmas(
        self,
        svmm: NouveauSvmm | None,
        mm: MmApi,
        start: int,
        end: int,
        *,
        best_effort: bool,
        window: NotifierWindow | None = None,
    ) -> None:
        addr = start
        while addr < end and (vma := mm.find_vma_intersection(addr, end)) is not None:
            addr = max(addr, vma.start)
            until = min(vma.end, end)
            try:
                self.dmem.migrate_vma(svmm, vma, addr, until, mm=mm, window=window)
            except KernelError:
                if not best_effort:
                    raise
            addr = until

    def _populate(self, start: int, end: int, mm: MmApi) -> None:
        """Populate for whoever calls populate_mm, mmap_lock held; ENODEV, or what migrate_vma_setup raises."""
        cookie = self.device.dev_enter()
        try:
            with self.pm.populate():
                svmm = next((each for each in self.svmms.values() if each.mm is mm and not each.closing), None)
                if svmm is not None:
                    svmm.fget()
                try:
                    self._migrate_vmas(svmm, mm, start, end, best_effort=False)
                finally:
                    if svmm is not None:
                        svmm.fput()
        finally:
            self.device.dev_exit(cookie)
