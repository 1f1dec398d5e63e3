"""Enumerate all orders within a number of preemptions, one execution after the other, and skip equivalent ones.

M. Musuvathi, S. Qadeer: Iterative Context Bounding for Systematic Testing of Multithreaded Programs, PLDI 2007 (the
bound), and Partial-Order Reduction for Context-Bounded State Exploration, MSR-TR-2007-12 (prefixes that are known by
what happened before what); P. Godefroid: Partial-Order Methods, 1996 (sleep sets).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from gpusvm.errors import InputError, ModelError
from gpusvm.explore.delay import in_turn
from gpusvm.explore.private import Private
from gpusvm.explore.sampled import INJECT, Patience
from gpusvm.kernel import ABANDON, Task

if TYPE_CHECKING:
    from gpusvm.explore.footprint import Footprints, Path, Step
    from gpusvm.kernel import Timer

__all__ = ["DepthFirst"]

_Sleep = dict["Path", list["Step"]]
"""Tasks whose next step was explored before, with all that this step may be: it need not go before something happened
that the step has to do with."""


class _Data:
    """A choice of data or of a failure."""

    __slots__ = ("chosen", "width")

    def __init__(self, width: int) -> None:
        self.width = width
        self.chosen = 0

    def next(self) -> bool:
        self.chosen += 1
        return self.chosen < self.width


class _Point:
    """A choice of a task, and what is known before it."""

    __slots__ = (
        "at",
        "chosen",
        "free",
        "passed",
        "paths",
        "runner",
        "sleep",
        "spent",
        "steps",
        "todo",
        "unknown",
        "width",
    )

    def __init__(self, *, width: int, runner: int, free: bool, spent: int, at: int, sleep: _Sleep) -> None:
        self.width = width
        self.runner = runner  # the candidate that goes on without a switch, or -1
        self.free = free  # whoever goes, it is no preemption
        self.spent = spent  # preemptions before
        self.at = at  # steps before
        self.sleep = sleep
        self.passed: frozenset[Path] = frozenset()  # who was offered since somebody had to go, and need not be again
        self.paths: list[Path] = []
        self.todo: list[int] = []
        self.chosen = 0
        self.steps: list[Step] = []  # what the step of the chosen one turned out to be, by choices of data in it
        self.unknown = False  # one of these did not end

    def cost(self) -> int:
        return 0 if self.free or self.chosen == self.runner else 1


class DepthFirst:
    """Run every order with at most `preemptions` preemptions (None: every order), every choice of data and failure.

    A preemption is a switch away from a task that could go on. It is none where the running task waits, ends or spins;
    a timer that fires while a task could go on preempts it. A spinning task (cpu_relax), or one that was asked about
    1000 times in an execution, has to let another go: orders in which it does not are left out, as unfair.
    `exhausted` says that nothing is left; `executions` counts, `beyond` the switches left out for the bound (0: there
    are no other orders at all).

    With `footprints` orders that only swap steps which have nothing to do with each other are run once, as far as that
    is known soon enough, by three rules. Each leaves an order out only if one that is equivalent to it, and has no more
    preemptions, is run: (1) a step that touches only what no other task touches is no place to preempt; (2) a task that
    was preempted goes on only when something has happened that its next step has to do with; without a bound, the same
    for everybody who was passed over; (3) what follows a prefix is not run again if the same steps, in the same
    order as far as it matters, were seen before with as many preemptions left and the same task running. `skipped`
    counts the choices that were not followed, each one order at least; an execution that turns out to be one ends at
    once (`abandoned`). What (1) holds for private is learnt while it runs; when that was wrong, it begins again
    (`restarts`).
    """

    def __init__(self, *, preemptions: int | None = 2, footprints: Footprints | None = None) -> None:
        if preemptions is not None and preemptions < 0:
            raise InputError(f"preemptions, the most in an execution, is 0 at least, got {preemptions}")
        self.footprints = footprints
        self.executions = 0
        self.abandoned = 0
        self.skipped = 0
        self.beyond = 0
        self.restarts = 0
        self.exhausted = False
        self._preemptions = preemptions
        self._path: list[_Data | _Point] = []
        self._depth = 0
        self._patience = Patience()
        self._private = Private()
        self._new: _Point | None = None  # whose next step is not known yet
        self._known = 0  # steps that were looked at
        self._seen: dict[tuple[int, int, object], list[tuple[int, frozenset[Path]]]] = {}

    @property
    def states(self) -> int:
        """Count the different prefixes after which there was a choice; 0 without footprints."""
        return len(self._seen)

    def new_execution(self) -> bool:
        if self.exhausted:
            return False
        if self.executions:
            self._look(learns=True)
            if self._new is not None:
                self._new.unknown = True
            if self._private.broken:
                self._restart()
            elif not self._backtrack():
                self.exhausted = True
                return False
        self.executions += 1
        self._depth = 0
        self._patience = Patience()
        return True

    def next_int(self, n: int, label: str) -> int:
        node = self._again(n)
        if node is None:
            node = _Data(n)
            self._path.append(node)
        self._depth += 1
        # A failure that does not happen leaves everything as it is.
        if self.footprints is not None and (node.chosen or not label.startswith(INJECT)):
            self.footprints.chose(node.chosen)
        return node.chosen

    def next_task(self, candidates: Sequence[Task | Timer], running: Task | None) -> int:
        tired = running is not None and self._patience.ends(running)
        node = self._again(len(candidates))
        if node is None:
            node = self._point(candidates, running, tired=tired)
            if node is None:
                self.abandoned += 1
                self.skipped += 1
                return ABANDON
            self._path.append(node)
        self._depth += 1
        return node.chosen

    # ---- parts

    def _again(self, width: int) -> _Data | _Point | None:
        """Return the choice if it was made in the execution before, None if it is a new one."""
        if self._depth == len(self._path):
            return None
        node = self._path[self._depth]
        if node.width != width:
            raise ModelError(
                f"nondeterminism: choice {self._depth} of execution {self.executions - 1} is one of {width}, and with "
                f"the same choices before it was one of {node.width}"
            )
        return node

    def _above(self) -> _Point | None:
        return next((node for node in reversed(self._path) if isinstance(node, _Point)), None)

    def _point(self, candidates: Sequence[Task | Timer], running: Task | None, *, tired: bool) -> _Point | None:
        """Make the choice at the end of the path; None if everything behind it was seen."""
        above = self._above()
        spins = running is not None and (tired or candidates[0] is not running)
        runner = -1 if running is None or spins else 0
        left_out = -1 if running is None or not spins else 0 if candidates[0] is running else len(candidates) - 1
        spent = 0 if above is None else above.spent + above.cost()
        free = runner < 0 or self._preemptions is None
        point = _Point(width=len(candidates), runner=runner, free=free, spent=spent, at=0, sleep={})
        footprints = self.footprints
        if footprints is not None:
            self._look(learns=above is not None)  # what comes before all choices comes before all
            point.at = len(footprints.steps)
            point.paths = [footprints.path(each) for each in candidates]
            if above is not None:
                since = footprints.steps[above.at :]
                sleep = _sleep_after(above.sleep, since)
                if sleep is None:
                    return None
                point.sleep = sleep
                alone = all(step.task == point.paths[0] for step in since)
                if runner == 0 and above.free and (not since or (alone and self._private.holds(since))):
                    # It only did what nobody sees since somebody had to go: the switch may as well have been there.
                    self._private.trust(since)
                    point.free = True
                    point.passed = above.passed
            if self._known_before(point, candidates, point.paths[left_out] if spins else None):
                return None
        left = self._left(point)
        for i in in_turn(candidates, running) if tired else range(len(candidates)):  # in turn, or one would starve
            if i == left_out:
                continue
            if (point.sleep and point.paths[i] in point.sleep) or (point.passed and point.paths[i] in point.passed):
                self.skipped += 1
            elif not point.free and i != runner and left == 0:
                self.beyond += 1
            else:
                point.todo.append(i)
        if not point.todo:
            return None
        point.chosen = point.todo.pop(0)
        self._new = point
        return point

    def _left(self, point: _Point) -> int:
        return 1 << 30 if self._preemptions is None else self._preemptions - point.spent

    def _known_before(self, point: _Point, candidates: Sequence[Task | Timer], spinner: Path | None) -> bool:
        assert self.footprints is not None
        # The clock is no part of the steps, but two orders of the same steps may have jumped to sleepers differently.
        first = candidates[0]
        kernel = first.kernel if isinstance(first, Task) else first._kernel
        now: int = kernel.sched.now  # type: ignore[attr-defined]  # an explored kernel's scheduler has one clock
        goes_on = ("spins", spinner) if spinner is not None else None if point.free else point.paths[0]
        seen = self._seen.setdefault((self.footprints.prefix_hash, now, goes_on), [])
        left, asleep = self._left(point), point.passed.union(point.sleep)
        if any(left <= had and asleep >= slept for had, slept in seen):
            return True
        seen[:] = [(had, slept) for had, slept in seen if not (had <= left and slept >= asleep)]
        seen.append((left, asleep))
        return False

    def _look(self, *, learns: bool) -> None:
        """See which steps have ended since it was asked last."""
        if self.footprints is None:
            return
        steps = self.footprints.steps
        if self._new is not None and len(steps) > self._new.at:
            self._new.steps.append(steps[self._new.at])
            self._new = None
        if learns:
            for step in steps[self._known :]:
                self._private.learn(step)
        self._known = len(steps)

    def _backtrack(self) -> bool:
        """Go to the next choice of the tree; False if there is none."""
        while self._path:
            node = self._path[-1]
            if node.next() if isinstance(node, _Data) else self._next(node):
                above = self._above()
                self._new = above
                self._known = 0 if above is None else above.at
                if self.footprints is not None:
                    self.footprints.keep(self._known)
                return True
            self._path.pop()
        return False

    def _next(self, point: _Point) -> bool:
        """Go to the next candidate of a point, if there is one that need go."""
        if not point.todo:
            return False
        if point.steps and not point.unknown:
            path = point.paths[point.chosen]
            if all(step.task == path for step in point.steps):  # no timer
                if point.cost() == 0 and self._private.holds(point.steps):
                    self._private.trust(point.steps)
                    self.skipped += len(point.todo)
                    return False
                if self._preemptions is None or (point.chosen == point.runner and not point.free):
                    point.sleep = {**point.sleep, path: point.steps}
        if point.free and point.paths:
            point.passed |= {point.paths[point.chosen]}
        point.steps = []
        point.unknown = False
        point.chosen = point.todo.pop(0)
        return True

    def _restart(self) -> None:
        self.restarts += 1
        self._path.clear()
        self._seen.clear()
        self._private.forget_trust()
        self._new = None
        self._known = 0


def _sleep_after(sleep: _Sleep, steps: Sequence[Step]) -> _Sleep | None:
    """Return who is still asleep after some steps; None if one that was asleep has gone on."""
    from gpusvm.explore.footprint import independent

    for step in steps:
        if not sleep:
            break
        if step.task in sleep:
            return None
        sleep = {
            path: variants for path, variants in sleep.items() if all(independent(each, step) for each in variants)
        }
    return sleep
