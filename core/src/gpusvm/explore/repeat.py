"""Run one execution once more, step by step, to be explained or compared."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

from gpusvm.explore.answers import Answer, Repetition, Stray, Witness
from gpusvm.explore.case import Case, Switch
from gpusvm.explore.execution import Execution, execute
from gpusvm.explore.recording import Recording, recorded
from gpusvm.explore.world import World

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gpusvm.driver import DriverInfo
    from gpusvm.explore.finding import Finding
    from gpusvm.plugins import Installed

__all__ = ["Repeated", "repeat", "repeat_finding"]


@frozen(kw_only=True)
class Repeated:
    """Hold an execution that was recorded step by step, and where it left the one that it was to repeat."""

    execution: Execution
    answers: tuple[Answer, ...]
    recording: Recording
    stray: Stray | None

    def shows(self, finding: Finding) -> bool:
        """Say whether the same thing broke as in a finding."""
        failure = self.execution.failure
        return failure is not None and (failure.kind, failure.invariant) == (finding.kind, finding.invariant)


def repeat(world: World, answers: tuple[Answer, ...], *, failures_max: int) -> Repeated:
    """Run the execution of some answers once more, on a world that is as it was then, and record it step by step."""
    kernel = world.kernel
    begun: int = kernel.sched.steps  # type: ignore[attr-defined]  # an explored kernel's scheduler counts them
    repetition = Repetition(answers, steps=lambda: kernel.sched.steps - begun)  # type: ignore[attr-defined]  # as above
    witness = Witness(repetition)
    witness.new_execution()
    with recorded(world) as recording:
        execution = execute(world, witness, failures_max=failures_max)
    repetition.finish()
    if execution.failure is not None and execution.failure.kind == "deadlock" and recording.broken_at is None:
        recording.broken_at = recording.last_step()
    return Repeated(execution=execution, answers=tuple(witness.answers), recording=recording, stray=repetition.stray)


def repeat_finding(
    finding: Finding, *, drivers: Installed | Mapping[str, DriverInfo], mutant: Switch | None = None
) -> Repeated:
    """Boot the machine of a finding and repeat its execution; `mutant` is the one that the finding names.

    InputError if the driver, or an operation of the scenario, is not there.
    """
    case = Case(
        scenario=finding.scenario,
        driver=finding.driver,
        drivers=drivers,
        quirks=finding.quirks,
        failures_max=finding.failures_max,
        mutant=mutant,
    )
    with case.active():
        world = case.boot()
        try:
            return repeat(world, finding.answers, failures_max=finding.failures_max)
        finally:
            world.kernel.close()
