"""Offer the driver dmirror to gpusvm."""

from gpusvm.driver import DriverInfo
from gpusvm.plugins import hookimpl

from gpusvm_dmirror.info import INFO


@hookimpl
def gpusvm_drivers() -> DriverInfo:
    """Return what describes dmirror."""
    return INFO
