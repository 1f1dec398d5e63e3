"""lib/test_hmm.c, as of Linux 7.3.4: one dmirror device, its device memory and what becomes of it."""

import errno
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from gpusvm.driver import (
    AlwaysAwake,
    Chunk,
    ChunkPool,
    DriverInfo,
    FaultAccounts,
    Host,
    alloc_folio_nofail,
    alloc_pages_nofail,
    chunk_pages,
)
from gpusvm.drm import DrmDevice, DrmPagemap
from gpusvm.errors import DriverError, KernelError
from gpusvm.gpu import charge_cpu_copy
from gpusvm.mm.api import (
    MEMORY_DEVICE_COHERENT,
    MEMORY_DEVICE_PRIVATE,
    MIGRATE_PFN_COMPOUND,
    MIGRATE_PFN_MIGRATE,
    MIGRATE_PFN_SHIFT,
    MIGRATE_PFN_VALID,
    MIGRATE_VMA_SELECT_DEVICE_COHERENT,
    MIGRATE_VMA_SELECT_DEVICE_PRIVATE,
    DevPagemap,
    MemoryManagerApi,
    MmApi,
    Pfns,
    migrate_pfns,
    migrate_pfns_to_pages,
)

from gpusvm_dmirror.backing import Backing
from gpusvm_dmirror.faults import DmirrorPipeline
from gpusvm_dmirror.info import INFO
from gpusvm_dmirror.migrate import DmirrorPagemapOps, migrate_to_device
from gpusvm_dmirror.mirror import Dmirror

if TYPE_CHECKING:
    from gpusvm.kernel import Kernel

    from gpusvm_dmirror.tunables import DmirrorQuirks, DmirrorTunables

__all__ = ["DmirrorDevice"]


class ChunkOfPage:
    """Be the `BoMapping` of dmirror: there is no buffer object, a page leads to its chunk."""

    def __init__(self, pool: ChunkPool) -> None:
        self.pool = pool

    def attach(self, bo: Any, pfns: Pfns) -> None:
        """Nothing to remember: page_pgmap knows it."""

    def bo_of(self, pfn: int) -> Chunk:
        """Return the chunk of a device page (dmirror_page_to_chunk)."""
        return self.pool.chunk_of(pfn)

    def split(self, head: int, tail: int) -> None:
        """Nothing to follow: both lie in the same chunk."""

    def free(self, pfn: int, order: int) -> None:
        """Nothing to forget."""


class DmirrorPool(ChunkPool):
    """Own the chunks of one device; none is added while they are removed (dmirror_device.devmem_lock)."""

    def __init__(self, kernel: "Kernel", memory: MemoryManagerApi, **how: Any) -> None:
        super().__init__(kernel, memory, **how)
        self.devmem_lock = kernel.mutex("mdevice->devmem_lock")

    def add_chunk(self, order: int) -> Chunk:
        """Add a chunk once nobody removes any (dmirror_allocate_chunk)."""
        with self.devmem_lock:
            return super().add_chunk(order)


