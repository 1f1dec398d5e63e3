"""What a program says of a stretch of its memory, what that does at once, and what the next fault makes of it."""

import errno

import pytest
from gpusvm.driver import ACCESS_ATOMIC
from gpusvm.errors import KernelError
from gpusvm.gpu import ATOMIC, READ, REMOTE, WRITE
from gpusvm_xe.attributes import (
    ATOMIC_CPU,
    ATOMIC_DEVICE,
    ATOMIC_GLOBAL,
    ATOMIC_UNDEFINED,
    DEFAULT_DEVICE,
    MIGRATE_ONLY_SYSTEM_PAGES,
    SYSTEM,
    PreferredLocation,
)
from gpusvm_xe.madvise import fd_of
from gpusvm_xe.prefetch import CONSULT_MADVISE

PAGE, PMD = 4096, 2 << 20
OWN = PreferredLocation(devmem_fd=fd_of(0), region_instance=1)


def vmas(vm, addr):
    """Describe the GPU-VMAs but for where the address space begins and ends, relative to `addr`."""
    return [
        (
            None if vma.start == vm.start else (vma.start - addr) // PAGE,
            None if vma.end == vm.end else (vma.end - addr) // PAGE,
        )
        for vma in vm.vmas
    ]


def refused(call, *args, **kwargs):
    with pytest.raises(KernelError) as caught:
        call(*args, **kwargs)
    return caught.value.errno


# ---- the VMAs ---------------------------------------------------------------------------------------------------


def test_a_vm_begins_as_one_vma_with_nothing_wished_for(bench):
    vm = bench().vm
    (vma,) = vm.vmas
    assert (vma.start, vma.end, vma.autoreset, vma.attr.is_default) == (vm.start, vm.end, False, True)


def test_advice_splits_the_vma_and_each_piece_keeps_what_it_had(bench):
    b = bench()
    addr = b.map(PMD)
    b.vm.madvise(addr, addr + 8 * PAGE, atomic=ATOMIC_CPU)
    b.vm.madvise(addr + 4 * PAGE, addr + 12 * PAGE, preferred_location=SYSTEM)
    assert vmas(b.vm, addr) == [(None, 0), (0, 4), (4, 8), (8, 12), (12, None)]
    assert [(vma.attr.preferred.devmem_fd, vma.attr.atomic_access) for vma in b.vm.vmas] == [
        (DEFAULT_DEVICE, ATOMIC_UNDEFINED),
        (DEFAULT_DEVICE, ATOMIC_CPU),
        (-1, ATOMIC_CPU),
        (-1, ATOMIC_UNDEFINED),
        (DEFAULT_DEVICE, ATOMIC_UNDEFINED),
    ]


def test_advice_does_not_merge_what_is_alike_again(bench):
    b = bench()
    addr = b.map(PMD)
    b.vm.madvise(addr, addr + PAGE, atomic=ATOMIC_CPU)
    b.vm.madvise(addr, addr + PAGE, atomic=ATOMIC_UNDEFINED)
    assert vmas(b.vm, addr) == [(None, 0), (0, 1), (1, None)]


@pytest.mark.parametrize(
    ("start", "end", "what"),
    [
        (1, PAGE, {"atomic": ATOMIC_CPU}),
        (0, PAGE + 1, {"atomic": ATOMIC_CPU}),
        (PAGE, PAGE, {"atomic": ATOMIC_CPU}),
        (0, PAGE, {"atomic": 4}),
        (0, PAGE, {"atomic": -1}),
        (0, PAGE, {"preferred_location": PreferredLocation(devmem_fd=-2)}),
        (0, PAGE, {"preferred_location": PreferredLocation(devmem_fd=0, region_instance=1)}),
        (0, PAGE, {"preferred_location": PreferredLocation(devmem_fd=-1, region_instance=1)}),
        (0, PAGE, {"preferred_location": PreferredLocation(migration_policy=2)}),
        (0, PAGE, {}),
        (0, PAGE, {"preferred_location": SYSTEM, "atomic": ATOMIC_CPU}),
        (1 << 47, (1 << 47) + PAGE, {"atomic": ATOMIC_CPU}),
    ],
)
def test_advice_that_makes_no_sense_is_refused(bench, start, end, what):
    vm = bench().vm
    assert refused(vm.madvise, start, end, **what) == errno.EINVAL
    assert len(list(vm.vmas)) == 1


