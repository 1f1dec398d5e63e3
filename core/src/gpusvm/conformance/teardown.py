"""Take everything down in every order, with GPU faults in flight, and look at what is left.

What goes: the GPU's address space, the process, the device, the driver, its module. The driver goes after the address
space and the device; in a random interleaving it may still be in use. The module goes anywhere, and does not as long as
anybody holds it. What is refused goes at the end, as the machine does. Each order runs next to a GPU that writes and a
CPU that reads.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import permutations
from typing import TYPE_CHECKING, Final, Literal

from attrs import Factory, define

from gpusvm.explore.execution import execute
from gpusvm.explore.operation import Operation
from gpusvm.explore.random_walk import RandomWalk
from gpusvm.explore.scenario import Scenario
from gpusvm.explore.stage import Stage
from gpusvm.explore.world import World

if TYPE_CHECKING:
    from gpusvm.driver import DriverInfo

__all__ = ["Teardowns", "orders", "program", "teardowns"]

_SETUP: Final = ("map 0 8", "cpu_write 0 8", "gpu_write 0 1")
_POPULATE: Final = "populate 4 4"
_GPU: Final = ("gpu_write 0 2", "gpu_write 3 3")
_CPU: Final = ("cpu_read 0 2", "cpu_write 4 2")


@define(kw_only=True)
class Teardowns:
    """Hold what was run and what it broke: (order, seed, what)."""

    driver: str
    orders: int = 0
    runs: int = 0
    findings: list[tuple[str, int, str]] = Factory(list)

    def __str__(self) -> str:
        """Sum it up in one line."""
        return f"{self.driver}: {self.orders} orders, {self.runs} runs, {len(self.findings)} findings"


def orders(*, unplug: bool) -> Iterator[tuple[str, ...]]:
    """Yield every order in which things may go, with the device itself among them or not."""
    for order in permutations(("close", "exit", *(("unplug",) if unplug else ()), "shutdown", "unload")):
        if {"close", "unplug"}.isdisjoint(order[order.index("shutdown") :]):
            yield order


def program(order: Sequence[str], *, populate: bool) -> Scenario:
    """Return the program in which everything goes in an order; some of its memory is on the device if it can be."""
    setup = (*_SETUP, *((_POPULATE,) if populate else ()))
    return Scenario(
        name="-".join(order),
        about="everything goes, with faults in flight",
        setup=tuple(map(Operation.parse, setup)),
        tasks={
            "gpu": tuple(map(Operation.parse, _GPU)),
            "cpu": tuple(map(Operation.parse, _CPU)),
            "hand": tuple(map(Operation.parse, order)),
        },
    )


def teardowns(
    driver: str,
    drivers: "Mapping[str, DriverInfo] | None" = None,
    *,
    seeds: int = 10,
    quirks: Literal["as_written", "fixed"] = "fixed",
) -> Teardowns:
    """Run each order `seeds` times."""
    if drivers is None:
        from gpusvm.plugins import load_drivers

        drivers = dict(load_drivers())
    capabilities = drivers[driver.partition(":")[0]].capabilities
    found = Teardowns(driver=driver)
    for order in orders(unplug=bool(capabilities.unplug)):
        found.orders += 1
        scenario = program(order, populate=bool(capabilities.explicit_populate))
        stage = Stage(lambda scenario=scenario: World(scenario, driver, drivers=drivers, quirks=quirks))  # type: ignore[misc]  # a lambda's default has no annotation
        for seed in range(seeds):
            walk = RandomWalk(seed=seed)
            walk.new_execution()
            failure = execute(stage.ready(), walk).failure
            found.runs += 1
            if failure is not None:
                broke = f"{failure.kind} {failure.invariant}: {failure.message}"
                found.findings.append((scenario.name, seed, broke))
    return found
