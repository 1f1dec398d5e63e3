"""Device memory of dmirror: chunks, backing pages, migration there and back."""

import numpy as np
import pytest
from gpusvm.errors import KernelError
from gpusvm.gpu import READ, WRITE
from gpusvm.machine import load_topology
from gpusvm.mm.api import PROT_NONE
from gpusvm_dmirror.backing import Backing

K, M = 1 << 10, 1 << 20
PAGE, PMD = 4 * K, 2 * M


def device_pfn(b, addr):
    return b.mm.page_table.entry(addr).pfn


def test_one_chunk_exists_from_the_start_and_large_folios_need_another(bench):
    b = bench()
    assert b.driver.describe() == {"chunks": 1, "free_pages": 65536, "free_folios": 0, "allocations": 0, "files": 1}
    addr = b.map(PMD)
    b.cpu_write(addr)
    b.vm.populate(addr, addr + PMD)
    assert b.driver.describe() == {"chunks": 2, "free_pages": 65536, "free_folios": 127, "allocations": 1, "files": 1}
    assert [pagemap.owner for pagemap in b.driver.dev_pagemaps()] == [b.driver] * 2


def test_memory_is_never_exhausted_but_by_ram(bench):
    b = bench("dmirror:chunk_bytes=2M", vram_bytes=2 * M, thp="never")
    addr = b.map(2 * PMD)
    b.cpu_write(addr, 1024)
    assert b.vm.populate(addr, addr + 2 * PMD) == 2 * PMD
    assert [chunk.callocated for chunk in b.driver.pool.chunks] == [512, 512]


def test_a_page_leads_to_its_chunk_and_to_the_page_that_holds_the_data(bench):
    b = bench(thp="never")
    addr = b.map(4 * PAGE)
    b.cpu_write(addr, 4)
    tokens = [b.memory.contents.token(b.mm.page_table.entry(addr + i * PAGE).pfn) for i in range(4)]
    b.vm.populate(addr, addr + 4 * PAGE)
    for i in range(4):
        pfn = device_pfn(b, addr + i * PAGE)
        chunk = b.driver.embedding.container_of(b.memory.page_pgmap(pfn))
        assert b.driver.bo_mapping.bo_of(pfn) is chunk
        backing = b.memory.zone_device_data(pfn)
        assert isinstance(backing, Backing)
        assert backing is chunk.private
        assert backing.mirror_of(pfn) is b.vm
        assert b.memory.contents.token(backing.of(pfn)) == tokens[i]


def test_freeing_a_device_page_frees_its_backing(bench):
    b = bench(thp="never")
    addr = b.map(4 * PAGE)
    b.cpu_write(addr, 4)
    free = b.memory.pages.allocator.free_pages
    b.vm.populate(addr, addr + 4 * PAGE)  # four backing pages come, four pages of the process go
    assert b.memory.pages.allocator.free_pages == free
    pfn = device_pfn(b, addr + PAGE)
    b.memory.munmap(b.mm, addr, 4 * PAGE)
    assert b.memory.pages.allocator.free_pages == free + 4
    assert b.memory.zone_device_data(pfn) is b.driver.pool.free_pages
    assert len(b.driver.pool.free_pages) == 65536


def test_a_large_hole_and_a_large_folio_move_whole(bench):
    b = bench()
    addr = b.map(2 * PMD)
    b.cpu_write(addr, 512)
    assert b.vm.populate(addr, addr + 2 * PMD) == 2 * PMD
    assert [b.memory.folio_order(device_pfn(b, addr + at)) for at in (0, PMD)] == [9, 9]
    b.gpu_read(addr, 1024)
    b.cpu_read(addr + 3 * PAGE)
    assert b.device_pages(addr, 1024) == 512
    assert b.memory.folio_order(b.mm.page_table.entry(addr).pfn) == 9


def test_without_a_large_folio_512_pages_take_its_place_in_both_directions(bench):
    b = bench()
    addr = b.map(PMD)
    b.cpu_write(addr, 512)
    b.kernel.arm("alloc.folio")
    assert b.vm.populate(addr, addr + PMD) == PMD
    assert b.memory.folio_order(device_pfn(b, addr)) == 0
    b.gpu_read(addr, 512)
    b.cpu_read(addr, 512)
    other = b.map(PMD)
    b.cpu_write(other, 512)
    b.vm.populate(other, other + PMD)
    b.kernel.arm("alloc.folio")
    assert b.vm.ioctl.migrate_to_sys(other, 512).cpages == 512
    assert b.memory.folio_order(b.mm.page_table.entry(other).pfn) == 0
    b.cpu_read(other, 512)


