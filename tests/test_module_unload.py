"""Modules of the drivers: who holds them, what unloading one answers, and that nothing of it is left."""

import errno

import attrs
import pytest
from gpusvm.errors import KernelError, UseAfterFreeError
from gpusvm.machine import load_topology
from gpusvm.mm import Geometry
from gpusvm.testing import Bench
from gpusvm_xe.attributes import PreferredLocation
from gpusvm_xe.madvise import fd_of

SMALL = Geometry(pmd_order=2)
PAGE, PMD = SMALL.page_size, SMALL.pmd_size
SINGLE = attrs.evolve(load_topology("single"), ram_bytes=4 << 20)
DUAL = attrs.evolve(load_topology("dual-p2p"), ram_bytes=4 << 20)
UNLOADABLE = ["xe", "nouveau", "dmirror"]


@pytest.fixture
def bench():
    made = []

    def make(driver, **options):
        options = {"topology": SINGLE, "quirks": "fixed", **options}
        made.append(Bench(driver, geometry=SMALL, vram_bytes=16 * PMD, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


def refusal(call, *args):
    with pytest.raises(KernelError) as error:
        call(*args)
    return error.value.errno


def held(b):
    return {holder.strip("'"): count for kind, holder, count in b.kernel.ledger.entries() if kind == "module"}


@pytest.mark.parametrize("driver", UNLOADABLE)
def test_an_open_file_holds_the_module(bench, driver):
    b = bench(driver)
    assert held(b)["file"] == 1
    assert refusal(b.machine.unload, driver) == errno.EAGAIN
    b.machine.close(b.process)
    b.kernel.settle()
    assert held(b) == {}
    b.machine.unload(driver)
    assert b.machine.removed == {0}
    assert refusal(b.machine.open, b.process) == errno.ENODEV
    assert refusal(b.machine.unload, driver) == errno.ENOENT


def test_a_file_whose_address_space_is_gone_is_a_file(bench):
    b = bench("xe")
    b.vm.close()
    b.kernel.settle()
    assert held(b) == {"file": 1}
    assert refusal(b.machine.unload, "xe") == errno.EAGAIN
    b.machine.release(b.process, 0)
    b.machine.unload("xe")


def test_pages_of_a_drm_pagemap_hold_the_module_when_the_file_is_closed(bench):
    b = bench("xe")
    addr = b.map(PMD)
    b.cpu_write(addr, 4)
    b.vm.populate(addr, addr + PMD)
    child = b.mm.fork()
    b.machine.close(b.process)
    b.kernel.settle()
    assert held(b) == {"drm_pagemap": 1}
    assert refusal(b.machine.unload, "xe") == errno.EAGAIN
    b.cpu_read(addr)
    b.kernel.settle()
    assert held(b) == {}
    b.machine.unload("xe")
    child.exit()


@pytest.mark.parametrize("driver", ["nouveau", "dmirror"])
def test_pages_of_no_drm_pagemap_come_home_when_the_module_goes(bench, driver):
    b = bench(driver)
    addr = b.map(PMD)
    b.cpu_write(addr, 4)
    b.vm.populate(addr, addr + PMD)
    b.machine.close(b.process)
    b.machine.unload(driver)
    assert b.device_pages(addr, 4) == 0
    b.cpu_read(addr, 4)


def test_a_module_without_an_exit_function_stays(bench):
    b = bench("svmdev")
    b.machine.close(b.process)
    b.kernel.settle()
    assert held(b) == {"drm_pagemap": 1}  # its own, for as long as it has its device
    assert refusal(b.machine.unload, "svmdev") == errno.EBUSY
    b.machine.remove()
    b.kernel.settle()
    assert held(b) == {}
    assert refusal(b.machine.unload, "svmdev") == errno.EBUSY


def test_a_pagemap_that_is_offered_for_good_holds_its_own_driver(bench):
    """What a driver has to make on demand, as xe does, if it wants to be unloaded."""
    b = bench("nouveau")
    b.machine.close(b.process)
    assert b.driver.pagemaps()
    assert refusal(b.machine.unload, "nouveau") == errno.EAGAIN
    b.machine.remove()
    b.kernel.settle()
    b.machine.unload("nouveau")


@pytest.mark.parametrize(
    ("driver", "order"), [("xe", ["gpu1", "gpu0"]), ("nouveau", ["gpu1", "gpu0"]), ("dmirror", ["gpu0", "gpu1"])]
)
def test_one_module_drives_all_devices_and_leaves_them_in_its_order(bench, driver, order):
    b = bench(driver, topology=DUAL)
    gone = []
    for each in b.machine.drivers:
        each.device.drmm_add_action(lambda name=each.device.name: gone.append(name))
    b.machine.close(b.process, 0)
    b.kernel.settle()
    assert refusal(b.machine.unload, driver) == errno.EAGAIN
    b.machine.close(b.process, 1)
    b.kernel.settle()
    b.machine.unload(driver)
    assert gone == order


def test_a_device_that_others_prefer_outlives_its_driver(bench):
    b = bench("xe", topology=DUAL)
    addr = b.map(PMD)
    b.vm.madvise(addr, addr + PMD, preferred_location=PreferredLocation(devmem_fd=fd_of(1), region_instance=1))
    other = b.machine.drivers[1].device
    gone = []
    other.drmm_add_action(lambda: gone.append(other.name))
    b.machine.close(b.process, 1)
    b.machine.remove(1)
    b.kernel.settle()
    assert gone == []
    assert held(b) == {"file": 1, "drm_pagemap": 2}
    b.machine.close(b.process, 0)
    b.kernel.settle()
    assert gone == ["gpu1"]
    assert held(b) == {}
    b.machine.unload("xe")


def test_nobody_calls_what_was_unloaded(bench):
    b = bench("xe", mode="explored")
    b.machine.close(b.process)
    b.kernel.settle()
    driver = b.driver
    b.machine.unload("xe")
    with pytest.raises(UseAfterFreeError, match=r"^use after free: task 'main' reads \.evict of XeDriver at "):
        driver.evict()
