"""SVM_BIND and populate_mm on nouveau, the stale mappings they leave as written, and CPU faults."""

import errno

import numpy as np
import pytest
from gpusvm.errors import KernelError
from gpusvm.gpu import NEED_OF_OP, READ, REMOTE, STALE, WRITE
from gpusvm.mm.api import PROT_READ
from gpusvm.run.costs import load_profile

K, M = 1 << 10, 1 << 20
PAGE, PMD = 4 * K, 2 * M


def perms(b, addr, pages=1):
    return b.vm.page_table.perms(addr // PAGE, addr // PAGE + pages).tolist()


def test_a_gpu_fault_never_migrates_but_an_explicit_populate_does(bench):
    b = bench(thp="never")
    addr = b.map(PMD)
    b.cpu_write(addr, 512)
    b.gpu_write(addr, 512)
    assert b.device_pages(addr, 512) == 0
    assert b.vm.populate(addr, addr + PMD) == PMD
    assert b.device_pages(addr, 512) == 512


def test_holes_are_filled_with_zeros(bench):
    b = bench(thp="never")
    addr = b.map(64 * PAGE)
    b.cpu_write(addr + PAGE)
    assert b.vm.populate(addr, addr + 64 * PAGE) == 64 * PAGE
    b.gpu_read(addr, 64)
    b.cpu_read(addr, 64)


def test_a_hole_of_2_mib_becomes_one_folio(bench):
    b = bench()
    addr = b.map(PMD)
    assert b.vm.populate(addr, addr + PMD) == PMD
    assert b.memory.folio_order(b.mm.page_table.entry(addr).pfn) == 9
    b.cpu_read(addr + 9 * PAGE)
    assert b.where(addr) == "system"


def test_several_vmas_and_gaps_are_taken_in_turn(bench):
    b = bench(thp="never")
    addr = b.map(16 * PAGE)
    b.cpu_write(addr, 16)
    b.memory.munmap(b.mm, addr + 4 * PAGE, 4 * PAGE)
    b.memory.mprotect(b.mm, addr + 8 * PAGE, 4 * PAGE, PROT_READ)
    assert b.vm.populate(addr, addr + 16 * PAGE) == 12 * PAGE


def test_resident_pages_are_skipped(bench):
    b = bench(thp="never")
    addr = b.map(16 * PAGE)
    b.cpu_write(addr, 16)
    assert b.vm.populate(addr, addr + 8 * PAGE) == 8 * PAGE
    assert b.vm.populate(addr, addr + 16 * PAGE) == 8 * PAGE


def test_a_page_that_somebody_holds_stays_and_the_rest_moves(bench):
    b = bench(thp="never")
    addr = b.map(16 * PAGE)
    b.cpu_write(addr, 16)
    held = b.mm.page_table.entry(addr + 3 * PAGE).pfn
    b.memory.folio_get(held)
    assert b.vm.populate(addr, addr + 16 * PAGE) == 15 * PAGE
    assert b.where(addr + 3 * PAGE) == "system"
    b.memory.folio_put(held)


def test_the_ioctl_ignores_errors_but_a_populate_through_the_pagemap_raises_them(bench):
    b = bench(thp="never")
    addr = b.map(16 * PAGE)
    b.cpu_write(addr, 16)
    (pagemap,) = b.driver.pagemaps()
    pagemap.populate_mm(addr, addr + 4 * PAGE, b.mm, 5)
    assert b.device_pages(addr, 16) == 4
    b.mm.find_vma(addr).flags |= 1 << 9  # VM_PFNMAP
    assert b.vm.populate(addr, addr + 16 * PAGE) == 0
    with pytest.raises(KernelError) as error:
        pagemap.populate_mm(addr, addr + 16 * PAGE, b.mm, 5)
    assert error.value.errno == errno.EINVAL
    b.mm.find_vma(addr).flags &= ~(1 << 9)
    b.vm.close()
    b.driver.device.unplug()
    with pytest.raises(KernelError) as error:
        pagemap.populate_mm(addr, addr + 16 * PAGE, b.mm, 5)
    assert error.value.errno == errno.ENODEV


def test_a_page_that_cannot_be_mapped_for_dma_stays_and_the_others_go(bench):
    b = bench(thp="never")
    addr = b.map(16 * PAGE)
    b.cpu_write(addr, 16)
    b.kernel.arm("dma.map")
    assert b.vm.populate(addr, addr + 16 * PAGE) == 15 * PAGE
    assert [b.where(addr), b.where(addr + 15 * PAGE)] == ["device", "system"]
    assert b.driver.describe()["allocations"] == 15
    b.gpu_read(addr, 16)


@pytest.mark.parametrize("thp", ["always", "never"])
def test_as_written_the_gpu_is_not_told_what_moved(bench, thp):
    b = bench("nouveau:quirk.mm_s1=fixed", thp=thp)
    addr = b.map(PMD)
    b.cpu_write(addr, 512)
    mapped = 512 if thp == "always" else 5
    b.gpu_write(addr, 5)
    rows = b.driver.device.dma.mapped_rows
    b.vm.populate(addr, addr + PMD)
    assert perms(b, addr, 512) == [READ | WRITE | REMOTE | STALE] * mapped + [0] * (512 - mapped)
    assert b.driver.device.dma.mapped_rows == rows  # what is stale is still mapped for DMA
    # The old pages are free now: a GPU read sees what is in them, a GPU write is lost for everybody else.
    b.gpu_read(addr, 5)
    b.gpu_write(addr)
    b.cpu_read(addr)
    contents = b.memory.contents
    assert contents.known == {"pfns_map_rejected": 6}
    assert contents.mismatch_count == 0
    # The CPU fault cleared the stale mapping of what it moved.
    assert perms(b, addr) == [0]


@pytest.mark.parametrize("thp", ["always", "never"])
def test_fixed_the_gpu_is_told_and_every_read_is_right(bench, thp):
    b = bench(thp=thp, quirks="fixed")
    addr = b.map(PMD)
    b.cpu_write(addr, 512)
    b.gpu_write(addr, 5)
    b.vm.populate(addr, addr + PMD)
    assert perms(b, addr, 512) == [READ | WRITE] * 512
    assert b.driver.device.dma.mapped_rows == 0
    assert b.gpu_read(addr, 512) == 0
    b.gpu_write(addr)
    b.cpu_read(addr, 512)
    assert (b.memory.contents.mismatch_count, b.memory.contents.known) == (0, {})


def test_only_what_was_mapped_and_moved_goes_stale(bench):
    b = bench(thp="never")
    addr = b.map(8 * PAGE)
    b.cpu_write(addr, 8)
    b.gpu_write(addr + 2 * PAGE, 4)
    held = b.mm.page_table.entry(addr + 3 * PAGE).pfn
    b.memory.folio_get(held)
    b.vm.populate(addr, addr + 8 * PAGE)
    stale, good = READ | WRITE | REMOTE | STALE, READ | WRITE | REMOTE
    assert perms(b, addr, 8) == [0, 0, stale, good, stale, stale, 0, 0]
    b.memory.folio_put(held)


def test_a_filled_hole_is_mapped_read_only_by_the_fixed_push(bench):
    b = bench(thp="never", quirks="fixed")
    addr = b.map(4 * PAGE)
    b.cpu_write(addr)
    b.vm.populate(addr, addr + 4 * PAGE)
    assert perms(b, addr, 4) == [READ | WRITE, READ, READ, READ]
    assert b.gpu_write(addr + PAGE) == 1


def test_mm_s1_maps_the_wrong_2_mib_as_written(bench):
    b = bench()
    addr = b.map(PMD)
    b.cpu_write(addr, 512)
    b.vm.populate(addr, addr + PMD)
    b.gpu_read(addr + 5 * PAGE)  # HMM names the head, and nouveau steps back five pages from it
    assert b.memory.contents.known == {"mm_s1": 1}
    head = b.mm.page_table.entry(addr).pfn
    first = addr // PAGE
    assert b.vm.page_table.pfns(first, first + 2).tolist() == [head - 5, head - 4]
    assert perms(b, addr, 512) == [READ | WRITE | STALE] * 512


def test_mm_s1_on_the_lowest_folio_of_a_chunk_wraps_to_its_end(bench):
    b = bench("nouveau:chunk_bytes=2M")
    addr = b.map(PMD)
    b.cpu_write(addr, 512)
    b.vm.populate(addr, addr + PMD)
    b.gpu_read(addr + 5 * PAGE)
    chunk = b.driver.dmem.pool.chunks[0]
    assert b.vm.page_table.pfns(addr // PAGE, addr // PAGE + 6).tolist() == [
        *range(chunk.end - 5, chunk.end),
        chunk.first,
    ]


def test_a_cpu_fault_takes_one_page_home(bench):
    b = bench(thp="never")
    addr = b.map(PMD)
    b.cpu_write(addr, 512)
    b.vm.populate(addr, addr + PMD)
    b.cpu_read(addr + 7 * PAGE)
    assert b.device_pages(addr, 512) == 511
    assert b.kernel.stats.migrated_to_ram_bytes == PAGE


def test_a_cpu_fault_takes_the_whole_folio_of_a_2_mib_mapping_home(bench):
    b = bench()
    addr = b.map(PMD)
    b.cpu_write(addr, 512)
    b.vm.populate(addr, addr + PMD)
    copies = b.kernel.stats.copies
    b.cpu_read(addr + 7 * PAGE)
    assert b.device_pages(addr, 512) == 0
    assert b.kernel.stats.copies == copies + 1
    assert b.memory.folio_order(b.mm.page_table.entry(addr).pfn) == 9


def test_without_a_system_folio_of_that_size_the_cpu_fault_does_not_fall_back(bench):
    b = bench()
    addr = b.map(PMD)
    b.cpu_write(addr, 512)
    b.vm.populate(addr, addr + PMD)
    b.kernel.arm("alloc.folio")
    b.cpu_read(addr)  # VM_FAULT_OOM: the access is simply tried again
    assert b.device_pages(addr, 512) == 0
    assert b.memory.folio_order(b.mm.page_table.entry(addr).pfn) == 9


def test_copies_are_counted_in_folios_and_the_dma_mappings_are_gone_afterwards(bench, events):
    b = bench(thp="never")
    addr = b.map(PMD)
    b.cpu_write(addr, 100)
    b.kernel.tracer.on = True
    b.vm.populate(addr, addr + 100 * PAGE)
    assert [event[1:4] for event in events(b, "copy")] == [("h2d", 100 * PAGE, 100)]
    assert b.driver.device.dma.mapped_rows == 0


def test_populating_for_a_process_that_has_no_svmm_maps_nothing(bench):
    b = bench(thp="never")
    other = b.machine.process("other")
    other.mm.mmap(1 << 40, 4 * PAGE, 3)
    (pagemap,) = b.driver.pagemaps()
    pagemap.populate_mm(1 << 40, (1 << 40) + 4 * PAGE, other.mm, 0)
    assert b.kernel.stats.migrated_to_device_bytes == 4 * PAGE
    b.memory.cpu_read(other.mm, 1 << 40)
    assert b.kernel.stats.migrated_to_ram_bytes == PAGE


def test_a_wrong_mapping_is_marked_before_the_gpu_can_use_it(bench):
    b = bench()
    addr = b.map(PMD)
    b.cpu_write(addr, 512)
    b.vm.populate(addr, addr + PMD)
    charge = b.kernel.charge

    def use_it_while_time_passes(event, n=1):
        if event == "bind_base":
            b.vm.page_table.access(np.array([addr // PAGE + 5]), NEED_OF_OP[:1])
        charge(event, n)

    b.kernel.charge = use_it_while_time_passes
    b.gpu_read(addr + 5 * PAGE)
    contents = b.memory.contents
    assert (contents.mismatch_count, contents.known) == (0, {"mm_s1": 2})


def test_metadata_moves_while_the_copies_run(bench):
    b = bench(costs=load_profile("h100-pcie5").costs, thp="never")
    addr = b.map(PMD)
    b.cpu_write(addr, 8)
    moved = []
    pages = b.memory.migrate_vma_pages

    def while_copying(args):
        moved.append(b.driver.engine.busy_until_ns > b.kernel.now_ns)
        pages(args)

    b.memory.migrate_vma_pages = while_copying
    b.vm.populate(addr, addr + 8 * PAGE)
    assert moved == [True]


def test_the_copy_home_is_queued_under_the_mutex(bench):
    b = bench(thp="never")
    addr = b.map(PMD)
    b.cpu_write(addr, 2)
    b.vm.populate(addr, addr + 2 * PAGE)
    held = []
    copy = b.driver.engine.copy
    b.driver.engine.copy = lambda *how: held.append(b.vm.mutex.locked) or copy(*how)
    b.cpu_read(addr)
    assert held == [True]
