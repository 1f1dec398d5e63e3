"""drivers/gpu/drm/xe/xe_vm.c, as of Linux 7.3.4: a GPU address space in fault mode that mirrors a
process.
"""

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, ClassVar

from attrs import frozen
from gpusvm.driver import QueueFaults, RangeUnit
from gpusvm.drm import DrmPagemap, GpuSvm, GpuSvmCtx, Peer
from gpusvm.errors import KernelError
from gpusvm.gpu import GpuPageTable
from gpusvm.kernel import Kref
from gpusvm.mm.api import MmApi

from gpusvm_xe.asid import ASID_BITS
from gpusvm_xe.attributes import PreferredLocation
from gpusvm_xe.garbage import GarbageCollector
from gpusvm_xe.madvise import advise
from gpusvm_xe.pagefault import PROPERTY_FAULTS, SavedFaults, XeVmFault
from gpusvm_xe.prefetch import prefetch
from gpusvm_xe.pt import XePt
from gpusvm_xe.svm import XeSvm, XeSvmRange, evict_range
from gpusvm_xe.userptr import XeUserptr
from gpusvm_xe.vma import XeVma, XeVmas

if TYPE_CHECKING:
    from gpusvm_xe.driver import XeDriver
    from gpusvm_xe.tile import XeTile

__all__ = ["XeTileVm", "XeVm"]


@frozen
class XeTileVm:
    """Be one VM for the engines of one of its tiles (`gpusvm.driver.Vm`)."""

    vm: "XeVm"
    page_table: GpuPageTable
    faults: QueueFaults

    @property
    def mm(self) -> MmApi:
        return self.vm.mm

    def populate(self, start: int, end: int) -> int:
        return self.vm.populate(start, end)

    def close(self) -> None:
        self.vm.close()


