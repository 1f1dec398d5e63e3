"""What reaches the GPU's page table when the process's changes."""

import errno

import pytest
from gpusvm.gpu import READ, REMOTE, WRITE
from gpusvm.mm.api import MMU_NOTIFY_CLEAR, PROT_READ, MmuNotifierRange

K, M = 1 << 10, 1 << 20
PAGE, PMD = 4 * K, 2 * M


def perms(b, addr, pages=1):
    return b.vm.page_table.perms(addr // PAGE, addr // PAGE + pages).tolist()


def test_an_unmap_clears_exactly_the_range_and_its_dma_mappings(bench):
    b = bench(thp="never")
    addr = b.map(8 * PAGE)
    b.gpu_write(addr, 8)
    assert b.driver.device.dma.mapped_rows == 8
    b.memory.munmap(b.mm, addr + 2 * PAGE, 3 * PAGE)
    rw = READ | WRITE | REMOTE
    assert perms(b, addr, 8) == [rw, rw, 0, 0, 0, rw, rw, rw]
    assert b.driver.device.dma.mapped_rows == 5


def test_a_change_of_protection_clears_only_its_pages(bench):
    b = bench(thp="never")
    addr = b.map(PMD)
    b.cpu_write(addr, 512)
    b.gpu_write(addr, 512)
    b.memory.mprotect(b.mm, addr + 9 * PAGE, PAGE, PROT_READ)
    # The VMA splits are announced over the block, table or not (Q16), so that the block goes as well.
    assert b.mapped_pages(addr, 512) == 0
    b.gpu_read(addr, 16)
    assert perms(b, addr + 9 * PAGE) == [READ | REMOTE]


def test_a_2_mib_leaf_goes_as_a_whole_with_its_one_dma_mapping(bench):
    b = bench()
    addr = b.map(2 * PMD)
    b.cpu_write(addr, 1024)
    b.gpu_write(addr, 1024)
    dma = b.driver.device.dma
    assert dma.mapped_rows == 2
    with b.vm.mutex:
        assert b.vm.vmm.unmap(addr // PAGE + 5, addr // PAGE + 6) == 512
    assert dma.mapped_rows == 1
    with b.vm.mutex:
        assert b.vm.vmm.unmap(0, 1 << 52) == 512
    assert dma.mapped_rows == 0


def test_pages_and_leaves_are_told_apart_when_both_go(bench):
    b = bench()
    addr = b.map(PMD)
    small = b.map(4 * PAGE)
    b.cpu_write(addr)
    b.gpu_read(addr)
    b.gpu_read(small, 4)
    assert b.driver.device.dma.mapped_rows == 5
    b.memory.munmap(b.mm, addr, small + 4 * PAGE - addr)
    assert b.driver.device.dma.mapped_rows == 0


def test_own_migrations_are_skipped_and_what_did_not_move_stays_mapped(bench):
    b = bench(thp="never")
    addr = b.map(4 * PAGE)
    b.gpu_write(addr, 4)
    pfns = [b.mm.page_table.entry(addr + i * PAGE).pfn for i in range(4)]
    for pfn in pfns:
        b.memory.folio_get(pfn)
    b.vm.populate(addr, addr + 4 * PAGE)
    assert b.device_pages(addr, 4) == 0
    assert b.mapped_pages(addr, 4) == 4
    for pfn in pfns:
        b.memory.folio_put(pfn)


@pytest.mark.parametrize(("pages", "flushes"), [(1, 2), (5, 2)])
def test_an_unmap_of_system_pages_flushes_twice_whatever_its_size(bench, pages, flushes):
    b = bench(thp="never")
    addr = b.map(8 * PAGE)
    b.gpu_write(addr, pages)
    before = b.kernel.stats.tlb_invalidations
    b.memory.munmap(b.mm, addr, 8 * PAGE)
    assert b.kernel.stats.tlb_invalidations - before == flushes


def test_an_unmap_of_device_pages_flushes_once_and_of_nothing_not_at_all(bench):
    b = bench(thp="never", quirks="fixed")
    addr = b.map(8 * PAGE)
    b.vm.populate(addr, addr + 4 * PAGE)
    before = b.kernel.stats.tlb_invalidations
    b.memory.munmap(b.mm, addr, 4 * PAGE)
    assert b.kernel.stats.tlb_invalidations - before == 1
    b.memory.munmap(b.mm, addr + 4 * PAGE, 4 * PAGE)
    assert b.kernel.stats.tlb_invalidations - before == 1


def test_every_map_flushes(bench):
    b = bench(thp="never")
    addr = b.map(8 * PAGE)
    b.gpu_write(addr, 5)
    assert b.kernel.stats.tlb_invalidations == 5


def test_an_invalidation_that_must_not_sleep_is_refused(bench):
    b = bench()
    range_ = MmuNotifierRange(b.mm, 0, PAGE, MMU_NOTIFY_CLEAR, flags=0)
    assert b.vm.invalidate_range_start(range_) == -errno.EAGAIN


def test_the_end_of_the_process_clears_everything(bench):
    b = bench(thp="never")
    addr = b.map(64 * PAGE)
    b.gpu_write(addr, 64)
    b.memory.munmap(b.mm, 0, 1 << 46)
    assert b.vm.page_table.mapped_pages == 0
    assert b.driver.device.dma.mapped_rows == 0
