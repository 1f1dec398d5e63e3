"""Hold small concurrent programs as data: what is set up, which tasks run next to each other, what is looked at last.

A scenario file is TOML with any number of ``[[scenario]]`` tables; the bundled ones lie in ``explore/scenarios/``::

    [[scenario]]
    name = "fault-munmap"
    about = "a GPU writes memory that is being unmapped"
    standard = true
    setup = ["map 0 4", "cpu_write 0 4"]
    tasks.gpu = ["gpu_write 0 4"]
    tasks.cpu = ["munmap 0 4"]

An operation is a line ``[PROCESS.]NAME[@FILE] ARGUMENT…``; docs/reference/scenarios.md has all names, from
`gpusvm.explore.operations`.
"""

import functools
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import attrs
from attrs import Factory, evolve, field, fields, frozen

from gpusvm.documents import structure
from gpusvm.driver import Capabilities
from gpusvm.errors import InputError, nearest
from gpusvm.explore import operations as _operations  # noqa: F401  # registers what a line may name
from gpusvm.explore.operation import MAIN_PROCESS, Operation, bind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gpusvm.driver import DriverInfo

_PMD_ORDER_MAX = 9

if TYPE_CHECKING:
    from gpusvm.driver import DriverInfo

__all__ = ["Operation", "Scenario", "bundled", "find_scenario", "read_scenarios", "select_scenarios"]


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
    devices: int = 1
    iommu: bool = False
    late_clears: bool = False
    files: int = 1
    cpus: int = 0
    preemptive: bool = True
    settings: dict[str, str] = Factory(dict)