def test_a_failed_page_is_skipped(bench):
    b = bench(thp="never")
    addr = b.map(4 * PAGE)
    b.cpu_write(addr, 4)
    b.kernel.arm("alloc.pages")
    b.kernel.arm("alloc.folio", nth=4)
    assert b.vm.populate(addr, addr + 4 * PAGE) == 3 * PAGE
    assert [b.where(addr + i * PAGE) for i in range(4)] == ["device", "device", "device", "system"]


def test_a_split_folio_shares_its_backing_until_the_last_page_is_gone(bench):
    b = bench()
    addr = b.map(PMD)
    b.cpu_write(addr, 512)
    b.vm.populate(addr, addr + PMD)
    head = int(b.driver.backing_of(np.array([device_pfn(b, addr)]))[0])
    b.memory.munmap(b.mm, addr, 16 * PAGE)
    b.cpu_read(addr + 16 * PAGE, 495)
    assert b.memory.pages.ram.refcount[head] == 1
    b.cpu_read(addr + 511 * PAGE)
    assert b.memory.pages.ram.refcount[head] == 0
    assert b.driver.describe()["allocations"] == 0
    assert len(b.driver.pool.free_pages) == 65536 + 512


def test_a_filled_hole_has_no_write_tag_in_the_mirror_table(bench):
    b = bench(thp="never")
    addr = b.map(2 * PAGE)
    b.cpu_write(addr)
    b.vm.populate(addr, addr + 2 * PAGE)
    assert b.vm.page_table.perms(addr // PAGE, addr // PAGE + 2).tolist() == [READ | WRITE, READ]
    assert b.gpu_write(addr + PAGE) == 1


def test_an_address_without_a_readable_vma_ends_the_migration(bench):
    b = bench(thp="never")
    addr = b.map(6 * PAGE)
    b.cpu_write(addr, 6)
    b.memory.mprotect(b.mm, addr + 3 * PAGE, PAGE, PROT_NONE)
    with pytest.raises(KernelError) as error:
        b.vm.populate(addr, addr + 6 * PAGE)
    assert str(error.value) == f"-EINVAL: no readable VMA at {addr + 3 * PAGE:#x}"
    assert b.device_pages(addr, 6) == 3


def test_a_page_of_the_other_device_is_faulted_home(bench):
    b = bench(thp="never", topology=load_topology("dual"))
    other = b.vms[1]
    addr = b.map(4 * PAGE)
    b.cpu_write(addr, 4)
    other.populate(addr, addr + 4 * PAGE)
    b.gpu_read(addr, 4)
    assert b.device_pages(addr, 4) == 0


def test_a_cpu_fault_takes_one_page_home_and_out_of_the_mirror(bench):
    b = bench(thp="never")
    addr = b.map(8 * PAGE)
    b.cpu_write(addr, 8)
    b.vm.populate(addr, addr + 8 * PAGE)
    b.cpu_write(addr + 3 * PAGE)
    assert b.device_pages(addr, 8) == 7
    assert b.vm.page_table.perms(addr // PAGE + 3, addr // PAGE + 4).tolist() == [0]
    b.gpu_read(addr, 8)


def test_a_failed_allocation_in_a_cpu_fault_is_tried_again(bench):
    b = bench(thp="never")
    addr = b.map(PAGE)
    b.cpu_write(addr)
    b.vm.populate(addr, addr + PAGE)
    b.kernel.arm("alloc.folio")
    b.cpu_read(addr)
    assert b.where(addr) == "system"


def test_populate_through_the_pagemap_needs_an_open_file(bench):
    b = bench(thp="never")
    addr = b.map(2 * PAGE)
    (pagemap,) = b.driver.pagemaps()
    pagemap.populate_mm(addr, addr + 2 * PAGE, b.mm, 5)
    assert b.device_pages(addr, 2) == 2
    stranger = b.machine.process("stranger")
    with pytest.raises(KernelError) as error:
        pagemap.populate_mm(addr, addr + PAGE, stranger.mm, 0)
    assert str(error.value) == f"-EINVAL: no file of {b.driver.host.device.name} is open in stranger"


@pytest.mark.parametrize("thp", ["always", "never"])
def test_closing_a_file_evicts_every_client_of_the_device(bench, thp):
    b = bench(thp=thp)
    process = b.machine.process("other")
    other = b.machine.open(process)
    addr = b.map(PMD)
    b.cpu_write(addr, 512)
    b.vm.populate(addr, addr + PMD)
    other.close()
    assert b.device_pages(addr, 512) == 0
    b.cpu_read(addr, 512)
    assert b.kernel.stats.migrated_to_ram_bytes == PMD
    del process.vms[0]
