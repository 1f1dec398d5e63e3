"""Put a user's own class in the place of one of a driver's strategies: ``xe:pm=mypackage:MyPolicy``.

A driver says in `DriverInfo.strategies` which keys it takes a class for, and what the class has to be able to do. The
class is built once for each device (or dev_pagemap), with the arguments that the strategy's protocol states.
"""

import importlib
import inspect
import re
from pathlib import Path
from typing import Any, Final

from gpusvm.errors import InputError, nearest
from gpusvm.signatures import protocol_problems

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
        said = f"{type(error).__name__}: {error}"
        raise InputError(f"{where}: cannot import {named['module']!r}: {_raised_at(error)}{said}") from error
    for part in named["name"].split("."):
        if not hasattr(found, part):
            known = [name for name, each in vars(found).items() if isinstance(each, type)]
            raise InputError(f"{where}: {named['module']} has no {part!r}; {nearest(part, sorted(known))}")
        found = getattr(found, part)
    problems = strategy_problems(found, protocol)
    if problems:
        raise InputError(f"{where}: {_distribution(named['module'])}{'; '.join(problems)}")
    checked: type = found
    return checked


def strategy_problems(candidate: object, protocol: type) -> list[str]:
    """Say why `candidate` cannot be called as `protocol` says, each with file and line; empty if it can."""
    if not isinstance(candidate, type):
        return [f"expected a class, got {candidate!r}"]
    return [f"{_defined_at(found)}{problem}" for found, problem in protocol_problems(candidate, protocol)]


def _distribution(module: str) -> str:
    """Name the distribution, and its version, that a module is of; empty if it is just a file."""
    from importlib.metadata import packages_distributions, version

    names = packages_distributions().get(module.partition(".")[0])
    return f"{names[0]} {version(names[0])}: " if names else ""


def _defined_at(found: object) -> str:
    """Say in which line of which file a class or function is; empty for what has none."""
    try:
        return f"{inspect.getsourcefile(found)}:{inspect.getsourcelines(found)[1]}: "  # type: ignore[arg-type]  # or TypeError
    except (OSError, TypeError):
        return ""


def _raised_at(error: Exception) -> str:
    """Say where in the user's code an import failed; empty where no frame of it is left, as for a syntax error."""
    at, place = error.__traceback__, ""
    while at is not None:
        file = at.tb_frame.f_code.co_filename
        if file != __file__ and not file.startswith("<") and "importlib" not in Path(file).parts:
            place = f"{file}:{at.tb_lineno}: "
        at = at.tb_next
    return place
