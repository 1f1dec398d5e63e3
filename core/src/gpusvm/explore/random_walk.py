"""Pick evenly at every point."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from gpusvm.explore.sampled import Sampled, seed_of

if TYPE_CHECKING:
    from gpusvm.kernel import Task, Timer

__all__ = ["RandomWalk", "seed_of"]


class RandomWalk(Sampled):
    """Give every candidate the same chance at each point.

    It proves nothing by finding nothing, and rare orders stay rare: a bug that needs one task to stand still for j
    choices is met with probability 2^-j or less. Schedule i has the same choices in every walk with the same `seed`.
    """

    def next_task(self, candidates: Sequence[Task | Timer], running: Task | None) -> int:
        return self._drawn.below(len(candidates))
