"""Offer the driver nouveau to gpusvm."""

from gpusvm.driver import DriverInfo
from gpusvm.plugins import hookimpl

from gpusvm_nouveau.info import INFO


@hookimpl
def gpusvm_drivers() -> DriverInfo:
    """Return what describes nouveau."""
    return INFO
