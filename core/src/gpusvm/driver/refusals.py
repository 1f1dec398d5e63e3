"""Say with which errnos a driver may refuse a request, and why: its contract with programs, as far as errors go.

Exploration holds a driver to it: an errno for which there was no reason is a finding, however rare the order of events
that brings it about.
"""

from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet
from errno import EACCES, EAGAIN, EBUSY, EFAULT, EINTR, EINVAL, EIO, ENODEV, ENOENT, ENOMEM, ENOSPC, EOPNOTSUPP, EPERM
from typing import Any, Final

from attrs import field, fields, frozen
from attrs.converters import optional

__all__ = ["NEVER", "Errnos", "Refusals"]

NEVER: Final[AbstractSet[int]] = frozenset()
"""No errno: a request is never refused for that reason."""


def _frozenset(errnos: Iterable[int]) -> frozenset[int]:
    return frozenset(errnos)


def _errnos(*usual: int) -> Any:
    return field(default=usual, converter=_frozenset)


@frozen(kw_only=True)
class Errnos:
    """Name the errnos of one kind of request by what must have been so at some moment while it ran.

    The defaults are what any driver may be expected to answer; one that knows better states its own.
    """

    unmapped: AbstractSet[int] = _errnos(EFAULT, ENOENT, EINVAL)
    """A page in reach was in no area."""
    forbidden: AbstractSet[int] = _errnos(EFAULT, EPERM, EACCES, EINVAL)
    """An area in reach did not allow the access."""
    unfit: AbstractSet[int] = _errnos(EACCES, EFAULT, EINVAL, EIO, EOPNOTSUPP)
    """An area in reach is of a kind that this is not for: registers of a device, or files where it is an atomic."""
    closed: AbstractSet[int] = _errnos(ENOENT, EINVAL, ENODEV)
    """The GPU's address space was being closed."""
    exited: AbstractSet[int] = _errnos(EFAULT, EINVAL, ENOENT)
    """The process was ending, or had ended."""
    killed: AbstractSet[int] = _errnos(EFAULT, EINTR)
    """The process was killed for want of memory, and its pages taken away."""
    unplugged: AbstractSet[int] = _errnos(ENODEV)
    """The device went away."""
    peer_unplugged: AbstractSet[int] = _errnos()
    """Another device or its driver went away, to whose memory what is wanted may have to go."""
    contended: AbstractSet[int] = _errnos(EBUSY, EAGAIN)
    """Others used, moved or held pages in reach, or wanted room on the device."""
    crowded: AbstractSet[int] = _errnos()
    """More memory was mapped than the device has room for, and nothing leaves it for others."""
    touched: AbstractSet[int] | None = field(default=None, converter=optional(_frozenset))
    """Pages in reach were read or written by CPUs, and no more than that; None: as for `contended`."""
    failed: AbstractSet[int] = _errnos(ENOMEM, EBUSY, EFAULT, EINVAL, EIO, ENOSPC)
    """Something was made to fail."""

    def items(self) -> Iterator[tuple[str, AbstractSet[int]]]:
        """Return (reason, errnos) in order of declaration."""
        stated = ((each.name, getattr(self, each.name)) for each in fields(Errnos))
        return ((name, self.contended if errnos is None else errnos) for name, errnos in stated)


@frozen(kw_only=True)
class Refusals:
    """State the errnos of a GPU read or write, of an atomic access, of `Vm.populate` and of ioctls of the driver's own.

    In reach of a fault is its page; with `reach_block` everything in its PMD's block, as for a driver that serves a
    range at a time; with `reach_ahead_pages` so many pages from it on. With `read_needs_write` the GPU may not even
    read what the process may not write.
    """

    access: Errnos = Errnos()
    atomic: Errnos = Errnos()
    populate: Errnos = Errnos()
    ioctl: Errnos = Errnos()
    reach_block: bool = True
    reach_ahead_pages: int = 1
    read_needs_write: bool = False
