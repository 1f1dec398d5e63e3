"""Hold what an exploration came to, for tools and for people."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from attrs import Factory, define, field, frozen

from gpusvm.explore.coverage import Coverage
from gpusvm.explore.finding import Finding

if TYPE_CHECKING:
    from gpusvm.explore.shrink import Shrunk

__all__ = ["Exploration", "Explorations", "Found", "LeftOut"]

SCHEMA: Final = 1


@frozen(kw_only=True)
class Found:
    """Hold one finding, the schedule it was first seen in, in how many it was, and the file it was written to."""

    finding: Finding
    schedule: int
    times: int
    file: Path | None
    shrunk: Shrunk | None = None


@define
class Exploration:
    """Hold what exploring one scenario on one driver came to.

    `schedules` counts executions and `seconds` is the time they took, without shrinking. `exhausted`: the scheduler has
    nothing left. `skipped` counts the equivalent orders that an exhaustive scheduler did not run. `first` is the number
    of the first schedule, so ``first + schedules`` is where to go on.
    """

    scenario: str
    driver: str
    scheduler: str
    first: int = 0
    schedules: int = 0
    steps: int = 0
    abandoned: int = 0
    skipped: int | None = None
    self_tests: int = 0
    seconds: float = 0.0
    exhausted: bool = False
    interrupted: bool = False
    coverage: Coverage = Factory(Coverage)
    findings: list[Found] = field(factory=list)

    @property
    def schedules_per_s(self) -> float:
        return self.schedules / self.seconds if self.seconds else 0.0

    def to_dict(self, *, places: bool = False) -> dict[str, Any]:
        """Return the document that ``--json`` prints (schema/exploration-1.json), with `places` that of --coverage."""
        return {
            "schema": SCHEMA,
            "scenario": self.scenario,
            "driver": self.driver,
            "scheduler": self.scheduler,
            "schedules": self.schedules,
            "seconds": round(self.seconds, 3),
            "schedules_per_s": round(self.schedules_per_s, 1),
            "exhausted": self.exhausted,
            "skipped": self.skipped,
            "coverage": self.coverage.to_dict(places=places),
            "findings": [
                {
                    "kind": found.finding.kind,
                    "invariant": found.finding.invariant,
                    "file": None if found.file is None else str(found.file),
                }
                for found in self.findings
            ],
        }


@frozen(kw_only=True)
class LeftOut:
    """Name a scenario that was asked for and is not for a driver, and why."""

    scenario: str
    driver: str
    reason: str


@frozen
class Explorations:
    """Hold several explorations, in the order of scenarios, and of drivers for each.

    `results` are those that had begun when it was `interrupted`, if it was; `asked` is how many there were to be.
    """

    results: tuple[Exploration, ...]
    interrupted: bool = False
    asked: int = 0
    left_out: tuple[LeftOut, ...] = ()

    @property
    def ended(self) -> int:
        """Count those that came to their end."""
        return sum(not result.interrupted for result in self.results)

    @property
    def findings(self) -> list[Found]:
        """List the findings of all."""
        return [found for result in self.results for found in result.findings]

    def to_dict(self, *, places: bool = False) -> dict[str, Any]:
        """Return one exploration's document, or that of several (schema/explorations-1.json)."""
        if len(self.results) == 1:
            return self.results[0].to_dict(places=places)
        return {
            "schema": SCHEMA,
            "results": [result.to_dict(places=places) for result in self.results],
            "left_out": [
                {"scenario": each.scenario, "driver": each.driver, "reason": each.reason} for each in self.left_out
            ],
        }

    def to_json(self, *, places: bool = False) -> str:
        """Return the document as text."""
        return json.dumps(self.to_dict(places=places), indent=2, ensure_ascii=False) + "\n"
