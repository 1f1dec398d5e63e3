"""Hold the drivers that were found, as a value."""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from attrs import frozen

from gpusvm.errors import InputError, nearest

if TYPE_CHECKING:
    from gpusvm.driver import DriverInfo
    from gpusvm.driver.operations import OperationTarget

__all__ = ["LoadedDriver", "Registry"]


@frozen(kw_only=True)
class LoadedDriver:
    """Hold one driver, how it executes recorded operations, if it does, and where it came from, if from a plugin."""

    info: "DriverInfo"
    operations: "OperationTarget | None" = None
    plugin: str | None = None
    distribution: str | None = None
    version: str | None = None
    path: str | None = None

    @property
    def origin(self) -> str:
        """Name the distribution and its version, or the file, or say that it was given in Python."""
        if self.distribution:
            return f"{self.distribution} {self.version}"
        return self.path or "given in Python"


@frozen
class Registry(Mapping[str, "DriverInfo"]):
    """Map names to drivers, sorted; `load_drivers()` builds it or, without discovery, `Registry.of(info, …)`."""

    drivers: tuple[LoadedDriver, ...]

    @classmethod
    def of(cls, *infos: "DriverInfo") -> "Registry":
        """Make a registry of these drivers alone; raises ValueError if two have one name."""
        return cls.of_loaded(LoadedDriver(info=info) for info in infos)

    @classmethod
    def of_loaded(cls, drivers: Iterable[LoadedDriver]) -> "Registry":
        """Make a registry of drivers with their origins; raises ValueError if two have one name."""
        ordered = sorted(drivers, key=lambda driver: driver.info.name)
        for first, second in itertools.pairwise(ordered):
            if first.info.name == second.info.name:
                raise ValueError(f"two drivers are called {first.info.name!r}: {first.origin} and {second.origin}")
        return cls(tuple(ordered))

    def find(self, name: str) -> LoadedDriver:
        """Return the driver `name` with its origin; raises InputError with the nearest name."""
        for driver in self.drivers:
            if driver.info.name == name:
                return driver
        if not self.drivers:
            raise InputError(f"unknown driver {name!r}: no driver plugin is installed")
        raise InputError(f"unknown driver {name!r}; {nearest(name, self)}")

    def __getitem__(self, name: str) -> "DriverInfo":
        for driver in self.drivers:
            if driver.info.name == name:
                return driver.info
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return (driver.info.name for driver in self.drivers)

    def __len__(self) -> int:
        return len(self.drivers)
