"""Runtime PM: a reference for the ioctl, none for pages, faults and copies."""

import pytest
from gpusvm.driver import ACCESS_READ
from gpusvm.drm import D0, D3COLD
from gpusvm.testing import Fault

K, M = 1 << 10, 1 << 20
PAGE, PMD = 4 * K, 2 * M
SECOND = 1_000_000_000


def resident(b):
    addr = b.map(PMD)
    b.cpu_write(addr, 512)
    b.vm.populate(addr, addr + PMD)
    assert b.device_pages(addr, 512) == 512
    return addr


def test_resident_pages_hold_no_reference(bench):
    b = bench()
    resident(b)
    rpm = b.driver.device.pm
    assert (rpm.usage_count, rpm.refs_max, rpm.holders) == (0, 1, {})


def test_the_device_suspends_under_its_pages_after_five_seconds(bench):
    b = bench()
    addr = resident(b)
    rpm = b.driver.device.pm
    b.kernel.sleep_ns(5 * SECOND - 1_000)
    assert rpm.state is D0
    b.kernel.sleep_ns(2_000)
    assert rpm.state is D3COLD
    assert b.where(addr) == "device"  # the CPU's page tables keep naming device pages
    assert [chunk.bo.pinned for chunk in b.driver.dmem.pool.chunks] == [False]


def test_the_next_ioctl_wakes_it_and_pins_the_chunks_again(bench):
    b = bench()
    resident(b)
    b.kernel.sleep_ns(6 * SECOND)
    other = b.map(PMD)
    b.vm.populate(other, other + PMD)
    rpm = b.driver.device.pm
    assert (rpm.state, rpm.resumes, rpm.usage_count) == (D0, 1, 0)
    assert [chunk.bo.pinned for chunk in b.driver.dmem.pool.chunks] == [True]


def test_a_fault_is_of_work_that_an_ioctl_launched(bench):
    b = bench()
    addr = b.map(PMD)
    b.kernel.sleep_ns(6 * SECOND)
    b.gpu_read(addr)
    assert b.driver.device.pm.resumes == 1
    assert b.driver.device.pm.usage_count == 0


@pytest.mark.parametrize(("quirk", "resumes", "hazards"), [("as_written", 0, 1), ("fixed", 1, 0)])
def test_a_cpu_fault_wakes_nobody_as_written(bench, quirk, resumes, hazards):
    b = bench(f"nouveau:quirk.sleeping_copy={quirk}")
    addr = resident(b)
    b.kernel.sleep_ns(6 * SECOND)
    b.cpu_read(addr)
    assert b.where(addr) == "system"
    assert b.driver.device.pm.resumes == resumes
    assert b.driver.describe()["sleeping_copies"] == hazards


def test_without_runpm_it_never_sleeps(bench):
    b = bench("nouveau:runpm=off")
    resident(b)
    b.kernel.sleep_ns(60 * SECOND)
    assert b.driver.device.pm.state is D0


def test_the_end_of_the_driver_wakes_the_device_first(bench):
    b = bench()
    addr = resident(b)
    b.kernel.sleep_ns(6 * SECOND)
    b.vm.close()
    b.driver.pm.rpm.get("test")
    assert b.driver.device.pm.state is D0
    b.driver.pm.rpm.put("test")
    assert b.where(addr) == "device"


def test_a_fault_that_nobody_serves_any_more_gives_its_reference_back(bench):
    """The GPU goes on until its context is gone; what it raises then, the driver's end drops."""
    b = bench(quirks="fixed")
    addr = b.map(4096)
    b.vm.close()
    b.process.vms.clear()
    b.vm.faults.submit([Fault(addr, ACCESS_READ, time_ns=b.kernel.now_ns)])
    assert b.driver.device.pm.holders == {"fault": 1}
    b.driver.shutdown()
    assert b.driver.device.pm.holders == {}
    b.machine.drivers.clear()
