"""Say what a check is: one rule that a driver has to follow, under a name that stays, and what tries it."""

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal, TypeVar, get_args

from attrs import fields, frozen

from gpusvm.conformance.lab import Lab
from gpusvm.conformance.suite.place import place
from gpusvm.driver import Capabilities
from gpusvm.errors import ModelError, nearest

__all__ = ["PROFILES", "SPEC_VERSION", "Check", "Profile", "check", "check_of", "version"]

SPEC_VERSION: Final = "1.0"
"""The version of the set of checks: the minor number grows with a check that is added, the major one when the meaning
of one changes.
"""

Profile = Literal["core", "device-memory", "atomics", "multi-device"]

PROFILES: Final[Mapping[Profile, str | None]] = {
    "core": None,
    "device-memory": "device_memory",
    "atomics": "atomics",
    "multi-device": "multi_device_p2p",
}
"""The capability by which a driver claims each profile; `core` is every driver's."""

_ID: Final = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*(\.[a-z0-9]+(-[a-z0-9]+)*){1,3}\Z")
_VERSION: Final = re.compile(r"\d+\.\d+\Z")
_ATTRIBUTE: Final = "__gpusvm_check__"

Function = Callable[[Lab], None]
_F = TypeVar("_F", bound=Function)


@frozen(kw_only=True)
class Check:
    """Hold what is known of a check without running it.

    `rule` is the sentence that a driver has to follow, `ref` the kernel function or upstream test that it comes from,
    `since` the version of the suite that has it for the first time. `requires` are all capabilities that a driver must
    declare for it, the profile's own first. `place` is ``package/file.py:line``.
    """

    id: str
    since: str
    profile: Profile
    requires: tuple[str, ...]
    ref: str
    rule: str
    place: str
    run: Function


def version(text: str) -> tuple[int, int]:
    """Read ``MAJOR.MINOR``, for comparing. ValueError for anything else."""
    if not _VERSION.match(text):
        raise ValueError(f"expected MAJOR.MINOR, such as {SPEC_VERSION}, got {text!r}")
    major, _, minor = text.partition(".")
    return int(major), int(minor)


def check(
    id_: str, *, since: str, ref: str, profile: Profile = "core", requires: tuple[str, ...] = ()
) -> Callable[[_F], _F]:
    """Make a check of a test function whose only parameter is `lab`; the first paragraph of its docstring is the rule.

    ModelError for what a check must not be: it is the suite's author who is told.
    """

    def register(function: _F) -> _F:
        problems = _problems(id_, since, ref, profile, requires, function)
        if problems:
            raise ModelError(f"check {id_!r}: {'; '.join(problems)}")
        written: Any = inspect.unwrap(function)  # one function may be many checks
        capability = PROFILES[profile]
        own = (capability,) if capability is not None else ()
        made = Check(
            id=id_,
            since=since,
            profile=profile,
            requires=tuple(dict.fromkeys((*own, *requires))),
            ref=ref,
            rule=_rule(function),
            place=place(written.__code__.co_filename, written.__code__.co_firstlineno),
            run=function,
        )
        setattr(function, _ATTRIBUTE, made)
        return function

    return register


def check_of(function: object) -> Check | None:
    """Return the check that a function was made, None if it is none."""
    found = getattr(function, _ATTRIBUTE, None)
    return found if isinstance(found, Check) else None


def _rule(function: Function) -> str:
    return " ".join((inspect.getdoc(function) or "").partition("\n\n")[0].split())


def _problems(id_: str, since: str, ref: str, profile: str, requires: tuple[str, ...], function: Function) -> list[str]:
    found = []
    if not _ID.match(id_):
        found.append("expected an id such as area.subject.claim, of lower-case words joined by '-'")
    try:
        if version(since) > version(SPEC_VERSION):
            found.append(f"since {since} is later than the suite, {SPEC_VERSION}")
    except ValueError as error:
        found.append(f"since: {error}")
    if profile not in get_args(Profile):
        found.append(f"unknown profile {profile!r}; {nearest(profile, PROFILES)}")
    known = [each.name for each in fields(Capabilities)]
    found += [f"unknown capability {name!r}; {nearest(name, known)}" for name in requires if name not in known]
    if not ref.strip():
        found.append("it has no reference: which kernel function or test does the rule come from?")
    if list(inspect.signature(function).parameters) != ["lab"]:
        found.append("its function must have one parameter, lab")
    if not _rule(function):
        found.append("its function must have a docstring, which says the rule")
    return found
