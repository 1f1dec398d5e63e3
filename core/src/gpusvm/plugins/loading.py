"""Load plugins one by one, and report what is wrong with all of them at once."""

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
import pluggy
from attrs import define, field, frozen

from gpusvm.errors import InputError, nearest
from gpusvm.plugins import hookspecs
from gpusvm.plugins.problems import BrokenPluginError, BrokenPluginsError, Place
from gpusvm.plugins.registry import LoadedDriver, Registry
from gpusvm.plugins.sources import Source, find_sources
from gpusvm.plugins.validation import Finding, info_findings, operations_findings, raised, returned
from gpusvm.signatures import call_problem

__all__ = ["Survey", "load_drivers", "survey_drivers"]


@frozen(kw_only=True)
class Survey:
    """Hold what was found: `drivers` that can be used, and the `problems` of those that cannot, sorted by plugin."""

    drivers: Registry
    problems: tuple[BrokenPluginError, ...]

    def only(self, names: Collection[str]) -> "Survey":
        """Keep these drivers and plugins; raises InputError with the nearest name for one that is not there."""
        known = [*self.drivers, *(problem.plugin for problem in self.problems)]
        for name in names:
            if name not in known:
                driver, colon, _ = name.partition(":")
                if colon and driver in known:
                    raise InputError(f"expected the name of a driver, got {name!r} with settings; name {driver} alone")
                raise InputError(f"unknown driver {name!r}; {nearest(name, sorted(set(known)))}")
        kept = [driver for driver in self.drivers.drivers if driver.info.name in names]
        problems = tuple(problem for problem in self.problems if problem.plugin in names)
        return Survey(drivers=Registry.of_loaded(kept), problems=problems)

    def registry(self) -> Registry:
        """Return the drivers; raises BrokenPluginsError with every problem if there is one."""
        if self.problems:
            raise BrokenPluginsError("broken driver plugins", self.problems)
        return self.drivers


def load_drivers(*, without: Collection[str] = ()) -> Registry:
    """Load every installed plugin and those of ``GPUSVM_DRIVERS``, and check them.

    `without` names plugins or drivers to leave out. Raises BrokenPluginsError with every problem of every plugin, and
    InputError for a name in `without` that does not exist.
    """
    return survey_drivers(without=without).registry()


def survey_drivers(*, without: Collection[str] = ()) -> Survey:
    """Load what `load_drivers` loads, but return the broken plugins' problems beside the drivers that work."""
    return survey_sources(find_sources(), without=without)


def survey_sources(sources: Sequence[Source], *, without: Collection[str] = ()) -> Survey:
    """Load exactly these plugins; `survey_drivers` is this with `find_sources()`."""
    loads = [_load(source) for source in sources if source.name not in without]
    skipped = {source.name for source in sources if source.name in without}
    found = [driver for load in loads for driver in load.drivers]
    for name in without:
        names = [source.name for source in sources] + [driver.info.name for driver in found]
        if name not in names:
            raise InputError(f"--without: unknown driver {name!r}, {nearest(name, sorted(set(names)))}")
    kept = [driver for driver in found if driver.info.name not in without or driver.info.name in skipped]
    problems = [problem for load in loads for problem in load.problems]
    unique, duplicates = _tell_apart(kept)
    problems += duplicates
    problems.sort(key=lambda problem: (problem.plugin, problem.distribution or ""))
    return Survey(drivers=Registry.of_loaded(unique), problems=tuple(problems))


@define
class _Load:
    source: Source
    drivers: list[LoadedDriver] = field(factory=list)
    problems: list[BrokenPluginError] = field(factory=list)

    def note(self, findings: Sequence[Finding]) -> None:
        for finding in findings:
            self.problems.append(
                BrokenPluginError(
                    self.source.name,
                    finding.problem,
                    distribution=self.source.distribution,
                    version=self.source.version,
                    place=finding.place,
                    duty=finding.duty,
                )
            )


def _load(source: Source) -> _Load:
    """Import one plugin, register it with pluggy, call its hook and check what it describes."""
    load = _Load(source)
    try:
        plugin = source.load()
    except (Exception, SystemExit) as exc:  # noqa: BLE001  # whatever an import raises is that plugin's problem alone
        load.note([raised(exc, f"importing {source.value}", default=_file_of(source))])
        return load
    path = getattr(plugin, "__file__", None)
    place = Place(Path(path)) if path else None
    load.note(_hook_findings(plugin, place))
    if load.problems:
        return load
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    try:
        manager.register(plugin, name=source.name)
    except pluggy.PluginValidationError as exc:
        load.note([Finding(" ".join(str(exc).split()), place)])
        return load
    _call_drivers(load, manager, path)
    _call_operations(load, manager)
    return load


