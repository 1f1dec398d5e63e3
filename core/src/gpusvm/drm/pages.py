"""drivers/gpu/drm/drm_gpusvm.c:drm_gpusvm_get_pages, as of Linux 7.3.4: from virtual addresses to what a device can
map.
"""

from errno import EBUSY, EFAULT, ENOMEM, EOPNOTSUPP
from typing import TYPE_CHECKING, Final

import numpy as np

from gpusvm.drm.addr import (
    DMA_BIDIRECTIONAL,
    DMA_TO_DEVICE,
    DRM_INTERCONNECT_SYSTEM,
    Orders,
    PagemapAddrs,
    constant_u8,
)
from gpusvm.drm.device import DrmDevice
from gpusvm.drm.dma import IovaState
from gpusvm.drm.observer import tell
from gpusvm.drm.zdd import Zdd, page_zdd
from gpusvm.errors import KernelError, ModelError
from gpusvm.mm.api import (
    HMM_PFN_ORDER_SHIFT,
    HMM_PFN_PFN_MASK,
    HMM_PFN_REQ_FAULT,
    HMM_PFN_REQ_WRITE,
    HMM_PFN_WRITE,
    Bools,
    HmmRange,
    IntervalNotifier,
    MemoryManagerApi,
    MmApi,
    Pfns,
    Words,
)

if TYPE_CHECKING:
    from gpusvm.drm.gpusvm import GpuSvm, GpuSvmCtx
    from gpusvm.drm.pagemap import DrmPagemap

HMM_RANGE_DEFAULT_TIMEOUT_NS: Final = 1_000_000_000
_ORDER_BITS: Final = 0x1F << HMM_PFN_ORDER_SHIFT
_ORDER_FIELD = np.uint64(_ORDER_BITS)
_PFN_MASK = np.uint64(HMM_PFN_PFN_MASK)
_WRITE = np.uint64(HMM_PFN_WRITE)


class GpuSvmPages:
    """Hold how one device maps the pages of a range (struct drm_gpusvm_pages).

    `dma_addr` has one row a mapping segment; it is None, or stale, unless `has_dma_mapping`. `dpagemap` is whose
    device pages are among them. `notifier_seq` is the sequence under which they were got. `unmapped`: a munmap has
    hit them. `protected` lists the device pages, by their places in the range, that HMM said may not be written, though
    that was asked for (MM-S2): the kernel does not look, drivers here do to name the culprit of what comes of it.
    """

    __slots__ = (
        "_iova",
        "_system_rows",
        "dma_addr",
        "dpagemap",
        "drm",
        "has_devmem_pages",
        "has_dma_mapping",
        "notifier_seq",
        "protected",
        "unmapped",
    )

    def __init__(self, drm: DrmDevice) -> None:
        self.drm = drm
        self.dma_addr: PagemapAddrs | None = None
        self.dpagemap: DrmPagemap | None = None
        self.has_dma_mapping = False
        self.has_devmem_pages = False
        self.unmapped = False
        self.notifier_seq = -1
        self.protected: Pfns | None = None
        self._system_rows = 0
        self._iova: IovaState | None = None

    @property
    def valid(self) -> bool:
        """Tell whether they can be bound (drm_gpusvm_pages_valid). The notifier lock is held."""
        return self.has_dma_mapping

    def unmap(self) -> None:
        """Drop the mapping (__drm_gpusvm_unmap_pages). The notifier lock is held."""
        if not self.has_dma_mapping:
            return
        addrs = self.dma_addr
        assert addrs is not None
        system_rows = self._system_rows
        if self._iova is not None:
            self.drm.dma.iova_destroy(self._iova)
            self._iova = None
        elif system_rows:
            self.drm.dma.unmap_pages(system_rows)
        self.has_dma_mapping = False
        self.has_devmem_pages = False
        if self.drm.kernel.observer is not None:
            tell(self.drm.kernel.observer, "pages_unmapped", self)
        dpagemap = self.dpagemap
        if dpagemap is not None:
            device = addrs if not system_rows else addrs.rows(addrs.proto != DRM_INTERCONNECT_SYSTEM)
            if len(device):  # none where device_map has failed
                dpagemap.ops.device_unmap(dpagemap, self.drm, device)
            self.dpagemap = None
            dpagemap.put("gpusvm_pages")


