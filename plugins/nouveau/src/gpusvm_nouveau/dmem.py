"""drivers/gpu/drm/nouveau/nouveau_dmem.c, as of Linux 7.3.4: device memory for processes, and moving pages to and fro.

Page to buffer object: page_pgmap(page) -> container_of -> chunk -> bo, for a chunk is one object, pinned. Copies are
queued folio by folio with one fence for a window, and migrate_vma_pages runs while they are in flight.
"""

from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
from gpusvm.driver import RETRY_NS, Chunk, ChunkPool, chunk_pages
from gpusvm.drm import DMA_BIDIRECTIONAL, AllPfns, Bo, BoManager, Buddy, constant_u8, page_index
from gpusvm.errors import DriverError, KernelError
from gpusvm.gpu import D2H, H2D, READ, WRITE, runs
from gpusvm.mm.api import (
    MIGRATE_PFN_COMPOUND,
    MIGRATE_PFN_MIGRATE,
    MIGRATE_PFN_SHIFT,
    MIGRATE_PFN_VALID,
    MIGRATE_PFN_WRITE,
    MIGRATE_VMA_SELECT_COMPOUND,
    MIGRATE_VMA_SELECT_DEVICE_PRIVATE,
    MIGRATE_VMA_SELECT_SYSTEM,
    VM_FAULT_OOM,
    VM_FAULT_SIGBUS,
    VM_READ,
    MigrateVma,
    MmApi,
    Pfns,
    VmaApi,
    VmFault,
    Words,
    migrate_pfns,
    migrate_pfns_to_pages,
)

from gpusvm_nouveau.evict import evict_chunk
from gpusvm_nouveau.moved import follow_chunks, forget_chunks

if TYPE_CHECKING:
    from gpusvm.driver import Host, NotifierWindow

    from gpusvm_nouveau.device import NouveauDevice
    from gpusvm_nouveau.svmm import NouveauSvmm

__all__ = ["ChunkBoMapping", "NouveauDmem"]

_VALID = np.uint64(MIGRATE_PFN_VALID)
_MIGRATE = np.uint64(MIGRATE_PFN_MIGRATE)
_WRITE = np.uint64(MIGRATE_PFN_WRITE)

STALE_QUIRK = "pfns_map_rejected"

FENCE_TIMEOUT_NS: Final = 15_000_000_000
"""How long a fence is waited for (nouveau_fence.c:nouveau_fence_wait); whether it came, nouveau_dmem.c does not ask."""


class HomeCopy(NamedTuple):
    """Be a copy to RAM that is under way: until when, of how many pages, in how many DMA mappings."""

    through_ns: int
    pages: int
    rows: int


class ChunkBoMapping:
    """Be the `BoMapping` of nouveau: the chunk that embeds the page's dev_pagemap is pinned to one object."""

    def __init__(self, pool: ChunkPool) -> None:
        self.pool = pool

    def attach(self, bo: Bo, pfns: Pfns) -> None:
        """Nothing to remember: the chunk knows its object."""

    def bo_of(self, pfn: int) -> Bo:
        """Return the object of a device page (nouveau_page_to_chunk)."""
        bo: Bo = self.pool.chunk_of(pfn).bo
        return bo

    def split(self, head: int, tail: int) -> None:
        """Count the tail as an allocation of its chunk (nouveau_dmem_folio_split)."""
        self.pool.chunk_of(tail).callocated += 1

    def free(self, pfn: int, order: int) -> None:
        """Put the folio on its free list (nouveau_dmem_folio_free)."""
        if self.pool.kernel.explored:
            self.assert_allocated(self.pool.chunk_of(pfn), 1)
        self.pool.free(pfn, order)

    def assert_allocated(self, chunk: Chunk, n: int) -> None:
        """Warn if a chunk is given more folios back than were taken from it (nouveau_dmem_folio_free)."""
        if chunk.callocated < n:
            self.pool.kernel.warn(
                "nouveau_dmem_folio_free", f"{n} allocations end in a chunk that has {chunk.callocated}"
            )