def _call_drivers(load: _Load, manager: pluggy.PluginManager, path: str | None) -> None:
    """Ask the plugin for its drivers, and keep those that are as they should be."""
    from gpusvm.driver import DriverInfo

    source = load.source
    for result, where in _called(load, manager.hook.gpusvm_drivers):
        infos, findings = returned(result, DriverInfo, "gpusvm_drivers", where)
        load.note(findings)
        for info in infos:
            findings = info_findings(info, where, distribution=source.distribution, version=source.version)
            load.note(findings)
            if not findings:
                load.drivers.append(
                    LoadedDriver(
                        info=info,
                        plugin=source.name,
                        distribution=source.distribution,
                        version=source.version,
                        path=path,
                    )
                )


def _call_operations(load: _Load, manager: pluggy.PluginManager) -> None:
    """Ask the plugin which recorded operations its drivers execute; nothing if a driver of it is broken already."""
    from gpusvm.driver.operations import OperationTarget

    if load.problems:
        return
    names = [driver.info.name for driver in load.drivers]
    taken: list[str] = []
    for result, where in _called(load, manager.hook.gpusvm_operations):
        targets, findings = returned(result, OperationTarget, "gpusvm_operations", where)
        load.note(findings)
        for target in targets:
            findings = operations_findings(target, where, drivers=names, taken=taken)
            load.note(findings)
            if not findings:
                taken.append(target.driver)
                at = names.index(target.driver)
                load.drivers[at] = attrs.evolve(load.drivers[at], operations=target)


def _called(load: _Load, hook: pluggy.HookCaller) -> Iterator[tuple[object, Place | None]]:
    """Yield what each implementation of a hook returned, with its place; one that raises is noted."""
    for implementation in hook.get_hookimpls():
        where = Place.of(implementation.function)
        try:
            result = implementation.function()
        except Exception as exc:  # noqa: BLE001  # whatever it raises is that plugin's problem alone
            load.note([raised(exc, f"{hook.name}()", default=where)])
            continue
        yield result, where


def _hook_findings(plugin: object, place: Place | None) -> list[Finding]:
    """Say which functions were meant to be hooks and are none: pluggy ignores those silently."""
    findings = []
    marked = 0
    valid = [name for name in vars(hookspecs) if name.startswith(f"{hookspecs.PROJECT}_")]
    for name, function in _functions(plugin):
        is_marked = hasattr(function, f"{hookspecs.PROJECT}_impl")
        marked += is_marked
        if is_marked and name not in valid:
            findings.append(Finding(f"unknown hook {name!r}, {nearest(name, valid)}", Place.of(function)))
        elif name in valid and not is_marked:
            problem = f"{name} is not marked as a hook: put @hookimpl (from gpusvm.plugins) above it"
            findings.append(Finding(problem, Place.of(function)))
        elif name in valid:
            mismatch = call_problem(function, getattr(hookspecs, name), name=name)
            findings += [Finding(mismatch, Place.of(function), "signature")] if mismatch else []
    if not marked and not findings:
        findings.append(
            Finding("it implements no hook: expected a function gpusvm_drivers marked with @hookimpl", place)
        )
    return findings


def _functions(plugin: object) -> Iterator[tuple[str, Any]]:
    for name in sorted(vars(plugin) if hasattr(plugin, "__dict__") else dir(plugin)):
        value = getattr(plugin, name, None)
        if callable(value) and hasattr(value, "__code__"):
            yield name, value


def _file_of(source: Source) -> Place | None:
    return Place(Path(source.value)) if source.value.endswith(".py") else None


def _tell_apart(drivers: Sequence[LoadedDriver]) -> tuple[list[LoadedDriver], list[BrokenPluginError]]:
    """Split off the drivers whose name another one has: which of them is meant cannot be known."""
    unique, problems = [], []
    for driver in drivers:
        same = [other for other in drivers if other.info.name == driver.info.name]
        if len(same) == 1:
            unique.append(driver)
        elif driver is same[0]:
            origins = " and ".join(other.origin for other in same)
            problems.append(
                BrokenPluginError(
                    driver.plugin or driver.info.name,
                    f"the driver name {driver.info.name!r} is taken twice, by {origins}; uninstall one",
                    distribution=driver.distribution,
                    version=driver.version,
                    place=Place(Path(driver.path)) if driver.path else None,
                )
            )
    return unique, problems
