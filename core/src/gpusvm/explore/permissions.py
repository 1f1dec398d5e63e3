"""Say how each page of a process may be mapped at a moment: not at all, or for which accesses.

The areas of the mm say how it is; while an operation that changes it is under way, a page may also be as that will
leave it, for in what order they take effect is what exploration varies.
"""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from gpusvm.kernel import is_freed
from gpusvm.mm.api import VM_READ, VM_WRITE

if TYPE_CHECKING:
    from gpusvm.explore.attempt import Attempt
    from gpusvm.mm import MmStruct

__all__ = ["ALL_STATES", "NONE", "READ_ONLY", "READ_WRITE", "UNMAPPED", "Permissions"]

UNMAPPED: Final = "unmapped"
NONE: Final = "none"
READ_ONLY: Final = "ro"
READ_WRITE: Final = "rw"
ALL_STATES: Final = frozenset({UNMAPPED, NONE, READ_ONLY, READ_WRITE})
_ONLY: Final = {state: frozenset({state}) for state in ALL_STATES}


class Permissions:
    """Follow the pages of one process, by number; `attempts` hear of every change that begins or ends."""

    def __init__(self, mm: "MmStruct", base: int, attempts: "list[Attempt]") -> None:
        self._mm = mm
        self._base = base
        self._page_size = mm.memory.geometry.page_size
        self._attempts = attempts
        self._changes: list[Mapping[int, Collection[str]]] = []

    def state(self, page: int) -> str:
        """Return how the areas have a page now."""
        if is_freed(self._mm):
            return UNMAPPED
        vma = self._mm.vma_tree.lookup(self._base + page * self._page_size)
        if vma is None:
            return UNMAPPED
        if vma.flags & VM_WRITE:
            return READ_WRITE
        return READ_ONLY if vma.flags & VM_READ else NONE

    def states(self, page: int) -> frozenset[str]:
        """Return how a page may be mapped at this moment."""
        if not self._changes:
            return _ONLY[self.state(page)]
        found = {self.state(page)}
        for change in self._changes:
            found.update(change.get(page, ()))
        return frozenset(found)

    @contextmanager
    def changing(self, during: Mapping[int, Collection[str]]) -> Iterator[None]:
        """Surround an operation that may show each page in one of these states before it ends, or leave it so.

        Until it ends a page may be as before, too: munmap takes an area out of the tree before it tells the notifiers.
        """
        change = {page: {*states, *self.states(page)} for page, states in during.items()}
        self._changes.append(change)
        self._tell(change)
        try:
            yield
        finally:
            self._changes = [other for other in self._changes if other is not change]
            self._tell(change)

    def _tell(self, pages: Mapping[int, Collection[str]]) -> None:
        for attempt in self._attempts:
            if attempt.permissions is self:
                attempt.again(pages)
