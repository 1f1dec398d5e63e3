"""The checks of power notice a driver that lets its device sleep under the pages that are on it."""

import pytest
from gpusvm.conformance.checks import test_power as power
from gpusvm.conformance.lab import Lab
from gpusvm.driver.power import ChangedPm
from gpusvm.errors import GpusvmError
from gpusvm.plugins import load_drivers


class ForgetsPages(ChangedPm):
    """Take no reference for the pages of a buffer object."""

    def pages_present(self, bo):
        pass

    def pages_gone(self, bo):
        pass


def test_a_device_that_sleeps_with_pages():
    xe = load_drivers()["xe"]
    power.test_awake(Lab("xe", {"xe": xe}))
    with pytest.raises((AssertionError, GpusvmError), match="sleeps"):
        power.test_awake(Lab("xe", {"xe": xe.variant(pm=ForgetsPages)}))
