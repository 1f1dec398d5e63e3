"""drivers/gpu/drm/amd/amdkfd/kfd_svm.c:struct svm_range_bo, as of Linux 7.3.4: the buffer object behind a range.

One object holds the whole range, whatever part of it is in VRAM: page i of the range is page `offset` + i of the
object. Each range that a split made of it has a reference, and so has each device page, in whose zone_device_data the
object is.
"""

from typing import TYPE_CHECKING

import numpy as np
from gpusvm.kernel import Kref, Work

if TYPE_CHECKING:
    from gpusvm.drm import Bo
    from gpusvm.mm.api import MmApi, Pfns

    from gpusvm_kfd.device import KfdDevice
    from gpusvm_kfd.svm_range import SvmRange

__all__ = ["SvmRangeBo", "vram_node_free", "vram_node_new"]


class SvmRangeBo:
    """Be one object. `pfns` are its pages, in order, and of each: whether it is `live`, from its first reference to its
    last; `resident`, that is in an address space as far as the driver knows; and `dirty`, used since it was cleared.
    """

    def __init__(self, device: "KfdDevice", mm: "MmApi", bo: "Bo") -> None:
        kernel = device.kernel
        self.device = device
        self.kernel = kernel
        self.mm = mm
        self.bo = bo
        self.blocks = list(bo.blocks)
        self.pfns: Pfns = np.concatenate([np.arange(first, first + n) for first, n in bo.blocks]) + device.first_pfn
        self.live = np.zeros(len(self.pfns), np.bool_)
        self.resident = np.zeros(len(self.pfns), np.bool_)
        self.dirty = np.zeros(len(self.pfns), np.bool_)
        self.ranges: list[SvmRange] = []
        self.list_lock = kernel.spinlock("svm_bo->list_lock")
        self.evicting = False
        self._by_page = False
        self._release_work = Work(self._release, "svm_range_bo_wq_release")
        self.kref = Kref(kernel, "svm_range_bo", self._released, holder="range")
        mm.mmgrab()

    def index(self, pfns: "Pfns") -> "Pfns":
        """Return which of the object's pages device pages are; -1 for others'."""
        found = np.full(len(pfns), -1, np.int64)
        at = 0
        for first, n in self.blocks:
            inside = pfns - (self.device.first_pfn + first)
            np.copyto(found, inside + at, where=(inside >= 0) & (inside < n))
            at += n
        return found

    def link(self, prange: "SvmRange") -> None:
        """Put a range at the head of the list."""
        with self.list_lock:
            self.ranges.insert(0, prange)

    def unlink(self, prange: "SvmRange") -> None:
        """Take a range off the list, if it is on it."""
        with self.list_lock:
            if prange in self.ranges:
                self.ranges.remove(prange)

    # ---- references ----------------------------------------------------------------------------------------------

    def unref(self, holder: str) -> None:
        """Drop a reference; the last frees the object at once (svm_range_bo_unref). Sleeps."""
        self.kref.put(holder)

    def unref_async(self, n: int) -> None:
        """Drop the references of pages; with the last a worker frees the object (svm_range_bo_unref_async)."""
        self._by_page = True
        if not self.kref.put("page", n):
            self._by_page = False

    def _released(self) -> None:
        if self._by_page:
            self.device.kfd.release_queue.queue(self._release_work)
        else:
            self._release()

    def _release(self) -> None:
        """Let the ranges forget the object, and give its memory back (svm_range_bo_release)."""
        kernel, fixed = self.kernel, self.device.quirks.freed_range == "fixed"
        self.list_lock.lock()
        while self.ranges:
            prange = self.ranges[0]
            if fixed and not prange.lock.trylock():
                self.list_lock.unlock()
                if prange in self.ranges and prange.lock.owner is not None:
                    kernel.cpu_relax()
                self.list_lock.lock()
                continue
            self.ranges.remove(prange)
            self.list_lock.unlock()
            if not fixed:
                prange.lock.lock()
            prange.svm_bo = None
            if prange.actual_loc and not self.device.exact:
                kernel.warn("svm_range_bo_release", "prange should not hold vram page")
            prange.lock.unlock()
            self.list_lock.lock()
        self.list_lock.unlock()
        self.bo.put()

    def destroy(self) -> None:
        """End with the object that it embeds (svm_range_bo_destroy)."""
        mm = self.mm
        self.kernel.free(self, self.list_lock, self._release_work)
        mm.mmdrop()


def vram_node_new(device: "KfdDevice", prange: "SvmRange") -> None:
    """Give a range an object on `device`, cleared, or let it keep the one that it has (svm_range_vram_node_new).

    ENOMEM: there is no room; EINVAL: the process is gone.
    """
    if _validate(device, prange):
        return
    mm = prange.svms.process.mm
    bo = device.bos.create(prange.pages)
    bo.resv.unlock()
    svm_bo = SvmRangeBo(device, mm, bo)
    bo.container = svm_bo
    through_ns = device.engine.clear(prange.pages << device.page_shift, len(bo.blocks))
    device.engine.wait(through_ns)
    prange.svm_bo, prange.has_res, prange.offset = svm_bo, True, 0
    svm_bo.link(prange)


def _validate(device: "KfdDevice", prange: "SvmRange") -> bool:
    """Tell whether the range has an object that it can use; wait until one that it has lost is gone
    (svm_range_validate_svm_bo).
    """
    kernel = device.kernel
    with prange.lock:
        svm_bo = prange.svm_bo
        if svm_bo is None:
            return False
        if prange.has_res:
            return True
        taken = svm_bo.kref.get_unless_zero("range")
        if taken and svm_bo.device is device and not kernel.read_once(svm_bo, "evicting"):
            prange.has_res = True
            return True
    if taken:
        if svm_bo.device is not device:
            svm_bo.unlink(prange)
            prange.svm_bo = None  # which the kernel leaves, dangling if no new object can be made
            svm_bo.unref("range")
            return False
        svm_bo.unref("range")
    while kernel.read_once(prange, "svm_bo") is not None:
        kernel.cpu_relax()
    return False


def vram_node_free(prange: "SvmRange") -> None:
    """Drop the range's reference of its object (svm_range_vram_node_free)."""
    with prange.lock:
        svm_bo, held = prange.svm_bo, prange.has_res
        prange.has_res = False
    if held:
        assert svm_bo is not None
        svm_bo.unref("range")
