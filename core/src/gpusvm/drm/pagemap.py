"""drivers/gpu/drm/drm_pagemap.c, as of Linux 7.3.4: what a driver offers of its device memory, and what core does
with it.
"""

from collections.abc import Callable
from errno import EFAULT
from typing import Any, Protocol

from gpusvm.drm.addr import Orders, PagemapAddrs, Protos
from gpusvm.drm.cpu_fault import migrate_to_ram
from gpusvm.drm.device import DrmDevice
from gpusvm.drm.guard import guarded
from gpusvm.drm.page_index import PageIndex
from gpusvm.drm.pagemap_cache import PagemapCache
from gpusvm.drm.quirks import AS_WRITTEN, DrmQuirks
from gpusvm.drm.zdd import folio_zdd, page_zdd
from gpusvm.errors import KernelError
from gpusvm.kernel import Kref, Work
from gpusvm.mm.api import VM_FAULT_SIGBUS, DevPagemap, MemoryManagerApi, MmApi, Pfns, VmFault, Words


class PagemapOps(Protocol):
    """What a driver does for one pagemap (struct drm_pagemap_ops). Errors are KernelErrors."""

    @property
    def destroy(self) -> "Callable[[DrmPagemap, bool], None] | None":
        """Take down and free (`Kernel.free`) the pagemap, whose last reference is gone; True: in atomic context or
        reclaim. None: core frees it.
        """

    def device_map(
        self, dpagemap: "DrmPagemap", dev: DrmDevice, pfns: Pfns, order: Orders, direction: int
    ) -> tuple[Words, Protos]:
        """Map rows of ``1 << order`` device pages for `dev`: their addresses, and how each is reached.

        Protocols are numbers of the driver from DRM_INTERCONNECT_DRIVER on. EFAULT if a row cannot be mapped, none is
        then.
        """

    def device_unmap(self, dpagemap: "DrmPagemap", dev: DrmDevice, addrs: PagemapAddrs) -> None:
        """Undo device_map for all rows of `addrs`. May run in a notifier: must not allocate."""

    def populate_mm(self, dpagemap: "DrmPagemap", start: int, end: int, mm: MmApi, timeslice_ms: int) -> None:
        """Bring [start, end) of `mm` into this device's memory. mmap_lock is held for reading.

        ENODEV after unplug is for the driver to raise (`DrmDevice.dev_enter`): core does not look.
        """


class DrmPagemap:
    """Be a device's memory as other devices and core see it (struct drm_pagemap).

    What-if: with an `index` its pages lead to their allocations through that, and their zone_device_data stays unused;
    without `order_fallback` a folio that finds none so large in RAM does not come home.

    It points to the dev_pagemap and embeds none: `pagemap.container` is what embeds both, for container_of. While it is
    active it holds the device and its driver's module, which a worker lets go of after the last put. With a `cache` it
    stays then, inactive, for `reinit` or `destroy`; without, it is destroyed. Ledger kind "dpagemap".
    """

    __slots__ = (
        "_dev_hold",
        "_kref",
        "cache",
        "container",
        "drm",
        "index",
        "kernel",
        "memory",
        "ops",
        "order_fallback",
        "pagemap",
        "quirks",
    )

    def __init__(
        self,
        memory: MemoryManagerApi,
        drm: DrmDevice,
        pagemap: DevPagemap,
        ops: PagemapOps,
        *,
        container: Any = None,
        quirks: DrmQuirks = AS_WRITTEN,
        holder: object = "driver",
        index: PageIndex | None = None,
        order_fallback: bool = True,
    ) -> None:
        kernel = memory.kernel
        self.memory = memory
        self.kernel = kernel
        self.drm = drm
        self.pagemap = pagemap
        pagemap.power = drm.pm
        self.ops = ops if kernel.authors is None else guarded(kernel, ops, PagemapOps, memory)
        self.container = container
        self.quirks = quirks
        self.index = index
        self.order_fallback = order_fallback
        self.cache: PagemapCache | None = None
        self._dev_hold: _DevHold
        self._kref: Kref
        self.reinit(holder)
        kernel.gauges.inc("pagemap")

    def __repr__(self) -> str:
        return f"<DrmPagemap of {self.drm.name!r}>"

    def get(self, holder: object) -> None:
        """Take a reference (drm_pagemap_get)."""
        self._kref.get(holder)

    def put(self, holder: object = "driver") -> None:
        """Drop a reference (drm_pagemap_put); the one from creation has no name. May be in atomic context."""
        self._kref.put(holder)

    def get_unless_zero(self, holder: object) -> bool:
        """Take a reference if the pagemap is active; whether it is (drm_pagemap_get_unless_zero)."""
        return self._kref.get_unless_zero(holder)

    def reinit(self, holder: object) -> None:
        """Make an inactive pagemap active again, with one reference (drm_pagemap_reinit)."""
        self._dev_hold = _DevHold(self.drm)
        self._kref = Kref(self.kernel, "dpagemap", self._release, holder=holder)

    def destroy(self, *, in_atomic: bool) -> None:
        """Free an inactive pagemap, which no cache knows any more (drm_pagemap_destroy)."""
        self.kernel.gauges.dec("pagemap")
        destroy = self.ops.destroy
        if destroy is not None:
            destroy(self, in_atomic)
        else:
            self.kernel.free(self)

    @property
    def refcount(self) -> int:
        """Return how many references there are."""
        return self._kref.count

    def populate_mm(self, start: int, end: int, mm: MmApi, timeslice_ms: int) -> None:
        """Bring [start, end) of `mm` into this memory, as far as that goes (drm_pagemap_populate_mm).

        EFAULT if the mm is gone, ENODEV after unplug; otherwise what the driver's populate_mm raises.
        """
        if not mm.mmget_not_zero():
            raise KernelError(EFAULT, "the mm is gone")
        try:
            mm.mmap_lock.down_read()
            try:
                self.ops.populate_mm(self, start, end, mm, timeslice_ms)
            finally:
                mm.mmap_lock.up_read()
        finally:
            mm.mmput()

    def _release(self) -> None:
        dev_hold = self._dev_hold  # whoever revives the pagemap from here on gives it another
        if self.cache is None:
            self.destroy(in_atomic=True)
        else:
            self.cache.shrinker.add(self)
        dev_hold.put_later()


