"""Memory pressure on xe: who goes first, what cannot go, and what happens when nothing can."""

import errno

import pytest
from gpusvm.errors import KernelError

M = 1 << 20
PAGE, PMD = 4096, 2 * M


def written(b, blocks):
    addr = b.map(blocks * PMD)
    b.cpu_write(addr, blocks * 512)
    return addr


def resident(b, addr, blocks):
    return [block for block in range(blocks) if b.where(addr + block * PMD) == "device"]


@pytest.mark.parametrize("thp", ["always", "never"])
def test_the_oldest_allocation_goes_first_however_lately_it_was_used(bench, thp):
    b = bench(vram_bytes=3 * PMD, thp=thp)
    addr = written(b, 5)
    for block in range(3):
        b.gpu_write(addr + block * PMD)
    b.gpu_write(addr, 4)  # hits: they do not move it in the list
    b.gpu_write(addr + 3 * PMD)
    assert resident(b, addr, 5) == [1, 2, 3]
    b.gpu_write(addr + 4 * PMD)
    assert resident(b, addr, 5) == [2, 3, 4]
    assert b.kernel.stats.evictions == 2
    assert b.mapped_pages(addr, 512) == 0
    b.cpu_read(addr, 5 * 512)  # contents are checked


def test_what_cannot_be_moved_is_skipped(bench):
    b = bench(vram_bytes=2 * PMD)
    addr = written(b, 3)
    b.gpu_write(addr)
    b.gpu_write(addr + PMD)
    pfn = b.memory.folio_head(b.mm.page_table.entry(addr).pfn)
    b.memory.folio_get(pfn)  # somebody looks at the oldest
    b.gpu_write(addr + 2 * PMD)
    assert resident(b, addr, 3) == [0, 2]
    b.memory.folio_put(pfn)


def test_when_nothing_can_go_the_memory_is_mapped_where_it_is(bench):
    b = bench(vram_bytes=PMD)
    addr = written(b, 2)
    b.gpu_write(addr)
    pfn = b.memory.folio_head(b.mm.page_table.entry(addr).pfn)
    b.memory.folio_get(pfn)
    assert b.fault(addr + PMD).errno == 0
    assert resident(b, addr, 2) == [0]
    assert b.mapped_pages(addr + PMD, 512) == 512
    b.memory.folio_put(pfn)


@pytest.mark.parametrize("attempts", [1, 3])
def test_eviction_tries_as_often_as_it_is_told(bench, attempts):
    b = bench(f"xe:evict_attempts={attempts}", vram_bytes=PMD)
    addr = written(b, 2)
    b.gpu_write(addr)
    b.kernel.arm("xe.copy_to_ram", nth=1, times=attempts - 1) if attempts > 1 else None
    b.gpu_write(addr + PMD)
    assert resident(b, addr, 2) == [1]


def test_eviction_heeds_no_timeslice(bench):
    b = bench(vram_bytes=PMD)
    addr = written(b, 2)
    b.gpu_atomic(addr)
    b.gpu_atomic(addr + PMD)
    assert resident(b, addr, 2) == [1]


def test_unplug_brings_everything_home_and_nothing_new_comes(bench):
    b = bench()
    addr = written(b, 3)
    for block in range(2):
        b.gpu_write(addr + block * PMD)
    dpagemap = b.driver.tiles[0].dpagemap
    b.driver.unplug()
    assert resident(b, addr, 3) == []
    with pytest.raises(KernelError) as caught:
        dpagemap.populate_mm(addr, addr + PMD, b.mm, 0)
    assert caught.value.errno == errno.ENODEV
    assert b.fault(addr + 2 * PMD).errno == 0  # mapped where it is
    assert b.where(addr + 2 * PMD) == "system"
    with pytest.raises(KernelError) as caught:
        b.vm.populate(addr, addr + PMD)
    assert caught.value.errno == errno.ENODEV
    with pytest.raises(KernelError) as caught:
        b.driver.vm_create(b.mm, start=0, end=1 << 47)
    assert caught.value.errno == errno.ENODEV


@pytest.mark.parametrize(("variant", "copies_home", "populates"), [("as_written", 1, 2), ("fixed", 0, 1)])
def test_a_pmd_hole_is_populated_twice_as_written(bench, events, variant, copies_home, populates):
    b = bench(f"xe:quirk.hole_count={variant}")
    addr = b.map(PMD)
    b.kernel.tracer.on = True
    assert b.fault(addr).errno == 0
    assert b.device_pages(addr, 512) == 512
    # As written the migration is done and answers EBUSY: xe evicts the range to RAM and brings it a second time.
    assert len(events(b, "migrate_to_devmem")) + len(events(b, "migrate_to_ram")) >= populates
    assert b.kernel.stats.migrated_to_ram_bytes == copies_home * PMD
    assert b.memory.folio_order(b.mm.page_table.entry(addr).pfn) == 9
    b.gpu_read(addr, 4)


def test_a_small_copy_limit_cuts_the_copies(bench):
    b = bench("xe:copy_chunk=64K")
    addr = written(b, 1)
    b.gpu_read(addr)
    assert b.kernel.stats.copies == 32


def test_the_counters_of_what_is_copied_tell_the_sizes_of_commands_apart(bench):
    b = bench("xe:copy_chunk=64K")
    addr = written(b, 1)
    b.gpu_read(addr)
    b.cpu_read(addr)
    small = b.map(PAGE)
    b.cpu_write(small)
    b.gpu_read(small)
    stats = b.driver.describe()["gt_stats"]["gpu0 gt0"]
    assert {name: count for name, count in stats.items() if name.endswith("_copy_kb")} == {
        "svm_device_copy_kb": 2052,
        "svm_4K_device_copy_kb": 4,
        "svm_64K_device_copy_kb": 2048,
        "svm_2M_device_copy_kb": 0,
        "svm_cpu_copy_kb": 2048,
        "svm_4K_cpu_copy_kb": 0,
        "svm_64K_cpu_copy_kb": 2048,
        "svm_2M_cpu_copy_kb": 0,
    }
