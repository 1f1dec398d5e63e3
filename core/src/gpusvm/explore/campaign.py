"""Explore one scenario on one driver: many executions under one scheduler, within a budget, with what they found."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from time import perf_counter
from typing import TYPE_CHECKING

from attrs import Factory, define, field

from gpusvm.explore.execution import Execution, execute
from gpusvm.explore.stage import Stage

if TYPE_CHECKING:
    from gpusvm.explore.footprint import Footprints
    from gpusvm.explore.scheduler import Scheduler
    from gpusvm.explore.world import World

__all__ = ["Campaign", "Coverage"]


@define
class Coverage:
    """Count what the executions reached: schedules by outcome, injection sites by how often they were passed."""

    outcomes: dict[tuple[tuple[str, str, str], ...], int] = Factory(dict)
    sites: dict[str, int] = Factory(dict)

    def add(self, execution: Execution, sites: Mapping[str, int]) -> None:
        key = tuple(sorted(execution.outcomes))
        self.outcomes[key] = self.outcomes.get(key, 0) + 1
        for site, times in sites.items():
            self.sites[site] = self.sites.get(site, 0) + times


@define
class Campaign:
    """Run executions of a world one after the other.

    ``boot`` makes the world; it is booted once and put back between executions. ``schedules``, ``steps`` and
    ``abandoned`` count; ``exhausted`` says that the scheduler had no more to give. `footprints`, which a scheduler may
    want, have to be watching.
    """

    boot: Callable[[], World]
    scheduler: Scheduler
    failures_max: int = 0
    footprints: Footprints | None = None
    schedules: int = 0
    abandoned: int = 0
    steps: int = 0
    seconds: float = 0.0
    exhausted: bool = False
    coverage: Coverage = Factory(Coverage)
    _stage: Stage = field(init=False)

    def __attrs_post_init__(self) -> None:
        if self.footprints is not None:
            self.footprints.boot()
        self._stage = Stage(self.boot)

    def run(self, *, schedules: int | None = None, seconds: float | None = None) -> Iterator[tuple[int, Execution]]:
        """Run until a budget is used up or nothing is left; yield (schedule, execution) of each that failed."""
        begun = perf_counter()
        spent = self.seconds
        while (schedules is None or self.schedules < schedules) and (
            seconds is None or perf_counter() - begun < seconds
        ):
            if not self.scheduler.new_execution():
                self.exhausted = True
                break
            world = self._stage.ready()
            execution = execute(world, self.scheduler, failures_max=self.failures_max, footprints=self.footprints)
            self.schedules += 1
            self.abandoned += execution.abandoned
            self.steps += execution.steps
            self.coverage.add(execution, world.kernel.inject_sites)
            self.seconds = spent + perf_counter() - begun
            if execution.failure is not None:
                yield self.schedules - 1, execution
        self.seconds = spent + perf_counter() - begun
