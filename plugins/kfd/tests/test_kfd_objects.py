"""How large a dev_pagemap and an object are, what a migration keeps to, and whom an event does not concern."""

import errno

import pytest
from gpusvm.errors import KernelError
from gpusvm.mm.api import MMU_NOTIFY_RELEASE, PROT_READ, PROT_WRITE, MmuNotifierRange, VmFault

PAGE, PMD = 4096, 2 << 20


def test_the_dev_pagemap_is_there_from_the_start_and_as_large_as_the_vram_in_whole_2_mib(bench):
    b = bench(vram_bytes=3 << 20)
    assert (b.driver.pages, b.driver.pagemap.nr_pages) == (768, 1024)


def test_a_page_is_where_its_offset_in_vram_says(bench):
    b = bench()
    addr = b.map(PMD)
    b.gpu_write(addr)
    (bo,) = b.driver.bos.lru()
    ((first, pages),) = bo.blocks
    assert bo.container.pfns.tolist() == list(range(b.driver.first_pfn + first, b.driver.first_pfn + first + pages))


def test_an_object_is_cleared_whole_and_waited_for(bench, monkeypatch):
    b = bench()
    engine, steps = b.driver.engine, []
    clear, wait = engine.clear, engine.wait
    monkeypatch.setattr(engine, "clear", lambda n, pieces: steps.append(("clear", n)) or clear(n, pieces))
    monkeypatch.setattr(engine, "wait", lambda ns: steps.append(("wait", ns > 0)) or wait(ns))
    addr = b.map(4 * PAGE)
    b.cpu_write(addr)
    b.gpu_read(addr)
    assert steps[:2] == [("clear", 4 * PAGE), ("wait", True)]


def test_a_range_has_to_fit_whole_in_what_is_not_reserved(bench):
    b = bench()
    addr = b.map(4 * PAGE)
    b.cpu_write(addr, 4)
    b.driver.reserve(b.driver.pages - 3)
    with pytest.raises(KernelError) as caught:
        b.driver.reserve(4)
    assert caught.value.errno == errno.ENOSPC
    assert b.vm.populate(addr, addr + 4 * PAGE) == 0
    b.driver.unreserve(b.driver.pages - 3)
    assert b.vm.populate(addr, addr + 4 * PAGE) == 4 * PAGE


def test_where_nothing_moved_no_object_is_left(bench):
    b = bench()
    addr = b.map(4 * PAGE)
    b.cpu_write(addr, 4)
    pinned = b.memory.pin_user_pages_fast(b.mm, addr, 4)
    assert b.vm.populate(addr, addr + 4 * PAGE) == 0
    assert b.driver.bos.live == 0
    b.memory.unpin_user_pages(pinned)


def test_entries_change_while_the_copies_run(bench, monkeypatch):
    b = bench()
    addr = b.map(4 * PAGE)
    b.cpu_write(addr, 4)
    steps = []
    for target, name in ((b.driver.engine, "copy"), (b.memory, "migrate_vma_pages"), (b.driver.engine, "wait")):
        plain = getattr(target, name)
        monkeypatch.setattr(target, name, lambda *a, _n=name, _p=plain, **o: steps.append(_n) or _p(*a, **o))
    b.vm.populate(addr, addr + 4 * PAGE)
    assert steps == ["wait", "copy", "migrate_vma_pages", "wait"]  # the first for the object to be clear


def test_a_fault_of_the_driver_s_own_reading_moves_nothing(bench):
    b = bench()
    addr = b.map(4 * PAGE)
    b.gpu_write(addr)
    process = b.vm.process
    process.faulting_task = b.kernel.current
    vma = b.mm.vma_lookup(addr)
    page = b.mm.page_table.entry(addr).pfn
    assert b.driver.migrate_to_ram(VmFault(mm=b.mm, vma=vma, address=addr, page=page, pte_level=True)) == 0
    process.faulting_task = None
    assert b.where(addr) == "device"


def test_the_end_of_a_process_is_no_event_for_a_range(bench):
    b = bench()
    addr = b.map(4 * PAGE)
    b.gpu_write(addr, 4)
    (prange,) = b.vm.process.svms.objects
    window = MmuNotifierRange(b.mm, addr, addr + 4 * PAGE, MMU_NOTIFY_RELEASE)
    assert prange.invalidate(prange.notifier, window, 0)
    assert b.mapped_pages(addr, 4) == 4


def test_queues_that_could_not_be_resumed_are_tried_again_a_millisecond_later(bench, monkeypatch):
    b = bench("kfd:xnack=off")
    addr = b.map(4 * PAGE)
    b.cpu_write(addr, 4)
    b.vm.set_attr(addr, addr + 4 * PAGE, access={0: "access"})
    queues = b.vm.process.queues
    tried, plain = [], queues._map_invalid
    monkeypatch.setattr(queues, "_map_invalid", lambda: tried.append(b.kernel.now_ns) or (len(tried) > 1 and plain()))
    b.memory.mprotect(b.mm, addr, 4 * PAGE, PROT_READ)
    b.memory.mprotect(b.mm, addr, 4 * PAGE, PROT_READ | PROT_WRITE)
    b.kernel.sleep_ns(5_000_000)
    assert len(tried) == 2
    assert tried[1] - tried[0] >= 1_000_000
    assert not queues.stopped


def test_the_soft_ring_has_16_kib(bench):
    b = bench()
    assert b.driver.queues.buffers[0].capacity * 32 == 16 << 10
