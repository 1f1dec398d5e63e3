"""Offer the driver kfd to gpusvm."""

from gpusvm.driver import DriverInfo
from gpusvm.driver.operations import OperationTarget
from gpusvm.plugins import hookimpl

from gpusvm_kfd.info import INFO


@hookimpl
def gpusvm_drivers() -> DriverInfo:
    """Return what describes kfd."""
    return INFO


@hookimpl
def gpusvm_operations() -> OperationTarget:
    """Return kfd's own ioctls."""
    from gpusvm_kfd.operations import OPERATIONS

    return OPERATIONS
