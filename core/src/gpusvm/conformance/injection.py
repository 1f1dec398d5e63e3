"""Let everything that may fail fail once, at every time that it is passed, and look at what is left.

A program of injection.toml runs once without failures, which counts how often it passes each injection site
(`gpusvm.kernel.inject`), and then once more for each of these passings, which fails. What is refused then is tried
again, and has to be granted; and the program is run once more that does not try again. Each time all is checked that an
exploration checks: the invariants, at rest as well, contents, what the program is told (the driver's `Refusals`),
locks, and at the end that all accounts are empty. A few programs run behind an IOMMU as well, if they pass other sites
there, or the same more often.
"""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from importlib import resources
from typing import TYPE_CHECKING, Any, Final, Literal

from attrs import Factory, asdict, define, evolve, frozen

from gpusvm.errors import CpuSignal, InputError, KernelError, nearest
from gpusvm.explore.execution import execute
from gpusvm.explore.replay import Replay
from gpusvm.explore.scenario import read_scenarios
from gpusvm.explore.sites import sites_of
from gpusvm.explore.stage import Stage
from gpusvm.explore.world import World

if TYPE_CHECKING:
    from gpusvm.driver import DriverInfo
    from gpusvm.explore.execution import Execution
    from gpusvm.explore.operation import Operation
    from gpusvm.explore.scenario import Scenario
    from gpusvm.plugins import Registry

__all__ = ["InjectedFailure", "Listener", "Sweep", "inject", "programs", "sweep", "to_json"]

Listener = Callable[[int, None, str], None]
"""Hear how many failures were tried of a driver, of nobody knows how many, and of which driver, in which program."""

_IOMMU_TOO: Final = frozenset({"fault", "story"})


@frozen(kw_only=True)
class InjectedFailure:
    """Say what one failure broke: `site` failed on its `nth` passing in a program."""

    program: str
    site: str
    nth: int
    broke: str

    @property
    def invariant(self) -> str:
        """The invariant, rule or quirk that `broke` names behind the kind, if it begins with one."""
        return self.broke.partition(":")[0].rpartition(" ")[2]

    def __str__(self) -> str:
        return f"{self.program}: {self.site} fails on passing {self.nth}: {self.broke}"


