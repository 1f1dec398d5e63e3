"""hmm_dma_map: how a mirror's entries are mapped for DMA, and what their sticky bits say (mm.md §5, invariant 52)."""

from errno import ENOMEM, EOPNOTSUPP

import numpy as np
import pytest
from gpusvm.drm.dma import DmaDevice
from gpusvm.errors import KernelError, ModelError
from gpusvm.mm.api import (
    DMA_MAPPING_ERROR,
    HMM_PFN_DMA_MAPPED,
    HMM_PFN_P2PDMA,
    HMM_PFN_P2PDMA_BUS,
    HMM_PFN_REQ_FAULT,
    HMM_PFN_REQ_WRITE,
    HMM_PFN_VALID,
    HMM_PFN_WRITE,
    MEMORY_DEVICE_PCI_P2PDMA,
    PCI_P2PDMA_MAP_BUS_ADDR,
    PCI_P2PDMA_MAP_NOT_SUPPORTED,
    PCI_P2PDMA_MAP_THRU_HOST_BRIDGE,
    DevPagemap,
    HmmRange,
)
from gpusvm.mm.hmm_dma import (
    PciP2pdmaMapState,
    hmm_dma_map_alloc,
    hmm_dma_map_free,
    hmm_dma_map_pfn,
    hmm_dma_unmap_pfn,
)

PAGE = 4096
BASE = 1 << 30
V, W = HMM_PFN_VALID, HMM_PFN_WRITE
WRITE = HMM_PFN_REQ_FAULT | HMM_PFN_REQ_WRITE
MAPPED, P2PDMA, BUS = HMM_PFN_DMA_MAPPED, HMM_PFN_P2PDMA, HMM_PFN_P2PDMA_BUS

KINDS = ["iova", "list", "stateless"]


class Bench:
    """A device of one of the three kinds, and a map of its mirror."""

    def __init__(self, lab, kind: str, n: int = 4) -> None:
        self.one = lab()
        self.kernel = self.one.kernel
        self.dma = DmaDevice(self.kernel, "gpu", iommu=kind == "iova", offset=0 if kind == "iova" else 1 << 40)
        self.dma.need_unmap = kind != "stateless"
        self.map_ = hmm_dma_map_alloc(self.kernel, self.dma, n)
        self.p2pdma = PciP2pdmaMapState()

    def valid(self, *pfns: int) -> None:
        """Let hmm_range_fault have found these pages."""
        self.map_.pfn_list[: len(pfns)] = [V | W | pfn for pfn in pfns]

    def map(self, idx: int) -> int:
        return hmm_dma_map_pfn(self.one.memory, self.dma, self.map_, idx, self.p2pdma)

    def unmap(self, idx: int) -> bool:
        return hmm_dma_unmap_pfn(self.dma, self.map_, idx)

    def sticky(self, idx: int) -> int:
        return int(self.map_.pfn_list[idx]) & (MAPPED | P2PDMA | BUS)

    def address(self, idx: int, pfn: int) -> int:
        """Where an entry has to be."""
        if self.map_.state is not None:
            return self.map_.state.addr + idx * PAGE
        return pfn << 12 | 1 << 40

    def free(self) -> None:
        hmm_dma_map_free(self.dma, self.map_)
        assert self.dma.mapped_rows == 0
        assert self.kernel.ledger.count("dma") == self.kernel.ledger.count("iova") == 0

    def peer(self, kind: int, *, bus_offset: int = 0) -> int:
        """Plug in a peer with memory; its first pfn."""
        memory = self.one.memory
        start = memory.request_free_mem_region(8)
        memory.memremap_pages(DevPagemap(MEMORY_DEVICE_PCI_P2PDMA, start, 8, None, self.one.device))
        if kind != PCI_P2PDMA_MAP_NOT_SUPPORTED:
            self.dma.p2pdma[start] = (kind, bus_offset)
        return start


# --- alloc and free


def test_what_each_kind_of_device_gets(lab) -> None:
    iova, listed, stateless = (Bench(lab, kind) for kind in KINDS)
    assert iova.map_.state is not None
    assert (iova.map_.state.size_bytes, iova.map_.dma_list) == (4 * PAGE, None)
    assert listed.map_.state is None
    assert listed.map_.dma_list is not None
    assert (stateless.map_.state, stateless.map_.dma_list) == (None, None)
    for bench in (iova, listed, stateless):
        assert bench.map_.pfn_list.tolist() == [0] * 4
        bench.free()


@pytest.mark.parametrize("what", ["needs_sync", "addressing_limited"])
def test_a_device_that_cannot_use_pages_in_place(lab, what: str) -> None:
    one = lab()
    dma = DmaDevice(one.kernel, "gpu")
    setattr(dma, what, True)
    with pytest.raises(KernelError) as caught:
        hmm_dma_map_alloc(one.kernel, dma, 4)
    assert (caught.value.errno, str(caught.value)) == (EOPNOTSUPP, "-EOPNOTSUPP: gpu cannot use pages in place")