@frozen(kw_only=True)
class Scenario:
    """Describe one concurrent program.

    `tasks` maps a name to its operations, in order. `needs` names capabilities that a driver must have, `drivers` the
    drivers that it is meant for (empty: all). `standard` ones are what rates are measured on: two or three tasks of
    one process on one range and one device. `vram_pages` and
    `ram_pages` are the sizes of the machine, a PMD has ``1 << pmd_order`` pages. Each of `devices` has
    the same driver, with `iommu` behind an IOMMU, with `late_clears` memory that is cleared when an engine gets to it,
    and every process opens each of them `files` times: ``@N`` is file N, on device ``N % devices``.
    With `cpus` the tasks share so many CPUs, and without `preemptive` keep them (`gpusvm.kernel.cpus`); 0: each has
    its own. `settings` are options for a driver's spec string, by its name; with some, a scenario is written for that
    driver, and is not refused where it serves no faults (`gpusvm.driver.DriverInfo.registered_only`). `end` runs after
    all tasks.
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
    devices: int = 1
    iommu: bool = False
    late_clears: bool = False
    files: int = 1
    cpus: int = 0
    preemptive: bool = True
    settings: Mapping[str, str] = Factory(dict)
    source: str = field(default="", eq=False)

    def to_toml(self) -> str:
        """Write it as the table of a scenario file that reads as the same scenario."""
        lines = ["[[scenario]]", f"name = {_text(self.name)}", f"about = {_text(self.about)}"]
        for key in attrs.fields(Scenario):
            value = getattr(self, key.name)
            if key.name in _WRITTEN_APART or value == key.default:
                continue
            lines.append(f"{key.name} = {_value(value)}")
        lines += [f"settings.{_key(name)} = {_text(options)}" for name, options in self.settings.items()]
        lines += [f"tasks.{_key(name)} = {_value(operations)}" for name, operations in self.tasks.items()]
        return "\n".join(lines) + "\n"

    @property
    def operations(self) -> list[Operation]:
        """List every operation, in the order of setup, tasks, end."""
        return [*self.setup, *(each for operations in self.tasks.values() for each in operations), *self.end]

    def refuses(self, info: "DriverInfo") -> str:
        """Say why the scenario is not for a driver; empty if it is."""
        if self.drivers and info.name not in self.drivers:
            return f"it is for {', '.join(self.drivers)}"
        for need in self.needs:
            capability = getattr(info.capabilities, need)
            if not capability:
                return f"it needs the capability {need}, which {info.name} does not have: {capability.how}"
        if info.registered_only and info.name not in self.settings:
            touching = next((each for each in self.operations if bind(each).kind.by == "gpu"), None)
            if touching is not None:
                return (
                    f"{str(touching)!r} may fault, and no fault is served with these settings of {info.name}; a "
                    f"scenario whose setup registers what the GPU touches says so by `settings.{info.name}`"
                )
        return ""

    def with_tasks(self, tasks: Mapping[str, tuple[Operation, ...]]) -> "Scenario":
        """Return the same program with other operations; a task without any is left out, and so is what a process would
        do that nobody starts any more.
        """
        started = _started([*self.setup, *(each for operations in tasks.values() for each in operations)])

        def possible(operations: Sequence[Operation]) -> tuple[Operation, ...]:
            return tuple(each for each in operations if bind(each).process in started)

        left = {name: possible(operations) for name, operations in tasks.items()}
        return evolve(self, tasks={name: each for name, each in left.items() if each}, end=possible(self.end))


_WRITTEN_APART: Final = frozenset({"name", "about", "settings", "tasks", "source"})


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
        capabilities = [each.name for each in fields(Capabilities)]
        for need in read.needs:
            if need not in capabilities:
                raise InputError(f"{where}.needs: unknown capability {need!r}, {nearest(need, capabilities)}")
        scenario = Scenario(
            name=read.name,
            about=read.about,
            tasks={name: _parse(lines, f"{where}.tasks.{name}") for name, lines in read.tasks.items()},
            setup=_parse(read.setup, f"{where}.setup"),
            end=_parse(read.end, f"{where}.end"),
            standard=read.standard,
            needs=read.needs,
            drivers=read.drivers,
            thp=read.thp,
            pmd_order=read.pmd_order,
            vram_pages=read.vram_pages,
            ram_pages=read.ram_pages,
            devices=read.devices,
            iommu=read.iommu,
            late_clears=read.late_clears,
            files=read.files,
            cpus=read.cpus,
            preemptive=read.preemptive,
            settings=read.settings,
            source=source,
        )
        _check(scenario, where)
        found.append(scenario)
    names = [each.name for each in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"{source}: two scenarios are named {twice[0]!r}; names are unique")
    return found


def _parse(lines: "Sequence[str]", where: str) -> tuple[Operation, ...]:
    found = []
    for number, line in enumerate(lines):
        try:
            operation = Operation.parse(line)
            bind(operation)
        except InputError as error:
            raise InputError(f"{where}[{number}]: {error}") from None
        found.append(operation)
    return tuple(found)


def _started(operations: "Sequence[Operation]") -> set[str]:
    """Name the processes that there are at some time."""
    steps = map(bind, operations)
    return {MAIN_PROCESS} | {step.args[0] for step in steps if step.kind.name in {"fork", "process"}}


def _check(scenario: Scenario, where: str) -> None:
    """Refuse what no machine can be: processes that nobody starts, devices that there are not, sizes too small."""
    steps = [bind(operation) for operation in scenario.operations]
    processes = _started(scenario.operations)
    for step in steps:
        if step.process not in processes:
            near = nearest(step.process, sorted(processes))
            raise InputError(f"{where}: operation {str(step)!r}: no line starts a process {step.process!r}; {near}")
        if step.file >= scenario.devices * scenario.files:
            files = scenario.devices * scenario.files
            raise InputError(f"{where}: operation {str(step)!r}: a process has {files} file(s), counted from 0")
    if scenario.cpus < 0 or (not scenario.cpus and not scenario.preemptive):
        raise InputError(f"{where}: cpus: expected 1 or more for a kernel without preemption, got {scenario.cpus}")
    if not 1 <= scenario.pmd_order <= _PMD_ORDER_MAX:
        raise InputError(f"{where}: pmd_order: expected 1 to {_PMD_ORDER_MAX}, got {scenario.pmd_order}")
    block = 1 << scenario.pmd_order
    if scenario.vram_pages < block or scenario.ram_pages < block:
        raise InputError(f"{where}: vram_pages and ram_pages: expected at least one block of {block} pages")


def bundled() -> list[Scenario]:
    """Return the scenarios that come with gpusvm, in order of file and place."""
    return list(_bundled())


@functools.cache  # values, and read for each name that is looked up
def _bundled() -> tuple[Scenario, ...]:
    files = resources.files("gpusvm.explore").joinpath("scenarios").iterdir()
    found: list[Scenario] = []
    for file in sorted((file for file in files if file.name.endswith(".toml")), key=lambda file: file.name):
        found += read_scenarios(file.read_text("utf-8"), source=f"explore/scenarios/{file.name}")
    return tuple(found)


def find_scenario(name_or_path: str) -> list[Scenario]:
    """Return the bundled scenario of a name, or those of a file. InputError with the nearest name."""
    known = bundled()
    named = [each for each in known if each.name == name_or_path]
    if named:
        return named
    path = Path(name_or_path)
    if path.suffix != ".toml" and not path.exists():
        near = nearest(name_or_path, [each.name for each in known])
        if near.startswith("valid"):  # there are too many to name them all
            near = "`gpusvm explore --list` shows all"
        raise InputError(f"unknown scenario {name_or_path!r}, {near} (or the path of a .toml file)")
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        reason = getattr(exc, "strerror", None) or exc
        raise InputError(f"{path}: expected scenarios in TOML, cannot be read: {reason}") from None
    return read_scenarios(text, source=str(path))


def select_scenarios(chosen: Sequence[str | Scenario]) -> list[Scenario]:
    """Return scenarios by name, path, "standard" (those that rates are measured on) or "all", each once, in order.

    InputError with the nearest name, and if none is chosen.
    """
    found: dict[tuple[str, str], Scenario] = {}
    for each in chosen:
        if isinstance(each, Scenario):
            some = [each]
        elif each in {"all", "standard"}:
            some = [scenario for scenario in bundled() if each == "all" or scenario.standard]
        else:
            some = find_scenario(each)
        for scenario in some:
            found.setdefault((scenario.source, scenario.name), scenario)
    if not found:
        raise InputError(
            "expected a scenario: a name that `gpusvm explore --list` shows, a .toml file, standard or all"
        )
    return list(found.values())
