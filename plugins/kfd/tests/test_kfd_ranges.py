"""Ranges follow what a program does to its memory and says of it."""

import errno

import pytest
from gpusvm.errors import KernelError
from gpusvm.mm.api import PROT_READ
from gpusvm_kfd.migrate import migrate_to_vram

PAGE, PMD = 4096, 2 << 20


def test_a_hole_splits_a_range_whose_parts_share_the_object(bench, ranges):
    b = bench()
    addr = b.map(PMD)
    b.gpu_write(addr, 512)
    b.mm.munmap(addr + 100 * PAGE, 12 * PAGE)
    b.kernel.settle()
    assert ranges(b, addr) == [(0, 100, 1), (112, 400, 1)]
    first, second = b.vm.process.svms.objects
    assert first.svm_bo is second.svm_bo
    assert (first.offset, second.offset) == (0, 112)
    assert (first.vram_pages, second.vram_pages) == (100, 400)
    b.gpu_read(addr + 112 * PAGE, 400)
    b.cpu_read(addr + 112 * PAGE, 400)
    assert (first.actual_loc, second.actual_loc) == (1, 0)


@pytest.mark.parametrize(("first", "pages", "left"), [(0, 8, [(8, 8, 1)]), (8, 8, [(0, 8, 1)]), (0, 16, [])])
def test_what_is_unmapped_of_a_range_goes(bench, ranges, first, pages, left):
    b = bench()
    addr = b.map(16 * PAGE)
    b.gpu_write(addr)
    b.mm.munmap(addr + first * PAGE, pages * PAGE)
    assert not b.mapped_pages(addr + first * PAGE, pages)
    b.kernel.settle()
    assert ranges(b, addr) == left
    assert b.driver.bos.live == len(left)


def test_two_unmaps_before_the_worker_runs(bench, ranges):
    b = bench()
    addr = b.map(32 * PAGE)
    b.gpu_write(addr, 32)
    b.mm.munmap(addr + 8 * PAGE, 4 * PAGE)
    b.mm.munmap(addr + 20 * PAGE, 4 * PAGE)
    b.mm.munmap(addr, 2 * PAGE)
    b.kernel.settle()
    assert ranges(b, addr) == [(2, 6, 1), (12, 8, 1), (24, 8, 1)]
    b.gpu_read(addr + 12 * PAGE, 8)


def test_only_what_changes_is_unmapped(bench):
    b = bench()
    addr = b.map(PMD)
    b.gpu_write(addr)
    b.memory.mprotect(b.mm, addr, PMD, PROT_READ)
    assert b.mapped_pages(addr, 512) == 0
    b.kernel.sleep_ns(3_000_000)
    b.gpu_read(addr)
    assert b.mapped_pages(addr, 512) == 512


# ---- attributes


def test_a_large_area_becomes_ranges_of_a_32nd_of_the_vram(bench, ranges):
    b = bench(vram_bytes=128 << 20)
    addr = b.map(9 << 20)
    b.vm.set_attr(addr + PMD, addr + (9 << 20), preferred_loc=0)
    assert ranges(b, addr) == [(512, 512, 0), (1024, 1024, 0), (2048, 256, 0)]
    assert {each.preferred_loc for each in b.vm.process.svms.objects} == {1}


def test_attributes_of_a_part_split_a_range(bench, ranges):
    b = bench()
    addr = b.map(PMD)
    b.gpu_write(addr, 512)
    b.vm.set_attr(addr + 100 * PAGE, addr + 200 * PAGE, preferred_loc="system")
    assert ranges(b, addr) == [(0, 100, 1), (100, 100, 1), (200, 312, 1)]
    assert [each.preferred_loc for each in b.vm.process.svms.objects] == [-1, 0, -1]
    assert b.mapped_pages(addr, 512) == 512
    b.cpu_read(addr + 100 * PAGE)
    assert b.device_pages(addr, 512) == 412
    b.gpu_read(addr + 100 * PAGE)  # it stays at home
    assert b.device_pages(addr, 512) == 412
    b.gpu_read(addr, 512)


def test_the_same_attributes_again_change_nothing(bench):
    b = bench()
    addr = b.map(PMD)
    b.gpu_write(addr)
    before = b.vm.process.svms.objects[0]
    b.vm.set_attr(addr, addr + 4 * PAGE, access={0: "access"})
    assert b.vm.process.svms.objects == [before]


def test_prefetch_to_the_gpu_and_back(bench):
    b = bench()
    addr = b.map(PMD)
    b.cpu_write(addr, 512)
    assert b.vm.populate(addr, addr + PMD) == PMD
    assert b.mapped_pages(addr, 512) == 512
    b.vm.set_attr(addr, addr + PMD, prefetch_loc="system")
    assert b.device_pages(addr, 512) == 0
    b.cpu_read(addr, 512)


def test_access_says_whether_memory_moves_stays_or_is_refused(bench):
    b = bench()
    addr = b.map(3 * PAGE)
    b.cpu_write(addr, 3)
    for page, access in enumerate(["access", "in_place", "none"]):
        b.vm.set_attr(addr + page * PAGE, addr + (page + 1) * PAGE, access={0: access})
    assert [b.fault(addr + page * PAGE).errno for page in range(3)] == [0, 0, errno.EACCES]
    assert [b.where(addr + page * PAGE) for page in range(3)] == ["device", "system", "system"]


