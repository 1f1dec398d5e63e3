"""xe's fault queues: how many faults they hold, in which order they are served, and what is kept of one that fails."""

import contextlib
import errno

import pytest
from gpusvm.driver import ACCESS_ATOMIC, ACCESS_PREFETCH, ACCESS_READ, ACCESS_WRITE
from gpusvm.errors import KernelError
from gpusvm.machine import load_topology
from gpusvm.testing import Fault
from gpusvm_xe.pagefault import (
    FAULT_NACK,
    FAULT_PREFETCH,
    MAX_FAULTS_SAVED_PER_VM,
    PROPERTY_FAULTS,
    XE_VM_FAULT_BYTES,
    XeVmFault,
    queue_capacity,
)

PAGE, PMD = 4096, 2 << 20
NOWHERE = 1 << 40


def raised(b, addr, access=ACCESS_READ):
    return Fault(addr, access, time_ns=b.kernel.now_ns)


def stats(b):
    return b.driver.describe()["gt_stats"]["gpu0 gt0"]


@pytest.mark.parametrize(("eus", "entries"), [(1, 256), (160, 2048), (512, 8192), (1024, 16384)])
def test_a_queue_is_sized_for_the_execution_units_and_one_entry_stays_free(eus, entries):
    assert queue_capacity(eus) == entries - 1


def test_each_of_the_four_queues_holds_so_many(bench):
    b = bench()
    assert [buffer.capacity for buffer in b.driver.queues.buffers] == [2047] * 4


def test_a_fault_too_many_is_dropped_with_a_warning_and_never_answered(bench, events):
    b = bench("xe:eus=1")
    addr = b.map(PMD)
    b.cpu_write(addr, 512)
    b.kernel.tracer.on = True
    faults = [raised(b, addr + page * PAGE) for page in range(257)]
    assert b.vm.faults.submit(faults) == 255
    assert events(b, "warn") == [("xe_pagefault_handler", "PageFault Queue (0) full, shouldn't be possible")]
    b.kernel.run_until(b.kernel.now_ns + 100_000_000)
    assert [fault.errno for fault in faults] == [0] * 255 + [None] * 2


def test_duplicates_are_served_one_by_one_in_their_order(bench, events):
    b = bench()
    addr = b.map(2 * PMD)
    b.cpu_write(addr, 1024)
    b.kernel.tracer.on = True
    order = [addr + PMD, addr, addr + PMD, addr + PMD + PAGE, addr]
    b.faults([raised(b, each) for each in order])
    assert [event[0] for event in events(b, "fault_ack")] == order
    found = stats(b)
    assert (found["svm_pagefault_count"], found["svm_2M_pagefault_count"]) == (5, 5)
    assert (found["svm_2M_valid_pagefault_count"], found["svm_2M_migrate_count"]) == (3, 2)


def test_the_counters_tell_the_sizes_apart_and_count_every_attempt(bench):
    b = bench(thp="never")
    addr = b.map(1 << 20)
    b.cpu_write(addr, 17)
    b.fault(addr)
    b.fault(addr + 16 * PAGE)
    b.kernel.arm("xe.copy_to_devmem", nth=1, times=1)
    b.cpu_write(addr + 32 * PAGE)
    b.fault(addr + 32 * PAGE)
    found = stats(b)
    assert {name: n for name, n in found.items() if n} == {
        "svm_pagefault_count": 3,
        "svm_64K_pagefault_count": 1,
        "svm_4K_pagefault_count": 3,  # one of them began again
        "svm_64K_migrate_count": 1,
        "svm_4K_migrate_count": 2,  # an attempt is counted before it is made
        "svm_device_copy_kb": 68,  # and a copy before it is done, but this one failed before
        "svm_64K_device_copy_kb": 64,
        "svm_4K_device_copy_kb": 4,
    }


