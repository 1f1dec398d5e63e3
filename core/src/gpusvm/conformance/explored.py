"""Run a small concurrent program on the driver under test, in a few tens of orders, the same each time.

An order is one schedule of a random walk. All is checked that an exploration checks: the invariants as it runs and at
rest, contents, locks, whether anybody gets anywhere, what the program is told, and at the end that nothing is left.
What the mm of Linux as written breaks by itself (a quirk of `gpusvm.mm.MmQuirks`) is no rule of a driver's.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from attrs import fields

from gpusvm.explore.execution import execute
from gpusvm.explore.operation import Operation
from gpusvm.explore.random_walk import RandomWalk
from gpusvm.explore.scenario import Scenario
from gpusvm.explore.stage import Stage
from gpusvm.explore.world import World
from gpusvm.mm import MmQuirks

if TYPE_CHECKING:
    from gpusvm.conformance.suite import Lab
    from gpusvm.driver import DriverSpec

__all__ = ["SCHEDULES", "explored", "is_of_the_mm", "run", "steps"]

SCHEDULES: Final = 30
"""Orders that a program is run in, if a check does not say otherwise."""

_MM_QUIRKS: Final = frozenset(each.name for each in fields(MmQuirks))


def steps(text: str) -> tuple[Operation, ...]:
    """Read operations that are separated by semicolons."""
    return tuple(Operation.parse(line.strip()) for line in text.split(";") if line.strip())


def is_of_the_mm(invariant: str) -> bool:
    """Tell whether what broke, as a failure names it, is known of the mm as written, whatever the driver is."""
    return invariant in _MM_QUIRKS


def explored(
    lab: "Lab",
    tasks: Mapping[str, str],
    *,
    setup: str = "map 0 4; cpu_write 0 4",
    end: str = "cpu_read 0 4",
    schedules: int = SCHEDULES,
    **machine: Any,
) -> None:
    """Run tasks next to each other, operations separated by semicolons, in `schedules` orders; `machine` are options of
    a `Scenario`.

    AssertionError for the first order that breaks something, with the seed that repeats it.
    """
    scenario = Scenario(
        name="check",
        about="what a check does",
        setup=steps(setup),
        tasks={name: steps(text) for name, text in tasks.items()},
        end=steps(end),
        **machine,
    )
    run(lab, scenario, schedules=schedules)


def run(lab: "Lab", *scenarios: Scenario, schedules: int, beside: "Sequence[DriverSpec]" = ()) -> None:
    """Run scenarios one after the other, each in so many orders, with drivers of their own on the devices behind the
    first that `beside` has some for. AssertionError as of `explored`.

    One machine is booted for all: they differ in nothing but the order of each task's operations.
    """
    first = scenarios[0]
    stage = Stage(lambda: World(first, lab.driver, drivers=lab.drivers, quirks=lab.quirks, beside=beside))
    for scenario in scenarios:
        for seed in range(schedules):
            walk = RandomWalk(seed=seed)
            walk.new_execution()
            world = stage.ready()
            world.scenario = scenario
            failure = execute(world, walk).failure
            if failure is not None and not is_of_the_mm(failure.invariant):
                broke = f"{failure.kind} {failure.invariant}: {failure.message}"
                raise AssertionError(f"{scenario.name}, seed {seed}: {broke}")
