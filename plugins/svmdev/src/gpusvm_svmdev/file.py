"""One open svmdev file: the `GpuSvm` of the process that opened it, with the callback and the collector it needs."""

from typing import TYPE_CHECKING, Protocol

import numpy as np
from gpusvm.driver import ACCESS_PREFETCH, ACCESS_READ, CallerFaults, GpuFault
from gpusvm.drm import (
    DMA_BIDIRECTIONAL,
    DRM_INTERCONNECT_SYSTEM,
    GpuSvm,
    GpuSvmCtx,
    GpuSvmNotifier,
    GpuSvmRange,
)
from gpusvm.errors import KernelError
from gpusvm.gpu import ATOMIC, NEED_OF_OP, READ, REMOTE, WRITE, GpuPageTable
from gpusvm.mm.api import MMU_NOTIFY_UNMAP, MmApi, MmuNotifierRange

from gpusvm_svmdev.commands import SvmdevCommands

if TYPE_CHECKING:
    from gpusvm.drm import DrmPagemap

    from gpusvm_svmdev.device import Svmdev

__all__ = ["FileLog", "SvmdevFile"]

_IN_NOTIFIER = GpuSvmCtx(in_notifier=True)
_NO_FLAGS = GpuSvmCtx()


class FileLog(Protocol):
    """Take what happens to a file behind the back of whoever uses it, as the recorded module writes it down."""

    def invalidated(self, notifier: GpuSvmNotifier, mmu_range: MmuNotifierRange) -> None:
        """Note one invalidate callback, before its ranges are unmapped."""

    def collected(self, range_: GpuSvmRange, errno: int) -> None:
        """Note a range that the garbage collector removes; `errno` of the eviction of one that is unmapped in part."""


