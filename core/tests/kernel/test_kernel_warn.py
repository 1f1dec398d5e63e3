"""A driver's own assertions: the kernel goes on after a warning; an explored one tells main at once."""

import pytest
from gpusvm.errors import DriverError
from gpusvm.kernel import Kernel


def test_the_kernel_goes_on():
    with Kernel() as kernel:
        kernel.tracer.on = True
        kernel.warn("acme_fini", "3 pages are left")
        assert kernel.tracer.events == [(0, "main", "warn", "acme_fini", "3 pages are left")]


@pytest.mark.parametrize("inside", ["main", "task"])
def test_exploring_ends_where_an_assertion_does_not_hold(inside, place):
    log = []
    with Kernel(mode="explored") as kernel:

        def driver():
            kernel.warn("acme_fini", "3 pages are left")  # warns
            log.append("went on")

        if inside == "task":
            kernel.spawn(driver, name="driver")
        with pytest.raises(DriverError) as caught:
            driver() if inside == "main" else kernel.settle()
    task = "main" if inside == "main" else "driver"
    assert str(caught.value) == f"acme_fini: 3 pages are left; task {task!r} at {place('warns')}"
    assert (caught.value.assertion, caught.value.detail.split(";")[0]) == ("acme_fini", "3 pages are left")
    assert not log


def test_a_driver_may_warn_of_a_failure_that_was_injected():
    with Kernel(mode="explored") as kernel:
        kernel.arm("alloc")
        assert kernel.inject("alloc")
        kernel.warn("acme_probe", "no memory")


def test_unchecked_kernels_do_not_mind():
    with Kernel(mode="explored", checked=False) as kernel:
        kernel.warn("acme_fini", "3 pages are left")
