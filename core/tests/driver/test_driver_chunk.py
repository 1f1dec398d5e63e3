"""Chunks with a dev_pagemap inside, and their free lists."""

import errno

import numpy as np
import pytest
from gpusvm.driver import ChunkPool, FreeList, chunk_pages
from gpusvm.drm import DrmDevice
from gpusvm.errors import KernelError
from gpusvm.kernel import Kernel
from gpusvm.mm import Geometry, MemoryManager

PAGES = 64
GEOMETRY = Geometry(pmd_order=3)


class Ops:
    folio_split = None

    def __init__(self):
        self.pool = None

    def migrate_to_ram(self, vmf):
        raise AssertionError

    def folio_free(self, pfn, order):
        self.pool.free(pfn, order)

    def folios_free(self, pfns):
        self.pool.free_many(pfns)


@pytest.fixture
def memory():
    return MemoryManager(Kernel(), geometry=GEOMETRY, ram_pages=256, thp="never")


def a_pool(memory, **more):
    ops = Ops()
    ops.pool = ChunkPool(memory.kernel, memory, chunk_pages=PAGES, owner=object(), ops=ops, **more)
    return ops.pool


def make_live(memory, pool, pfns, order=0):
    for pfn in pfns:
        memory.zone_device_folio_init(int(pfn), pool.chunk_of(int(pfn)).pagemap, order)
        memory.set_zone_device_data(int(pfn), "used")


def drop(memory, pfns):
    memory.folios_unlock(np.array(pfns))
    memory.folios_put(np.array(pfns))


@pytest.mark.parametrize(
    ("order", "chunk", "vram", "pages"),
    [
        (9, 256 << 20, 16 << 20, 65536),  # as in the kernel, whether it fits or not
        (9, 256 << 20, None, 65536),
        (3, 256 << 20, None, 1024),
        (3, 2 << 20, None, 512),
        (2, 256 << 20, 16 * 4096, 8),
        (2, 256 << 20, 15 * 4096, 4),
        (2, 256 << 20, 4 * 4096, 4),
        (2, 256 << 20, 1 << 30, 512),
    ],
)
def test_a_chunk_follows_a_small_machine(order, chunk, vram, pages):
    assert chunk_pages(chunk, Geometry(pmd_order=order), vram_bytes=vram) == pages


def test_a_free_list_is_the_linked_list_of_the_kernel():
    free, linked = FreeList(0), []
    for step in (("push", 3), ("many", [5, 6, 7]), ("pop", 2), ("push", 6), ("pop", 1), ("pop", 9), ("pop", 1)):
        if step[0] == "push":
            free.push(step[1])
            linked.append(step[1])
        elif step[0] == "many":
            free.push_many(np.array(step[1]))
            linked += step[1]
        else:
            expected = [linked.pop() for _ in range(min(step[1], len(linked)))]
            assert free.pop_many(step[1]).tolist() == expected
        assert (len(free), free.head) == (len(linked), linked[-1] if linked else None)
    assert repr(free) == "FreeList(order=0, 0 free)"


def test_a_chunk_carved_small_is_handed_out_from_its_end(memory):
    pool = a_pool(memory)
    pfns = pool.alloc_many(0, 5)
    chunk = pool.chunks[0]
    assert pfns.tolist() == [chunk.end - 1 - i for i in range(5)]
    assert (len(pool.free_pages), len(pool.free_folios), chunk.callocated) == (PAGES - 5, 0, 5)


def test_lost_pages_are_those_at_the_end(memory):
    pool = a_pool(memory, lost_pages=8)
    assert pool.alloc(0) == pool.chunks[0].end - 9
    assert len(pool.free_pages) == PAGES - 8 - 1


