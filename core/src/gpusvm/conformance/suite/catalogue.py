"""Find the checks that come with gpusvm, and choose among them."""

import functools
import pkgutil
import sys
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from importlib import import_module
from typing import Final

from gpusvm.conformance.suite.check import PROFILES, Check, check_of
from gpusvm.errors import InputError, ModelError, nearest

__all__ = ["PACKAGE", "catalogue", "choose", "forget"]

PACKAGE: Final = "gpusvm.conformance.checks"

_MANY: Final = 12


@functools.cache
def catalogue() -> tuple[Check, ...]:
    """Return the checks, by module, in the order in which they are written. ModelError if two have one id."""
    found: dict[str, Check] = {}
    package = import_module(PACKAGE)
    for name in sorted(f"{PACKAGE}.{each.name}" for each in pkgutil.iter_modules(package.__path__)):
        for value in vars(import_module(name)).values():
            check = check_of(value)
            if check is None or value.__module__ != name:
                continue
            other = found.setdefault(check.id, check)
            if other is not check:
                raise ModelError(f"two checks are called {check.id!r}: {other.place} and {check.place}")
    return tuple(found.values())


def forget() -> None:
    """Let the modules of the checks be imported anew: pytest puts more into an assertion of what it imports itself."""
    for name in [name for name in sys.modules if name.startswith(f"{PACKAGE}.")]:
        del sys.modules[name]


def choose(checks: Iterable[Check], *, globs: Sequence[str] = (), profiles: Sequence[str] = ()) -> list[Check]:
    """Return the checks of these profiles whose id one of the globs fits; no glob and no profile is all.

    InputError, in one line, for a profile that there is not, and for a glob that fits nothing.
    """
    known = list(checks)
    for name in profiles:
        if name not in PROFILES:
            raise InputError(f"unknown profile {name!r}; {nearest(name, PROFILES)}")
    ids = {check.id for check in known}
    named = ids.intersection(globs)  # hundreds, when the suite asks its processes for a profile
    patterns = [glob for glob in globs if glob not in named]
    for glob in patterns:
        if not any(fnmatchcase(each, glob) for each in ids):
            raise InputError(f"no check is called {glob!r}; {_nearest(glob, [check.id for check in known])}")
    return [
        check
        for check in known
        if (not globs or check.id in named or any(fnmatchcase(check.id, glob) for glob in patterns))
        and (not profiles or check.profile in profiles)
    ]


def _nearest(glob: str, ids: Sequence[str]) -> str:
    found = nearest(glob, ids)
    if found.startswith("did you") or len(ids) <= _MANY:
        return found
    return nearest(glob, sorted({id_.partition(".")[0] + ".*" for id_ in ids}))
