"""drivers/gpu/drm/xe/xe_svm.c:struct xe_pagemap, as of Linux 7.3.4: one tile's VRAM as pages that a process can have.

xe_pagemap holds the dev_pagemap and the drm_pagemap side by side; the drm_pagemap points at its sibling
(`gpusvm.driver.Siblings`, unless the tunable `embedding` says otherwise).
"""

import errno
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final

import numpy as np
from gpusvm.drm import (
    DRM_INTERCONNECT_DRIVER,
    Bo,
    Devmem,
    DrmDevice,
    DrmPagemap,
    MigrateDetails,
    PagemapAddrs,
    PagemapDevOps,
    Peer,
    constant_u8,
    migrate_to_devmem,
)
from gpusvm.drm.addr import Orders, Protos
from gpusvm.errors import KernelError
from gpusvm.kernel import Work
from gpusvm.mm.api import MEMORY_DEVICE_PRIVATE, DevPagemap, MmApi, Pfns, Words

from gpusvm_xe.copy import EngineFence, XeDevmemOps

if TYPE_CHECKING:
    from gpusvm_xe.tile import XeTile

__all__ = ["XE_INTERCONNECT_P2P", "XE_INTERCONNECT_VRAM", "XePagemap"]

XE_INTERCONNECT_VRAM: Final = DRM_INTERCONNECT_DRIVER
XE_INTERCONNECT_P2P: Final = DRM_INTERCONNECT_DRIVER + 1

# Where the VRAM of a device begins in its own address space, and on the PCI bus (vr->dpa_base, vr->io_start).
_DPA_BASE: Final = 0
_IO_START: Final = 1 << 40


