"""Let a third party hold pages: references and pins, taken through the process's page tables."""

from errno import EFAULT, ENOMEM

from gpusvm.explore.operation import operation
from gpusvm.explore.place import Place
from gpusvm.mm.api import FOLL_WRITE

__all__ = ["drop", "hold", "pin"]


@operation(unmapped=EFAULT, forbidden=EFAULT, failed=(ENOMEM, EFAULT))
def hold(at: Place, first: int, pages: int) -> None:
    """Take a reference on each page (get_user_pages), until `drop`; EFAULT if one is not mapped."""
    _take(at, first, pages, pinned=False)


@operation(unmapped=EFAULT, forbidden=EFAULT, failed=(ENOMEM, EFAULT))
def pin(at: Place, first: int, pages: int) -> None:
    """Pin each page for writing (pin_user_pages), until `drop`; EFAULT if one is not mapped, or not writable."""
    _take(at, first, pages, pinned=True)


@operation()
def drop(at: Place, first: int, pages: int) -> None:
    """Give back what `hold` and `pin` took at these pages."""
    for page in range(first, first + pages):
        at.kernel.step()
        at.world.drop(at.actor, page)


def _take(at: Place, first: int, pages: int, *, pinned: bool) -> None:
    memory = at.memory
    for page in range(first, first + pages):
        at.look(page)
        at.kernel.step()
        if pinned:
            pfns = memory.pin_user_pages_fast(at.mm, at.address(page), 1, flags=FOLL_WRITE)
        else:
            pfns = memory.get_user_pages_fast(at.mm, at.address(page), 1)
        at.actor.held.setdefault(page, []).extend((pfn, pinned) for pfn in pfns.tolist())
