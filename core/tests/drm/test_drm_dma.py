from errno import EFAULT

import numpy as np
import pytest
from gpusvm.drm import DMA_TO_DEVICE, DmaDevice, PagemapAddrs, constant_u8, expand
from gpusvm.errors import KernelError, ModelError
from gpusvm.kernel import Kernel


def test_a_direct_mapping_is_the_physical_address():
    kernel = Kernel()
    dma = DmaDevice(kernel, "gpu", offset=1 << 40)
    addr = dma.map_pages(np.array([3, 512]), np.array([0, 9], np.uint8), DMA_TO_DEVICE)
    assert addr.tolist() == [(1 << 40) | 0x3000, (1 << 40) | 0x200000]
    assert addr.dtype == np.uint64
    assert kernel.ledger.count("dma") == 2
    dma.unmap_pages(2)
    kernel.ledger.assert_empty()
    with pytest.raises(ModelError) as caught:
        dma.unmap_pages(1)
    assert str(caught.value) == "gpu: 1 rows unmapped, 0 mapped"


def test_an_iommu_gives_consecutive_addresses_in_the_order_of_linking():
    kernel = Kernel()
    dma = DmaDevice(kernel, "gpu", iommu=True, iova_base=1 << 32)
    state = dma.iova_try_alloc(16 << 12)
    assert dma.iova_link(state, np.array([7, 9]), np.array([0, 1], np.uint8), DMA_TO_DEVICE).tolist() == [
        1 << 32,
        (1 << 32) + 0x1000,
    ]
    assert dma.iova_link(state, np.array([5]), np.array([0], np.uint8), DMA_TO_DEVICE).tolist() == [(1 << 32) + 0x3000]
    assert kernel.ledger.count("dma") == 3
    assert kernel.ledger.count("iova") == 1
    dma.iova_destroy(state)
    kernel.ledger.assert_empty()
    assert dma.iova_try_alloc(1 << 12).addr == (1 << 32) + (16 << 12)


def test_a_reservation_of_which_nothing_was_linked_is_given_back_whole():
    kernel = Kernel()
    dma = DmaDevice(kernel, "gpu", iommu=True)
    dma.iova_destroy(dma.iova_try_alloc(1 << 12))
    kernel.ledger.assert_empty()


def test_an_injected_mapping_error_maps_nothing():
    kernel = Kernel()
    dma = DmaDevice(kernel, "gpu")
    kernel.arm("dma.map")
    with pytest.raises(KernelError) as caught:
        dma.map_pages(np.array([1]), constant_u8(0, 1), DMA_TO_DEVICE)
    assert caught.value.errno == EFAULT
    assert str(caught.value) == "-EFAULT: gpu: dma_map_page failed"
    kernel.ledger.assert_empty()


def test_rows_expand_to_pages():
    order = np.array([0, 2, 0], np.uint8)
    addrs = PagemapAddrs(
        np.array([100, 8, 50]), np.array([1, 2, 3], np.uint64), order, np.array([0, 1, 0], np.uint8), 0, 6
    )
    assert addrs.page_pfns().tolist() == [100, 8, 9, 10, 11, 50]
    assert addrs.first_pages().tolist() == [0, 1, 5]
    device = addrs.rows(addrs.proto != 0)
    assert (len(device), device.npages, device.pfns.tolist(), device.addr.tolist()) == (1, 4, [8], [2])
    assert expand(np.array([64]), np.array([3], np.uint8), 8).tolist() == list(range(64, 72))
