"""How often xe tries, row by row of its retry table, and what it does when nothing more is left to try."""

import errno

import pytest
from gpusvm.driver import ACCESS_ATOMIC, ACCESS_WRITE
from gpusvm.errors import KernelError

K, M = 1 << 10, 1 << 20
PAGE, PMD = 4 * K, 2 * M
MIGRATE = "MIGRATE"


def written(b, length=PMD):
    addr = b.map(length)
    b.cpu_write(addr, length // PAGE)
    b.kernel.tracer.on = True
    return addr


def pin(b, addr):
    """Take an extra reference on the folio at `addr`, as a page cache or get_user_pages would; its pfn."""
    pfn = b.memory.folio_head(b.mm.page_table.entry(addr).pfn)
    b.memory.folio_get(pfn)
    return pfn


def populates(b, events):
    return sum(1 for event in events(b, "notifier_start") if MIGRATE in event)


def test_ebusy_is_tried_twice_and_the_memory_is_then_mapped_where_it_is(bench, events):
    b = bench(thp="never")
    addr = written(b)
    pfn = pin(b, addr)
    assert b.fault(addr, ACCESS_WRITE).errno == 0
    assert populates(b, events) == 2
    assert b.kernel.stats.retries == 1
    assert b.device_pages(addr, 512) == 0
    assert b.mapped_pages(addr, 512) == 512
    assert b.driver.describe()["bos"] == 0
    b.memory.folio_put(pfn)


def test_the_attempts_are_tunable(bench, events):
    b = bench("xe:populate_attempts=4,tries=2", thp="never")
    addr = written(b)
    pfn = pin(b, addr)
    assert b.fault(addr, ACCESS_WRITE).errno == 0
    assert populates(b, events) == 8
    assert b.kernel.stats.retries == 2
    b.memory.folio_put(pfn)


def test_an_atomic_tries_three_times_and_is_refused(bench, events):
    b = bench(thp="never")
    addr = written(b)
    pfn = pin(b, addr)
    assert b.fault(addr, ACCESS_ATOMIC).errno == errno.EBUSY
    assert populates(b, events) == 6
    b.memory.folio_put(pfn)


def test_the_timeslice_doubles_after_every_attempt_and_every_restart(bench):
    b = bench(thp="never")
    addr = written(b)
    seen = []
    populate = b.driver.tiles[0].dpagemap.container.populate_mm

    def counted(dpagemap, start, end, mm, timeslice_ms):
        seen.append(timeslice_ms)
        populate(dpagemap, start, end, mm, timeslice_ms)

    b.driver.tiles[0].dpagemap.container.populate_mm = counted
    pfn = pin(b, addr)
    b.fault(addr, ACCESS_ATOMIC)
    # Two populates an attempt; it doubles after the attempt, and once more when get_pages finds system pages.
    assert seen == [5, 5, 20, 20, 80, 80]
    b.memory.folio_put(pfn)


def test_no_room_is_tried_once_more_alone(bench):
    b = bench()
    addr = written(b)
    b.kernel.arm("bo.alloc", nth=1, times=1)
    assert b.fault(addr, ACCESS_WRITE).errno == 0
    assert b.where(addr) == "device"
    assert b.kernel.stats.retries == 0


def test_no_room_twice_leaves_the_memory_in_ram(bench):
    b = bench()
    addr = written(b)
    b.kernel.arm("bo.alloc", nth=1, times=2)
    assert b.fault(addr, ACCESS_WRITE).errno == 0
    assert b.where(addr) == "system"
    assert b.mapped_pages(addr, 512) == 512


def test_a_failed_copy_is_not_tried_again_and_leaves_nothing_behind(bench, events):
    b = bench()
    addr = written(b)
    b.kernel.arm("xe.copy_to_devmem", nth=1, times=1)
    assert b.fault(addr, ACCESS_WRITE).errno == 0
    assert populates(b, events) == 1
    assert b.where(addr) == "system"
    assert b.driver.describe()["bos"] == 0
    b.cpu_read(addr, 512)


def test_memory_in_vram_under_another_range_is_evicted_and_migrated_as_one(bench, events):
    b = bench(thp="never")
    addr = written(b)
    b.mm.mprotect(addr + M, M, 1)  # two VMAs: the ranges are small
    b.gpu_write(addr)
    b.mm.mprotect(addr + M, M, 3)
    for range_ in list(b.vm.gpusvm.ranges(addr, addr + PMD)):
        with b.vm.lock.write():
            b.vm.pt.unbind(range_)
            b.vm.gpusvm.range_remove(range_)
    assert b.device_pages(addr, 512) == 16
    b.gpu_write(addr)
    assert b.device_pages(addr, 512) == 512
    assert b.kernel.stats.migrated_to_ram_bytes == 64 * K


@pytest.mark.parametrize(("variant", "answer"), [("as_written", 0), ("fixed", errno.ENOMEM)])
def test_another_get_pages_error_is_acknowledged_as_success_as_written(bench, variant, answer):
    b = bench(f"xe:quirk.acked_failure={variant}")
    addr = written(b)

    def fail(range_, ctx):
        raise KernelError(errno.ENOMEM, "no arrays")

    get_pages, b.vm.gpusvm.range_get_pages = b.vm.gpusvm.range_get_pages, fail
    assert b.fault(addr, ACCESS_WRITE).errno == answer
    assert b.mapped_pages(addr, 512) == 0
    b.vm.gpusvm.range_get_pages = get_pages


def test_a_mixture_is_evicted_and_the_fault_starts_over(bench, events):
    b = bench("xe:tries=0", thp="never")
    addr = written(b)
    b.vm.populate(addr, addr + PMD)
    b.cpu_read(addr)
    range_ = b.vm.gpusvm.range_find(addr, addr + PAGE)
    # Half of the range alone goes to VRAM, without a range of its own.
    b.driver.tiles[0].dpagemap.populate_mm(addr, addr + M, b.mm, 0)
    assert b.device_pages(addr, 512) == 256
    assert b.fault(addr, ACCESS_WRITE).errno == 0
    assert b.kernel.stats.retries == 1
    assert b.device_pages(addr, 512) == 0
    assert range_.tile_present


def test_an_invalidation_before_the_bind_starts_the_fault_over(bench):
    b = bench()
    addr = written(b)
    gpusvm = b.vm.gpusvm
    get_pages = gpusvm.range_get_pages
    times = []

    def race(range_, ctx):
        get_pages(range_, ctx)
        if not times:
            times.append(b.kernel.now_ns)
            b.kernel.spawn(b.mm.mprotect, addr, PAGE, 1, name="mprotect").join()

    gpusvm.range_get_pages = race
    assert b.fault(addr + M, ACCESS_WRITE).errno == 0
    assert b.kernel.stats.retries >= 1
    assert b.mapped_pages(addr + M, 1) == 1
