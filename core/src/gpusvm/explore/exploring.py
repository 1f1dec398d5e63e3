"""Explore scenarios on drivers: deal the schedules out, put together what comes back, shrink and keep the findings."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib import metadata
from itertools import count
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Final, Literal

from attrs import define, evolve, field, frozen

from gpusvm.driver import read_spec
from gpusvm.errors import InputError
from gpusvm.explore.answers import Witness
from gpusvm.explore.case import Case, Switch
from gpusvm.explore.chunk import Chunk, ChunkResult, run_chunk
from gpusvm.explore.execution import Execution, Failure, execute
from gpusvm.explore.finding import Finding
from gpusvm.explore.replay import Replay
from gpusvm.explore.result import Exploration, Explorations, Found, LeftOut
from gpusvm.explore.scenario import Scenario, select_scenarios
from gpusvm.explore.schedulers import read_scheduler
from gpusvm.explore.shrink import Shrinking, Shrunk, shrink
from gpusvm.plugins import Installed, Registry
from gpusvm.run.executor import ProcessExecutor, SerialExecutor

if TYPE_CHECKING:
    from gpusvm.explore.world import World
    from gpusvm.run.executor import Executor

__all__ = ["ExplorationProgress", "explore", "explore_cases"]

_CHUNK: Final = 256  # schedules; about half a second
_CHUNK_LAST: Final = 32  # where several processes come to an end, so that none has to wait long for another


@frozen(kw_only=True)
class ExplorationProgress:
    """Say how far an exploration is: `number` of `total` cases, and the counts of this one; or how far shrinking is."""

    number: int
    total: int
    exploration: Exploration
    schedules: int | None
    failed: int
    """How many kinds of failures there are by now."""
    shrinking: Shrinking | None = None


Listener = Callable[[ExplorationProgress], None]


@define
class _Campaign:
    """Put together the chunks of one case in the order of their schedules, in whatever order they come."""

    number: int
    case: Case
    exploration: Exploration
    keep_going: bool
    world: World
    begun_s: float = 0.0
    dealt: list[int] = field(factory=list)
    dealt_all: bool = False
    ended: bool = False
    """Nothing that still comes back counts."""
    failed: dict[tuple[str, str], tuple[int, Execution, int]] = field(factory=dict)
    _back: dict[int, ChunkResult] = field(factory=dict)
    _merged: int = 0

    @property
    def complete(self) -> bool:
        return self.dealt_all and (self.ended or self._merged == len(self.dealt))

    def add(self, chunk: ChunkResult) -> None:
        """Take a chunk, and merge those whose turn it is."""
        self._back[chunk.first] = chunk
        while not self.ended and self._merged < len(self.dealt):
            following = self._back.pop(self.dealt[self._merged], None)
            if following is None:
                break
            self._merged += 1
            self._merge(following)
        self.exploration.seconds = time.time() - self.begun_s

    def list_code(self, *, counts: bool = False) -> None:
        """Say what the machine's code has, once; the time for that is none of the exploration's, unless it `counts`."""
        coverage = self.exploration.coverage
        if not coverage.known_sites:
            began_s = time.time()
            coverage.list_code(self.world)
            if not counts:
                self.begun_s += time.time() - began_s

    def so_far(self, chunk: ChunkResult) -> Exploration:
        """Return what it would come to if its only chunk, which is under way, ended now."""
        self.list_code()
        known = self.exploration.coverage
        chunk.coverage.known_sites, chunk.coverage.known_yields = known.known_sites, known.known_yields
        return evolve(
            self.exploration,
            schedules=chunk.schedules,
            steps=chunk.steps,
            abandoned=chunk.abandoned,
            skipped=chunk.skipped,
            self_tests=chunk.self_tests,
            seconds=time.time() - self.begun_s,
            coverage=chunk.coverage,
        )

    def give_up(self) -> None:
        """Merge what has come back though what lies before it has not: it was interrupted."""
        self.exploration.interrupted = True
        for chunk in sorted(self._back.values(), key=lambda chunk: chunk.first):
            if not self.ended:
                self._merge(chunk)
        self.dealt_all = self.ended = True

    def _merge(self, chunk: ChunkResult) -> None:
        exploration = self.exploration
        exploration.schedules += chunk.schedules
        exploration.steps += chunk.steps
        exploration.abandoned += chunk.abandoned
        exploration.self_tests += chunk.self_tests
        if chunk.skipped is not None:
            exploration.skipped = (exploration.skipped or 0) + chunk.skipped
        exploration.exhausted |= chunk.exhausted
        exploration.interrupted |= chunk.interrupted
        exploration.coverage.merge(chunk.coverage)
        for number, execution, times in chunk.failed:
            assert execution.failure is not None
            key = (execution.failure.kind, execution.failure.invariant)
            first, earliest, before = self.failed.get(key, (number, execution, 0))
            self.failed[key] = (first, earliest, before + times)
        self.ended = chunk.exhausted or chunk.interrupted or bool(self.failed and not self.keep_going)


def explore(
    scenarios: Sequence[str | Scenario],
    drivers: Sequence[str] = (),
    *,
    scheduler: str = "random",
    seed: int = 0,
    first: int = 0,
    schedules: int | None = None,
    seconds: float | None = None,
    failures_max: int = 0,
    quirks: Literal["as_written", "fixed"] = "fixed",
    mutant: Switch | None = None,
    keep_going: bool = False,
    jobs: int = 1,
    out: Path | str | None = None,
    shrunk: bool = True,
    without: Sequence[str] = (),
    registry: Registry | None = None,
    progress: Listener | None = None,
) -> Explorations:
    """Explore scenarios on drivers: every scenario on every driver that it is for.

    A scenario is a bundled one's name, the path of a TOML file, "standard" (those that rates are measured on), "all",
    or a `Scenario`; a driver is a spec string, and all installed ones are taken if none is named. `scheduler` is a spec
    string too (`gpusvm.explore.schedulers`). `schedules` is 1000 by default, unless `seconds` is given or the scheduler
    comes to an end by itself. `registry` replaces what is installed. The rest is as for `explore_cases`.
    InputError for bad input, before anything runs.
    """
    if schedules is None and seconds is None and read_scheduler(scheduler).info.parallel:
        schedules = 1000
    for name, value, least in (("schedules", schedules, 1), ("jobs", jobs, 1), ("failures", failures_max, 0)):
        if value is not None and value < least:
            raise InputError(f"--{name}: expected {least} or more, got {value}")
    for name, number in (("seed", seed), ("first", first)):
        if number < 0:
            raise InputError(f"--{name}: expected 0 or more, got {number}")
    if seconds is not None and not seconds > 0:
        raise InputError(f"--seconds: expected more than 0, got {seconds:g}")
    available: Installed | Registry
    if registry is None:
        available = Installed(tuple(without))
        known = available.registry()
    else:
        known = available = registry
    if not known:
        raise InputError(
            "no driver plugin is installed; install one (gpusvm-xe, for example), or name a file in GPUSVM_DRIVERS"
        )
    cases, left_out = [], []
    for scenario in select_scenarios(scenarios):
        for spec in drivers or sorted(known):
            read = read_spec(spec, known, quirks=quirks)
            refusal = scenario.refuses(read.info)
            if refusal:
                left_out.append(LeftOut(scenario=scenario.name, driver=read.text, reason=refusal))
                continue
            cases.append(
                Case(
                    scenario=scenario,
                    driver=read.text,
                    drivers=available,
                    quirks=quirks,
                    failures_max=failures_max,
                    mutant=mutant,
                )
            )
    if not cases:
        why = "; ".join(f"{each.scenario} on {each.driver}: {each.reason}" for each in left_out[:3])
        more = f"; and {len(left_out) - 3} more" if len(left_out) > 3 else ""
        raise InputError(f"none of the scenarios is for these drivers: {why}{more}")
    explorations = explore_cases(
        cases,
        scheduler=scheduler,
        seed=seed,
        first=first,
        schedules=schedules,
        seconds=seconds,
        keep_going=keep_going,
        jobs=jobs,
        out=None if out is None else Path(out),
        shrunk=shrunk,
        progress=progress,
    )
    return evolve(explorations, left_out=tuple(left_out))


def explore_cases(
    cases: Sequence[Case],
    *,
    scheduler: str = "random",
    seed: int = 0,
    first: int = 0,
    schedules: int | None = 1000,
    seconds: float | None = None,
    keep_going: bool = False,
    jobs: int = 1,
    out: Path | None = None,
    shrunk: bool = True,
    progress: Listener | None = None,
) -> Explorations:
    """Explore each case, one after the other, and return what was found, in the order of the cases.

    `schedules` and `seconds` are for each case; whichever is used up first ends it. `keep_going`: a case goes on after
    a failure, and the first of each (kind, invariant) is kept; else its first failure ends it. The findings are the
    same for any number of `jobs` while `seconds` does not end a case. Each finding is shrunk, unless `shrunk` is False,
    and written into the directory `out`, if one is given. Ctrl-C ends it with what there is by then.
    """
    spec = read_scheduler(scheduler)
    if schedules is None and seconds is None and spec.info.parallel:
        raise InputError("an exploration needs an end: give schedules, seconds or both")
    if not spec.info.parallel and (jobs > 1 or first):
        option = "jobs" if jobs > 1 else "first"
        raise InputError(f"--{option}: {spec.info.name!r} explores one tree from its root in one process; leave it out")
    scheduler = spec.text
    if out is not None:
        _check_folder(out)
    campaigns = []
    for number, case in enumerate(cases):
        with case.active():
            world = case.boot()  # what cannot boot is said before anything runs
            world.kernel.close()
        exploration = Exploration(scenario=case.scenario.name, driver=case.driver, scheduler=scheduler, first=first)
        campaigns.append(
            _Campaign(
                number=number,
                case=case,
                exploration=exploration,
                keep_going=keep_going,
                world=world,
            )
        )
    keep = _Keeper(
        scheduler=scheduler,
        seed=seed,
        out=out,
        shrunk=shrunk,
        total=len(cases),
        schedules=schedules,
        progress=progress,
    )

    def deal() -> Iterator[Chunk]:
        for campaign in campaigns:
            campaign.begun_s = time.time()
            keep.tell(campaign)
            deadline_s = None if seconds is None else campaign.begun_s + seconds
            at, end = first, math.inf if schedules is None else first + schedules
            while at < end and not campaign.ended and (deadline_s is None or time.time() < deadline_s):
                # A tree is explored in one go: its steps are known by the objects of one machine.
                whole = None if math.isinf(end) else int(end - at)
                length = _length(end - at, jobs) if spec.info.parallel else whole
                campaign.dealt.append(at)
                yield Chunk(
                    campaign=campaign.number,
                    case=campaign.case,
                    scheduler=scheduler,
                    seed=seed,
                    first=at,
                    schedules=length,
                    deadline_s=deadline_s,
                    keep_going=keep_going,
                )
                if length is None:
                    break
                at += length
            campaign.dealt_all = True
            if campaign.exploration.interrupted:
                return
            if campaign.complete:  # it is, unless other processes are still at it
                keep.findings_of(campaign)
            if keep.interrupted:
                return

    executor: Executor = SerialExecutor() if jobs == 1 else ProcessExecutor(jobs, fork=True)
    try:
        # The chunk of a tree is all of it, and never leaves this process.
        run = run_chunk if spec.info.parallel else partial(run_chunk, progress=partial(keep.tell_of, campaigns))
        for _, chunk in executor.run(run, deal()):
            campaign = campaigns[chunk.campaign]
            campaign.add(chunk)
            keep.tell(campaign)
            campaign.list_code(counts=jobs > 1)  # now that all processes have something to do
    except KeyboardInterrupt:
        keep.interrupted = True
    for campaign in campaigns:
        if not campaign.complete:
            campaign.give_up()
        keep.interrupted |= campaign.exploration.interrupted
    for campaign in campaigns:
        keep.findings_of(campaign)
        if campaign.dealt:
            campaign.list_code()
    return Explorations(
        results=tuple(campaign.exploration for campaign in campaigns if campaign.dealt),
        interrupted=keep.interrupted,
        asked=len(campaigns),
    )


def _length(left: float, jobs: int) -> int:
    """Return how many of the schedules that are left to deal out next: how they are cut makes no difference to them."""
    least = _CHUNK if jobs == 1 else max(_CHUNK_LAST, min(_CHUNK, left // (2 * jobs)))
    return int(min(least, left))


@define
class _Keeper:
    """Repeat what has failed, shrink it, and write it down."""

    scheduler: str
    seed: int
    out: Path | None
    shrunk: bool
    total: int
    schedules: int | None
    progress: Listener | None
    interrupted: bool = False

    def tell(
        self, campaign: _Campaign, *, under_way: ChunkResult | None = None, shrinking: Shrinking | None = None
    ) -> None:
        if self.progress is not None:
            self.progress(
                ExplorationProgress(
                    number=campaign.number + 1,
                    total=self.total,
                    exploration=campaign.exploration if under_way is None else campaign.so_far(under_way),
                    schedules=self.schedules,
                    failed=len(campaign.failed if under_way is None else under_way.failed),
                    shrinking=shrinking,
                )
            )

    def tell_of(self, campaigns: Sequence[_Campaign], chunk: ChunkResult) -> None:
        self.tell(campaigns[chunk.campaign], under_way=chunk)

    def findings_of(self, campaign: _Campaign) -> None:
        """Turn what has failed in a campaign into findings, once."""
        for number, execution, times in sorted(campaign.failed.values(), key=lambda failed: failed[0]):
            finding, shrunk = self._finding(campaign, number, execution)
            file = None if self.out is None else write_finding(finding, self.out)
            campaign.exploration.findings.append(
                Found(finding=finding, schedule=number, times=times, file=file, shrunk=shrunk)
            )
        campaign.failed.clear()

    def _finding(self, campaign: _Campaign, number: int, execution: Execution) -> tuple[Finding, Shrunk | None]:
        case, failure = campaign.case, execution.failure
        assert failure is not None
        scenario, steps, shrunk = case.scenario, execution.steps, None
        with case.active():
            world = case.boot()
            witness = Witness(Replay(execution.taken))
            witness.new_execution()
            repeated = execute(world, witness, failures_max=case.failures_max)
            world.kernel.close()
            answers = tuple(witness.answers)
            if repeated.failure != failure and failure.kind != "nondeterminism":
                failure = Failure(
                    kind="nondeterminism",
                    invariant="I-SAME",
                    message=f"it failed once, and did not when it was repeated: {failure.kind} {failure.message}",
                )
            if self.shrunk and not self.interrupted and failure.kind != "nondeterminism":
                try:
                    shrunk = shrink(case, execution.taken, progress=partial(self._shrinks, campaign))
                except KeyboardInterrupt:
                    self.interrupted = True
        if shrunk is not None:
            scenario, answers, failure, steps = shrunk.scenario, shrunk.answers, shrunk.failure, shrunk.after.steps
        finding = Finding(
            scenario=scenario,
            driver=case.driver,
            quirks=case.quirks,
            mutant=None if case.mutant is None else case.mutant.id,
            failures_max=case.failures_max,
            found_by=f"{self.scheduler}, seed {self.seed}, schedule {number}",
            shrunk="" if shrunk is None else f"from {shrunk.before} to {shrunk.after}",
            kind=failure.kind,
            invariant=failure.invariant,
            message=failure.message,
            steps=steps,
            answers=answers,
            version=metadata.version("gpusvm-core"),
        )
        return finding, shrunk

    def _shrinks(self, campaign: _Campaign, shrinking: Shrinking) -> None:
        self.tell(campaign, shrinking=shrinking)


def _check_folder(folder: Path) -> None:
    """Refuse a directory in which nothing can be written, before anything runs; it need not be there yet."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    try:
        with TemporaryFile(dir=there):
            pass
    except OSError as exc:
        raise InputError(f"--out {folder}: nothing can be written there: {exc.strerror or exc}") from None


def write_finding(finding: Finding, folder: Path) -> Path:
    """Write a finding into a directory, under a name that nothing else there has. InputError if that cannot be done."""
    words = (finding.scenario.name, finding.driver, finding.kind, finding.invariant)
    stem = "-".join(re.sub(r"[^A-Za-z0-9._+]+", "-", word).strip("-") for word in words)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for number in count(1):
            path = folder / (f"{stem}.txt" if number == 1 else f"{stem}-{number}.txt")
            if not path.exists() or path.read_text("utf-8") == str(finding):
                path.write_text(str(finding), "utf-8")
                return path
    except OSError as exc:
        raise InputError(f"{folder}: cannot be written: {exc.strerror or exc}") from None
    raise AssertionError("numbers do not end")
