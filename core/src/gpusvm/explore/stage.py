"""Give the same freshly booted world again and again: boot once, put back, and boot anew when that is asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from attrs import define, field

from gpusvm.explore.checkpoint import Checkpoint

if TYPE_CHECKING:
    from gpusvm.explore.world import World

__all__ = ["Stage"]


@define
class Stage:
    """Keep one world and put it back to the moment after its setup before each execution."""

    boot: Callable[[], World]
    _world: World | None = field(default=None, init=False)
    _checkpoint: Checkpoint | None = field(default=None, init=False)

    def ready(self) -> World:
        """Return the world as it was after its setup; what the last execution has made of it is gone."""
        if self._world is None or self._checkpoint is None:
            self._world = self.boot()
            self._checkpoint = Checkpoint([self._world])
            return self._world
        self._world.kernel.close()  # tasks that an error has left waiting
        self._checkpoint.restore()
        return self._world

    def anew(self) -> World:
        """Return a world of its own, freshly booted; `ready` goes on with the kept one."""
        return self.boot()
