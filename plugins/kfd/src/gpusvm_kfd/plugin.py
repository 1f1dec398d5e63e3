"""Offer the driver kfd to gpusvm."""

from gpusvm.driver import DriverInfo
from gpusvm.plugins import hookimpl

from gpusvm_kfd.info import INFO


@hookimpl
def gpusvm_drivers() -> DriverInfo:
    """Return what describes kfd."""
    return INFO
