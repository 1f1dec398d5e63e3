"""Run a stretch of one exploration's schedules wherever the executor puts it, and bring back what was found."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING

from attrs import evolve, frozen

from gpusvm.explore.campaign import Campaign
from gpusvm.explore.case import Case
from gpusvm.explore.coverage import Coverage
from gpusvm.explore.dfs import DepthFirst
from gpusvm.explore.execution import execute
from gpusvm.explore.garbage import seldom_collected
from gpusvm.explore.random_walk import RandomWalk
from gpusvm.explore.schedulers import read_scheduler

if TYPE_CHECKING:
    from gpusvm.explore.execution import Execution
    from gpusvm.explore.scheduler import Scheduler
    from gpusvm.explore.stage import Stage

__all__ = ["Chunk", "ChunkResult", "forget", "run_chunk"]


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


@frozen
class _Kept:
    stage: Stage
    last: Chunk
    choices: int | None

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
    skipped: int | None
    self_tests: int
    exhausted: bool
    interrupted: bool
    coverage: Coverage
    failed: tuple[tuple[int, Execution, int], ...]


# What the next chunk of the same exploration in this process goes on with: the chunks of one come one after the other.
_LAST: list[_Kept] = []


def forget() -> None:
    """Boot anew next time: code that machines are made of is other code from now on."""
    _LAST.clear()


def run_chunk(chunk: Chunk, *, progress: Callable[[ChunkResult], None] | None = None) -> ChunkResult:
    """Run the executions of one chunk; Ctrl-C ends it early, with what it has.

    `progress` is told every now and then what there is by then.
    """
    case = chunk.case
    kept = _LAST.pop() if _LAST and _LAST[0].fits(chunk) else None
    failed: dict[tuple[str, str], tuple[int, Execution, int]] = {}
    seconds = None if chunk.deadline_s is None else chunk.deadline_s - time.time()
    interrupted = False
    with case.active(), seldom_collected(), ExitStack() as watched:
        choices = None if kept is None else kept.choices
        if choices is None:
            choices = _choices(chunk)
        scheduler = _scheduler(chunk, choices)
        footprints = scheduler.footprints if isinstance(scheduler, DepthFirst) else None
        if footprints is not None:
            watched.enter_context(footprints.watching())
        campaign = Campaign(
            boot=case.boot,
            scheduler=scheduler,
            failures_max=case.failures_max,
            footprints=footprints,
            first=chunk.first,
            lists_code=False,
        )

        def result() -> ChunkResult:
            return ChunkResult(
                campaign=chunk.campaign,
                first=chunk.first,
                schedules=campaign.schedules,
                steps=campaign.steps,
                abandoned=campaign.abandoned,
                skipped=scheduler.skipped if isinstance(scheduler, DepthFirst) else None,
                self_tests=campaign.self_tests,
                exhausted=campaign.exhausted,
                interrupted=interrupted,
                coverage=campaign.coverage,
                failed=tuple(failed.values()),
            )

        if progress is not None:
            campaign.progress = lambda: progress(result())
        if kept is not None and footprints is None:
            campaign.stage = kept.stage
        try:
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
                _LAST[:] = [_Kept(campaign.stage, chunk, choices)]
        return result()


def _scheduler(chunk: Chunk, choices: int | None) -> Scheduler:
    spec = read_scheduler(chunk.scheduler)
    if choices is not None:
        spec = evolve(spec, values={**spec.values, "steps": choices})
    return spec.make(seed=chunk.seed, first=chunk.first, packages=chunk.case.packages)


def _choices(chunk: Chunk) -> int | None:
    """Count the choices of one execution, the same for all chunks: what a scheduler expects may not depend on those.
    None for one that expects nothing, or was told what.
    """
    if read_scheduler(chunk.scheduler).values.get("steps", 0) is not None:
        return None
    walk = RandomWalk(seed=chunk.seed)
    walk.new_execution()
    world = chunk.case.boot()
    execution = execute(world, walk, failures_max=chunk.case.failures_max)
    world.kernel.close()
    return max(1, len(execution.taken))