@pytest.mark.parametrize("site", ["alloc.hmm_pfns", "alloc.hmm_dma_list"])
def test_no_memory_for_the_lists(lab, site: str) -> None:
    one = lab()
    dma = DmaDevice(one.kernel, "gpu")
    dma.need_unmap = True
    one.kernel.arm(site)
    with pytest.raises(KernelError) as caught:
        hmm_dma_map_alloc(one.kernel, dma, 4)
    assert caught.value.errno == ENOMEM
    assert one.kernel.ledger.count("iova") == 0


def test_a_map_is_freed_when_nothing_is_mapped(lab) -> None:
    bench = Bench(lab, "iova")
    bench.valid(5, 6)
    bench.map(1)
    with pytest.raises(ModelError, match="entry 1 and 0 others are mapped"):
        bench.free()
    bench.unmap(1)
    bench.free()


# --- map and unmap


@pytest.mark.parametrize("kind", KINDS)
def test_an_entry_is_mapped_once_and_unmapped_once(lab, kind: str) -> None:
    bench = Bench(lab, kind)
    bench.valid(5, 9)
    assert bench.map(1) == bench.address(1, 9)
    assert (bench.sticky(0), bench.sticky(1)) == (0, MAPPED)
    rows = bench.dma.mapped_rows
    assert rows == (0 if kind == "stateless" else 1)
    # Again, because a flag has changed: the same address, nothing new.
    assert bench.map(1) == bench.address(1, 9)
    assert bench.dma.mapped_rows == rows
    assert bench.unmap(1)
    assert (bench.sticky(1), int(bench.map_.pfn_list[1])) == (0, V | W | 9)
    assert not bench.unmap(1)
    assert not bench.unmap(0)
    bench.free()


@pytest.mark.parametrize("kind", KINDS)
def test_an_entry_that_is_not_valid(lab, kind: str) -> None:
    bench = Bench(lab, kind)
    with pytest.raises(ModelError, match="hmm_dma_map_pfn of entry 2, which is not valid"):
        bench.map(2)
    # MAPPED without VALID, as after a snapshot that found nothing: there is nothing that could be unmapped any more.
    bench.map_.pfn_list[2] = MAPPED
    assert not bench.unmap(2)
    bench.map_.pfn_list[2] = 0


@pytest.mark.parametrize(
    ("kind", "site"), [("iova", "dma.link"), ("iova", "dma.sync"), ("list", "dma.map"), ("stateless", "dma.map")]
)
def test_a_failure_leaves_nothing_behind(lab, kind: str, site: str) -> None:
    bench = Bench(lab, kind)
    peer = bench.peer(PCI_P2PDMA_MAP_THRU_HOST_BRIDGE)
    bench.valid(5, peer)
    for idx in (0, 1):
        bench.kernel.arm(site)
        before = int(bench.map_.pfn_list[idx])
        assert bench.map(idx) == DMA_MAPPING_ERROR
        assert int(bench.map_.pfn_list[idx]) == before
        assert bench.dma.mapped_rows == 0
    assert bench.map(0) == bench.address(0, 5)
    bench.unmap(0)
    bench.free()


# --- peers


@pytest.mark.parametrize("kind", KINDS)
def test_a_peer_behind_the_same_switch_has_a_bus_address(lab, kind: str) -> None:
    bench = Bench(lab, kind)
    peer = bench.peer(PCI_P2PDMA_MAP_BUS_ADDR, bus_offset=-(1 << 20))
    bench.valid(peer + 3)
    address = (peer + 3 << 12) - (1 << 20)
    assert bench.map(0) == address
    assert bench.sticky(0) == BUS | MAPPED  # invariant 52: BUS implies DMA_MAPPED
    assert bench.dma.mapped_rows == 0
    assert bench.map(0) == address
    assert bench.unmap(0)
    assert (bench.sticky(0), bench.dma.mapped_rows) == (0, 0)
    bench.free()


@pytest.mark.parametrize("kind", KINDS)
def test_a_peer_through_the_host_bridge_is_mapped_as_mmio(lab, kind: str) -> None:
    bench = Bench(lab, kind)
    peer = bench.peer(PCI_P2PDMA_MAP_THRU_HOST_BRIDGE)
    bench.valid(7, peer)
    assert bench.map(1) == bench.address(1, peer)
    assert bench.sticky(1) == P2PDMA | MAPPED
    assert bench.map(1) == bench.address(1, peer)
    assert bench.unmap(1)
    assert bench.sticky(1) == 0
    bench.free()


@pytest.mark.parametrize("kind", KINDS)
def test_a_peer_that_is_out_of_reach(lab, kind: str) -> None:
    bench = Bench(lab, kind)
    bench.valid(bench.peer(PCI_P2PDMA_MAP_NOT_SUPPORTED))
    assert bench.map(0) == DMA_MAPPING_ERROR
    assert bench.sticky(0) == 0
    assert not bench.unmap(0)
    bench.free()


