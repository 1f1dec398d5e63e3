"""drivers/gpu/drm/drm_pagemap.c:drm_pagemap_migrate_to_devmem, as of Linux 7.3.4: a range of an mm into device memory.

The steps follow the kernel's. A range that is one compound entry, a PMD folio or a PMD hole, takes scalar operations
only; anything else is handled as arrays with one row an entry.
"""

from errno import EBUSY, EINVAL, ENOENT, ENOMEM, EOPNOTSUPP
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from gpusvm.drm.addr import (
    DMA_FROM_DEVICE,
    DMA_TO_DEVICE,
    DRM_INTERCONNECT_SYSTEM,
    Orders,
    PagemapAddrs,
    constant_u8,
)
from gpusvm.drm.devmem import Devmem, DevmemOps, MigrateDetails
from gpusvm.drm.guard import unguarded
from gpusvm.drm.mapping import CopyMapping, PeerMapping
from gpusvm.drm.zdd import Zdd, folio_zdd
from gpusvm.errors import KernelError, ModelError
from gpusvm.mm.api import (
    MEMORY_DEVICE_COHERENT,
    MIGRATE_PFN_COMPOUND,
    MIGRATE_PFN_MIGRATE,
    MIGRATE_PFN_SHIFT,
    MIGRATE_PFN_VALID,
    MIGRATE_VMA_SELECT_COMPOUND,
    MIGRATE_VMA_SELECT_DEVICE_COHERENT,
    MIGRATE_VMA_SELECT_DEVICE_PRIVATE,
    MIGRATE_VMA_SELECT_SYSTEM,
    Bools,
    MemoryManagerApi,
    MigrateVma,
    MmApi,
    Pfns,
)

if TYPE_CHECKING:
    from gpusvm.drm.fence import Fence
    from gpusvm.drm.pagemap import DrmPagemap

_DEFAULT_DETAILS = MigrateDetails()
_VALID = np.uint64(MIGRATE_PFN_VALID)
_MIGRATE = np.uint64(MIGRATE_PFN_MIGRATE)
_COMPOUND = np.uint64(MIGRATE_PFN_COMPOUND)
# Whatever the range consists of moves, the memory of other devices too.
_SOURCES: Final = (
    MIGRATE_VMA_SELECT_SYSTEM
    | MIGRATE_VMA_SELECT_DEVICE_COHERENT
    | MIGRATE_VMA_SELECT_DEVICE_PRIVATE
    | MIGRATE_VMA_SELECT_COMPOUND
)
_SHIFT = np.uint64(MIGRATE_PFN_SHIFT)


def migrate_to_devmem(
    devmem: Devmem, mm: MmApi, start: int, end: int, details: MigrateDetails = _DEFAULT_DETAILS
) -> None:
    """Move [start, end) of `mm` into `devmem`, all of it or nothing. The mmap_lock is held.

    Whatever happens, the reference on `devmem` that the caller brings is gone afterwards: the zdd owns it, and where
    nothing landed ``devmem_release`` has run. That everything is in this pagemap already is success, too.

    EOPNOTSUPP an op is missing; ENOENT no VMA; EINVAL the range exceeds its VMA; EBUSY not anonymous, not everything
    could be collected, part of it is in this pagemap already, or a page was lost to a race; what populate_devmem_pfn,
    a mapping or a copy raises; ENOMEM.
    """
    ops = devmem.ops
    dpagemap = devmem.dpagemap
    memory = dpagemap.memory
    if memory.kernel.checked and not mm.mmap_lock.is_locked:
        raise ModelError(f"migrate_to_devmem without the mmap_lock of {mm.name}")
    if memory.kernel.authors is not None:
        memory.kernel.authors.consumed(devmem)
    for op in ("populate_devmem_pfn", "copy_to_devmem", "copy_to_ram"):
        if getattr(ops, op, None) is None:
            devmem.release()
            raise KernelError(EOPNOTSUPP, f"devmem ops lack {op}")
    vma = mm.vma_lookup(start)
    if vma is None:
        devmem.release()
        raise KernelError(ENOENT, f"no VMA at {start:#x}")
    if end > vma.end or start < vma.start:
        devmem.release()
        raise KernelError(EINVAL, f"[{start:#x}, {end:#x}) exceeds the VMA [{vma.start:#x}, {vma.end:#x})")
    if not vma.is_anonymous:
        devmem.release()
        raise KernelError(EBUSY, f"the VMA at {start:#x} is not anonymous")
    if memory.kernel.inject("pagemap.zdd"):
        devmem.release()
        raise KernelError(ENOMEM, "injected at pagemap.zdd")
    npages = (end - start) >> memory.geometry.page_shift
    zdd = Zdd(dpagemap, devmem)  # owns devmem's reference from here on
    try:
        args = MigrateVma(
            vma=vma,
            start=start,
            end=end,
            src=np.zeros(npages, np.uint64),
            dst=np.zeros(npages, np.uint64),
            pgmap_owner=dpagemap.pagemap.owner,
            flags=_SOURCES,
        )
        memory.migrate_vma_setup(args)
        if not args.cpages:
            raise KernelError(EBUSY, f"nothing to migrate in [{start:#x}, {end:#x})")
        _Migration(memory, dpagemap, devmem, zdd, args, npages, details).run()
    finally:
        zdd.kref.put("migrate_to_devmem")


