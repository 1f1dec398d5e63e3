"""mm/shrinker.c, as of Linux 7.3.4: caches of the kernel give memory back when it is short.

The model has no reclaim of its own; `shrink_slab` is what it would call, or `echo 2 > /proc/sys/vm/drop_caches`.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpusvm.mm.api import Shrinker

__all__ = ["Shrinkers"]


class Shrinkers:
    """Hold the registered shrinkers, in order of registration."""

    __slots__ = ("_shrinkers",)

    def __init__(self) -> None:
        self._shrinkers: list[Shrinker] = []

    def register(self, shrinker: "Shrinker") -> None:
        """Have a cache asked from now on (shrinker_register)."""
        self._shrinkers.append(shrinker)

    def free(self, shrinker: "Shrinker") -> None:
        """Ask it no more (shrinker_free)."""
        self._shrinkers.remove(shrinker)

    def shrink_slab(self, nr_to_scan: int) -> int:
        """Have every cache free `nr_to_scan` objects, if it has any; how many were freed (shrink_slab)."""
        return sum(
            shrinker.scan_objects(min(nr_to_scan, count))
            for shrinker in list(self._shrinkers)
            if (count := shrinker.count_objects())
        )
