"""Bugs of the mm."""

from typing import Any, Final

from gpusvm.conformance.mutants.mutant import Mutant, Swap, instead

__all__ = ["MM"]


def _spin(memory: Any, head: int) -> bool:
    if not memory.pages.folio_trylock(head):
        return False
    memory.pages.folio_get(head)
    return True


def _reference_first(memory: Any, head: int) -> bool:
    memory.pages.folio_get(head)
    memory.pages.folio_lock(head)
    return True


MM: Final = (
    Mutant(
        id="MM-01",
        title="A CPU spins for the lock of a device page, on the CPU that the lock's owner waits for",
        where="memory.c:do_swap_page",
        fix="b570f37a2ce4, 7.0-rc1",
        evidence="C",
        importance="S",
        oracle=("I-PROG",),
        scope="mm",
        drivers=("xe", "nouveau", "dmirror"),
        swaps=(Swap("gpusvm.mm.memory:lock_device_page", instead(_spin)),),
    ),
    Mutant(
        id="MM-02",
        title="Every CPU that touches a device page takes a reference first, and none of them can migrate it",
        where="memory.c:do_swap_page",
        fix="1afaeb8293c9, 6.15",
        evidence="C",
        importance="S",
        oracle=("I-PROG",),
        scope="mm",
        drivers=("xe", "nouveau", "dmirror"),
        swaps=(Swap("gpusvm.mm.memory:lock_device_page", instead(_reference_first)),),
    ),
)