def test_access_that_is_taken_away_unmaps(bench):
    b = bench()
    addr = b.map(PMD)
    b.gpu_write(addr)
    b.vm.set_attr(addr, addr + PMD, access={0: "none"})
    assert b.mapped_pages(addr, 512) == 0


@pytest.mark.parametrize(
    ("start", "end", "what", "number"),
    [
        (0, PAGE, {}, errno.EINVAL),
        (1 << 44, 1 << 44, {}, errno.EINVAL),
        (1 << 44, (1 << 44) + PAGE, {"preferred_loc": 3}, errno.EINVAL),
        (1 << 44, (1 << 44) + PAGE, {"access": {3: "none"}}, errno.EINVAL),
        (1 << 44, (1 << 44) + PAGE, {"prefetch_loc": 0}, errno.EFAULT),
    ],
)
def test_what_is_refused(bench, start, end, what, number):
    b = bench()
    with pytest.raises(KernelError) as caught:
        b.vm.set_attr(start, end, **what)
    assert caught.value.errno == number


def test_the_granularity_of_a_range_can_be_set(bench):
    b = bench("kfd:quirk.range_window=fixed")
    addr = b.map(PMD)
    b.cpu_write(addr, 512)
    b.vm.set_attr(addr, addr + PMD, granularity=4)
    b.gpu_write(addr)
    assert b.device_pages(addr, 512) == 16
    b.gpu_write(addr + 16 * PAGE)
    b.cpu_read(addr)
    assert b.device_pages(addr, 512) == 16


# ---- what stands between one state of a range and the next


def test_a_prefetch_to_nowhere_is_refused(bench):
    b = bench()
    addr = b.map(PAGE)
    with pytest.raises(KernelError) as caught:
        b.vm.set_attr(addr, addr + PAGE, prefetch_loc="undefined")
    assert caught.value.errno == errno.EINVAL


def test_a_clone_is_told_of_changes_before_its_original_is_gone(bench, monkeypatch):
    b = bench("kfd:access=in_place")
    addr = b.map(4 * PAGE)
    b.cpu_write(addr, 4)
    b.gpu_write(addr, 4)
    steps = []
    svms = b.vm.process.svms
    add, remove = svms.add, svms.remove
    monkeypatch.setattr(svms, "add", lambda prange, mm: steps.append("add") or add(prange, mm))
    monkeypatch.setattr(svms, "remove", lambda prange, *, unmap: steps.append("remove") or remove(prange, unmap=unmap))
    b.vm.set_attr(addr + PAGE, addr + 2 * PAGE, preferred_loc="system")
    assert steps == ["add", "add", "add", "remove"]


def test_the_last_range_of_an_ioctl_is_served_first(bench):
    b = bench(vram_bytes=2 * PMD)
    addr = b.map(4 * PMD)
    b.cpu_write(addr, 4 * 512)
    b.vm.populate(addr, addr + 4 * PMD)
    assert [b.device_pages(addr + block * PMD, 512) for block in range(4)] == [512, 512, 0, 0]


@pytest.mark.parametrize("quirk", ["as_written", "fixed"])
def test_a_fault_in_a_range_that_is_being_cut_elsewhere(bench, monkeypatch, quirk):
    """The notifier of a munmap, which lets readers of mmap_lock in before it is called, cuts the first granule away."""
    b = bench(f"kfd:granularity=16K,quirk.cut_range={quirk}")
    b.kernel.tracer.on = True
    addr = b.map(8 * PAGE)
    b.cpu_write(addr, 8)
    b.vm.set_attr(addr, addr + 8 * PAGE, preferred_loc=0)
    plain = migrate_to_vram
    cut = []

    def migrate(prange, location, start, end, mm):
        if not cut:
            cut.append(1)
            with prange.lock:
                prange.svms._unmap_from_cpu(mm, prange, addr // PAGE + 1, addr // PAGE + 3)
        plain(prange, location, start, end, mm)

    monkeypatch.setattr("gpusvm_kfd.faults.migrate_to_vram", migrate)
    b.gpu_write(addr + 5 * PAGE)
    b.kernel.settle()
    warnings = [event[3:] for event in b.kernel.tracer.events if event[2] == "warn"]
    behind = ("svm_range_dma_map_dev", "7 addresses are written behind those of <SvmRange 0x100000000-0x100000001>")
    assert warnings == ([behind] if quirk == "as_written" else [])
    assert [(each.start - addr // PAGE, each.pages) for each in b.vm.process.svms.objects] == [(0, 1), (3, 5)]


@pytest.mark.parametrize(("quirk", "number"), [("as_written", errno.EFAULT), ("fixed", 0)])
def test_a_fault_in_a_granule_of_which_a_part_is_being_unmapped(bench, monkeypatch, quirk, number):
    b = bench(f"kfd:quirk.cut_range={quirk}")
    addr = b.map(8 * PAGE)
    b.cpu_write(addr, 8)
    b.gpu_write(addr)
    b.kernel.sleep_ns(3_000_000)
    b.memory.mprotect(b.mm, addr, 6 * PAGE, PROT_READ)
    # munmap has taken the area away; its notifier comes once the fault has been dropped for the first time.
    plain, gone = type(b.mm).vma_lookup, []

    def vma_lookup(mm, at):
        return None if at >= addr + 6 * PAGE and len(gone) < 2 and not gone.append(1) else plain(mm, at)

    monkeypatch.setattr(type(b.mm), "vma_lookup", vma_lookup)
    assert b.fault(addr).errno == number
    assert len(gone) == 2
