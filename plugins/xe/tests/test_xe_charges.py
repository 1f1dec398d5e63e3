"""What xe is charged for: each thing once."""

from gpusvm.run.costs import load_profile


def test_a_suspend_is_charged_once(bench):
    b = bench(costs=load_profile("h100-pcie5").costs)
    b.vm.close()
    b.kernel.sleep_ns(5_000_000_000)
    assert b.driver.device.pm.suspends == 1
    assert b.kernel.charged["pm_suspend"] == b.kernel.costs.pm_suspend
