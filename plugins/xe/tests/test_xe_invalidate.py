"""Invalidation on xe: the whole range, a rounded stretch of the TLB, and the collector for what is unmapped."""

import pytest
from gpusvm_xe.gt import normalize_invalidation_range
from hypothesis import given
from hypothesis import strategies as st

K, M = 1 << 10, 1 << 20
PAGE, PMD = 4 * K, 2 * M


@pytest.mark.parametrize(
    ("start", "end", "window"),
    [
        (0x1000, 0x2000, (0x1000, 0x2000)),
        (0x1000, 0x4000, (0x0, 0x4000)),
        (0x7000, 0x9000, (0x0, 0x10000)),
        (0x10000, 0x20000, (0x10000, 0x20000)),
        (PMD, 2 * PMD, (0, 16 * M)),
        (15 * M, 17 * M, (0, 32 * M)),
    ],
)
def test_a_window_becomes_an_aligned_power_of_two(start, end, window):
    assert normalize_invalidation_range(start, end) == window


@given(st.integers(0, 1 << 35), st.integers(1, 1 << 22))
def test_every_window_is_covered_and_aligned(first_page, pages):
    start, end = first_page * PAGE, (first_page + pages) * PAGE
    low, high = normalize_invalidation_range(start, end)
    length = high - low
    assert low <= start < end <= high
    assert length & (length - 1) == 0
    assert low % length == 0
    assert length >= 16 * M or end - start < PMD


def test_a_change_of_one_page_unmaps_the_whole_range(bench):
    b = bench(thp="never")
    addr = b.map(PMD)
    b.cpu_write(addr, 512)
    b.gpu_read(addr)
    tlb = b.driver.tiles[0].gts[0].tlb
    before = tlb.invalidated_bytes
    b.mm.mprotect(addr + 5 * PAGE, PAGE, 1)
    assert b.mapped_pages(addr, 512) == 0
    assert tlb.invalidated_bytes - before == 16 * M
    assert b.device_pages(addr, 512) == 512  # the memory stays; the next fault maps it again


def test_an_event_where_nothing_is_mapped_flushes_nothing(bench):
    b = bench()
    addr = b.map(PMD)
    b.cpu_write(addr, 512)
    b.mm.mprotect(addr, PAGE, 1)
    b.mm.mprotect(addr, PAGE, 3)
    b.gpu_read(addr)
    flushes = b.kernel.stats.tlb_invalidations
    b.cpu_read(addr)  # migrates home: zaps
    b.mm.mprotect(addr, PAGE, 1)  # invalidated already
    assert b.kernel.stats.tlb_invalidations - flushes == 2  # both GTs, once


def test_munmap_hands_the_ranges_to_the_collector(bench, events):
    b = bench()
    addr = b.map(2 * PMD)
    b.cpu_write(addr, 1024)
    b.gpu_read(addr)
    b.gpu_read(addr + PMD)
    b.kernel.tracer.on = True
    b.mm.munmap(addr, PMD)
    assert b.mapped_pages(addr, 512) == 0
    b.kernel.settle()
    assert events(b, "svm_garbage") == [(addr, addr + PMD, False)]
    assert [range_.start for range_ in b.vm.gpusvm.ranges(0, 1 << 47)] == [addr + PMD]
    assert len(b.vm.garbage) == 0


def test_after_a_partial_munmap_smaller_ranges_map_what_is_left_where_it_is(bench, events):
    b = bench(thp="never")
    addr = b.map(PMD)
    b.cpu_write(addr, 512)
    b.gpu_read(addr)
    b.kernel.tracer.on = True
    b.mm.munmap(addr, M)
    b.kernel.settle()
    assert events(b, "svm_garbage") == [(addr, addr + PMD, True)]
    assert b.driver.tiles[0].vram.bos.used_bytes == PMD
    copies = b.kernel.stats.copies
    assert b.gpu_read(addr + M, 16) == 1
    assert b.kernel.stats.copies == copies
    assert b.device_pages(addr + M, 256) == 256


def test_a_fault_collects_garbage_before_it_looks(bench):
    b = bench()
    addr = b.map(PMD)
    b.cpu_write(addr, 512)
    b.gpu_read(addr)
    b.mm.munmap(addr, PMD)
    b.mm.mmap(addr, PMD, 3)
    b.cpu_write(addr, 512)
    assert b.gpu_read(addr) == 1  # right after the munmap: its worker has not run
    assert b.device_pages(addr, 512) == 512


def test_the_last_range_of_a_window_takes_the_notifier_with_it(bench):
    b = bench("xe:notifier_size=4M")
    addr = b.map(4 * PMD)
    b.cpu_write(addr, 4 * 512)
    for block in range(4):
        b.gpu_read(addr + block * PMD)
    assert len(b.vm.gpusvm.notifiers()) == 2
    b.mm.munmap(addr, 2 * PMD)
    b.kernel.settle()
    assert len(b.vm.gpusvm.notifiers()) == 1
