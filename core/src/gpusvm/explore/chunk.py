"""Run a stretch of one exploration's schedules wherever the executor puts it, and bring back what was found."""

from __future__ import annotations

import time
from contextlib import nullcontext
from typing import TYPE_CHECKING

from attrs import frozen

from gpusvm.driver import split_spec
from gpusvm.explore.campaign import Campaign
from gpusvm.explore.case import Case
from gpusvm.explore.coverage import Coverage
from gpusvm.explore.schedulers import read_scheduler
from gpusvm.plugins import Installed

if TYPE_CHECKING:
    from gpusvm.explore.execution import Execution
    from gpusvm.explore.footprint import Footprints
    from gpusvm.explore.scheduler import Scheduler
    from gpusvm.explore.stage import Stage

__all__ = ["Chunk", "ChunkResult", "run_chunk"]


@frozen(kw_only=True)
class Chunk:
    """Hold the schedules first, first + 1, … of a case: `schedules` of them, or as many as there is time for.

    `deadline_s` is by the clock of `time.time`. `keep_going`: the first execution of each kind of failure is kept, else
    the first one ends the chunk.
    """

    campaign: int
    case: Case
    scheduler: str
    seed: int
    first: int
    schedules: int | None
    deadline_s: float | None
    keep_going: bool
    splits: bool = True
    """The scheduler begins anywhere; else the chunk before, in the same process, has what this one goes on with."""


@frozen
class _Kept:
    stage: Stage
    scheduler: Scheduler
    last: Chunk

    def fits(self, chunk: Chunk) -> bool:
        return (self.last.case, self.last.scheduler, self.last.seed) == (chunk.case, chunk.scheduler, chunk.seed)


@frozen(kw_only=True)
class ChunkResult:
    """Hold what came of a chunk: counts, coverage, and by (kind, invariant) the first failed execution and how many."""

    campaign: int
    first: int
    schedules: int
    steps: int
    abandoned: int
    self_tests: int
    exhausted: bool
    interrupted: bool
    skipped: int | None
    coverage: Coverage
    failed: tuple[tuple[int, Execution, int], ...]


# What the next chunk of the same exploration in this process goes on with: the chunks of one come one after the other.
_LAST: list[_Kept] = []


def run_chunk(chunk: Chunk) -> ChunkResult:
    """Run the executions of one chunk; Ctrl-C ends it early, with what it has."""
    case = chunk.case
    kept = _LAST.pop() if _LAST and _LAST[0].fits(chunk) else None
    scheduler = _scheduler(chunk) if kept is None or chunk.splits else kept.scheduler
    footprints: Footprints | None = getattr(scheduler, "footprints", None)
    campaign = Campaign(
        boot=case.boot,
        scheduler=scheduler,
        failures_max=case.failures_max,
        footprints=footprints,
        first=chunk.first,
    )
    if kept is not None and footprints is None:
        campaign.stage = kept.stage
    failed: dict[tuple[str, str], tuple[int, Execution, int]] = {}
    seconds = None if chunk.deadline_s is None else chunk.deadline_s - time.time()
    interrupted = False
    try:
        with case.active(), nullcontext() if footprints is None else footprints.watching():
            for number, execution in campaign.run(schedules=chunk.schedules, seconds=seconds):
                assert execution.failure is not None
                key = (execution.failure.kind, execution.failure.invariant)
                first, earliest, times = failed.get(key, (number, execution, 0))
                failed[key] = (first, earliest, times + 1)
                if not chunk.keep_going:
                    break
    except KeyboardInterrupt:
        interrupted = True  # and the machine may be in the middle of anything, so it is not kept
    else:
        if footprints is None:  # else the machine was booted while they watched
            _LAST[:] = [_Kept(campaign.stage, campaign.scheduler, chunk)]
    return ChunkResult(
        campaign=chunk.campaign,
        first=chunk.first,
        schedules=campaign.schedules,
        steps=campaign.steps,
        abandoned=campaign.abandoned,
        self_tests=campaign.self_tests,
        exhausted=campaign.exhausted,
        interrupted=interrupted,
        skipped=getattr(scheduler, "skipped", None),
        coverage=campaign.coverage,
        failed=tuple(failed.values()),
    )


def _scheduler(chunk: Chunk) -> Scheduler:
    """Make the scheduler; one that watches what steps touch watches the driver's package, or module."""
    case = chunk.case
    drivers = case.drivers.registry() if isinstance(case.drivers, Installed) else case.drivers
    name, _ = split_spec(case.driver)
    package = drivers[name].make.__module__.partition(".")[0]
    return read_scheduler(chunk.scheduler).make(seed=chunk.seed, first=chunk.first, packages=(package,))
