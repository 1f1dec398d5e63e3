"""What-if knobs of xe, each by the event that it changes."""

import errno

import numpy as np
import pytest
from gpusvm.driver import ACCESS_ATOMIC, ACCESS_WRITE, NEVER, read_spec
from gpusvm.errors import CpuSignal, InputError
from gpusvm.gpu import REMOTE
from gpusvm.machine import Machine, load_topology
from gpusvm.mm.api import MADV_DONTNEED
from gpusvm.mm.cpu import SIGBUS
from gpusvm.run.costs import load_profile
from gpusvm.testing import Fault
from gpusvm_xe.plugin import INFO

K, M = 1 << 10, 1 << 20
PAGE, PMD = 4 * K, 2 * M
BASE = 1 << 40


def written(b, blocks=1):
    addr = b.map(blocks * PMD)
    b.cpu_write(addr, blocks * 512)
    return addr


def resident(b, addr, blocks):
    return [block for block in range(blocks) if b.where(addr + block * PMD) == "device"]


def pin(b, addr):
    pfn = b.memory.folio_head(b.mm.page_table.entry(addr).pfn)
    b.memory.folio_get(pfn)
    return pfn


@pytest.mark.parametrize(("growth", "seen"), [(1, [5] * 6), (2, [5, 5, 20, 20, 80, 80]), (3, [5, 5, 45, 45, 405, 405])])
def test_the_timeslice_grows_as_it_is_told(bench, growth, seen):
    b = bench(f"xe:timeslice_growth={growth}", thp="never")
    addr = written(b)
    found = []
    pagemap = b.driver.tiles[0].dpagemap.container
    populate = pagemap.populate_mm

    def counted(dpagemap, start, end, mm, timeslice_ms):
        found.append(timeslice_ms)
        populate(dpagemap, start, end, mm, timeslice_ms)

    pagemap.populate_mm = counted
    pfn = pin(b, addr)
    b.fault(addr, ACCESS_ATOMIC)
    assert found == seen
    b.memory.folio_put(pfn)


@pytest.mark.parametrize(("spec", "length"), [("xe", 16 * M), ("xe:tlb_min=2M", 2 * M), ("xe:tlb_min=64M", 64 * M)])
def test_an_invalidation_is_as_wide_as_the_hardware_makes_it(bench, events, spec, length):
    b = bench(spec)
    addr = written(b)
    b.fault(addr)
    b.kernel.tracer.on = True
    b.mm.mprotect(addr, PAGE, 1)
    start = addr & -length
    assert events(b, "tlb_invalidate") == [(f"gpu0 gt{gt}", start, start + length) for gt in (0, 1)]


def test_a_lost_invalidation_costs_the_time_that_is_set(bench):
    b = bench("xe:tlb_timeout_ms=40")
    addr = written(b)
    b.fault(addr)
    b.kernel.arm("xe.tlb_inval_done")
    before = b.kernel.now_ns
    b.mm.mprotect(addr, PAGE, 1)
    assert 2_040_000_000 <= b.kernel.now_ns - before < 2_050_000_000


@pytest.mark.parametrize(("order", "left"), [("fifo", [1, 2]), ("lru", [0, 2]), ("none", [0, 1])])
def test_who_makes_room(bench, order, left):
    b = bench(f"xe:evict_order={order}", vram_bytes=2 * PMD)
    addr = written(b, 3)
    b.gpu_write(addr)
    b.gpu_write(addr + PMD)
    other = b.driver.vm_create(b.mm, start=0, end=1 << 47)
    one = Fault(addr, ACCESS_WRITE, time_ns=b.kernel.now_ns)
    other.faults.submit([one])  # maps the oldest once more, where it is
    b.kernel.settle()
    assert one.errno == 0
    b.gpu_write(addr + 2 * PMD)
    assert resident(b, addr, 3) == left
    assert b.kernel.stats.evictions == (0 if order == "none" else 1)
    b.cpu_read(addr, 3 * 512)
    other.close()


