"""Say what is explored, in a way that travels to another process: a scenario on a driver, with quirks and a mutant."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Literal, Protocol

from attrs import field, frozen

from gpusvm.driver import read_spec
from gpusvm.explore.scenario import Scenario
from gpusvm.explore.world import World
from gpusvm.plugins import Installed

if TYPE_CHECKING:
    from gpusvm.driver import DriverInfo

__all__ = ["Case", "Switch"]


class Switch(Protocol):
    """Be a bug that can be switched on (`gpusvm.conformance.mutants.Mutant` is one)."""

    @property
    def id(self) -> str: ...

    def active(self) -> AbstractContextManager[object]: ...


@frozen(kw_only=True)
class Case:
    """Describe one machine and the program on it.

    `driver` is a spec string. With a `mutant`, `boot` and whatever is done with the world belong inside `active`.
    """

    scenario: Scenario
    driver: str
    drivers: Installed | Mapping[str, DriverInfo] = field(eq=False, repr=False)
    quirks: Literal["as_written", "fixed"] = "fixed"
    failures_max: int = 0
    mutant: Switch | None = None

    def active(self) -> AbstractContextManager[object]:
        """Return the context in which the mutant, if there is one, is switched on."""
        return nullcontext() if self.mutant is None else self.mutant.active()

    def boot(self) -> World:
        """Boot the machine and run the scenario's setup. InputError for what cannot be."""
        return World(self.scenario, self.driver, drivers=self._registry(), quirks=self.quirks)

    @property
    def packages(self) -> tuple[str, ...]:
        """Name the packages that the driver's code is in, and the mutant's."""
        make = read_spec(self.driver, self._registry()).info.make
        driver = make.__module__.partition(".")[0]
        return (driver,) if self.mutant is None else (driver, type(self.mutant).__module__.rpartition(".")[0])

    def _registry(self) -> Mapping[str, DriverInfo]:
        return self.drivers.registry() if isinstance(self.drivers, Installed) else self.drivers
