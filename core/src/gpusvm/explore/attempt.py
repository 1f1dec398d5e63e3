"""Follow what happens while an operation runs, so that its outcome can be judged afterwards."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpusvm.explore.operation import Step
    from gpusvm.explore.permissions import Permissions
    from gpusvm.kernel import Task

__all__ = ["Attempt"]


class Attempt:
    """Follow one operation of one task while it is under way.

    `seen` has the ways in which each page in reach was mapped since the last `look`, `met` the operations that ran at
    the same time; `failures` is how many failures had been injected when it began. `page` is the one that is accessed,
    `touched` are all that were in reach so far. `in_use` says that the device was open when its end began.
    """

    __slots__ = ("failures", "in_use", "met", "page", "permissions", "seen", "step", "task", "touched")

    def __init__(self, task: "Task", step: "Step", permissions: "Permissions") -> None:
        self.task = task
        self.step = step
        self.permissions = permissions
        self.seen: dict[int, frozenset[str]] = {}
        self.met: list[Attempt] = []
        self.failures = 0
        self.in_use = False
        self.page = -1
        self.touched: set[int] = set()

    def look(self, reach: range, *, page: int, failures: int, others: "Iterable[Attempt]") -> None:
        """Begin anew with an access of `page`, for which the pages `reach` matter."""
        states = self.permissions.states
        self.seen = {each: states(each) for each in reach}
        self.touched.update(reach)
        self.page = page
        self.failures = failures
        self.met = [other for other in others if other is not self]

    def again(self, pages: Iterable[int]) -> None:
        """Look at pages that something happens to."""
        states, seen = self.permissions.states, self.seen
        for page in pages:
            if page in seen:
                seen[page] |= states(page)

    def __str__(self) -> str:
        return f"{self.task.name}: {self.step}"
