"""Ranges follow what a program does to its memory and says of it."""

import errno

import pytest
from gpusvm.errors import KernelError
from gpusvm.mm.api import PROT_READ

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
