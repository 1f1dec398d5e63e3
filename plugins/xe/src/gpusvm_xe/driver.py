"""drivers/gpu/drm/xe/xe_device.c, as of Linux 7.3.4: one xe device with its tiles, from probe to remove."""

import errno
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from gpusvm.driver import (
    DeviceSpec,
    DrmEmbedding,
    FaultAccounts,
    FaultQueues,
    GpuFault,
    Host,
    RuntimePmPolicy,
    drm_embedding,
)
from gpusvm.drm import DrmDevice, DrmPagemap, DrmQuirks, OwnerList, PageIndex, PagemapShrinker, Peer, page_index
from gpusvm.errors import KernelError
from gpusvm.kernel import Kernel, RwSemaphore
from gpusvm.mm.api import DevPagemap, MemoryManagerApi, MmApi

from gpusvm_xe.asid import ASID_BITS, ASID_MASK
from gpusvm_xe.bo import XeBoMapping, XeVram
from gpusvm_xe.faults import XeFaults
from gpusvm_xe.pagefault import SQUASHED, queue_capacity
from gpusvm_xe.plugin import INFO
from gpusvm_xe.pm import XeRuntimePm
from gpusvm_xe.quirks import XeQuirks
from gpusvm_xe.tile import XeTile
from gpusvm_xe.tunables import XeTunables
from gpusvm_xe.vm import XeVm

__all__ = ["XeDriver"]


class XeShared:
    """Hold what the driver has once, for all its devices in the machine: the list of owners and the migrate lock."""

    def __init__(self, kernel: Kernel, owners: OwnerList) -> None:
        self.owners = owners
        self.migrate_lock = kernel.rwsem("driver_migrate_lock")


