"""Drive the other device of a machine: a small driver that shares nothing with the one under test but the process.

It lies in core, so that what two different drivers do to each other can be tried wherever only one is installed. A
fault maps memory where it is, `populate` brings it to memory of its own, an object a range; the oldest makes room.
"""

from collections.abc import Mapping
from errno import EBUSY, EFAULT, EINVAL, EIO, ENODEV, ENOENT, ENOMEM, ENOSPC, EOPNOTSUPP, EPERM
from typing import Any, Final

import numpy as np
from attrs import frozen

from gpusvm.driver import (
    ABI,
    NEVER,
    AlwaysAwake,
    Capabilities,
    DeviceSpec,
    DriverInfo,
    Errnos,
    FaultAccounts,
    FaultJob,
    FaultQueues,
    Host,
    RangeFaults,
    RangeUnit,
    RangeVm,
    Refusals,
    no,
    tunable,
    yes,
)
from gpusvm.drm import (
    DRM_INTERCONNECT_DRIVER,
    DRM_INTERCONNECT_SYSTEM,
    Bo,
    BoManager,
    Buddy,
    Devmem,
    DrmDevice,
    DrmPagemap,
    Fence,
    GpuSvmCtx,
    MigrateDetails,
    OwnerList,
    PagemapAddrs,
    PagemapDevOps,
    Peer,
    constant_u8,
    copy_contents,
    evict_to_ram,
    migrate_to_devmem,
)
from gpusvm.drm.addr import Orders, Protos
from gpusvm.errors import KernelError
from gpusvm.gpu import ATOMIC, READ, REMOTE, WRITE
from gpusvm.kernel import Kernel
from gpusvm.mm.api import MEMORY_DEVICE_PRIVATE, DevPagemap, MmApi, Pfns, Words

__all__ = ["NAME", "PARTNER", "Partner"]

NAME: Final = "gpusvm-partner"

_OWN: Final = DRM_INTERCONNECT_DRIVER
_PEER: Final = DRM_INTERCONNECT_DRIVER + 1


