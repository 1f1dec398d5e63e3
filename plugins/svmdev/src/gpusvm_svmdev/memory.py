"""The memory of one svmdev device: plain RAM that is handed out in contiguous allocations, one for each populate.

It is the `DevmemOps` of every allocation and the `BoMapping` of the driver: a page leads to its allocation by its
index.
"""

from bisect import bisect_right, insort
from collections.abc import Callable
from errno import EIO, ENOMEM
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import numpy as np
from attrs import define
from gpusvm.drm import Devmem, Fence, PagemapAddrs, copy_contents
from gpusvm.errors import KernelError
from gpusvm.gpu import charge_cpu_copy
from gpusvm.kernel import Kref
from gpusvm.mm.api import Pfns

from gpusvm_svmdev.uapi import FAIL_ALLOC, FAIL_PFN, FAIL_TODEV, FAIL_TORAM

if TYPE_CHECKING:
    from gpusvm.driver import Host

__all__ = ["SvmdevBo", "SvmdevMemory"]

_first = attrgetter("first")


@define(eq=False)
class SvmdevBo:
    """Be one allocation: `npages` pages from index `first` on. One reference is its pages', others are of calls."""

    first: int
    npages: int
    ref: Kref
    devmem: Devmem | None = None


class SvmdevMemory:
    """Own `pages` pages, the first of which has the pfn `first_pfn`.

    First fit, aligned to the size of the allocation up to that of a PMD. `bos` are the allocations that live, oldest
    first; `allocated` and `released` count them from the beginning. What `fail_next` armed fails once; injection sites:
    ``svmdev.alloc``, ``svmdev.populate_devmem_pfn``, ``svmdev.copy_to_devmem``, ``svmdev.copy_to_ram``. `copied`, if
    there is one, is told whose pages are copied out.
    """

    def __init__(self, host: "Host", pages: int) -> None:
        self.kernel = host.kernel
        self.memory = host.memory
        self.pages = pages
        self.first_pfn = -1
        self.lock = host.kernel.spinlock("svmdev->lock")
        self.bos: list[SvmdevBo] = []
        self.allocated = self.released = self.pages_in_use = 0
        self._by_place: list[SvmdevBo] = []
        self._fail = [0, 0, 0, 0]
        self.make_room: Callable[[SvmdevBo], None] | None = None
        self.copied: Callable[[Devmem], None] | None = None
        self._page_shift = host.memory.geometry.page_shift
        host.kernel.gauges.declare("bo")

    # ---- allocations ---------------------------------------------------------------------------------------------

    def alloc(self, npages: int) -> SvmdevBo:
        """Allocate zeroed pages; ENOMEM. The reference that comes along is the pages'.

        Where there is no room and a `make_room`, that is given the oldest allocations to bring home, one by one.
        """
        kernel = self.kernel
        if self._fails(FAIL_ALLOC) or kernel.inject("svmdev.alloc"):
            raise KernelError(ENOMEM, "made to fail")
        bo = self._allocated(npages)
        if bo is None and self.make_room is not None and npages <= self.pages:
            bo = self._room_made(npages, self.make_room)
        if bo is None:
            raise KernelError(ENOMEM, f"no room for {npages} pages of device memory")
        return bo

    def _room_made(self, npages: int, evict: Callable[[SvmdevBo], None]) -> SvmdevBo | None:
        """Evict the oldest allocations until there is room; what is busy stays, and the next is tried."""
        busy = 0
        while (oldest := self.nth(busy)) is not None:
            try:
                evict(oldest)
            except KernelError:
                busy += 1
                continue
            finally:
                oldest.ref.put("evict")
            bo = self._allocated(npages)
            if bo is not None:
                return bo
        return None

    def _allocated(self, npages: int) -> SvmdevBo | None:
        kernel = self.kernel
        self.lock.lock()
        try:
            first = self._find(npages)
            if first is None:
                return None
            bo = SvmdevBo(first, npages, Kref(kernel, "bo", self._freed, holder="pages"))
            self.bos.append(bo)
            insort(self._by_place, bo, key=_first)
            self.allocated += 1
            self.pages_in_use += npages
        finally:
            self.lock.unlock()
        kernel.gauges.inc("bo")
        charge_cpu_copy(kernel, npages << self._page_shift, 1)
        return bo

    def nth(self, k: int) -> SvmdevBo | None:
        """Take a reference on the k-th oldest allocation, named "evict"; None if there is none."""
        with self.lock:
            bo = self.bos[k] if k < len(self.bos) else None
            return bo if bo is not None and bo.ref.get_unless_zero("evict") else None

    def holding(self, pfn: int) -> SvmdevBo | None:
        """Do so with the allocation that holds a page."""
        with self.lock:
            bo = self.bo_of(pfn)
            return bo if bo is not None and bo.ref.get_unless_zero("evict") else None

    def held(self) -> list[SvmdevBo]:
        """Do so with all that live, oldest first."""
        with self.lock:
            return [bo for bo in self.bos if bo.ref.get_unless_zero("evict")]

    def fail_next(self, what: int, n: int) -> None:
        """Make the n-th next call of one kind (a FAIL_ number) fail; 0: none."""
        self._fail[what] = n

    def _find(self, npages: int) -> int | None:
        align = min(1 << (npages - 1).bit_length(), self.memory.geometry.pmd_nr)
        at = 0
        for bo in self._by_place:
            if at + npages <= bo.first:
                break
            at = (bo.first + bo.npages + align - 1) & -align
        return at if at + npages <= self.pages else None

    def _fails(self, what: int) -> bool:
        left = self._fail[what]
        if left:
            self._fail[what] = left - 1
        return left == 1

    def _freed(self) -> None:
        self.kernel.gauges.dec("bo")

    # ---- struct drm_pagemap_devmem_ops ---------------------------------------------------------------------------

    def devmem_release(self, devmem: Devmem) -> None:
        """Take the pages of an allocation back; the last of them is gone. May be in atomic context."""
        bo: SvmdevBo = devmem.container
        with self.lock:
            self.bos.remove(bo)
            self._by_place.remove(bo)
            self.released += 1
            self.pages_in_use -= bo.npages
        bo.ref.put("pages")

    def populate_devmem_pfn(self, devmem: Devmem, npages: int) -> Pfns:
        """Name the pages of an allocation; ENOMEM only where that was asked for."""
        if self._fails(FAIL_PFN) or self.kernel.inject("svmdev.populate_devmem_pfn"):
            raise KernelError(ENOMEM, "made to fail")
        bo: SvmdevBo = devmem.container
        first = self.first_pfn + bo.first
        return np.arange(first, first + npages, dtype=np.int64)

    def copy_to_devmem(self, device_pfns: Pfns, addrs: PagemapAddrs, fence: Fence | None) -> None:
        """Copy by CPU; EIO only where that was asked for."""
        if self._fails(FAIL_TODEV) or self.kernel.inject("svmdev.copy_to_devmem"):
            raise KernelError(EIO, "made to fail")
        copy_contents(self.memory, device_pfns, addrs.pfns, addrs.order, addrs.npages)
        charge_cpu_copy(self.kernel, addrs.npages << self._page_shift, len(addrs))

    def copy_to_ram(self, device_pfns: Pfns, addrs: PagemapAddrs, fence: Fence | None) -> None:
        """Copy by CPU, to system memory or to the memory of another device; EIO only where that was asked for."""
        if self._fails(FAIL_TORAM) or self.kernel.inject("svmdev.copy_to_ram"):
            raise KernelError(EIO, "made to fail")
        if self.copied is not None:
            bo = self.bo_of(int(device_pfns[0]))
            assert bo is not None
            assert bo.devmem is not None
            self.copied(bo.devmem)
        copy_contents(self.memory, addrs.pfns, device_pfns, addrs.order, addrs.npages)
        charge_cpu_copy(self.kernel, addrs.npages << self._page_shift, len(addrs))

    # ---- from a page to its allocation (`gpusvm.driver.BoMapping`) -----------------------------------------------

    def attach(self, bo: Any, pfns: Pfns) -> None:
        """Nothing to remember: an allocation knows its place."""

    def bo_of(self, pfn: int) -> SvmdevBo | None:
        """Return the allocation that holds a page (page_index, bo_at)."""
        index = pfn - self.first_pfn
        at = bisect_right(self._by_place, index, key=_first) - 1
        if at < 0:
            return None
        bo = self._by_place[at]
        return bo if index < bo.first + bo.npages else None

    def split(self, head: int, tail: int) -> None:
        """Nothing to do: pages do not move in a split."""

    def free(self, pfn: int, order: int) -> None:
        """Nothing to forget before the last page: see `devmem_release`."""
