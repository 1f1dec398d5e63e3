"""What-if knobs of nouveau, each by the event that it changes."""

import pytest
from gpusvm.driver import ACCESS_READ, ACCESS_WRITE
from gpusvm.testing.bench import Fault

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
