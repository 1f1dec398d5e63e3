"""TLB invalidations on xe: to whom they go, how wide they are, and what a lost one does."""

import errno

import pytest
from gpusvm.drm import RuntimePm
from gpusvm.errors import KernelError
from gpusvm.kernel import Kernel
from gpusvm_xe.gt import XeTlb, new_stats

K, M = 1 << 10, 1 << 20
PAGE, PMD = 4 * K, 2 * M


def stats(b):
    return b.driver.describe()["gt_stats"]


@pytest.fixture
def bound(bench):
    """Return a bench with one range of 2 MiB that the GPU has mapped, and its address; the tracer is on."""

    def make(spec="xe"):
        b = bench(spec)
        addr = b.map(PMD)
        b.cpu_write(addr, 512)
        b.fault(addr)
        b.kernel.tracer.on = True
        return b, addr

    return make


@pytest.mark.parametrize(("spec", "gts"), [("xe", 2), ("xe:media_gt=off", 1)])
def test_every_gt_is_told_once_whatever_is_zapped(bound, events, spec, gts):
    b, addr = bound(spec)
    b.mm.mprotect(addr, PAGE, 1)
    window = (addr & -16 * M, (addr & -16 * M) + 16 * M)
    assert events(b, "tlb_invalidate") == [(f"gpu0 gt{number}", *window) for number in range(gts)]
    counts = [(each["tlb_inval_count"], each["svm_tlb_inval_count"]) for each in stats(b).values()]
    assert counts == [(1, 1)] * gts


def test_a_bind_invalidates_nothing(bench):
    b = bench()
    addr = b.map(PMD)
    b.cpu_write(addr, 512)
    b.fault(addr)
    assert [each["tlb_inval_count"] for each in stats(b).values()] == [0, 0]


def test_one_message_is_for_all_ranges_of_an_event_which_are_counted_each(bench):
    b = bench()
    addr = b.map(4 * PMD)
    b.cpu_write(addr, 2048)
    for block in range(3):
        b.fault(addr + block * PMD)
    b.mm.mprotect(addr, 4 * PMD, 1)
    assert (stats(b)["gpu0 gt0"]["tlb_inval_count"], stats(b)["gpu0 gt0"]["svm_tlb_inval_count"]) == (1, 3)


def test_the_window_of_a_notifier_does_not_bound_what_is_invalidated(bench, events):
    b = bench("xe:notifier_size=16M")
    addr = b.map(96 * M)
    start = -(-addr // (64 * M)) * 64 * M
    for place in (start, start + 16 * M):
        b.cpu_write(place, 512)
        b.fault(place)
    b.kernel.tracer.on = True
    b.mm.munmap(start, 32 * M)
    seen = [event for event in events(b, "tlb_invalidate") if event[0] == "gpu0 gt0"]
    assert seen == [("gpu0 gt0", start, start + 32 * M)] * 2


def test_a_message_that_is_never_answered_costs_its_timeout_and_then_counts_as_done(bound, events):
    b, addr = bound()
    b.kernel.arm("xe.tlb_inval_done", nth=2)
    before = b.kernel.now_ns
    b.mm.mprotect(addr, PAGE, 1)
    # HZ / 4, and twice the second of a full command queue.
    assert b.kernel.now_ns - before >= 2_250_000_000
    assert b.kernel.now_ns - before < 2_260_000_000
    assert events(b, "tlb_inval_timeout") == [("gpu0 gt1", 1, 0)]
    assert not b.vm.gpusvm.range_find(addr, addr + PAGE).pages.has_dma_mapping
    b.fault(addr + PMD)
    b.mm.mprotect(addr, PAGE, 3)
    assert b.fault(addr).errno == 0
    b.mm.mprotect(addr, PAGE, 1)
    assert (b.driver.tiles[0].gts[1].tlb.seqno_recv, len(events(b, "tlb_inval_timeout"))) == (2, 1)


def test_two_lost_messages_time_out_together(bound):
    b, addr = bound()
    b.kernel.arm("xe.tlb_inval_done", times=2)
    before = b.kernel.now_ns
    b.mm.mprotect(addr, PAGE, 1)
    assert b.kernel.now_ns - before < 2_260_000_000


def test_where_a_message_cannot_be_sent_the_gts_behind_get_none_and_the_pages_are_unmapped(bound, events):
    b, addr = bound()
    b.kernel.arm("xe.tlb_inval_send")
    b.mm.mprotect(addr, PAGE, 1)
    assert events(b, "warn") == [("xe_svm_invalidate", "-EPIPE: injected at xe.tlb_inval_send of gpu0 gt0")]
    assert events(b, "tlb_invalidate") == []
    assert b.mapped_pages(addr, 512) == 0
    assert not b.vm.gpusvm.range_find(addr, addr + PAGE).pages.has_dma_mapping


class Power:
    """What a TLB needs of XeRuntimePm, of a device that somebody keeps awake."""

    def __init__(self, kernel):
        rpm = RuntimePm(kernel, "gpu0", autosuspend_ms=1000)
        rpm.get("vm")
        self.tlb_inval, self.guc_ct = rpm.inner("tlb_inval"), rpm.inner("guc_ct")


def test_sequence_numbers_go_up_to_a_million_and_never_are_zero():
    tlb = XeTlb(kernel := Kernel(), "gt0", new_stats(), Power(kernel))
    tlb.seqno = 0x100000 - 1
    tlb.submit(0, PAGE)
    assert (tlb.seqno, tlb.seqno_recv) == (1, 0x100000 - 1)


def test_a_reset_answers_what_was_under_way():
    kernel = Kernel()
    tlb = XeTlb(kernel, "gt0", new_stats(), Power(kernel))
    kernel.arm("xe.tlb_inval_done")
    assert (tlb.submit(0, PAGE), tlb.seqno_recv) == (1, 0)
    tlb.reset()
    assert tlb.seqno_recv == 1


def test_a_number_is_used_up_even_if_its_message_is_not_sent():
    kernel = Kernel()
    tlb = XeTlb(kernel, "gt0", new_stats(), Power(kernel))
    kernel.arm("xe.tlb_inval_send")
    with pytest.raises(KernelError) as caught:
        tlb.submit(0, PAGE)
    assert (caught.value.errno, tlb.seqno, tlb.seqno_recv) == (errno.EPIPE, 2, 0)
