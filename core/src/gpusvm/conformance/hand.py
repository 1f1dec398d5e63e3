"""Let a second task do something at the worst moment: as soon as a driver has looked at the process's pages.

The machine is explored, with one rule for who goes on: the hand does, whenever it can. It waits until the driver has
read the CPU's page table, and then for no more than the locks that it needs; so it comes between the look and the use
wherever a real CPU could, and nowhere else.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from gpusvm.conformance.scene import after_hmm
from gpusvm.kernel import FirstChoice

if TYPE_CHECKING:
    from gpusvm.kernel import Task, Timer
    from gpusvm.testing import Bench

__all__ = ["HandFirst", "Looked", "after_look"]

_HAND: Final = "hand"


class HandFirst(FirstChoice):
    """Let the hand go on whenever it can, and everybody else in turn; boot the machine with it, in explored mode."""

    def pick_task(self, candidates: "Sequence[Task | Timer]", running: "Task | None") -> int:
        """Pick the hand, or the first."""
        place = next((i for i, each in enumerate(candidates) if each.name == _HAND), 0)
        self.taken.append(place)
        self.widths.append(len(candidates))
        return place


class Looked:
    """Tell whether the driver has looked, so that the hand has come."""

    def __init__(self) -> None:
        self.times = 0


@contextmanager
def after_look(bench: "Bench", act: Callable[[], None]) -> Iterator[Looked]:
    """Let something happen once, as soon as it can after the driver's first look inside the block."""
    looked, begin = Looked(), bench.kernel.completion("looked")

    def hand() -> None:
        begin.wait()
        if looked.times:
            act()

    def look() -> None:
        looked.times += 1
        begin.complete_all()

    task = bench.kernel.spawn(hand, name=_HAND)
    with after_hmm(bench, look):
        yield looked
    begin.complete_all()
    task.join()