def test_the_last_provider_is_remembered(lab) -> None:
    bench = Bench(lab, "list")
    near, far = bench.peer(PCI_P2PDMA_MAP_BUS_ADDR), bench.peer(PCI_P2PDMA_MAP_THRU_HOST_BRIDGE)
    asked = []
    ask = DmaDevice.p2pdma_map_type

    class Counting(DmaDevice):
        def p2pdma_map_type(self, provider) -> int:
            asked.append(provider.start_pfn)
            return ask(self, provider)

    counting = Counting(bench.kernel, "gpu")
    counting.p2pdma = bench.dma.p2pdma
    bench.dma = counting
    bench.valid(near, near + 1, 5, far)
    for idx in range(4):
        bench.map(idx)
    assert asked == [near, far]
    assert [bench.sticky(idx) for idx in range(4)] == [BUS | MAPPED, BUS | MAPPED, MAPPED, P2PDMA | MAPPED]


@pytest.mark.parametrize("kind", KINDS)
def test_device_private_memory_is_nobodys_peer_memory(lab, kind: str) -> None:
    # pci_p2pdma_state: NONE for every page that is not P2PDMA; no dev_pagemap op translates it.
    bench = Bench(lab, kind)
    one = bench.one
    one.map(1)
    one.device.migrate(one.mm, BASE, BASE + PAGE)
    bench.valid(one.pfn(0))
    assert bench.map(0) == bench.address(0, one.pfn(0))
    assert bench.sticky(0) == MAPPED
    bench.unmap(0)
    bench.free()


# --- with hmm_range_fault


class Mirror:
    """A driver as hmm_dma_map wants it: it unmaps in its callback."""

    def __init__(self, bench: Bench, n: int, *, unmaps: bool = True) -> None:
        self.bench = bench
        self.unmaps = unmaps
        self.unmapped: list[int] = []
        self.n = n
        memory = bench.one.memory
        self.sub = memory.mmu_interval_notifier_insert(bench.one.mm, BASE, n * PAGE, self)

    def invalidate(self, sub, range_, cur_seq) -> bool:
        sub.invalidate_seq = cur_seq
        if self.unmaps:
            first = max(range_.start - BASE, 0) // PAGE
            end = min((range_.end - BASE) // PAGE, self.n)
            self.unmapped += [idx for idx in range(first, end) if self.bench.unmap(idx)]
        return True

    def fault(self) -> list[int]:
        bench = self.bench
        memory = bench.one.memory
        range_ = HmmRange(self.sub, BASE, BASE + self.n * PAGE, bench.map_.pfn_list, WRITE)
        memory.hmm_range_fault_unlocked_timeout(range_, 0)
        assert not memory.mmu_interval_read_retry(self.sub, range_.notifier_seq)
        return [bench.map(idx) for idx in range(self.n)]


@pytest.mark.parametrize("kind", KINDS)
def test_mapped_entries_stay_mapped_over_a_second_fault(lab, kind: str) -> None:
    bench = Bench(lab, kind)
    one = bench.one
    one.map(4)
    mirror = Mirror(bench, 4)
    first = mirror.fault()
    assert first == [bench.address(i, one.pfn(i)) for i in range(4)]
    assert bench.map_.pfn_list.tolist() == [V | W | MAPPED | one.pfn(i) for i in range(4)]
    assert mirror.fault() == first
    rows = bench.dma.mapped_rows
    # One page goes away and another comes in its place.
    one.mm.munmap(one.va(2), PAGE)
    assert (mirror.unmapped, bench.sticky(2)) == ([2], 0)
    one.mm.mmap(one.va(2), PAGE, 3)
    one.write(2)
    assert mirror.fault() == [bench.address(i, one.pfn(i)) for i in range(4)]
    assert bench.dma.mapped_rows == rows
    one.mm.munmap(BASE, 4 * PAGE)
    assert mirror.unmapped == [2, 0, 1, 2, 3]
    bench.free()


def test_who_does_not_unmap_in_the_callback_keeps_the_old_mapping(lab) -> None:
    # Sticky bits outlive the pfn: the entry still counts as mapped, at the address of a page that is gone.
    bench = Bench(lab, "list")
    one = bench.one
    one.map(1)
    mirror = Mirror(bench, 1, unmaps=False)
    (stale,) = mirror.fault()
    old = one.pfn(0)
    one.pages.folio_get(old)  # so that it is not given out again at once
    one.mm.munmap(BASE, PAGE)
    one.mm.mmap(BASE, PAGE, 3)
    one.write(0)
    assert one.pfn(0) != old
    assert mirror.fault() == [stale]
    assert stale == old << 12 | 1 << 40
    bench.unmap(0)
    one.pages.folio_put(old)


def test_garbage_in_the_sticky_bits_is_believed(lab) -> None:
    # §1.1: the caller clears its array; hmm_range_fault never does.
    bench = Bench(lab, "list")
    one = bench.one
    one.map(1)
    bench.map_.pfn_list[0] = MAPPED
    mirror = Mirror(bench, 1)
    assert mirror.fault() == [0]
    assert bench.map_.dma_list is not None
    assert np.count_nonzero(bench.map_.dma_list) == 0