def get_pages(
    gpusvm: "GpuSvm",
    pages: GpuSvmPages,
    mm: MmApi,
    notifier: IntervalNotifier,
    start: int,
    end: int,
    ctx: "GpuSvmCtx",
) -> None:
    """Fault in [start, end) and map it for ``pages.drm`` (drm_gpusvm_get_pages).

    A mapping that is still valid stays as it is, whatever `ctx` wants. Faults always, for writing unless
    ``ctx.read_only``; then maps under the notifier lock if no invalidation came meanwhile. Pages may be all system,
    or all of one allocation; mixtures of one pagemap only with ``ctx.allow_mixed``.

    EFAULT mm gone, range unmapped, a system page with ``ctx.devmem_only``, a mapping error, or not accessible; EPERM
    not writable; EOPNOTSUPP a mixture; EBUSY after 1000 ms of invalidations; ENOMEM.
    """
    kernel = gpusvm.kernel
    memory = gpusvm.memory
    lock = gpusvm.notifier_lock
    begun_ns = kernel.current.time_ns
    while True:
        if time_left(begun_ns, kernel.current.time_ns) <= 0:
            raise KernelError(EBUSY, f"[{start:#x}, {end:#x}) is invalidated again and again")
        if pages.dma_addr is not None:
            seq = memory.mmu_interval_read_begin(notifier)
            lock.down_read()
            valid = pages.has_dma_mapping
            if not valid:
                pages.dma_addr = None
            lock.up_read()
            if valid:
                pages.notifier_seq = seq
                return
        if kernel.inject("gpusvm.pages"):
            raise KernelError(ENOMEM, "injected at gpusvm.pages")
        if not mm.mmget_not_zero():
            raise KernelError(EFAULT, "the mm is gone")
        kernel.charge("get_pages_base")
        hmm_range = HmmRange(
            notifier=notifier,
            start=start,
            end=end,
            hmm_pfns=np.zeros((end - start) >> memory.geometry.page_shift, np.uint64),
            default_flags=HMM_PFN_REQ_FAULT if ctx.read_only else HMM_PFN_REQ_FAULT | HMM_PFN_REQ_WRITE,
            dev_private_owner=page_owner(gpusvm, ctx),
        )
        try:
            memory.hmm_range_fault_unlocked_timeout(hmm_range, max(time_left(begun_ns, kernel.current.time_ns), 1))
        finally:
            mm.mmput()
        lock.down_read()
        try:
            if pages.unmapped:
                raise KernelError(EFAULT, f"[{start:#x}, {end:#x}) is unmapped")
            if found_is_stale(memory, notifier, hmm_range):
                now_ns = kernel.current.time_ns
                due_ns = begun_ns + HMM_RANGE_DEFAULT_TIMEOUT_NS
                kernel.retried(by_chance=True, deadlines=(due_ns, now_ns + time_left(begun_ns, now_ns)))
                continue
            _map(gpusvm, pages, hmm_range.hmm_pfns, ctx)
            if kernel.observer is not None:
                tell(kernel.observer, "pages_got", pages, notifier, ctx.device_private_page_owner)
            pages.notifier_seq = hmm_range.notifier_seq
            return
        finally:
            lock.up_read()


def found_is_stale(memory: MemoryManagerApi, notifier: IntervalNotifier, hmm_range: HmmRange) -> bool:
    """Tell whether an invalidation came since HMM looked. Nothing holds the pages that it found: they may be used under
    the lock that invalidations take, and only if this says no.
    """
    return memory.mmu_interval_read_retry(notifier, hmm_range.notifier_seq)


def time_left(begun_ns: int, now_ns: int) -> int:
    """Return what is left of the time for all attempts together: with a new budget for each it might never end."""
    return begun_ns + HMM_RANGE_DEFAULT_TIMEOUT_NS - now_ns


def page_owner(gpusvm: "GpuSvm", ctx: "GpuSvmCtx") -> object | None:
    """Return whose device pages the caller can take: not every user of a gpusvm can, so that the call says it."""
    return ctx.device_private_page_owner