def test_advice_on_a_closed_vm_is_refused(bench):
    b = bench()
    b.vm.close()
    assert refused(b.vm.madvise, 0, PAGE, atomic=ATOMIC_CPU) == errno.ENOENT


def test_without_memory_for_a_vma_nothing_is_split(bench):
    b = bench()
    addr = b.map(PMD)
    b.vm.madvise(addr, addr + PMD, preferred_location=OWN)
    before = vmas(b.vm, addr)
    for nth in range(1, 5):
        b.kernel.arm("xe.vma", nth=nth)
        assert refused(b.vm.madvise, addr - PAGE, addr + PAGE, atomic=ATOMIC_CPU) == errno.ENOMEM
        assert vmas(b.vm, addr) == before
    b.vm.madvise(addr - PAGE, addr + PAGE, atomic=ATOMIC_CPU)
    assert vmas(b.vm, addr) == [(None, -1), (-1, 0), (0, 1), (1, 512), (512, None)]


# ---- what happens at once ---------------------------------------------------------------------------------------


def test_advice_zaps_and_flushes_and_moves_nothing(bench):
    b = bench()
    addr = b.map(PMD)
    b.cpu_write(addr)
    b.gpu_write(addr)
    flushes = b.kernel.stats.tlb_invalidations
    b.vm.madvise(addr, addr + PMD, atomic=ATOMIC_GLOBAL)
    assert b.kernel.stats.tlb_invalidations == flushes + 2  # both GTs
    assert not b.vm.page_table.perms(addr // PAGE, (addr + PMD) // PAGE).any()
    assert b.where(addr) == "device"
    assert b.gpu_write(addr) == 1
    assert b.kernel.stats.migrated_to_device_bytes == PMD


def test_advice_that_changes_nothing_zaps_nothing(bench):
    b = bench()
    addr = b.map(PMD)
    b.vm.madvise(addr, addr + PMD, preferred_location=OWN)
    b.gpu_write(addr)
    flushes = b.kernel.stats.tlb_invalidations
    b.vm.madvise(addr, addr + PMD, preferred_location=OWN)
    b.vm.madvise(addr, addr + PMD, atomic=ATOMIC_UNDEFINED)
    assert b.kernel.stats.tlb_invalidations == flushes
    assert b.gpu_write(addr) == 0


def test_only_the_vmas_that_change_are_zapped(bench):
    b = bench()
    addr = b.map(2 * PMD)
    b.vm.madvise(addr, addr + PMD, atomic=ATOMIC_DEVICE)
    b.gpu_write(addr)
    b.gpu_write(addr + PMD)
    b.vm.madvise(addr, addr + 2 * PMD, atomic=ATOMIC_DEVICE)
    assert b.gpu_write(addr) == 0
    assert b.gpu_write(addr + PMD) == 1


def test_a_range_across_the_cut_comes_home_and_is_removed_and_others_stay(bench):
    b = bench()
    addr = b.map(2 * PMD)
    b.gpu_write(addr)
    b.gpu_write(addr + PMD)
    b.vm.madvise(addr + PAGE, addr + 2 * PMD, atomic=ATOMIC_GLOBAL)
    assert b.where(addr) == "system"
    assert b.where(addr + PMD) == "device"
    assert [(range_.start - addr, range_.end - addr) for range_ in b.vm.gpusvm.ranges(addr, addr + 2 * PMD)] == [
        (PMD, 2 * PMD)
    ]


def test_a_range_never_reaches_beyond_its_vma(bench):
    b = bench()
    addr = b.map(PMD)
    b.vm.madvise(addr + 16 * PAGE, addr + 32 * PAGE, atomic=ATOMIC_GLOBAL)
    b.cpu_write(addr, 512)
    b.gpu_write(addr + 16 * PAGE)
    (range_,) = b.vm.gpusvm.ranges(addr, addr + PMD)
    assert (range_.start - addr, range_.end - addr) == (16 * PAGE, 32 * PAGE)


# ---- where memory goes ------------------------------------------------------------------------------------------


def test_memory_that_prefers_ram_is_mapped_there(bench):
    b = bench()
    addr = b.map(PMD)
    b.vm.madvise(addr, addr + PMD, preferred_location=SYSTEM)
    b.gpu_write(addr)
    assert b.where(addr) == "system"
    assert b.vm.page_table.perms(addr // PAGE, addr // PAGE + 1).tolist() == [READ | WRITE | REMOTE]


def test_where_ram_is_preferred_even_the_devices_own_pages_come_home(bench):
    b = bench()
    addr = b.map(PMD)
    b.cpu_write(addr)
    b.vm.madvise(addr, addr + PMD, preferred_location=SYSTEM)
    b.driver.pagemaps()[0].populate_mm(addr, addr + PMD, b.mm, 0)  # by another VM, say
    assert b.where(addr) == "device"
    b.gpu_write(addr)
    assert b.where(addr) == "system"


@pytest.mark.parametrize(("quirk", "place"), [("as_written", "device"), ("fixed", "system")])
def test_what_is_mapped_when_ram_becomes_preferred_stays_in_vram(bench, quirk, place):
    b = bench(f"xe:quirk.smem_stays={quirk}")
    addr = b.map(PMD)
    b.gpu_write(addr)
    b.vm.madvise(addr, addr + PMD, preferred_location=SYSTEM)
    assert b.gpu_write(addr) == 1
    assert b.where(addr) == place


def test_the_policy_of_migration_is_kept_and_decides_nothing(bench):
    b = bench()
    addr = b.map(PMD)
    only = PreferredLocation(devmem_fd=fd_of(0), region_instance=1, migration_policy=MIGRATE_ONLY_SYSTEM_PAGES)
    b.vm.madvise(addr, addr + PMD, preferred_location=only)
    assert b.vm.vmas.find(addr).attr.preferred == only
    b.gpu_write(addr)
    assert b.where(addr) == "device"


@pytest.mark.parametrize(
    ("fd", "region", "answer"), [(fd_of(0), 0, errno.ENOENT), (fd_of(0), 2, errno.ENOENT), (1, 1, errno.ENOENT)]
)
def test_a_file_or_region_that_there_is_not_is_refused(bench, fd, region, answer):
    b = bench()
    addr = b.map(PMD)
    location = PreferredLocation(devmem_fd=fd, region_instance=region)
    assert refused(b.vm.madvise, addr, addr + PMD, preferred_location=location) == answer
    assert len(list(b.vm.vmas)) == 1


def test_after_unplug_advice_is_refused(bench):
    b = bench()
    b.driver.unplug()
    assert refused(b.vm.madvise, 0, PAGE, atomic=ATOMIC_CPU) == errno.ENODEV


def test_a_vma_holds_the_pagemap_that_it_prefers(bench):
    b = bench()
    addr = b.map(PMD)
    dpagemap = b.driver.tiles[0].dpagemap
    before = dpagemap.refcount
    b.vm.madvise(addr, addr + 2 * PAGE, preferred_location=OWN)
    assert dpagemap.refcount == before + 1
    b.vm.madvise(addr + PAGE, addr + 2 * PAGE, atomic=ATOMIC_CPU)  # splits it
    assert dpagemap.refcount == before + 2
    b.vm.madvise(addr, addr + 2 * PAGE, preferred_location=SYSTEM)
    assert dpagemap.refcount == before


# ---- atomics ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("whose", [ATOMIC_UNDEFINED, ATOMIC_GLOBAL])
def test_an_atomic_brings_memory_to_vram_whatever_it_prefers(bench, whose):
    b = bench()
    addr = b.map(PMD)
    b.vm.madvise(addr, addr + PMD, atomic=whose)
    b.vm.madvise(addr, addr + PMD, preferred_location=SYSTEM)
    b.cpu_write(addr)  # a hole would be migrated twice, the timeslice between
    b.gpu_atomic(addr)
    assert b.where(addr) == "device"


def test_an_atomic_that_is_the_devices_is_done_in_ram(bench):
    b = bench()
    addr = b.map(PMD)
    b.vm.madvise(addr, addr + PMD, atomic=ATOMIC_DEVICE)
    b.vm.madvise(addr, addr + PMD, preferred_location=SYSTEM)
    b.gpu_atomic(addr)
    assert b.where(addr) == "system"
    assert b.vm.page_table.perms(addr // PAGE, addr // PAGE + 1).tolist() == [READ | WRITE | ATOMIC | REMOTE]


def test_a_device_without_atomics_on_ram_needs_vram_all_the_same(bench):
    b = bench("xe:device_atomics_on_smem=0")
    addr = b.map(PMD)
    b.vm.madvise(addr, addr + PMD, atomic=ATOMIC_DEVICE)
    b.vm.madvise(addr, addr + PMD, preferred_location=SYSTEM)
    b.cpu_write(addr)  # a hole would be migrated twice, the timeslice between
    b.gpu_atomic(addr)
    assert b.where(addr) == "device"


def test_an_atomic_on_memory_whose_atomics_are_the_cpus_is_refused(bench):
    b = bench()
    addr = b.map(PMD)
    b.vm.madvise(addr, addr + PMD, atomic=ATOMIC_CPU)
    assert b.fault(addr, ACCESS_ATOMIC).errno == errno.EACCES
    b.gpu_write(addr)
    assert b.where(addr) == "device"
    assert b.vm.page_table.perms(addr // PAGE, addr // PAGE + 1).tolist() == [READ | WRITE]


# ---- prefetch ---------------------------------------------------------------------------------------------------


def test_a_prefetch_to_ram_brings_home_what_is_mapped_in_vram(bench):
    b = bench()
    addr = b.map(PMD)
    b.gpu_write(addr)
    assert b.vm.populate(addr, addr + PMD, region=0) == PMD
    assert b.where(addr) == "system"
    assert b.vm.populate(addr, addr + PMD, region=0) == 0


def test_a_prefetch_by_advice_goes_where_each_vma_says(bench):
    b = bench()
    addr = b.map(3 * PMD)
    b.vm.madvise(addr + PMD, addr + 2 * PMD, preferred_location=SYSTEM)
    assert b.vm.populate(addr, addr + 3 * PMD, region=CONSULT_MADVISE) == 2 * PMD
    assert [b.where(addr + n * PMD) for n in range(3)] == ["device", "system", "device"]


def test_a_prefetch_to_a_region_overrides_the_advice(bench):
    b = bench()
    addr = b.map(PMD)
    b.vm.madvise(addr, addr + PMD, preferred_location=SYSTEM)
    assert b.vm.populate(addr, addr + PMD, region=1) == PMD
    assert b.where(addr) == "device"


@pytest.mark.parametrize("region", [2, -2])
def test_a_prefetch_to_a_region_that_there_is_not_is_refused(bench, region):
    b = bench()
    addr = b.map(PMD)
    assert refused(b.vm.populate, addr, addr + PMD, region=region) == errno.EINVAL


def test_a_prefetch_that_cannot_be_done_succeeds(bench):
    b = bench()
    addr = b.map(PMD)
    b.kernel.arm("bo.alloc", nth=1, times=2)
    assert b.vm.populate(addr, addr + PMD, region=1) == 0
    assert b.where(addr) == "none"
    assert not b.vm.page_table.perms(addr // PAGE, addr // PAGE + 1).any()
