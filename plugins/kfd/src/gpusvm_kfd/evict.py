"""drivers/gpu/drm/amd/amdkfd/kfd_svm.c:svm_range_evict_svm_bo, as of Linux 7.3.4: make room by the addresses of ranges.

The opposite of drm_pagemap, which evicts by pfn and needs nothing of the process: here the process, its mmap_lock and
the ranges have to be reached from the object, against the order of locks, so that everything is only tried.
"""

from errno import EBUSY
from typing import TYPE_CHECKING

from gpusvm.errors import KernelError

from gpusvm_kfd.migrate import vram_to_ram

if TYPE_CHECKING:
    from gpusvm.mm.api import MmApi

    from gpusvm_kfd.svm_bo import SvmRangeBo
    from gpusvm_kfd.svm_range import SvmRange

__all__ = ["evict_svm_bo"]


def evict_svm_bo(svm_bo: "SvmRangeBo") -> None:
    """Bring the pages of all ranges of an object home (svm_range_evict_svm_bo). The object is reserved.

    EBUSY: TTM passes it over.
    """
    if not svm_bo.kref.get_unless_zero("evict"):
        return
    busy = False
    mm = svm_bo.mm
    alive = mm.mmget_not_zero()
    if alive:
        if mm.mmap_lock.down_read_trylock():
            busy = not _empty(svm_bo)
            mm.mmap_lock.up_read()
        else:
            busy = True
        _put_user(mm)
    if not busy and svm_bo.kref.count != 1:
        if svm_bo.device.exact:
            busy = True
        elif alive:
            svm_bo.kernel.warn("svm_range_evict_svm_bo", "This was not the last reference")
    svm_bo.unref("evict")
    if busy:
        raise KernelError(EBUSY, "an object of a range that is busy, or in use elsewhere")


def _put_user(mm: "MmApi") -> None:
    """Drop the user: an object is reserved, and whatever the end of a process takes must not come after that."""
    mm.mmput_async()


def _empty(svm_bo: "SvmRangeBo") -> bool:
    """Empty range after range; False if one is busy or, with evict_leftovers fixed, keeps pages."""
    svm_bo.kernel.write_once(svm_bo, "evicting", True)
    emptied = True
    svm_bo.list_lock.lock()
    while svm_bo.ranges and emptied:
        prange = svm_bo.ranges[0]
        # On the list it cannot be freed, and under its mutex neither.
        if not prange.migrate_mutex.trylock():
            emptied = svm_bo.evicting = False
            break
        svm_bo.ranges.remove(prange)
        svm_bo.list_lock.unlock()
        emptied = _send_home(svm_bo, prange)
        if not prange.actual_loc:
            with prange.lock:
                prange.svm_bo = None
        elif svm_bo.device.exact:
            emptied = svm_bo.evicting = False
            svm_bo.link(prange)
        prange.migrate_mutex.unlock()
        svm_bo.list_lock.lock()
    svm_bo.list_lock.unlock()
    return emptied


def _send_home(svm_bo: "SvmRangeBo", prange: "SvmRange") -> bool:
    for _ in range(svm_bo.device.tunables.home_tries):
        try:
            vram_to_ram(prange, svm_bo.mm, prange.start, prange.end)
        except KernelError:
            return False
        if not prange.actual_loc:
            break
    return True
