"""Races of two threads, one or both of which ask a dmirror device for something."""

from collections.abc import Sequence
from typing import Final

from gpusvm.driver.operations import OperationRace

__all__ = ["RACES"]

_WRITTEN: Final = ("mmap 0 0 2 3 0", "w 0 0 2 100")
_ON_DEVICE: Final = (*_WRITTEN, "mtd 0 0 0 2")
_LOOK: Final = ("pm 0 0 2", "snap 0 0 0 2", "snap 1 0 0 2", "r 0 0 2", "dr 0 0 0 2")


def _race(name: str, about: str, before: Sequence[str], left: str, right: str) -> OperationRace:
    return OperationRace(name=name, about=about, before=before, left=left, right=right, after=_LOOK, profile="base")


RACES: Final = (
    _race("fault-migrate", "a CPU fault brings home what a migration takes back", _ON_DEVICE, "r 0 0 2", "mtd 0 0 0 2"),
    _race("write-migrate", "the CPU writes pages that go to the device", _WRITTEN, "w 0 0 2 200", "mtd 0 0 0 2"),
    _race("munmap-migrate", "pages are unmapped that go to the device", _WRITTEN, "munmap 0 0 2", "mtd 0 0 0 2"),
    _race("munmap-fault", "pages are unmapped that the device faults in", _WRITTEN, "munmap 0 0 2", "dr 0 0 0 2"),
    _race("evict-fault", "pages are sent home that a CPU fault brings home", _ON_DEVICE, "mts 0 0 0 2", "r 0 0 2"),
    _race("release-fault", "the device is evacuated under a CPU fault", _ON_DEVICE, "rel 0", "r 0 0 2"),
    _race("two-devices", "two devices take the same pages", _WRITTEN, "mtd 0 0 0 2", "mtd 1 0 0 2"),
    _race("take-over", "a device faults on what the other is giving back", _ON_DEVICE, "mts 0 0 0 2", "dr 1 0 0 2"),
    _race("fork-migrate", "a child is made of pages that go to the device", _WRITTEN, "fr 0 0 2", "mtd 0 0 0 2"),
    _race("exclusive-write", "the CPU writes a page that becomes exclusive", _WRITTEN, "ex 0 0 0 2", "w 0 0 2 200"),
    _race("protect-write", "pages are protected that the device writes", _WRITTEN, "mprot 0 0 2 1", "dw 0 0 0 2 300"),
)
