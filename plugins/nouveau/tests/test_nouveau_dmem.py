"""Where nouveau's device pages come from, how they lead to their object, and where they go."""

import numpy as np
import pytest

K, M = 1 << 10, 1 << 20
PAGE, PMD = 4 * K, 2 * M


def device_pfn(b, addr):
    return b.mm.page_table.entry(addr).pfn


def test_a_chunk_carved_small_has_65408_pages_and_loses_128(bench):
    b = bench(thp="never")
    addr = b.map(PMD)
    b.cpu_write(addr, 10)
    b.vm.populate(addr, addr + 10 * PAGE)
    pool = b.driver.dmem.pool
    (chunk,) = pool.chunks
    assert chunk.pagemap.nr_pages == 65536
    assert len(pool.free_pages) == 65408 - 10
    assert device_pfn(b, addr) == chunk.end - 128 - 1  # the list is last in, first out
    assert (len(pool.free_folios), chunk.callocated) == (0, 10)


def test_a_chunk_carved_large_has_128_folios(bench):
    b = bench()
    addr = b.map(2 * PMD)
    b.cpu_write(addr, 1024)
    b.vm.populate(addr, addr + 2 * PMD)
    pool = b.driver.dmem.pool
    (chunk,) = pool.chunks
    assert (len(pool.free_folios), len(pool.free_pages), chunk.callocated) == (128 - 2, 0, 2)
    assert device_pfn(b, addr) == chunk.end - 512


def test_page_to_bo_goes_through_the_embedded_pagemap(bench):
    b = bench()
    addr = b.map(2 * PMD)
    b.cpu_write(addr)
    b.cpu_write(addr + PMD, 512)
    b.memory.mprotect(b.mm, addr, PMD, 1)  # splits nothing: a VMA boundary between the two blocks
    b.vm.populate(addr, addr + 2 * PMD)
    driver, memory = b.driver, b.memory
    for at in (addr, addr + PMD):
        pfn = device_pfn(b, at)
        chunk = driver.embedding.container_of(memory.page_pgmap(pfn))
        assert driver.bo_mapping.bo_of(pfn) is chunk.bo
        assert chunk.bo.container is chunk
        assert chunk.bo.pinned
        assert memory.zone_device_data(pfn) is b.vm  # in use, it names the svmm


def test_another_order_needs_another_chunk_and_so_another_pagemap(bench):
    b = bench()
    addr = b.map(2 * PMD)
    b.cpu_write(addr, 512)
    b.vm.populate(addr, addr + PMD)
    assert len(b.driver.dev_pagemaps()) == 1
    small = b.map(16 * PAGE)
    b.cpu_write(small, 16)
    b.vm.populate(small, small + 16 * PAGE)
    assert [chunk.callocated for chunk in b.driver.dmem.pool.chunks] == [1, 16]
    assert {pagemap.owner for pagemap in b.driver.dev_pagemaps()} == {b.driver.device}
    assert (b.kernel.gauges.now["pagemap"], b.kernel.gauges.now["bo"]) == (2, 2)


def test_without_vram_for_a_chunk_pages_silently_stay(bench):
    b = bench(vram_bytes=256 * M)
    addr = b.map(PMD)
    b.cpu_write(addr, 512)
    small = b.map(16 * PAGE)
    b.cpu_write(small, 16)
    assert b.vm.populate(addr, addr + PMD) == PMD  # takes the only chunk
    assert b.vm.populate(small, small + 16 * PAGE) == 0
    assert b.where(small) == "system"
    b.gpu_write(small, 16)
    assert b.kernel.stats.evictions == 0


def test_with_less_vram_than_a_chunk_nothing_ever_moves(bench):
    b = bench(vram_bytes=64 * M)
    addr = b.map(PMD)
    b.cpu_write(addr, 512)
    assert b.vm.populate(addr, addr + PMD) == 0
    assert b.driver.dev_pagemaps() == []
    assert bench("nouveau:chunk_bytes=64M", vram_bytes=64 * M).driver.dmem.pool.chunk_pages == 16384


def test_a_freed_page_is_the_next_to_be_used_and_its_data_field_the_link(bench):
    b = bench(thp="never")
    addr = b.map(PMD)
    b.cpu_write(addr, 4)
    b.vm.populate(addr, addr + 4 * PAGE)
    pfns = [device_pfn(b, addr + i * PAGE) for i in range(4)]
    b.cpu_read(addr + 2 * PAGE)
    pool = b.driver.dmem.pool
    assert pool.free_pages.head == pfns[2]
    assert b.memory.zone_device_data(pfns[2]) is pool.free_pages
    b.cpu_write(addr + 8 * PAGE)
    b.vm.populate(addr + 8 * PAGE, addr + 9 * PAGE)
    assert device_pfn(b, addr + 8 * PAGE) == pfns[2]
    assert b.memory.zone_device_data(pfns[2]) is b.vm


def test_a_split_folio_returns_as_single_pages_with_the_svmm_copied(bench):
    b = bench()
    addr = b.map(PMD)
    b.cpu_write(addr, 512)
    b.vm.populate(addr, addr + PMD)
    b.memory.munmap(b.mm, addr, 16 * PAGE)
    b.cpu_read(addr + 100 * PAGE)  # splits the folio, which a PMD no longer maps
    pool = b.driver.dmem.pool
    at = addr + 200 * PAGE
    assert b.memory.folio_order(device_pfn(b, at)) == 0
    assert b.memory.zone_device_data(device_pfn(b, at)) is b.vm
    b.cpu_read(addr + 16 * PAGE, 496)
    assert len(pool.free_pages) == 512
    assert [chunk.callocated for chunk in pool.chunks] == [0]


@pytest.mark.parametrize("thp", ["always", "never"])
def test_shutdown_brings_every_page_home(bench, thp):
    b = bench(thp=thp, quirks="fixed")
    addr = b.map(PMD)
    b.cpu_write(addr, 512)
    b.vm.populate(addr, addr + PMD)
    b.vm.close()
    assert b.where(addr) == "device"  # closing the address space leaves them
    b.driver.dmem.fini()
    assert {b.where(addr + i * PAGE) for i in range(512)} == {"system"}
    b.cpu_read(addr, 512)
    assert b.kernel.stats.migrated_to_ram_bytes == PMD
    assert b.driver.dev_pagemaps() == []


def test_contents_survive_every_way_there_and_back(bench):
    b = bench(thp="never", quirks="fixed")
    addr = b.map(PMD)
    b.cpu_write(addr, 300)
    b.gpu_write(addr + 100 * PAGE, 100)
    b.vm.populate(addr, addr + PMD)
    b.gpu_read(addr, 512)
    b.gpu_write(addr + 200 * PAGE, 200)
    b.cpu_read(addr, 512)
    b.vm.populate(addr, addr + PMD)
    b.gpu_read(addr, 512)
    contents = b.memory.contents
    assert contents.reads_checked >= 1536
    assert (contents.mismatch_count, contents.known) == (0, {})
    assert np.array_equal(b.vm.page_table.perms(addr // PAGE, addr // PAGE + 512) & 8, np.zeros(512))
