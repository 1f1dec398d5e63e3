"""Compare a class with the Protocol that it should implement, before anything of it is built.

mypy checks this for a plugin that is type-checked; the plugins that need it most are those that are not.
"""

import functools
import inspect
import typing
from collections.abc import Callable, Iterator
from types import MethodType
from typing import Any

__all__ = ["arity_problem", "call_problem", "method_problem", "optional_ops", "protocol_methods", "protocol_problems"]

_BY_PLACE = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def protocol_problems(cls: type, protocol: type) -> Iterator[tuple[Callable[..., Any] | type, str]]:
    """Yield (where, problem) for every method of `protocol` that `cls` lacks or that cannot be called as it says.

    Follows the annotated return types of both, so that a driver's ``vm_create`` leads to its Vm class. What carries no
    annotation is not followed, and plain attributes are left to the machine that builds the driver.
    """
    seen: set[tuple[type, type]] = set()
    pending = [(cls, protocol)]
    while pending:
        candidate, wanted = pending.pop(0)
        if (candidate, wanted) in seen or getattr(candidate, "_is_protocol", False):
            continue
        seen.add((candidate, wanted))
        for name, expected in protocol_methods(wanted):
            found = inspect.getattr_static(candidate, name, None)
            if found is None:
                yield (
                    candidate,
                    f"{candidate.__name__} has no {name}{_shown(expected)} ({wanted.__name__} of the contract)",
                )
                continue
            if isinstance(found, (staticmethod, classmethod)):
                found = found.__func__
            if not inspect.isfunction(found):
                continue
            problem = call_problem(found, expected, name=name)
            if problem:
                yield found, f"{candidate.__name__}.{problem} ({wanted.__name__} of the contract)"
            pending += _returned(found, expected)
        yield from _optional_problems(candidate, wanted)


def _optional_problems(cls: type, protocol: type) -> Iterator[tuple[Callable[..., Any], str]]:
    """Do so for ops that a class may leave out: properties of the protocol that return a function or None."""
    for name, arguments in optional_ops(protocol):
        found = inspect.getattr_static(cls, name, None)
        if inspect.isfunction(found):
            problem = arity_problem(found, arguments, name=name)
            if problem:
                yield found, f"{cls.__name__}.{problem} ({protocol.__name__} of the contract)"


def optional_ops(protocol: type) -> Iterator[tuple[str, list[str]]]:
    """Yield (name, what its arguments are) for every op of a protocol that may be None."""
    for base in reversed(protocol.__mro__):
        for name, value in vars(base).items():
            if not (isinstance(value, property) and value.fget is not None and getattr(base, "_is_protocol", False)):
                continue
            try:
                hint = typing.get_type_hints(value.fget).get("return")
            except (NameError, AttributeError, TypeError):  # a name that only type checkers import
                continue
            for choice in typing.get_args(hint):
                parts = typing.get_args(choice)
                if parts and isinstance(parts[0], list):
                    yield name, [_argument(each) for each in parts[0]]


def _argument(hint: Any) -> str:
    name = getattr(hint, "__forward_arg__", None) or getattr(hint, "__name__", str(hint))
    return str(name).rpartition(".")[2]


def arity_problem(found: Callable[..., Any], arguments: list[str], *, name: str, bound: bool = False) -> str | None:
    """Say why `found` cannot be called with so many arguments by place, or None."""
    try:
        inspect.signature(found).bind(*[None] * (len(arguments) + (not bound)))
    except TypeError as exc:
        shown = ", ".join(arguments)
        return f"{name}: expected {name}({shown}), got {name}{_shown(found)}: {exc}"
    return None


def call_problem(
    found: Callable[..., Any], expected: Callable[..., Any], *, name: str, bound: bool = False
) -> str | None:
    """Say why `found` cannot be called in every way that `expected` can, or None; methods are given with their self,
    unless `found` is `bound`.
    """
    try:
        ours = inspect.signature(found)
    except (TypeError, ValueError):  # written in C without a text signature
        return None
    for by_place, by_name in _ways(inspect.signature(expected)):
        try:
            ours.bind(*by_place[bound:], **by_name)
        except TypeError as exc:
            return f"{name}: expected {name}{_shown(expected)}, got {name}{_shown(found)}: {exc}"
    return None


def method_problem(found: Callable[..., Any], expected: Callable[..., Any], *, name: str) -> str | None:
    """Do so for a bound op of an object, where that is a method looking at its function only once."""
    if isinstance(found, MethodType) and inspect.isfunction(found.__func__):
        return _function_problem(found.__func__, expected, name)
    return call_problem(found, expected, name=name, bound=True)


@functools.lru_cache(maxsize=1024)
def _function_problem(found: Callable[..., Any], expected: Callable[..., Any], name: str) -> str | None:
    return call_problem(MethodType(found, object()), expected, name=name, bound=True)


def _ways(signature: inspect.Signature) -> list[tuple[list[None], dict[str, None]]]:
    """List two calls that a signature allows: with the required arguments only, and with all of them."""
    parameters = [p for p in signature.parameters.values() if p.kind in (*_BY_PLACE, inspect.Parameter.KEYWORD_ONLY)]
    ways = []
    for wanted in ([p for p in parameters if p.default is p.empty], parameters):
        by_place: list[None] = [None for p in wanted if p.kind in _BY_PLACE]
        ways.append((by_place, {p.name: None for p in wanted if p.kind == p.KEYWORD_ONLY}))
    return ways


def protocol_methods(protocol: type) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Yield (name, function) for every method of a protocol, those of its bases first."""
    for base in reversed(protocol.__mro__):
        if not getattr(base, "_is_protocol", False):
            continue
        for name, value in vars(base).items():
            if inspect.isfunction(value) and (not name.startswith("_") or name == "__call__"):
                yield name, value


def _returned(found: Callable[..., Any], expected: Callable[..., Any]) -> list[tuple[type, type]]:
    ours, theirs = _return_type(found), _return_type(expected)
    if ours is None or theirs is None or not getattr(theirs, "_is_protocol", False):
        return []
    return [(ours, theirs)]


def _return_type(function: Callable[..., Any]) -> type | None:
    try:
        hint = typing.get_type_hints(function).get("return")
    except (NameError, AttributeError, TypeError):  # a name that only type checkers import
        return None
    return hint if isinstance(hint, type) else None


def _shown(function: Callable[..., Any]) -> str:
    """Write a signature as it is called: without self and annotations."""
    parameters = list(inspect.signature(function).parameters.values())
    if parameters and parameters[0].name in ("self", "cls"):
        parameters = parameters[1:]
    bare = [p.replace(annotation=p.empty) for p in parameters]
    return str(inspect.Signature(bare))
