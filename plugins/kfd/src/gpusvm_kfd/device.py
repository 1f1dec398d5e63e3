"""drivers/gpu/drm/amd/amdkfd/kfd_device.c and kfd_migrate.c, as of Linux 7.3.4: one GPU, as far as SVM needs it.

Its dev_pagemap is a member of the device, made when that is, as large as the VRAM (kgd2kfd_init_zone_device).
"""

from collections.abc import Mapping
from errno import EBUSY, ENOENT, ENOSPC
from typing import TYPE_CHECKING, Any

import numpy as np
from gpusvm.driver import DriverInfo, FaultAccounts, FaultQueues, Host, PopulateOnly
from gpusvm.drm import Bo, BoManager, Buddy, DmaDevice, DrmDevice, DrmPagemap
from gpusvm.errors import KernelError
from gpusvm.gpu import CopyEngine
from gpusvm.kernel import Kernel
from gpusvm.mm.api import MEMORY_DEVICE_PRIVATE, DevPagemap, MemoryManagerApi, MmApi, Pfns, VmFault

from gpusvm_kfd.evict import evict_svm_bo
from gpusvm_kfd.faults import KfdPipeline
from gpusvm_kfd.home import cpu_fault, evacuate
from gpusvm_kfd.info import INFO
from gpusvm_kfd.migrate import migrate_to_vram
from gpusvm_kfd.module import Kfd
from gpusvm_kfd.pm import ProcessPm
from gpusvm_kfd.process import KfdFile, ProcessDevice
from gpusvm_kfd.svm_bo import SvmRangeBo

if TYPE_CHECKING:
    from gpusvm_kfd.tunables import KfdQuirks, KfdTunables

__all__ = ["KfdDevice"]


