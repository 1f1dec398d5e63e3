"""Remember what operations of the mm are under way: a migration from setup to finalize, a split, a zap."""

from typing import Final

from gpusvm.kernel import Task
from gpusvm.mm.api import MIGRATE_PFN_SHIFT, MIGRATE_PFN_VALID, MigrateVma, Words

__all__ = ["Migration", "Operation", "page_of"]


def page_of(word: int) -> int:
    """Return the page that a migration's word names, -1 if it names none."""
    return word >> MIGRATE_PFN_SHIFT if word & MIGRATE_PFN_VALID else -1


class Operation:
    """Be something that a task is doing, by the name of the kernel's function."""

    __slots__ = ("name", "task", "what")

    def __init__(self, name: str, task: Task, what: tuple[object, ...]) -> None:
        self.name: Final = name
        self.task: Final = task
        self.what: Final = what


class Migration(Operation):
    """Be one migration; it outlives the call that began it. `fault_head` is -1 without a fault folio."""

    __slots__ = ("args", "destinations", "fault_head", "npages", "src", "words")

    def __init__(self, name: str, task: Task, src: Words, args: MigrateVma | None, *, fault_head: int) -> None:
        super().__init__(name, task, ())
        self.src: Final = src
        self.args: Final = args
        self.fault_head: Final = fault_head
        self.npages = 0
        self.words: list[int] = []  # src as setup, or pages, left it
        self.destinations: dict[int, None] = {}  # head pfns that are not free again

    @property
    def owner(self) -> object | None:
        """Return the owner that its MIGRATE windows carry."""
        return None if self.args is None else self.args.pgmap_owner
