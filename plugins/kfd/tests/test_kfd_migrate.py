"""One object a range, one reference a page: what moves, what the object costs, and who pushes it out."""

import pytest
from gpusvm.errors import CpuSignal
from gpusvm.mm.api import MADV_DONTNEED, MREMAP_FIXED, MREMAP_MAYMOVE

PAGE, PMD = 4096, 2 << 20


def objects(b):
    return [bo.container for bo in b.driver.bos.lru()]


def references(svm_bo):
    """Return the references of an object: of ranges, and of pages."""
    return svm_bo.kref.count - int(svm_bo.live.sum()), int(svm_bo.live.sum())


def test_every_page_holds_the_object_and_so_does_the_range(bench):
    b = bench()
    addr = b.map(PMD)
    b.cpu_write(addr, 8)
    b.gpu_write(addr)
    (svm_bo,) = objects(b)
    assert references(svm_bo) == (1, 512)
    assert svm_bo.bo.size_pages == 512
    pfn = b.mm.page_table.entry(addr).pfn
    assert b.driver.bo_mapping.bo_of(pfn) is svm_bo
    assert b.driver.embedding.container_of(b.memory.page_pgmap(pfn)) is b.driver
    assert pfn == svm_bo.pfns[0]


def test_a_cpu_fault_brings_the_granule_home_and_the_object_goes_with_the_last_page(bench):
    b = bench("kfd:granularity=16K")
    addr = b.map(8 * PAGE)
    b.cpu_write(addr, 8)
    b.vm.populate(addr, addr + 8 * PAGE)
    (svm_bo,) = objects(b)
    b.cpu_read(addr + 5 * PAGE)
    assert [b.where(addr + i * PAGE) for i in (3, 4, 7)] == ["device", "system", "system"]
    assert references(svm_bo) == (1, 4)
    b.cpu_read(addr)
    b.kernel.settle()
    assert objects(b) == []
    assert b.vm.process.svms.objects[0].actual_loc == 0


def test_each_page_moves_by_itself(bench):
    b = bench()
    addr = b.map(8 * PAGE)
    b.cpu_write(addr, 8)
    pinned = b.memory.pin_user_pages_fast(b.mm, addr + 2 * PAGE, 1)
    assert b.vm.populate(addr, addr + 8 * PAGE) == 7 * PAGE
    b.memory.unpin_user_pages(pinned)
    assert b.vm.populate(addr, addr + 8 * PAGE) == PAGE
    assert len(objects(b)) == 1


def test_copies_are_cut_at_the_window_of_the_gart(bench, monkeypatch):
    b = bench("kfd:copy_window=16K")
    copies = []
    plain = b.driver.engine.copy
    monkeypatch.setattr(
        b.driver.engine, "copy", lambda d, n, pieces, **o: copies.append((d, n, pieces)) or plain(d, n, pieces, **o)
    )
    addr = b.map(8 * PAGE)
    b.cpu_write(addr, 5)
    b.cpu_write(addr + 6 * PAGE)
    b.gpu_write(addr)
    assert copies == [("h2d", 4 * PAGE, 4), ("h2d", PAGE, 1), ("h2d", PAGE, 1)]
    copies.clear()
    b.cpu_read(addr, 8)
    assert copies == [("d2h", 4 * PAGE, 4), ("d2h", 4 * PAGE, 4)]


def test_the_oldest_object_makes_room_by_the_addresses_of_its_range(bench):
    b = bench(vram_bytes=2 * PMD)
    addr = b.map(3 * PMD)
    b.cpu_write(addr, 3 * 512)
    for block in range(3):
        b.gpu_write(addr + block * PMD)
    assert [b.device_pages(addr + block * PMD, 512) for block in range(3)] == [0, 512, 512]
    assert b.driver.bos.evictions == 1
    b.gpu_read(addr)
    b.cpu_read(addr, 3 * 512)


def test_an_object_whose_range_is_being_moved_is_passed_over(bench):
    b = bench(vram_bytes=PMD)
    addr = b.map(2 * PMD)
    b.gpu_write(addr)
    (prange,) = b.vm.process.svms.objects
    with prange.migrate_mutex:
        b.gpu_write(addr + PMD)
    assert b.device_pages(addr, 512) == 512
    assert b.where(addr + PMD) == "system"
    assert not objects(b)[0].evicting
    with b.mm.mmap_lock.write():
        b.kernel.spawn(lambda: None, name="nobody").join()


