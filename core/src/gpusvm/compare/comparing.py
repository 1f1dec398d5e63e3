"""Run a comparison: plan, take what has finished before, run the rest, keep each result as it comes."""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from gpusvm.compare.comparison import Comparison, InterruptedComparison
from gpusvm.compare.jobs import Failure, Job, Outcome, run_job
from gpusvm.compare.plan import DEFAULT_VRAM, Plan, PlannedRun, make_plan
from gpusvm.compare.progress import Meter, ProgressListener
from gpusvm.compare.store import RunDirectory
from gpusvm.errors import InputError
from gpusvm.plugins import Installed, Registry, load_drivers
from gpusvm.run.executor import Executor, SerialExecutor
from gpusvm.run.spec import RunResult

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

__all__ = ["compare", "run_plan"]


def compare(
    drivers: str | Sequence[str] | None = None,
    workloads: str | Path | Sequence[str | Path] | None = None,
    *,
    vram: int | str = DEFAULT_VRAM,
    thp: str = "always",
    seed: int = 0,
    costs: str | Path = "h100-pcie5",
    quirks: str = "as_written",
    topology: str | Path = "single",
    out: str | Path | None = None,
    resume: bool = False,
    events: bool = False,
    executor: Executor | None = None,
    registry: Registry | None = None,
    without: Collection[str] = (),
    progress: ProgressListener | None = None,
) -> Comparison:
    """Run every driver spec on every workload and put the results side by side.

    `drivers` are spec strings (``xe:chunk_sizes=64K+4K``), by default the bare name of every driver in `registry`,
    which is by default every installed one but those in `without`. `workloads` are names of bundled traces, paths of
    trace files, or ``all``; by default four of different character. `vram` is bytes or a size such as ``256MiB``, for
    each device; `costs` and `topology` are names or paths of TOML files.

    With `out`, a directory that is new or empty gets each result as soon as it is there; `resume` takes what an
    earlier call with the same arguments left in it and runs the rest; `events` writes each run's events there.
    `executor` is by default a `SerialExecutor`: this process. `progress` is called at the start and after every run.

    Raises InputError, in one line, for anything in the arguments that is wrong, before anything is run or written;
    BrokenPluginsError if plugins are; InterruptedComparison, a KeyboardInterrupt, with what had finished.
    """
    if events and out is None:
        raise InputError("--events: the events are files; say where to with --out DIR")
    if resume and out is None:
        raise InputError("--resume: say which directory to complete with --out DIR")
    if registry is None:
        loaded = load_drivers(without=without)
    else:
        loaded = registry
    store = None if out is None else RunDirectory(Path(out))
    if store is not None:
        store.check(resume=resume)
    plan = make_plan(
        drivers,
        workloads,
        vram=vram,
        thp=thp,
        seed=seed,
        costs=costs,
        quirks=quirks,
        topology=topology,
        events=events,
        registry=loaded,
    )
    return run_plan(
        plan,
        store=store,
        executor=SerialExecutor() if executor is None else executor,
        drivers=Installed(tuple(without), loaded) if registry is None else registry,
        progress=progress,
    )


def run_plan(
    plan: Plan,
    *,
    store: RunDirectory | None,
    executor: Executor,
    drivers: Installed | Registry | None = None,
    progress: ProgressListener | None = None,
    run: Callable[[Job], Outcome] = run_job,
) -> Comparison:
    """Run a checked plan, with `drivers`, by default the plan's own.

    Raises what `compare` does. If a run refuses its spec although the plan was checked, the others are dropped, and a
    directory that was made for this plan and holds no finished run is removed.
    """
    results: dict[str, RunResult] = {}
    failures: dict[str, Failure] = {}
    if store is not None:
        store.begin(plan.document)
        for planned in plan.runs:
            result = store.finished(planned.key)
            if result is not None:
                results[planned.key] = result
    to_do = [planned for planned in plan.runs if planned.key not in results]
    meter = Meter.over(plan.runs, to_do)
    jobs = [
        Job(
            spec=planned.spec,
            events_to=store.events(planned.key) if store is not None and planned.spec.events else None,
            drivers=plan.registry if drivers is None else drivers,
        )
        for planned in to_do
    ]
    log = _logger()
    try:
        # From the first word on, an interrupt is answered with what there is.
        if log is not None:
            log.info("comparison begins", runs=len(plan.runs), finished_before=len(results))
        if progress is not None:
            progress(meter.report())
        for index, outcome in executor.run(run, jobs):
            planned = to_do[index]
            if outcome.refused is not None:
                raise InputError(outcome.refused)
            if outcome.result is not None:
                results[planned.key] = outcome.result
                if store is not None:
                    store.finish(planned.key, _finished(planned, outcome.result))
                if log is not None:
                    log.info("run finished", **_named(planned), sim_ns=outcome.result["sim_ns"], key=planned.key)
            if outcome.failure is not None:
                failures[planned.key] = outcome.failure
                if log is not None:
                    log.info(
                        "run failed", **_named(planned), kind=outcome.failure.kind, message=outcome.failure.message
                    )
            if progress is not None:
                progress(meter.finished(planned))
    except InputError:
        if store is not None:
            store.discard()
        raise
    except KeyboardInterrupt:
        raise InterruptedComparison(_gather(plan, results, failures), total=len(plan.runs)) from None
    comparison = _gather(plan, results, failures)
    if store is not None:
        comparison.write_to(store)
    return comparison


def _logger() -> "FilteringBoundLogger | None":
    """Return the logger, None in a program that has not configured structlog: there it would print everything."""
    import structlog

    if not structlog.is_configured():
        return None
    log: FilteringBoundLogger = structlog.get_logger("gpusvm.compare")
    return log


def _named(planned: PlannedRun) -> dict[str, str]:
    return {"driver": planned.spec.driver, "workload": planned.spec.workload}


def _finished(planned: PlannedRun, result: RunResult) -> Mapping[str, object]:
    return {
        "schema": 1,
        "key": planned.key,
        "spec": attrs.asdict(planned.spec),
        "inputs": planned.inputs,
        "result": result,
    }


def _gather(plan: Plan, results: Mapping[str, RunResult], failures: Mapping[str, Failure]) -> Comparison:
    """Put the results in the plan's order, whatever order they came in."""
    return Comparison(
        drivers=plan.drivers,
        workloads=plan.workloads,
        runs=tuple(results[planned.key] for planned in plan.runs if planned.key in results),
        failures=tuple(failures[planned.key] for planned in plan.runs if planned.key in failures),
        document=plan.document,
    )
