"""Own all nondeterminism: which task goes next, which injected failure happens, every choice of data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from gpusvm.kernel.task import Task
    from gpusvm.kernel.timers import Timer

_MASK = (1 << 64) - 1

ABANDON: Final = -1
"""What pick_task returns to end the execution here: main gets Abandoned raised where it waits."""


class Abandoned(Exception):  # noqa: N818  # no error: whoever explores has seen enough of this execution
    """Tell main that Choices ended the execution; the kernel can only be closed then."""


class Choices(Protocol):
    """Pick one of n; 0 means "carry on", so that a schedule shrinks towards fewest preemptions.

    ``taken`` records every pick in order, ``widths`` the n it was picked from: the first replays the run, both
    enumerate neighbours.
    """

    taken: list[int]
    widths: list[int]

    def pick(self, n: int, label: str) -> int:
        """Return an int in ``range(n)``; `label` says what for ("inject:SITE", or whose data it is). It is not called
        for n = 1.
        """
        ...

    def pick_task(self, candidates: Sequence[Task | Timer], running: Task | None) -> int:
        """Return the index of the candidate that goes on, or ABANDON. `running` is the task at the yield point, which
        is then candidate 0 (the last one if it spins for another); None if it cannot go on. It is not called for one
        candidate.
        """
        ...


class FirstChoice:
    """Pick 0 always: nothing is preempted, nothing fails."""

    def __init__(self) -> None:
        self.taken: list[int] = []
        self.widths: list[int] = []

    def pick(self, n: int, label: str) -> int:
        self.taken.append(0)
        self.widths.append(n)
        return 0

    def pick_task(self, candidates: Sequence[Task | Timer], running: Task | None) -> int:
        return self.pick(len(candidates), "task")


class CarryOn(FirstChoice):
    """Pick 0 always and record nothing, for what nobody repeats by its choices: a yield point does not even ask."""

    def pick(self, n: int, label: str) -> int:
        return 0


class Drawn:
    """Draw numbers evenly by splitmix64 from a seed: the same on every machine and Python."""

    __slots__ = ("_state",)

    def __init__(self, seed: int) -> None:
        self._state = seed & _MASK

    def below(self, n: int) -> int:
        """Return the next number of ``range(n)``."""
        self._state = z = (self._state + 0x9E3779B97F4A7C15) & _MASK
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
        return ((z ^ (z >> 31)) * n) >> 64


class SeededChoices:
    """Pick evenly from a seed."""

    def __init__(self, seed: int) -> None:
        self.taken: list[int] = []
        self.widths: list[int] = []
        self._drawn = Drawn(seed)

    def pick(self, n: int, label: str) -> int:
        choice = self._drawn.below(n)
        self.taken.append(choice)
        self.widths.append(n)
        return choice

    def pick_task(self, candidates: Sequence[Task | Timer], running: Task | None) -> int:
        return self.pick(len(candidates), "task")


class RecordedChoices:
    """Replay what another Choices took; after its end, and where a pick no longer fits, pick 0.

    ``strayed`` counts the picks that did not fit: it stays 0 when the same run is replayed, and tells a shrinker how
    far a schedule that it has changed still applies.
    """

    def __init__(self, recorded: Sequence[int]) -> None:
        self.taken: list[int] = []
        self.widths: list[int] = []
        self.strayed = 0
        self._recorded = list(recorded)

    def pick(self, n: int, label: str) -> int:
        at = len(self.taken)
        choice = self._recorded[at] if at < len(self._recorded) else 0
        if not 0 <= choice < n:
            choice = 0
            self.strayed += 1
        self.taken.append(choice)
        self.widths.append(n)
        return choice

    def pick_task(self, candidates: Sequence[Task | Timer], running: Task | None) -> int:
        return self.pick(len(candidates), "task")
