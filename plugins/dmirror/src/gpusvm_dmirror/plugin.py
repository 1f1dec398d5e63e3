"""Offer the driver dmirror to gpusvm."""

from gpusvm.driver import DriverInfo
from gpusvm.driver.operations import OperationTarget
from gpusvm.plugins import hookimpl

from gpusvm_dmirror.info import INFO


@hookimpl
def gpusvm_drivers() -> DriverInfo:
    """Return what describes dmirror."""
    return INFO


@hookimpl
def gpusvm_operations() -> OperationTarget:
    """Return how recorded operations on dmirror are done."""
    from gpusvm_dmirror.operations import OPERATIONS

    return OPERATIONS
