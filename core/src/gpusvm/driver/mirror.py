"""Mirror a process with a `GpuSvm`, as the examples in drivers/gpu/drm/drm_gpusvm.c (Linux 7.3.4) do: what drivers that
work range by range would else copy from each other.

A driver derives from `RangeVm` and writes `map`, its own page-table format; with device memory of its own, also
`preferred_pagemap`.
"""

import errno
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar, Final

from gpusvm.driver.fault import ACCESS_PREFETCH, FaultAccounts
from gpusvm.driver.pipeline import FaultJob, FaultPipeline, Restart
from gpusvm.driver.source import FaultQueues, QueueFaults
from gpusvm.drm import SCAN_EQUAL, DrmDevice, DrmPagemap, GpuSvm, GpuSvmCtx, GpuSvmNotifier, GpuSvmRange
from gpusvm.errors import KernelError
from gpusvm.gpu import NEED_OF_OP, READ, GpuPageTable, Tlb
from gpusvm.mm.api import MMU_NOTIFY_UNMAP, DevPagemap, MmApi, MmuNotifierRange, Pfns

if TYPE_CHECKING:
    from gpusvm.driver.contract import Host
    from gpusvm.driver.protocols import FaultPolicy
    from gpusvm.driver.unit import RangeUnit

__all__ = ["NoDeviceMemory", "RangeFaults", "RangeVm"]

_IN_NOTIFIER: Final = GpuSvmCtx(in_notifier=True)


class RangeVm:
    """Be a Vm of ranges, and its own `GpuSvmOps`. `lock` is held while a fault or a request of it is served.

    `ctx` says how ranges are made and pages got; ranges have `chunk_sizes`, and notifiers cover `notifier_size` bytes.
    Its faults go to buffer 0 of `queues`, marked with `inst`.
    """

    range_alloc = None
    range_free = None
    notifier_alloc = None
    notifier_free = None

    def __init__(
        self,
        host: "Host",
        device: DrmDevice,
        mm: MmApi,
        *,
        start: int,
        end: int,
        inst: int,
        queues: FaultQueues,
        chunk_sizes: tuple[int, ...],
        ctx: GpuSvmCtx | None = None,
        notifier_size: int = 512 << 20,
    ) -> None:
        kernel = self.kernel = host.kernel
        memory = self.memory = host.memory
        self.device = device
        self.mm = mm
        self.start = start
        self.end = end
        self.inst = inst
        self.ctx = ctx or GpuSvmCtx()
        self.closed = False
        self.lock = kernel.mutex(f"{host.module.name if host.module else 'driver'}_vm_lock")
        self.page_table = GpuPageTable(kernel, memory, mm)
        self.tlb = Tlb(kernel, device.name)
        self.faults = QueueFaults(queues, inst=inst, queue=0)
        self.garbage: list[GpuSvmRange] = []
        self.page_shift = memory.geometry.page_shift
        self._queues = queues
        self.gpusvm = GpuSvm(
            kernel,
            memory,
            f"{device.name} svm",
            mm,
            drm=device,
            mm_start=start,
            mm_range=end - start,
            notifier_size=notifier_size,
            ops=self,
            chunk_sizes=chunk_sizes,
        )
        self.gpusvm.driver_set_lock(self.lock)

    def map(self, unit: "RangeUnit") -> None:
        """Write the page table from what get_pages found, as driver_bind_range there does. The notifier lock is held,
        and the pages are valid.
        """
        raise NotImplementedError

    def write(self, unit: "RangeUnit") -> None:
        """Do so, and name the culprit where HMM as written gave a write permission that the process has not (MM-S2)."""
        self.map(unit)
        pages = unit.range.pages
        if pages.has_devmem_pages and pages.protected is not None:
            vpn = unit.start >> self.page_shift
            for page in pages.protected.tolist():
                self.page_table.mark_stale(vpn + page, vpn + page + 1, "mm_s2")

    def is_mapped(self, unit: "RangeUnit", access: int) -> bool:
        """Tell whether a fault on a range is served already: all of it is mapped for such an access."""
        need = READ if access == ACCESS_PREFETCH else int(NEED_OF_OP[access])
        perms = self.page_table.perms(unit.start >> self.page_shift, unit.end >> self.page_shift)
        return bool(((perms & need) == need).all())

    def zap(self, start: int, end: int) -> None:
        """Clear the page table of [start, end), and flush what the GPU may have cached of it."""
        if self.page_table.unmap(start >> self.page_shift, end >> self.page_shift):
            self.tlb.invalidate(start, end)

    def invalidate(self, gpusvm: GpuSvm, notifier: GpuSvmNotifier, mmu_range: MmuNotifierRange) -> None:
        """Forget what the CPU is about to change, as driver_invalidation there does. The notifier lock is held for
        writing, so that no bind is under way.
        """
        start, end = max(mmu_range.start, notifier.start), min(mmu_range.end, notifier.end)
        for range_ in list(notifier.ranges(start, end)):
            self.zap(range_.start, range_.end)
            gpusvm.range_unmap_pages(range_, _IN_NOTIFIER)
            if mmu_range.event == MMU_NOTIFY_UNMAP and not range_.unmapped:
                gpusvm.range_set_unmapped(range_, mmu_range)
                self.garbage.append(range_)  # no notifier may remove a range: the next fault does

    def collect_garbage(self) -> None:
        """Remove the ranges whose memory was unmapped, as driver_garbage_collector there does. The lock is held.

        What is left of one that lost a part comes home first, so that smaller ranges can take its place.
        """
        while self.garbage:
            range_ = self.garbage.pop()
            if range_.partial_unmap and not self.closed:
                with suppress(KernelError):  # what is busy stays where it is; its new ranges find it there
                    self.gpusvm.range_evict(range_)
            self.gpusvm.range_remove(range_)

    def drop(self, range_: GpuSvmRange) -> None:
        """Remove a range, so that the next fault makes one within the areas as they are now. The lock is held."""
        self.zap(range_.start, range_.end)
        self.gpusvm.range_remove(range_)
        self.garbage = [each for each in self.garbage if each is not range_]  # no notifier finds it any more

    def populate(self, start: int, end: int) -> int:
        """Migrate [start, end) on the program's request, range by range; the bytes that moved. What cannot move stays.

        EOPNOTSUPP without device memory; else what range_find_or_insert raises.
        """
        pagemap = self.preferred_pagemap()
        if pagemap is None:
            raise KernelError(errno.EOPNOTSUPP, f"{self.device.name} has no memory to migrate to")
        before = self.kernel.stats.migrated_to_device_bytes
        with self.lock:
            self.collect_garbage()
            while start < end:
                range_ = self.gpusvm.range_find_or_insert(start, self.start, self.end, self.ctx)
                if range_.migrate_devmem:
                    try:
                        pagemap.populate_mm(range_.start, range_.end, self.mm, 0)
                    except KernelError as error:
                        if error.errno == errno.ENODEV:
                            raise
                start = range_.end
        return self.kernel.stats.migrated_to_device_bytes - before

    def preferred_pagemap(self) -> DrmPagemap | None:
        """Return where a fault and `populate` bring memory; None: the device has none of its own."""
        return None

    def close(self) -> None:
        """End the address space, after the last fault. Again: nothing."""
        self._queues.flush()
        with self.lock:
            if self.closed:
                return
            self.closed = True
            self.zap(self.start, self.end)
            self.garbage.clear()
            for range_ in self.gpusvm.every_range():
                self.gpusvm.range_remove(range_)
            self.gpusvm.fini()
        self.page_table.retire()