class KfdDevice:
    """Drive one GPU (struct kfd_node with its amdgpu_device).

    It embeds its dev_pagemap, whose ops it is, so it is its own `PagemapEmbedding`; and as a page leads to its object
    by zone_device_data, its own `BoMapping`. Number `number`; with `hive` its owner is shared.
    """

    info: DriverInfo = INFO
    folio_split = None
    kernel: Kernel
    memory: MemoryManagerApi
    kfd: Kfd
    pm: ProcessPm
    dma: DmaDevice
    device: DrmDevice
    accounts: FaultAccounts
    engine: CopyEngine
    bos: BoManager
    first_pfn: int
    faults: KfdPipeline
    queues: FaultQueues

    def __init__(self, host: Host) -> None:
        kernel, memory = host.kernel, host.memory
        self.host = host
        self.kernel = kernel
        self.memory = memory
        self.tunables: KfdTunables = host.tunables
        self.quirks: KfdQuirks = host.quirks
        self.exact = self.quirks.evict_leftovers == "fixed"
        self.number = host.device.index
        self.page_shift = memory.geometry.page_shift
        first = next((peer for peer in host.peers if isinstance(peer, KfdDevice)), None)
        self.kfd = Kfd(host) if first is None else first.kfd
        self.kfd.devices[self.number] = self
        name = host.device.name
        self.pm = ProcessPm(host, self)
        self.dma = DmaDevice(kernel, name, iommu=host.device.iommu, page_shift=self.page_shift)
        self.device = DrmDevice(kernel, name, pm=self.pm.rpm, dma=self.dma)
        self.owner: object = self.kfd if self.tunables.hive and host.device.p2p else self
        self.accounts = FaultAccounts()
        self.engine = CopyEngine(kernel, host.link, shape="gather", name=name)
        self.entity_lock = kernel.mutex("move_entity->lock")
        self.embedding = self.bo_mapping = self
        self.pdds: dict[int, ProcessDevice] = {}
        self.pages = host.device.vram_bytes >> self.page_shift
        self._reserved = 0
        self.bos = BoManager(
            kernel,
            Buddy(self.pages),
            name=name,
            evict=self._evict,
            on_destroy=self._destroy,
            contiguous=False,
            page_shift=self.page_shift,
        )
        # kgd2kfd_init_zone_device
        large = memory.geometry.pmd_nr
        nr_pages = -(-self.pages // large) * large
        self.first_pfn = memory.request_free_mem_region(nr_pages)
        self.pagemap = DevPagemap(MEMORY_DEVICE_PRIVATE, self.first_pfn, nr_pages, self.owner, self, container=self)
        memory.memremap_pages(self.pagemap)
        kernel.gauges.inc("pagemap")
        self._offered: DrmPagemap | None = None
        self.faults = KfdPipeline(self)
        self.queues = FaultQueues(
            kernel,
            self.faults,
            workqueue=kernel.workqueue("ih_soft"),
            queues=1,
            capacity=self.tunables.ring_entries,
            slice_ms=0,
            guard=self.pm.fault,
        )
        if self.tunables.runpm:
            self.pm.rpm.enable()

    def __repr__(self) -> str:
        return f"<KfdDevice {self.host.device.name!r}>"

    # ---- the driver ----------------------------------------------------------------------------------------------

    def pagemaps(self) -> list[DrmPagemap]:
        """Return a way in for populate_mm, which amdkfd has not, made when it is first asked for.

        The gauge "pagemap" counts the dev_pagemap alone.
        """
        if self._offered is None:
            self.kernel.gauges.dec("pagemap")
            self._offered = DrmPagemap(self.memory, self.device, self.pagemap, PopulateOnly(self._populate))
        return [self._offered]

    def vm_create(self, mm: MmApi, *, start: int, end: int) -> KfdFile:
        """Open the GPU in the process of `mm` (kfd_open, kfd_ioctl_acquire_vm)."""
        return KfdFile(self.kfd.create_process(mm).device(self))

    def shutdown(self) -> None:
        """Remove the device. EBUSY: it is open somewhere."""
        if any(pdd.files for pdd in self.pdds.values()):
            raise KernelError(EBUSY, f"{self.host.device.name} is open")
        kernel = self.kernel
        self.kfd.process_queue.flush()
        self.pm.rpm.disable()
        while self.pdds:  # of processes that have closed their files and still run
            pdd = next(iter(self.pdds.values()))
            if pdd.process.kref.get_unless_zero("shutdown"):
                pdd.process.leave(pdd)
                pdd.process.put("shutdown")
            self.kfd.process_queue.flush()
        self.queues.stop()
        self.faults.stop()
        while self.bos.live:
            evacuate(self)
            self.kfd.release_queue.flush()
            if self.bos.live:
                kernel.cpu_relax()
        if self._offered is not None:
            kernel.gauges.inc("pagemap")
            self._offered.put()
            self._offered = None
        self.memory.memunmap_pages(self.pagemap)
        kernel.gauges.dec("pagemap")
        kernel.free(self.pagemap, self.pagemap.done)
        del self.kfd.devices[self.number]
        self.device.put()

    def describe(self) -> Mapping[str, Any]:
        """Return what is in VRAM, and for how many processes."""
        return {
            "processes": len(self.pdds),
            "bos": self.bos.live,
            "vram_used_pages": self.bos.used_bytes >> self.page_shift,
            "evictions": self.bos.evictions,
        }

    @property
    def has_faults(self) -> bool:
        """Tell whether a fault waits in the ring."""
        return bool(len(self.queues.buffers[0]))

    # ---- its memory ----------------------------------------------------------------------------------------------

    def reserve(self, pages: int) -> None:
        """Count a range that is being migrated against the VRAM (amdgpu_amdkfd_reserve_mem_limit). ENOSPC."""
        if self._reserved + pages > self.pages:
            raise KernelError(ENOSPC, f"{pages} pages wanted of {self.pages}, {self._reserved} reserved")
        self._reserved += pages

    def unreserve(self, pages: int) -> None:
        """Count it no more (amdgpu_amdkfd_unreserve_mem_limit)."""
        self._reserved -= pages

    def _evict(self, bo: Bo) -> None:
        """Empty an object before TTM discards it (amdgpu_ttm_bo_eviction_valuable). EBUSY."""
        evict_svm_bo(bo.container)

    def _destroy(self, bo: Bo) -> None:
        svm_bo: SvmRangeBo = bo.container
        svm_bo.destroy()

    def _populate(self, start: int, end: int, mm: MmApi) -> None:
        """Migrate for whoever calls populate_mm, with mmap_lock held for reading, what has ranges already.

        ENOENT: there is none, and to make one takes mmap_lock for writing.
        """
        process = self.kfd.lookup_by_mm(mm)
        if process is None:
            raise KernelError(ENOENT, f"{mm.name} has no range of kfd's")
        try:
            first, last = start >> self.page_shift, end >> self.page_shift
            with process.svms.lock:
                found = process.svms.overlapping(first, last)
                if not found or self.number not in process.pdds:
                    raise KernelError(ENOENT, f"{mm.name} has no range in {start:#x}-{end:#x}")
                for prange in found:
                    with prange.migrate_mutex:
                        within = max(first, prange.start), min(last, prange.end)
                        migrate_to_vram(prange, self.number + 1, *within, mm)
        finally:
            process.put("lookup")

    # ---- dev_pagemap_ops -----------------------------------------------------------------------------------------

    def migrate_to_ram(self, vmf: VmFault) -> int:
        return cpu_fault(self, vmf)

    def folio_free(self, pfn: int, order: int) -> None:
        """Drop the page's reference of its object (svm_migrate_folio_free)."""
        self.folios_free(np.array([pfn], np.int64))

    def folios_free(self, pfns: Pfns) -> None:
        """Do so for many, object by object."""
        for svm_bo, index in self._by_object(pfns):
            svm_bo.live[index] = svm_bo.resident[index] = False
            svm_bo.unref_async(len(index))

    def gone_home(self, pfns: Pfns) -> None:
        """Note that pages have left the address spaces, though somebody may still hold them."""
        for svm_bo, index in self._by_object(pfns):
            svm_bo.resident[index] = False

    def _by_object(self, pfns: Pfns) -> list[tuple[SvmRangeBo, Pfns]]:
        found = []
        while len(pfns):
            svm_bo: SvmRangeBo = self.memory.zone_device_data(int(pfns[0]))
            index = svm_bo.index(pfns)
            mine = index >= 0
            found.append((svm_bo, index[mine]))
            pfns = pfns[~mine]
        return found

    # ---- where its dev_pagemap is, and the objects of its pages --------------------------------------------------

    def container_of(self, pgmap: DevPagemap) -> "KfdDevice":
        device: KfdDevice = pgmap.container
        return device

    def dev_pagemaps(self) -> list[DevPagemap]:
        return [self.pagemap]

    def pagemap_of(self, pgmap: DevPagemap) -> DrmPagemap | None:
        return self._offered

    def attach(self, bo: SvmRangeBo, pfns: Pfns) -> None:
        """Nothing to remember: the pages name it from when they are live."""

    def bo_of(self, pfn: int) -> SvmRangeBo:
        svm_bo: SvmRangeBo = self.memory.zone_device_data(pfn)
        return svm_bo

    def split(self, head: int, tail: int) -> None:
        """There are single pages only."""

    def free(self, pfn: int, order: int) -> None:
        """Nothing to forget: the page's reference of its object goes with it."""