@define(kw_only=True)
class Sweep:
    """Hold what a sweep found: how many passings of which sites failed, and what that broke.

    `refused` counts the failures of which the program was told, `not_passed` are the sites in the code of the model and
    the driver that no program passes.
    """

    driver: str
    programs: int = 0
    failures: dict[str, int] = Factory(dict)
    refused: int = 0
    not_passed: list[str] = Factory(list)
    findings: list[InjectedFailure] = Factory(list)

    def __str__(self) -> str:
        """Sum it up in one line."""
        return (
            f"{self.driver}: {self.programs} programs, {len(self.failures)} sites, "
            f"{sum(self.failures.values())} failures, {self.refused} refused to the program, "
            f"{len(self.findings)} findings"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as ``gpusvm inject --json`` prints them in its `sweeps`."""
        return {
            "driver": self.driver,
            "programs": self.programs,
            "sites": len(self.failures),
            "failures": sum(self.failures.values()),
            "refused": self.refused,
            "by_site": dict(sorted(self.failures.items())),
            "not_passed": self.not_passed,
            "findings": [asdict(each) for each in self.findings],
        }


def to_json(sweeps: Collection[Sweep]) -> str:
    """Write sweeps as ``gpusvm inject --json`` does (schema ``inject-1.json``)."""
    return json.dumps({"schema": 1, "sweeps": [each.to_dict() for each in sweeps]}, indent=2, ensure_ascii=False) + "\n"


def programs() -> "list[Scenario]":
    """Return the programs of injection.toml."""
    file = resources.files("gpusvm.conformance").joinpath("injection.toml")
    return read_scenarios(file.read_text("utf-8"), source="conformance/injection.toml")


class _TryingAgain(World):
    """Do an operation that was refused once more, as long as `tries_again`; not twice for one failure."""

    def __init__(
        self,
        scenario: "Scenario",
        spec: str,
        *,
        drivers: "Mapping[str, DriverInfo]",
        quirks: Literal["as_written", "fixed"],
    ) -> None:
        self.tries_again = False
        self.refused = 0
        super().__init__(scenario, spec, drivers=drivers, quirks=quirks)

    def do(self, operation: "Operation") -> None:
        """Do one operation, and count it if it is refused because something was made to fail."""
        try:
            super().do(operation)
        except (KernelError, CpuSignal):
            if self.refused or not self.kernel.injector.failed:
                raise
            self.refused += 1
            if not self.tries_again:
                raise
            super().do(operation)


def sweep(
    driver: str,
    drivers: "Mapping[str, DriverInfo] | None" = None,
    *,
    quirks: Literal["as_written", "fixed"] = "fixed",
    only: Collection[str] = (),
    lists_code: bool = True,
    progress: Listener | None = None,
) -> Sweep:
    """Let everything fail once that a driver passes in the programs that are for it; `only` names some of them.
    `not_passed` is empty unless it `lists_code`, for which all source is read.

    InputError for a driver, or a program, that there is not.
    """
    from gpusvm.driver import read_spec

    if drivers is None:
        from gpusvm.plugins import load_drivers

        drivers = load_drivers()
    spec = read_spec(driver, drivers, quirks=quirks)
    known = programs()
    for name in only:
        if name not in {each.name for each in known}:
            raise InputError(f"unknown program {name!r}, {nearest(name, [each.name for each in known])}")
    found = Sweep(driver=spec.text)
    there: frozenset[str] = frozenset()
    for program in known:
        if program.refuses(spec.info) or (only and program.name not in only):
            continue
        run = _Runs(found, program, driver, drivers, quirks, progress)
        run.all()
        there |= run.sites() if lists_code else frozenset()
        if program.name in _IOMMU_TOO:
            behind = evolve(program, name=f"{program.name}-iommu", iommu=True)
            other = _Runs(found, behind, driver, drivers, quirks, progress)
            if other.passed() != run.passed():
                other.all()
    found.not_passed = sorted(there - found.failures.keys())
    return found


def inject(
    drivers: str | Sequence[str] = (),
    *,
    only: Collection[str] = (),
    quirks: Literal["as_written", "fixed"] = "fixed",
    without: Sequence[str] = (),
    registry: "Registry | None" = None,
    progress: Listener | None = None,
) -> list[Sweep]:
    """Do so with several drivers, by their specs, by default all that are installed.

    InputError, in one line, for a driver or a program that there is not, and for a driver that is named twice.
    """
    from gpusvm.driver import read_spec
    from gpusvm.plugins import Installed

    if registry is None:
        registry = Installed(tuple(without)).registry()
    texts = [drivers] if isinstance(drivers, str) else list(drivers or registry)
    if not texts:
        raise InputError(
            "no driver plugin is installed; install one (gpusvm-xe, for example), or name a file in GPUSVM_DRIVERS"
        )
    specs = [read_spec(text, registry, quirks=quirks).text for text in texts]
    for spec in specs:
        if specs.count(spec) > 1:
            raise InputError(f"driver spec {spec!r} is given twice")
    return [sweep(spec, registry, quirks=quirks, only=only, progress=progress) for spec in specs]


class _Runs:
    """Run one program of a sweep again and again."""

    def __init__(
        self,
        found: Sweep,
        program: "Scenario",
        driver: str,
        drivers: "Mapping[str, DriverInfo]",
        quirks: Literal["as_written", "fixed"],
        progress: Listener | None,
    ) -> None:
        self._found = found
        self._program = program
        self._progress = progress
        self._stage = Stage(lambda: _TryingAgain(program, driver, drivers=drivers, quirks=quirks))
        self._passed: dict[str, int] | None = None
        self._plain: Execution | None = None

    def sites(self) -> frozenset[str]:
        """Return the sites that there are in the code."""
        return sites_of(self._stage.ready())

    def passed(self) -> dict[str, int]:
        """Return how often the program passes each site when nothing fails."""
        if self._passed is None:
            world = self._stage.ready()
            before = dict(world.kernel.injector.sites)
            self._plain = execute(world, Replay(()))
            # Restoring the world puts back what the injector has counted.
            passed = {site: times - before.get(site, 0) for site, times in sorted(world.kernel.injector.sites.items())}
            self._passed = {site: times for site, times in passed.items() if times}
        return self._passed

    def all(self) -> None:
        """Let each passing fail."""
        passed = self.passed()
        assert self._plain is not None
        self._found.programs += 1
        self._note("nothing", 0, self._plain)
        for site, times in passed.items():
            for nth in range(1, times + 1):
                if self._progress is not None:
                    done = sum(self._found.failures.values())
                    self._progress(done, None, f"{self._found.driver}, {self._program.name}")
                self._found.failures[site] = self._found.failures.get(site, 0) + 1
                if self._fail(site, nth, tries_again=True):
                    self._found.refused += 1
                    self._fail(site, nth, tries_again=False)

    def _fail(self, site: str, nth: int, *, tries_again: bool) -> bool:
        """Let one passing fail; whether the program was told."""
        assert self._plain is not None
        world = self._stage.ready()
        assert isinstance(world, _TryingAgain)
        world.tries_again = tries_again
        world.kernel.injector.arm(site, nth)
        execution = execute(world, Replay(()))
        self._note(site, nth, execution)
        if tries_again and execution.failure is None and execution.outcomes != self._plain.outcomes:
            odd = [got for got, was in zip(execution.outcomes, self._plain.outcomes, strict=True) if got != was]
            broke = "; ".join(f"{operation} of {task} ends with {outcome}" for task, operation, outcome in odd)
            self._add(site, nth, f"{broke}, once what was refused had been tried again")
        return bool(world.refused)

    def _note(self, site: str, nth: int, execution: "Execution") -> None:
        failure = execution.failure
        if failure is not None:
            self._add(site, nth, f"{failure.kind} {failure.invariant}: {failure.message}")

    def _add(self, site: str, nth: int, broke: str) -> None:
        finding = InjectedFailure(program=self._program.name, site=site, nth=nth, broke=broke)
        if finding not in self._found.findings:
            self._found.findings.append(finding)
