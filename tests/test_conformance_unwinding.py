"""The checks of teardown and of failures find what shipped drivers as written do wrong."""

import pytest
from gpusvm.conformance.checks import test_teardown_orders, test_what_fails
from gpusvm.conformance.lab import Lab
from gpusvm.plugins import load_drivers

DRIVERS = load_drivers()


@pytest.mark.parametrize(
    ("driver", "run"),
    [
        ("xe:quirk.evict_dying=as_written", "test_close_exit_shutdown_unload"),
        ("xe:quirk.evict_dying=as_written", "test_unplug_exit_close_shutdown_unload"),
        ("nouveau:quirk.freed_svmm=as_written", "test_close_shutdown_exit_unload"),
    ],
)
def test_an_order(driver, run):
    with pytest.raises(AssertionError, match="seed"):
        getattr(test_teardown_orders, run)(Lab(driver, DRIVERS))


@pytest.mark.parametrize(
    ("driver", "run"),
    [
        ("xe:quirk.create_unwind=as_written", "test_open_again"),
        ("nouveau:quirk.evict_unchecked=as_written", "test_shutdown"),
    ],
)
def test_a_failure(driver, run):
    with pytest.raises(AssertionError, match="failures break something; "):
        getattr(test_what_fails, run)(Lab(driver, DRIVERS))
