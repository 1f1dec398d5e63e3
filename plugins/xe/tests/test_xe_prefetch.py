"""The prefetch operation of VM_BIND: all ranges or none are mapped, and the ioctl succeeds either way."""

import pytest
from gpusvm.errors import KernelError
from gpusvm.mm.api import PROT_READ, PROT_WRITE

K, M = 1 << 10, 1 << 20
PAGE, PMD = 4 * K, 2 * M


def written(b, blocks):
    addr = b.map(blocks * PMD)
    b.cpu_write(addr, blocks * 512)
    b.kernel.tracer.on = True
    return addr


def test_ranges_are_mapped_after_the_last_has_come(bench, events):
    b = bench()
    addr = written(b, 4)
    assert b.vm.populate(addr, addr + 4 * PMD) == 4 * PMD
    assert b.mapped_pages(addr, 4 * 512) == 4 * 512
    assert b.gpu_read(addr, 4) == 0
    # Nothing was mapped yet when the others moved, so nothing had to be flushed.
    assert b.kernel.stats.tlb_invalidations == 0


def test_what_is_mapped_in_place_is_left_alone(bench):
    b = bench()
    addr = written(b, 2)
    b.gpu_read(addr)
    copies = b.kernel.stats.copies
    assert b.vm.populate(addr, addr + 2 * PMD) == PMD
    assert b.kernel.stats.copies == copies + 1
    assert b.vm.populate(addr, addr + 2 * PMD) == 0
    assert b.kernel.stats.copies == copies + 1


def test_one_that_cannot_come_ends_the_operation_with_nothing_mapped(bench):
    b = bench(thp="never")
    addr = written(b, 3)
    pfn = b.memory.folio_head(b.mm.page_table.entry(addr + PMD).pfn)
    b.memory.folio_get(pfn)
    assert b.vm.populate(addr, addr + 3 * PMD) == PMD
    b.memory.folio_put(pfn)
    assert b.device_pages(addr, 3 * 512) == 512
    assert b.mapped_pages(addr, 3 * 512) == 0
    assert b.gpu_read(addr) == 1  # it is there: the fault only maps it
    assert b.kernel.stats.migrated_to_device_bytes == PMD


def test_more_than_fits_evicts_its_own_beginning_and_maps_nothing(bench):
    b = bench(vram_bytes=3 * PMD)
    addr = written(b, 4)
    assert b.vm.populate(addr, addr + 4 * PMD) == 4 * PMD
    assert b.kernel.stats.evictions == 1
    assert b.device_pages(addr, 4 * 512) == 3 * 512
    assert b.mapped_pages(addr, 4 * 512) == 0


def test_an_error_that_is_no_race_fails_the_ioctl(bench):
    b = bench()
    addr = written(b, 1)

    def fail(range_, ctx):
        raise KernelError(12, "no arrays")

    b.vm.gpusvm.range_get_pages = fail
    with pytest.raises(KernelError, match=r"^-ENOMEM: no arrays$"):
        b.vm.populate(addr, addr + PMD)
    assert b.mapped_pages(addr, 512) == 0


def test_garbage_that_comes_while_it_waits_for_the_lock_is_met_and_ends_it(bench):
    """It waits for the collector (xe_svm_flush), and then for the lock; nobody collects again under that."""
    b = bench(thp="never")
    addr = written(b, 1)
    b.gpu_read(addr)
    stale = b.vm.gpusvm.range_find(addr, addr + PAGE)
    with b.vm.lock.read():
        prefetch = b.kernel.spawn(b.vm.populate, addr, addr + PMD, name="prefetch")
        b.kernel.settle()
        b.mm.munmap(addr, PMD)
        b.mm.mmap(addr, PMD, PROT_READ | PROT_WRITE)
        b.cpu_write(addr, 512)
    assert prefetch.join() == 0
    b.kernel.settle()
    assert (stale.unmapped, stale.removed) == (True, True)
    assert (b.where(addr), b.mapped_pages(addr, 512)) == ("device", 0)  # it was brought before get_pages refused it
    b.vm.populate(addr, addr + PMD)
    assert b.mapped_pages(addr, 512) == 512
