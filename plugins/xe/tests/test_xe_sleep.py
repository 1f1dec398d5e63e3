"""xe asleep: who holds its device awake inside of whom, what system sleep does to pages, what xe promises."""

import pytest
from gpusvm.check import Checker, InvariantError
from gpusvm.drm import D0, D3COLD, D3HOT
from gpusvm.errors import KernelError, ModelError

M = 1 << 20
PMD = 2 * M
SECOND = 1_000_000_000


def migrated(b, blocks):
    addr = b.map(blocks * PMD)
    b.cpu_write(addr, blocks * 512)
    for block in range(blocks):
        b.fault(addr + block * PMD)
    b.kernel.settle()
    return addr


def held(b):
    return sorted({str(each.holder) for each in b.driver.pm.rpm.references})


def test_a_copy_is_a_job_inside_the_references_of_its_caller_and_its_pages(bench, monkeypatch):
    b = bench()
    engine, seen = b.driver.tiles[0].engine, {}
    copy, clear = engine.copy, engine.clear

    def copying(*args, **kwargs):
        seen["copy"] = held(b), b.driver.pm.rpm.holders["job"]
        return copy(*args, **kwargs)

    def clearing(*args, **kwargs):
        seen["clear"] = held(b)
        return clear(*args, **kwargs)

    monkeypatch.setattr(engine, "copy", copying)
    monkeypatch.setattr(engine, "clear", clearing)
    addr = migrated(b, 1)
    assert seen["clear"] == ["bo_move", "pagefault", "populate_mm", "vm"]
    assert seen["copy"] == (["bo", "job", "pagefault", "populate_mm", "vm"], 2)  # that of the clear, and its own
    b.cpu_read(addr)
    assert seen["copy"] == (["bo", "job", "vm"], 1)  # a CPU fault wakes nobody
    assert held(b) == ["vm"]


@pytest.fixture
def messages(monkeypatch):
    """Note who holds how many references whenever a GT is sent a message; `of` says where to look."""

    def of(b):
        seen = []
        for gt in (gt for tile in b.driver.tiles for gt in tile.gts):
            invalidate = gt.tlb.invalidate

            def invalidating(*args, plain=invalidate, **kwargs):
                seen.append(dict(b.driver.pm.rpm.holders))
                return plain(*args, **kwargs)

            monkeypatch.setattr(gt.tlb, "invalidate", invalidating)
        return seen

    return of


def test_each_tlb_fence_holds_a_reference_and_each_guc_one_for_its_messages(bench, messages):
    b = bench()
    addr = migrated(b, 1)
    seen = messages(b)
    b.mm.munmap(addr, PMD)
    assert seen == [
        {"vm": 1, "bo": 1, "tlb_inval": 1, "guc_ct": 1},
        {"vm": 1, "bo": 1, "tlb_inval": 2, "guc_ct": 2},
    ]
    b.kernel.settle()
    assert held(b) == ["vm"]


def test_two_messages_to_one_guc_are_one_reference_of_its(bench):
    b = bench()
    tlb, rpm = b.driver.tiles[0].gts[0].tlb, b.driver.pm.rpm
    tlb.submit(0, PMD)
    tlb.submit(PMD, PMD)
    assert rpm.holders == {"vm": 1, "tlb_inval": 2, "guc_ct": 1}
    tlb.signal()
    assert rpm.holders == {"vm": 1, "tlb_inval": 1, "guc_ct": 1}
    tlb.signal()
    assert rpm.holders == {"vm": 1}


def test_a_device_is_not_removed_under_a_fence(bench):
    b = bench()
    tlb, rpm = b.driver.tiles[0].gts[0].tlb, b.driver.pm.rpm
    tlb.submit(0, PMD)
    with pytest.raises(ModelError) as caught:
        rpm.disable()
    assert str(caught.value) == "gpu0 is removed and held by tlb_inval: 1, guc_ct: 1"
    tlb.signal()