class XePagemap:
    """Hold one tile's dev_pagemap and drm_pagemap as siblings; it is the drm_pagemap's ops.

    The dev_pagemap covers all usable VRAM with one page per 4 KiB, from `hpa_base` on. Built when somebody first needs
    it (xe_pagemap_create), who gets the first reference as `holder`; VMs and zdds hold others. KernelError if there is
    no room for it; injection sites ``xe.request_region``, ``xe.pagemap_owner`` and ``xe.memremap``.
    """

    def __init__(self, tile: "XeTile", holder: object) -> None:
        driver = tile.driver
        memory = driver.memory
        self.tile = tile
        self.driver = driver
        self.memory = memory
        vr = self.vr = tile.vram
        self.page_shift = memory.geometry.page_shift
        self.peer = Peer(self)
        self.hpa_base = 0
        embedding = driver.embedding
        self.pagemap = DevPagemap(
            type=MEMORY_DEVICE_PRIVATE,
            start_pfn=0,
            nr_pages=vr.usable_bytes >> self.page_shift,
            owner=None,
            ops=PagemapDevOps(memory, dpagemap_of=embedding.pagemap_of),
        )
        self.dpagemap = DrmPagemap(
            memory,
            driver.device,
            self.pagemap,
            self,
            quirks=driver.drm_quirks,
            holder=holder,
            index=driver.page_index(self.pagemap),
            order_fallback=driver.tunables.order_fallback,
        )
        embedding.embed(self.pagemap, self.dpagemap, self)
        self.devmem_ops = XeDevmemOps(memory, vr, tile.engine, chunk_bytes=driver.tunables.copy_chunk, stats=tile.stats)
        self._clears_first = driver.tunables.clear == "sync"
        self._same = driver.tunables.same_pagemap
        # What every fault but an atomic one migrates with.
        self._no_timeslice = MigrateDetails(can_migrate_same_pagemap=self._same)
        self._mapped = self._unmapped = False
        self._destroyed = False
        self._destroy_work = Work(self._destroy, "xe_pagemap_destroy_work")
        try:
            self._map()
        except KernelError:
            self.dpagemap.put(holder)  # which destroys it: no cache has it yet
            raise

    def _map(self) -> None:
        """Get addresses for the pages, an owner, and the pages themselves."""
        driver, memory, kernel, pagemap = self.driver, self.memory, self.driver.kernel, self.pagemap
        owners = driver.shared.owners
        if kernel.inject("xe.request_region"):
            raise KernelError(errno.ENOMEM, "injected at xe.request_region")
        pagemap.start_pfn = memory.request_free_mem_region(pagemap.nr_pages)
        self.hpa_base = pagemap.start_pfn << self.page_shift
        try:
            if kernel.inject("xe.pagemap_owner"):
                raise KernelError(errno.ENOMEM, "injected at xe.pagemap_owner")
            pagemap.owner = owners.acquire_owner(self.peer, driver.has_interconnect)
            try:
                if kernel.inject("xe.memremap"):
                    raise KernelError(errno.ENOMEM, "injected at xe.memremap")
                memory.memremap_pages(pagemap)
            except KernelError:
                owners.release_owner(self.peer)
                raise
        except KernelError:
            memory.release_mem_region(pagemap.start_pfn)
            raise
        self._mapped = True
        driver.device.devm_add_action(self._memunmap)

    # ---- where a page is -----------------------------------------------------------------------------------------

    def page_to_dpa(self, pfns: Pfns) -> Words:
        """Return the device's own addresses of its pages (xe_page_to_dpa)."""
        return ((pfns << self.page_shift) - (self.hpa_base - _DPA_BASE - self.vr.offset_bytes)).view(np.uint64)

    def page_to_pcie(self, pfns: Pfns) -> Pfns:
        """Return the frames at which the PCI bus sees the pages (xe_page_to_pcie)."""
        return pfns - ((self.hpa_base - _IO_START - self.vr.offset_bytes) >> self.page_shift)

    def device_map(
        self, dpagemap: DrmPagemap, dev: DrmDevice, pfns: Pfns, order: Orders, direction: int
    ) -> tuple[Words, Protos]:
        """Give the device its own addresses, and a peer the DMA addresses of this device's PCI window."""
        if dev is dpagemap.drm:
            return self.page_to_dpa(pfns), constant_u8(XE_INTERCONNECT_VRAM, len(pfns))
        addrs = dev.dma.map_pages(self.page_to_pcie(pfns), order, direction)
        return addrs, constant_u8(XE_INTERCONNECT_P2P, len(pfns))

    def device_unmap(self, dpagemap: DrmPagemap, dev: DrmDevice, addrs: PagemapAddrs) -> None:
        """Undo a peer's mapping; the device's own addresses were never mapped."""
        if dev is not dpagemap.drm:
            dev.dma.unmap_pages(len(addrs))

    # ---- populate ------------------------------------------------------------------------------------------------

    def populate_mm(self, dpagemap: DrmPagemap, start: int, end: int, mm: MmApi, timeslice_ms: int) -> None:
        """Bring one range to VRAM, all of it or nothing (xe_drm_pagemap_populate_mm). mmap_lock is held for reading.

        ENODEV after unplug, ENOMEM without room, else what migrate_to_devmem raises.
        """
        driver = self.driver
        cookie = driver.device.dev_enter()
        try:
            with driver.pm.populate():
                self._populate(start, end, mm, timeslice_ms)
        finally:
            driver.device.dev_exit(cookie)

    def _populate(self, start: int, end: int, mm: MmApi, timeslice_ms: int) -> None:
        """Run the transaction: shared first, and alone if there was no room (xe_validation_guard)."""
        vr = self.vr
        size_pages = (end - start) >> self.page_shift
        vr.validation.down_read()
        try:
            bo, clear = vr.create(size_pages)
        except KernelError as error:
            vr.validation.up_read()
            if error.errno != errno.ENOMEM:
                raise
        else:
            try:
                self._migrate(bo, clear, start, end, mm, timeslice_ms)
            finally:
                vr.validation.up_read()
            return
        with vr.validation.write():
            bo, clear = vr.create(size_pages)
            self._migrate(bo, clear, start, end, mm, timeslice_ms)

    def _migrate(self, bo: Bo, clear: EngineFence, start: int, end: int, mm: MmApi, timeslice_ms: int) -> None:
        """Migrate into a locked object; from here on its creation reference belongs to the pages, come what may."""
        driver = self.driver
        if clear.late:
            self.vr.clear_late(clear, partial(self._clear, self.vr.pfns(bo, self.pagemap)))
        if self._clears_first:
            clear.wait()
        # The clear need not be over: the first copy depends on it.
        pending = clear if clear.is_pending else None
        devmem = Devmem(
            driver.device, mm, self.devmem_ops, self.dpagemap, end - start, pre_migrate_fence=pending, container=bo
        )
        bo.devmem = devmem
        self._hold(bo)
        # Held until the last page is gone: devmem_release gives it back, also when none arrives.
        driver.pm.pages_present(bo)
        driver.power.job.get()  # the clear's, which the first copy waits for
        try:
            details = self._no_timeslice
            if timeslice_ms:
                details = MigrateDetails(timeslice_ms=timeslice_ms, can_migrate_same_pagemap=self._same)
            migrate_to_devmem(devmem, mm, start, end, details)
        finally:
            driver.power.job.put()
            bo.resv.unlock()
            self._drop(bo)

    def _clear(self, pfns: Pfns) -> None:
        """Zero what the pages hold, if there are any, in use or not: the engine does not know."""
        if self._mapped and not self._unmapped:
            self.memory.clear_frames(pfns)

    @staticmethod
    def _hold(bo: Bo) -> None:
        """Keep an object while its lock is held: a CPU fault may take its last page, and so its last reference, before
        populate_mm ends.
        """
        bo.get("populate_mm")

    @staticmethod
    def _drop(bo: Bo) -> None:
        bo.put("populate_mm")

    # ---- the end -------------------------------------------------------------------------------------------------

    def destroy(self, dpagemap: DrmPagemap, in_atomic: bool) -> None:
        """Take the pages away, in a worker if the last reference went in atomic context (xe_pagemap_destroy)."""
        if in_atomic:
            self.driver.destroy_wq.queue(self._destroy_work)
        else:
            self._destroy()

    def _destroy(self) -> None:
        """Take the pages away, unless the device goes and takes them along (xe_pagemap_destroy_work).

        As written a pagemap whose making failed, and was unwound, is taken apart once more.
        """
        driver = self.driver
        if self._mapped or driver.quirks.create_unwind == "as_written":
            with suppress(KernelError):
                cookie = driver.device.dev_enter()
                driver.device.devm_release_action(self._memunmap)
                driver.device.dev_exit(cookie)
            driver.shared.owners.release_owner(self.peer)
        # As written the structure that devres is going to unmap is freed before that.
        if self._unmapped or not self._mapped or driver.quirks.pagemap_freed == "as_written":
            self._free()
        else:
            self._destroyed = True

    def _memunmap(self) -> None:
        """Wait for the pages, and take them away (devm_memremap_pages_release)."""
        self.memory.memunmap_pages(self.pagemap)
        self._unmapped = True
        if self._destroyed:
            self._free()

    def _free(self) -> None:
        self.driver.embedding.remove(self.pagemap)
        self.driver.kernel.free(self, self.pagemap, self.pagemap.done, self.dpagemap, self._destroy_work)
