"""Tell how far a comparison is, and when it will be done."""

import time
from collections.abc import Sequence
from typing import Protocol

from attrs import define, field, frozen

from gpusvm.compare.plan import PlannedRun
from gpusvm.run.spec import RunSpec

__all__ = ["Progress", "ProgressListener"]


@frozen(kw_only=True)
class Progress:
    """Hold one report: `last` is the run that just finished, None at the start; `reused` runs were found finished.

    `eta_s` is None until a run has finished: it assumes that the accesses to come take as long as those so far.
    """

    done: int
    total: int
    reused: int
    elapsed_s: float
    eta_s: float | None
    last: RunSpec | None


class ProgressListener(Protocol):
    """Take reports, in the thread that called `compare`."""

    def __call__(self, progress: Progress, /) -> None: ...


@define
class Meter:
    """Count finished runs and estimate the rest."""

    total: int
    reused: int
    accesses_to_do: int
    done: int = field(init=False)
    accesses_done: int = field(default=0, init=False)
    started_s: float = field(factory=time.monotonic, init=False)

    def __attrs_post_init__(self) -> None:
        self.done = self.reused

    @classmethod
    def over(cls, runs: Sequence[PlannedRun], to_do: Sequence[PlannedRun]) -> "Meter":
        """Begin to measure `to_do`, the part of `runs` that is not there yet."""
        return cls(
            total=len(runs), reused=len(runs) - len(to_do), accesses_to_do=sum(planned.accesses for planned in to_do)
        )

    def finished(self, planned: PlannedRun) -> Progress:
        """Count one more run and report."""
        self.done += 1
        self.accesses_done += planned.accesses
        return self.report(planned.spec)

    def report(self, last: RunSpec | None = None) -> Progress:
        """Say where things stand."""
        elapsed_s = time.monotonic() - self.started_s
        left = self.accesses_to_do - self.accesses_done
        return Progress(
            done=self.done,
            total=self.total,
            reused=self.reused,
            elapsed_s=elapsed_s,
            eta_s=elapsed_s * left / self.accesses_done if self.accesses_done else None,
            last=last,
        )