def test_a_fence_that_is_never_answered_lets_go_when_it_is_given_up(bench):
    b = bench()
    addr = migrated(b, 1)
    b.kernel.arm("xe.tlb_inval_done")
    b.mm.munmap(addr, PMD)
    b.kernel.settle()
    assert held(b) == ["vm"]


@pytest.mark.parametrize("nth", [1, 2])
def test_a_message_that_cannot_be_sent_leaves_no_reference(bench, nth):
    """Those before it are waited for, of the same tile as well."""
    b = bench()
    addr = migrated(b, 1)
    b.kernel.arm("xe.tlb_inval_send", nth=nth, times=1)
    b.mm.munmap(addr, PMD)
    b.kernel.settle()
    assert held(b) == ["vm"]


def test_the_fences_of_userptr_and_of_close_hold_the_device_as_well(bench, messages):
    b = bench()
    addr = b.map(PMD)
    b.cpu_write(addr, 512)
    b.vm.bind_userptr(addr, addr + PMD)
    b.fault(addr)
    seen = messages(b)
    b.mm.munmap(addr, PMD)
    assert seen == [{"vm": 1, "tlb_inval": 1, "guc_ct": 1}, {"vm": 1, "tlb_inval": 2, "guc_ct": 2}]
    b.vm.close()
    assert seen[2:] == [{"vm": 1, "tlb_inval": 1, "guc_ct": 1}] * 2
    assert held(b) == []


@pytest.mark.parametrize(("capable", "state", "warned"), [(True, D3COLD, 1), (False, D0, 0)])
def test_moving_an_object_wakes_only_a_device_that_keeps_its_memory(bench, capable, state, warned):
    b = bench()
    b.vm.close()
    pm = b.driver.pm
    pm._move = pm.rpm.inner("bo_move") if capable else pm.rpm.awake("bo_move")
    b.kernel.sleep_ns(2 * SECOND)
    with pm.bo_move():
        assert pm.rpm.state is state
    assert pm.rpm.missing_outer_protection == warned


def test_references_say_which_object_and_since_when(bench):
    b = bench()
    began = b.kernel.now_ns
    migrated(b, 2)
    vm, first, second = b.driver.pm.rpm.references
    assert (vm.holder, vm.of, vm.count) == ("vm", b.vm, 1)
    assert [each.of for each in (first, second)] == b.driver.tiles[0].vram.bos.lru()
    assert vm.since_ns <= began <= first.since_ns <= second.since_ns


def test_the_threshold_counts_whole_mib_of_each_tile_at_the_moment_of_idling(bench):
    b = bench("xe:autosuspend_ms=10,d3cold_mib=3")
    rpm, vram = b.driver.pm.rpm, b.driver.tiles[0].vram
    pinned = vram.bos.create(512 + 1, pinned=True)  # 2 MiB and a page: three
    pinned.resv.unlock()
    b.vm.close()
    b.kernel.sleep_ns(5_000_000)
    pinned.put()
    b.kernel.sleep_ns(20_000_000)
    assert rpm.state is D3HOT  # decided before the object was freed
    rpm.get("ioctl")
    rpm.put("ioctl")
    b.kernel.sleep_ns(20_000_000)
    assert rpm.state is D3COLD


def test_system_sleep_brings_all_pages_home_and_holds_the_device_meanwhile(bench):
    b = bench(vram_bytes=8 * M)
    addr = migrated(b, 3)
    rpm = b.driver.pm.rpm
    resumes = rpm.resumes
    slept = b.kernel.now_ns
    b.machine.sleep(5)
    assert b.device_pages(addr, 3 * 512) == 0
    assert [state for _, state in rpm.history[-2:]] == [D3COLD, D0]
    assert rpm.history[-1][0] - rpm.history[-2][0] >= 5_000_000
    assert rpm.history[-2][0] >= slept
    assert (rpm.resumes, rpm.holders) == (resumes + 1, {"vm": 1})
    b.cpu_read(addr, 3 * 512)
    b.fault(addr)
    assert b.device_pages(addr, 512) == 512