class XeDriver:
    """Drive one device: faults come through `queues` to `XeFaults`, and `pf_wq` runs the garbage collectors as well."""

    kernel: Kernel
    memory: MemoryManagerApi
    spec: DeviceSpec
    tunables: XeTunables
    quirks: XeQuirks
    shared: "XeShared"
    drm_quirks: DrmQuirks
    migrate_lock: RwSemaphore
    migrates_alone: bool
    validation: RwSemaphore
    tiles: list[XeTile]
    embedding: DrmEmbedding
    bo_mapping: XeBoMapping
    power: XeRuntimePm
    pm: RuntimePmPolicy
    device: DrmDevice
    accounts: FaultAccounts
    queues: FaultQueues

    def __init__(self, host: Host) -> None:
        self.info = INFO
        kernel = self.kernel = host.kernel
        self.memory = host.memory
        self.spec = host.device
        tunables = self.tunables = host.tunables
        self.quirks = host.quirks
        self.host = host
        self.policy = host.fault_policy(self)
        self.peers = host.peers
        others = [peer for peer in host.peers if isinstance(peer, XeDriver)]
        self.shared = others[0].shared if others else XeShared(kernel, host.owners or OwnerList())
        lock = tunables.migrate_lock
        # Whoever populates a second time takes it alone, unless nobody is to wait.
        self.migrate_lock = kernel.rwsem("driver_migrate_lock") if lock == "device" else self.shared.migrate_lock
        self.migrates_alone = lock != "none"
        # One domain of eviction for all tiles: xe->val.
        self.validation = kernel.rwsem("xe_validation")
        self.embedding = host.strategy("embedding", drm_embedding(tunables.embedding))
        self.bo_mapping = XeBoMapping(self.memory)
        self.power = XeRuntimePm(self, host)
        self.pm = host.strategy("pm", self.power, self.power)
        self.tiles = [XeTile(self, host, index) for index in range(self.spec.tiles)]
        self.tile_mask = (1 << self.spec.tiles) - 1
        self.device = DrmDevice(kernel, self.spec.name, pm=self.power.rpm, iommu=self.spec.iommu, module=host.module)
        self.drm_quirks = DrmQuirks(
            hole_count=self.quirks.hole_count,
            evict_dying=self.quirks.evict_dying,
            not_detached=self.quirks.not_detached,
            devmem_mm=self.quirks.devmem_mm,
            shrinker_forgets=self.quirks.shrinker_forgets,
            stale_cache=self.quirks.pagemap_freed,
        )
        self.shrinker = PagemapShrinker(self.device, quirks=self.drm_quirks)
        self.memory.shrinkers.register(self.shrinker)
        self.device.devm_add_action(self._free_shrinker)
        if self.spec.discrete:
            for tile in self.tiles:
                tile.create_cache(self.shrinker)
        self.destroy_wq = kernel.workqueue("xe-destroy-wq")
        # xe_device_destroy: pagemaps that others had when the driver was removed are destroyed there later.
        self.device.drmm_add_action(self.destroy_wq.drain)
        self.accounts = FaultAccounts()
        self.vms: dict[int, XeVm] = {}
        self._next_asid = 0
        self.pf_wq = kernel.workqueue("xe_page_fault_work_queue", max_active=tunables.queues)
        self.queues = FaultQueues(
            kernel,
            XeFaults(self),
            workqueue=self.pf_wq,
            queues=tunables.queues,
            capacity=queue_capacity(tunables.eus),
            slice_ms=tunables.slice_ms,
            guard=self.pm.fault,
            on_full=self._queue_full,
        )
        self.power.rpm.enable()

    def has_interconnect(self, peer1: Peer, peer2: Peer) -> bool:
        """Tell whether two pagemaps or VMs are of one device, or of two with a path between them
        (xe_has_interconnect).

        What-if: with the tunable `owner` a device keeps to itself.
        """
        one, other = peer1.private.driver, peer2.private.driver
        if one is not other and any(isinstance(each, XeDriver) and each.keeps_to_itself for each in (one, other)):
            return False
        spec: DeviceSpec = one.spec
        return spec.reaches(other.spec)

    @property
    def keeps_to_itself(self) -> bool:
        """Tell whether nobody else may map its VRAM where it is, and it maps nobody's."""
        return self.tunables.owner == "device"

    def page_index(self, pgmap: DevPagemap) -> PageIndex | None:
        """Return what leads from the pages of a new dev_pagemap to their zdds; None: their zone_device_data."""
        shipped = page_index(self.tunables.page_to_bo, self.kernel, pgmap)
        index: PageIndex | None = self.host.strategy("page_to_bo", shipped, self.kernel, pgmap)
        return index

    def pagemaps(self) -> list[DrmPagemap]:
        return [tile.dpagemap for tile in self.tiles if tile.dpagemap is not None]

    def dev_pagemaps(self) -> list[DevPagemap]:
        return self.embedding.dev_pagemaps()

    def pagemap_from_fd(self, device: int, region: int) -> DrmPagemap:
        """Return the pagemap of region `region` of device number `device` of the machine with a reference, "madvise"
        (xe_drm_pagemap_from_fd).

        ENOENT if there is no such device, it is none of xe's, or it has no such region; ENODEV if it is unplugged.
        """
        other = self.peers[device] if 0 <= device < len(self.peers) else None
        if not isinstance(other, XeDriver):
            raise KernelError(errno.ENOENT, f"device {device} is none of xe's")
        cookie = other.device.dev_enter()
        try:
            if not other.spec.discrete or not 1 <= region <= len(other.tiles):
                raise KernelError(errno.ENOENT, f"{other.spec.name} has no VRAM region {region}")
            return other.tiles[region - 1].find_or_create_pagemap("madvise")
        finally:
            other.device.dev_exit(cookie)

    def preferred_pagemap(self, fault: GpuFault) -> DrmPagemap | None:
        """Return the memory that the attributes want for a fault, None for RAM. Its VM is locked."""
        vma = self.vms[fault.inst & ASID_MASK].vmas.find(fault.addr)
        return None if vma is None else vma.attr.resolve_pagemap(self.tile_of(fault))

    def tile_of(self, fault: GpuFault) -> XeTile:
        """Return the tile that took a fault."""
        return self.tiles[fault.inst >> ASID_BITS]

    def _queue_full(self, queue: int, fault: GpuFault) -> None:
        """Drop a fault that finds its queue full; nobody answers it (xe_pagefault_handler: -ENOSPC)."""
        self.kernel.warn("xe_pagefault_handler", f"PageFault Queue ({queue}) full, shouldn't be possible")

    def reset_gt(self, tile: XeTile) -> None:
        """Reset what computes on a tile, after a hang: the faults that it has queued are not served, and not answered
        either, and its TLB is empty (xe_pagefault_reset).
        """
        for buffer in self.queues.buffers:
            for fault in buffer:
                if fault.inst != SQUASHED and self.tile_of(fault) is tile:
                    fault.inst = SQUASHED
        tile.gts[0].tlb.reset()

    @contextmanager
    def ioctl(self) -> Iterator[None]:
        """Surround an ioctl: the device is awake, and was there when it began (xe_drm_ioctl, drm_ioctl_kernel). ENODEV.

        As written an unplug does not wait for it; fixed, it does.
        """
        device = self.device
        with self.pm.ioctl():
            cookie = device.dev_enter()
            waits = self.quirks.ioctl_unplug == "fixed"
            if not waits:  # drm_dev_is_unplugged
                device.dev_exit(cookie)
            try:
                yield
            finally:
                if waits:
                    device.dev_exit(cookie)

    def vm_create(self, mm: MmApi, *, start: int, end: int) -> XeVm:
        """Create a VM in fault mode that mirrors [start, end) (xe_vm_create, xe_svm_init)."""
        with self.ioctl():
            asid = self._next_asid
            while asid in self.vms:
                asid = (asid + 1) & ASID_MASK
            self._next_asid = (asid + 1) & ASID_MASK
            vm = XeVm(self, mm, asid=asid, start=start, end=end, pagemaps=self._get_pagemaps())
            self.vms[asid] = vm
            self.power.vm_open(vm)
            return vm

    def vm_forget(self, vm: XeVm) -> None:
        """Take a VM that has ended off the table of address spaces."""
        del self.vms[vm.asid]

    def unplug(self) -> None:
        """Let the device go while it is in use: nothing new is populated, what is in VRAM comes home, and when all of
        it has, the pages cease to exist (xe_pci_remove, devres_release_all). Twice does nothing.
        """
        if self.device.unplugged:
            return
        self.device.unplug()
        for tile in self.tiles:
            self._evacuate(tile.vram)
        self.destroy_wq.drain()
        self.device.devres_release_all()

    def _evacuate(self, vram: XeVram) -> None:
        """Bring the contents of every object to RAM (xe_bo_pci_dev_remove_all): its caller hears of no error."""
        error = vram.evict_all()
        while error is not None and error.errno == errno.ENOSPC and self.quirks.evict_all_stops == "fixed":
            error = vram.evict_all()  # whoever was in the way may have ended meanwhile
            if error is not None:
                self.kernel.cpu_relax()
        if error is not None:
            left = sum(bo.devmem is not None and not bo.devmem.is_empty for bo in vram.bos.lru())
            self.kernel.warn(
                "xe_bo_pci_dev_remove_all",
                f"evacuating {self.spec.name} ended with {error}, objects with pages left in VRAM: {left}",
            )

    def evict(self) -> None:
        """Bring what is in VRAM home before system sleep; what cannot go stays (xe_pm_notifier_callback)."""
        with self.validation.write(), suppress(KernelError):
            self.evict_all()

    def evict_all(self) -> None:
        """Bring what is in VRAM home, tile by tile; the first error ends it (xe_bo_evict_all_user)."""
        for tile in self.tiles:
            error = tile.vram.evict_all()
            if error is not None:
                raise error

    def shutdown(self) -> None:
        if self.vms:
            raise KernelError(errno.EBUSY, f"{self.spec.name}: {len(self.vms)} address spaces are open")
        self.unplug()
        self.queues.stop()
        self.pf_wq.drain()
        for tile in self.tiles:
            tile.vram.bos.drain()
        self.destroy_wq.drain()
        self.power.rpm.disable()
        self.device.put()

    def _get_pagemaps(self) -> list[DrmPagemap]:
        """Take a reference on the pagemap of each tile, for a VM (xe_svm_get_pagemaps)."""
        held: list[DrmPagemap] = []
        try:
            for tile in self.tiles if self.spec.discrete else ():
                held.append(tile.find_or_create_pagemap("vm"))  # noqa: PERF401 - what is held when one fails is put
        except KernelError:
            for dpagemap in held:
                dpagemap.put("vm")
            raise
        return held

    def _free_shrinker(self) -> None:
        self.memory.shrinkers.free(self.shrinker)
        self.shrinker.fini()

    def describe(self) -> Mapping[str, Any]:
        pm = self.power.rpm
        return {
            "device": self.spec.name,
            "vms": len(self.vms),
            "dev_pagemaps": len(self.dev_pagemaps()),
            "bos": sum(tile.vram.bos.live for tile in self.tiles),
            "vram_used_bytes": sum(tile.vram.bos.used_bytes for tile in self.tiles),
            "vram_bytes": self.spec.vram_bytes,
            "pm_state": pm.state,
            "pm_usage_count": pm.usage_count,
            "gt_stats": {gt.name: dict(gt.stats) for tile in self.tiles for gt in tile.gts},
        }
