"""Say what each step of a task touched, so that orders of steps that have nothing to do with each other are told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from gpusvm.kernel.task import Task
    from gpusvm.kernel.timers import Timer

# Operations that only read what they name, as far as another such operation can tell: two in a row may be swapped.
# Readers of a lock are a set; who left it last and who came first shows nowhere.
READS: Final = frozenset({"down_read", "up_read", "read_once", "srcu_read_lock", "srcu_read_unlock", "step_read"})

EVERYTHING: Final = "everything"
"""What an operation touches that waits for all others: it can be swapped with none."""


class Footprint(Protocol):
    """Be told, in explored mode, what the steps of tasks touch (``Kernel.footprint``).

    A step is what a task does from one yield point to its next, or until it waits or ends. It begins with the operation
    that the yield point named; what it touches besides is told by `touch`, before or after that. The virtual clock is
    no such thing: each step moves it on by as much, so a step that reads it (for a timeout, a timeslice) may be
    swapped with another and read 1 us more or less.
    """

    def spawned(self, task: Task, by: Task | Timer) -> None:
        """Note a new task, started by the running one or fired by a timer; its first step begins when it first goes."""
        ...

    def step(self, task: Task, label: str, what: object, write: bool) -> None:  # called for each step
        """Note that the running task's step is over, and that it goes on with `label`, which touches `what`.

        "woken" goes on after a wait for `what`, "slept" after a sleep, "settled" when nobody else can go on. `what` is
        a lock, a queue, ``(object, field)``, EVERYTHING, or None if the operation names nothing.
        """
        ...

    def touch(self, what: object, write: bool) -> None:  # as above
        """Note that the running step touches `what`, an object with a stable identity or a tuple of such."""
        ...

    def aside(self) -> AbstractContextManager[None]:
        """Return a context in which the kernel looks at what is not the step's business: who waits for whom."""
        ...

    def ended(self, task: Task) -> None:
        """Note that the running task's last step is over."""
        ...
