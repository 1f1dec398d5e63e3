"""drivers/gpu/drm/drm_gpusvm.c, as of Linux 7.3.4: mirror a process's address space on a GPU, range by range."""

from collections.abc import Callable, Iterator, Sequence
from errno import EBUSY, EFAULT, EINVAL, EIO, ENOENT, ENOMEM, EPERM, ETIME
from typing import Protocol, cast

import numpy as np
from attrs import frozen

from gpusvm.drm.device import DrmDevice
from gpusvm.drm.guard import guarded
from gpusvm.drm.notifier import GpuSvmNotifier
from gpusvm.drm.pages import HMM_RANGE_DEFAULT_TIMEOUT_NS, GpuSvmPages, get_pages
from gpusvm.drm.range import GpuSvmRange
from gpusvm.drm.scan import check_pages, scan_mm
from gpusvm.errors import KernelError, LockdepError, ModelError
from gpusvm.kernel import Kernel, Mutex, RwSemaphore
from gpusvm.mm.api import (
    HMM_PFN_REQ_FAULT,
    VM_HUGETLB,
    VM_IO,
    VM_PFNMAP,
    VM_WRITE,
    DevPagemap,
    HmmRange,
    IntervalNotifier,
    MemoryManagerApi,
    MmApi,
    MmuNotifierRange,
    VmaApi,
)


@frozen(kw_only=True)
class GpuSvmCtx:
    """Say how a range is to be made and its pages to be got (struct drm_gpusvm_ctx). Build each kind once: it is a
    value.
    """

    device_private_page_owner: object | None = None
    """Whose device pages may be mapped where they are; those of others, all of them for None, come home first."""
    check_pages_threshold: int = 0
    """Up to this size, except for the smallest chunk, a range is made only where every page is present on the CPU."""
    in_notifier: bool = False
    """The notifier lock is held for writing: this is the invalidate callback."""
    read_only: bool = False
    devmem_possible: bool = False
    devmem_only: bool = False
    allow_mixed: bool = False


class GpuSvmOps(Protocol):
    """What a driver does for its gpusvm (struct drm_gpusvm_ops). The first four may be None, as NULL pointers are."""

    @property
    def range_alloc(self) -> Callable[["GpuSvm"], GpuSvmRange] | None:
        """Return a new range of the driver's own class; core fills in what is GpuSvmRange's."""

    @property
    def range_free(self) -> Callable[[GpuSvmRange], None] | None:
        """Free a range whose last reference is gone."""

    @property
    def notifier_alloc(self) -> Callable[[], GpuSvmNotifier] | None:
        """Return a new notifier of the driver's own class."""

    @property
    def notifier_free(self) -> Callable[[GpuSvmNotifier], None] | None:
        """Free a notifier whose last range is gone."""

    def invalidate(self, gpusvm: "GpuSvm", notifier: GpuSvmNotifier, mmu_range: MmuNotifierRange) -> None:
        """Zap, flush, and unmap the pages of every range in `mmu_range`. The notifier lock is held for writing; may
        sleep.
        """


