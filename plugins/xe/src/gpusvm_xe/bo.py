"""drivers/gpu/drm/xe/xe_bo.c and xe_ttm_vram_mgr.c, as of Linux 7.3.4: buffer objects for SVM, and how a page leads
to one.

One object per populated range, physically contiguous, cleared by the GPU when it is made. Their places in the
eviction list are never bumped, so the oldest goes first.
"""

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from gpusvm.drm import Bo, BoManager, Buddy, Devmem, evict_to_ram, page_zdd
from gpusvm.errors import KernelError
from gpusvm.kernel import RwSemaphore
from gpusvm.mm.api import DevPagemap, MemoryManagerApi, Pfns

from gpusvm_xe.copy import EngineFence

if TYPE_CHECKING:
    from gpusvm.driver import Host, RuntimePmPolicy
    from gpusvm.gpu import CopyEngine

    from gpusvm_xe.pm import XeRuntimePm

__all__ = ["XeBoMapping", "XeVram"]


class XeBoMapping:
    """Lead from a page of VRAM to its object: page -> zdd -> devmem -> bo (xe_svm.c:to_xe_bo).

    The first step is core's: by zone_device_data, or by the index of the drm_pagemap. So there is nothing to keep here.
    """

    def __init__(self, memory: MemoryManagerApi) -> None:
        self.memory = memory

    def attach(self, bo: Bo, pfns: Pfns) -> None:
        """Nothing to keep: core lets each page lead to the zdd."""

    def bo_of(self, pfn: int) -> Bo:
        """Return the object that holds a live page."""
        bo: Bo = page_zdd(self.memory, pfn).devmem.container
        return bo

    def split(self, head: int, tail: int) -> None:
        """Nothing to do: core gives the tail the zdd of the head."""

    def free(self, pfn: int, order: int) -> None:
        """Nothing to forget."""


class XeVram:
    """Own one tile's VRAM (struct xe_vram_region with its manager).

    Injection site: ``bo.alloc``, in core.
    """

    def __init__(
        self,
        host: "Host",
        engine: "CopyEngine",
        *,
        validation: RwSemaphore,
        index: int,
        power: "XeRuntimePm",
        pm: "RuntimePmPolicy",
    ) -> None:
        memory = host.memory
        self.kernel = host.kernel
        self.memory = memory
        self.page_shift = memory.geometry.page_shift
        self.usable_bytes = host.device.vram_bytes // host.device.tiles
        # Where it begins among the VRAM of the device, as that sees it itself and as the PCI bus does.
        self.offset_bytes = index * self.usable_bytes
        self.engine = engine
        self.bos = BoManager(
            host.kernel,
            Buddy(self.usable_bytes >> self.page_shift),
            name=f"{host.device.name} vram{index}",
            evict=self._evict,
            page_shift=self.page_shift,
            makes_room=host.tunables.evict_order != "none",
        )
        self.power = power
        self.pm = pm
        # Allocations share it, whatever tile they are for; one that found no room takes it alone and tries once more
        # (xe_validation.c).
        self.validation = validation
        self._late = host.device.late_clears
        self._need_64k = host.tunables.need_64k
        self._evict_attempts = host.tunables.evict_attempts
        self._passes_over = host.quirks.evict_all_stops == "fixed"

    def create(self, size_pages: int) -> tuple[Bo, EngineFence]:
        """Allocate and lock an object, evicting older ones, and queue its clear; ENOMEM.
        `validation` is held. EINVAL where VRAM comes in 64 KiB and the object is smaller (xe_bo_init_locked).
        """
        if self._need_64k and size_pages << self.page_shift & 0xFFFF:
            raise KernelError(errno.EINVAL, f"{size_pages} pages are no multiple of 64 KiB")
        bo = self.bos.create(size_pages)
        # A device object without system pages behind it "needs clear" (xe_bo_move): holes then read as zero.
        with self.power.bo_move():
            due_ns = self.engine.clear(size_pages << self.page_shift)
            fence = EngineFence(self.kernel, "bo_clear", due_ns, late=self._late)
        if self._late:
            bo.busy = fence
        return bo, fence

    def clear_late(self, fence: EngineFence, clear: Callable[[], None]) -> None:
        """Have the engine clear an object when it gets to it, which may be after the object has pages."""

        def effect() -> None:
            clear()
            fence.signal()

        self.engine.later(effect)

    @staticmethod
    def pfns(bo: Bo, pagemap: DevPagemap) -> Pfns:
        """Return the pages of an object in the order of its blocks (xe_svm_populate_devmem_pfn)."""
        first = pagemap.start_pfn
        blocks = bo.blocks
        if len(blocks) == 1:
            start, n = blocks[0]
            return np.arange(first + start, first + start + n, dtype=np.int64)
        return np.concatenate([np.arange(first + start, first + start + n, dtype=np.int64) for start, n in blocks])

    def release(self, devmem: Devmem) -> None:
        """Give back what the pages of an allocation held; they are all gone. May be in atomic context."""
        bo: Bo = devmem.container
        devmem.pre_migrate_fence = None
        bo.put_async()
        self.pm.pages_gone(bo)

    def evict_all(self) -> KernelError | None:
        """Evict every object, oldest first, as far as that goes; return the error that ended it (xe_bo_evict_all)."""
        return self.bos.evict_all(passes_over=self._passes_over)

    def _evict(self, bo: Bo) -> None:
        """Move an object's contents to RAM, its lock held (xe_bo_move to SYSTEM: xe_svm_bo_evict).

        EBUSY, which xe turns into ENOSPC, makes the walk for room skip the object; any other error ends that too.
        """
        if bo.devmem is None:
            raise KernelError(errno.ENOSPC, "not in use yet")
        try:
            evict_to_ram(bo.devmem, attempts=self._evict_attempts)
        except KernelError as error:
            if error.errno == errno.EBUSY:
                raise KernelError(errno.ENOSPC, error.detail) from error
            raise