class DmirrorDevice:
    """Be one device (struct dmirror_device), which is also the owner of its pages.

    One chunk exists from the start; the pool grows when it runs out and shrinks with `release`. The contents of device
    memory are in the backing pages (`gpusvm_dmirror.backing`). With the pfn `spm` of special-purpose memory the device
    is coherent and *every* chunk lies there, so that a second one is refused (memremap_pages: ENOMEM). `calloc` and
    `cfree` count the pages that were ever allocated and freed; a page that goes with its chunk is not counted.
    """

    info: DriverInfo = INFO

    def __init__(self, host: Host, *, spm: int | None = None) -> None:
        tunables: DmirrorTunables = host.tunables
        quirks: DmirrorQuirks = host.quirks
        self.host = host
        self.kernel = host.kernel
        self.memory = host.memory
        self.tunables = tunables
        self.quirks = quirks
        self.device = DrmDevice(host.kernel, host.device.name, module=host.module)
        self.accounts = FaultAccounts()
        self.pipeline = DmirrorPipeline(self)
        self.coherent = spm is not None
        self.pool = self.embedding = DmirrorPool(
            host.kernel,
            host.memory,
            chunk_pages=chunk_pages(tunables.chunk_bytes, host.memory.geometry),
            owner=self,
            ops=DmirrorPagemapOps(self),
            on_new=self._attach_backing,
            memory_type=MEMORY_DEVICE_PRIVATE if spm is None else MEMORY_DEVICE_COHERENT,
            region=None if spm is None else lambda _: spm,
        )
        # dmirror_select_device
        self.select = MIGRATE_VMA_SELECT_DEVICE_PRIVATE if spm is None else MIGRATE_VMA_SELECT_DEVICE_COHERENT
        self._by_chunk = tunables.page_to_bo == "chunk"
        self.calloc = self.cfree = 0
        self.bo_mapping = ChunkOfPage(self.pool)
        self.pm = AlwaysAwake()
        self.files: list[Dmirror] = []
        self._opened = 0
        try:
            self.pool.add_chunk(0)
        except KernelError:
            self.device.put()
            raise

    def __repr__(self) -> str:
        return f"<DmirrorDevice {self.host.device.name!r}>"

    def pagemaps(self) -> list[DrmPagemap]:
        """Return one: populate takes a page from any chunk."""
        return [self.pool.offer(self.device, self._populate)]

    def dev_pagemaps(self) -> list[DevPagemap]:
        """Return one for each chunk."""
        return self.pool.dev_pagemaps()

    def vm_create(self, mm: MmApi, *, start: int, end: int) -> Dmirror:
        """Open the device in the process of `mm` (dmirror_fops_open): the file mirrors the whole address space."""
        self._opened += 1
        mirror = Dmirror(self, mm, start=start, end=end, inst=self._opened)
        self.files.append(mirror)
        return mirror

    def shutdown(self) -> None:
        """Remove the device: evacuate it and give its memory back."""
        self.pool.withdraw()
        self.release()
        self.device.put()

    def describe(self) -> Mapping[str, Any]:
        """Return chunks, pages in use, and open files."""
        return {
            "chunks": len(self.pool.chunks),
            "free_pages": len(self.pool.free_pages),
            "free_folios": len(self.pool.free_folios),
            "allocations": sum(chunk.callocated for chunk in self.pool.chunks),
            "files": len(self.files),
        }

    # ---- device memory -------------------------------------------------------------------------------------------

    def table_of(self, pfn: int) -> Backing:
        """Return what stands behind the pages of the chunk of a device page."""
        table: Backing = self.pool.chunk_of(pfn).private if self._by_chunk else self.memory.zone_device_data(pfn)
        return table

    def lead_to(self, pfn: int | Pfns, table: Backing) -> None:
        """Let device pages that are live lead to it."""
        if not self._by_chunk:
            self.memory.set_zone_device_data(pfn, table)

    def _attach_backing(self, chunk: Chunk) -> None:
        chunk.private = Backing(chunk, holds_files=self.quirks.freed_file == "fixed")

    def alloc_folio(self, mirror: Dmirror) -> int | None:
        """Allocate a PMD folio with its backing, locked and with one reference (dmirror_devmem_alloc_page)."""
        memory, order = self.memory, self.memory.geometry.pmd_order
        backing = None
        if not self.coherent:
            backing = memory.alloc_folio(order)
            if backing is None:
                return None
        pfn = self.pool.alloc(order)
        if pfn is None:
            if backing is not None:
                memory.folio_put(backing)
            return None
        chunk = self.pool.chunk_of(pfn)
        memory.zone_device_folio_init(pfn, chunk.pagemap, order)
        table: Backing = chunk.private
        table.attach_run(pfn, pfn if backing is None else backing, 1 << order, mirror)
        self.lead_to(pfn, table)
        self.calloc += 1 << order
        return pfn

    def alloc_pages(self, n: int, mirror: Dmirror) -> Pfns:
        """Allocate up to `n` single pages with their backing, each locked, refcount 1."""
        memory = self.memory
        if self.coherent:
            backing = pfns = self.pool.alloc_many(0, n)
        else:
            backing = self._backing_pages(n)
            pfns = self.pool.alloc_many(0, len(backing))
            if len(pfns) < len(backing):
                memory.folios_put(backing[len(pfns) :])
                backing = backing[: len(pfns)]
        self.calloc += len(pfns)
        done = 0
        for chunk, some in self.pool.by_chunk(pfns):
            memory.zone_device_folios_init(some, chunk.pagemap)
            table: Backing = chunk.private
            table.attach(some, backing[done : done + len(some)], mirror)
            self.lead_to(some, table)
            done += len(some)
        return pfns

    def _backing_pages(self, n: int) -> Pfns:
        """Allocate up to `n` pages of system memory."""
        pages = self.memory.alloc_pages_bulk(n)
        if pages is None:  # one by one, as the kernel asks for them: some may still be had
            got = [pfn for pfn in (self.memory.alloc_folio(0) for _ in range(n)) if pfn is not None]
            pages = np.array(got, np.int64)
        return pages

    def freed(self, pfn: int, pages: int) -> None:
        """Count pages of one chunk that come back, unless the chunk is going (dmirror_devmem_free)."""
        if not self.pool.chunk_of(pfn).retired:
            self.cfree += pages

    def backing_of(self, pfns: Pfns) -> Pfns:
        """Return the pages that hold the data of device pages."""
        cut = self.pool.by_chunk(pfns)
        if len(cut) == 1:
            table: Backing = cut[0][0].private
            return table.of_many(pfns)
        return np.concatenate([np.zeros(0, np.int64), *(chunk.private.of_many(some) for chunk, some in cut)])

    def copy(self, dst: Pfns, src: Pfns) -> None:
        """Copy pages by CPU (copy_highpage)."""
        self.memory.copy_pages(dst, src)
        self.charge_copy(len(dst), len(dst))

    def charge_copy(self, pages: int, blocks: int) -> None:
        """Charge the CPU's time for copying or clearing `pages` in `blocks` contiguous pieces."""
        charge_cpu_copy(self.kernel, pages << self.memory.geometry.page_shift, blocks)

    # ---- eviction ------------------------------------------------------------------------------------------------

    def evict(self) -> None:
        """Bring every page of the device home, whosever it is (dmirror_device_evict_chunk, for each chunk)."""
        for chunk in list(self.pool.chunks):
            if chunk.callocated:
                self._evict_chunk(chunk)

    def release(self) -> None:
        """Evacuate the device and remove its chunks (dmirror_device_remove_chunks, the RELEASE ioctl)."""
        with self.pool.devmem_lock:
            for chunk in list(self.pool.chunks):
                self.pool.retire(chunk)
                if chunk.callocated:
                    self._evict_chunk(chunk)
                self.pool.remove(chunk)
                self.kernel.free(chunk)

    def _evict_chunk(self, chunk: Chunk) -> None:
        memory, nr = self.memory, chunk.pagemap.nr_pages
        src = np.zeros(nr, np.uint64)
        dst = np.zeros(nr, np.uint64)
        memory.migrate_device_range(src, chunk.first, nr)
        wanted = np.flatnonzero(
            (src & np.uint64(MIGRATE_PFN_VALID | MIGRATE_PFN_MIGRATE)) == MIGRATE_PFN_VALID | MIGRATE_PFN_MIGRATE
        )
        large = (src[wanted] & np.uint64(MIGRATE_PFN_COMPOUND)) != 0
        table: Backing = chunk.private
        for i in wanted[large].tolist():
            self._copy_home_folio(table, src, dst, i)
        small = wanted[~large]
        if len(small):
            pages = alloc_pages_nofail(self.kernel, memory, len(small))
            self.copy(pages, table.of_many(migrate_pfns_to_pages(src[small])))
            dst[small] = migrate_pfns(pages)
        memory.migrate_device_pages(src, dst, nr)
        memory.migrate_device_finalize(src, dst, nr)

    def _copy_home_folio(self, table: Backing, src: Any, dst: Any, i: int) -> None:
        memory, order = self.memory, self.memory.geometry.pmd_order
        page: int | None
        if self.quirks.evict_unchecked == "fixed":
            page = alloc_folio_nofail(self.kernel, memory, order)
        elif (page := memory.alloc_folio(order)) is None:
            raise DriverError(
                "dmirror_device_evict_chunk", f"no page of order {order} for a folio that goes home: a NULL pointer"
            )
        memory.folio_lock(page)
        memory.copy_folio(page, table.of(int(src[i]) >> MIGRATE_PFN_SHIFT), 1 << order)
        self.charge_copy(1 << order, 1)
        dst[i] = page << MIGRATE_PFN_SHIFT | MIGRATE_PFN_VALID | MIGRATE_PFN_COMPOUND

    # ---- populate_mm ---------------------------------------------------------------------------------------------

    def _populate(self, start: int, end: int, mm: MmApi) -> None:
        """Migrate as MIGRATE_TO_DEV does, mmap_lock held. EINVAL."""
        mirror = next((file for file in self.files if file.mm is mm), None)
        if mirror is None:
            raise KernelError(errno.EINVAL, f"no file of {self.host.device.name} is open in {mm.name}")
        migrate_to_device(self, mirror, start, end, window=None)
