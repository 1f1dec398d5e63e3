"""mm/hmm.c:hmm_dma_map_alloc to hmm_dma_unmap_pfn, as of Linux 7.3.4: map what hmm_range_fault found for DMA.

One `HmmDmaMap` goes with one device mapping that lives long: its `pfn_list` is the array that hmm_range_fault fills
again and again, and three of the bits that fill leaves alone say how each entry is mapped. There is one reservation of
device addresses for all entries, or a list of addresses, or neither where addresses follow from pfns alone.
"""

from errno import ENOMEM, EOPNOTSUPP
from typing import Final

import numpy as np
from attrs import define, field

from gpusvm.errors import KernelError, ModelError
from gpusvm.kernel import Kernel
from gpusvm.mm.api import (
    DMA_MAPPING_ERROR,
    HMM_PFN_DMA_MAPPED,
    HMM_PFN_P2PDMA,
    HMM_PFN_P2PDMA_BUS,
    HMM_PFN_PFN_MASK,
    HMM_PFN_STICKY,
    HMM_PFN_VALID,
    MEMORY_DEVICE_PCI_P2PDMA,
    PCI_P2PDMA_MAP_BUS_ADDR,
    PCI_P2PDMA_MAP_NONE,
    PCI_P2PDMA_MAP_THRU_HOST_BRIDGE,
    DevPagemap,
    HmmDmaDevice,
    HmmDmaIova,
    MemoryManagerApi,
    Words,
)
from gpusvm.mm.observer import tell

__all__ = [
    "HmmDmaMap",
    "PciP2pdmaMapState",
    "hmm_dma_map_alloc",
    "hmm_dma_map_free",
    "hmm_dma_map_pfn",
    "hmm_dma_unmap_pfn",
]


@define
class HmmDmaMap:
    """Map entries of a device's mirror for DMA (include/linux/hmm-dma.h:struct hmm_dma_map).

    `state` is the reservation of device addresses, or None; `dma_list` the address of each entry, where a device
    without one has to unmap.
    """

    state: HmmDmaIova | None
    pfn_list: Words
    dma_list: Words | None
    dma_entry_size: int
    kernel: Kernel = field(eq=False, repr=False)


@define
class PciP2pdmaMapState:
    """Remember how the last provider of peer memory is reached (struct pci_p2pdma_map_state)."""

    provider: DevPagemap | None = None
    map: int = PCI_P2PDMA_MAP_NONE


_VALID_DMA: Final = HMM_PFN_VALID | HMM_PFN_DMA_MAPPED


def hmm_dma_map_alloc(
    kernel: Kernel, dev: HmmDmaDevice, nr_entries: int, *, page_size: int = 4096, dma_entry_size: int = 4096
) -> HmmDmaMap:
    """Make a map of `nr_entries` entries, none of them mapped. EOPNOTSUPP ENOMEM.

    EOPNOTSUPP: the device has to synchronise caches or bounce buffers, or cannot address all memory.
    """
    if nr_entries * page_size < dma_entry_size:
        raise ModelError(f"{nr_entries} entries of {page_size} bytes do not make one of {dma_entry_size}")
    if dev.needs_sync or dev.addressing_limited:
        raise KernelError(EOPNOTSUPP, f"{dev.name} cannot use pages in place")
    if kernel.inject("alloc.hmm_pfns"):
        raise KernelError(ENOMEM, f"no memory for {nr_entries} words")
    state = dev.iova_try_alloc(nr_entries * page_size)
    dma_list = None
    if state is None and dev.need_unmap:
        if kernel.inject("alloc.hmm_dma_list"):
            raise KernelError(ENOMEM, f"no memory for {nr_entries} addresses")
        dma_list = np.zeros(nr_entries, np.uint64)
    return HmmDmaMap(state, np.zeros(nr_entries, np.uint64), dma_list, dma_entry_size, kernel)


def hmm_dma_map_free(dev: HmmDmaDevice, map_: HmmDmaMap) -> None:
    """Give the reservation back; everything is unmapped by then."""
    left = np.flatnonzero(map_.pfn_list & np.uint64(HMM_PFN_DMA_MAPPED))
    if len(left):
        raise ModelError(f"hmm_dma_map_free of {dev.name}: entry {int(left[0])} and {len(left) - 1} others are mapped")
    if map_.state is not None:
        dev.iova_free(map_.state)
        map_.state = None


