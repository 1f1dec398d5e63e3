"""What nouveau is charged for: each thing once."""

from gpusvm.driver import ACCESS_READ
from gpusvm.run.costs import load_profile
from gpusvm.testing import Fault

PAGE, PMD = 4096, 2 << 20


def test_a_suspend_is_charged_once(bench):
    b = bench(costs=load_profile("h100-pcie5").costs)
    b.kernel.sleep_ns(20_000_000_000)
    assert b.driver.device.pm.suspends == 1
    assert b.kernel.charged["pm_suspend"] == b.kernel.costs.pm_suspend


def test_every_entry_of_the_buffer_is_read_once(bench):
    b = bench(costs=load_profile("h100-pcie5").costs, thp="never")
    addr = b.map(PMD)
    b.cpu_write(addr, 8)
    early = [Fault(addr + i * PAGE, ACCESS_READ, time_ns=b.kernel.now_ns) for i in range(5)]
    late = [Fault(addr + i * PAGE, ACCESS_READ, time_ns=b.kernel.now_ns) for i in range(5, 8)]
    b.vm.faults.submit(early)
    b.kernel.sleep_ns(b.kernel.costs.gpu_fault_delivery // 2)
    b.vm.faults.submit(late)  # while the interrupt is on its way
    b.kernel.sleep_ns(10_000_000)
    assert [fault.errno for fault in early + late] == [0] * 8
    assert b.kernel.charged["fault_buffer_entry"] == 8 * b.kernel.costs.fault_buffer_entry
    assert b.kernel.charged["gpu_replay"] == b.kernel.costs.gpu_replay


def test_making_a_page_exclusive_is_charged_as_reading_one_entry(bench):
    b = bench(costs=load_profile("h100-pcie5").costs)
    addr = b.map(PMD)
    b.cpu_write(addr, 512)
    assert b.gpu_atomic(addr) == 1
    assert b.kernel.charged["get_pages_base"] == b.kernel.costs.get_pages_base
    assert b.kernel.charged["get_pages_per_entry"] == b.kernel.costs.get_pages_per_entry
