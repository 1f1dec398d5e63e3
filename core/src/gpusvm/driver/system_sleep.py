"""kernel/power/suspend.c and main.c, as of Linux 7.3.4: the whole system sleeps, and its devices with it."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpusvm.driver.protocols import Driver, RuntimePmPolicy
    from gpusvm.kernel import Kernel

__all__ = ["system_sleep"]


def _nothing() -> None:
    """Freeze nobody: the caller is all of user space."""


def system_sleep(
    kernel: "Kernel",
    drivers: "Sequence[Driver]",
    *,
    milliseconds: int = 0,
    freeze: Callable[[], None] = _nothing,
    thaw: Callable[[], None] = _nothing,
) -> None:
    """Put the system to sleep for a while (pm_suspend): drivers prepare, user space is frozen, the devices are
    suspended, the last first, and all of it is undone in the opposite order.

    `freeze` waits until no thread of a process is in the kernel and keeps them out until `thaw`. The KernelError of a
    device that refuses comes out, once those that sleep already are awake again and user space goes on. Devices that
    are unplugged take no part.
    """
    policies = [driver.pm for driver in drivers if not driver.device.unplugged]
    for policy in policies:
        policy.prepare()
    try:
        freeze()
        asleep: list[RuntimePmPolicy] = []
        try:
            for policy in reversed(policies):
                policy.suspend()
                asleep.append(policy)
            if kernel.tracer.on:
                kernel.tracer.emit("system_sleep", milliseconds)
            kernel.sleep_ns(milliseconds * 1_000_000 or 1)
        finally:
            for policy in reversed(asleep):
                policy.resume()
            thaw()
    finally:
        for policy in policies:
            policy.complete()
