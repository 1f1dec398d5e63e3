"""Declare the hooks that a plugin may implement: few and cold, as a call costs thirty times a method call."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import pluggy

if TYPE_CHECKING:
    from gpusvm.driver import DriverInfo
    from gpusvm.driver.operations import OperationTarget

__all__ = ["ENTRY_POINT_GROUP", "PROJECT", "gpusvm_drivers", "gpusvm_operations", "hookimpl"]

PROJECT: Final = "gpusvm"
ENTRY_POINT_GROUP: Final = "gpusvm.drivers"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def gpusvm_drivers() -> "DriverInfo | Sequence[DriverInfo]":  # type: ignore[empty-body]  # a hookspec has no body
    """Describe the drivers that the plugin supplies, without building anything."""


@hookspec
def gpusvm_operations() -> "OperationTarget | Sequence[OperationTarget]":  # type: ignore[empty-body]  # as above
    """Say which recorded operations of a real kernel the plugin's drivers can execute, for `gpusvm realkernel`.

    A plugin may leave it out. Each target names a driver that `gpusvm_drivers` of the same plugin returns.
    """
