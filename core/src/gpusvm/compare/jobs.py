"""Run one planned run wherever the executor puts it, and bring back a result or what went wrong."""

import traceback
from pathlib import Path

from attrs import frozen

from gpusvm.errors import GpusvmError, InputError
from gpusvm.plugins import Installed, Registry
from gpusvm.run.spec import RunResult, RunSpec

__all__ = ["Failure", "Job", "Outcome", "run_job"]


@frozen(kw_only=True)
class Job:
    """Hold what a worker needs; a registry, made in Python, travels as it is."""

    spec: RunSpec
    events_to: Path | None
    drivers: Installed | Registry


@frozen(kw_only=True)
class Failure:
    """Say why a run ended without a result: `kind` is the exception's class, `trace` its traceback if it is a bug."""

    driver: str
    workload: str
    kind: str
    message: str
    trace: str | None


@frozen
class Outcome:
    """Hold what came of a job: one of a result, a failure, or `refused`, the message of an InputError."""

    result: RunResult | None = None
    failure: Failure | None = None
    refused: str | None = None


def run_job(job: Job) -> Outcome:
    """Execute one run; whatever it raises, but for an interrupt, becomes part of the outcome."""
    from gpusvm.run.execute import execute

    try:
        registry = job.drivers.registry() if isinstance(job.drivers, Installed) else job.drivers
        if job.events_to is None:
            return Outcome(result=execute(job.spec, drivers=registry))
        pending = job.events_to.with_name(f".{job.events_to.name}")
        result = execute(job.spec, drivers=registry, events_to=pending)
        pending.replace(job.events_to)
        return Outcome(result=result)
    except InputError as exc:
        return Outcome(refused=str(exc))
    except Exception as exc:  # noqa: BLE001  # a plugin's code may raise anything; the other runs go on
        failure = Failure(
            driver=job.spec.driver,
            workload=job.spec.workload,
            kind=type(exc).__name__,
            message=str(exc),
            trace=None if isinstance(exc, GpusvmError) else traceback.format_exc(),
        )
        return Outcome(failure=failure)
