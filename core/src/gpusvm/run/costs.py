"""Read cost profiles: TOML files in which every charged event has its ns, and every number its source.

docs/reference/cost-profiles.md describes the format, and how the bundled profiles came about.
"""

import hashlib
import math
import tomllib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import attrs
from attrs import field, frozen

from gpusvm.documents import structure
from gpusvm.errors import InputError, nearest
from gpusvm.kernel.costs import CopyCost, Costs

__all__ = ["CostProfile", "Kind", "Source", "bundled_profiles", "load_profile"]

Kind: TypeAlias = Literal["measured", "published", "fitted", "assumed"]

_SUFFIX: Final = ".toml"
_SHAPES: Final = ("gather", "per_piece")
_DIRECTIONS: Final = ("h2d", "d2h", "d2d")
_BYTES: Final = "remote_bytes_per_row"  # the one entry that is no time


@frozen(kw_only=True)
class Source:
    """Say where a number comes from: `kind`, and `source` in words that lead to it."""

    kind: Kind
    source: str


@frozen(kw_only=True)
class CostProfile:
    """Hold one cost profile: the numbers in `costs`, and where each comes from in `sources`.

    Keys of `sources` are the fields of `Costs`, and ``copy_gather_h2d`` and the like for copies. `sha256` (hex) is of
    the file's bytes.
    """

    name: str
    summary: str
    costs: Costs
    sources: Mapping[str, Source]
    sha256: str

    @property
    def assumed_events(self) -> frozenset[str]:
        """Name the events whose cost is an assumption."""
        return self.costs.assumed


def bundled_profiles() -> tuple[str, ...]:
    """List the names of the bundled profiles, sorted."""
    files = resources.files("gpusvm.run").joinpath("profiles").iterdir()
    return tuple(sorted(file.name.removesuffix(_SUFFIX) for file in files if file.name.endswith(_SUFFIX)))


def load_profile(name_or_path: str | Path) -> CostProfile:
    """Read a bundled profile by its name, or any profile by the path of its file.

    What ends in ``.toml``, has a directory in it or exists is a path; the rest is a name. Raises InputError, one line
    with the file and every problem in it: unknown keys (with the nearest valid one), missing keys, negative numbers.
    """
    if name_or_path in bundled_profiles():
        with resources.as_file(resources.files("gpusvm.run").joinpath("profiles", f"{name_or_path}{_SUFFIX}")) as path:
            return _read(path)
    path = Path(name_or_path)
    if path.suffix == _SUFFIX or len(path.parts) > 1 or path.exists():
        return _read(path)
    near = nearest(str(name_or_path), bundled_profiles())
    raise InputError(f"unknown cost profile {str(name_or_path)!r}, {near} (or the path of a {_SUFFIX} file)")


def _number(_: object, attribute: "attrs.Attribute[Any]", value: float) -> None:
    if not 0 <= value < math.inf:
        raise ValueError(f"{attribute.name}: expected 0 or more, got {value}")


def _words(_: object, attribute: "attrs.Attribute[Any]", value: str) -> None:
    if not value.strip():
        raise ValueError(f"{attribute.name}: expected a text, got none; say where the number comes from")


@frozen(kw_only=True)
class _Cited:
    kind: Kind
    source: str = field(validator=_words)


@frozen(kw_only=True)
class _Event(_Cited):
    ns: int = field(validator=_number)


@frozen(kw_only=True)
class _Rate(_Cited):
    ns: float = field(validator=_number)


@frozen(kw_only=True)
class _Bytes(_Cited):
    bytes: int = field(validator=_number)


@frozen(kw_only=True)
class _Copy(_Cited):
    base_ns: int = field(validator=_number)
    per_piece_ns: int = field(validator=_number)
    ns_per_byte: float = field(validator=_number)


@frozen(kw_only=True)
class _About:
    name: str
    summary: str


_EVENTS: Final[Mapping[str, type[int] | type[float]]] = {
    attribute.name: float if attribute.type is float else int
    for attribute in attrs.fields(Costs)
    if attribute.type in {int, float}
}


def _table(name: str, fields: Mapping[str, type]) -> type:
    """Make the class of a TOML table whose keys another list already says."""
    made: type = attrs.make_class(
        name,
        {key: attrs.field(type=kind) for key, kind in fields.items()},
        frozen=True,
        kw_only=True,
    )
    return made


_Document: Final = _table(
    "_Document",
    {
        "profile": _About,
        "cost": _table(
            "_CostTable",
            {
                event: _Bytes if event == _BYTES else _Rate if number is float else _Event
                for event, number in _EVENTS.items()
            },
        ),
        "copy": _table(
            "_CopyTable",
            dict.fromkeys(_SHAPES, _table("_Directions", dict.fromkeys(_DIRECTIONS, _Copy))),
        ),
    },
)


def _read(path: Path) -> CostProfile:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; the bundled profiles are: {', '.join(bundled_profiles())}") from None
    except (OSError, ValueError) as exc:
        raise InputError(f"{path}: cannot be read: {exc}") from None
    try:
        parsed = tomllib.loads(data.decode())
    except ValueError as exc:  # of both: TOMLDecodeError, UnicodeDecodeError
        raise InputError(f"{path}: expected TOML, got {exc}") from None
    document: Any = structure(parsed, _Document, source=str(path))
    numbers: dict[str, Any] = {}
    sources: dict[str, Source] = {}
    for event, number in _EVENTS.items():
        entry = getattr(document.cost, event)
        numbers[event] = number(entry.bytes if event == _BYTES else entry.ns)
        sources[event] = Source(kind=entry.kind, source=entry.source)
    copies = {}
    for shape in _SHAPES:
        for direction in _DIRECTIONS:
            copy: _Copy = getattr(getattr(document.copy, shape), direction)
            copies[shape, direction] = CopyCost(copy.base_ns, copy.per_piece_ns, copy.ns_per_byte)
            sources[f"copy_{shape}_{direction}"] = Source(kind=copy.kind, source=copy.source)
    return CostProfile(
        name=document.profile.name,
        summary=document.profile.summary,
        costs=Costs(
            **numbers,
            copies=copies,
            assumed=frozenset(event for event, source in sources.items() if source.kind == "assumed"),
        ),
        sources=sources,
        sha256=hashlib.sha256(data).hexdigest(),
    )