class SvmdevFile:
    """Mirror one address space (struct svmdev_file): it is the Vm of the driver contract, and its own `GpuSvmOps`.

    A device access looks into the addresses of its range, and there is no other page table: `page_table` is that view,
    page by page. `lock` is held while a command or a fault is served; `gc` are the ranges whose memory was unmapped, in
    order. `log`, if there is one, is told of callbacks and collections.
    """

    range_alloc = None
    range_free = None
    notifier_alloc = None
    notifier_free = None

    def __init__(self, device: "Svmdev", mm: MmApi, *, start: int, end: int, inst: int) -> None:
        kernel, memory, tunables = device.kernel, device.memory, device.tunables
        self.device = device
        self.memory = memory
        self.mm = mm
        self.start = start
        self.end = end
        self.inst = inst
        self.closed = False
        self.lock = kernel.mutex("svmdev_file->lock")
        self.gclock = kernel.spinlock("svmdev_file->gclock")
        self.gc: dict[GpuSvmRange, None] = {}
        self.log: FileLog | None = None
        self.held: DrmPagemap | None = None
        self.page_table = GpuPageTable(kernel, memory, mm)
        self.faults = CallerFaults(device.pipeline, inst=inst)
        self.svm = GpuSvm(
            kernel,
            memory,
            f"{device.device.name} svmdev",
            mm,
            drm=device.device,
            mm_start=start,
            mm_range=end - start,
            notifier_size=tunables.notifier_size,
            ops=self,
            chunk_sizes=tunables.chunk_sizes,
        )
        self.svm.driver_set_lock(self.lock)
        self.commands = SvmdevCommands(self)
        self._page_shift = memory.geometry.page_shift

    def find(self, addr: int) -> GpuSvmRange | None:
        """Return the range that has `addr`."""
        return self.svm.range_find(addr, addr + 1)

    # ---- when the CPU's side changes -----------------------------------------------------------------------------

    def invalidate(self, gpusvm: GpuSvm, notifier: GpuSvmNotifier, mmu_range: MmuNotifierRange) -> None:
        """Unmap every range in a window, and leave those whose memory goes to the collector: no notifier may remove
        one. The notifier lock is held for writing.
        """
        if self.log is not None:
            self.log.invalidated(notifier, mmu_range)
        start, end = max(notifier.start, mmu_range.start), min(notifier.end, mmu_range.end)
        for range_ in notifier.ranges(start, end):
            self._unmap(range_, _IN_NOTIFIER)
            if mmu_range.event == MMU_NOTIFY_UNMAP:
                gpusvm.range_set_unmapped(range_, mmu_range)
                with self.gclock:
                    self.gc.setdefault(range_)

    def collect(self) -> None:
        """Remove the ranges whose memory was unmapped; the rest of one that lost a part comes home before. Locked."""
        while True:
            with self.gclock:
                range_ = next(iter(self.gc), None)
            if range_ is None:
                return
            errno = 0
            if range_.partial_unmap:
                try:
                    self.svm.range_evict(range_)
                except KernelError as error:
                    errno = error.errno
            if self.log is not None:
                self.log.collected(range_, errno)
            self.drop(range_)

    def drop(self, range_: GpuSvmRange) -> None:
        """Remove a range. Locked. Until it is off its notifier a munmap may leave it to the collector once more."""
        range_.get()
        self._unmap(range_, _NO_FLAGS)
        self.svm.range_remove(range_)
        with self.gclock:
            self.gc.pop(range_, None)
        range_.put()

    def _unmap(self, range_: GpuSvmRange, ctx: GpuSvmCtx) -> None:
        self.page_table.unmap(range_.start >> self._page_shift, range_.end >> self._page_shift)
        self.svm.range_unmap_pages(range_, ctx)

    def release(self) -> None:
        """Let go of the pagemap that the file holds, if it does. Locked."""
        held, self.held = self.held, None
        if held is not None:
            held.put("file")

    # ---- what the device reaches ---------------------------------------------------------------------------------

    def is_mapped(self, fault: GpuFault) -> bool:
        """Tell whether a fault is served already."""
        vpn = fault.addr >> self._page_shift
        access = ACCESS_READ if fault.access == ACCESS_PREFETCH else fault.access
        need = int(NEED_OF_OP[access])
        return int(self.page_table.perms(vpn, vpn + 1)[0]) & need == need

    def map(self, range_: GpuSvmRange) -> None:
        """Let the device access what get_pages found. The notifier lock is held, and the pages are valid."""
        pages = range_.pages
        addrs = pages.dma_addr
        assert addrs is not None
        vpn = range_.start >> self._page_shift
        perm = READ | WRITE | ATOMIC if addrs.direction == DMA_BIDIRECTIONAL else READ
        remote = np.where(addrs.proto == DRM_INTERCONNECT_SYSTEM, np.uint8(REMOTE), np.uint8(0))
        perms = np.repeat(remote | np.uint8(perm), np.left_shift(1, addrs.order.astype(np.int64)))
        self.page_table.map_pages(vpn, addrs.page_pfns(), perms)
        if not pages.has_devmem_pages:
            return
        if pages.protected is not None:
            for page in pages.protected.tolist():
                self.page_table.mark_stale(vpn + page, vpn + page + 1, "mm_s2")
        self._mark_wrong_pages(vpn, range_)

    def _mark_wrong_pages(self, vpn: int, range_: GpuSvmRange) -> None:
        """Name the culprit where a PMD folio of a device is not mapped from its head on, though the range begins inside
        (MM-S1): a PMD entry maps a folio at its own alignment.
        """
        addrs, memory = range_.pages.dma_addr, self.memory
        assert addrs is not None
        inside = memory.geometry.pmd_nr - 1
        firsts = addrs.first_pages()
        for row in np.flatnonzero(addrs.order * (addrs.proto != DRM_INTERCONNECT_SYSTEM)).tolist():
            first, pfn = vpn + int(firsts[row]), int(addrs.pfns[row])
            if pfn - memory.folio_head(pfn) != first & inside:
                self.page_table.mark_stale(first, first + (1 << int(addrs.order[row])), "mm_s1")

    # ---- the driver contract -------------------------------------------------------------------------------------

    def populate(self, start: int, end: int) -> int:
        """Do POPULATE block by block; the bytes that moved. A block that is busy, finds no room, or lies in more than
        one area stays where it is.

        ENOENT where a block begins in no area, EFAULT the mm is gone, EBADF closed.
        """
        return self.commands.populate_blocks(start, end)

    def close(self) -> None:
        """Close the file (svmdev_release). Its allocations live on, as long as the process keeps the pages."""
        with self.lock:
            if self.closed:
                return
            self.closed = True
            self.page_table.unmap(self.start >> self._page_shift, self.end >> self._page_shift)
            self.page_table.retire()
            with self.gclock:
                self.gc.clear()
            # Range by range, and only then the notifiers: what is mapped for DMA is watched as long as it is.
            for range_ in self.svm.every_range():
                self.svm.range_remove(range_)
            self.svm.fini()
            self.release()
        del self.device.files[self.inst]