class XeVm:
    """Hold one address space: its lock, its ranges, its page table.

    `lock` (vm->lock) is held for writing while a fault is served, `resv` while PTEs are written. Lock order: lock > the
    driver's migrate lock > mmap_lock > validation > resv > notifier lock.
    """

    outlives: ClassVar = frozenset(
        {
            *("asid", "banned", "close", "closed", "faults", "page_table", "page_tables"),
            *("_ioctl", "assert_usable", "bind_userptr", "get_property", "madvise", "mirror", "populate"),
        }
    )
    """What belongs to the handle that a program has, and to its GPU, and so is there when the VM is gone."""

    def __init__(
        self,
        driver: "XeDriver",
        mm: MmApi,
        *,
        asid: int,
        start: int,
        end: int,
        pagemaps: Sequence[DrmPagemap],
    ) -> None:
        memory, tunables = driver.memory, driver.tunables
        self.driver = driver
        kernel = self.kernel = driver.kernel
        self.mm = mm
        self.asid = asid
        self.start = start
        self.end = end
        self.closed = False
        self.banned = False
        self.pagemaps = pagemaps  # of all tiles, each with a reference
        # Held by the file until `close`, and by whoever works on the VM meanwhile (xe_vm_get, xe_vm_put).
        self._kref = Kref(kernel, "vm", self._free, holder="file")
        self.page_shift = memory.geometry.page_shift
        self.lock = kernel.rwsem("xe_vm_lock")
        self.resv = kernel.mutex("xe_vm_resv")
        self.pt = XePt(self)
        self.page_tables = self.pt.roots
        self.page_table = self.page_tables[0]
        self.faults = self._faults_of(0)
        self.saved = SavedFaults(kernel)
        self.userptrs: list[XeUserptr] = []
        self.garbage = GarbageCollector(self)
        self.vmas = XeVmas(self, start, end)
        discrete = driver.spec.discrete
        self.peer = Peer(self)
        owner = driver.shared.owners.acquire_owner(self.peer, driver.has_interconnect)
        threshold = tunables.check_pages_threshold if discrete else 0
        self.ctx_fault = GpuSvmCtx(
            device_private_page_owner=owner,
            devmem_possible=discrete,
            check_pages_threshold=threshold,
            allow_mixed=tunables.allow_mixed,
        )
        self.ctx_atomic = GpuSvmCtx(
            device_private_page_owner=owner,
            devmem_possible=discrete,
            check_pages_threshold=threshold,
            devmem_only=discrete,
        )
        # Where RAM is wanted, nobody's device pages will do (xe_svm_private_page_owner).
        self.ctx_smem = GpuSvmCtx(devmem_possible=discrete, check_pages_threshold=threshold)
        self.ctx_insert = GpuSvmCtx(devmem_possible=discrete)
        self.ctx_notifier = GpuSvmCtx(in_notifier=True)
        page_size = memory.geometry.page_size
        self.gpusvm = GpuSvm(
            kernel,
            memory,
            f"{driver.device.name} svm",
            mm,
            drm=driver.device,
            mm_start=start,
            mm_range=end - start,
            notifier_size=tunables.notifier_size,
            ops=XeSvm(self),
            chunk_sizes=(*(size for size in tunables.chunk_sizes if size > page_size), page_size),
        )
        self.gpusvm.driver_set_lock(self.lock)

    def on_tile(self, index: int) -> "XeTileVm":
        """Return the address space as the engines of another tile use it; `close` and `populate` are the VM's."""
        return XeTileVm(self, self.page_tables[index], self._faults_of(index))

    def _faults_of(self, tile: int) -> QueueFaults:
        driver = self.driver
        queue = self.asid % driver.tunables.queues
        return QueueFaults(driver.queues, inst=self.asid | tile << ASID_BITS, queue=queue)

    def get(self, holder: str) -> None:
        """Keep the VM while it is worked on, whether it is closed meanwhile or not (xe_vm_get)."""
        self._kref.get(holder)

    def put(self, holder: str) -> None:
        """Let go of it (xe_vm_put); the last frees it."""
        self._kref.put(holder)

    def assert_locked(self, where: str) -> None:
        """Warn if the caller does not hold the lock for writing (lockdep_assert_held_write in the function `where`)."""
        if not self.lock.is_mine_to_write:
            self.kernel.warn(where, f"the lock of address space {self.asid} is not held for writing")

    # ---- what programs ask for -----------------------------------------------------------------------------------

    def populate(self, start: int, end: int, *, region: int | None = None) -> int:
        """Bring [start, end) to a region and map it there (DRM_XE_VM_BIND_OP_PREFETCH); the bytes that moved.

        Region 0 is RAM, n the VRAM of tile n-1, `CONSULT_MADVISE` what the attributes say; None the root tile's VRAM,
        if there is any. Best effort: what cannot be brought is no error. ENODEV after unplug, ENOENT for a VM that is
        closed, EINVAL for no region, the errno of a VMA that can have no range (EPERM: not writable), and that of
        get_pages where it is none of a race.
        """
        with self._ioctl():
            self.garbage.work.flush()
            with self.lock.write():
                return prefetch(self, start, end, int(self.driver.spec.discrete) if region is None else region)

    def madvise(
        self, start: int, end: int, *, preferred_location: PreferredLocation | None = None, atomic: int | None = None
    ) -> None:
        """Say where the memory of [start, end) should be, or who does atomics on it (DRM_IOCTL_XE_MADVISE).

        One of the two at a time. GPU-VMAs are split where it begins and ends; ranges that are cut come home and are
        removed, the others are zapped where anything changed. EINVAL for numbers that make no sense, ENOENT for a VM
        that is closed and for a file that is none of an xe device or has no such region, ENODEV if that device or the
        VM's own is unplugged, ENOLINK without a path to it, EPIPE where a TLB cannot be told, ENOMEM.
        """
        what = preferred_location if atomic is None else atomic
        if what is None or (atomic is not None and preferred_location is not None):
            raise KernelError(errno.EINVAL, "madvise: one attribute at a time, preferred_location or atomic")
        with self._ioctl():
            advise(self, start, end, what)

    def mirror(self, start: int, end: int, *, autoreset: bool = False) -> None:
        """Mirror [start, end) anew, with default attributes (DRM_XE_VM_BIND_OP_MAP with CPU_ADDR_MIRROR).

        With `autoreset` they fall back to that whenever the CPU unmaps the memory. Neighbours with default attributes
        become part of it. EBUSY where a GPU-VMA would be cut that has something mapped there; EINVAL, ENOMEM.
        """
        with self._ioctl():
            self.garbage.work.flush()
            with self.lock.write():
                self.assert_usable()
                self.vmas.map(*self.vmas.mergeable(start, end), autoreset=autoreset)

    def get_property(self, prop: int, size_bytes: int = 0) -> int | list[XeVmFault]:
        """Answer DRM_XE_VM_GET_PROPERTY: with size 0 how many bytes there are, otherwise the faults that failed, the
        oldest first, as many as fit. ENOENT for a closed VM, EINVAL for another property, more faults than there are,
        or a part of one (xe_vm_get_property_ioctl).
        """
        with self._ioctl():
            if prop != PROPERTY_FAULTS:
                raise KernelError(errno.EINVAL, f"no property {prop}")
            return self.saved.first(size_bytes) if size_bytes else self.saved.size_bytes()

    def bind_userptr(self, start: int, end: int) -> XeUserptr:
        """Bind memory of the process by itself, at its own addresses (DRM_XE_VM_BIND_OP_MAP_USERPTR): from now on it is
        no part of the mirror. The first fault of a tile maps it there.

        EBUSY where the mirror has something mapped; EFAULT and EPERM for what the CPU may not write; ENOMEM, ENODEV,
        ENOENT.
        """
        with self._ioctl():
            self.garbage.work.flush()
            with self.lock.write():
                self.assert_usable()
                if self.gpusvm.has_mapping(start, end) or any(self.userptrs_in(start, end)):
                    raise KernelError(errno.EBUSY, f"the GPU has memory of [{start:#x}, {end:#x}) mapped")
                self.vmas.split(start, end)  # ranges do not reach in from beside
                userptr = XeUserptr(self, start, end)
                self.userptrs.append(userptr)
                return userptr

    def userptrs_in(self, start: int, end: int) -> Iterator[XeUserptr]:
        """Go through what is bound by itself in [start, end)."""
        return (userptr for userptr in self.userptrs if userptr.start < end and userptr.end > start)

    @contextmanager
    def _ioctl(self) -> Iterator[None]:
        """Surround an ioctl on the VM (xe_vm_lookup): it stays, though it may be closed meanwhile."""
        if self.closed:
            raise KernelError(errno.ENOENT, f"the address space {self.asid} is closed")
        self.get("ioctl")
        try:
            with self.driver.ioctl():
                yield
        finally:
            self.put("ioctl")

    def assert_usable(self) -> None:
        """Raise ENOENT if the VM is closed or banned (xe_vm_is_closed_or_banned)."""
        if self.closed or self.banned:
            raise KernelError(errno.ENOENT, f"the address space {self.asid} is closed")

    # ---- ranges --------------------------------------------------------------------------------------------------

    def ranges(self, start: int, end: int) -> list[XeSvmRange]:
        """Return the ranges that overlap [start, end), ascending."""
        return [range_ for range_ in self.gpusvm.ranges(start, end) if isinstance(range_, XeSvmRange)]

    def unmap_address_range(self, start: int, end: int) -> None:
        """Bring home and remove the ranges that reach into [start, end) and beyond it (xe_svm_unmap_address_range)."""
        for range_ in self.ranges(start, end):
            if range_.start < start or range_.end > end:
                if range_.pages.has_devmem_pages:
                    evict_range(self.gpusvm, range_)
                range_.get()
                self.garbage.remove(range_)
                self.garbage.forget(range_)
                range_.put()

    def bind(self, unit: RangeUnit, tile: "XeTile", vma: XeVma) -> bool:
        """Write the PTEs of a range on one tile unless its pages went stale (xe_vm_range_rebind: -EAGAIN); False if
        they did.
        """
        with self.resv:
            return unit.commit(lambda: self.pt.bind(unit.range, tile, vma))

    # ---- the end -------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """End the address space: refuse faults, unmap everything, stop the collector, remove all ranges
        (xe_vm_close_and_put).
        """
        if self.closed:
            return
        with self.lock.write(), self.gpusvm.notifier_lock.write():
            self.closed = True
            self.pt.clear()
            # xe_svm_fini, a little later and range by range: before drm_gpusvm_fini takes the notifiers away.
            for range_ in self.gpusvm.every_range():
                self.gpusvm.unmap_pages(range_.pages, self.ctx_notifier)
        self.garbage.stop()
        for dpagemap in self.pagemaps:  # xe_svm_close; ranges hold those that they map
            dpagemap.put("vm")
        self.driver.shared.owners.release_owner(self.peer)
        with self.lock.write():
            for userptr in self.userptrs:
                userptr.remove()
            self.userptrs.clear()
            self.gpusvm.fini()
            self.vmas.fini()
        self.driver.vm_forget(self)
        self.put("file")

    def _free(self) -> None:
        """Give back what the VM held (vm_destroy_work_func)."""
        self.driver.power.vm_close(self)
        garbage = self.garbage
        gpusvm = self.gpusvm
        saved = self.saved
        self.kernel.free(
            self,
            self.lock,
            self.resv,
            gpusvm,
            gpusvm.notifier_lock,
            garbage,
            garbage.work,
            garbage.lock,
            saved,
            saved.lock,
        )