def test_a_device_that_cannot_be_emptied_refuses_system_sleep_and_goes_on(bench):
    b = bench()
    addr = migrated(b, 1)
    pfn = b.memory.folio_head(b.mm.page_table.entry(addr).pfn)
    b.memory.folio_get(pfn)
    with pytest.raises(KernelError, match="device pages are left after 3 attempts") as caught:
        b.machine.sleep(5)
    assert caught.value.errno == 28  # ENOSPC: xe's word for an object that is busy
    assert (b.driver.pm.rpm.state, b.driver.pm.rpm.holders) == (D0, {"vm": 1, "bo": 1})
    b.memory.folio_put(pfn)
    b.machine.sleep(5)
    assert b.device_pages(addr, 512) == 0


@pytest.mark.breaks_invariants
def test_a_device_that_sleeps_under_a_page_is_an_error(bench):
    b = bench("xe:d3cold_mib=0")  # or the suspend itself would bring the page home
    checker = Checker.of(b.memory)
    addr = migrated(b, 1)
    rpm = b.driver.pm.rpm
    checker.collect = True
    rpm.put("bo", b.driver.tiles[0].vram.bos.lru()[0])  # the mistake: the object lets go of the device too early
    rpm.put("vm", b.vm)
    b.kernel.sleep_ns(2 * SECOND)
    pfn = b.driver.dev_pagemaps()[0].start_pfn
    assert [str(one).rpartition(", task")[0] for one in checker.findings] == [
        (
            "invariant 53 (device-awake): gpu0 is in D3hot, and pages of it are in use: 512 "
            f"[{b.mm.name}:{addr:#x}, pfn {pfn:#x}"
        )
    ]
    with pytest.raises(InvariantError):
        checker.check_quiescent()
    checker.detach()
    rpm.get("vm", b.vm)
    rpm.get("bo", b.driver.tiles[0].vram.bos.lru()[0])


def states(b):
    """Return when the device changed to which state, in ms, as the tracer heard it."""
    return [(event[0] // 1_000_000, event[4]) for event in b.kernel.tracer.events if event[2] == "pm_state"]


@pytest.mark.parametrize(("spec", "delay_ms"), [("xe", 1000), ("xe:autosuspend_ms=10", 10)])
def test_the_device_suspends_so_long_after_its_last_reference(bench, spec, delay_ms):
    b = bench(spec)
    b.kernel.tracer.on = True
    b.kernel.sleep_ns(123 * 1_000_000)
    b.vm.close()
    b.kernel.sleep_ns(4 * SECOND)
    assert states(b) == [(123 + delay_ms, D3COLD)]


@pytest.mark.parametrize(("d3cold_mib", "state"), [(3, D3HOT), (4, D3COLD), (300, D3COLD), (0, D3HOT)])
def test_less_than_the_threshold_in_use_is_d3cold(bench, d3cold_mib, state):
    b = bench(f"xe:d3cold_mib={d3cold_mib}")
    b.kernel.tracer.on = True
    pinned = b.driver.tiles[0].vram.bos.create(3 * 256, pinned=True)  # 3 MiB of the driver's own
    pinned.resv.unlock()
    b.vm.close()
    b.kernel.sleep_ns(2 * SECOND)
    assert states(b) == [(1000, state)]
    pinned.put()


def test_use_that_ends_within_the_delay_begins_it_anew(bench):
    b = bench("xe:autosuspend_ms=10")
    b.vm.close()
    b.kernel.tracer.on = True
    for _ in range(3):
        b.kernel.sleep_ns(6 * 1_000_000)
        with b.driver.pm.ioctl():
            pass
    b.kernel.sleep_ns(SECOND)
    assert states(b) == [(3 * 6 + 10, D3COLD)]
