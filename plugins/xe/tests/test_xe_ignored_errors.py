"""What drm_gpusvm_range_evict answers is nobody's business in xe: its callers go on as if it had worked."""

import errno

import pytest
from gpusvm.driver import ACCESS_WRITE

K, M = 1 << 10, 1 << 20
PAGE, PMD = 4 * K, 2 * M


@pytest.fixture
def mixed(bench):
    """Return a bench with a block of which one half is in VRAM, under a range of 2 MiB that is not mapped."""

    def make(spec):
        b = bench(spec, thp="never")
        addr = b.map(PMD)
        b.cpu_write(addr, 512)
        b.vm.populate(addr, addr + PMD)
        b.cpu_read(addr)
        b.driver.tiles[0].dpagemap.populate_mm(addr, addr + M, b.mm, 0)
        assert b.device_pages(addr, 512) == 256
        b.kernel.tracer.on = True
        b.kernel.arm("xe.copy_to_ram", nth=1, times=1)
        return b, addr

    return make


def test_an_eviction_that_fails_after_get_pages_starts_the_fault_over_all_the_same(mixed):
    b, addr = mixed("xe:tries=0")
    assert b.fault(addr, ACCESS_WRITE).errno == 0
    assert b.kernel.stats.retries == 2
    assert b.device_pages(addr, 512) == 0
    assert b.mapped_pages(addr, 512) == 512


def test_an_eviction_that_fails_between_two_populates_does_not_replace_their_error(mixed, events):
    b, addr = mixed("xe")
    assert b.fault(addr, ACCESS_WRITE).errno == 0
    assert [event[-1] for event in events(b, "migrate_failed")] == [errno.EBUSY]
    assert sum(1 for event in events(b, "notifier_start") if "MIGRATE" in event and addr in event) >= 2
    assert b.mapped_pages(addr, 512) == 512


def test_an_eviction_that_fails_does_not_fail_a_prefetch(mixed):
    b, addr = mixed("xe")
    assert b.vm.populate(addr, addr + PMD) == 0
    b.cpu_read(addr, 512)


def test_the_window_of_an_invalidation_covers_every_range_that_it_zaps(bench, events):
    b = bench(thp="never")
    addr = b.map(256 * K)
    b.cpu_write(addr, 64)
    b.gpu_write(addr, 64)
    ranges = [(range_.start, range_.end) for range_ in b.vm.gpusvm.ranges(addr, addr + 256 * K)]
    assert len(ranges) > 1
    b.kernel.tracer.on = True
    start, end = addr + 60 * K, addr + 132 * K
    b.mm.mprotect(start, end - start, 1)
    ((_, low, high), _) = events(b, "tlb_invalidate")
    zapped = [(first, last) for first, last in ranges if first < end and last > start]
    assert len(zapped) > 1
    assert low <= min(first for first, _ in zapped)
    assert high >= max(last for _, last in zapped)
