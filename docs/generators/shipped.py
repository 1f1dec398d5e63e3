"""Name the drivers that ship, and describe one without discovery."""

from importlib import import_module

from gpusvm.driver import DriverInfo

__all__ = ["SHIPPED", "info_of"]

SHIPPED = ("xe", "nouveau", "dmirror", "svmdev", "kfd")


def info_of(name: str) -> DriverInfo:
    """Return the description of a driver that ships; an installed plugin of somebody else's is not asked."""
    info: DriverInfo = import_module(f"gpusvm_{name}.plugin").gpusvm_drivers()
    return info
