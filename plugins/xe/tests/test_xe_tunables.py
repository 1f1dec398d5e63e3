"""What a tunable is for: another value shows in what xe does. Those that are not here have their test beside what they
tune: `test_xe_fault` chunk_sizes, check_pages_threshold, migrate_after and page_to_bo; `test_xe_retry` tries and
populate_attempts; `test_xe_evict` evict_attempts and copy_chunk; `test_xe_pagefault` eus and need_64k; `test_xe_tlb`
media_gt; `test_xe_invalidate` notifier_size; `test_xe_madvise` device_atomics_on_smem; `test_xe_pm` autosuspend_ms and
d3cold_mib.
"""

import errno

import pytest
from gpusvm.driver import ACCESS_ATOMIC, ACCESS_READ
from gpusvm.testing.bench import Fault

K, M = 1 << 10, 1 << 20
PAGE, PMD = 4 * K, 2 * M


@pytest.mark.parametrize(("spec", "queues"), [("xe", [0, 1, 2, 3, 0]), ("xe:queues=2", [0, 1, 0, 1, 0])])
def test_queues_an_address_space_has_the_one_of_its_number(bench, spec, queues):
    b = bench(spec)
    vms = [b.vm, *(b.driver.vm_create(b.mm, start=0, end=1 << 47) for _ in range(4))]
    assert [vm.asid for vm in vms] == [0, 1, 2, 3, 4]
    assert [vm.faults.queue for vm in vms] == queues
    assert len(b.driver.queues.buffers) == b.driver.pf_wq.max_active == max(queues) + 1
    for vm in vms[1:]:
        vm.close()


@pytest.mark.parametrize(
    ("spec", "turns"), [("xe", 2), ("xe:slice_ms=50", 1), ("xe:slice_ms=5", 6), ("xe:slice_ms=0", 1)]
)
def test_slice_ms_a_worker_lets_others_run_when_its_time_is_over(bench, spec, turns):
    b = bench(spec)
    addr = b.map(6 * PMD)
    b.cpu_write(addr, 6 * 512)
    pipeline, begun = b.driver.queues.pipeline, []
    begin = pipeline.begin

    def slow(job):
        b.kernel.sleep_ns(5_000_000)
        return begin(job)

    pipeline.begin = slow
    guard = b.driver.queues.guard
    b.driver.queues.guard = lambda: begun.append(b.kernel.now_ns) or guard()
    b.faults([Fault(addr + block * PMD, ACCESS_READ, time_ns=b.kernel.now_ns) for block in range(6)])
    assert len(begun) == turns


@pytest.mark.parametrize(("spec", "ms"), [("xe", 5), ("xe:timeslice_ms=40", 40), ("xe:timeslice_ms=0", 0)])
def test_timeslice_ms_is_how_long_what_came_for_an_atomic_stays(bench, spec, ms):
    b = bench(spec)
    addr = b.map(PMD)
    b.cpu_write(addr)
    begun = b.kernel.now_ns
    assert b.fault(addr, ACCESS_ATOMIC).errno == 0
    b.cpu_read(addr)
    assert ms * 1_000_000 <= b.kernel.now_ns - begun < (ms + 1) * 1_000_000


@pytest.mark.parametrize(("spec", "tries"), [("xe", 3), ("xe:atomic_tries=1", 1), ("xe:atomic_tries=5", 5)])
def test_atomic_tries_are_the_attempts_before_an_atomic_is_refused(bench, spec, tries):
    b = bench(spec, thp="never")
    addr = b.map(PMD)
    b.cpu_write(addr, 512)
    pfn = b.mm.page_table.entry(addr).pfn
    b.memory.folio_get(pfn)
    assert b.fault(addr, ACCESS_ATOMIC).errno == errno.EBUSY
    b.memory.folio_put(pfn)
    assert b.driver.describe()["gt_stats"]["gpu0 gt0"]["svm_2M_migrate_count"] == tries
