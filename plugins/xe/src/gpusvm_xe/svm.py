"""drivers/gpu/drm/xe/xe_svm.c, as of Linux 7.3.4: xe's ranges, what an invalidation does to them, and how they get to
VRAM.
"""

import errno
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from gpusvm.drm import SCAN_EQUAL, DrmPagemap, GpuSvm, GpuSvmNotifier, GpuSvmRange
from gpusvm.errors import KernelError
from gpusvm.mm.api import MMU_NOTIFY_UNMAP, MmuNotifierRange

if TYPE_CHECKING:
    from gpusvm_xe.vm import XeVm

__all__ = [
    "MOVED",
    "XeSvm",
    "XeSvmRange",
    "alloc_vram",
    "evict_range",
    "needs_migrate_to_vram",
]

# Errors of get_pages that say that the CPU's mappings changed meanwhile.
MOVED: Final = frozenset({errno.EOPNOTSUPP, errno.EFAULT, errno.EPERM})

_64K: Final = 64 << 10


class XeSvmRange(GpuSvmRange):
    """Be a range with what xe keeps of it (struct xe_svm_range): masks of the tiles that have it bound, and of those
    whose entries were zapped since.

    `queued` says that it was put on the list of the garbage collector, once for its whole life.
    """

    __slots__ = ("queued", "tile_invalidated", "tile_present")

    def __init__(self) -> None:
        self.tile_present = 0
        self.tile_invalidated = 0
        self.queued = False

    @property
    def bound(self) -> int:
        """Return the mask of the tiles on which its entries are there and valid."""
        return self.tile_present & ~self.tile_invalidated

    def is_in(self, pagemap: DrmPagemap | None) -> bool:
        """Tell whether what is mapped lies in `pagemap`: not in RAM, and not in the VRAM of a peer."""
        return pagemap is not None and self.pages.dpagemap is pagemap


class XeSvm:
    """Be xe's drm_gpusvm_ops for one VM."""

    range_free = None
    notifier_alloc = None
    notifier_free = None

    def __init__(self, vm: "XeVm") -> None:
        self.vm = vm
        self.kernel = vm.kernel

    def range_alloc(self, gpusvm: GpuSvm) -> GpuSvmRange:
        return XeSvmRange()

    def invalidate(self, gpusvm: GpuSvm, notifier: GpuSvmNotifier, mmu_range: MmuNotifierRange) -> None:
        """Zap, flush and unmap every range that is touched, whatever the event (xe_svm_invalidate).

        The events are not told apart: a migration of xe's own invalidates the range that it migrates.
        """
        vm = self.vm
        start = max(mmu_range.start, notifier.start)
        end = min(mmu_range.end, notifier.end)
        first = notifier.range_find(start, end)
        if first is None:
            return
        assert isinstance(first, XeSvmRange)
        if end <= first.end:  # an eviction clears page by page
            if not first.pages.has_dma_mapping and mmu_range.event != MMU_NOTIFY_UNMAP:
                return
            touched = [first]
        else:
            touched = [range_ for range_ in notifier.ranges(start, end) if isinstance(range_, XeSvmRange)]
        tracer = self.kernel.tracer
        if tracer.on:
            tracer.emit("svm_invalidate", start, end, mmu_range.event, len(touched))
        if not vm.closed:
            # The page tables are written by the CPU under the notifier lock, so no bind is in flight to be waited for.
            flush_start = flush_end = zapped = 0
            for range_ in touched:
                if range_.unmapped or not range_.tile_present:
                    continue
                # As written, each range overwrites what the one before widened (S44). Rounding covers them all again:
                # the window crosses the border of a range that it cut, and ranges are aligned to their size. That the
                # notifier's window ends before the event does is forgotten here, too.
                flush_start = min(mmu_range.start, range_.start)
                flush_end = max(mmu_range.end, range_.end)
                tiles = vm.pt.zap(range_)
                if tiles:
                    zapped |= tiles
                    self._count(tiles)
            if zapped:
                try:
                    vm.pt.flush(zapped, flush_start, flush_end)
                except KernelError as error:  # and what the GPU may still use is unmapped
                    self.kernel.warn("xe_svm_invalidate", str(error))
        unmapped = mmu_range.event == MMU_NOTIFY_UNMAP and vm.garbage.wants()
        for range_ in touched:
            gpusvm.range_unmap_pages(range_, vm.ctx_notifier)
            if unmapped:
                vm.garbage.add(range_, mmu_range)

    def _count(self, tiles: int) -> None:
        """Count that entries of a range were zapped on a mask of tiles (xe_svm_tlb_inval_count_stats_incr)."""
        for tile in self.vm.driver.tiles:
            if tiles & tile.bit:
                for gt in tile.gts:
                    gt.stats["svm_tlb_inval_count"] += 1


def evict_range(gpusvm: GpuSvm, range_: GpuSvmRange) -> None:
    """Bring a range to RAM before another attempt at it; xe never looks at how that ended."""
    with suppress(KernelError):
        gpusvm.range_evict(range_)


def needs_migrate_to_vram(vm: "XeVm", range_: XeSvmRange, pagemap: DrmPagemap | None) -> bool:
    """Tell whether a range should be moved to `pagemap`: it can be, and is not there
    (xe_svm_range_needs_migrate_to_vram).
    """
    if pagemap is None or not range_.migrate_devmem or range_.is_in(pagemap):
        return False
    return range_.size_bytes >= _64K or not vm.driver.tunables.need_64k


def alloc_vram(vm: "XeVm", range_: GpuSvmRange, pagemap: DrmPagemap, timeslice_ms: int) -> None:
    """Bring a range into `pagemap`, with one more attempt if something was in the way (xe_svm_alloc_vram).

    EBUSY is the only error that is retried: part of the range is in VRAM already, or a page could not be collected.
    Before each further attempt the range is evicted, under the driver's migrate lock held alone: nobody else migrates
    then.
    """
    gpusvm = vm.gpusvm
    if not range_.migrate_devmem:
        vm.kernel.warn("xe_svm_alloc_vram", f"{range_!r} is not to migrate to VRAM")
    state = gpusvm.scan_mm(range_, vm.ctx_fault.device_private_page_owner, pagemap.pagemap)
    if state == SCAN_EQUAL:
        return
    lock = vm.driver.migrate_lock
    attempts = vm.driver.tunables.populate_attempts
    lock.down_read()
    exclusive = False
    try:
        while True:
            try:
                pagemap.populate_mm(range_.start, range_.end, gpusvm.mm, timeslice_ms)
            except KernelError as error:
                attempts -= 1
                if error.errno != errno.EBUSY or attempts <= 0:
                    raise
            else:
                return
            if not exclusive and vm.driver.migrates_alone:
                lock.up_read()
                lock.down_write()
                exclusive = True
            evict_range(gpusvm, range_)
    finally:
        if exclusive:
            lock.up_write()
        else:
            lock.up_read()
