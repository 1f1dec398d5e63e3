"""drivers/gpu/drm/amd/amdkfd/kfd_process.c, as of Linux 7.3.4: a process on all GPUs, and on each of them.

It lives as long as the process's memory, whatever becomes of the file: closing that takes away the GPU's page table,
and leaves ranges and notifiers, by which CPU faults find their way (kfd_release).
"""

from errno import EAGAIN
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from gpusvm.driver import QueueFaults
from gpusvm.errors import KernelError
from gpusvm.gpu import GpuPageTable, Tlb
from gpusvm.kernel import Kref, Work

from gpusvm_kfd.attributes import Access, Attributes, set_attributes
from gpusvm_kfd.queues import UserQueues
from gpusvm_kfd.svm_range import SYSTEM, UNDEFINED
from gpusvm_kfd.svms import SvmRangeList

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy.typing as npt
    from gpusvm.mm.api import MmApi, MmuNotifierRange, Pfns

    from gpusvm_kfd.device import KfdDevice
    from gpusvm_kfd.module import Kfd

__all__ = ["KfdFile", "KfdProcess", "ProcessDevice"]


class ProcessDevice:
    """Be a process on one GPU (struct kfd_process_device): its page table, from the first open on."""

    def __init__(self, process: "KfdProcess", device: "KfdDevice", pasid: int) -> None:
        self.process = process
        self.device = device
        self.gpu = device.number
        self.pasid = pasid
        self.files = 0
        self.dma = device.dma
        self.page_table = GpuPageTable(device.kernel, device.memory, process.mm)
        if process.queues.stopped:
            self.page_table.stop()
        self.tlb = Tlb(device.kernel, device.device.name)
        self.source = QueueFaults(device.queues, inst=pasid, queue=0)

    def map_pages(self, vpn: int, pfns: "Pfns", perms: "npt.NDArray[np.uint8]", *, entries: int) -> None:
        """Write entries (svm_range_map_to_gpu); no entry was valid before, so no TLB has to forget one."""
        kernel = self.device.kernel
        kernel.charge("bind_base")
        kernel.charge("bind_per_pte", entries)
        if self.files:
            self.page_table.map_pages(vpn, pfns, perms)

    def unmap(self, start: int, end: int) -> None:
        """Clear entries, wait until they are, and flush the TLB of the pasid (svm_range_unmap_from_gpu)."""
        self.device.kernel.charge("bind_base")
        self.page_table.unmap(start, end)
        self.tlb.invalidate_all()

    def clear(self) -> None:
        """Leave the GPU nothing: its queues are gone."""
        self.page_table.unmap(0, 1 << 64 - self.device.page_shift)


class KfdProcess:
    """Be a process (struct kfd_process); it is the mmu_notifier that hears of the end of the process's memory."""

    def __init__(self, kfd: "Kfd", mm: "MmApi") -> None:
        self.kfd = kfd
        self.kernel = kfd.kernel
        self.memory = kfd.memory
        self.mm = mm
        self.xnack = kfd.tunables.xnack == "on"
        self.pdds: dict[int, ProcessDevice] = {}
        self.supported = 0
        self.faulting_task: object | None = None
        self.info_lock = self.kernel.mutex("process_info->lock")
        self.queues = UserQueues(self)
        self.svms = SvmRangeList(self)
        self.kref = Kref(self.kernel, "kfd_process", self._released, holder="mm")
        self._release_work = Work(self._release, "kfd_process_wq_release")
        self._ended = False
        self.invalidate_range_start: Callable[[MmuNotifierRange], int] | None = None
        self.invalidate_range_end: Callable[[MmuNotifierRange], None] | None = None
        self.release: Callable[[MmApi], None] | None = self._release_mm

    def device(self, device: "KfdDevice") -> ProcessDevice:
        """Return the process on one GPU, where it keeps the GPU awake from now on (kfd_bind_process_to_device)."""
        pdd = self.pdds.get(device.number)
        if pdd is None:
            device.pm.process_came()
            pdd = self.pdds[device.number] = ProcessDevice(self, device, self.kfd.new_pasid())
            self.supported |= 1 << device.number
            device.pdds[pdd.pasid] = pdd
        return pdd

    def leave(self, pdd: ProcessDevice) -> None:
        """Take the process off one GPU, which goes: its memory there comes home, and no range knows of it any more.

        With the last GPU the process ends. One whose memory is going ends by itself, and is left alone.
        """
        mm = self.mm
        gpu = pdd.gpu
        if not mm.mmget_not_zero():
            self.kernel.cpu_relax()
            return
        self.supported &= ~(1 << gpu)
        with self.info_lock:
            self.svms.lock_and_flush_work(mm)
            mm.mmap_lock.downgrade_write()
            with self.svms.lock:
                self.svms.forget_gpu(gpu, mm)
            mm.mmap_lock.up_read()
            if len(self.pdds) == 1:
                self.svms.lock_and_flush_work(mm)
                self.svms.remove_all()
                mm.mmap_lock.up_write()
        mm.mmput()
        del self.pdds[gpu]
        self._destroy_pdd(pdd)
        if not self.pdds:
            self._release_mm(mm)

    def _destroy_pdd(self, pdd: ProcessDevice) -> None:
        """End the process on one GPU (kfd_process_destroy_pdds)."""
        pdd.clear()
        del pdd.device.pdds[pdd.pasid]
        pdd.device.pm.process_went()

    def _release_mm(self, mm: "MmApi") -> None:
        """Take the queues off the GPUs, before the memory goes (kfd_process_notifier_release)."""
        if self._ended:
            return
        self._ended = True
        self.kfd.unlist(self)
        for pdd in self.pdds.values():
            pdd.clear()
        self.put("mm")

    def put(self, holder: str) -> None:
        """Drop a reference; a worker ends the process after the last (kfd_unref_process)."""
        self.kref.put(holder)

    def _released(self) -> None:
        self.kfd.process_queue.queue(self._release_work)

    def _release(self) -> None:
        """Free ranges and page tables (kfd_process_wq_release)."""
        self.memory.mmu_notifier_unregister(self, self.mm)
        self.kernel.gauges.dec("notifier")
        self.queues.end()
        self.svms.fini()
        for pdd in self.pdds.values():
            self._destroy_pdd(pdd)
        self.kernel.free(self, self.info_lock, self.queues.restore_work, self._release_work)


