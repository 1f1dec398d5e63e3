"""Declare the hooks that a plugin may implement: few and cold, as a call costs thirty times a method call."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import pluggy

if TYPE_CHECKING:
    from gpusvm.driver import DriverInfo

__all__ = ["ENTRY_POINT_GROUP", "PROJECT", "gpusvm_drivers", "hookimpl"]

PROJECT: Final = "gpusvm"
ENTRY_POINT_GROUP: Final = "gpusvm.drivers"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def gpusvm_drivers() -> "DriverInfo | Sequence[DriverInfo]":  # type: ignore[empty-body]  # a hookspec has no body
    """Describe the drivers that the plugin supplies, without building anything."""