class Partner:
    """Be one device: its memory, whose ops it is, with its dev_pagemap and its drm_pagemap side by side."""

    destroy = None

    def __init__(self, host: Host) -> None:
        self.info = PARTNER
        self.host = host
        self.driver = self
        self.spec: DeviceSpec = host.device
        self.kernel: Kernel = host.kernel
        self.memory = host.memory
        self.pm = AlwaysAwake()
        self.device = DrmDevice(host.kernel, host.device.name, iommu=host.device.iommu, module=host.module)
        self.page_shift = host.memory.geometry.page_shift
        pages = host.device.vram_bytes >> self.page_shift
        self.bos = BoManager(host.kernel, Buddy(pages), evict=self.evict, page_shift=self.page_shift)
        self.holders: list[Bo | None] = [None] * pages
        self.owners = host.owners or OwnerList()  # a driver has a list of its own, but for the what-if
        self.peer = Peer(self)
        self.pgmap = DevPagemap(
            type=MEMORY_DEVICE_PRIVATE,
            start_pfn=host.memory.request_free_mem_region(pages),
            nr_pages=pages,
            owner=self.owners.acquire_owner(self.peer, _reaches),
            ops=PagemapDevOps(host.memory),
            container=self,
        )
        host.memory.memremap_pages(self.pgmap)
        self.dpagemap = DrmPagemap(host.memory, self.device, self.pgmap, self, container=self)
        self.embedding = self.bo_mapping = self
        self.accounts = FaultAccounts()
        self.vms: dict[int, PartnerVm] = {}
        self.queues = FaultQueues(
            host.kernel,
            PartnerFaults(host, self.vms, self.accounts),
            workqueue=host.kernel.workqueue("partner_faults"),
            queues=1,
            capacity=host.tunables.fault_entries,
            slice_ms=0,
            guard=self.pm.fault,
        )

    # ---- the driver

    def pagemaps(self) -> list[DrmPagemap]:
        return [self.dpagemap]

    def dev_pagemaps(self) -> list[DevPagemap]:
        return [self.pgmap]

    def vm_create(self, mm: MmApi, *, start: int, end: int) -> "PartnerVm":
        inst = max(self.vms, default=0) + 1
        self.vms[inst] = PartnerVm(self, mm, start=start, end=end, inst=inst)
        return self.vms[inst]

    def shutdown(self) -> None:
        self.queues.stop()
        self.bos.evict_all(passes_over=True)
        self.owners.release_owner(self.peer)
        self.dpagemap.put()
        self.memory.memunmap_pages(self.pgmap)
        self.bos.drain()
        self.device.put()

    def describe(self) -> Mapping[str, Any]:
        return {"vms": len(self.vms), "bos": self.bos.live}

    # ---- from a page to what holds it (`PagemapEmbedding`, `BoMapping`)

    def container_of(self, pgmap: DevPagemap) -> "Partner":
        partner: Partner = pgmap.container
        return partner

    def pagemap_of(self, pgmap: DevPagemap) -> DrmPagemap:
        return self.container_of(pgmap).dpagemap

    def attach(self, bo: Bo, pfns: Pfns) -> None:
        first = int(pfns[0]) - self.pgmap.start_pfn
        self.holders[first : first + len(pfns)] = [bo] * len(pfns)

    def bo_of(self, pfn: int) -> Bo | None:
        return self.holders[pfn - self.pgmap.start_pfn]

    def split(self, head: int, tail: int) -> None: ...

    def free(self, pfn: int, order: int) -> None: ...

    # ---- struct drm_pagemap_ops

    def device_map(
        self, dpagemap: DrmPagemap, dev: DrmDevice, pfns: Pfns, order: Orders, direction: int
    ) -> tuple[Words, Protos]:
        if dev is not dpagemap.drm:
            return dev.dma.map_pages(pfns, order, direction), constant_u8(_PEER, len(pfns))
        addrs = (pfns - self.pgmap.start_pfn) << self.page_shift
        return addrs.astype(np.uint64), constant_u8(_OWN, len(pfns))

    def device_unmap(self, dpagemap: DrmPagemap, dev: DrmDevice, addrs: PagemapAddrs) -> None:
        if dev is not dpagemap.drm:
            dev.dma.unmap_pages(len(addrs))

    def populate_mm(self, dpagemap: DrmPagemap, start: int, end: int, mm: MmApi, timeslice_ms: int) -> None:
        bo = self.bos.create((end - start) >> self.page_shift)
        bo.devmem = Devmem(self.device, mm, self, dpagemap, end - start, container=bo)
        bo.get("populate_mm")
        try:
            migrate_to_devmem(bo.devmem, mm, start, end, MigrateDetails(timeslice_ms=timeslice_ms))
        finally:
            bo.resv.unlock()
            bo.put("populate_mm")

    # ---- struct drm_pagemap_devmem_ops

    def populate_devmem_pfn(self, devmem: Devmem, npages: int) -> Pfns:
        ((first, _),) = devmem.container.blocks
        pfns: Pfns = np.arange(npages, dtype=np.int64) + (self.pgmap.start_pfn + first)
        self.attach(devmem.container, pfns)
        return pfns

    def copy_to_devmem(self, device_pfns: Pfns, addrs: PagemapAddrs, fence: Fence | None) -> None:
        if self.kernel.inject("partner.copy_to_devmem"):
            raise KernelError(EIO, "injected at partner.copy_to_devmem")
        copy_contents(self.memory, device_pfns, addrs.pfns, addrs.order, addrs.npages)

    def copy_to_ram(self, device_pfns: Pfns, addrs: PagemapAddrs, fence: Fence | None) -> None:
        copy_contents(self.memory, addrs.pfns, device_pfns, addrs.order, addrs.npages)

    def devmem_release(self, devmem: Devmem) -> None:
        devmem.container.put_async()

    def evict(self, bo: Bo) -> None:
        if bo.devmem is None:
            raise KernelError(ENOSPC, "not in use yet")
        evict_to_ram(bo.devmem)


