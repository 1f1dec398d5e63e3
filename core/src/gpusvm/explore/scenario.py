"""Hold small concurrent programs as data: what is set up, which tasks run next to each other, what is looked at last.

A scenario file is TOML with any number of ``[[scenario]]`` tables; the bundled ones lie in ``explore/scenarios/``::

    [[scenario]]
    name = "fault-munmap"
    about = "a GPU writes memory that is being unmapped"
    standard = true
    setup = ["map 0 4", "cpu_write 0 4"]
    tasks.gpu = ["gpu_write 0 4"]
    tasks.cpu = ["munmap 0 4"]

An operation is a line ``NAME ARGUMENT…``; the arguments are page numbers, counts and words as `gpusvm.explore.world`
documents them at the operation of that name.
"""

import json
import re
import tomllib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Final, Literal

import attrs
from attrs import evolve, field, frozen

from gpusvm.documents import structure
from gpusvm.errors import InputError, nearest

__all__ = ["Operation", "Scenario", "bundled", "find_scenario", "read_scenarios"]


@frozen
class Operation:
    """Name one operation of a task, with its arguments as text."""

    name: str
    args: tuple[str, ...] = ()

    @classmethod
    def parse(cls, line: str) -> "Operation":
        name, *args = line.split()
        return cls(name, tuple(args))

    def __str__(self) -> str:
        return " ".join((self.name, *self.args))


@frozen(kw_only=True)
class _Document:
    name: str
    about: str
    tasks: dict[str, tuple[str, ...]]
    setup: tuple[str, ...] = ()
    end: tuple[str, ...] = ()
    standard: bool = False
    needs: tuple[str, ...] = ()
    drivers: tuple[str, ...] = ()
    thp: Literal["always", "never"] = "never"
    pmd_order: int = 2
    vram_pages: int = 16
    ram_pages: int = 128


@frozen(kw_only=True)
class Scenario:
    """Describe one concurrent program.

    `tasks` maps a name to its operations, in order. `needs` names capabilities that a driver must have, `drivers` the
    drivers that it is meant for (empty: all). `standard` ones are what rates are measured on. `vram_pages` and
    `ram_pages` are the sizes of the machine, a PMD has ``1 << pmd_order`` pages. `end` runs after all tasks.
    """

    name: str
    about: str
    tasks: Mapping[str, tuple[Operation, ...]]
    setup: tuple[Operation, ...] = ()
    end: tuple[Operation, ...] = ()
    standard: bool = False
    needs: tuple[str, ...] = ()
    drivers: tuple[str, ...] = ()
    thp: Literal["always", "never"] = "never"
    pmd_order: int = 2
    vram_pages: int = 16
    ram_pages: int = 128
    source: str = field(default="", eq=False)

    def to_toml(self) -> str:
        """Write it as the table of a scenario file that reads as the same scenario."""
        lines = ["[[scenario]]", f"name = {_text(self.name)}", f"about = {_text(self.about)}"]
        for key in attrs.fields(Scenario):
            value = getattr(self, key.name)
            if key.name in _WRITTEN_APART or value == key.default:
                continue
            lines.append(f"{key.name} = {_value(value)}")
        lines += [f"tasks.{_key(name)} = {_value(operations)}" for name, operations in self.tasks.items()]
        return "\n".join(lines) + "\n"

    def with_tasks(self, tasks: Mapping[str, tuple[Operation, ...]]) -> "Scenario":
        """Return the same program with other operations; a task without any is left out."""
        return evolve(self, tasks={name: operations for name, operations in tasks.items() if operations})


_WRITTEN_APART: Final = frozenset({"name", "about", "tasks", "source"})


def _text(text: object) -> str:
    # Where both are defined a string of JSON is a basic string of TOML; U+007F is only allowed escaped.
    return json.dumps(str(text), ensure_ascii=False).replace("\x7f", "\\u007f")


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _text(name)


def _value(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(map(_text, value))}]"
    return str(value) if isinstance(value, int) else _text(value)


def read_scenarios(text: str, *, source: str) -> list[Scenario]:
    """Parse the text of a scenario file; InputError names the file, the place and the mend."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise InputError(f"{source}: expected scenarios in TOML: {exc}") from None
    tables = document.get("scenario")
    if not isinstance(tables, list) or set(document) != {"scenario"}:
        raise InputError(f"{source}: expected [[scenario]] tables and nothing else")
    found = []
    for number, table in enumerate(tables):
        where = f"{source}: scenario[{number}]"
        read = structure(table, _Document, source=where)
        if not read.tasks or not all(read.tasks.values()):
            raise InputError(f"{where}: {read.name!r} needs at least one task, and each task an operation")
        found.append(
            Scenario(
                name=read.name,
                about=read.about,
                tasks={name: tuple(map(Operation.parse, lines)) for name, lines in read.tasks.items()},
                setup=tuple(map(Operation.parse, read.setup)),
                end=tuple(map(Operation.parse, read.end)),
                standard=read.standard,
                needs=read.needs,
                drivers=read.drivers,
                thp=read.thp,
                pmd_order=read.pmd_order,
                vram_pages=read.vram_pages,
                ram_pages=read.ram_pages,
                source=source,
            )
        )
    names = [each.name for each in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"{source}: two scenarios are named {twice[0]!r}; names are unique")
    return found


def bundled() -> list[Scenario]:
    """Return the scenarios that come with gpusvm, in order of file and place."""
    files = resources.files("gpusvm.explore").joinpath("scenarios").iterdir()
    found: list[Scenario] = []
    for file in sorted((file for file in files if file.name.endswith(".toml")), key=lambda file: file.name):
        found += read_scenarios(file.read_text("utf-8"), source=f"explore/scenarios/{file.name}")
    return found


def find_scenario(name_or_path: str) -> list[Scenario]:
    """Return the bundled scenario of a name, or those of a file. InputError with the nearest name."""
    known = bundled()
    named = [each for each in known if each.name == name_or_path]
    if named:
        return named
    path = Path(name_or_path)
    if path.suffix != ".toml" and not path.exists():
        near = nearest(name_or_path, [each.name for each in known])
        raise InputError(f"unknown scenario {name_or_path!r}, {near} (or the path of a .toml file)")
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise InputError(f"{path}: expected scenarios in TOML, cannot be read: {exc}") from None
    return read_scenarios(text, source=str(path))
