"""Say what is tested: one driver with its settings, and what it states of itself."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from attrs import frozen

from gpusvm.conformance.lab import Lab, Quirks
from gpusvm.conformance.suite.check import PROFILES, Check
from gpusvm.conformance.suite.expected import Expected, Statement, read_statement
from gpusvm.errors import InputError

if TYPE_CHECKING:
    from gpusvm.driver import DriverSpec
    from gpusvm.plugins import LoadedDriver, Registry

__all__ = ["Column", "read_columns"]


@frozen(kw_only=True)
class Column:
    """Hold a driver under test: `driver` is its spec, normalised, and `quirks` what those are that it does not name."""

    driver: str
    quirks: Quirks
    beside: str
    """The spec of the other driver in machines with two; empty: the suite's own."""
    spec: "DriverSpec"
    loaded: "LoadedDriver"
    registry: "Registry"
    statement: Statement

    def lab(self) -> Lab:
        """Return a lab for one check."""
        return Lab(self.driver, self.registry, self.quirks, self.beside, watched=True)

    def expected(self, check: Check) -> Expected | None:
        """Return what the driver states of a check, as it is set up; None if that is nothing."""
        found = self.statement.expected.get(check.id)
        return found if found is not None and found.applies(self.spec) else None

    @property
    def profiles(self) -> tuple[str, ...]:
        """Name the profiles that the driver claims by what it declares."""
        capabilities = self.spec.info.capabilities
        return tuple(name for name, by in PROFILES.items() if by is None or getattr(capabilities, by))


def read_columns(
    texts: Sequence[str], registry: "Registry", *, quirks: Quirks = "as_written", beside: str = ""
) -> tuple[Column, ...]:
    """Read the specs of drivers under test; all of the registry if there is none. `beside` is the other driver's.

    InputError, in one line, for a driver that there is not, that is named twice, or that cannot stand beside another,
    and for what is wrong in a `conformance.toml`.
    """
    from gpusvm.driver import read_spec

    if not registry:
        raise InputError(
            "no driver plugin is installed; install one (gpusvm-xe, for example), or name a file in GPUSVM_DRIVERS"
        )
    other = Lab("", registry, beside=beside).other.text if beside else ""
    found: dict[str, Column] = {}
    for text in texts or registry:
        spec = read_spec(text, registry, quirks=quirks)
        if spec.text in found:
            raise InputError(f"driver spec {spec.text!r} is given twice")
        loaded = registry.find(spec.name)
        found[spec.text] = Column(
            driver=spec.text,
            quirks=quirks,
            beside=other,
            spec=spec,
            loaded=loaded,
            registry=registry,
            statement=read_statement(loaded, spec),
        )
    return tuple(found.values())
