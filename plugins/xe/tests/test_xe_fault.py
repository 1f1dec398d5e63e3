"""A GPU fault on xe: what it moves, how it is mapped, and what it answers."""

import errno

import pytest
from gpusvm.driver import ACCESS_ATOMIC, ACCESS_READ, ACCESS_WRITE
from gpusvm.drm import page_zdd
from gpusvm.errors import KernelError
from gpusvm.gpu import ATOMIC, READ, REMOTE, WRITE

K, M = 1 << 10, 1 << 20
PAGE, PMD = 4 * K, 2 * M


def perms(b, addr, pages):
    return set(b.vm.page_table.perms(addr // PAGE, addr // PAGE + pages).tolist())


@pytest.mark.parametrize("thp", ["always", "never"])
def test_one_touch_moves_and_maps_the_whole_block(bench, thp):
    b = bench(thp=thp)
    addr = b.map(PMD)
    b.cpu_write(addr, 512)
    assert b.gpu_write(addr + 5 * PAGE) == 1
    assert b.device_pages(addr, 512) == 512
    assert perms(b, addr, 512) == {READ | WRITE | ATOMIC}
    assert b.driver.describe()["bos"] == 1
    assert b.kernel.stats.migrated_to_device_bytes == PMD


@pytest.mark.parametrize(("length", "size"), [(PMD, PMD), (M, 64 * K), (60 * K, 4 * K)])
def test_a_range_is_the_largest_chunk_that_fits(bench, length, size):
    b = bench(thp="never")
    addr = b.map(length)
    b.cpu_write(addr, length // PAGE)
    b.gpu_read(addr)
    assert b.mapped_pages(addr, length // PAGE) == size // PAGE
    assert b.driver.tiles[0].vram.bos.used_bytes == size


def test_a_small_chunk_with_an_absent_page_is_not_used(bench):
    b = bench(thp="never")
    addr = b.map(M)
    b.cpu_write(addr, 3)
    b.gpu_read(addr)
    assert b.mapped_pages(addr, 16) == 1  # 64 KiB has holes, up to check_pages_threshold that counts: one page


def test_the_threshold_can_be_lowered_and_holes_then_migrate(bench):
    b = bench("xe:check_pages_threshold=0", thp="never")
    addr = b.map(M)
    b.cpu_write(addr, 3)
    b.gpu_read(addr)
    assert b.mapped_pages(addr, 16) == 16
    assert b.device_pages(addr, 16) == 16
    b.gpu_read(addr + 9 * PAGE)  # a hole reads as zero: the bench checks it


def test_where_no_chunk_of_the_list_fits_one_page_does(bench):
    b = bench("xe:chunk_sizes=2M", thp="never")
    addr = b.map(M)
    b.cpu_write(addr)
    b.gpu_read(addr)
    assert b.mapped_pages(addr, 256) == 1


def test_a_fault_on_a_valid_range_is_answered_without_work(bench):
    b = bench()
    addr = b.map(PMD)
    b.cpu_write(addr, 512)
    b.fault(addr)
    before = b.driver.accounts.stages()
    assert b.fault(addr + PAGE).errno == 0
    after = b.driver.accounts.stages()
    assert [after[stage] - before[stage] for stage in ("migrate", "get_pages", "bind")] == [0, 0, 0]
    assert b.kernel.stats.copies == 1


def test_a_read_fault_asks_for_write_and_never_maps_the_zero_page(bench):
    b = bench("xe:tries=0", thp="never")
    addr = b.map(PAGE)
    b.cpu_read(addr)  # the zero page
    b.gpu_read(addr)
    assert perms(b, addr, 1) == {READ | WRITE | REMOTE}
    assert b.memory.is_zone_device(int(b.vm.page_table.pfns(addr // PAGE, addr // PAGE + 1)[0])) is False


def test_memory_that_the_cpu_may_only_read_is_refused_even_for_reads(bench):
    b = bench()
    addr = b.map(PMD, prot=1)
    assert b.fault(addr, ACCESS_READ).errno == errno.EPERM


def test_an_unmapped_address_is_refused(bench):
    b = bench()
    assert b.fault(1 << 40).errno == errno.ENOENT


def test_a_closed_address_space_is_refused(bench):
    b = bench()
    inst = b.vm.asid
    b.vm.close()
    (fault,) = b.faults([_fault(b, 1 << 40)])
    assert (fault.inst, fault.errno) == (inst, errno.EINVAL)


def _fault(b, addr, access=ACCESS_READ):
    from gpusvm.testing import Fault

    return Fault(addr, access, time_ns=b.kernel.now_ns)


def test_an_atomic_needs_vram_and_finds_it_after_a_plain_fault_that_stayed_in_ram(bench):
    b = bench("xe:tries=0")
    addr = b.map(PMD)
    b.cpu_write(addr, 512)
    b.gpu_write(addr)
    assert b.where(addr) == "system"
    assert b.gpu_atomic(addr) == 1
    assert b.where(addr) == "device"
    assert perms(b, addr, 512) == {READ | WRITE | ATOMIC}


def test_an_atomic_holds_its_memory_against_the_cpu_for_the_timeslice(bench):
    b = bench()
    addr = b.map(PMD)
    b.cpu_write(addr, 512)
    b.gpu_atomic(addr)
    bo = b.driver.bo_mapping.bo_of(int(b.vm.page_table.pfns(addr // PAGE, addr // PAGE + 1)[0]))
    until = bo.devmem.timeslice_expiration_ns
    assert until - b.kernel.now_ns > 4_000_000
    b.cpu_read(addr)
    assert b.kernel.now_ns >= until
    assert b.where(addr) == "system"


def test_a_plain_fault_holds_nothing(bench):
    b = bench()
    addr = b.map(PMD)
    b.cpu_write(addr, 512)
    b.fault(addr, ACCESS_WRITE)
    before = b.kernel.now_ns
    b.cpu_read(addr)
    assert b.kernel.now_ns - before < 1_000_000


def test_an_atomic_on_memory_that_cannot_move_is_refused(bench):
    b = bench("xe")
    addr = b.map(PMD)
    b.cpu_write(addr, 512)
    b.gpu_read(addr)
    b.vm.gpusvm.range_find(addr, addr + PAGE).migrate_devmem = False
    assert b.fault(addr, ACCESS_ATOMIC).errno == errno.EACCES


def test_the_cpu_takes_the_whole_allocation_back(bench):
    b = bench(thp="never")
    addr = b.map(PMD)
    b.cpu_write(addr, 512)
    b.gpu_write(addr, 3)
    b.cpu_read(addr + 7 * PAGE)
    assert b.device_pages(addr, 512) == 0
    assert b.mapped_pages(addr, 512) == 0
    assert b.kernel.stats.migrated_to_ram_bytes == PMD


def test_both_ways_from_a_page_to_its_object_agree(bench):
    for spec in ("xe:page_to_bo=zone_device_data", "xe:page_to_bo=offset", "xe:page_to_bo=xarray"):
        b = bench(spec, thp="never")
        addr = b.map(2 * PMD + M)
        b.cpu_write(addr, (2 * PMD + M) // PAGE)
        for place in (addr, addr + PMD, addr + 2 * PMD, addr + 2 * PMD + 64 * K):
            b.gpu_read(place)
            pfn = int(b.vm.page_table.pfns(place // PAGE, place // PAGE + 1)[0])
            bo = b.driver.bo_mapping.bo_of(pfn)
            assert pfn in b.driver.tiles[0].vram.pfns(bo, b.driver.tiles[0].dpagemap.pagemap).tolist()
            assert bo.devmem is page_zdd(b.memory, pfn).devmem
        b.cpu_read(addr)  # one object goes
        b.gpu_read(addr)


def test_more_than_one_batch_of_ranges_is_freed_at_exit(bench):
    b = bench(thp="never", vram_bytes=64 * M)
    addr = b.map(40 * M)
    b.cpu_write(addr, 40 * M // PAGE)
    for block in range(20):
        b.fault(addr + block * PMD)
    assert b.driver.describe()["bos"] == 20  # closing the bench checks that none is left


def test_populate_brings_an_interval_to_vram_across_holes_in_it(bench):
    b = bench(thp="never")
    addr = b.map(2 * PMD)
    b.cpu_write(addr, 1024)
    b.mm.munmap(addr + PMD, M)
    assert b.vm.populate(addr, addr + 2 * PMD) == PMD + M
    assert b.device_pages(addr, 512) == 512
    assert b.device_pages(addr + PMD + M, 256) == 256
    assert b.vm.populate(addr, addr + 2 * PMD) == 0
    assert b.gpu_read(addr, 3) == 0


def test_populate_ends_at_a_vma_that_is_not_for_the_gpu(bench):
    b = bench(thp="never")
    addr = b.map(PMD)
    b.cpu_write(addr, 512)
    b.mm.mprotect(addr + M, M, 1)
    with pytest.raises(KernelError) as caught:
        b.vm.populate(addr, addr + PMD)
    assert caught.value.errno == errno.EPERM
    assert b.device_pages(addr, 512) == 0  # the ranges are made before the first moves


def test_a_policy_may_wait_for_more_faults_and_an_atomic_does_not(bench):
    b = bench("xe:migrate_after=3")
    addr = b.map(2 * PMD)
    b.cpu_write(addr, 1024)
    for expected in ("system", "system", "device"):
        b.gpu_write(addr)
        assert b.where(addr) == expected
        if expected == "system":
            b.mm.mprotect(addr, PAGE, 1)  # the GPU has to fault again
            b.mm.mprotect(addr, PAGE, 3)
    b.gpu_atomic(addr + PMD)
    assert b.where(addr + PMD) == "device"