def test_dropped_pages_are_not_counted_in_vram(bench):
    b = bench(vram_bytes=PMD)
    addr = b.map(2 * PMD)
    b.gpu_write(addr)
    b.memory.madvise(b.mm, addr, PMD, MADV_DONTNEED)
    b.gpu_write(addr + PMD)
    assert b.device_pages(addr + PMD, 512) == 512


def test_as_written_the_range_goes_on_with_an_object_that_was_given_to_others(bench):
    b = bench("kfd:quirk.evict_leftovers=as_written", vram_bytes=PMD)
    b.kernel.tracer.on = True
    addr = b.map(2 * PMD)
    b.gpu_write(addr)
    b.memory.madvise(b.mm, addr, PMD, MADV_DONTNEED)
    b.gpu_write(addr + PMD)
    warnings = [event[3] for event in b.kernel.tracer.events if event[2] == "warn"]
    assert warnings == ["svm_range_evict_svm_bo"]
    old, _ = b.vm.process.svms.objects
    assert (old.actual_loc, old.has_res, old.vram_pages, old.svm_bo.bo.blocks) == (1, True, 512, [])


def test_what_another_process_alone_has_is_not_given_away(bench):
    b = bench(vram_bytes=PMD)
    addr = b.map(2 * PMD)
    b.gpu_write(addr, 512)
    child = b.mm.fork()
    b.memory.madvise(b.mm, addr, PMD, MADV_DONTNEED)
    b.gpu_write(addr + PMD)
    assert b.where(addr + PMD) == "system"
    b.memory.cpu_read(child, addr)
    child.exit()


@pytest.mark.parametrize("quirk", ["as_written", "fixed"])
def test_a_hole_is_zero_even_where_there_was_something(bench, quirk):
    b = bench(f"kfd:quirk.stale_hole={quirk}")
    addr = b.map(PMD)
    b.gpu_write(addr, 512)
    b.memory.madvise(b.mm, addr, 8 * PAGE, MADV_DONTNEED)
    b.kernel.sleep_ns(3_000_000)
    b.gpu_read(addr, 8)
    assert b.device_pages(addr, 8) == 8
    wrong = b.memory.contents.mismatch_count
    assert wrong == (8 if quirk == "as_written" else 0)
    b.memory.contents.mismatch_count = 0  # seen
    b.gpu_write(addr, 8)


@pytest.mark.parametrize("quirk", ["as_written", "fixed"])
def test_a_cpu_finds_memory_that_was_moved(bench, quirk):
    b = bench(f"kfd:quirk.va_fault={quirk}")
    addr, to = b.map(PMD), 1 << 45
    b.gpu_write(addr, 512)
    b.mm.mremap(addr, PMD, PMD, flags=MREMAP_MAYMOVE | MREMAP_FIXED, new_addr=to)
    b.kernel.settle()
    if quirk == "as_written":
        with pytest.raises(CpuSignal, match="SIGBUS"):
            b.cpu_read(to)
    else:
        b.cpu_read(to, 512)
        assert b.device_pages(to, 512) == 0


@pytest.mark.parametrize("quirk", ["as_written", "fixed"])
def test_a_child_finds_memory_that_its_parent_has_unmapped(bench, quirk):
    b = bench(f"kfd:quirk.va_fault={quirk}")
    addr = b.map(PMD)
    b.gpu_write(addr, 512)
    child = b.mm.fork()
    b.mm.munmap(addr, PMD)
    b.kernel.settle()
    if quirk == "as_written":
        with pytest.raises(CpuSignal, match="SIGBUS"):
            b.memory.cpu_read(child, addr)
    else:
        b.memory.cpu_read(child, addr)
    child.exit()


def test_a_place_that_is_in_use_stays_empty(bench):
    b = bench()
    addr = b.map(PMD)
    b.gpu_write(addr, 512)
    child = b.mm.fork()
    b.memory.madvise(b.mm, addr, PMD, MADV_DONTNEED)
    b.kernel.sleep_ns(3_000_000)
    b.gpu_write(addr)  # the child's pages are where these would go
    assert b.device_pages(addr, 512) == 0
    b.memory.cpu_read(child, addr)
    child.exit()
