"""Retry faults: what one makes and moves, which are dropped, and what the others are told."""

import errno

import pytest
from gpusvm.driver import ACCESS_ATOMIC, ACCESS_READ, ACCESS_WRITE
from gpusvm.errors import KernelError
from gpusvm.gpu import ATOMIC, READ, REMOTE, WRITE
from gpusvm.mm.api import PROT_NONE, PROT_READ
from gpusvm.testing.bench import Fault
from gpusvm_kfd.faults import FaultFilter

PAGE, PMD = 4096, 2 << 20
ALL = READ | WRITE | ATOMIC


def perms(b, addr, pages=1):
    return b.vm.page_table.perms(addr // PAGE, addr // PAGE + pages).tolist()


def test_a_fault_makes_a_range_of_its_granule_and_moves_it(bench, ranges):
    b = bench()
    addr = b.map(2 * PMD)
    b.cpu_write(addr, 600)
    assert b.gpu_write(addr + 3 * PAGE) == 1
    assert ranges(b, addr) == [(0, 512, 1)]
    assert b.device_pages(addr, 600) == 512
    assert perms(b, addr, 513) == [ALL] * 512 + [0]


def test_a_range_is_cut_to_its_area_and_its_neighbours(bench, ranges):
    b = bench()
    addr = b.map(100 * PAGE)
    b.vm.set_attr(addr + 10 * PAGE, addr + 20 * PAGE, preferred_loc="system")
    b.gpu_read(addr + 30 * PAGE)
    b.gpu_read(addr)
    assert ranges(b, addr) == [(0, 10, 1), (10, 10, 0), (20, 80, 1)]


def test_a_read_of_writable_memory_asks_to_write_it(bench):
    b = bench("kfd:preferred_loc=system")
    addr = b.map(4 * PAGE)
    b.cpu_read(addr, 4)  # the shared page of zeros
    b.gpu_read(addr)
    assert perms(b, addr, 4) == [ALL | REMOTE] * 4
    assert b.mm.page_table.entry(addr).pfn != b.memory.zero_pfn


def test_memory_that_may_only_be_read_is_mapped_so(bench):
    b = bench()
    addr = b.map(4 * PAGE)
    b.cpu_write(addr, 4)
    b.memory.mprotect(b.mm, addr, 4 * PAGE, PROT_READ)
    b.gpu_read(addr)
    assert perms(b, addr, 4) == [READ] * 4
    assert b.fault(addr, ACCESS_WRITE).errno == errno.EPERM


@pytest.mark.parametrize("prot", [None, PROT_NONE])
def test_what_nobody_may_access_ends_the_wave(bench, prot):
    b = bench()
    addr = 1 << 45
    if prot is not None:
        addr = b.map(PAGE, prot=prot)
    assert b.fault(addr).errno == (errno.EFAULT if prot is None else errno.EPERM)


def test_an_atomic_is_done_where_the_memory_is(bench):
    b = bench("kfd:access=in_place")
    addr = b.map(PAGE)
    b.cpu_write(addr)
    b.gpu_atomic(addr)
    assert b.where(addr) == "system"
    b.cpu_read(addr)
    assert perms(b, addr) == [ALL | REMOTE]


def test_system_and_device_pages_are_mapped_side_by_side(bench):
    b = bench()
    addr = b.map(4 * PAGE)
    b.cpu_write(addr, 4)
    pinned = b.memory.pin_user_pages_fast(b.mm, addr + PAGE, 1)
    b.gpu_write(addr)
    b.memory.unpin_user_pages(pinned)
    assert perms(b, addr, 4) == [ALL, ALL | REMOTE, ALL, ALL]


def test_without_room_the_memory_is_mapped_where_it_is(bench):
    b = bench(vram_bytes=PMD)
    b.kernel.arm("bo.alloc")
    addr = b.map(PMD)
    b.gpu_write(addr)
    assert b.device_pages(addr, 512) == 0
    assert perms(b, addr) == [ALL | REMOTE]


# ---- what is dropped


def test_the_filter_drops_a_fault_on_the_same_page_for_a_while():
    filter_ = FaultFilter(2, 50)

    def fault(addr):
        return Fault(addr, ACCESS_READ, time_ns=0)

    assert [filter_.until(fault(addr), now) for addr, now in [(0, 100), (0, 120), (PAGE, 130), (0, 150)]] == [
        0,
        150,
        0,
        0,
    ]
    # Full of what is not over yet.
    assert filter_.until(fault(2 * PAGE), 160) == 180
    filter_.remove(fault(0))
    assert filter_.until(fault(2 * PAGE), 160) == 0


def test_repeated_faults_cost_one_service(bench):
    b = bench()
    addr = b.map(PMD)
    b.cpu_write(addr, 512)
    faults = b.faults([Fault(addr, ACCESS_WRITE, time_ns=0) for _ in range(4)])
    assert [each.errno for each in faults] == [0] * 4
    assert b.kernel.stats.gpu_faults == 4
    assert len(b.driver.accounts.latency_ns) == 4


@pytest.mark.parametrize(("quirk", "least_ms", "most_ms"), [("as_written", 2, 3), ("fixed", 0, 1)])
def test_memory_that_a_cpu_took_back_waits_2_ms(bench, quirk, least_ms, most_ms):
    b = bench(f"kfd:quirk.range_window={quirk}")
    addr = b.map(PMD)
    b.cpu_write(addr, 512)
    b.kernel.sleep_ns(1_000_000)
    b.gpu_write(addr)
    mapped_ns = b.vm.process.svms.objects[0].validated_ns
    b.cpu_write(addr)
    b.gpu_write(addr)
    waited_ns = b.vm.process.svms.objects[0].validated_ns - mapped_ns
    assert least_ms * 1_000_000 <= waited_ns <= most_ms * 1_000_000


@pytest.mark.parametrize(("quirk", "waits"), [("as_written", True), ("fixed", False)])
def test_the_next_granule_of_a_range_waits_too(bench, quirk, waits):
    b = bench(f"kfd:quirk.range_window={quirk},granularity=16K")
    addr = b.map(PMD)
    b.vm.set_attr(addr, addr + PMD, granularity=2)
    b.kernel.sleep_ns(1_000_000)
    begun = b.kernel.now_ns
    b.gpu_write(addr)
    b.gpu_write(addr + 4 * PAGE)
    assert (b.vm.process.svms.objects[0].validated_ns - begun >= 2_000_000) is waits


def test_a_fault_that_was_raised_before_an_unmap_is_dropped(bench):
    b = bench()
    addr = b.map(PMD)
    b.gpu_write(addr)
    b.vm.process.svms.checkpoint_ns[0] = b.kernel.now_ns + 1000
    b.cpu_write(addr)
    assert b.fault(addr, ACCESS_ATOMIC).errno == 0
    assert perms(b, addr) == [0]
    b.kernel.sleep_ns(3_000_000)
    assert b.gpu_atomic(addr) == 1
    assert b.vm.process.svms.checkpoint_ns == {}


def test_after_close_no_fault_is_served(bench):
    b = bench()
    addr = b.map(PMD)
    b.gpu_write(addr)
    b.vm.close()
    assert b.fault(addr).errno == errno.EINVAL
    with pytest.raises(KernelError) as caught:
        b.vm.populate(addr, addr + PMD)
    assert caught.value.errno == errno.EINVAL
    b.cpu_read(addr)
    assert b.where(addr) == "system"