def segments(words: Words) -> tuple[Pfns, Orders]:
    """Cut hmm words into mapping segments: first pfn and order of each (drm_gpusvm_hmm_pfn_to_order).

    A segment ends with the CPU's mapping and with the array, and is a power of two of pages.
    """
    n = len(words)
    word = int(words[0])
    if word & _ORDER_BITS:
        order = hmm_pfn_to_order(word, n)
        if 1 << order >= n:
            return np.array((word & HMM_PFN_PFN_MASK,), np.int64), constant_u8(order, 1)
    elif not (words & _ORDER_FIELD).any():
        return (words & _PFN_MASK).view(np.int64), constant_u8(0, n)
    # some large mappings among small ones: as many steps as there are segments, small ones taken together
    large = np.flatnonzero(words & _ORDER_FIELD)
    firsts: list[Pfns] = []
    orders: list[Orders] = []
    i = 0
    while i < n:
        word = int(words[i])
        if not word & _ORDER_BITS:
            following = int(np.searchsorted(large, i))
            j = int(large[following]) if following < len(large) else n
            firsts.append((words[i:j] & _PFN_MASK).view(np.int64))
            orders.append(constant_u8(0, j - i))
            i = j
            continue
        order = hmm_pfn_to_order(word, n - i)
        firsts.append(np.array((word & HMM_PFN_PFN_MASK,), np.int64))
        orders.append(constant_u8(order, 1))
        i += 1 << order
    return np.concatenate(firsts), np.concatenate(orders)


def hmm_pfn_to_order(word: int, left: int) -> int:
    """Return the order of the segment that begins with an hmm word, `left` pages before the end of the range.

    HMM tells the order of the CPU's mapping, which may have begun before this page and may go on behind the range: both
    are taken off (drm_gpusvm_hmm_pfn_to_order).
    """
    size = 1 << ((word >> HMM_PFN_ORDER_SHIFT) & 0x1F)
    size -= word & HMM_PFN_PFN_MASK & (size - 1)
    return min(size, left).bit_length() - 1


def _map(gpusvm: "GpuSvm", pages: GpuSvmPages, words: Words, ctx: "GpuSvmCtx") -> None:
    """Map for DMA what HMM found, if it is a mixture that `ctx` allows. The notifier lock is held, the sequence
    checked.
    """
    memory = gpusvm.memory
    kernel = gpusvm.kernel
    npages = len(words)
    size_bytes = npages << memory.geometry.page_shift
    direction = DMA_TO_DEVICE if ctx.read_only else DMA_BIDIRECTIONAL
    pfns, order = segments(words)
    n = len(pfns)
    kernel.charge("get_pages_per_entry", n)
    if n == 1:
        device = None
        any_device = memory.is_device_memory(int(pfns[0]))
    else:
        device = memory.device_memory_mask(pfns)
        any_device = bool(device.any())
    dpagemap: DrmPagemap | None = None
    refusal: tuple[int, KernelError] | None = None
    if any_device:
        first = 0 if device is None or device[0] else int(device.argmax())
        zdd = page_zdd(memory, int(pfns[first]))
        dpagemap = zdd.dpagemap
        if device is not None:
            refusal = _mixture(zdd, pfns, device, ctx)
    elif ctx.devmem_only:
        raise KernelError(EFAULT, "system pages, and device memory is wanted")
    try:
        if refusal is None:
            _map_rows(pages, pfns, order, device, dpagemap, direction, npages, size_bytes)
            if pages._iova is not None:
                pages.drm.dma.iova_sync(pages._iova, 0, pages._iova.linked_bytes)
        else:
            # The kernel finds out as it goes: what comes before is mapped by then.
            last, error = refusal
            if last:
                assert device is not None
                device = device[:last]
                met = dpagemap if device.any() else None
                order = order[:last]
                _map_rows(pages, pfns[:last], order, device, met, direction, _pages(order), size_bytes)
            raise error
    except BaseException:
        err_unmap(pages)
        pages.dma_addr = None
        raise
    if kernel.checked:
        _check_covered(order, npages)
    if dpagemap is not None:
        pages_mapped(pages, dpagemap)
        # One segment is one mapping of the CPU: its first word tells of all.
        flags = int(words[0]) if n == 1 else int(np.bitwise_and.reduce(words))
        may_write = ctx.read_only or flags & HMM_PFN_WRITE
        pages.protected = None if may_write else np.flatnonzero(words & _WRITE == 0)
    pages.has_dma_mapping = True