class RangeFaults(FaultPipeline):
    """Serve faults one by one, each under the lock of its address space, which `vms` has by its number.

    After `rounds` attempts the error of get_pages is the answer: a part of the range may be out of bounds for good.
    """

    rounds: ClassVar[int] = 3

    def __init__(
        self,
        host: "Host",
        vms: Mapping[int, RangeVm],
        accounts: FaultAccounts,
        *,
        policy: "FaultPolicy | None" = None,
    ) -> None:
        super().__init__(host.kernel, accounts, policy=policy)
        self.vms = vms

    def begin(self, job: FaultJob) -> bool:
        """Find the address space of the fault and lock it; EINVAL if it is closed."""
        vm = self.vms.get(job.fault.inst)
        if vm is None:
            raise KernelError(errno.EINVAL, f"no address space {job.fault.inst}")
        vm.lock.lock()
        job.vm = vm
        if vm.closed:
            raise KernelError(errno.EINVAL, f"address space {vm.inst} is closed")
        return True

    def end(self, job: FaultJob) -> None:
        """Unlock what `begin` locked."""
        if job.vm is not None:
            job.vm.lock.unlock()

    def collect_garbage(self, job: FaultJob) -> bool:
        """Remove ranges whose memory went away, before the lookup could find them."""
        job.vm.collect_garbage()
        return True

    def get_pages(self, job: FaultJob) -> bool:
        """Get the pages, in another round if that fails, as often as there are `rounds`.

        A range of which a part has lost a right makes room for a smaller one.
        """
        try:
            return super().get_pages(job)
        except Restart as restart:
            error = restart.__cause__
            job.tries += 1
            if isinstance(error, KernelError):
                if job.tries >= self.rounds:
                    raise error from None
                if error.errno in {errno.EFAULT, errno.EPERM}:
                    job.vm.drop(job.unit.range)
            raise

    def bind(self, job: FaultJob) -> bool:
        """Write the GPU's page table, unless the range was invalidated since its pages were read."""
        if not job.unit.commit(lambda: job.vm.write(job.unit)):
            raise Restart
        return True

    def place(self, job: FaultJob) -> DrmPagemap | None:
        """Choose what the policy says, else the pagemap that the address space prefers, unless all of the range is
        there.
        """
        vm, range_ = job.vm, job.unit.range
        if not range_.migrate_devmem:
            return None
        if self.policy is not None:
            return super().place(job)
        pagemap: DrmPagemap | None = vm.preferred_pagemap()
        if pagemap is None or vm.gpusvm.scan_mm(range_, pagemap.pagemap.owner, pagemap.pagemap) == SCAN_EQUAL:
            return None
        return pagemap


class NoDeviceMemory:
    """Be the `PagemapEmbedding` and the `BoMapping` of a driver that has neither; nothing calls them for a page."""

    def container_of(self, pgmap: DevPagemap) -> Any:
        raise KernelError(errno.EINVAL, "there is no pagemap")

    def dev_pagemaps(self) -> list[DevPagemap]:
        return []

    def pagemap_of(self, pgmap: DevPagemap) -> DrmPagemap | None:
        return None

    def attach(self, bo: Any, pfns: Pfns) -> None: ...

    def bo_of(self, pfn: int) -> Any:
        raise KernelError(errno.EINVAL, "there are no buffer objects")

    def split(self, head: int, tail: int) -> None: ...

    def free(self, pfn: int, order: int) -> None: ...
