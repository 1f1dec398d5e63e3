"""Turn a parsed TOML or JSON document into attrs values, or say what is wrong with it and where.

cattrs does the work; what is added is strictness (no ``int("3")``, no float for an int, no bool for a number) and
messages that name every problem with its path and the nearest valid key.
"""

from collections.abc import Callable
from types import UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin

import attrs
import cattrs
from cattrs.cols import homogenous_tuple_structure_factory
from cattrs.gen import make_dict_structure_fn

from gpusvm.errors import InputError, nearest

__all__ = ["structure"]

_T = TypeVar("_T")


def structure(document: object, cls: type[_T], *, source: str, unknown_keys: bool = False) -> _T:
    """Build an attrs value of class `cls` from a parsed document.

    `source` names the document in messages. Unknown keys are errors unless `unknown_keys`. Raises InputError with all
    problems in one line: ``SOURCE: PATH: what is wrong; PATH: …``; a path is ``cost.bind_base.ns``, ``launches[3][0]``.
    Fields may be attrs classes, ``tuple[X, ...]``, ``Literal``, int, float, str, bool, these or None, and
    ``bool | tuple[X, ...]``.
    """
    converter = _TOLERANT if unknown_keys else _STRICT
    try:
        return converter.structure(document, cls)
    except (cattrs.BaseValidationError, ValueError, TypeError) as exc:
        raise InputError(f"{source}: {'; '.join(_problems(exc, ''))}") from None


def _problems(exc: BaseException, path: str) -> list[str]:
    """Flatten the tree of cattrs' errors to lines, each beginning with its path."""
    if isinstance(exc, cattrs.IterableValidationError):
        found = []
        for error, note in exc.group_exceptions()[0]:
            found += _problems(error, f"{path}[{note.index}]")
        return found + [line for error in exc.group_exceptions()[1] for line in _problems(error, path)]
    if isinstance(exc, cattrs.ClassValidationError):
        found = []
        for error, class_note in exc.group_exceptions()[0]:
            found += _problems(error, f"{path}.{class_note.name}" if path else class_note.name)
        return found + [line for error in exc.group_exceptions()[1] for line in _problems(error, path)]
    place = path or "top level"
    if isinstance(exc, cattrs.ForbiddenExtraKeysError):
        valid = [field.name for field in attrs.fields(exc.cl)]
        return [f"{place}: unknown key {key!r}, {nearest(key, valid)}" for key in sorted(exc.extra_fields)]
    if isinstance(exc, KeyError):
        return [f"{place}: missing"]
    return [f"{place}: {exc}"]


def _exactly(kinds: tuple[type, ...], name: str) -> Callable[[object, object], Any]:
    def check(value: object, _: object) -> object:
        if isinstance(value, bool) is not (bool in kinds) or not isinstance(value, kinds):
            raise TypeError(f"expected {name}, got {_shown(value)}")
        return value

    return check


def _is_literal(kind: Any) -> bool:
    origin: Any = get_origin(kind)
    return origin is Literal


def _is_bool_or_list(kind: Any) -> bool:
    parts = get_args(kind) if get_origin(kind) is UnionType else ()
    return len(parts) == 2 and bool in parts and any(get_args(part)[1:] == (...,) for part in parts)


def _literal(value: object, kind: Any) -> object:
    valid = get_args(kind)
    if value not in valid:
        raise ValueError(f"expected one of {', '.join(map(repr, valid))}, got {_shown(value)}")
    return value


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _converter(*, forbid_extra_keys: bool) -> cattrs.Converter:
    converter = cattrs.Converter(forbid_extra_keys=forbid_extra_keys)
    converter.register_structure_hook(int, _exactly((int,), "a whole number"))
    converter.register_structure_hook(float, _exactly((int, float), "a number"))
    converter.register_structure_hook(str, _exactly((str,), "a text"))
    converter.register_structure_hook(bool, _exactly((bool,), "true or false"))
    converter.register_structure_hook_func(_is_literal, _literal)

    def table(cls: type[_T]) -> Callable[[object, object], _T]:
        inner = make_dict_structure_fn(cls, converter, _cattrs_forbid_extra_keys=forbid_extra_keys)

        def build(value: object, kind: Any) -> _T:
            if not isinstance(value, dict):
                raise TypeError(f"expected a table, got {_shown(value)}")
            return inner(value, kind)

        return build

    def listing(kind: Any) -> Callable[[object, object], Any]:
        inner = homogenous_tuple_structure_factory(kind, converter)

        def build(value: object, _: object) -> Any:
            if not isinstance(value, list | tuple):  # else a text would be taken for a list of its letters
                raise TypeError(f"expected a list, got {_shown(value)}")
            return inner(value, kind)

        return build

    def true_false_or(kind: Any) -> Callable[[object, object], Any]:
        rest = next(each for each in get_args(kind) if each is not bool)

        def build(value: object, _: object) -> Any:
            if isinstance(value, bool):
                return value
            if not isinstance(value, list | tuple):
                raise TypeError(f"expected true, false or a list, got {_shown(value)}")
            return converter.structure(value, rest)

        return build

    converter.register_structure_hook_factory(_is_bool_or_list, true_false_or)
    converter.register_structure_hook_factory(attrs.has, table)
    converter.register_structure_hook_factory(lambda kind: get_args(kind)[1:] == (...,), listing)
    return converter


_STRICT = _converter(forbid_extra_keys=True)
_TOLERANT = _converter(forbid_extra_keys=False)