class GpuSvm:
    """Be the mirror of one mm on one GPU (struct drm_gpusvm).

    [mm_start, mm_start + mm_range) is mirrored, with interval notifiers over aligned windows of `notifier_size`
    bytes. A range has one of `chunk_sizes`, powers of two in descending order; one above the size of a PMD, in a
    machine whose PMDs are small, stands for a PMD. A driver serialises finding, inserting and removing by a lock of its
    own.

    With `drm` each range has `pages`, mapped for that device. Without, `range_alloc` gives a range the `GpuSvmPages` of
    as many devices as the driver wants; it gets and unmaps each, and frees them in `range_free` at the latest.

    With an `mm` of None there are no ranges, only `get_pages` with an mm as its argument. EINVAL for half a setup: an
    mm without chunks or an invalidate callback, or any of that without an mm.
    """

    def __init__(
        self,
        kernel: Kernel,
        memory: MemoryManagerApi,
        name: str,
        mm: MmApi | None,
        *,
        drm: DrmDevice | None = None,
        mm_start: int = 0,
        mm_range: int = 0,
        notifier_size: int = 0,
        ops: GpuSvmOps | None = None,
        chunk_sizes: tuple[int, ...] = (),
    ) -> None:
        geometry = memory.geometry
        if mm is None:
            if ops is not None or chunk_sizes or mm_range or notifier_size:
                raise KernelError(EINVAL, f"{name}: without an mm there are no ranges, and nothing to say of them")
        elif getattr(ops, "invalidate", None) is None or not chunk_sizes:
            raise KernelError(EINVAL, f"{name}: ranges need an invalidate callback and one chunk size at least")
        if list(chunk_sizes) != sorted(set(chunk_sizes), reverse=True):
            raise ValueError(f"chunk_sizes must descend, got {chunk_sizes}")
        chunks = tuple(dict.fromkeys(min(size, geometry.pmd_size) for size in chunk_sizes))
        for size in (*chunks, notifier_size) if mm is not None else ():
            if size < geometry.page_size or size & (size - 1):
                raise ValueError(f"a size must be a power of two of at least {geometry.page_size} bytes, got {size}")
        self.kernel = kernel
        kernel.gauges.declare("range", "notifier")
        self.memory = memory
        self.name = name
        self.mm = cast("MmApi", mm)  # None only where there are no ranges, and so nobody who asks
        self.drm = drm
        self.mm_start = mm_start
        self.mm_end = mm_start + mm_range
        self.notifier_size = notifier_size
        if kernel.authors is not None and ops is not None:
            ops = guarded(kernel, ops, GpuSvmOps, memory)
        self.ops = cast("GpuSvmOps", ops)
        self.chunk_sizes = chunks
        self.notifier_lock = kernel.rwsem("drm_gpusvm_notifier_lock")
        self.nr_ranges = 0
        self._notifiers: dict[int, GpuSvmNotifier] = {}  # by start // notifier_size
        self._window_shift = max(notifier_size.bit_length() - 1, 0)
        self._driver_lock: Mutex | RwSemaphore | None = None
        if mm is not None:
            mm.mmgrab()

    def fini(self) -> None:
        """Remove all ranges and notifiers (drm_gpusvm_fini); a notifier's subscription first, so that no invalidation
        comes between: what ranges have mapped by then nobody watches, so a driver unmaps it before (xe_svm_fini).
        """
        for notifier in self.notifiers():  # not up to mm_end: a range may begin there
            self.memory.mmu_interval_notifier_remove(notifier.notifier)
            notifier.removed = True
            for range_ in list(notifier.ranges(notifier.start, notifier.end)):
                self.range_remove(range_)
        if self.mm is not None:
            self.mm.mmdrop()

    def driver_set_lock(self, lock: Mutex | RwSemaphore) -> None:
        """Say which lock of the driver protects the ranges, to have that checked (drm_gpusvm_driver_set_lock)."""
        self._driver_lock = lock

    # --- ranges

    def notifier_find(self, addr: int) -> GpuSvmNotifier | None:
        """Return the notifier whose window has `addr` (drm_gpusvm_notifier_find)."""
        return self._notifiers.get(addr >> self._window_shift)

    def range_find(self, start: int, end: int) -> GpuSvmRange | None:
        """Return the first range that overlaps [start, end), which lies in one notifier window."""
        notifier = self._notifiers.get(start >> self._window_shift)
        return notifier.range_find(start, end) if notifier is not None else None

    def notifiers(self) -> list[GpuSvmNotifier]:
        """Return the notifiers, ascending."""
        return [self._notifiers[key] for key in sorted(self._notifiers)]

    def ranges(self, start: int, end: int) -> Iterator[GpuSvmRange]:
        """Yield the ranges that overlap [start, end), ascending."""
        for notifier in self.notifiers():
            if notifier.start < end and notifier.end > start:
                yield from notifier.ranges(start, end)

    def every_range(self) -> list[GpuSvmRange]:
        """Return all ranges, ascending, those at the end of the address space included."""
        return [each for notifier in self.notifiers() for each in notifier.ranges(notifier.start, notifier.end)]

    def has_mapping(self, start: int, end: int) -> bool:
        """Tell whether there is any range in [start, end) (drm_gpusvm_has_mapping)."""
        return next(self.ranges(start, end), None) is not None

    def find_vma_start(self, start: int, end: int) -> int | None:
        """Return where the first VMA that overlaps [start, end) begins (drm_gpusvm_find_vma_start)."""
        mm = self.mm
        if not mm.mmget_not_zero():
            return None
        with mm.mmap_lock.read():
            vma = mm.find_vma_intersection(start, end)
            found = vma.start if vma is not None else None
        mm.mmput()
        return found

    def range_find_or_insert(self, fault_addr: int, gpuva_start: int, gpuva_end: int, ctx: GpuSvmCtx) -> GpuSvmRange:
        """Return the range at `fault_addr`, a new one if there is none (drm_gpusvm_range_find_or_insert).

        A new range is the largest chunk that lies within the CPU's VMA, the notifier's window and [gpuva_start,
        gpuva_end), overlaps no other range and, up to ``ctx.check_pages_threshold``, has all its pages present; the
        last two do not hold for the smallest chunk.

        EINVAL outside of what is mirrored, or no chunk fits; EFAULT mm gone; ENOENT no VMA; EPERM the VMA is not
        writable and ``ctx.read_only`` not set; EIO a VMA of device registers; ENOMEM.
        """
        kernel = self.kernel
        kernel.charge("range_lookup")
        if kernel.checked:
            self._assert_driver_lock()
        if not self.mm_start <= fault_addr <= self.mm_end:
            raise KernelError(EINVAL, f"{fault_addr:#x} is outside [{self.mm_start:#x}, {self.mm_end:#x})")
        mm = self.mm
        if not mm.mmget_not_zero():
            raise KernelError(EFAULT, "the mm is gone")
        try:
            notifier = self._notifiers.get(fault_addr >> self._window_shift)
            if notifier is not None:
                return self._find_or_insert(notifier, fault_addr, gpuva_start, gpuva_end, ctx)
            notifier = self._notifier_create(fault_addr)
            try:
                range_ = self._find_or_insert(notifier, fault_addr, gpuva_start, gpuva_end, ctx)
            except BaseException:
                self._notifier_destroy(notifier)
                raise
            self._notifiers[fault_addr >> self._window_shift] = notifier
            return range_
        finally:
            mm.mmput()

    def _find_or_insert(
        self, notifier: GpuSvmNotifier, fault_addr: int, gpuva_start: int, gpuva_end: int, ctx: GpuSvmCtx
    ) -> GpuSvmRange:
        mm = self.mm
        mmap_lock = mm.mmap_lock
        mmap_lock.down_read()
        try:
            vma = mm.vma_lookup(fault_addr)
            if vma is None:
                raise KernelError(ENOENT, f"no VMA at {fault_addr:#x}")
            flags = vma.flags
            if not ctx.read_only and not flags & VM_WRITE:
                raise KernelError(EPERM, f"the VMA at {fault_addr:#x} is not writable")
            if flags & (VM_IO | VM_PFNMAP):
                raise KernelError(EIO, f"the VMA at {fault_addr:#x} maps registers")
            range_ = notifier.range_find(fault_addr, fault_addr + 1)
            if range_ is not None:
                return range_
            migrate_devmem = ctx.devmem_possible and vma.is_anonymous and not flags & VM_HUGETLB
            size = self._chunk_size(notifier, vma, fault_addr, gpuva_start, gpuva_end, ctx)
            return self._range_insert(notifier, fault_addr & -size, size, migrate_devmem=migrate_devmem)
        finally:
            mmap_lock.up_read()

    def _chunk_size(
        self,
        notifier: GpuSvmNotifier,
        vma: VmaApi,
        fault_addr: int,
        gpuva_start: int,
        gpuva_end: int,
        ctx: GpuSvmCtx,
    ) -> int:
        """Choose the size of a new range (drm_gpusvm_range_chunk_size)."""
        page_size = self.memory.geometry.page_size
        low = max(vma.start, notifier.start, gpuva_start)
        high = min(vma.end, notifier.end, gpuva_end)
        for size in self.chunk_sizes:
            start = fault_addr & -size
            end = start + size
            if start < low or end > high:
                continue
            if size != page_size:
                if notifier.range_find(start, end) is not None:
                    continue
                if size <= ctx.check_pages_threshold and not check_pages(
                    self, notifier, start, end, ctx.device_private_page_owner
                ):
                    continue
            return size
        raise KernelError(EINVAL, f"no chunk at {fault_addr:#x} fits into [{low:#x}, {high:#x})")

    def _range_insert(self, notifier: GpuSvmNotifier, start: int, size: int, *, migrate_devmem: bool) -> GpuSvmRange:
        kernel = self.kernel
        if kernel.inject("gpusvm.range"):
            raise KernelError(ENOMEM, "injected at gpusvm.range")
        kernel.charge("range_insert")
        alloc = self.ops.range_alloc
        range_ = alloc(self) if alloc is not None else GpuSvmRange()
        range_.gpusvm = self
        range_.notifier = notifier
        range_.start = start
        range_.end = start + size
        range_.npages = size >> self.memory.geometry.page_shift
        if self.drm is not None:
            range_.pages = GpuSvmPages(self.drm)
        range_.migrate_devmem = migrate_devmem
        range_.unmapped = False
        range_.partial_unmap = False
        range_.policy_state = None
        range_.removed = False
        range_.refcount = 1
        notifier.insert(range_)
        self.nr_ranges += 1
        kernel.ledger.get("range", self.name)
        kernel.gauges.inc("range")
        return range_

    def range_remove(self, range_: GpuSvmRange) -> None:
        """Unmap and take out a range, and its notifier if it was the last (drm_gpusvm_range_remove). Sleeps.

        Pages that are the driver's own stay as they are.
        """
        if self.kernel.checked:
            self._assert_driver_lock()
        if range_.removed:
            raise ModelError(f"{range_!r} is removed twice")
        notifier = range_.notifier
        lock = self.notifier_lock
        lock.down_read()
        if self.drm is not None:
            range_.pages.unmap()
            range_.pages.dma_addr = None
        notifier.remove(range_)
        range_.removed = True
        lock.up_read()
        self.nr_ranges -= 1
        range_.put()
        if not notifier.nr_ranges:
            del self._notifiers[notifier.start >> self._window_shift]
            self._notifier_destroy(notifier)

    def _range_destroy(self, range_: GpuSvmRange) -> None:
        kernel = self.kernel
        kernel.ledger.put("range", self.name)
        kernel.gauges.dec("range")
        free = self.ops.range_free
        if free is not None:
            free(range_)
        if kernel.explored:
            kernel.free(range_, *((range_.pages,) if self.drm is not None else ()))

    def range_set_unmapped(
        self, range_: GpuSvmRange, mmu_range: MmuNotifierRange, pages: Sequence[GpuSvmPages] | None = None
    ) -> None:
        """Mark a range, and its `pages` (None: the gpusvm's), as hit by a munmap (drm_gpusvm_range_set_unmapped).

        The notifier lock is held for writing.
        """
        if self.kernel.checked and not self.notifier_lock.is_write_locked:
            raise ModelError(f"{self.name}: range_set_unmapped without the notifier lock held for writing")
        range_.set_unmapped(mmu_range, (range_.pages,) if pages is None else pages)

    # --- pages

    def range_get_pages(self, range_: GpuSvmRange, ctx: GpuSvmCtx) -> None:
        """Fault in and map a range's pages (drm_gpusvm_range_get_pages); errors as `pages.get_pages`."""
        get_pages(self, range_.pages, self.mm, range_.notifier.notifier, range_.start, range_.end, ctx)

    def get_pages(
        self,
        pages: GpuSvmPages,
        notifier: IntervalNotifier,
        start: int,
        end: int,
        ctx: GpuSvmCtx,
        *,
        mm: MmApi | None = None,
    ) -> None:
        """Do so for one device's pages of a range, or for pages that are of no range (userptr) under an interval
        notifier of the driver's own, which say of which `mm` (drm_gpusvm_get_pages).
        """
        get_pages(self, pages, mm if mm is not None else self.mm, notifier, start, end, ctx)

    def pages_valid(self, pages: GpuSvmPages) -> bool:
        """Tell whether pages can be bound (drm_gpusvm_pages_valid). The notifier lock is held."""
        if self.kernel.authors is not None and pages.has_dma_mapping:
            self.kernel.authors.unchanged(self.mm, self.mm_start, self.mm_end)
        return pages.has_dma_mapping

    def free_pages(self, pages: GpuSvmPages) -> None:
        """Unmap pages for good (drm_gpusvm_free_pages)."""
        self.notifier_lock.down_read()
        pages.unmap()
        pages.dma_addr = None
        self.notifier_lock.up_read()

    def range_pages_valid(self, range_: GpuSvmRange) -> bool:
        """Tell whether a range's pages can be bound: the last check before that, with the notifier lock held
        (drm_gpusvm_range_pages_valid).
        """
        if self.kernel.authors is not None and range_.pages.has_dma_mapping:
            self.kernel.authors.unchanged(self.mm, range_.start, range_.end)
        return range_.pages.has_dma_mapping

    def range_unmap_pages(self, range_: GpuSvmRange, ctx: GpuSvmCtx) -> None:
        """Drop a range's DMA mapping (drm_gpusvm_range_unmap_pages); takes the notifier lock unless
        ``ctx.in_notifier``.
        """
        self.unmap_pages(range_.pages, ctx)

    def unmap_pages(self, pages: GpuSvmPages, ctx: GpuSvmCtx) -> None:
        """Do so for any pages (drm_gpusvm_unmap_pages)."""
        if ctx.in_notifier:
            if self.kernel.checked and not self.notifier_lock.is_write_locked:
                raise ModelError(f"{self.name}: unmap_pages in a notifier without the notifier lock held for writing")
            pages.unmap()
            return
        self.notifier_lock.down_read()
        pages.unmap()
        self.notifier_lock.up_read()

    def range_evict(self, range_: GpuSvmRange) -> None:
        """Bring all device pages in a range home, by faulting with no owner (drm_gpusvm_range_evict).

        EFAULT mm gone or not accessible, ETIME after 1000 ms of invalidations, ENOMEM.
        """
        mm = self.mm
        if not mm.mmget_not_zero():
            raise KernelError(EFAULT, "the mm is gone")
        if self.kernel.inject("gpusvm.evict"):
            evict_without_memory(mm)
            raise KernelError(ENOMEM, "injected at gpusvm.evict")
        try:
            self.memory.hmm_range_fault_unlocked_timeout(
                HmmRange(
                    notifier=range_.notifier.notifier,
                    start=range_.start,
                    end=range_.end,
                    hmm_pfns=np.zeros(range_.npages, np.uint64),
                    default_flags=HMM_PFN_REQ_FAULT,
                ),
                HMM_RANGE_DEFAULT_TIMEOUT_NS,
            )
        except KernelError as error:
            if error.errno == EBUSY:
                raise KernelError(ETIME, f"{range_!r} is invalidated again and again") from None
            raise
        finally:
            mm.mmput()

    def scan_mm(self, range_: GpuSvmRange, dev_private_owner: object | None, pagemap: DevPagemap) -> int:
        """Say where the memory of a range is: one of scan.SCAN_* (drm_gpusvm_scan_mm)."""
        return scan_mm(range_, dev_private_owner, pagemap)

    # --- notifiers

    def _notifier_create(self, fault_addr: int) -> GpuSvmNotifier:
        """Make and subscribe the notifier whose window has `fault_addr`; it joins the others with its first range."""
        kernel = self.kernel
        if kernel.inject("gpusvm.notifier"):
            raise KernelError(ENOMEM, "injected at gpusvm.notifier")
        alloc = self.ops.notifier_alloc
        notifier = alloc() if alloc is not None else GpuSvmNotifier()
        start = fault_addr & -self.notifier_size
        notifier._init(self, start, start + self.notifier_size, self.memory.geometry.pmd_shift)
        kernel.ledger.get("notifier", self.name)
        kernel.gauges.inc("notifier")
        try:
            notifier.notifier = self.memory.mmu_interval_notifier_insert(self.mm, start, self.notifier_size, notifier)
        except BaseException:
            self._notifier_free(notifier)
            raise
        return notifier

    def _notifier_destroy(self, notifier: GpuSvmNotifier) -> None:
        if not notifier.removed:
            self.memory.mmu_interval_notifier_remove(notifier.notifier)
        self._notifier_free(notifier)

    def _notifier_free(self, notifier: GpuSvmNotifier) -> None:
        self.kernel.ledger.put("notifier", self.name)
        self.kernel.gauges.dec("notifier")
        free = self.ops.notifier_free
        if free is not None:
            free(notifier)
        self.kernel.free(notifier, getattr(notifier, "notifier", None))  # None: it was never subscribed

    def _assert_driver_lock(self) -> None:
        lock = self._driver_lock
        if lock is None:
            return
        held = lock.is_mine_to_write if isinstance(lock, RwSemaphore) else lock.owner is self.kernel.current
        if not held:
            raise LockdepError(f"{self.name}: ranges are looked up or removed without the driver's lock {lock.name!r}")


def evict_without_memory(mm: MmApi) -> None:
    """Leave range_evict when there is no memory for its array of pfns: the address space is held by then."""
    mm.mmput()
