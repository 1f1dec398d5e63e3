"""Count what executions reached."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Final

from attrs import Factory, define

if TYPE_CHECKING:
    from gpusvm.explore.execution import Execution

__all__ = ["PLACES_EVERY", "Coverage"]

PLACES_EVERY: Final = 16
"""One execution in so many is looked at for its places, by number, the first one too."""

Outcomes = tuple[tuple[str, str, str], ...]


@define
class Coverage:
    """Count executions by outcome, passings of injection sites, and executions that reached a kernel operation.

    ``places`` counts by (operation, ``file:line in function``), in the executions that were looked at
    (`PLACES_EVERY`), which ``recorded`` counts. ``known_sites`` are all that the machine's code has.
    """

    outcomes: Counter[Outcomes] = Factory(Counter)
    sites: Counter[str] = Factory(Counter)
    places: Counter[tuple[str, str]] = Factory(Counter)
    recorded: int = 0
    known_sites: frozenset[str] = frozenset()

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

    def merge(self, other: Coverage) -> None:
        """Add what another campaign on the same machine has counted."""
        self.outcomes.update(other.outcomes)
        self.sites.update(other.sites)
        self.places.update(other.places)
        self.recorded += other.recorded
        self.known_sites |= other.known_sites

    @property
    def sites_missed(self) -> list[str]:
        """Return the injection sites that the machine's code has and no execution has passed."""
        return sorted(self.known_sites - self.sites.keys())
