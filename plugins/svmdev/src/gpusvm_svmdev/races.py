"""Races of two threads, one or both of which ask an svmdev device for something."""

from collections.abc import Sequence
from typing import Final

from gpusvm.driver.operations import OperationRace

__all__ = ["RACES"]

_WRITTEN: Final = ("mmap 0 0 4 3 0", "w 0 0 4 1000")
_ON_DEVICE: Final = (*_WRITTEN, "sp 0 0 0 4")
_LOOK: Final = ("pm 0 0 4", "si 0 0 0 4", "si 1 0 0 4", "r 0 0 4", "st 0", "st 1")
_HUGE: Final = ("mmap 0 0 @8 3 0", "madv 0 0 @8 14", "w 0 0 1 7", "sp 0 0 0 @8")


def _race(
    name: str,
    about: str,
    before: Sequence[str],
    left: str,
    right: str,
    after: Sequence[str] = _LOOK,
    profile: str = "two-same-base",
) -> OperationRace:
    return OperationRace(name=name, about=about, before=before, left=left, right=right, after=after, profile=profile)


RACES: Final = (
    _race("fault-migrate", "a CPU fault brings home what a migration takes", _ON_DEVICE, "r 0 0 4", "sp 0 0 0 4"),
    _race("write-migrate", "the CPU writes pages that go to the device", _WRITTEN, "w 0 0 4 2000", "sp 0 0 0 4"),
    _race("munmap-migrate", "pages are unmapped that go to the device", _WRITTEN, "munmap 0 0 4", "sp 0 0 0 4"),
    _race("munmap-fault", "pages are unmapped that the device faults in", _WRITTEN, "munmap 0 0 4", "sf 0 0 0 1 0"),
    _race("two-devices", "two devices take the same pages", _WRITTEN, "sp 0 0 0 4", "sp 1 0 0 4"),
    _race("two-faults", "two devices fault, and take the pages", _WRITTEN, "sf 0 0 0 1 0", "sf 1 0 0 1 1"),
    _race("evict-fault", "pages are sent home that a CPU fault brings home", _ON_DEVICE, "sb 0 0", "r 0 0 4"),
    _race("evict-device-fault", "pages are sent home that the device maps", _ON_DEVICE, "sb 0 0", "sf 0 0 0 1 0"),
    _race("take-over", "a device faults on what the other is giving back", _ON_DEVICE, "sb 0 0", "sf 1 0 0 1 1"),
    _race("fork-migrate", "a child is made of pages that go to the device", _WRITTEN, "fr 0 0 4", "sp 0 0 0 4"),
    _race(
        "evict-fault-huge",
        "a huge page is sent home, and a CPU fault on a page in its middle, which is mapped alone, splits it",
        (*_HUGE, "madv 0 @6 1 4"),
        "r 0 @5 1",
        "sb 0 0",
        ("r 0 1 1", "sb 0 0", "r 0 0 1"),
        "one-thp",
    ),
)