def test_a_worker_goes_on_for_twenty_ms_and_then_lets_others_run(bench):
    b = bench()
    addr = b.map(PMD)
    b.cpu_write(addr, 512)
    turns = []
    take = b.driver.queues.pipeline.take

    def slow(buffer):
        batch = take(buffer)
        if batch:
            turns.append(b.driver.pm.rpm.usage_count)
            b.kernel.charge_ns("test", 11_000_000)
        return batch

    b.driver.queues.pipeline.take = slow
    ends = []
    guard = b.driver.queues.guard

    @contextlib.contextmanager
    def turn():
        with guard():
            yield
        ends.append(len(turns))

    b.driver.queues.guard = turn
    b.faults([raised(b, addr + page * PAGE) for page in range(5)])
    assert ends == [2, 4, 5]
    # References on the device: the worker's, the address space's, and then that of what is in VRAM.
    assert turns == [2, 3, 3, 3, 3]


# ---- what failed -----------------------------------------------------------------------------------------------------


def test_a_fault_that_the_hardware_wants_refused_is_refused_before_anything_is_looked_at(bench):
    b = bench()
    addr = b.map(PMD)
    b.cpu_write(addr, 512)
    assert b.fault(addr, ACCESS_WRITE | FAULT_NACK).errno == errno.EFAULT
    assert stats(b)["svm_pagefault_count"] == 0
    assert b.vm.saved.first(XE_VM_FAULT_BYTES) == [
        XeVmFault(address=addr, access_type=ACCESS_WRITE, fault_type=0xF, fault_level=0xF)
    ]


def test_an_address_space_that_nobody_knows_is_refused_and_nothing_is_kept(bench):
    b = bench()
    fault = raised(b, NOWHERE)
    fault.inst = 77
    b.driver.queues.submit(1, [fault])
    b.kernel.settle()
    assert fault.errno == errno.EINVAL
    assert b.vm.saved.size_bytes() == 0


def test_an_address_outside_of_the_mirror_is_refused(bench):
    b = bench()
    assert b.fault(b.vm.end).errno == errno.EINVAL
    assert b.fault(b.vm.end - PAGE).errno == errno.ENOENT


def test_every_failed_fault_is_kept_for_who_asks(bench):
    b = bench()
    addr = b.map(PMD, prot=1)
    assert b.vm.get_property(PROPERTY_FAULTS) == 0
    b.fault(NOWHERE)
    b.fault(addr, ACCESS_WRITE | 1 << 8 | 1 << 12)
    b.fault(addr + PAGE, ACCESS_ATOMIC | FAULT_PREFETCH)
    assert b.vm.get_property(PROPERTY_FAULTS) == 3 * XE_VM_FAULT_BYTES
    kept = [
        XeVmFault(address=NOWHERE, access_type=ACCESS_READ, fault_type=0, fault_level=0),
        XeVmFault(address=addr, access_type=ACCESS_WRITE, fault_type=1, fault_level=1),
        XeVmFault(address=addr + PAGE, access_type=ACCESS_ATOMIC, fault_type=0, fault_level=0),
    ]
    assert b.vm.get_property(PROPERTY_FAULTS, 3 * XE_VM_FAULT_BYTES) == kept
    assert b.vm.get_property(PROPERTY_FAULTS, XE_VM_FAULT_BYTES) == kept[:1]
    assert kept[0].address_precision == 4096


@pytest.mark.parametrize(("prop", "size"), [(0, 2 * XE_VM_FAULT_BYTES), (0, 47), (1, 0)])
def test_a_question_for_more_than_there_is_or_for_a_part_is_wrong(bench, prop, size):
    b = bench()
    b.fault(NOWHERE)
    with pytest.raises(KernelError) as caught:
        b.vm.get_property(prop, size)
    assert caught.value.errno == errno.EINVAL


def test_a_closed_address_space_answers_no_question(bench):
    b = bench()
    b.vm.close()
    with pytest.raises(KernelError) as caught:
        b.vm.get_property(PROPERTY_FAULTS)
    assert caught.value.errno == errno.ENOENT


def test_fifty_are_kept_and_those_behind_silently_not(bench):
    b = bench()
    b.faults([raised(b, NOWHERE + page * PAGE) for page in range(60)])
    kept = b.vm.saved.first(b.vm.saved.size_bytes())
    assert [each.address for each in kept] == [NOWHERE + page * PAGE for page in range(MAX_FAULTS_SAVED_PER_VM)]
    assert b.driver.accounts.failed == 60