class _DevHold:
    """Hold the device of a pagemap and the module of its driver; it outlives the pagemap (struct
    drm_pagemap_dev_hold).

    As in the kernel nobody looks whether the module could still be had, and it is put all the same: whoever makes a
    pagemap active has a file of that module open, or a reference on the pagemap.
    """

    __slots__ = ("_drm", "_unhold", "_workqueue")

    def __init__(self, drm: DrmDevice) -> None:
        self._drm = drm
        self._workqueue = drm.kernel.workqueue("drm_pagemap_unhold")
        self._unhold = Work(self._put, "drm_pagemap_dev_unhold_work")
        self._get()

    def put_later(self) -> None:
        """Let go from a worker: the caller may be one of the driver's own functions."""
        self._workqueue.queue(self._unhold)

    def _get(self) -> None:
        module = self._drm.module
        if module is not None:
            module.try_get("drm_pagemap")
        self._drm.get("drm_pagemap")

    def _put(self) -> None:
        module = self._drm.module
        self._drm.put("drm_pagemap")
        if module is not None:
            module.put("drm_pagemap")


class PagemapDevOps:
    """Be the dev_pagemap_ops that core supplies (drm_pagemap_pagemap_ops_get): hand them to every DevPagemap.

    What-if: `dpagemap_of` leads from a dev_pagemap to the drm_pagemap, as an index outside of the pages needs it.
    """

    __slots__ = ("dpagemap_of", "memory")

    def __init__(
        self, memory: MemoryManagerApi, *, dpagemap_of: "Callable[[DevPagemap], DrmPagemap] | None" = None
    ) -> None:
        self.memory = memory
        self.dpagemap_of = dpagemap_of
        memory.kernel.gauges.declare("zdd")

    def migrate_to_ram(self, vmf: VmFault) -> int:
        """Bring the allocation that holds the faulting page home (drm_pagemap_migrate_to_ram); 0 or VM_FAULT_SIGBUS."""
        try:
            migrate_to_ram(self.memory, vmf)
        except KernelError:
            return VM_FAULT_SIGBUS
        return 0

    def folio_free(self, pfn: int, order: int) -> None:
        """Drop the folio's reference on its zdd (drm_pagemap_folio_free)."""
        folio_zdd(self.memory, pfn).kref.put("folio")

    def folios_free(self, pfns: Pfns) -> None:
        """Do so for many folios of order 0, which may belong to several allocations."""
        memory = self.memory
        n = len(pfns)
        i = 0
        while i < n:
            zdd = folio_zdd(memory, int(pfns[i]))
            if zdd.by_index:  # each folio is freed by itself, and so looked up by itself
                count = 1
            elif i == 0 or n - i > 8:
                mine = zdd.covers(pfns[i:])
                count = int(mine.argmin()) if not mine.all() else n - i
            else:
                count = 1
            zdd.kref.put("folio", count)
            i += count

    def folio_split(self, head: int, tail: int | None) -> None:
        """Give a new folio its reference, and the mark of those that have left (drm_pagemap_folio_split)."""
        if tail is None:
            return
        folio_zdd(self.memory, head).split(self.memory, head, tail)


def page_to_dpagemap(memory: MemoryManagerApi, pfn: int) -> DrmPagemap:
    """Return the pagemap that a live device page was populated from (drm_pagemap_page_to_dpagemap)."""
    return page_zdd(memory, pfn).dpagemap
