"""Two different drivers in one machine: one device's fault brings memory to the other's, and maps it there."""

import errno

import numpy as np
import pytest
from attrs import evolve
from gpusvm.driver import ACCESS_WRITE, read_spec
from gpusvm.drm import OwnerList
from gpusvm.errors import KernelError
from gpusvm.gpu import READ, REMOTE, WRITE
from gpusvm.machine import Machine, load_topology
from gpusvm.plugins import load_drivers
from gpusvm.testing import Fault
from gpusvm_svmdev.device import device_page
from gpusvm_xe.attributes import PreferredLocation
from gpusvm_xe.madvise import fd_of

PAGE, PMD = 4096, 2 << 20
BASE = 1 << 40
VPNS = (BASE // PAGE, BASE // PAGE + 512)


class To:
    """Place everything in one pagemap (`gpusvm.driver.FaultPolicy`)."""

    def __init__(self):
        self.pagemap = None

    def new_state(self, unit):
        return ()

    def place(self, fault, unit, state):
        return self.pagemap


@pytest.fixture
def machine():
    """Boot xe on gpu0 and svmdev on gpu1, whose memory xe's faults go to."""
    made = []

    def boot(*, owners=None, p2p=True):
        drivers = load_drivers()
        topology = load_topology("dual")
        topology = evolve(topology, device=tuple(evolve(device, p2p=p2p) for device in topology.device))
        policy = To()
        booted = Machine.boot(
            topology,
            [read_spec("xe", drivers), read_spec("svmdev", drivers)],
            vram_bytes=64 << 20,
            policies={0: policy},
            owners=owners,
        )
        policy.pagemap = booted.drivers[1].pagemaps()[0]
        process = booted.process("two")
        vms = [booted.open(process, device) for device in (0, 1)]
        process.mm.mmap(BASE, PMD, 3)
        touch(booted, write=True)
        made.append(booted)
        return booted, vms

    yield boot
    for each in made:
        each.teardown()
        assert each.memory.contents.mismatch_count == 0


def touch(booted, *, write):
    vpns = np.arange(*VPNS)
    booted.memory.cpu_access(booted.processes[0].mm, vpns, np.full(512, write))


def fault(booted, vm):
    one = Fault(BASE, ACCESS_WRITE, time_ns=booted.kernel.now_ns)
    assert vm.faults.submit([one]) == 1
    while one.errno is None:
        booted.kernel.sleep_ns(100_000)
    booted.kernel.settle()
    return one.errno


def used(booted):
    xe, svmdev = booted.drivers
    return [xe.tiles[0].vram.bos.used_bytes, svmdev.vram.pages_in_use * PAGE]


def test_xes_fault_populates_svmdev_and_maps_it_where_it_is(machine):
    booted, (vm, _) = machine(owners=OwnerList())
    xe, svmdev = booted.drivers
    assert fault(booted, vm) == 0
    assert used(booted) == [0, PMD]
    assert svmdev.mapped == 1
    assert set(vm.page_table.perms(*VPNS).tolist()) == {READ | WRITE | REMOTE}
    (range_,) = vm.ranges(BASE, BASE + PMD)
    assert device_page(int(range_.pages.dma_addr.addr[0]), 12) == (1, svmdev.vram.bos[0].first)
    assert xe.pm.rpm.holders == {"vm": 1}  # the pages are none of its own


def test_the_memory_goes_home_by_the_hand_of_the_device_that_has_it(machine):
    booted, (vm, _) = machine(owners=OwnerList())
    _, svmdev = booted.drivers
    fault(booted, vm)
    touch(booted, write=False)
    assert used(booted) == [0, 0]
    assert svmdev.mapped == 0
    assert svmdev.vram.released == 1
    assert not vm.page_table.perms(*VPNS).any()


def test_the_source_device_pushes_memory_to_the_other_drivers(machine):
    booted, (vm, other) = machine(owners=OwnerList())
    xe, _ = booted.drivers
    other.populate(BASE, BASE + PMD)
    assert used(booted) == [0, PMD]
    xe.pagemaps()[0].populate_mm(BASE, BASE + PMD, vm.mm, 0)
    booted.kernel.settle()
    assert used(booted) == [PMD, 0]
    assert booted.kernel.stats.migrated_to_ram_bytes == 0
    assert xe.pm.rpm.holders == {"vm": 1, "bo": 1}


def map_in_place(other):
    """Have svmdev map what it finds; the range."""
    ctx = other.device.pipeline._ctx(0)
    other.lock.lock()
    range_ = other.svm.range_find_or_insert(BASE, other.start, other.end, ctx)
    other.svm.range_get_pages(range_, ctx)
    other.lock.unlock()
    return range_


def test_svmdev_maps_xes_memory_where_it_is_and_the_reference_is_on_xe(machine):
    booted, (vm, other) = machine(owners=OwnerList())
    xe, _ = booted.drivers
    xe.pagemaps()[0].populate_mm(BASE, BASE + PMD, vm.mm, 0)
    assert xe.pm.rpm.holders == {"vm": 1, "bo": 1}
    range_ = map_in_place(other)
    assert used(booted) == [PMD, 0]
    assert range_.pages.dpagemap is xe.pagemaps()[0]
    assert other.device.device.dma.mapped_rows == 1
    touch(booted, write=False)
    booted.kernel.settle()
    assert xe.pm.rpm.holders == {"vm": 1}
    assert other.device.device.dma.mapped_rows == 0


def refusal(booted, driver):
    booted.kernel.settle()
    with pytest.raises(KernelError) as caught:
        booted.unload(driver)
    return caught.value.errno


def test_xe_is_not_unloaded_while_svmdev_maps_its_memory(machine):
    booted, (vm, other) = machine(owners=OwnerList())
    xe = booted.drivers[0]
    xe.pagemaps()[0].populate_mm(BASE, BASE + PMD, vm.mm, 0)
    range_ = map_in_place(other)
    booted.close(booted.processes[0], 0)
    assert refusal(booted, "xe") == errno.EAGAIN
    assert range_.pages.dpagemap.drm is xe.device
    touch(booted, write=False)
    booted.kernel.settle()
    assert range_.pages.dpagemap is None
    booted.unload("xe")
    assert set(booted.modules) == {"svmdev"}
    other.populate(BASE, BASE + PMD)
    assert booted.drivers[1].vram.pages_in_use == 512
    touch(booted, write=False)


def test_svmdevs_mapping_is_a_reference_on_xes_pagemap(machine):
    """The reference of the mapping alone: with the pages it goes when somebody invalidates them."""
    booted, (vm, other) = machine(owners=OwnerList())
    xe = booted.drivers[0]
    dpagemap = xe.pagemaps()[0]
    dpagemap.populate_mm(BASE, BASE + PMD, vm.mm, 0)
    before = dpagemap.refcount
    map_in_place(other)
    assert dpagemap.refcount == before + 1
    booted.close(booted.processes[0], 0)
    assert refusal(booted, "xe") == errno.EAGAIN
    booted.processes[0].mm.munmap(BASE, PMD)
    booted.kernel.settle()
    assert dpagemap.refcount == 0
    booted.unload("xe")


def test_svmdev_stays_loaded_and_goes_home_from_xes_mapping_with_its_device(machine):
    booted, (vm, _) = machine(owners=OwnerList())
    _, svmdev = booted.drivers
    fault(booted, vm)
    booted.close(booted.processes[0], 1)
    module = booted.modules["svmdev"]
    assert module.refcount == 1  # its own pagemap, whose pages xe maps
    assert refusal(booted, "svmdev") == errno.EBUSY
    (range_,) = vm.ranges(BASE, BASE + PMD)
    assert range_.pages.dpagemap is svmdev.dpagemap
    booted.remove(1)
    booted.kernel.settle()
    assert range_.pages.dpagemap is None
    assert not vm.page_table.perms(*VPNS).any()
    assert module.refcount == 0
    assert refusal(booted, "svmdev") == errno.EBUSY
    touch(booted, write=False)


@pytest.mark.parametrize("owners", [None, "one list without a path"])
def test_without_a_common_owner_the_memory_comes_home_to_be_mapped(machine, owners):
    booted, (vm, _) = machine(owners=OwnerList() if owners else None, p2p=not owners)
    assert fault(booted, vm) == 0
    assert used(booted) == [0, 0]
    assert booted.kernel.stats.migrated_to_device_bytes == PMD
    assert booted.drivers[1].mapped == 0


def test_madvise_takes_no_file_of_another_driver(machine):
    _, (vm, _) = machine(owners=OwnerList())
    with pytest.raises(KernelError) as caught:
        vm.madvise(BASE, BASE + PMD, preferred_location=PreferredLocation(devmem_fd=fd_of(1), region_instance=1))
    assert caught.value.errno == errno.ENOENT
