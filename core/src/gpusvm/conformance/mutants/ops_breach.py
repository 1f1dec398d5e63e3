"""Say what is broken of the ops of drm_gpusvm and drm_pagemap."""

from collections.abc import Callable
from errno import EDOM
from typing import Any

from gpusvm.conformance.mutants.broken import BrokenDriver
from gpusvm.conformance.mutants.mutant import Swap
from gpusvm.errors import KernelError

__all__ = ["another_errno", "broken"]

By = Callable[[Any], Any]


def broken(id_: str, rule: str, driver: str, *swaps: tuple[str, By]) -> BrokenDriver:
    """Make a driver, or a core under it, that breaks a rule by replacing (target, by)."""
    return BrokenDriver(id=id_, rule=rule, driver=driver, swaps=tuple(Swap(target, by) for target, by in swaps))


def another_errno(guard: Any) -> Any:
    """Be the `Swap.by` of what raises KernelErrors: they all have an errno then that nobody states."""

    def call(*args: Any, **named: Any) -> Any:
        try:
            return guard(*args, **named)
        except KernelError as error:
            raise KernelError(EDOM, "whatever it was") from error

    return call
