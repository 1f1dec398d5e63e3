"""drivers/gpu/drm/xe/xe_vm.c and xe_pt.c, as of Linux 7.3.4: a GPU address space in fault mode that mirrors a
process.
"""

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, ClassVar

from attrs import frozen
from gpusvm.driver import QueueFaults, RangeUnit
from gpusvm.drm import DrmPagemap, GpuSvm, GpuSvmCtx, GpuSvmRange, Peer
from gpusvm.errors import KernelError
from gpusvm.gpu import GpuPageTable
from gpusvm.kernel import Kref
from gpusvm.mm.api import MmApi

from gpusvm_xe.asid import ASID_BITS
from gpusvm_xe.attributes import (
    ATOMIC_CPU,
    ATOMIC_DEVICE,
    ATOMIC_GLOBAL,
    ATOMIC_UNDEFINED,
    PreferredLocation,
    XeVma,
    XeVmas,
    permissions,
)
from gpusvm_xe.gt import submit_range, wait_batch
from gpusvm_xe.madvise import advise
from gpusvm_xe.pagefault import PROPERTY_FAULTS, SavedFaults, XeVmFault
from gpusvm_xe.pagemap import XE_INTERCONNECT_VRAM
from gpusvm_xe.prefetch import prefetch
from gpusvm_xe.svm import GarbageCollector, XeSvm, XeSvmRange, evict_range
from gpusvm_xe.userptr import XeUserptr

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
        self.pmd_order = memory.geometry.pmd_order
        self.lock = kernel.rwsem("xe_vm_lock")
        self.resv = kernel.mutex("xe_vm_resv")
        # Each tile walks a table of its own (vm->pt_root[]).
        self.page_tables = [GpuPageTable(kernel, memory, mm) for _ in driver.tiles]
        self.page_table = self.page_tables[0]
        self.faults = self._faults_of(0)
        self.saved = SavedFaults(kernel)
        self.userptrs: list[XeUserptr] = []
        self.garbage = GarbageCollector(self)
        self.vmas = XeVmas(self, start, end)
        discrete = driver.spec.discrete
        atomics_in_ram = bool(tunables.device_atomics_on_smem)
        self._perms = [
            permissions(access, discrete=discrete, atomics_in_ram=atomics_in_ram)
            for access in (ATOMIC_UNDEFINED, ATOMIC_DEVICE, ATOMIC_GLOBAL, ATOMIC_CPU)
        ]
        self.peer = Peer(self)
        owner = driver.shared.owners.acquire_owner(self.peer, driver.has_interconnect)
        threshold = tunables.check_pages_threshold if discrete else 0
        self.ctx_fault = GpuSvmCtx(
            device_private_page_owner=owner, devmem_possible=discrete, check_pages_threshold=threshold
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

    # ---- page table ----------------------------------------------------------------------------------------------

    @staticmethod
    def is_valid(range_: XeSvmRange, tile: "XeTile", dpagemap: DrmPagemap | None) -> bool:
        """Tell whether a tile maps the range, and from `dpagemap` if that is asked for (xe_svm_range_is_valid)."""
        return bool(range_.bound & tile.bit) and (dpagemap is None or range_.is_in(dpagemap))

    def write_ptes(self, range_: GpuSvmRange, tile: "XeTile", vma: XeVma) -> None:
        """Map what get_pages found for one tile, in the largest leaves that fit (xe_pt_stage_bind). The notifier lock
        is held.

        Entries are 4 KiB each, also where the 64 KiB hint applies; a segment of at least 2 MiB is one leaf.
        """
        addrs = range_.pages.dma_addr
        assert addrs is not None
        assert isinstance(range_, XeSvmRange)
        # A range without mixed mappings is all in one place. A peer's VRAM is no VRAM for the page table: every access
        # leaves over the bus. Protocols are numbers of the driver whose memory it is: those of others mean nothing.
        dpagemap = range_.pages.dpagemap
        vram = dpagemap is not None and dpagemap.drm is self.driver.device
        assert not vram or int(addrs.proto[0]) == XE_INTERCONNECT_VRAM
        perm = self._perms[vma.attr.atomic_access][0 if vram else 1]
        vpn = range_.start >> self.page_shift
        page_table = self.page_tables[tile.index]
        kernel = self.kernel
        kernel.charge("bind_base")
        if len(addrs.pfns) == 1:
            leaves = 1 if int(addrs.order[0]) >= self.pmd_order else addrs.npages
            page_table.map_run(vpn, int(addrs.pfns[0]), addrs.npages, perm)
        else:
            leaves = addrs.npages
            page_table.map_pages(vpn, addrs.page_pfns(), perm)
        if range_.pages.has_devmem_pages and range_.pages.protected is not None:
            for page in range_.pages.protected.tolist():
                page_table.mark_stale(vpn + page, vpn + page + 1, "mm_s2")
        kernel.charge("bind_per_pte", leaves)
        range_.tile_present |= tile.bit
        range_.tile_invalidated &= ~tile.bit

    def zap(self, range_: XeSvmRange) -> int:
        """Clear the PTEs of a range in a notifier (xe_pt_zap_ptes_range: memset through the mapped page table); the
        mask of the tiles that had any.
        """
        zapped = range_.bound
        for tile in self.driver.tiles:
            if zapped & tile.bit:
                self.page_tables[tile.index].unmap(range_.start >> self.page_shift, range_.end >> self.page_shift)
        range_.tile_invalidated |= zapped
        return zapped

    def flush(self, tiles: int, start: int, end: int) -> None:
        """Invalidate [start, end) in the TLBs of a mask of tiles; EPIPE."""
        wait_batch(submit_range(self.driver.tiles, tiles, start, end))

    def count_invalidation(self, tiles: int) -> None:
        """Count that entries of a range were zapped on a mask of tiles (xe_svm_tlb_inval_count_stats_incr)."""
        for tile in self.driver.tiles:
            if tiles & tile.bit:
                for gt in tile.gts:
                    gt.stats["svm_tlb_inval_count"] += 1

    def unbind(self, range_: XeSvmRange) -> None:
        """Take a range out of the page table (xe_vm_range_unbind); one that was zapped needs no flush."""
        with self.resv:
            zapped = self.zap(range_)
            if zapped:
                with suppress(KernelError):  # the job that sends the message does not look
                    self.flush(zapped, range_.start, range_.end)
            range_.tile_present = 0

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
        VM's own is unplugged, ENOLINK without a path to it, ENOMEM.
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

    @property
    def default_permissions(self) -> tuple[int, int]:
        """Return the permissions of entries for VRAM and for everything else where nothing was advised."""
        return self._perms[ATOMIC_UNDEFINED]

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
            return unit.commit(lambda: self.write_ptes(unit.range, tile, vma))

    # ---- the end -------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """End the address space: refuse faults, unmap everything, stop the collector, remove all ranges
        (xe_vm_close_and_put).
        """
        if self.closed:
            return
        with self.lock.write(), self.gpusvm.notifier_lock.write():
            self.closed = True
            for page_table in self.page_tables:
                page_table.unmap(self.start >> self.page_shift, self.end >> self.page_shift)
                page_table.retire()
            if not self.driver.device.unplugged:
                for tile in self.driver.tiles:
                    for gt in tile.gts:
                        gt.tlb.invalidate_vm()
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
