"""Know which steps touch only what no other task touches, as far as executions have shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpusvm.explore.footprint import Path, Step

__all__ = ["Private"]

_SEVERAL: Path = (-2,)


class Private:
    """Remember who touched and who wrote each thing, over all executions of one exploration.

    A step is private if nobody else touched what it wrote, nor wrote what it read. Whoever relies on that says so
    (`trust`); `broken` tells that an execution has shown otherwise since. What task "settles" does is ordered after
    everything and does not count.
    """

    def __init__(self) -> None:
        self.broken = False
        self._touched: dict[int, Path] = {}
        self._wrote: dict[int, Path] = {}
        self._trusted: set[int] = set()
        self._trusted_reads: set[int] = set()
        self._everything: Path | None = None

    def learn(self, step: Step) -> None:
        """Note what a step touched."""
        path = step.task
        if step.everything:
            if step.label == "settled":
                return
            if self._everything is None:
                self._everything = path
            elif self._everything != path:
                self._everything = _SEVERAL
            self.broken = self.broken or bool(self._trusted or self._trusted_reads)
        touched, wrote = self._touched, self._wrote
        for thing in step.writes:
            if touched.get(thing) != path:
                self._touch(thing, path)
            if wrote.get(thing) != path:
                wrote[thing] = _SEVERAL if thing in wrote else path
                if thing in self._trusted_reads:
                    self.broken = True
        for thing in step.reads:
            if touched.get(thing) != path:
                self._touch(thing, path)

    def _touch(self, thing: int, path: Path) -> None:
        if thing in self._touched:
            self._touched[thing] = _SEVERAL
            if thing in self._trusted:
                self.broken = True
        else:
            self._touched[thing] = path

    def holds(self, steps: Sequence[Step]) -> bool:
        """Say whether steps of one task are private by what is known."""
        path = steps[0].task
        if self._everything is not None and self._everything != path:
            return False
        touched, wrote = self._touched, self._wrote
        return all(
            not step.everything
            and all(touched.get(thing, path) == path for thing in step.writes)
            and all(wrote.get(thing, path) == path for thing in step.reads)
            for step in steps
        )

    def trust(self, steps: Sequence[Step]) -> None:
        """Rely on it that these are private."""
        for step in steps:
            self._trusted |= step.writes
            self._trusted_reads |= step.reads

    def forget_trust(self) -> None:
        """Begin again, with what was learnt."""
        self.broken = False
        self._trusted.clear()
        self._trusted_reads.clear()
