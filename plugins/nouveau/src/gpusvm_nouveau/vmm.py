"""drivers/gpu/drm/nouveau/nvkm/subdev/mmu/{vmm,vmmgp100}.c, as of Linux 7.3.4: the GPU page table of one svmm.

An entry is a leaf of 4 KiB or 2 MiB. A system page is mapped for DMA when its entry is written and unmapped when it is
cleared; no other object knows of the mapping. Every map and unmap flushes the whole address space from the TLB and
waits. The callers hold svmm->mutex, so nvkm's own mutexes would never be contended and are left out.
"""

from typing import TYPE_CHECKING

import numpy as np
from gpusvm.drm import DMA_BIDIRECTIONAL, constant_u8
from gpusvm.errors import KernelError
from gpusvm.gpu import REMOTE, runs

if TYPE_CHECKING:
    import numpy.typing as npt
    from gpusvm.drm import DmaDevice
    from gpusvm.gpu import GpuPageTable, Tlb
    from gpusvm.kernel import Kernel
    from gpusvm.mm.api import Geometry, Pfns

__all__ = ["Vmm"]


class Vmm:
    """Write and clear entries, with their DMA mappings and TLB flushes. Addresses are virtual page numbers."""

    def __init__(
        self, kernel: "Kernel", page_table: "GpuPageTable", dma: "DmaDevice", tlb: "Tlb", geometry: "Geometry"
    ) -> None:
        self.kernel = kernel
        self.page_table = page_table
        self.dma = dma
        self.tlb = tlb
        self.large_pages = geometry.pmd_nr
        self._order = constant_u8(0, 1)
        self._large_order = constant_u8(geometry.pmd_order, 1)
        self._large: dict[int, int] = {}  # first page of each 2 MiB leaf -> its permissions

    def map_leaf(self, vpn: int, pfn: int, pages: int, perm: int) -> None:
        """Write one leaf of 1 page or of a PMD (nvkm_vmm_pfn_map, gp100_vmm_pgt_pfn, gp100_vmm_pd0_pfn).

        If DMA mapping fails the entry is written without its valid bit, and the caller hears nothing of it: the GPU
        will fault again.
        """
        self._clear(vpn, vpn + pages)
        large = pages != 1
        if perm & REMOTE:
            order = self._large_order if large else self._order
            try:
                self.dma.map_pages(np.array([pfn], np.int64), order, DMA_BIDIRECTIONAL)
            except KernelError as error:
                self.kernel.warn("gp100_vmm_pd0_pfn" if large else "gp100_vmm_pgt_pfn", str(error))
                self._written(1)
                return
        if large:
            self._large[vpn] = perm
        self.page_table.map_run(vpn, pfn, pages, perm)
        self._written(1)

    def map_scattered(self, vpn: int, pfns: "Pfns", perms: "npt.NDArray[np.uint8]") -> None:
        """Write one 4 KiB leaf a page, all of them device pages; a permission of 0 leaves the entry as it is."""
        leaves = int(np.count_nonzero(perms))
        written = np.flatnonzero(perms)
        for first, last in runs(written):
            self._clear(vpn + first, vpn + last)
        self.page_table.map_pages(vpn, pfns, perms)
        self._written(leaves)

    def map_wrong_block(self, vpn: int, pfns: "Pfns", perm: int, quirk: str) -> None:
        """Write a 2 MiB leaf over the device pages `pfns`, which `quirk` made the wrong ones.

        It is marked before anything is charged, for until then no access can come between.
        """
        pages = len(pfns)
        self._clear(vpn, vpn + pages)
        self._large[vpn] = perm
        self.page_table.map_pages(vpn, pfns, perm)
        self.page_table.mark_stale(vpn, vpn + pages, quirk)
        self._written(1)

    def unmap(self, vpn: int, end_vpn: int) -> int:
        """Clear what is mapped of [vpn, end_vpn) (nvkm_vmm_pfn_unmap); how many pages were.

        A large leaf goes as a whole. System pages cost one flush more: their valid bits are cleared and flushed before
        the DMA mapping goes.
        """
        remote = self.dma.mapped_rows
        cleared = self._clear(vpn, end_vpn)
        if cleared:
            if self.dma.mapped_rows != remote:
                self.tlb.invalidate_all()
            self.tlb.invalidate_all()
        return cleared

    def _clear(self, vpn: int, end_vpn: int) -> int:
        table = self.page_table
        if not table.mapped_pages:
            return 0
        rows = 0
        if self._large:
            vpn, end_vpn, rows = self._clear_large(vpn, end_vpn)
        cleared, remote = table.clear(vpn, end_vpn)
        if remote:
            self.dma.unmap_pages(rows + remote)
        return cleared

    def _clear_large(self, vpn: int, end_vpn: int) -> tuple[int, int, int]:
        """Forget the large leaves of a range. Returns the range widened to them, and by how much the count of its
        pages in system memory exceeds the DMA mappings, as a negative number: a large leaf is one mapping.
        """
        nr = self.large_pages
        large = self._large
        first = vpn // nr * nr
        if (end_vpn - first) // nr < len(large):
            hit = [block for block in range(first, end_vpn, nr) if block in large]
        else:
            hit = [block for block in large if block + nr > vpn and block < end_vpn]
        correction = 0
        for block in hit:
            vpn, end_vpn = min(vpn, block), max(end_vpn, block + nr)
            if large.pop(block) & REMOTE:
                correction += 1 - nr
        return vpn, end_vpn, correction

    def _written(self, leaves: int) -> None:
        kernel = self.kernel
        kernel.charge("bind_base")
        kernel.charge("bind_per_pte", leaves)
        self.tlb.invalidate_all()