class KfdFile:
    """Be one open file with its process on one GPU; it is the Vm of the driver contract."""

    outlives: ClassVar = frozenset({"closed", "close", "faults", "mm", "page_table", "populate", "set_attr"})

    def __init__(self, pdd: ProcessDevice) -> None:
        self.pdd = pdd
        self.process = pdd.process
        self.mm = pdd.process.mm
        self.page_table = pdd.page_table
        self.faults = pdd.source
        self.closed = False
        pdd.files += 1

    def populate(self, start: int, end: int) -> int:
        """Prefetch [start, end) to this GPU; the bytes that moved. What cannot move stays, and is mapped where it is.

        EFAULT: there is no area everywhere. EINVAL: closed, or the process is ending. ENOMEM: no memory to map it.
        """
        kernel = self.pdd.device.kernel
        stats = kernel.stats
        before = stats.migrated_to_device_bytes
        while True:
            try:
                self.set_attr(start, end, prefetch_loc=self.pdd.gpu)
                break
            except KernelError as error:
                if error.errno != EAGAIN:
                    raise
                # libhsakmt.c:kmtIoctl of ROCR-Runtime, through which programs call, does so.
                kernel.retried(by_chance=True)
                kernel.cond_resched()
                kernel.give_way()
        return stats.migrated_to_device_bytes - before

    def set_attr(
        self,
        start: int,
        end: int,
        *,
        preferred_loc: int | str | None = None,
        prefetch_loc: int | str | None = None,
        access: "Mapping[int, Access] | None" = None,
        set_flags: int = 0,
        clear_flags: int = 0,
        granularity: int | None = None,
    ) -> None:
        """Set attributes of [start, end) (AMDKFD_IOC_SVM); of None nothing is said.

        A location is the number of a GPU, "system" or "undefined"; `access` says so by GPU; `granularity` is the log2
        of pages. EINVAL: an unknown GPU, no addresses, a closed file. EAGAIN: it was invalidated
        while it was mapped. Else as `populate`.
        """
        attributes = Attributes(
            preferred_loc=_location(preferred_loc),
            prefetch_loc=_location(prefetch_loc),
            access=access or {},
            set_flags=set_flags,
            clear_flags=clear_flags,
            granularity=granularity,
        )
        set_attributes(self, start, end, attributes)

    def close(self) -> None:
        """Close the file; the GPU has nothing from the last one on. The memory stays where it is (kfd_release)."""
        if self.closed:
            return
        self.closed = True
        pdd = self.pdd
        pdd.files -= 1
        if not pdd.files:
            pdd.clear()
            pdd.device.faults.forget(pdd)
        self.process.put("file")


def _location(location: int | str | None) -> int | None:
    if location is None or isinstance(location, int):
        return None if location is None else location + 1
    return {"system": SYSTEM, "undefined": UNDEFINED}[location]
