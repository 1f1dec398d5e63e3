"""Say what a probe is: one question about how a driver behaves, answered by doing it."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from attrs import frozen

from gpusvm.conformance.lab import Lab, NotApplicableError, Quirks
from gpusvm.conformance.probes.expectation import expectations
from gpusvm.errors import GpusvmError, ModelError

if TYPE_CHECKING:
    from gpusvm.driver import DriverInfo, DriverSpec

__all__ = ["PROBES", "Lab", "NotApplicableError", "Observation", "Probe", "probe"]

PROBES: Final[dict[str, "Probe"]] = {}
"""All probes by id, in the order of their numbers."""

_NOT_APPLICABLE: Final = "n/a: "


@frozen(kw_only=True)
class Observation:
    """Hold what one probe saw of one driver, which `driver` names by its spec.

    `expected` is what Linux does, or what is pinned of a driver that it has not, None where nothing is known;
    `declared` what the driver says of the capability that the question is about, None if it is about none. `deviation`
    is the known reason why something else is seen than expected. `finding` is what is wrong, None if nothing is.
    """

    id: str
    title: str
    driver: str
    observed: str
    expected: str | None
    declared: str | None
    deviation: str | None
    reference: str
    finding: str | None = None

    def to_dict(self) -> dict[str, str | None]:
        """Return it as plain values, as in a document of `gpusvm characterize`."""
        return {
            "id": self.id,
            "title": self.title,
            "driver": self.driver,
            "observed": self.observed,
            "expected": self.expected,
            "declared": self.declared,
            "deviation": self.deviation,
            "reference": self.reference,
        }


@frozen(kw_only=True)
class Probe:
    """Be one row of the table of semantic differences.

    `ask` does it in a lab and says in a few words what it saw. `reference` is where Linux says so, `capability` which
    capability of the driver it is about, and `shows` tells from what was seen whether the driver has it (None: that
    cannot be told).
    """

    id: str
    title: str
    reference: str
    ask: Callable[[Lab], str]
    capability: str | None = None
    shows: Callable[[str], bool | None] | None = None

    def observe(
        self, driver: str, drivers: "Mapping[str, DriverInfo]", *, quirks: Quirks = "as_written"
    ) -> Observation:
        """Ask a driver. InputError if there is no such driver; what breaks while it is asked is a finding."""
        from gpusvm.driver import read_spec

        spec = read_spec(driver, drivers, quirks=quirks)
        lab = Lab(driver, drivers, quirks)
        broke: str | None = None
        try:
            try:
                observed = self.ask(lab)
            except NotApplicableError as reason:
                observed = f"{_NOT_APPLICABLE}{reason}"
            lab.close()
        except Exception as error:  # noqa: BLE001  # a plugin's code may raise anything; the other questions go on
            observed = broke = _breakage(error)
            lab.abandon()
        row = expectations()[self.id]
        known = row.seen.get(spec.name) == observed
        return Observation(
            id=self.id,
            title=self.title,
            driver=spec.text,
            observed=observed,
            expected=row.of(spec.name),
            declared=self._declared(spec),
            deviation=row.deviation[spec.name] if known else None,
            reference=self.reference,
            finding=broke or self._finding(observed, spec, known=known, quirks=quirks),
        )

    def _declared(self, spec: "DriverSpec") -> str | None:
        if self.capability is None:
            return None
        declared = getattr(spec.info.capabilities, self.capability)
        return f"{self.capability}: {'yes' if declared else 'no'}, {declared.how}"

    def _finding(self, observed: str, spec: "DriverSpec", *, known: bool, quirks: Quirks) -> str | None:
        """Say what is wrong with a driver as it ships. One with other settings is there to be different."""
        if spec.text != spec.name or quirks != "as_written":
            return None
        if self.capability is not None:
            seen = self.shows(observed) if self.shows is not None else None
            if seen is not None and seen is not bool(getattr(spec.info.capabilities, self.capability)):
                return f"{observed}, and it declares {self._declared(spec)}"
        expected = expectations()[self.id].of(spec.name)
        if expected not in {None, observed} and not known:
            return f"{observed}, and Linux: {expected}"
        return None


def _breakage(error: Exception) -> str:
    if isinstance(error, GpusvmError):
        return f"broke: {error}"
    at = error.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    where = f" ({at.tb_frame.f_code.co_filename}:{at.tb_lineno})" if at is not None else ""
    return f"broke: {type(error).__name__}: {error}{where}"


def applies(observed: str) -> bool:
    """Tell whether a driver does what a question is about."""
    return not observed.startswith(_NOT_APPLICABLE)


def probe(
    id_: str,
    title: str,
    *,
    reference: str,
    capability: str | None = None,
    shows: Callable[[str], bool | None] | None = None,
) -> Callable[[Callable[[Lab], str]], Callable[[Lab], str]]:
    """Make a probe of a function."""

    def register(ask: Callable[[Lab], str]) -> Callable[[Lab], str]:
        if id_ in PROBES:
            raise ModelError(f"two probes are called {id_}")
        PROBES[id_] = Probe(id=id_, title=title, reference=reference, capability=capability, shows=shows, ask=ask)
        return ask

    return register
