"""Read what a driver says of itself: which checks it fails, and why, in the `conformance.toml` beside its plugin."""

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from attrs import Factory, evolve, field, fields, frozen

from gpusvm.conformance.suite.check import SPEC_VERSION, version
from gpusvm.conformance.suite.place import place
from gpusvm.documents import structure
from gpusvm.errors import InputError, nearest

if TYPE_CHECKING:
    from gpusvm.driver import DriverSpec
    from gpusvm.plugins import LoadedDriver

__all__ = ["FILE", "Expected", "Statement", "read_statement"]

FILE: Final = "conformance.toml"


@frozen(kw_only=True)
class Expected:
    """State that a driver fails a check, and why.

    `kind` is a defect of the driver (`bug`), what it means to do (`by-design`) or what it will do one day (`not-yet`).
    With `quirks` (of the driver, or of the mm) it does so only while one of them is as written, or all of a group that
    break the check only together. `driver` names the one that is meant where a plugin has several. `place` is the line
    of the file that names the check.
    """

    check: str
    kind: Literal["bug", "by-design", "not-yet"]
    reason: str
    ref: str
    quirks: tuple[tuple[str, ...], ...] = ()
    driver: str | None = None
    place: str = FILE

    def applies(self, spec: "DriverSpec") -> bool:
        """Tell whether the driver, as it is set up, still does so."""
        return not self.quirks or any(all(_is_as_written(spec, name) for name in group) for group in self.quirks)


@frozen(kw_only=True)
class Statement:
    """Hold what a driver states: the version of the suite that it `targets`, and its expected failures by check."""

    targets: str = SPEC_VERSION
    expected: Mapping[str, Expected] = field(factory=dict)
    source: str | None = None


@frozen(kw_only=True)
class _Entry:
    kind: Literal["bug", "by-design", "not-yet"]
    reason: str
    ref: str
    check: str | None = None
    checks: tuple[str, ...] = ()  # in place of one: those that fail for the same reason
    quirk: str | None = None
    quirks: tuple[str, ...] = ()  # in place of one: each of them alone breaks the checks
    driver: str | None = None

    def each(self) -> list[Expected]:
        alternatives = (self.quirk,) if self.quirk is not None else self.quirks
        return [
            Expected(
                check=name,
                kind=self.kind,
                reason=self.reason,
                ref=self.ref,
                quirks=tuple(tuple(map(str.strip, each.split("+"))) for each in alternatives),
                driver=self.driver,
            )
            for name in ((self.check,) if self.check is not None else self.checks)
        ]

    def problems(self) -> list[str]:
        found = []
        if (self.check is None) is (not self.checks):
            found.append("say one check, or checks that fail for the same reason")
        if self.quirk is not None and self.quirks:
            found.append("say one quirk, or quirks of which each breaks the checks")
        return found


@frozen(kw_only=True)
class _File:
    spec: str = SPEC_VERSION
    expected: tuple[_Entry, ...] = Factory(tuple)


def read_statement(loaded: "LoadedDriver", spec: "DriverSpec") -> Statement:
    """Return what a driver states; a driver without a file passes everything, of the suite as it is now.

    The file is `conformance.toml` in the package of the plugin, or `NAME.conformance.toml` beside `NAME.py` for a
    plugin that lies in none. InputError, in one line with every problem, for a file that is not as it should be.
    """
    path = _path(loaded)
    if path is None:
        return Statement()
    source = f"{loaded.plugin or spec.name}: {path.name}"
    try:
        text = path.read_text("utf-8")
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: {error}") from None
    heads = _lines(text, re.compile(r"\s*\[\[\s*expected\s*\]\]"))

    def placed(problem: str) -> str:
        return re.sub(
            r"expected\[(\d+)\]", lambda m: f"line {heads[int(m[1])]}: {m[0]}" if heads[int(m[1]) :] else m[0], problem
        )

    try:
        file = structure(document, _File, source=str(path))
    except InputError as error:
        raise InputError(placed(str(error))) from None
    mine = [each for entry in file.expected for each in entry.each() if each.driver in {None, spec.name}]
    mine = [evolve(each, place=place(str(path), _line(text, each.check))) for each in mine]
    problems = [
        *_version_problems(file.spec),
        *(placed(f"expected[{i}]: {problem}") for i, entry in enumerate(file.expected) for problem in entry.problems()),
        *(f"line {_line(text, each.check)}: {p}" for each in mine for p in _entry_problems(each, spec)),
    ]
    names = [each.check for each in mine]
    problems += [f"check {name!r} is stated twice" for name in sorted(set(names)) if names.count(name) > 1]
    if problems:
        raise InputError(f"{path}: {'; '.join(problems)}")
    return Statement(targets=file.spec, expected={each.check: each for each in mine}, source=source)


def _lines(text: str, pattern: re.Pattern[str]) -> list[int]:
    return [number for number, line in enumerate(text.splitlines(), 1) if pattern.match(line)]


def _line(text: str, check: str) -> int | None:
    found = _lines(text, re.compile(rf"[^#]*[\"']{re.escape(check)}[\"']"))
    return found[0] if found else None


def _path(loaded: "LoadedDriver") -> Path | None:
    if loaded.path is None:
        return None
    plugin = Path(loaded.path)
    in_package = plugin.with_name("__init__.py").is_file()
    found = plugin.with_name(FILE if in_package else f"{plugin.stem}.{FILE}")
    return found if found.is_file() else None


def _version_problems(stated: str) -> list[str]:
    try:
        wanted = version(stated)
    except ValueError as error:
        return [f"spec: {error}"]
    ours = version(SPEC_VERSION)
    if wanted > ours or wanted[0] != ours[0]:
        return [f"spec: it targets {stated}, and this gpusvm-core has {SPEC_VERSION}"]
    return []


def _entry_problems(each: Expected, spec: "DriverSpec") -> list[str]:
    found = [f"{each.check}: {name}: say it" for name in ("reason", "ref") if not getattr(each, name).strip()]
    known = [*_names(spec.quirks), *_names(spec.mm_quirks)]
    names = dict.fromkeys(name for group in each.quirks for name in group)
    found += [f"{each.check}: unknown quirk {name!r}; {nearest(name, known)}" for name in names if name not in known]
    return found


def _is_as_written(spec: "DriverSpec", name: str) -> bool:
    owner = spec.quirks if name in _names(spec.quirks) else spec.mm_quirks
    return bool(getattr(owner, name) == "as_written")


def _names(quirks: Any) -> list[str]:
    return [each.name for each in fields(type(quirks))]