def _map_rows(
    pages: GpuSvmPages,
    pfns: Pfns,
    order: Orders,
    device: Bools | None,
    dpagemap: "DrmPagemap | None",
    direction: int,
    npages: int,
    size_bytes: int,
) -> None:
    """Map rows of `npages` in all and leave in `pages` what is mapped, also if that ends with an error.

    `device` says which are device pages, None: all or none, as there is a `dpagemap` or not. `size_bytes` is that of
    the range.
    """
    dma = pages.drm.dma
    n = len(pfns)
    pages.dma_addr = _NOTHING
    pages._system_rows = 0
    if dpagemap is None:
        addr = _map_system(pages, dma.iova_try_alloc(size_bytes), pfns, order, direction)
        proto = constant_u8(DRM_INTERCONNECT_SYSTEM, n)
    elif device is None or device.all():
        meet_provider(pages, dpagemap)
        addr, proto = dpagemap.ops.device_map(dpagemap, pages.drm, pfns, order, direction)
    else:
        system = ~device
        # the reservation is only tried when page 0 is a system page
        iova = None if device[0] else dma.iova_try_alloc(size_bytes)
        addr = np.empty(n, np.uint64)
        addr[system] = _map_system(pages, iova, pfns[system], order[system], direction)
        meet_provider(pages, dpagemap)
        device_addr, device_proto = dpagemap.ops.device_map(dpagemap, pages.drm, pfns[device], order[device], direction)
        addr[device] = device_addr
        proto = np.zeros(n, np.uint8)
        proto[device] = device_proto
    pages.dma_addr = PagemapAddrs(pfns, addr, order, proto, direction, npages)


def _map_system(pages: GpuSvmPages, iova: IovaState | None, pfns: Pfns, order: Orders, direction: int) -> Words:
    dma = pages.drm.dma
    pages._iova = iova
    if iova is not None:
        addr = dma.iova_link(iova, pfns, order, direction)
    else:
        addr = dma.map_rows(pfns, order, direction)
    pages._system_rows = len(addr)
    if len(addr) < len(pfns):
        raise KernelError(EFAULT, f"{dma.name}: dma_map_page failed")
    return addr


def meet_provider(pages: GpuSvmPages, dpagemap: "DrmPagemap") -> None:
    """Remember whose pages are mapped, before the first of them is: whoever unwinds must find who unmaps them."""
    dpagemap.get("gpusvm_pages")
    pages.dpagemap = dpagemap


def pages_mapped(pages: GpuSvmPages, dpagemap: "DrmPagemap") -> None:
    """Publish that there are device pages of `dpagemap` among what is mapped."""
    assert pages.dpagemap is dpagemap
    pages.has_devmem_pages = True


def err_unmap(pages: GpuSvmPages) -> None:
    """Unmap what was mapped before an error (drm_gpusvm_get_pages: err_unmap).

    Nothing has been published yet, and `GpuSvmPages.unmap` goes by what is: so publish it first.
    """
    if pages.dma_addr is not None:
        pages.has_dma_mapping = True
        pages.unmap()


def _check_covered(order: Orders, npages: int) -> None:
    """Assert that what was mapped is the range, no less and no more."""
    mapped = _pages(order)
    if mapped != npages:
        raise ModelError(f"get_pages maps {mapped} pages for a range of {npages}")


def _pages(order: Orders) -> int:
    if len(order) == 1:
        return 1 << int(order[0])
    return int(np.left_shift(1, order.astype(np.int64)).sum()) if order.any() else len(order)


def _mixture(zdd: "Zdd", pfns: Pfns, device: Bools, ctx: "GpuSvmCtx") -> tuple[int, KernelError] | None:
    """Return the first row that does not go with those before it, and what the kernel's loop over the pages raises
    there.
    """
    pgmap = zdd.dpagemap.pagemap
    if not ctx.allow_mixed:
        if not device[0]:
            if ctx.devmem_only:
                return 0, KernelError(EFAULT, "a system page, and device memory is wanted")
            return int(device.argmax()), KernelError(EOPNOTSUPP, "system pages, then device pages")
        mine = device & zdd.covers(pfns)
        return (
            None if mine.all() else (int(mine.argmin()), KernelError(EOPNOTSUPP, "pages of more than one allocation"))
        )
    other = device & ~((pfns >= pgmap.start_pfn) & (pfns < pgmap.start_pfn + pgmap.nr_pages))
    if ctx.devmem_only and not device.all():
        if not other.any() or int(device.argmin()) < int(other.argmax()):
            return int(device.argmin()), KernelError(EFAULT, "a system page, and device memory is wanted")
    if other.any():
        return int(other.argmax()), KernelError(EOPNOTSUPP, "pages of two pagemaps")
    return None


_NOTHING: Final = PagemapAddrs(
    np.zeros(0, np.int64), np.zeros(0, np.uint64), constant_u8(0, 0), constant_u8(0, 0), DMA_BIDIRECTIONAL, 0
)
