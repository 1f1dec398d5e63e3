"""Accesses of a dmirror device: fault windows, the mirror table, atomics, invalidation."""

import errno

import numpy as np
import pytest
from gpusvm.driver import ACCESS_ATOMIC, ACCESS_READ, ACCESS_WRITE
from gpusvm.gpu import ATOMIC, READ, REMOTE, WRITE
from gpusvm.mm.api import MMU_NOTIFY_CLEAR, PROT_READ, MmuNotifierRange
from gpusvm.testing.bench import Fault

K, M = 1 << 10, 1 << 20
PAGE, PMD = 4 * K, 2 * M


def perms(b, addr, pages=1):
    return b.vm.page_table.perms(addr // PAGE, addr // PAGE + pages).tolist()


def test_a_fault_maps_a_window_of_32_pages_where_they_are(bench):
    b = bench(thp="never")
    addr = b.map(PMD)
    b.cpu_write(addr, 512)
    assert b.gpu_read(addr + 5 * PAGE) == 1
    assert perms(b, addr, 40) == [0] * 5 + [READ | WRITE | REMOTE] * 32 + [0] * 3
    assert b.device_pages(addr, 512) == 0
    assert b.gpu_read(addr + 5 * PAGE, 33) == 1


def test_a_window_ends_with_the_vma(bench):
    b = bench(thp="never")
    addr = b.map(8 * PAGE)
    assert b.gpu_write(addr + 6 * PAGE, 2) == 1
    assert perms(b, addr, 9) == [0] * 6 + [READ | WRITE | REMOTE] * 2 + [0]


def test_the_window_is_a_tunable(bench):
    b = bench("dmirror:fault_window_pages=4", thp="never")
    addr = b.map(PMD)
    assert b.gpu_write(addr, 16) == 4


def test_a_read_of_untouched_memory_maps_the_zero_page_read_only(bench):
    b = bench(thp="never")
    addr = b.map(PMD)
    b.gpu_read(addr)
    assert perms(b, addr, 32) == [READ | REMOTE] * 32
    assert b.gpu_write(addr) == 1
    b.cpu_read(addr, 32)


def test_one_window_serves_all_its_faults_of_a_batch(bench):
    b = bench(thp="never")
    addr = b.map(PMD)
    b.cpu_write(addr, 64)
    faults = b.faults([Fault(addr + i * PAGE, ACCESS_WRITE, time_ns=0) for i in range(40)])
    assert [f.errno for f in faults] == [0] * 40
    assert len(b.driver.accounts.latency_ns) == 40
    assert b.mapped_pages(addr, 128) == 64


def test_pages_of_the_own_device_are_mapped_in_place_by_their_backing(bench):
    b = bench(thp="never")
    addr = b.map(64 * PAGE)
    b.cpu_write(addr, 64)
    b.vm.populate(addr, addr + 64 * PAGE)
    b.vm.page_table.unmap(addr // PAGE, addr // PAGE + 64)
    b.gpu_write(addr, 64)
    assert b.device_pages(addr, 64) == 64
    assert perms(b, addr, 64) == [READ | WRITE] * 64
    device = np.array([b.mm.page_table.entry(addr + i * PAGE).pfn for i in range(64)])
    mapped = b.vm.page_table.pfns(addr // PAGE, addr // PAGE + 64)
    assert np.array_equal(b.driver.backing_of(device), mapped)
    assert (mapped < b.memory.pages.ram_pages).all()
    b.cpu_read(addr, 64)


def test_an_atomic_makes_one_page_exclusive_until_the_cpu_wants_it(bench):
    b = bench(thp="never")
    addr = b.map(PMD)
    b.cpu_write(addr, 4)
    b.gpu_read(addr)
    assert b.gpu_atomic(addr + PAGE) == 1
    # Its own EXCLUSIVE event is not filtered: it erased the page and, by the quirk, the one behind it.
    ro = READ | WRITE | REMOTE
    assert perms(b, addr, 4) == [ro, ro | ATOMIC, 0, ro]
    b.cpu_write(addr + PAGE)
    assert perms(b, addr, 4) == [ro, 0, 0, ro]
    b.gpu_atomic(addr + PAGE)


@pytest.mark.parametrize(("quirk", "left"), [("as_written", 4), ("fixed", 5)])
def test_an_invalidation_clears_one_page_too_many(bench, quirk, left):
    b = bench(f"dmirror:quirk.inclusive_last={quirk}", thp="never")
    addr = b.map(8 * PAGE)
    b.gpu_write(addr, 8)
    b.memory.munmap(b.mm, addr + 2 * PAGE, 3 * PAGE)
    assert b.mapped_pages(addr, 8) == left
    b.gpu_read(addr + 5 * PAGE)


def test_own_migrations_are_ignored(bench):
    b = bench(thp="never")
    addr = b.map(4 * PAGE)
    b.gpu_write(addr, 4)
    held = b.mm.page_table.entry(addr + PAGE).pfn
    b.memory.folio_get(held)
    b.vm.populate(addr, addr + 4 * PAGE)
    assert [b.where(addr + i * PAGE) for i in range(4)] == ["device", "system", "device", "device"]
    assert perms(b, addr, 4) == [READ | WRITE, READ | WRITE | REMOTE, READ | WRITE, READ | WRITE]
    b.memory.folio_put(held)
    b.gpu_read(addr, 4)


def test_where_nothing_is_mapped_or_writable_the_fault_fails(bench):
    b = bench(thp="never")
    addr = b.map(PMD, prot=PROT_READ)
    assert b.fault(addr, ACCESS_WRITE).errno == errno.EPERM
    assert b.fault(addr, ACCESS_ATOMIC).errno == errno.EFAULT
    assert b.fault(addr - PMD, ACCESS_READ).errno == errno.EFAULT


def test_an_invalidation_that_must_not_sleep_gives_up_when_the_mutex_is_held(bench):
    b = bench()
    range_ = MmuNotifierRange(b.mm, 0, PAGE, MMU_NOTIFY_CLEAR, flags=0)
    seq = b.vm.notifier.invalidate_seq
    with b.vm.mutex:
        assert b.vm.invalidate(b.vm.notifier, range_, seq) is False
    assert b.vm.invalidate(b.vm.notifier, range_, seq) is True


def test_mm_s1_puts_the_wrong_pages_into_the_table_as_written(bench):
    b = bench()
    addr = b.map(PMD)
    b.cpu_write(addr, 512)
    b.vm.populate(addr, addr + PMD)
    b.vm.page_table.unmap(addr // PAGE, addr // PAGE + 512)
    b.gpu_read(addr + 64 * PAGE, 32)
    assert b.memory.contents.known == {"mm_s1": 32}
    head = b.driver.backing_of(np.array([b.mm.page_table.entry(addr).pfn]))[0]
    assert b.vm.page_table.pfns(addr // PAGE + 64, addr // PAGE + 66).tolist() == [head, head + 1]


def test_there_is_no_runtime_pm_and_nothing_is_delivered(bench):
    b = bench(thp="never")
    addr = b.map(PMD)
    b.gpu_write(addr, 64)
    assert b.driver.device.pm is None
    assert b.driver.accounts.stages()["queue"] == 0
