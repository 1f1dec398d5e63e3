"""Let everything that may fail fail once, at every time that it is passed, and look at what is left.

A program of injection.toml runs once without failures, which counts how often it passes each injection site
(`gpusvm.kernel.inject`), and then once more for each of these passings, which fails. Each time all is checked that an
exploration checks: the invariants, at rest as well, contents, what the program is told (the driver's `Refusals`),
locks, and at the end that all accounts are empty.
"""

from collections.abc import Collection, Mapping
from importlib import resources
from typing import TYPE_CHECKING, Literal

from attrs import Factory, define, frozen

from gpusvm.explore.execution import execute
from gpusvm.explore.replay import Replay
from gpusvm.explore.scenario import read_scenarios
from gpusvm.explore.stage import Stage
from gpusvm.explore.world import World

if TYPE_CHECKING:
    from gpusvm.driver import DriverInfo
    from gpusvm.explore.execution import Execution
    from gpusvm.explore.scenario import Scenario

__all__ = ["InjectedFailure", "Sweep", "programs", "sweep"]


@frozen(kw_only=True)
class InjectedFailure:
    """Say what one failure broke: `site` failed on its `nth` passing in a program."""

    program: str
    site: str
    nth: int
    broke: str

    def __str__(self) -> str:
        return f"{self.program}: {self.site} fails on passing {self.nth}: {self.broke}"


@define(kw_only=True)
class Sweep:
    """Hold what a sweep found: how many passings of which sites failed, and what that broke.

    `noticed` counts the failures that made an operation answer otherwise than without them.
    """

    driver: str
    programs: int = 0
    failures: dict[str, int] = Factory(dict)
    noticed: int = 0
    findings: list[InjectedFailure] = Factory(list)

    def __str__(self) -> str:
        """Sum it up in one line."""
        return (
            f"{self.driver}: {self.programs} programs, {len(self.failures)} sites, "
            f"{sum(self.failures.values())} failures, {self.noticed} noticed by the program, "
            f"{len(self.findings)} findings"
        )


def programs() -> "list[Scenario]":
    """Return the programs of injection.toml."""
    file = resources.files("gpusvm.conformance").joinpath("injection.toml")
    return read_scenarios(file.read_text("utf-8"), source="conformance/injection.toml")


def sweep(
    driver: str,
    drivers: "Mapping[str, DriverInfo] | None" = None,
    *,
    quirks: Literal["as_written", "fixed"] = "fixed",
    only: Collection[str] = (),
) -> Sweep:
    """Let everything fail once that a driver passes in the programs that are for it; `only` names some of them."""
    if drivers is None:
        from gpusvm.plugins import load_drivers

        drivers = dict(load_drivers())
    found = Sweep(driver=driver)
    for program in programs():
        if program.refuses(drivers[driver.partition(":")[0]]) or (only and program.name not in only):
            continue
        found.programs += 1
        stage = Stage(lambda program=program: World(program, driver, drivers=drivers, quirks=quirks))  # type: ignore[misc]  # a lambda's default has no annotation
        world = stage.ready()
        before = dict(world.kernel.injector.sites)
        plain = execute(world, Replay(()))
        _note(found, program, "nothing", 0, plain)
        # Restoring the world puts back what the injector has counted.
        passed = {site: times - before.get(site, 0) for site, times in sorted(world.kernel.injector.sites.items())}
        for site, times in passed.items():
            for nth in range(1, times + 1):
                world = stage.ready()
                world.kernel.injector.arm(site, nth)
                execution = execute(world, Replay(()))
                found.failures[site] = found.failures.get(site, 0) + 1
                found.noticed += execution.outcomes != plain.outcomes
                _note(found, program, site, nth, execution)
    return found


def _note(found: Sweep, program: "Scenario", site: str, nth: int, execution: "Execution") -> None:
    failure = execution.failure
    if failure is not None:
        broke = f"{failure.kind} {failure.invariant}: {failure.message}"
        found.findings.append(InjectedFailure(program=program.name, site=site, nth=nth, broke=broke))