@pytest.mark.parametrize(("fallback", "orders"), [("on", {0}), ("off", None)])
def test_a_folio_that_finds_none_so_large_in_ram(bench, fallback, orders):
    b = bench(f"xe:order_fallback={fallback}")
    addr = written(b)
    b.gpu_write(addr)
    b.kernel.arm("alloc.folio", times=1)
    if orders is None:
        with pytest.raises(CpuSignal) as caught:
            b.cpu_read(addr)
        assert caught.value.signal == SIGBUS
        assert b.device_pages(addr, 512) == 512
    b.cpu_read(addr, 512)
    assert b.device_pages(addr, 512) == 0
    heads = {b.memory.folio_order(b.mm.page_table.entry(addr + i * PAGE).pfn) for i in range(512)}
    assert heads == (orders or {9})


def test_a_populate_that_waits_for_its_clear_takes_longer(bench):
    took = {}
    for clear in ("async", "sync"):
        b = bench(f"xe:clear={clear}", thp="never", costs=load_profile("xe-bmg").costs)
        addr = written(b)
        b.kernel.tracer.on = True
        raised_ns = b.kernel.now_ns
        b.fault(addr)
        began = [event[0] for event in b.kernel.tracer.events if event[2] == "notifier_start"]
        took[clear] = began[0] - raised_ns
        clear_ns = b.kernel.costs.bo_clear_ns(PMD)
    assert took["sync"] - took["async"] >= clear_ns * 9 // 10


@pytest.mark.parametrize(("spec", "home_bytes"), [("xe", PMD - PAGE), ("xe:same_pagemap=on", 0)])
def test_what_is_in_vram_already_goes_home_or_moves_there(bench, spec, home_bytes):
    b = bench(spec, thp="never")
    addr = written(b)
    b.gpu_write(addr, 512)
    b.mm.madvise(addr, PAGE, MADV_DONTNEED)
    b.cpu_write(addr)
    b.gpu_write(addr, 512)
    assert b.device_pages(addr, 512) == 512
    assert b.kernel.stats.migrated_to_ram_bytes == home_bytes
    b.cpu_read(addr, 512)