def _reaches(peer1: Peer, peer2: Peer) -> bool:
    spec: DeviceSpec = peer1.private.driver.spec
    return spec.reaches(peer2.private.driver.spec)


class PartnerFaults(RangeFaults):
    """Serve faults where the memory is."""

    def place(self, job: FaultJob) -> DrmPagemap | None:
        return None


class PartnerVm(RangeVm):
    """Hold one GPU address space."""

    def __init__(self, driver: Partner, mm: MmApi, *, start: int, end: int, inst: int) -> None:
        super().__init__(
            driver.host,
            driver.device,
            mm,
            start=start,
            end=end,
            inst=inst,
            queues=driver.queues,
            chunk_sizes=driver.host.tunables.chunk_sizes,
            ctx=GpuSvmCtx(devmem_possible=True, allow_mixed=True, device_private_page_owner=driver.pgmap.owner),
        )
        self.driver = driver

    def preferred_pagemap(self) -> DrmPagemap:
        return self.driver.dpagemap

    def map(self, unit: RangeUnit) -> None:
        addrs = unit.range.pages.dma_addr
        assert addrs is not None
        remote = (addrs.proto == DRM_INTERCONNECT_SYSTEM) * np.uint8(REMOTE)
        perms = np.repeat(remote | np.uint8(READ | WRITE | ATOMIC), 1 << addrs.order.astype(int))
        self.page_table.map_pages(unit.start >> self.page_shift, addrs.page_pfns(), perms)

    def close(self) -> None:
        super().close()
        self.driver.vms.pop(self.inst, None)


@frozen(kw_only=True)
class PartnerTunables:
    """What a spec string may set."""

    chunk_sizes: tuple[int, ...] = tunable(
        (2 << 20, 64 << 10, 4 << 10), "Sizes of a range.", unit="bytes", power_of_two=True, descending=True
    )
    fault_entries: int = tunable(1024, "Faults that the buffer holds.", unit="count", minimum=1)


@frozen(kw_only=True)
class PartnerQuirks:
    """It has none."""


_ACCESS: Final = Errnos(
    unmapped={ENOENT, EFAULT, EINVAL},
    forbidden={EPERM, EFAULT},
    closed={EINVAL},
    exited={EFAULT},
    killed={EFAULT},
    unplugged=NEVER,
    contended={EBUSY, EOPNOTSUPP},
    failed={ENOMEM, EFAULT, EOPNOTSUPP},
)

PARTNER: Final = DriverInfo(
    name=NAME,
    summary="the other driver of the conformance suite's machines with two",
    abi=ABI,
    kernel="7.3.4",
    capabilities=Capabilities(
        device_memory=yes("device-private pages, one object for each range"),
        migrate_on_fault=no("a fault maps the pages where they are"),
        explicit_populate=yes("Vm.populate, range by range"),
        atomics=yes("in system memory, over a coherent link"),
        eviction=yes("whole objects, the oldest first"),
        runtime_pm=no("the device is always awake"),
        multi_device_p2p=yes("among devices with one owner"),
        large_folios=yes("a huge page is mapped by one range"),
        prefetch=no("a fault brings its range and nothing else"),
        mixed_units=yes("system pages and its own side by side"),
        unplug=no("the device stays"),
        drm_gpusvm=yes("one for each address space"),
        drm_pagemap=yes("one for the device, whose populate_mm makes one object"),
        pagemap_cache=no("the pagemap stays for the life of the device"),
    ),
    tunables=PartnerTunables,
    quirks=PartnerQuirks,
    embedding="dev_pagemap and drm_pagemap side by side in the device",
    bo_mapping="an array beside the pagemap, one pointer a page",
    pm="none: always awake",
    make=Partner,
    unload="never",
    refusals=Refusals(
        access=_ACCESS,
        atomic=_ACCESS,
        populate=Errnos(unmapped={ENOENT}, forbidden={EPERM}, contended={EBUSY}, unplugged={ENODEV}),
        read_needs_write=True,
    ),
)
"""What describes it; no plugin, so that nothing lists it."""