class NouveauDmem:
    """Own the device memory of one GPU (struct nouveau_dmem); it is the dev_pagemap_ops of its chunks."""

    def __init__(self, host: "Host", device: "NouveauDevice") -> None:
        memory = host.memory
        geometry = memory.geometry
        pages = chunk_pages(host.tunables.chunk_bytes, geometry, vram_bytes=host.device.vram_bytes)
        self.device = device
        self.kernel = host.kernel
        self.memory = memory
        self.quirks = device.quirks
        self.bos = BoManager(
            host.kernel,
            Buddy(host.device.vram_bytes >> geometry.page_shift),
            name=host.device.name,
            evict=self._move_away,
            page_shift=geometry.page_shift,
        )
        self.pool = ChunkPool(
            host.kernel,
            memory,
            chunk_pages=pages,
            owner=device.device,
            ops=self,
            # nouveau_dmem_chunk_alloc links all but one page of each 2 MiB, counting on without the gap, so that what
            # is lost is the end of the chunk: 128 of 65536 pages.
            lost_pages=pages >> geometry.pmd_order,
            on_new=self._pin,
            index=host.strategy(
                "page_to_bo", page_index(host.tunables.page_to_bo, host.kernel, AllPfns()), host.kernel, AllPfns()
            ),
        )
        self.bo_mapping = ChunkBoMapping(self.pool)
        self._pages_hold = device.quirks.freed_svmm == "fixed"
        self._before: dict[int, Chunk] = {}  # where the chunks were before the device fell asleep
        self._asks_rights = device.quirks.bind_unreadable == "fixed"

    # ---- dev_pagemap_ops -----------------------------------------------------------------------------------------

    def migrate_to_ram(self, vmf: VmFault) -> int:
        """Bring one page home, or the folio if a PMD maps it (nouveau_dmem_migrate_to_ram)."""
        memory = self.memory
        order = 0 if vmf.pte_level else memory.folio_order(vmf.page)
        # Where the PMD is split already the kernel keeps the head, and copies that page once setup has split the folio.
        source = memory.folio_head(vmf.page) if order else vmf.page
        svmm: NouveauSvmm | None = memory.zone_device_data(memory.folio_head(vmf.page))
        size = memory.geometry.page_size << order
        start = vmf.address & -size
        args = MigrateVma(
            vma=vmf.vma,
            start=start,
            end=start + size,
            src=np.zeros(1 << order, np.uint64),
            dst=np.zeros(1 << order, np.uint64),
            pgmap_owner=self.pool.owner,
            flags=MIGRATE_VMA_SELECT_DEVICE_PRIVATE | MIGRATE_VMA_SELECT_COMPOUND,
            fault_page=vmf.page,
        )
        try:
            memory.migrate_vma_setup(args)
        except KernelError:
            return VM_FAULT_SIGBUS
        if not args.cpages:
            return 0
        hole = not int(args.src[0]) >> MIGRATE_PFN_SHIFT
        if hole and self.quirks.filled_hole == "fixed":
            memory.migrate_vma_finalize(args)
            return 0
        # A folio of the same order or nothing: there is no falling back to single pages.
        page = memory.alloc_folio(order)
        if page is None:
            memory.migrate_vma_finalize(args)
            return VM_FAULT_OOM
        memory.folio_lock(page)
        if hole:  # zeroed as any is, which shows: it is mapped before the copy is done
            memory.clear_folio(page, 1 << order)
        args.dst[0] = page << MIGRATE_PFN_SHIFT | MIGRATE_PFN_VALID | (MIGRATE_PFN_COMPOUND if order else 0)
        self._leave_others(svmm, vmf.mm, args)
        with self.device.power.cpu_fault():
            # Whoever unmaps a part of the block meanwhile has it split. What was collected then are single pages, none
            # of which moves to a large one: they stay, and the fault is taken again.
            pages = 1 << memory.folio_order(source)
            copy = self._copy_home(svmm, args, source, page, order, pages)
            if copy is None:
                if self.quirks.failed_copy == "fixed":
                    args.dst[0] = 0
                    memory.folio_unlock(page)
                    memory.folio_put(page)
                memory.migrate_vma_finalize(args)
                return VM_FAULT_SIGBUS
            memory.migrate_vma_pages(args)
            self.device.engine.wait(copy.through_ns)
        memory.copy_folio(page, source, copy.pages)
        if hole:
            memory.contents.taint_pfns(np.arange(page, page + copy.pages), "filled_hole")
        self.device.device.dma.unmap_pages(copy.rows)
        memory.migrate_vma_finalize(args)
        return 0

    def folio_free(self, pfn: int, order: int) -> None:
        """Take a folio back; its object stays pinned."""
        svmm: NouveauSvmm | None = self.memory.zone_device_data(pfn)
        self.bo_mapping.free(pfn, order)
        if svmm is not None and self._pages_hold:
            svmm.put_pages(1)

    def folios_free(self, pfns: Pfns) -> None:
        """Take many single pages back."""
        if self._pages_hold:
            for pfn in pfns.tolist():
                self.folio_free(pfn, 0)
        else:
            if self.kernel.explored:
                for chunk, some in self.pool.by_chunk(pfns):
                    self.bo_mapping.assert_allocated(chunk, len(some))
            self.pool.free_many(pfns)

    def folio_split(self, head: int, tail: int | None) -> None:
        """Give a tail the svmm of the head (nouveau_dmem_folio_split)."""
        if tail is not None:
            svmm: NouveauSvmm | None = self.memory.zone_device_data(head)
            self.memory.set_zone_device_data(tail, svmm)
            if svmm is not None and self._pages_hold:
                svmm.get_pages(1)
            self.bo_mapping.split(head, tail)

    # ---- to the device -------------------------------------------------------------------------------------------

    def migrate_vma(
        self,
        svmm: "NouveauSvmm | None",
        vma: VmaApi,
        start: int,
        end: int,
        *,
        mm: MmApi,
        window: "NotifierWindow | None" = None,
    ) -> None:
        """Move what can move of [start, end), which lies in one VMA, mmap_lock held (nouveau_dmem_migrate_vma).

        `window` tells what others invalidate meanwhile; without one the GPU's entries of what moved are, with the quirk
        `migrate_seq` fixed, left to faults. An error of migrate_vma_setup ends it; the windows before are done.
        """
        memory = self.memory
        geometry = memory.geometry
        if self._asks_rights and not vma.flags & VM_READ:
            return
        for addr in range(start, end, geometry.pmd_size):
            until = min(addr + geometry.pmd_size, end)
            pages = (until - addr) >> geometry.page_shift
            args = MigrateVma(
                vma=vma,
                start=addr,
                end=until,
                src=np.zeros(pages, np.uint64),
                dst=np.zeros(pages, np.uint64),
                pgmap_owner=self.pool.owner,
                flags=MIGRATE_VMA_SELECT_SYSTEM | MIGRATE_VMA_SELECT_COMPOUND,
            )
            if window is not None:
                window.begin()
            memory.migrate_vma_setup(args)
            if args.cpages:
                self._migrate_chunk(svmm, mm, args, window)

    def _migrate_chunk(
        self, svmm: "NouveauSvmm | None", mm: MmApi, args: MigrateVma, window: "NotifierWindow | None"
    ) -> None:
        """Copy one window and end its migration (nouveau_dmem_migrate_chunk)."""
        memory, engine = self.memory, self.device.engine
        src, dst = args.src, args.dst
        self._leave_others(svmm, mm, args)
        if int(src[0]) & MIGRATE_PFN_COMPOUND:
            rows = self._copy_folio(svmm, src, dst)
        else:
            rows = self._copy_pages(svmm, src, dst)
        fence_ns = engine.busy_until_ns
        memory.migrate_vma_pages(args)
        engine.wait(fence_ns)
        if svmm is None or svmm.closed:
            self._copied(src, dst)
        else:
            # One step as far as the GPU can see: what it writes to the old pages until here is copied, what it writes
            # later is lost.
            with svmm.mutex:
                self._copied(src, dst)
                self._map_moved(svmm, args, window)
        self.device.device.dma.unmap_pages(rows)
        memory.migrate_vma_finalize(args)

    def _copy_folio(self, svmm: "NouveauSvmm | None", src: Words, dst: Words) -> int:
        """Queue the copy of a PMD folio, or the clear of a hole of that size; how many DMA mappings it took."""
        memory = self.memory
        order = memory.geometry.pmd_order
        pfn = self.pool.alloc(order)
        if pfn is None:  # it is not split for single pages: it stays where it is
            return 0
        memory.zone_device_folio_init(pfn, self.pool.chunk_of(pfn).pagemap, order)
        memory.set_zone_device_data(pfn, svmm)
        if svmm is not None:
            svmm.get_pages(1)
        word = int(src[0])
        rows = 0
        try:
            if word & MIGRATE_PFN_VALID:
                source = np.array([word >> MIGRATE_PFN_SHIFT], np.int64)
                self.device.device.dma.map_pages(source, constant_u8(order, 1), DMA_BIDIRECTIONAL)
                rows = 1
                self.device.engine.copy(H2D, memory.geometry.pmd_size, 1)
            else:
                self.device.engine.clear(memory.geometry.pmd_size)
                memory.clear_folio(pfn, 1 << order)
        except KernelError:
            memory.folio_unlock(pfn)
            memory.folio_put(pfn)
            return 0
        dst[0] = pfn << MIGRATE_PFN_SHIFT | MIGRATE_PFN_VALID | MIGRATE_PFN_COMPOUND | word & MIGRATE_PFN_WRITE
        return rows

    def _copy_pages(self, svmm: "NouveauSvmm | None", src: Words, dst: Words) -> int:
        """Queue one copy or clear for each page that was collected; how many DMA mappings they took."""
        memory = self.memory
        wanted = np.flatnonzero(src & _MIGRATE)
        pages = self.pool.alloc_many(0, len(wanted))
        wanted = wanted[: len(pages)]  # an entry without a page is skipped
        if not len(wanted):
            return 0
        for chunk, some in self.pool.by_chunk(pages):
            memory.zone_device_folios_init(some, chunk.pagemap)
        memory.set_zone_device_data(pages, svmm)
        if svmm is not None:
            svmm.get_pages(len(pages))
        present = (src[wanted] & _VALID) != 0
        rows = int(np.count_nonzero(present))
        page_size = memory.geometry.page_size
        if rows:
            sources = migrate_pfns_to_pages(src[wanted] if rows == len(wanted) else src[wanted[present]])
            mapped = len(self.device.device.dma.map_rows(sources, constant_u8(0, rows), DMA_BIDIRECTIONAL))
            if mapped < rows:  # what could not be mapped stays where it is, the others go
                kept = np.ones(len(wanted), np.bool_)
                kept[np.flatnonzero(present)[mapped:]] = False
                memory.folios_unlock(pages[~kept])
                memory.folios_put(pages[~kept])
                wanted, pages, present, rows = wanted[kept], pages[kept], present[kept], mapped
        if rows:
            self.device.engine.copy(H2D, rows * page_size, rows)
        holes = len(wanted) - rows
        if holes:
            self.device.engine.clear(holes * page_size, holes)
            memory.clear_pages(pages[~present])
        dst[wanted] = migrate_pfns(pages) | src[wanted] & _WRITE
        return rows

    def _copied(self, src: Words, dst: Words) -> None:
        """Move the contents of a window: the fence has been waited for."""
        memory = self.memory
        if int(dst[0]) & MIGRATE_PFN_COMPOUND:
            if int(src[0]) & MIGRATE_PFN_VALID:
                source, page = int(src[0]) >> MIGRATE_PFN_SHIFT, int(dst[0]) >> MIGRATE_PFN_SHIFT
                memory.copy_folio(page, source, memory.geometry.pmd_nr)
            return
        copied = np.flatnonzero(((src & _VALID) != 0) & (dst != 0))
        if len(copied):
            memory.copy_pages(migrate_pfns_to_pages(dst[copied]), migrate_pfns_to_pages(src[copied]))

    def _map_moved(self, svmm: "NouveauSvmm", args: MigrateVma, window: "NotifierWindow | None") -> None:
        """Push the new GPU entries of what moved, mutex held (nouveau_pfns_map): as written, nvkm rejects all of them.

        The MIGRATE events of this migration were skipped as our own, so that entries of pages that were mapped before
        still name the old ones. Nor is there, as written, a window that says whether the new pages have been dropped
        meanwhile, and are about to be freed (quirk migrate_seq).
        """
        src, dst = args.src, args.dst
        geometry = self.memory.geometry
        moved = np.flatnonzero(((src & _MIGRATE) != 0) & (dst != 0))
        if not len(moved):
            return
        large = bool(int(dst[moved[0]]) & MIGRATE_PFN_COMPOUND)
        vpn = args.start >> geometry.page_shift
        if self.quirks.pfns_map_rejected == "as_written":
            for first, last in [(0, geometry.pmd_nr)] if large else runs(moved):
                svmm.page_table.mark_stale(vpn + first, vpn + last, STALE_QUIRK)
        elif self.quirks.migrate_seq == "fixed" and (window is None or window.revoked()):
            svmm.invalidate_range(args.start, args.end)
        elif large:
            word = int(dst[0])
            perm = READ | WRITE if word & MIGRATE_PFN_WRITE else READ
            svmm.vmm.map_leaf(vpn, word >> MIGRATE_PFN_SHIFT, geometry.pmd_nr, perm)
        else:
            perms = np.zeros(len(dst), np.uint8)
            perms[moved] = np.where((dst[moved] & _WRITE) != 0, np.uint8(READ | WRITE), np.uint8(READ))
            svmm.vmm.map_scattered(vpn, migrate_pfns_to_pages(dst), perms)

    def _leave_others(self, svmm: "NouveauSvmm | None", mm: MmApi, args: MigrateVma) -> None:
        """Clear what moves in the other files that mirror the same address space, before it is copied; as written
        nobody does, and their notifiers skip the device's own migrations.
        """
        others = [each for each in self.device.svmms.values() if each is not svmm and each.mm is mm]
        for other in others:
            other.get("migration")
        for other in others:
            with other.mutex:
                if self.quirks.other_files == "fixed":
                    other.invalidate_range(args.start, args.end)
                else:
                    shift = self.memory.geometry.page_shift
                    other.page_table.mark_stale(args.start >> shift, args.end >> shift, "other_files")
            other.put("migration")

    # ---- home ----------------------------------------------------------------------------------------------------

    def _copy_home(
        self, svmm: "NouveauSvmm | None", args: MigrateVma, source: int, page: int, order: int, pages: int
    ) -> "HomeCopy | None":
        """Clear the GPU's entries and queue the copy of `pages` to a folio; None if DMA mapping fails, and then the
        page that was to receive it must reach nobody: nothing has been written to it.
        """
        if svmm is None:
            return self._queue_home(source, page, order, pages)
        with svmm.mutex:
            svmm.invalidate_range(args.start, args.end)
            return self._queue_home(source, page, order, pages)

    def _queue_home(self, source: int, page: int, order: int, pages: int) -> "HomeCopy | None":
        """Map the destination and queue the copy (nouveau_dmem_copy_folio); one that a sleeping device never runs
        leaves the zeros that the destination was allocated with.
        """
        device = self.device
        try:
            device.device.dma.map_pages(np.array([page], np.int64), constant_u8(order, 1), DMA_BIDIRECTIONAL)
        except KernelError:
            return None
        self.page_addr(source)
        if device.power.asleep:
            self.memory.clear_folio(page, pages)
            self.memory.contents.taint_pfns(np.arange(page, page + pages), "sleeping_copy")
            return HomeCopy(self.kernel.now_ns + FENCE_TIMEOUT_NS, 0, 1)
        return HomeCopy(device.engine.copy(D2H, pages * self.memory.geometry.page_size, 1), pages, 1)

    # ---- the chunks ----------------------------------------------------------------------------------------------

    def page_addr(self, pfn: int) -> int:
        """Return where in VRAM a device page is: its chunk's object's offset and its own within the chunk
        (nouveau_dmem_page_addr).
        """
        chunk = self.pool.chunk_of(pfn)
        if chunk.bo is None:
            raise DriverError(
                "nouveau_dmem_page_addr",
                f"the chunk of pfn {pfn:#x} has no object any more: a NULL pointer, task {self.kernel.current.name!r}",
            )
        return self.offset(chunk) + (pfn - chunk.first)

    @staticmethod
    def offset(chunk: Chunk) -> int:
        """Return the offset of a chunk's object in VRAM, in pages; 0 while it is in system memory
        (nouveau_bo_move_ntfy).
        """
        blocks = chunk.bo.blocks
        return int(blocks[0][0]) if blocks else 0

    def _pin(self, chunk: Chunk) -> None:
        """Pin the object of a new chunk in VRAM (nouveau_bo_new_pin). ENOMEM: the VRAM has no room for a chunk."""
        bo = self.bos.create(self.pool.chunk_pages, pinned=True)
        bo.resv.unlock()
        bo.container = chunk
        chunk.bo = bo

    def suspend(self) -> None:
        """Unpin the chunks; TTM moves their objects to system memory (nouveau_dmem_suspend, nouveau_do_suspend)."""
        if self.quirks.moved_chunks == "fixed":
            forget_chunks(self.device)
        self._before = {self.offset(chunk): chunk for chunk in self.pool.chunks}
        for chunk in self._newest_first():
            chunk.bo.pinned = False
        self.bos.evict_all()
        self.device.engine.wait(self.device.engine.busy_until_ns)

    def _move_away(self, bo: Bo) -> None:
        self.device.engine.copy(D2H, bo.size_pages << self.memory.geometry.page_shift, 1)

    def resume(self) -> None:
        """Move the chunks' objects back and pin them, the newest first (nouveau_dmem_resume): each at the first place
        that is free, which need not be where it was.
        """
        engine = self.device.engine
        for chunk in self._newest_first():
            try:
                self.bos.move_in(chunk.bo)
            except KernelError as error:
                self.kernel.warn("nouveau_dmem_resume", f"a chunk cannot be pinned again: {error}")
                continue
            engine.copy(H2D, chunk.pagemap.nr_pages << self.memory.geometry.page_shift, 1)
            chunk.bo.pinned = True
        engine.wait(engine.busy_until_ns)
        follow_chunks(self.device, self._before, self.offset)
        self._before = {}

    def _newest_first(self) -> list[Chunk]:
        """Return the chunks as their list has them (nouveau_dmem_chunk_alloc: list_add)."""
        return self.pool.chunks[::-1]

    def fini(self) -> None:
        """Bring every page home and give the chunks back (nouveau_dmem_fini). The device is awake.

        As written a chunk's object goes before anybody waits for its pages.
        """
        early = self.quirks.bo_before_wait == "as_written"
        for chunk in self._newest_first():
            self._evacuate(chunk)
            bo = chunk.bo
            if early:
                chunk.bo = None
                bo.put()
                self._assert_empty(chunk)
            self.pool.remove(chunk)
            if not early:
                bo.put()
                self._assert_empty(chunk)
            self.kernel.free(chunk)

    def _assert_empty(self, chunk: Chunk) -> None:
        if chunk.callocated:
            self.kernel.warn("nouveau_dmem_fini", f"a chunk goes with {chunk.callocated} allocations in it")

    def _evacuate(self, chunk: Chunk) -> None:
        """Leave no page of a process in a chunk that goes; as written what is locked just then stays."""
        if chunk.callocated:
            evict_chunk(self, chunk)
        if self.quirks.evicted_once == "fixed":
            while chunk.pagemap.ref > 1:  # one is its own
                self.kernel.sleep_ns(RETRY_NS)
                evict_chunk(self, chunk)
