"""Name the installed drivers in a way that travels to another process."""

import functools

from attrs import frozen

from gpusvm.plugins.loading import load_drivers
from gpusvm.plugins.registry import Registry

__all__ = ["Installed"]


@frozen
class Installed:
    """Stand for the installed drivers but those in `without`.

    In another process they are loaded again: what a plugin's classes are called there, pickle may not know.
    """

    without: tuple[str, ...]
    loaded: Registry | None = None

    def __reduce__(self) -> tuple[type["Installed"], tuple[tuple[str, ...]]]:
        return Installed, (self.without,)

    def registry(self) -> Registry:
        """Return the drivers, loading them once in each process."""
        return _load(self.without) if self.loaded is None else self.loaded


@functools.cache
def _load(without: tuple[str, ...]) -> Registry:
    return load_drivers(without=without)