def test_an_empty_list_gets_a_new_chunk_although_the_other_is_full(memory):
    pool = a_pool(memory)
    pool.alloc(0)
    folio = pool.alloc(GEOMETRY.pmd_order)
    assert [chunk.callocated for chunk in pool.chunks] == [1, 1]
    assert folio == pool.chunks[1].end - 8
    assert (len(pool.free_pages), len(pool.free_folios)) == (PAGES - 1, PAGES // 8 - 1)
    assert memory.kernel.gauges.now["pagemap"] == 2


def test_a_request_may_take_the_rest_of_one_chunk_and_begin_the_next(memory):
    pool = a_pool(memory)
    pfns = pool.alloc_many(0, PAGES + 2)
    assert [(chunk.callocated, len(some)) for chunk, some in pool.by_chunk(pfns)] == [(PAGES, PAGES), (2, 2)]


def test_the_last_page_freed_is_the_first_allocated(memory):
    pool = a_pool(memory)
    pfns = pool.alloc_many(0, 4).tolist()
    make_live(memory, pool, pfns)
    drop(memory, [pfns[2]])
    drop(memory, [pfns[0], pfns[1]])
    assert pool.alloc_many(0, 3).tolist() == [pfns[1], pfns[0], pfns[2]]
    assert pool.chunks[0].callocated == 4


def test_zone_device_data_is_the_link_while_a_page_is_free(memory):
    pool = a_pool(memory)
    folio = pool.alloc(GEOMETRY.pmd_order)
    assert memory.zone_device_data(folio) is pool.free_folios
    make_live(memory, pool, [folio], GEOMETRY.pmd_order)
    assert memory.zone_device_data(folio) == "used"
    drop(memory, [folio])
    assert memory.zone_device_data(folio) is pool.free_folios


def test_a_page_leads_to_its_chunk_through_the_embedded_pagemap(memory):
    pool = a_pool(memory)
    first, second = pool.alloc(0), pool.alloc(GEOMETRY.pmd_order)
    assert pool.container_of(memory.page_pgmap(first)) is pool.chunks[0]
    assert pool.container_of(memory.page_pgmap(second)) is pool.chunks[1]
    assert pool.dev_pagemaps() == [chunk.pagemap for chunk in pool.chunks]


def test_a_refused_chunk_ends_the_request(memory):
    def refuse(chunk):
        raise KernelError(errno.ENOMEM, "no VRAM")

    pool = a_pool(memory, on_new=refuse)
    assert pool.alloc(0) is None
    assert pool.alloc_many(0, 3).tolist() == []
    assert pool.chunks == []


def test_a_removed_chunk_takes_its_free_pages_along(memory):
    pool = a_pool(memory)
    page, folio = pool.alloc(0), pool.alloc(GEOMETRY.pmd_order)
    make_live(memory, pool, [page])
    make_live(memory, pool, [folio], GEOMETRY.pmd_order)
    drop(memory, [page])
    pool.remove(pool.chunks[0])
    assert (len(pool.free_pages), len(pool.free_folios)) == (0, PAGES // 8 - 1)
    assert [chunk.callocated for chunk in pool.chunks] == [1]


def test_the_drm_pagemap_stands_for_all_chunks_and_is_not_counted(memory):
    pool = a_pool(memory)
    pool.alloc(0)
    drm = DrmDevice(memory.kernel, "gpu")
    calls = []
    pagemap = pool.offer(drm, lambda start, end, mm: calls.append((start, end, mm.name)))
    assert pool.offer(drm, None) is pagemap is pool.pagemap_of(pool.chunks[0].pagemap)
    mm = memory.mm_alloc("p")
    pagemap.populate_mm(0, 4096, mm, 5)
    assert calls == [(0, 4096, "p")]
    assert pagemap.pagemap.owner is pool.owner
    assert memory.kernel.gauges.peak["pagemap"] == 1
    with pytest.raises(KernelError) as error:
        pagemap.ops.device_map(pagemap, drm, np.zeros(1, np.int64), np.zeros(1, np.uint8), 0)
    assert str(error.value) == ("-EFAULT: <DrmPagemap of 'gpu'> cannot be mapped by gpu: its driver has no peer access")
    pool.withdraw()
    assert memory.kernel.gauges.now["pagemap"] == 1