def test_a_fault_that_cannot_be_kept_is_answered_all_the_same(bench, events):
    b = bench()
    b.kernel.tracer.on = True
    b.kernel.arm("xe.save_fault")
    assert b.fault(NOWHERE).errno == errno.ENOENT
    assert events(b, "drm_warn") == [("Could not allocate memory for fault!",)]
    assert b.vm.saved.size_bytes() == 0


@pytest.mark.parametrize("access", [ACCESS_PREFETCH, ACCESS_READ | FAULT_PREFETCH])
def test_a_prefetch_that_fails_is_kept_and_counted_but_not_printed(bench, events, access):
    b = bench()
    b.kernel.tracer.on = True
    assert b.fault(NOWHERE, access).errno == errno.ENOENT
    assert stats(b)["invalid_prefetch_pagefault_count"] == 1
    assert events(b, "fault_unsuccessful") == []
    assert b.vm.saved.first(XE_VM_FAULT_BYTES)[0].access_type == ACCESS_READ
    b.fault(NOWHERE)
    assert events(b, "fault_unsuccessful") == [(NOWHERE, b.vm.asid, errno.ENOENT)]
    assert stats(b)["invalid_prefetch_pagefault_count"] == 1


def test_a_prefetch_is_served_like_any_fault(bench):
    b = bench()
    addr = b.map(PMD)
    b.cpu_write(addr, 512)
    assert b.fault(addr, ACCESS_ATOMIC | FAULT_PREFETCH).errno == 0
    bo = b.driver.bo_mapping.bo_of(int(b.vm.page_table.pfns(addr // PAGE, addr // PAGE + 1)[0]))
    assert bo.devmem.timeslice_expiration_ns > b.kernel.now_ns  # an atomic holds its memory, a prefetched one too


# ---- reset -----------------------------------------------------------------------------------------------------------


def test_a_reset_of_a_gt_squashes_what_it_has_queued_and_nothing_else(bench):
    b = bench(topology=load_topology("two-tiles"))
    addr = b.map(2 * PMD)
    b.cpu_write(addr, 1024)
    second = b.vm.on_tile(1)
    lost = [raised(b, addr), raised(b, addr + PMD)]
    kept = raised(b, addr)
    b.vm.faults.submit(lost[:1])
    second.faults.submit([kept])
    b.vm.faults.submit(lost[1:])
    b.driver.reset_gt(b.driver.tiles[0])
    b.kernel.run_until(b.kernel.now_ns + 100_000_000)
    assert [fault.errno for fault in lost] == [None, None]
    assert kept.errno == 0
    assert b.fault(addr).errno == 0  # the next is served again


# ---- 64 KiB ----------------------------------------------------------------------------------------------------------


def test_where_vram_comes_in_64_kib_a_smaller_range_stays_in_ram(bench):
    b = bench("xe:need_64k=on", thp="never")
    addr = b.map(1 << 20)
    b.cpu_write(addr, 17)
    assert b.fault(addr + 16 * PAGE).errno == 0
    assert b.where(addr + 16 * PAGE) == "system"
    assert b.fault(addr).errno == 0
    assert b.device_pages(addr, 16) == 16
    assert stats(b)["svm_4K_migrate_count"] == 0


def test_where_vram_comes_in_64_kib_a_prefetch_leaves_smaller_ranges_alone_and_populate_refuses_them(bench):
    b = bench("xe:need_64k=on", thp="never")
    addr = b.map(68 << 10)
    b.cpu_write(addr, 17)
    assert b.vm.populate(addr, addr + (68 << 10)) == 64 << 10
    assert b.mapped_pages(addr, 17) == 17
    with pytest.raises(KernelError) as caught:
        b.driver.tiles[0].dpagemap.populate_mm(addr + 16 * PAGE, addr + 17 * PAGE, b.mm, 0)
    assert caught.value.errno == errno.EINVAL


@pytest.mark.parametrize(("variant", "answer"), [("as_written", 0), ("fixed", errno.EFAULT)])
def test_an_atomic_on_such_a_range_fails_three_times_and_is_acknowledged_as_written(bench, variant, answer):
    b = bench(f"xe:need_64k=on,quirk.acked_failure={variant}", thp="never")
    addr = b.map(PAGE)
    b.cpu_write(addr)
    assert b.fault(addr, ACCESS_ATOMIC).errno == answer
    assert b.kernel.stats.retries == 2
    assert b.mapped_pages(addr, 1) == 0
