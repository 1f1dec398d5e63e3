"""Offer the driver svmdev to gpusvm."""

from gpusvm.driver import DriverInfo
from gpusvm.driver.operations import OperationTarget
from gpusvm.plugins import hookimpl

from gpusvm_svmdev.info import INFO


@hookimpl
def gpusvm_drivers() -> DriverInfo:
    """Return what describes svmdev."""
    return INFO


@hookimpl
def gpusvm_operations() -> OperationTarget:
    """Return how recorded operations on svmdev are done."""
    from gpusvm_svmdev.operations import OPERATIONS

    return OPERATIONS
