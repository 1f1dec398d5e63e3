"""Run one execution once more, step by step, to be explained or compared."""

from __future__ import annotations

from attrs import frozen

from gpusvm.explore.answers import Answer, Repetition, Stray, Witness
from gpusvm.explore.execution import Execution, execute
from gpusvm.explore.recording import Recording, recorded
from gpusvm.explore.world import World

__all__ = ["Repeated", "repeat"]


@frozen(kw_only=True)
class Repeated:
    """Hold an execution that was recorded step by step, and where it left the one that it was to repeat."""

    execution: Execution
    answers: tuple[Answer, ...]
    recording: Recording
    stray: Stray | None


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
