"""Check what a plugin describes against the driver contract: types, declarations, names, signatures, ABI."""

import inspect
import re
import traceback
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import attrs
from attrs import frozen

from gpusvm.errors import nearest
from gpusvm.plugins.problems import Place
from gpusvm.signatures import call_problem, protocol_problems

if TYPE_CHECKING:
    from gpusvm.driver import DriverInfo
    from gpusvm.driver.operations import OperationTarget

__all__ = ["Finding", "info_findings", "operations_findings", "raised", "returned"]

_Declared = TypeVar("_Declared")

_NAME = re.compile(r"[a-z][a-z0-9_-]*\Z")  # what a spec string takes as a name, in lower case
_MISSING = re.compile(r"(\w+)\.__init__\(\) missing \d+ required (?:keyword-only|positional) arguments?: (.+)\Z")
_UNKNOWN = re.compile(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'\Z")
_UNLOAD = ("last_first", "first_first", "never")
_QUOTED = re.compile(r"'(\w+)'")


@frozen
class Finding:
    """Hold one problem and its place, before it is known which plugin has it."""

    problem: str
    place: Place | None
    duty: str = "declaration"


def raised(exc: BaseException, doing: str, *, default: Place | None) -> Finding:
    """Describe an exception that plugin code raised: the innermost line of its traceback that is the plugin's own.

    A declaration that lacks a field or has one too many is put in the words of the contract.
    """
    if isinstance(exc, SyntaxError) and exc.filename:
        return Finding(f"{doing}: SyntaxError: {exc.msg}", Place(Path(exc.filename), exc.lineno))
    frames = traceback.extract_tb(exc.__traceback__)
    own = [frame for frame in frames if not _is_machinery(frame.filename)]
    place = Place(Path(own[-1].filename), own[-1].lineno) if own else default
    message = (str(exc).splitlines() or [""])[0]
    declared = _declaration_problem(message) if isinstance(exc, TypeError) else None
    if declared and declared.startswith("Capabilities"):
        return Finding(declared, place, "capability")
    return Finding(declared or f"{doing}: {type(exc).__name__}: {message}".rstrip(": "), place)


def returned(
    result: object, expected: type[_Declared], hook: str, place: Place | None
) -> tuple[list[_Declared], list[Finding]]:
    """Take one `expected` or a sequence of them, which `hook` returned; what is neither becomes a finding."""
    if isinstance(result, expected):
        return [result], []
    name = expected.__name__
    if isinstance(result, Sequence) and not isinstance(result, str):
        wrong = [type(each).__name__ for each in result if not isinstance(each, expected)]
        if not wrong:
            return list(result), []
        got = f"a {type(result).__name__} with {', '.join(wrong)}"
    else:
        got = "None" if result is None else f"{type(result).__name__} {_short(result)}"
    article = "an" if name[0] in "AEIOU" else "a"
    return [], [Finding(f"{hook}() returned {got}, expected {article} {name} or a sequence of them", place)]


def info_findings(
    info: "DriverInfo", place: Place | None, *, distribution: str | None, version: str | None
) -> list[Finding]:
    """List everything that is wrong with one DriverInfo."""
    found = [Finding(text, place) for text in _texts(info)]
    found += [Finding(text, place) for text in _abi(info, distribution=distribution, version=version)]
    found += [Finding(text, place, "capability") for text in _capabilities(info)]
    for kind in ("tunables", "quirks"):
        found += [Finding(text, place) for text in _settings(info, kind)]
    found += _make(info, place)
    if not callable(info.with_settings):
        expected = "a function of (info, tunables, quirks)"
        found.append(Finding(f"with_settings: expected {expected}, got {_short(info.with_settings)}", place))
    if not callable(info.refuse):
        found.append(Finding(f"refuse: expected a function of (tunables, quirks), got {_short(info.refuse)}", place))
    if info.unload not in _UNLOAD:
        found.append(Finding(f"unload: expected one of {', '.join(_UNLOAD)}, got {_short(info.unload)}", place))
    return found


def _texts(info: "DriverInfo") -> Iterable[str]:
    for field in ("name", "summary", "kernel", "embedding", "bo_mapping", "pm"):
        value: object = getattr(info, field)
        if not isinstance(value, str) or not value.strip() or "\n" in value:
            yield f"{field}: expected one line of text, got {_short(value)}"
        elif field == "name" and not _NAME.match(value):
            yield f"name: expected lower-case letters, digits, '-' and '_', beginning with a letter, got {value!r}"


def _abi(info: "DriverInfo", *, distribution: str | None, version: str | None) -> Iterable[str]:
    from importlib.metadata import version as version_of

    from gpusvm.driver import ABI

    abi: Any = info.abi
    if not (isinstance(abi, tuple) and len(abi) == 2 and all(type(number) is int for number in abi)):
        yield f"abi: expected a pair of numbers such as (1, 0), got {_short(abi)}"
        return
    if abi[0] == ABI[0] and abi[1] <= ABI[1]:
        return
    whose = distribution or "version of this plugin"
    mend = f"upgrade gpusvm-core or install an older {whose}" if abi > ABI else f"install a newer {whose}"
    yield (
        f"driver {info.name}{f' {version}' if version else ''} targets driver ABI {abi[0]}.{abi[1]}; "
        f"this gpusvm-core {version_of('gpusvm-core')} speaks {ABI[0]}.{ABI[1]}; {mend}"
    )


def _capabilities(info: "DriverInfo") -> Iterable[str]:
    from gpusvm.driver import Capabilities, Capability

    declared = info.capabilities
    if not isinstance(declared, Capabilities):
        yield f"capabilities: expected Capabilities, got {_short(declared)}"
        return
    for name, capability in declared.items():
        if not isinstance(capability, Capability):
            yield f"capability {name!r}: expected yes('…') or no('…'), got {_short(capability)}"
        elif not capability.how.strip() or "\n" in capability.how:
            yield f"capability {name!r}: expected one line that says how or why not, got {_short(capability.how)}"


def _settings(info: "DriverInfo", kind: str) -> Iterable[str]:
    """Check a tunables or quirks class: frozen attrs, built without arguments, made of tunable() and quirk()."""
    cls = getattr(info, kind)
    if not (isinstance(cls, type) and attrs.has(cls)):
        yield f"{kind}: expected a frozen attrs class, got {_short(cls)}"
        return
    single = kind.removesuffix("s")
    for declared in attrs.fields(cls):
        if "doc" not in declared.metadata:
            yield f"{kind}: {cls.__name__}.{declared.name} is no {single}(…) (from gpusvm.driver)"
    try:
        built = cls()
    except Exception as exc:  # noqa: BLE001  # a plugin's validators may raise anything
        yield f"{kind}: {cls.__name__}() cannot be built without arguments: {type(exc).__name__}: {exc}"
        return
    for declared in attrs.fields(cls)[:1]:
        try:
            setattr(built, declared.name, getattr(built, declared.name))
        except attrs.exceptions.FrozenInstanceError:
            continue
        yield f"{kind}: {cls.__name__} can be changed after it was built; make it @frozen"


def operations_findings(
    target: "OperationTarget", place: Place | None, *, drivers: Sequence[str], taken: Sequence[str]
) -> list[Finding]:
    """List what is wrong with one OperationTarget of a plugin with these `drivers`; `taken` have a target already."""
    from gpusvm.driver.operations import PROCESS_OPERATIONS, OperationExecutor

    texts = []
    if target.driver not in drivers:
        texts.append(f"driver: expected a driver of this plugin ({', '.join(drivers)}), got {_short(target.driver)}")
    elif target.driver in taken:
        texts.append(f"driver: {target.driver} has operations already")
    if target.devices < 1:
        texts.append(f"devices: expected 1 or more, got {target.devices}")
    for name in target.operations:
        if len(name.split()) != 1:
            texts.append(f"operations: expected names of one word, got {_short(name)}")
        elif name in PROCESS_OPERATIONS:
            texts.append(f"operations: {name!r} is done by core, for every driver")
    unknown = [name for name in sorted(target.residency) if name not in target.operations]
    if unknown:
        texts.append(f"residency: {', '.join(map(repr, unknown))} not among the operations")
    findings = [Finding(text, place) for text in texts]
    return findings + _factory("start", target.start, "an OperationHost", OperationExecutor, place)


def _make(info: "DriverInfo", place: Place | None) -> list[Finding]:
    from gpusvm.driver import Driver

    return _factory("make", info.make, "a Host", Driver, place)


def _factory(name: str, make: object, takes: str, returns: type, place: Place | None) -> list[Finding]:
    """Check that a callable takes one host and, as far as annotations tell, returns what the contract asks for."""
    if not callable(make):
        return [Finding(f"{name}: expected a class or function that takes {takes}, got {_short(make)}", place)]

    def expected(host: Any, /) -> None: ...

    problem = call_problem(make, expected, name=name)
    if problem:
        return [Finding(problem, Place.of(make) or place, "signature")]
    built: Any = make
    if not isinstance(make, type):
        try:
            built = typing.get_type_hints(make).get("return")
        except (NameError, AttributeError, TypeError):  # names that only type checkers import
            built = None
    if not isinstance(built, type):
        return []
    return [
        Finding(problem, Place.of(found) or place, "signature") for found, problem in protocol_problems(built, returns)
    ]


def _declaration_problem(message: str) -> str | None:
    """Translate the TypeError of a class of the contract that was called with the wrong keywords."""
    from gpusvm import driver

    missing, unknown = _MISSING.match(message), _UNKNOWN.match(message)
    match = missing or unknown
    cls = getattr(driver, match.group(1), None) if match else None
    if match is None or cls not in (driver.Capabilities, driver.DriverInfo):
        return None
    what = "capability" if cls is driver.Capabilities else "field"
    if missing:
        names = _QUOTED.findall(match.group(2))
        listed = ", ".join(map(repr, names))
        plural = {"capability": "capabilities", "field": "fields"}[what] if len(names) > 1 else what
        tail = "; declare each with yes('…') or no('…')" if cls is driver.Capabilities else ""
        return f"{cls.__name__}: undeclared {plural} {listed}{tail}"
    name = match.group(2)
    return f"{cls.__name__}: unknown {what} {name!r}, {nearest(name, [each.name for each in attrs.fields(cls)])}"


def _is_machinery(filename: str) -> bool:
    """Tell frames of Python's import system, attrs and this room from the plugin's own."""
    return (
        filename.startswith("<")
        or "importlib" in Path(filename).parts
        or Path(filename).parent == Path(__file__).parent
        or filename == inspect.getfile(attrs)
    )


def _short(value: object) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."