def hmm_dma_map_pfn(
    memory: MemoryManagerApi, dev: HmmDmaDevice, map_: HmmDmaMap, idx: int, p2pdma: PciP2pdmaMapState
) -> int:
    """Map one entry and return the device's address of it; DMA_MAPPING_ERROR, and nothing changed, if it cannot be.

    An entry that is mapped keeps its address; what it allows may have changed. The caller holds the lock under which
    mmu_interval_read_retry said that the words are good.
    """
    pfns = map_.pfn_list
    word = int(pfns[idx])
    if not word & HMM_PFN_VALID:
        raise ModelError(f"hmm_dma_map_pfn of entry {idx}, which is not valid")
    size = map_.dma_entry_size
    offset = idx * size
    state = map_.state
    if word & HMM_PFN_DMA_MAPPED and not word & HMM_PFN_P2PDMA_BUS:
        if state is not None:
            return state.addr + offset
        if map_.dma_list is not None:
            return int(map_.dma_list[idx])
        # Nothing to undo means nothing to keep: the address is found again below.
    pfn = word & HMM_PFN_PFN_MASK
    kind = _pci_p2pdma_state(memory, dev, p2pdma, pfn)
    if kind == PCI_P2PDMA_MAP_BUS_ADDR:
        # Behind one switch: no IOMMU is in the way.
        assert p2pdma.provider is not None
        pfns[idx] = np.uint64(word | HMM_PFN_P2PDMA_BUS | HMM_PFN_DMA_MAPPED)
        _tell(map_, "hmm_dma_map_pfn", idx)
        return (pfn << memory.geometry.page_shift) + dev.p2pdma_bus_offset(p2pdma.provider)
    if kind not in {PCI_P2PDMA_MAP_NONE, PCI_P2PDMA_MAP_THRU_HOST_BRIDGE}:
        return DMA_MAPPING_ERROR
    mmio = kind == PCI_P2PDMA_MAP_THRU_HOST_BRIDGE
    if mmio:
        word |= HMM_PFN_P2PDMA
    try:
        if state is not None:
            dev.iova_link_at(state, pfn, offset, size, mmio=mmio)
            try:
                dev.iova_sync(state, offset, size)
            except KernelError:
                dev.iova_unlink(state, offset, size)
                raise
            addr = state.addr + offset
        else:
            addr = dev.map_phys(pfn, size, mmio=mmio)
            if map_.dma_list is not None:
                map_.dma_list[idx] = addr
    except KernelError:
        pfns[idx] = np.uint64(word & ~HMM_PFN_P2PDMA)
        return DMA_MAPPING_ERROR
    pfns[idx] = np.uint64(word | HMM_PFN_DMA_MAPPED)
    _tell(map_, "hmm_dma_map_pfn", idx)
    return addr


def hmm_dma_unmap_pfn(dev: HmmDmaDevice, map_: HmmDmaMap, idx: int) -> bool:
    """Unmap one entry, if it is valid and mapped; tell whether it was.

    A driver does so in its invalidate callback: hmm_range_fault keeps the bits that say how an entry is mapped and
    replaces its pfn, after which the old one is lost.
    """
    word = int(map_.pfn_list[idx])
    if word & _VALID_DMA != _VALID_DMA:
        return False
    size = map_.dma_entry_size
    if word & HMM_PFN_P2PDMA_BUS:
        pass
    elif map_.state is not None:
        dev.iova_unlink(map_.state, idx * size, size)
    elif map_.dma_list is not None:
        dev.unmap_phys(int(map_.dma_list[idx]), size)
    map_.pfn_list[idx] = np.uint64(word & ~HMM_PFN_STICKY)
    _tell(map_, "hmm_dma_unmap_pfn", idx)
    return True


def _tell(map_: HmmDmaMap, name: str, idx: int) -> None:
    if map_.kernel.observer is not None:
        tell(map_.kernel.observer, "operation_ends", name, map_, idx)


def _pci_p2pdma_state(memory: MemoryManagerApi, dev: HmmDmaDevice, state: PciP2pdmaMapState, pfn: int) -> int:
    # include/linux/pci-p2pdma.h:pci_p2pdma_state. Only PCI peer memory has a provider; device-private memory has none.
    pgmap = memory.page_pgmap(pfn)
    if pgmap is None or pgmap.type != MEMORY_DEVICE_PCI_P2PDMA:
        return PCI_P2PDMA_MAP_NONE
    if state.provider is not pgmap:
        state.provider = pgmap
        state.map = dev.p2pdma_map_type(pgmap)
    return state.map
