"""lib/fault-inject.c, as of Linux 7.3.4: named points where something may fail."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from gpusvm.errors import InputError

if TYPE_CHECKING:
    from gpusvm.kernel.choices import Choices


class Injector:
    """Decide at each named site whether to fail there.

    A site registers when it is first reached; ``sites`` counts how often each was. A site is armed to fail on its nth
    passing from now on and on the next times - 1; or, when failures are explored, `Choices` decide (label
    ``inject:SITE``) within a budget.
    """

    __slots__ = ("_armed", "_budget", "_choices", "_explored", "failed", "quiet", "sites")

    def __init__(self, choices: Choices) -> None:
        self.sites: dict[str, int] = {}
        self.failed: list[str] = []
        self._armed: dict[str, tuple[int, int]] = {}
        self._choices = choices
        self._explored: Collection[str] | None = ()
        self._budget = 0
        self.quiet = True  # nothing armed, nothing explored

    def set_choices(self, choices: Choices) -> None:
        """Let other choices decide about explored failures."""
        self._choices = choices

    def arm(self, site: str, nth: int = 1, times: int = 1) -> None:
        """Let `site` fail on its nth passing from now on, and on the next times - 1."""
        if nth < 1 or times < 1:
            raise InputError(f"inject {site!r}: nth and times count from 1, got nth={nth} times={times}")
        self._armed[site] = (nth, times)
        self.quiet = False

    def explore(self, sites: Collection[str] | None, failures_max: int) -> None:
        """Make a failure a choice at the given sites (None: at all), failures_max times at most."""
        self._explored = sites
        self._budget = failures_max
        self.quiet = not self._armed and failures_max == 0

    @property
    def armed(self) -> list[str]:
        """List the sites that are armed and have not failed as often as they should."""
        return list(self._armed)

    def passing(self, site: str) -> bool:
        """Count a passing of `site` and return whether it fails."""
        self.sites[site] = self.sites.get(site, 0) + 1
        if self.quiet:
            return False
        if site in self._armed:
            nth, times = self._armed[site]
            if nth > 1:
                self._armed[site] = (nth - 1, times)
                return False
            if times > 1:
                self._armed[site] = (1, times - 1)
            else:
                del self._armed[site]
                self.quiet = not self._armed and self._budget == 0
            self.failed.append(site)
            return True
        if (
            self._budget
            and (self._explored is None or site in self._explored)
            and self._choices.pick(2, f"inject:{site}")
        ):
            self._budget -= 1
            self.quiet = not self._armed and self._budget == 0
            self.failed.append(site)
            return True
        return False
