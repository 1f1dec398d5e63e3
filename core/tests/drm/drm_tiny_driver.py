"""The smallest driver on drm_gpusvm and drm_pagemap, for tests: the twin of svmdev, which recorded a real kernel.

Devices with one pagemap each; memory handed out first fit, aligned to its size; a populate is one allocation; no event
is filtered.
"""

from errno import EACCES, EFAULT, EIO, ENOENT, ENOMEM, EOPNOTSUPP

import numpy as np
from gpusvm.drm import (
    DMA_BIDIRECTIONAL,
    DRM_INTERCONNECT_DRIVER,
    DRM_INTERCONNECT_SYSTEM,
    Devmem,
    DrmDevice,
    DrmPagemap,
    DrmQuirks,
    Fence,
    GpuSvm,
    GpuSvmCtx,
    MigrateDetails,
    PagemapDevOps,
    constant_u8,
    copy_contents,
    evict_to_ram,
    migrate_to_devmem,
)
from gpusvm.errors import KernelError
from gpusvm.mm.api import MEMORY_DEVICE_PRIVATE, MMU_NOTIFY_UNMAP, DevPagemap

PAGE = 4096


class Allocation:
    def __init__(self, device, first, npages):
        self.device = device
        self.first = first
        self.npages = npages
        self.devmem = None


