"""Ask drivers all the questions that Linux's drivers answer differently, and lay side by side what was seen."""

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from attrs import frozen

from gpusvm.conformance.lab import Quirks
from gpusvm.conformance.probes import PROBES, Observation
from gpusvm.errors import InputError

if TYPE_CHECKING:
    from gpusvm.plugins import Registry

__all__ = ["Characterization", "Listener", "characterize"]

Listener = Callable[[int, int, str], None]
"""Hear how many of how many questions to one driver are answered, and which is asked next."""


@frozen(kw_only=True)
class Characterization:
    """Hold what was seen of `drivers` (specs, normalised): `observations` by question, then by driver."""

    drivers: tuple[str, ...]
    observations: tuple[Observation, ...]

    @property
    def findings(self) -> tuple[Observation, ...]:
        """Return those in which a driver does what it does not declare, or what Linux does not, or breaks."""
        return tuple(each for each in self.observations if each.finding is not None)

    @property
    def deviations(self) -> tuple[Observation, ...]:
        """Return those that are known to be otherwise than expected, with a reason."""
        return tuple(each for each in self.observations if each.deviation is not None)

    def to_dict(self) -> dict[str, Any]:
        """Return the content of ``gpusvm characterize --json`` (schema ``characterize-1.json``)."""
        return {"schema": 1, "probes": [each.to_dict() for each in self.observations]}

    def to_json(self) -> str:
        """Write it as JSON."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n"


def characterize(
    drivers: str | Sequence[str] = (),
    *,
    probes: Sequence[str] = (),
    quirks: Quirks = "as_written",
    without: Sequence[str] = (),
    registry: "Registry | None" = None,
    progress: Listener | None = None,
) -> Characterization:
    """Ask drivers, by their specs, by default all that are installed; `probes` are ids, by default all.

    InputError, in one line, for a driver or a probe that there is not, and for one that is named twice.
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
    _no_repeat("driver spec", specs)
    for id_ in probes:
        if id_ not in PROBES:
            raise InputError(f"unknown probe {id_!r}, {_nearest(id_)}")
    _no_repeat("probe", probes)
    asked = [each for id_, each in PROBES.items() if id_ in probes or not probes]
    observations: list[Observation] = []
    for each in asked:
        for spec in specs:
            if progress is not None:
                progress(len(observations), len(asked) * len(specs), f"{each.id} {each.title}: {spec}")
            observations.append(each.observe(spec, registry, quirks=quirks))
    return Characterization(drivers=tuple(specs), observations=tuple(observations))


def _nearest(id_: str) -> str:
    upper = id_.upper()
    return f"did you mean {upper!r}?" if upper in PROBES else "the probes are S1 to S45"


def _no_repeat(what: str, names: Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{what} {name!r} is given twice")
