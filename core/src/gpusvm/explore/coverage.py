"""Count what executions reached, and know what they could have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, Final

from attrs import Factory, define

from gpusvm.explore.sites import sites_of, yield_points_of

if TYPE_CHECKING:
    from gpusvm.explore.execution import Execution
    from gpusvm.explore.world import World

__all__ = ["PLACES_EVERY", "STATES_EVERY", "Coverage", "is_looked_at"]

PLACES_EVERY: Final = 16
"""One execution in so many is looked at for its places, by number, the first one too; later fewer (`is_looked_at`)."""

STATES_EVERY: Final = 32
"""One execution in so many, by number, the second one too, has the state of its end looked at, which takes 1 ms; later
fewer (`is_looked_at`)."""

_DENSE: Final = 16
_RARER: Final = 4

Outcomes = tuple[tuple[str, str, str], ...]


def is_looked_at(number: int, every: int, *, first: int = 0) -> bool:
    """Tell whether execution `number` is one of those that are looked at: numbers `first`, `first + every`, …, and when
    there have been 16 only one in four of them, as most of what they reach is known by then.
    """
    if not every or number % every != first:
        return False
    return number < _DENSE * every or number % (_RARER * every) == first


@define
class Coverage:
    """Count executions by outcome, passings of injection sites, and executions that reached a kernel operation.

    ``places`` counts by (operation, ``file:line in function``), in the executions that were looked at
    (`PLACES_EVERY`), which ``recorded`` counts. ``known_sites`` and ``known_yields`` are all that the machine's code
    has (`gpusvm.explore.sites`). ``states`` are the fingerprints of the machine when all tasks had ended and come to
    rest, in the ``looked_at`` executions that came so far of those that are looked at (`STATES_EVERY`).
    """

    outcomes: Counter[Outcomes] = Factory(Counter)
    sites: Counter[str] = Factory(Counter)
    places: Counter[tuple[str, str]] = Factory(Counter)
    recorded: int = 0
    states: set[int] = Factory(set)
    looked_at: int = 0
    known_sites: frozenset[str] = frozenset()
    known_yields: frozenset[str] = frozenset()

    def add(self, execution: Execution, sites: Mapping[str, int], before: Mapping[str, int]) -> None:
        """Count an execution, with the passings of each site after it and before it."""
        self.outcomes[tuple(sorted(execution.outcomes))] += 1
        for site, times in sites.items():
            passed = times - before.get(site, 0)
            if passed:
                self.sites[site] += passed

    def add_places(self, places: Collection[tuple[str, str]]) -> None:
        self.recorded += 1
        self.places.update(places)

    def list_code(self, world: World) -> None:
        """Take from the source what the code of a world's machine has; that takes some tenths of a second, once."""
        self.known_sites = sites_of(world)
        self.known_yields = yield_points_of(world)

    def add_state(self, fingerprint: int) -> None:
        self.looked_at += 1
        self.states.add(fingerprint)

    def merge(self, other: Coverage) -> None:
        """Add what another campaign has counted; states are told apart only on the same machine."""
        self.outcomes.update(other.outcomes)
        self.sites.update(other.sites)
        self.places.update(other.places)
        self.recorded += other.recorded
        self.states |= other.states
        self.looked_at += other.looked_at
        self.known_sites |= other.known_sites
        self.known_yields |= other.known_yields

    @property
    def sites_reached(self) -> dict[str, int]:
        """Return how often each injection site of the machine's code was passed; those that were, by name."""
        return {site: self.sites[site] for site in sorted(self.sites.keys() & self.known_sites)}

    @property
    def sites_missed(self) -> list[str]:
        """Return the injection sites that the machine's code has and no execution has passed."""
        return sorted(self.known_sites - self.sites.keys())

    @property
    def yields_reached(self) -> dict[str, list[str]]:
        """Return the operations that recorded executions did at each yield point of the machine's code, by place."""
        files = {_file(place) for place in self.known_yields}
        found: dict[str, list[str]] = {}
        for operation, place in sorted(self.places, key=lambda each: (_line(each[1]), each[0])):
            if _file(place) in files:
                found.setdefault(place, []).append(operation)
        return found

    @property
    def yields_missed(self) -> list[str]:
        """Return the yield points that the machine's code has and no recorded execution has reached, by place."""
        reached = {_line(place) for place in self.yields_reached}
        return sorted((place for place in self.known_yields if _line(place) not in reached), key=_line)

    def to_dict(self, *, places: bool = False) -> dict[str, Any]:
        """Return what ``gpusvm explore --json`` has of it; with `places` every yield point by its place in the code."""
        reached, never = self.yields_reached, self.yields_missed
        yields: dict[str, Any] = {"reached": len(reached), "never": len(never), "executions": self.recorded}
        if places:
            yields["reached_places"] = reached
            yields["never_places"] = never
        return {
            "outcomes": len(self.outcomes),
            "states": {"distinct": len(self.states), "executions": self.looked_at},
            "injection_sites": {"reached": self.sites_reached, "never": self.sites_missed},
            "yield_points": yields,
        }


def _file(place: str) -> str:
    return place.partition(":")[0]


def _line(place: str) -> tuple[str, int]:
    file, _, rest = place.partition(":")
    return file, int(rest.partition(" ")[0])
