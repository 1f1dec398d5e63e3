"""Put a user's own class in the place of one of a driver's strategies: ``xe:pm=mypackage:MyPolicy``.

A driver says in `DriverInfo.strategies` which keys it takes a class for, and what the class has to be able to do. The
class is built once for each device (or dev_pagemap), with the arguments that the strategy's protocol states.
"""

import importlib
import re
from typing import Any, Final

from gpusvm.driver.signatures import protocol_problems
from gpusvm.errors import InputError, nearest

__all__ = ["load_strategy", "strategy_problems"]

_CLASS_NAME: Final = re.compile(r"(?P<module>[A-Za-z_][\w.]*):(?P<name>[A-Za-z_][\w.]*)\Z")
"""How a spec string names a class: ``package.module:Class``."""


def load_strategy(where: str, value: str, protocol: type) -> type:
    """Import the class that a spec string names. InputError, beginning with `where`, if there is none, or if it cannot
    be called as `protocol` says.
    """
    named = _CLASS_NAME.match(value)
    if named is None:
        raise InputError(f"{where}: expected MODULE:CLASS, got {value!r}")
    try:
        found: Any = importlib.import_module(named["module"])
    except Exception as error:
        raise InputError(f"{where}: cannot import {named['module']!r}: {type(error).__name__}: {error}") from error
    for part in named["name"].split("."):
        if not hasattr(found, part):
            known = [name for name, each in vars(found).items() if isinstance(each, type)]
            raise InputError(f"{where}: {named['module']} has no {part!r}; {nearest(part, sorted(known))}")
        found = getattr(found, part)
    problems = strategy_problems(found, protocol)
    if problems:
        raise InputError(f"{where}: {'; '.join(problems)}")
    checked: type = found
    return checked


def strategy_problems(candidate: object, protocol: type) -> list[str]:
    """Say why `candidate` cannot be built and called as `protocol` says; empty if it can."""
    if not isinstance(candidate, type):
        return [f"expected a class, got {candidate!r}"]
    return [problem for _, problem in protocol_problems(candidate, protocol)]
