"""Register the functions that check each invariant."""

from collections.abc import Callable
from typing import Any, Final, TypeVar

from gpusvm.check.invariants import INVARIANTS

__all__ = ["RULES", "rule"]

Function = TypeVar("Function", bound=Callable[..., Any])

RULES: Final[dict[int, list[Callable[..., Any]]]] = {number: [] for number in INVARIANTS}
"""By number, the functions that report a violation of it."""


def rule(*numbers: int) -> Callable[[Function], Function]:
    """Say which invariants a function checks."""

    def register(function: Function) -> Function:
        for number in numbers:
            RULES[number].append(function)
        return function

    return register
