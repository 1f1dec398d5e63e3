"""Sleeping in timed mode, above all where nobody else is due before and no other task has to be switched to."""

import pytest
from gpusvm.kernel import Kernel


def test_a_sleep_that_nobody_interrupts_takes_its_time():
    with Kernel(mode="timed") as kernel:
        kernel.sleep_ns(700)
        assert kernel.now_ns == 700


def test_who_is_due_at_the_end_of_a_sleep_goes_before_the_sleeper():
    order = []
    with Kernel(mode="timed") as kernel:

        def other():
            kernel.sleep_ns(100)
            order.append("other")

        task = kernel.spawn(other, name="other")
        kernel.sleep_ns(0)  # it begins, and is due at 100
        kernel.sleep_ns(100)
        order.append("main")
        task.join()
    assert order == ["other", "main"]


def test_a_daemon_that_sleeps_does_not_hold_up_who_settles():
    ticks = []
    with Kernel(mode="timed") as kernel:

        def tick():
            for _ in range(10):
                kernel.sleep_ns(1000)
                ticks.append(kernel.now_ns)

        kernel.spawn(tick, name="tick", daemon=True)
        kernel.settle()
        assert (kernel.now_ns, ticks) == (0, [])


def test_a_sleep_of_main_tells_of_a_task_that_failed_while_it_waited_for_a_lock():
    with Kernel(mode="timed") as kernel:
        mutex = kernel.mutex("m")

        def holder():
            with mutex:
                kernel.sleep_ns(100)
            raise ValueError("after the lock")

        kernel.spawn(holder, name="holder")
        kernel.sleep_ns(10)
        with mutex:
            pass
        with pytest.raises(ValueError, match="after the lock"):
            kernel.sleep_ns(10)


def test_nobody_sleeps_on_when_the_kernel_ends():
    passed = []
    with Kernel(mode="timed") as kernel:

        def sleeper():
            try:
                kernel.sleep_ns(1000)
            finally:
                kernel.sleep_ns(1)
                passed.append("slept again")

        kernel.spawn(sleeper, name="sleeper")
        kernel.sleep_ns(10)
    assert passed == []