class _Migration:
    """Be one call of migrate_to_devmem, between setup and finalize."""

    __slots__ = (
        "_args",
        "_details",
        "_devmem",
        "_dpagemap",
        "_live",
        "_memory",
        "_npages",
        "_zdd",
        "copied",
    )

    def __init__(
        self,
        memory: MemoryManagerApi,
        dpagemap: "DrmPagemap",
        devmem: Devmem,
        zdd: Zdd,
        args: MigrateVma,
        npages: int,
        details: MigrateDetails,
    ) -> None:
        self._memory = memory
        self._dpagemap = dpagemap
        self._devmem = devmem
        self._zdd = zdd
        self._args = args
        self._npages = npages
        self._details = details
        self._live = -1  # how many of the driver's pages are initialised, and so ours to give back; -1: it named none
        self.copied = 0

    def run(self) -> None:
        args = self._args
        memory = self._memory
        npages = self._npages
        geometry = memory.geometry
        moved: int | None = None
        try:
            head = int(args.src[0])
            if npages == geometry.pmd_nr and head & MIGRATE_PFN_COMPOUND:
                needed = self._move_compound(head)
            else:
                needed = self._move_entries()
            memory.migrate_vma_pages(args)
            moved = self._count_moved()
            if moved < needed:
                raise KernelError(EBUSY, f"raced while finalizing: {moved} of {needed} pages moved")
        finally:
            if moved is None:  # aborted: let core put everything back
                self._forget_destinations()
                memory.migrate_vma_pages(args)
            memory.migrate_vma_finalize(args)
        tracer = memory.kernel.tracer
        if tracer.on:
            tracer.emit("migrate_to_devmem", args.start, args.end, self._dpagemap.drm.name, self.copied)

    def _move_compound(self, head: int) -> int:
        """Move a PMD folio, or fill a PMD hole; how many pages must have moved for success."""
        memory = self._memory
        devmem = self._devmem
        dpagemap = self._dpagemap
        pgmap = dpagemap.pagemap
        npages = self._npages
        order = memory.geometry.pmd_order
        src_pfn = head >> MIGRATE_PFN_SHIFT if head & MIGRATE_PFN_VALID else -1
        source: Zdd | None = None
        if pgmap.start_pfn <= src_pfn < pgmap.start_pfn + pgmap.nr_pages:
            self._not_necessary()
            return 0
        if src_pfn >= 0 and memory.is_device_private(src_pfn):
            source = folio_zdd(memory, src_pfn)
        pfns = self._populate_pfns()
        dst_pfn = int(pfns[0])
        if int(pfns[-1]) != dst_pfn + npages - 1:
            raise self._not_consecutive(dst_pfn)
        self._zdd.set_run(dst_pfn, npages)
        memory.zone_device_folio_init(dst_pfn, pgmap, order)
        self._zdd.kref.get("folio")
        self._zdd.store(memory, dst_pfn)
        self._live = npages
        dst = pfns[:1]
        orders = constant_u8(order, 1)
        try:
            if source is not None:
                self._copy_from_peer(
                    source.dpagemap, source.devmem.ops, np.array((src_pfn,), np.int64), dst, orders, npages
                )
            elif src_pfn >= 0:
                self._copy_from_system(np.array((src_pfn,), np.int64), dst, orders, npages)
            else:
                if devmem.cleared:
                    memory.clear_folio(dst_pfn, npages)
                self._copy_from_system(_NO_PFNS, _NO_PFNS, _NO_ORDERS, 0)
        except BaseException:
            memory.folio_unlock(dst_pfn)
            memory.folio_put(dst_pfn)
            raise
        self._args.dst[0] = dst_pfn << MIGRATE_PFN_SHIFT | MIGRATE_PFN_VALID | MIGRATE_PFN_COMPOUND
        self._landed()
        return npages

    def _move_entries(self) -> int:
        """Move any mixture of entries; how many pages must have moved for success."""
        memory = self._memory
        args = self._args
        dpagemap = self._dpagemap
        npages = self._npages
        geometry = memory.geometry
        at = np.flatnonzero(args.src)
        words = args.src[at]
        compound = (words & _COMPOUND) != 0
        valid = (words & _VALID) != 0
        some_compound = bool(compound.any())
        # drm_pagemap_cpages, which a range of nothing but small pages never reaches
        if args.cpages != npages:
            counted = compound | valid if dpagemap.quirks.hole_count == "as_written" else compound | True
            collected = int(counted.sum()) + int(compound.sum()) * (geometry.pmd_nr - 1)
            if collected != npages:
                raise KernelError(EBUSY, f"{collected} of {npages} pages collected: all or nothing")
        src = (words >> _SHIFT).view(np.int64)
        all_valid = bool(valid.all())
        device = memory.device_private_mask(src) if all_valid else _masked(memory, src, valid)
        some_device = bool(device.any())
        sizes = np.where(compound, geometry.pmd_nr, 1) if some_compound else None
        pgmap = dpagemap.pagemap
        if some_device or pgmap.type == MEMORY_DEVICE_COHERENT:
            own = (src >= pgmap.start_pfn) & (src < pgmap.start_pfn + pgmap.nr_pages)
            own_pages = int(own.sum() if sizes is None else sizes[own].sum())
            if own_pages == npages:
                self._not_necessary()
                return 0
            if own_pages and not self._details.can_migrate_same_pagemap:
                raise KernelError(EBUSY, f"{own_pages} of {npages} pages are there already: fragmentation")
        pfns = self._populate_pfns()
        self._zdd.set_pfns(pfns)
        dst = pfns if len(at) == npages else pfns[at]
        if some_compound:
            last = pfns[at[compound] + geometry.pmd_nr - 1] - dst[compound]
            if (last != geometry.pmd_nr - 1).any():
                raise self._not_consecutive(int(dst[compound][int((last != geometry.pmd_nr - 1).argmax())]))
        order = constant_u8(0, len(at)) if sizes is None else (compound * np.uint8(geometry.pmd_order)).astype(np.uint8)
        dst_words = (dst.view(np.uint64) << _SHIFT) | _VALID
        if sizes is not None:
            dst_words |= compound * _COMPOUND
        try:
            for first, last, peer, ops in self._runs(src, device, some_device):
                self._init_pages(dst[first:last], order[first:last])
                self._live = last
                rows = slice(first, last)
                if peer is not None:
                    assert ops is not None
                    self._copy_from_peer(peer, ops, src[rows], dst[rows], order[rows], _pages(order[rows]))
                    continue
                if not all_valid:
                    self._clear_holes(dst[rows], order[rows], valid[rows])
                    has = valid[rows]
                    self._copy_from_system(src[rows][has], dst[rows][has], order[rows][has], _pages(order[rows][has]))
                else:
                    n = last - first if sizes is None else _pages(order[rows])
                    self._copy_from_system(src[rows], dst[rows], order[rows], n)
        except BaseException:
            self._give_back(dst)
            raise
        args.dst[at] = dst_words
        self._landed()
        return npages

    def _populate_pfns(self) -> Pfns:
        devmem = self._devmem
        pfns = devmem.ops.populate_devmem_pfn(devmem, self._npages)
        if len(pfns) != self._npages:
            raise ModelError(
                f"populate_devmem_pfn of {devmem.drm.name} gave {len(pfns)} of {self._npages} pages{self._blame()}"
            )
        self._live = 0
        return pfns

    def _give_back(self, dst: Pfns) -> None:
        """Unlock and put the destination pages that are initialised; the others never were locked, and nobody's."""
        live = dst[: self._live]
        self._memory.folios_unlock(live)
        self._memory.folios_put(live)

    def _forget_destinations(self) -> None:
        """Leave nothing in dst that the core would take for a destination: the driver has filled all of it with pfns of
        its own, which are in no encoding that the core knows.
        """
        self._args.dst[:] = 0

    def _not_consecutive(self, pfn: int) -> ModelError:
        nr = self._memory.geometry.pmd_nr
        return ModelError(
            f"populate_devmem_pfn of {self._devmem.drm.name}: a PMD folio needs {nr} consecutive pages from {pfn:#x}"
            f"{self._blame()}"
        )

    def _blame(self) -> str:
        authors = self._memory.kernel.authors
        if authors is None:
            return ""
        return authors.says("pages-named", authors.of(unguarded(self._devmem.ops).populate_devmem_pfn))

    def _runs(
        self, src: Pfns, device: Bools, some_device: bool
    ) -> "list[tuple[int, int, DrmPagemap | None, DevmemOps | None]]":
        """Cut the entries where the one who copies changes (struct migrate_range_loc): first, last, source pagemap,
        its ops.
        """
        n = len(src)
        if not some_device:
            return [(0, n, None, None)]
        runs: list[tuple[int, int, DrmPagemap | None, DevmemOps | None]] = []
        memory = self._memory
        i = 0
        while i < n:
            peer: DrmPagemap | None = None
            ops: DevmemOps | None = None
            if device[i]:
                zdd = folio_zdd(memory, int(src[i]))
                peer, ops = zdd.dpagemap, zdd.devmem.ops
                same = device[i:] & zdd.covers(src[i:])
            else:
                same = ~device[i:]
            length = n - i if same.all() else int(same.argmin())
            if runs and runs[-1][2] is peer and runs[-1][3] is ops:
                runs[-1] = (runs[-1][0], i + length, peer, ops)
            else:
                runs.append((i, i + length, peer, ops))
            i += length
        return runs

    def _init_pages(self, dst: Pfns, order: Orders) -> None:
        """Make destination folios live, each with its reference on the zdd (drm_pagemap_get_devmem_page)."""
        memory = self._memory
        pgmap = self._dpagemap.pagemap
        if order.any():
            for pfn, folio_order in zip(dst.tolist(), order.tolist(), strict=True):
                memory.zone_device_folio_init(pfn, pgmap, folio_order)
        else:
            memory.zone_device_folios_init(dst, pgmap)
        self._zdd.kref.get("folio", len(dst))
        self._zdd.store(memory, dst)

    def _clear_holes(self, dst: Pfns, order: Orders, valid: Bools) -> None:
        if not self._devmem.cleared:
            return
        holes = ~valid
        pfns = dst[holes]
        large = order[holes] != 0
        if large.any():
            for pfn in pfns[large].tolist():
                self._memory.clear_folio(pfn, self._memory.geometry.pmd_nr)
            pfns = pfns[~large]
        if len(pfns):
            self._memory.clear_pages(pfns)

    def _copy_from_system(self, src: Pfns, dst: Pfns, order: Orders, npages: int) -> None:
        """Let the target copy from system memory, or from coherent memory of a device, which is mapped as if it were
        (drm_pagemap_migrate_sys_to_dev).
        """
        devmem = self._devmem
        mapping = CopyMapping(devmem.drm, src, order, npages, DMA_TO_DEVICE)
        try:
            devmem.ops.copy_to_devmem(dst, mapping.addrs, pre_migrate_fence(devmem))
        finally:
            mapping.unmap()
            if self._dpagemap.quirks.coherent_unmap == "as_written" and not devmem.drm.dma.iommu:
                self._unmap_from_devices(src, order)
        self.copied += npages

    def _unmap_from_devices(self, src: Pfns, order: Orders) -> None:
        """Have devices unmap what was mapped as system memory (drm_pagemap_migrate_unmap_pages: is_zone_device_page).

        That the mapping for DMA stays is nothing where there is no IOMMU, and with one it is not unmapped row by row.
        """
        memory = self._memory
        for row in np.flatnonzero(memory.device_memory_mask(src)).tolist():
            peer = folio_zdd(memory, int(src[row])).dpagemap
            pfns, of = src[row : row + 1], order[row : row + 1]
            addrs = PagemapAddrs(
                pfns, pfns.astype(np.uint64), of, constant_u8(DRM_INTERCONNECT_SYSTEM, 1), DMA_TO_DEVICE, _pages(of)
            )
            peer.ops.device_unmap(peer, self._devmem.drm, addrs)

    def _copy_from_peer(
        self, peer: "DrmPagemap", ops: DevmemOps, src: Pfns, dst: Pfns, order: Orders, npages: int
    ) -> None:
        """Let the source push its pages to the target (drm_pagemap_migrate_remote_to_local)."""
        mapping = PeerMapping(self._dpagemap, peer.drm, dst, order, npages, DMA_FROM_DEVICE)
        try:
            ops.copy_to_ram(src, mapping.addrs, pre_migrate_fence(self._devmem))
        finally:
            mapping.unmap()
        self.copied += npages

    def _landed(self) -> None:
        devmem = self._devmem
        devmem.pre_migrate_fence = None
        kernel = self._memory.kernel
        devmem.timeslice_expiration_ns = kernel.now_ns + self._details.timeslice_ms * 1_000_000

    def _not_necessary(self) -> None:
        tracer = self._memory.kernel.tracer
        if tracer.on:
            tracer.emit("migration_not_necessary", self._args.start, self._args.end, self._dpagemap.drm.name)

    def _count_moved(self) -> int:
        """Count the pages that can be said to have moved, with the kernel's view of a hole."""
        src = self._args.src
        geometry = self._memory.geometry
        head = int(src[0])
        if self._npages == geometry.pmd_nr and head & MIGRATE_PFN_COMPOUND:
            if not head & MIGRATE_PFN_MIGRATE:
                return 0
            # a compound hole has no page to take the size from
            return self._npages if head & MIGRATE_PFN_VALID or self._dpagemap.quirks.hole_count == "fixed" else 1
        migrated = src[(src & _MIGRATE) != 0]
        compound = (migrated & _COMPOUND) != 0
        if self._dpagemap.quirks.hole_count == "as_written":
            compound &= (migrated & _VALID) != 0
        return len(migrated) + int(compound.sum()) * (geometry.pmd_nr - 1)


_NO_PFNS: Pfns = np.zeros(0, np.int64)
_NO_ORDERS: Orders = np.zeros(0, np.uint8)


def pre_migrate_fence(devmem: Devmem) -> "Fence | None":
    """Return what has to be over before anything is copied into an allocation, or left as it is there: its clear, or
    the move of what was in it before.
    """
    return devmem.pre_migrate_fence


def _pages(order: Orders) -> int:
    return int(np.left_shift(1, order.astype(np.int64)).sum())


def _masked(memory: MemoryManagerApi, pfns: Pfns, valid: Bools) -> Bools:
    """Tell which of the entries that have a page have a device-private one."""
    mask: npt.NDArray[np.bool_] = np.zeros(len(pfns), np.bool_)
    if valid.any():
        mask[valid] = memory.device_private_mask(pfns[valid])
    return mask
