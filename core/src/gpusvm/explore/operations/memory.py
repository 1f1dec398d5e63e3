"""Let a thread of a process change its mappings."""

from contextlib import suppress
from errno import EFAULT, ENOMEM

from gpusvm.errors import KernelError
from gpusvm.explore.operation import operation
from gpusvm.explore.permissions import UNMAPPED
from gpusvm.explore.place import Place
from gpusvm.kernel import is_freed
from gpusvm.mm.api import MADV_COLLAPSE, MADV_DONTNEED, MREMAP_FIXED, MREMAP_MAYMOVE
from gpusvm.mm.swap import swap_out

__all__ = ["collapse", "dontneed", "map_", "mprotect", "mremap", "munmap", "swap"]


@operation(failed=ENOMEM)
def map_(at: Place, first: int, pages: int, prot: str = "rw") -> None:
    """Map anonymous memory in place of what is there (mmap, MAP_FIXED): ``rw``, ``ro`` or ``none``."""
    # Whoever looks while old memory is replaced may find nothing.
    with at.changing(dict.fromkeys(range(first, first + pages), (prot, UNMAPPED)), to=(prot,)):
        at.mm.mmap(at.address(first), at.length(pages), at.prot(prot))


@operation(failed=ENOMEM)
def munmap(at: Place, first: int, pages: int) -> None:
    """Unmap pages; it does not matter whether they are mapped."""
    with at.changing(dict.fromkeys(range(first, first + pages), (UNMAPPED,)), to=(UNMAPPED,)):
        at.mm.munmap(at.address(first), at.length(pages))


@operation(unmapped=ENOMEM, failed=ENOMEM)
def mprotect(at: Place, first: int, pages: int, prot: str) -> None:
    """Change the protection of pages to ``rw``, ``ro`` or ``none``; ENOMEM at the first that is not mapped."""
    with at.changing(dict.fromkeys(range(first, first + pages), (prot,)), to=(prot,)):
        at.mm.mprotect(at.address(first), at.length(pages), at.prot(prot))


@operation(unmapped=EFAULT, failed=ENOMEM)
def mremap(at: Place, first: int, pages: int, to: int) -> None:
    """Move pages to another place, over what is there (MREMAP_FIXED); EFAULT if one is not mapped."""
    states = at.actor.permissions.states
    during: dict[int, tuple[str, ...]] = {to + i: (*states(first + i), UNMAPPED) for i in range(pages)}
    during.update(dict.fromkeys(range(first, first + pages), (UNMAPPED,)))
    with at.changing(during):
        flags, length = MREMAP_MAYMOVE | MREMAP_FIXED, at.length(pages)
        at.mm.mremap(at.address(first), length, length, flags=flags, new_addr=at.address(to))


@operation(unmapped=ENOMEM, failed=ENOMEM)
def dontneed(at: Place, first: int, pages: int) -> None:
    """Drop the contents of pages, which then read as zeros (MADV_DONTNEED); ENOMEM if one is not mapped."""
    at.mm.madvise(at.address(first), at.length(pages), MADV_DONTNEED)


@operation()
def collapse(at: Place, first: int, pages: int) -> None:
    """Make huge pages of what is mapped small (MADV_COLLAPSE); that it may refuse is no finding, whatever it says."""
    with suppress(KernelError):
        at.mm.madvise(at.address(first), at.length(pages), MADV_COLLAPSE)


@operation(by="machine")
def swap(at: Place, first: int, pages: int) -> None:
    """Push pages of system memory out to swap, one by one, as reclaim does; what it cannot have it leaves."""
    mm = at.mm
    if is_freed(mm):
        return  # the process has ended
    mm.mmgrab()  # what reclaim goes by are pages, which may outlive their user
    for page in range(first, first + pages):
        with suppress(KernelError):
            swap_out(at.memory, mm, at.address(page))
    mm.mmdrop()
