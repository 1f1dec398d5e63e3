"""Run a scenario once under given choices, and say what broke."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from attrs import frozen

from gpusvm.check import InvariantError
from gpusvm.errors import (
    DeadlockError,
    DriverError,
    GpusvmError,
    KernelError,
    LateWorkError,
    LedgerError,
    LivelockError,
    LockdepError,
    ModelError,
    ProgressError,
    UseAfterFreeError,
)
from gpusvm.explore.livelock import LivelockWatch
from gpusvm.explore.scheduler import SchedulerChoices
from gpusvm.explore.verdict import OutcomeError
from gpusvm.kernel import Abandoned, CarryOn
from gpusvm.kernel.authors import blames_call
from gpusvm.kernel.place import leave_out

if TYPE_CHECKING:
    from collections.abc import Callable

    from gpusvm.explore.footprint import Footprints
    from gpusvm.explore.scheduler import Scheduler
    from gpusvm.explore.world import Outcome, World
    from gpusvm.kernel import Choices

__all__ = ["STEPS_MAX", "ContentsError", "Execution", "Failure", "classify", "execute"]


STEPS_MAX: Final = 50_000
"""Steps of one execution that are too many: a hundred times what those of the bundled scenarios take."""

leave_out(__file__, callers=True)


class ContentsError(ModelError):
    """Report reads that did not see the last write."""


@frozen(kw_only=True)
class Failure:
    """Say what broke: the kind of oracle, the invariant or rule by name, and the whole message."""

    kind: str
    invariant: str
    message: str


@frozen(kw_only=True)
class Execution:
    """Hold what one execution was: the answers that repeat it, how it went, and what broke, if anything did."""

    taken: tuple[int, ...]
    widths: tuple[int, ...]
    labels: tuple[str, ...]
    steps: int
    outcomes: tuple[Outcome, ...]
    abandoned: bool
    failure: Failure | None


def execute(
    world: World,
    scheduler: Scheduler,
    *,
    failures_max: int = 0,
    steps_max: int = STEPS_MAX,
    footprints: Footprints | None = None,
    at_rest: Callable[[], None] | None = None,
) -> Execution:
    """Run the tasks of the world's scenario to their end in the order that `scheduler` says, and check everything.

    The scheduler has begun the execution (`new_execution`). At most `failures_max` injection sites fail, where it says
    so, and more than `steps_max` steps are a failure of kind "progress". `footprints`, if given, record the steps until
    all tasks have ended; then `at_rest` is called. Afterwards the scenario's `end` runs, the machine comes to rest and
    is torn down. The world is used up until it is reset.
    """
    choices = SchedulerChoices(scheduler)
    kernel = world.kernel
    livelocks = LivelockWatch(world.machine.memory, lambda: len(world.outcomes))
    before = kernel.sched.steps  # type: ignore[attr-defined]  # an explored kernel's scheduler counts them
    failure: Failure | None = None
    abandoned = False
    if footprints is not None:
        footprints.begin(kernel)
    livelocks.begin()
    kernel.sched.steps_begun = before  # type: ignore[attr-defined]  # as above
    kernel.sched.steps_max = before + steps_max  # type: ignore[attr-defined]  # as above
    try:
        _run(world, choices, failures_max, footprints, at_rest)
    except Abandoned:
        abandoned = True
    except (GpusvmError, AssertionError) as error:
        failure = classify(error)
    if failure is None and not abandoned:
        failure = by_quirk(world)
    livelocks.end()
    if footprints is not None:
        footprints.end()
    return Execution(
        taken=tuple(choices.taken),
        widths=tuple(choices.widths),
        labels=tuple(choices.labels),
        steps=kernel.sched.steps - before,  # type: ignore[attr-defined]  # as above
        outcomes=tuple(world.outcomes),
        abandoned=abandoned,
        failure=failure,
    )


def _run(
    world: World,
    choices: Choices,
    failures_max: int,
    footprints: Footprints | None,
    at_rest: Callable[[], None] | None,
) -> None:
    kernel, scenario = world.kernel, world.scenario
    tasks = [kernel.spawn(world.run_task, operations, name=name) for name, operations in scenario.tasks.items()]
    kernel.set_choices(choices)
    kernel.explore_failures(failures_max=failures_max)
    for task in tasks:
        task.join()
    kernel.settle()
    if footprints is not None:
        footprints.end()
    if at_rest is not None:
        at_rest()
    kernel.explore_failures(failures_max=0)
    kernel.set_choices(CarryOn())
    if world.checker is not None:
        world.checker.check_quiescent(holders=world.holders())
    sched = kernel.sched
    at_rest_since = sched.steps  # type: ignore[attr-defined]  # an explored kernel's scheduler counts them
    world.run_task(scenario.end)
    changed = sched.steps != at_rest_since  # type: ignore[attr-defined]  # else everything is as it was checked
    if changed:
        kernel.settle()
    contents = world.machine.memory.contents
    if contents.mismatch_count:
        raise ContentsError(f"{contents.mismatch_count} reads did not see the last write; {contents.mismatches[0]}")
    if world.checker is not None:
        if changed:
            world.checker.check_quiescent(holders=world.holders())
        world.checker.detach()
    world.teardown()


def by_quirk(world: World) -> Failure | None:
    """Say what a quirk of Linux, as written, has broken: what it did to reads, or the invariants that fell by it."""
    known = world.machine.memory.contents.known
    if known:
        quirk, reads = next(iter(sorted(known.items())))
        return Failure(
            kind="contents", invariant=quirk, message=f"{reads} reads did not see the last write, by the quirk {quirk}"
        )
    violations = [] if world.checker is None else world.checker.known
    if violations:
        names = sorted({str(one.known) for one in violations})
        return Failure(kind="invariant", invariant=names[0], message="\n".join(dict.fromkeys(map(str, violations))))
    return None


def _first(error: BaseException) -> BaseException:
    first, before = error, error.__context__
    while before is not None:
        if isinstance(before, ModelError | AssertionError):
            first = before
        before = before.__context__
    return first


def classify(error: BaseException) -> Failure:
    """Say which oracle an exception comes from: the first, where unwinding has broken more."""
    error = _first(error)
    message = f"{error}"
    match error:
        case InvariantError():
            return Failure(kind="invariant", invariant=str(error.violations[0].invariant), message=message)
        case LockdepError():
            return Failure(kind="lockdep", invariant="I-LOCK", message=message)
        case LedgerError():
            return Failure(kind="ledger", invariant="I-REF", message=message)
        case DeadlockError():
            return Failure(kind="deadlock", invariant="I-PROG", message=message)
        case DriverError():
            return Failure(kind="driver", invariant=error.assertion, message=message)
        case ProgressError():
            return Failure(kind="progress", invariant="I-PROG", message=message)
        case LivelockError():
            return Failure(kind="livelock", invariant="I-PROG", message=message)
        case UseAfterFreeError():
            return Failure(kind="use-after-free", invariant="I-LIFE", message=message)
        case LateWorkError():
            return Failure(kind="late-work", invariant="I-LIFE", message=message)
        case ContentsError():
            return Failure(kind="contents", invariant="I-DATA", message=message)
        case OutcomeError() | KernelError():
            return Failure(kind="errno", invariant="I-ERRNO", message=message)
        case _:
            return Failure(kind="error", invariant=type(error).__name__, message=f"{message}{blames_call(error)}")
