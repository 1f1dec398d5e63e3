"""kernel/dma/mapping.c and drivers/iommu/dma-iommu.c, as of Linux 7.3.4: how one device reaches system memory."""

from errno import EFAULT
from typing import TYPE_CHECKING

import numpy as np

from gpusvm.drm.addr import Orders
from gpusvm.errors import KernelError, ModelError
from gpusvm.kernel import Kernel
from gpusvm.mm.api import PCI_P2PDMA_MAP_NOT_SUPPORTED, DevPagemap, HmmDmaDevice, Pfns, Words


class IovaState:
    """Be one reservation of device address space (struct dma_iova_state): `linked_bytes` of `size_bytes` are in use."""

    __slots__ = ("addr", "linked_at", "linked_bytes", "rows", "size_bytes")

    def __init__(self, addr: int, size_bytes: int) -> None:
        self.addr = addr
        self.linked_at: dict[int, int] = {}  # offset -> bytes, of what is linked at offsets of the caller's choice
        self.size_bytes = size_bytes
        self.linked_bytes = 0
        self.rows = 0


class DmaDevice:
    """Map system pages for one device (struct device, as the DMA API sees it).

    Without an IOMMU the mapping is direct: address = pfn << page_shift | offset. With one, dma_iova_try_alloc
    reserves addresses and dma_iova_link fills them in order. `mapped_rows` counts what is mapped; the ledger has it
    under "dma", reservations under "iova". Charges dma_map_per_folio a row. Injection sites: ``dma.map`` and
    ``dma.link`` (a mapping error, EFAULT).
    """

    __slots__ = (
        "addressing_limited",
        "iommu",
        "kernel",
        "mapped_rows",
        "name",
        "need_unmap",
        "needs_sync",
        "next_iova",
        "offset",
        "p2pdma",
        "page_shift",
    )

    def __init__(
        self,
        kernel: Kernel,
        name: str,
        *,
        offset: int = 0,
        iommu: bool = False,
        page_shift: int = 12,
        iova_base: int = 1 << 32,
    ) -> None:
        self.kernel = kernel
        self.name = name
        self.offset = offset
        self.iommu = iommu
        self.page_shift = page_shift
        self.mapped_rows = 0
        # What hmm_dma_map_alloc asks: a machine as the model's is coherent and addresses everything directly.
        self.needs_sync = False
        self.addressing_limited = False
        self.need_unmap = iommu
        # How this device reaches peers' memory: PCI_P2PDMA_MAP_ type and bus offset, by the first pfn of their
        # pagemap; others it does not reach.
        self.p2pdma: dict[int, tuple[int, int]] = {}
        # dma-iommu.c gives freed addresses out again; the model never does, so that a stale address stays recognisable
        self.next_iova = iova_base

    def map_pages(self, pfns: Pfns, order: Orders, direction: int) -> Words:
        """Map rows of ``1 << order`` pages (dma_map_page, once a row); EFAULT when a mapping fails, nothing mapped
        then.
        """
        addrs = self.map_rows(pfns, order, direction)
        if len(addrs) < len(pfns):
            self.unmap_pages(len(addrs))
            raise KernelError(EFAULT, f"{self.name}: dma_map_page failed")
        return addrs

    def map_rows(self, pfns: Pfns, order: Orders, direction: int) -> Words:
        """Do so, and leave what is mapped when one fails, the last: the addresses of the rows before it then."""
        n = len(pfns)
        if not n:
            return np.zeros(0, np.uint64)
        kernel = self.kernel
        if kernel.inject("dma.map"):
            n -= 1
            if not n:
                return np.zeros(0, np.uint64)
            pfns = pfns[:n]
        kernel.charge("dma_map_per_folio", n)
        if n == 1:
            addrs = np.array((int(pfns[0]) << self.page_shift | self.offset,), np.uint64)
        else:
            addrs = (pfns << self.page_shift).view(np.uint64)
            if self.offset:
                addrs |= np.uint64(self.offset)
        self.mapped_rows += n
        kernel.ledger.get("dma", self.name, n)
        return addrs

    def unmap_pages(self, n: int) -> None:
        """Unmap `n` rows (dma_unmap_page, once a row)."""
        if n > self.mapped_rows:
            raise ModelError(
                f"{self.name}: {n} rows unmapped, {self.mapped_rows} mapped{self.kernel.blame('dma-unmap')}"
            )
        if n:
            self.mapped_rows -= n
            self.kernel.ledger.put("dma", self.name, n)

    def iova_try_alloc(self, size_bytes: int) -> IovaState | None:
        """Reserve device addresses (dma_iova_try_alloc); None without an IOMMU, as dma_use_iova says then."""
        if not self.iommu:
            return None
        state = IovaState(self.next_iova, size_bytes)
        self.next_iova += size_bytes
        self.kernel.ledger.get("iova", self.name)
        return state

    def iova_link(self, state: IovaState, pfns: Pfns, order: Orders, direction: int) -> Words:
        """Link rows behind what is linked already (dma_iova_link, once a row) and return their addresses; EFAULT."""
        kernel = self.kernel
        if kernel.inject("dma.link"):
            raise KernelError(EFAULT, f"{self.name}: dma_iova_link failed")
        n = len(pfns)
        kernel.charge("dma_map_per_folio", n)
        sizes = np.left_shift(1 << self.page_shift, order.astype(np.int64))
        ends = np.cumsum(sizes)
        addrs = (ends - sizes + (state.addr + state.linked_bytes)).view(np.uint64)
        state.linked_bytes += int(ends[-1]) if n else 0
        state.rows += n
        if state.linked_bytes > state.size_bytes:
            raise ModelError(f"{self.name}: {state.linked_bytes} bytes linked into {state.size_bytes} reserved")
        self.mapped_rows += n
        kernel.ledger.get("dma", self.name, n)
        return addrs

    def iova_destroy(self, state: IovaState) -> None:
        """Unlink what is linked and give the whole reservation back (dma_iova_destroy, dma_iova_free if nothing was
        linked).
        """
        self.unmap_pages(state.rows)
        state.rows = 0
        state.linked_bytes = 0
        self.kernel.ledger.put("iova", self.name)

    # --- one entry at a time, as hmm_dma_map does

    def iova_free(self, state: IovaState) -> None:
        """Give a reservation back in which nothing is linked (dma_iova_free)."""
        if state.linked_at or state.rows:
            raise ModelError(f"{self.name}: a reservation is freed with {len(state.linked_at)} entries linked")
        self.kernel.ledger.put("iova", self.name)

    def iova_link_at(self, state: IovaState, pfn: int, offset: int, size: int, *, mmio: bool) -> None:
        """Link bytes from page `pfn` on at an offset of a reservation (dma_iova_link); EFAULT."""
        if self.kernel.inject("dma.link"):
            raise KernelError(EFAULT, f"{self.name}: dma_iova_link failed")
        if offset in state.linked_at or offset + size > state.size_bytes:
            raise ModelError(f"{self.name}: {size} bytes linked at {offset:#x}, where there is no room")
        state.linked_at[offset] = size
        self._mapped()

    def iova_sync(self, state: IovaState, offset: int, size: int) -> None:
        """Let the IOMMU see what was linked (dma_iova_sync); EFAULT."""
        if self.kernel.inject("dma.sync"):
            raise KernelError(EFAULT, f"{self.name}: dma_iova_sync failed")

    def iova_unlink(self, state: IovaState, offset: int, size: int) -> None:
        """Unlink what was linked at an offset (dma_iova_unlink)."""
        if state.linked_at.pop(offset, 0) != size:
            raise ModelError(f"{self.name}: {size} bytes unlinked at {offset:#x}, which are not linked")
        self.unmap_pages(1)

    def map_phys(self, pfn: int, size: int, *, mmio: bool) -> int:
        """Map bytes from page `pfn` on (dma_map_phys); EFAULT. What need not be unmapped is not counted."""
        if self.kernel.inject("dma.map"):
            raise KernelError(EFAULT, f"{self.name}: dma_map_phys failed")
        if self.need_unmap:
            self._mapped()
        return pfn << self.page_shift | self.offset

    def unmap_phys(self, addr: int, size: int) -> None:
        """Unmap it (dma_unmap_phys)."""
        self.unmap_pages(1)

    def _mapped(self) -> None:
        self.kernel.charge("dma_map_per_folio", 1)
        self.mapped_rows += 1
        self.kernel.ledger.get("dma", self.name)

    def p2pdma_map_type(self, provider: DevPagemap) -> int:
        """Tell how this device reaches a peer's memory (drivers/pci/p2pdma.c:pci_p2pdma_map_type)."""
        return self.p2pdma.get(provider.start_pfn, (PCI_P2PDMA_MAP_NOT_SUPPORTED, 0))[0]

    def p2pdma_bus_offset(self, provider: DevPagemap) -> int:
        """Return a peer's offset between physical and bus addresses."""
        return self.p2pdma[provider.start_pfn][1]


if TYPE_CHECKING:

    def _is_the_api(dma: DmaDevice) -> HmmDmaDevice:
        return dma