class TinyDevice:
    """Be one device: its pagemap, the ops of both kinds, and its memory."""

    destroy = None

    def __init__(self, memory, number, *, owner, pages=2048, same_pagemap=False, quirks=None, iommu=False):
        kernel = memory.kernel
        self.kernel = kernel
        self.memory = memory
        self.number = number
        self.pages = pages
        self.drm = DrmDevice(kernel, f"tiny{number}")
        self.drm.dma.iommu = iommu
        self.owner = owner
        self.used = [False] * pages
        self.allocations = []
        self.allocated = self.released = 0
        self.maps = 0
        self.copies = []
        self.fail = {}
        self.release_atomic = []
        self.details = {}
        self.same_pagemap = same_pagemap
        self.clears = False
        self.pgmap = DevPagemap(
            MEMORY_DEVICE_PRIVATE,
            memory.request_free_mem_region(pages),
            pages,
            owner,
            PagemapDevOps(memory),
            container=self,
        )
        memory.memremap_pages(self.pgmap)
        self.dpagemap = DrmPagemap(memory, self.drm, self.pgmap, self, container=self, quirks=quirks or DrmQuirks())

    # memory

    def alloc(self, npages):
        align = min(1 << (npages - 1).bit_length(), 512)
        for first in range(0, self.pages - npages + 1, align):
            if not any(self.used[first : first + npages]):
                self.used[first : first + npages] = [True] * npages
                allocation = Allocation(self, first, npages)
                self.allocations.append(allocation)
                self.allocated += 1
                return allocation
        raise KernelError(ENOMEM, "tiny: no memory")

    @property
    def in_use(self):
        return sum(self.used)

    def _fails(self, what):
        if what in self.fail:
            self.fail[what] -= 1
            if not self.fail[what]:
                del self.fail[what]
                return True
        return False

    # PagemapOps

    def device_map(self, dpagemap, dev, pfns, order, direction):
        assert dpagemap is self.dpagemap
        self.maps += len(pfns)
        addr = ((pfns - self.pgmap.start_pfn) << 12 | (self.number + 1) << 40).view(np.uint64)
        return addr, constant_u8(DRM_INTERCONNECT_DRIVER + (dev is not self.drm), len(pfns))

    def device_unmap(self, dpagemap, dev, addrs):
        self.maps -= len(addrs)

    def populate_mm(self, dpagemap, start, end, mm, timeslice_ms):
        if self._fails("alloc"):
            raise KernelError(ENOMEM, "tiny: injected")
        allocation = self.alloc((end - start) // PAGE)
        clear = self._clear(allocation) if self.clears else None
        allocation.devmem = Devmem(
            self.drm,
            mm,
            self,
            dpagemap,
            end - start,
            pre_migrate_fence=clear,
            cleared=not self.clears,
            container=allocation,
        )
        details = MigrateDetails(timeslice_ms=timeslice_ms, can_migrate_same_pagemap=self.same_pagemap)
        migrate_to_devmem(allocation.devmem, mm, start, end, details)

    def _clear(self, allocation):
        """Let an engine clear an allocation in its own time."""
        fence = Fence(self.kernel, "clear")

        def clear():
            self.kernel.sleep_ns(1_000_000)
            first = self.pgmap.start_pfn + allocation.first
            self.memory.clear_pages(np.arange(first, first + allocation.npages))
            fence.signal()

        self.kernel.spawn(clear, name="engine")
        return fence

    # DevmemOps

    def devmem_release(self, devmem):
        allocation = devmem.container
        self.release_atomic.append(self.kernel.current.preempt_count > 0)
        self.used[allocation.first : allocation.first + allocation.npages] = [False] * allocation.npages
        self.allocations.remove(allocation)
        self.released += 1

    def populate_devmem_pfn(self, devmem, npages):
        if self._fails("pfn"):
            raise KernelError(ENOMEM, "tiny: injected")
        first = self.pgmap.start_pfn + devmem.container.first
        return np.arange(first, first + npages)

    def copy_to_devmem(self, device_pfns, addrs, fence):
        if self._fails("to_devmem"):
            raise KernelError(EIO, "tiny: injected")
        if fence is not None:
            fence.wait()
        assert (addrs.proto == DRM_INTERCONNECT_SYSTEM).all()
        self.copies.append(("to_devmem", len(addrs), addrs.npages))
        copy_contents(self.memory, device_pfns, addrs.pfns, addrs.order, addrs.npages)

    def copy_to_ram(self, device_pfns, addrs, fence):
        if self._fails("to_ram"):
            raise KernelError(EIO, "tiny: injected")
        if fence is not None:
            fence.wait()
        self.copies.append(("to_ram", len(addrs), addrs.npages))
        copy_contents(self.memory, addrs.pfns, device_pfns, addrs.order, addrs.npages)

    def evict(self, k=0):
        evict_to_ram(self.allocations[k].devmem)

    def remove(self):
        """Give everything back; nothing may be in use."""
        assert not self.allocations
        self.dpagemap.put()
        self.kernel.settle()
        self.memory.memunmap_pages(self.pgmap)
        self.drm.put()


class TinyFile:
    """Be an open file of a device: a mirror of one mm, with the loop that drm_gpusvm.c documents."""

    range_alloc = None
    range_free = None
    notifier_alloc = None
    notifier_free = None

    def __init__(self, device, mm, *, notifier_size=512 << 20, chunks=(2 << 20, 64 << 10, 4 << 10)):
        self.device = device
        self.mm = mm
        self.kernel = device.kernel
        self.events = []
        self.gc = []
        self.svm = GpuSvm(
            self.kernel,
            device.memory,
            f"svm{device.number}",
            mm,
            drm=device.drm,
            mm_start=0,
            mm_range=1 << 47,
            notifier_size=notifier_size,
            ops=self,
            chunk_sizes=chunks,
        )
        self.lock = self.kernel.mutex("tiny_svm")
        self.svm.driver_set_lock(self.lock)
        self.in_notifier = GpuSvmCtx(in_notifier=True)

    def invalidate(self, gpusvm, notifier, mmu_range):
        start, end = max(notifier.start, mmu_range.start), min(notifier.end, mmu_range.end)
        owner = "-" if mmu_range.owner is None else "own" if mmu_range.owner is self.device.owner else "other"
        hit = []
        for range_ in notifier.ranges(start, end):
            hit.append((range_.start // PAGE, range_.end // PAGE, range_.pages.has_dma_mapping))
            gpusvm.range_unmap_pages(range_, self.in_notifier)
            if mmu_range.event == MMU_NOTIFY_UNMAP:
                gpusvm.range_set_unmapped(range_, mmu_range)
                if range_ not in self.gc:
                    self.gc.append(range_)
        self.events.append((mmu_range.event, start // PAGE, end // PAGE, owner, hit))

    def collect(self):
        with self.lock:
            return self._collect()

    def _collect(self):
        done = []
        while self.gc:
            range_ = self.gc.pop(0)
            error = 0
            if range_.partial_unmap:
                try:
                    self.svm.range_evict(range_)
                except KernelError as raised:
                    error = -raised.errno
            done.append((range_.start // PAGE, range_.end // PAGE, "part" if range_.partial_unmap else "whole", error))
            self._drop(range_)
        return done

    def _drop(self, range_):
        if range_ in self.gc:
            self.gc.remove(range_)
        self.svm.range_unmap_pages(range_, GpuSvmCtx())
        self.svm.range_remove(range_)

    def find(self, addr):
        return self.svm.range_find(addr, addr + 1)

    def fault(self, addr, *, migrate=True, target=None, retry=False, owner=..., **ctx):
        """Return what svmdev's ``sf`` answers: the text of the stages."""
        with self.lock:
            return self._fault(addr, migrate, target or self.device, retry, owner, ctx)

    def _fault(self, addr, migrate, target, retry, owner, flags):
        ctx = GpuSvmCtx(
            device_private_page_owner=self.device.owner if owner is ... else owner,
            **{"devmem_possible": True, **flags},
        )
        text = []
        tries = 3 if retry else 1
        while True:
            self._collect()
            try:
                range_ = self.svm.range_find_or_insert(addr, 0, 1 << 47, ctx)
            except KernelError as error:
                return [*text, f"ins({-error.errno})"]
            text.append(
                f"rng({range_.start // PAGE:x},{range_.end // PAGE:x},{'mig' if range_.migrate_devmem else '-'})"
            )
            if migrate and range_.migrate_devmem:
                text.append(f"pop({self.populate(range_.start, range_.npages, target)})")
            try:
                self.svm.range_get_pages(range_, ctx)
                text.append("get(0)")
            except KernelError as error:
                text.append(f"get({-error.errno})")
                tries -= 1
                if not tries:
                    return text
                if error.errno == EOPNOTSUPP:
                    text.append(f"ev({self._errno(self.svm.range_evict, range_)})")
                continue
            return [*text, self.map_text(range_)]

    @staticmethod
    def _errno(call, *args):
        try:
            call(*args)
        except KernelError as error:
            return -error.errno
        return 0

    def populate(self, start, npages, target=None, timeslice_ms=0):
        dpagemap = (target or self.device).dpagemap
        return self._errno(dpagemap.populate_mm, start, start + npages * PAGE, self.mm, timeslice_ms)

    def range_evict(self, addr):
        return self._errno(self.svm.range_evict, self.find(addr))

    def locate(self, addrs, row):
        if addrs.proto[row] == DRM_INTERCONNECT_SYSTEM:
            return "s"
        return str((int(addrs.addr[row]) >> 40) - 1)

    def map_text(self, range_):
        pages = range_.pages
        if not pages.has_dma_mapping:
            return "map(none)"
        addrs = pages.dma_addr
        runs = []
        for row in range(len(addrs)):
            key = f"{self.locate(addrs, row)}{addrs.order[row]}"
            if runs and runs[-1][0] == key:
                runs[-1][1] += 1
            else:
                runs.append([key, 1])
        access = "rw" if addrs.direction == DMA_BIDIRECTIONAL else "ro"
        return f"map({access},{','.join(f'{key}*{count}' for key, count in runs)})"

    def mapped_pfn(self, addr, *, write=False):
        """Return the pfn that the device reaches at `addr`."""
        range_ = self.find(addr)
        if range_ is None:
            raise KernelError(ENOENT)
        addrs = range_.pages.dma_addr
        if not range_.pages.has_dma_mapping:
            raise KernelError(EFAULT)
        if write and addrs.direction != DMA_BIDIRECTIONAL:
            raise KernelError(EACCES)
        return int(addrs.page_pfns()[(addr - range_.start) // PAGE])

    def close(self):
        with self.lock:
            self.svm.fini()
