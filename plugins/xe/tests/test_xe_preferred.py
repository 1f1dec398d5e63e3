"""Memory that a program wants on a certain tile or device: who may name which, and who is kept awake for it."""

import errno

import numpy as np
import pytest
from gpusvm.driver import ACCESS_ATOMIC, ACCESS_WRITE, read_spec
from gpusvm.errors import KernelError
from gpusvm.machine import Machine, load_topology
from gpusvm.testing import Fault
from gpusvm_xe.attributes import SYSTEM, PreferredLocation
from gpusvm_xe.madvise import fd_of
from gpusvm_xe.plugin import INFO
from gpusvm_xe.prefetch import CONSULT_MADVISE

PAGE, PMD = 4096, 2 << 20
BASE = 1 << 40


@pytest.fixture
def boot():
    made = []

    def make(topology, spec="xe", *, opened=None):
        machine = load_topology(topology)
        machine = Machine.boot(machine, [read_spec(spec, {"xe": INFO})] * len(machine.device), vram_bytes=64 << 20)
        process = machine.process("preferred")
        devices = range(len(machine.drivers)) if opened is None else opened
        vms = [machine.open(process, device) for device in devices]
        process.mm.mmap(BASE, PMD, 3)
        touch(machine, write=True)
        made.append(machine)
        return machine, vms

    yield make
    for machine in made:
        machine.teardown()
        assert machine.memory.contents.mismatch_count == 0


def touch(machine, *, write):
    vpns = np.arange(BASE // PAGE, BASE // PAGE + 512)
    machine.memory.cpu_access(machine.processes[0].mm, vpns, np.full(512, write))


def fault(machine, vm, access=ACCESS_WRITE):
    one = Fault(BASE, access, time_ns=machine.kernel.now_ns)
    assert vm.faults.submit([one]) == 1
    while one.errno is None:
        machine.kernel.sleep_ns(100_000)
    machine.kernel.settle()
    return one.errno


def used(machine):
    machine.kernel.settle()
    return [tile.vram.bos.used_bytes for driver in machine.drivers for tile in driver.tiles]


def at(device, region=1):
    return PreferredLocation(devmem_fd=fd_of(device), region_instance=region)


def refused(vm, location):
    with pytest.raises(KernelError) as caught:
        vm.madvise(BASE, BASE + PMD, preferred_location=location)
    return caught.value.errno


def test_a_fault_goes_to_the_tile_that_is_preferred(boot):
    machine, (vm,) = boot("two-tiles")
    vm.madvise(BASE, BASE + PMD, preferred_location=at(0, 2))
    assert fault(machine, vm) == 0
    assert used(machine) == [0, PMD]


def test_an_atomic_goes_to_the_tile_that_does_it(boot):
    machine, (vm,) = boot("two-tiles")
    vm.madvise(BASE, BASE + PMD, preferred_location=at(0, 2))
    assert fault(machine, vm, ACCESS_ATOMIC) == 0
    assert used(machine) == [PMD, 0]


@pytest.mark.parametrize(("quirk", "place"), [("as_written", [PMD, 0]), ("fixed", [0, PMD])])
def test_another_region_of_the_same_device_is_taken_for_no_change(boot, quirk, place):
    machine, (vm,) = boot("two-tiles", f"xe:quirk.same_fd={quirk}")
    vm.madvise(BASE, BASE + PMD, preferred_location=at(0, 1))
    vm.madvise(BASE, BASE + PMD, preferred_location=at(0, 2))
    assert fault(machine, vm) == 0
    assert used(machine) == place


def test_a_prefetch_maps_the_tile_that_was_asked_for_on_all(boot):
    machine, (vm,) = boot("two-tiles")
    assert vm.populate(BASE, BASE + PMD, region=2) == PMD
    assert used(machine) == [0, PMD]
    assert [table.perms(BASE // PAGE, BASE // PAGE + 1).tolist() for table in vm.page_tables] == [[7], [7]]
    assert vm.populate(BASE, BASE + PMD, region=2) == 0
    assert vm.populate(BASE, BASE + PMD, region=CONSULT_MADVISE) == PMD  # the default: the root tile
    assert used(machine) == [PMD, 0]


def test_the_fault_of_one_device_populates_the_others_memory_and_keeps_that_awake(boot):
    machine, (first, _) = boot("dual-p2p")
    first.madvise(BASE, BASE + PMD, preferred_location=at(1))
    assert fault(machine, first) == 0
    assert used(machine) == [0, PMD]
    assert [driver.pm.rpm.holders for driver in machine.drivers] == [{"vm": 1}, {"vm": 1, "bo": 1}]
    assert machine.drivers[0].device.dma.mapped_rows == 1
    touch(machine, write=False)
    machine.kernel.settle()
    assert [driver.pm.rpm.holders for driver in machine.drivers] == [{"vm": 1}, {"vm": 1}]
    assert machine.drivers[0].device.dma.mapped_rows == 0


def test_a_device_that_nobody_has_a_vm_on_is_woken_for_the_pages(boot):
    machine, (first,) = boot("dual-p2p", opened=[0])
    other = machine.drivers[1]
    assert other.pagemaps() == []
    first.madvise(BASE, BASE + PMD, preferred_location=at(1))
    assert len(other.pagemaps()) == 1
    machine.kernel.sleep_ns(5_000_000_000)
    assert other.pm.rpm.state != "D0"
    assert fault(machine, first) == 0
    machine.kernel.sleep_ns(5_000_000_000)
    assert (other.pm.rpm.state, other.pm.rpm.holders) == ("D0", {"bo": 1})
    touch(machine, write=False)
    machine.kernel.sleep_ns(5_000_000_000)
    assert other.pm.rpm.state != "D0"
    first.madvise(BASE, BASE + PMD, preferred_location=SYSTEM)
    assert other.pagemaps() == []


def test_a_device_without_a_path_is_refused(boot):
    machine, (first, second) = boot("dual")
    assert [driver.spec.p2p for driver in machine.drivers] == [frozenset(), frozenset()]
    assert refused(first, at(1)) == errno.ENOLINK
    assert refused(second, at(0)) == errno.ENOLINK
    first.madvise(BASE, BASE + PMD, preferred_location=at(0))


def test_a_device_that_is_unplugged_is_refused(boot):
    machine, (first, _) = boot("dual-p2p")
    machine.drivers[1].unplug()
    assert refused(first, at(1)) == errno.ENODEV


def test_a_device_that_is_unplugged_after_it_was_preferred_is_done_without(boot):
    machine, (first, _) = boot("dual-p2p")
    first.madvise(BASE, BASE + PMD, preferred_location=at(1))
    machine.drivers[1].unplug()
    assert fault(machine, first) == 0
    assert used(machine) == [0, 0]
    first.madvise(BASE, BASE + PMD, preferred_location=SYSTEM)


def test_an_integrated_device_has_no_memory_to_prefer_but_a_discrete_ones(boot):
    machine, vms = boot("discrete-integrated")
    (integrated,) = [n for n, driver in enumerate(machine.drivers) if not driver.spec.discrete]
    discrete = 1 - integrated
    assert refused(vms[discrete], at(integrated)) == errno.ENOENT
    assert fault(machine, vms[integrated]) == 0
    assert used(machine) == [0, 0]
    with pytest.raises(KernelError) as caught:
        vms[integrated].populate(BASE, BASE + PMD, region=1)
    assert caught.value.errno == errno.EINVAL
    assert vms[integrated].populate(BASE, BASE + PMD) == 0