@pytest.mark.parametrize(("spec", "home", "left"), [("xe", 1, 0), ("xe:allow_mixed=on", 0, 511)])
def test_a_mixture_goes_home_or_is_mapped_as_it_is(bench, events, spec, home, left):
    b = bench(spec, thp="never")
    addr = written(b)
    b.gpu_write(addr, 512)
    b.mm.madvise(addr, PAGE, MADV_DONTNEED)
    b.cpu_write(addr)
    b.kernel.tracer.on = True
    b.kernel.arm("bo.alloc", times=2)  # VRAM for a second allocation is not to be had
    assert b.fault(addr).errno == 0
    assert len(events(b, "get_pages_failed")) == home
    assert b.device_pages(addr, 512) == left
    perms = b.vm.page_table.perms(addr // PAGE, addr // PAGE + 512)
    assert int(np.count_nonzero(perms & REMOTE)) == 512 - left
    assert perms[0] & REMOTE
    b.gpu_write(addr, 512)
    b.cpu_read(addr, 512)


@pytest.fixture
def pair(tmp_path):
    made = []

    def make(spec):
        device = '[[device]]\nname = "gpu{}"\ndiscrete = true\np2p = true\nd3cold_capable = true\n'
        path = tmp_path / "pair.toml"
        path.write_text(
            'name = "pair"\nsummary = "two GPUs"\nram_bytes = 1_073_741_824\n' + device.format(0) + device.format(1),
            encoding="utf-8",
        )
        read = read_spec(spec, {"xe": INFO})
        machine = Machine.boot(load_topology(path), [read, read], vram_bytes=64 << 20, thp="never")
        process = machine.process("pair")
        vms = [machine.open(process, device) for device in (0, 1)]
        process.mm.mmap(BASE, PMD, 3)
        vpns = np.arange(BASE // PAGE, BASE // PAGE + 512)
        machine.memory.cpu_access(process.mm, vpns, np.ones(512, np.bool_))
        made.append(machine)
        return machine, process.mm, vms

    yield make
    for machine in made:
        machine.teardown()
        assert machine.memory.contents.mismatch_count == 0


def fault(machine, vm):
    one = Fault(BASE, ACCESS_WRITE, time_ns=machine.kernel.now_ns)
    assert vm.faults.submit([one]) == 1
    while one.errno is None:
        machine.kernel.sleep_ns(100_000)
    return one.errno


@pytest.mark.parametrize(("owner", "home_bytes"), [("clique", 0), ("device", PMD)])
def test_what_a_peer_has_comes_directly_or_by_way_of_ram(pair, owner, home_bytes):
    machine, _, (first, second) = pair(f"xe:owner={owner}")
    assert fault(machine, first) == 0
    assert fault(machine, second) == 0
    assert machine.kernel.stats.migrated_to_ram_bytes == home_bytes


@pytest.mark.parametrize(("scope", "waits"), [("global", True), ("device", False), ("none", False)])
def test_who_waits_while_another_device_tries_once_more(pair, scope, waits):
    """The first device holds what it takes for a second populate, for ten milliseconds."""
    machine, mm, (first, second) = pair(f"xe:migrate_lock={scope}")
    kernel, memory = machine.kernel, machine.memory
    pagemap = machine.drivers[0].tiles[0].dpagemap.container
    populate, calls, spans = pagemap.populate_mm, [], {}

    def slow(dpagemap, start, end, mm, timeslice_ms):
        calls.append(start)
        if len(calls) == 2:
            begun_ns = kernel.now_ns
            kernel.sleep_ns(10_000_000)
            spans["first"] = begun_ns, kernel.now_ns
        populate(dpagemap, start, end, mm, timeslice_ms)

    pagemap.populate_mm = slow
    mm.mmap(BASE + 16 * M, PMD, 3)
    vpns = np.arange((BASE + 16 * M) // PAGE, (BASE + 16 * M) // PAGE + 512)
    memory.cpu_access(mm, vpns, np.ones(512, np.bool_))
    pfn = memory.folio_head(mm.page_table.entry(BASE).pfn)
    memory.folio_get(pfn)
    one = Fault(BASE, ACCESS_WRITE, time_ns=kernel.now_ns)
    first.faults.submit([one])
    while len(calls) < 2:
        kernel.sleep_ns(100_000)
    other = Fault(BASE + 16 * M, ACCESS_WRITE, time_ns=kernel.now_ns)
    second.faults.submit([other])
    while other.errno is None:
        kernel.sleep_ns(100_000)
    served_ns = kernel.now_ns
    while one.errno is None:
        kernel.sleep_ns(100_000)
    assert (served_ns >= spans["first"][1]) == waits
    assert (one.errno, other.errno) == (0, 0)
    memory.folio_put(pfn)


def test_a_mixture_needs_small_pages_of_vram():
    with pytest.raises(InputError) as refused:
        read_spec("xe:allow_mixed=on,need_64k=on", {"xe": INFO})
    assert str(refused.value) == (
        "driver spec 'xe:allow_mixed=on,need_64k=on': allow_mixed=on, need_64k=on: a page of VRAM between pages of "
        "system memory is mapped by itself, and VRAM is mapped in pages of 64 KiB at least"
    )


@pytest.mark.parametrize(("fallback", "answer"), [("system", 0), ("nack", errno.EBUSY)])
def test_a_fault_whose_memory_cannot_move_is_served_where_it_is_or_refused(bench, fallback, answer):
    spec = f"xe:fallback={fallback}"
    b = bench(spec, thp="never")
    addr = written(b)
    pfn = pin(b, addr)
    assert b.fault(addr).errno == answer
    perms = b.vm.page_table.perms(addr // PAGE, addr // PAGE + 512)
    assert int(np.count_nonzero(perms & REMOTE)) == (0 if answer else 512)
    b.memory.folio_put(pfn)
    assert (answer in read_spec(spec, {"xe": INFO}).info.refusals.access.contended) is (answer != 0)


@pytest.mark.parametrize("fallback", ["system", "nack"])
def test_a_driver_that_makes_no_room_says_so_and_refuses_what_needs_it(bench, fallback):
    spec = f"xe:evict_order=none,fallback={fallback}"
    b = bench(spec, vram_bytes=PMD)
    addr = written(b, 2)
    b.gpu_write(addr)
    info = read_spec(spec, {"xe": INFO}).info
    assert str(info.capabilities.eviction) == "no: evict_order=none: what is in VRAM stays until it is freed"
    assert b.fault(addr + PMD, ACCESS_ATOMIC).errno == errno.ENOMEM
    assert errno.ENOMEM in info.refusals.atomic.crowded
    assert b.fault(addr + PMD).errno == (errno.ENOMEM if fallback == "nack" else 0)
    assert (errno.ENOMEM in info.refusals.access.crowded) is (fallback == "nack")
    assert INFO.refusals.atomic.crowded == NEVER
