"""What-if knobs of nouveau, each by the event that it changes."""

import errno

import pytest
from gpusvm.driver import ACCESS_READ, ACCESS_WRITE, read_spec
from gpusvm.mm.api import MADV_DONTNEED
from gpusvm.testing.bench import Fault
from gpusvm_nouveau.info import INFO

PAGE, PMD = 4 << 10, 2 << 20


def raise_all(b, *faults):
    return b.faults([Fault(addr, access, time_ns=b.kernel.now_ns) for addr, access in faults])


@pytest.mark.parametrize(("batching", "replays"), [("on", 1), ("off", 4)])
def test_faults_are_replayed_once_for_all_or_one_by_one(bench, batching, replays):
    b = bench(f"nouveau:fault_batching={batching}", thp="never")
    addr = b.map(PMD)
    b.cpu_write(addr, 4)
    seen = []
    b.vm.faults.on_replay(lambda: seen.append(b.kernel.now_ns))
    answered = raise_all(b, *((addr + i * PAGE, ACCESS_READ) for i in (2, 0, 3, 1)))
    assert [fault.errno for fault in answered] == [0] * 4
    assert len(seen) == replays


@pytest.mark.parametrize(("batching", "first"), [("on", 0), ("off", 2)])
def test_only_a_batch_is_sorted(bench, batching, first):
    b = bench(f"nouveau:fault_batching={batching}", thp="never")
    addr = b.map(PMD)
    b.cpu_write(addr, 4)
    b.kernel.tracer.on = True
    raise_all(b, *((addr + i * PAGE, ACCESS_READ) for i in (2, 0, 3, 1)))
    acks = [event[3] for event in b.kernel.tracer.events if event[2] == "fault_ack"]
    assert acks[0] == addr + first * PAGE


@pytest.mark.parametrize(("dedupe", "maps"), [("on", 1), ("off", 3)])
def test_a_fault_that_is_there_three_times_is_served_once_or_each_time(bench, events, dedupe, maps):
    b = bench(f"nouveau:fault_dedupe={dedupe}", thp="never")
    addr = b.map(PMD)
    b.cpu_write(addr)
    b.kernel.tracer.on = True
    answered = raise_all(b, *[(addr, ACCESS_WRITE)] * 3)
    assert [fault.errno for fault in answered] == [0] * 3
    assert len(events(b, "tlb_invalidate")) == maps


@pytest.mark.parametrize(("asks", "faults", "fresh"), [("read", 2, False), ("write", 1, True)])
def test_a_read_fault_asks_to_read_or_to_write(bench, asks, faults, fresh):
    """Asking to write gives a page that nobody wrote to its process at once, and the write behind finds it mapped."""
    b = bench(f"nouveau:read_faults={asks}", thp="never")
    addr = b.map(PMD)
    assert b.gpu_read(addr) == 1
    assert (b.mm.page_table.entry(addr).pfn != b.memory.zero_pfn) is fresh
    assert 1 + b.gpu_write(addr) == faults


@pytest.mark.parametrize(("asks", "answer"), [("read", 0), ("write", errno.EPERM)])
def test_a_read_of_read_only_memory_is_refused_where_reads_ask_to_write(bench, asks, answer):
    b = bench(f"nouveau:read_faults={asks}", thp="never")
    addr = b.map(PMD)
    b.cpu_write(addr)
    b.mm.mprotect(addr, PMD, 1)
    assert b.fault(addr, ACCESS_READ).errno == answer
    assert read_spec(f"nouveau:read_faults={asks}", {"nouveau": INFO}).info.refusals.read_needs_write is (answer != 0)


@pytest.mark.parametrize(("ms", "attempts"), [(1, 1), (1000, 4), (1600, 6)])
def test_a_fault_that_is_invalidated_again_and_again_is_tried_for_as_long_as_it_is_told(
    bench, monkeypatch, ms, attempts
):
    b = bench(f"nouveau:hmm_timeout_ms={ms}", thp="never")
    addr = b.map(PAGE)
    b.cpu_write(addr)
    begun = []
    plain = type(b.memory).mmu_interval_read_begin

    def read_begin(memory, sub):
        seq = plain(memory, sub)
        begun.append(memory.kernel.now_ns)
        memory.kernel.sleep_ns(300_000_000)
        b.mm.madvise(addr, PAGE, MADV_DONTNEED)
        return seq

    monkeypatch.setattr(type(b.memory), "mmu_interval_read_begin", read_begin)
    assert b.fault(addr, ACCESS_READ).errno == errno.EBUSY
    assert len(begun) == attempts
