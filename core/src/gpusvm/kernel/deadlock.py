"""Find tasks that wait for each other, and say of each what it waits for, who holds that, what it holds, and where."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable
from types import FrameType
from typing import TYPE_CHECKING

from gpusvm.kernel.place import stack
from gpusvm.kernel.task import Waitable

if TYPE_CHECKING:
    from gpusvm.kernel.task import Task


def find_circle(task: Task) -> list[Task]:
    """Return the circle of waiting tasks that `task`, about to wait, closes; empty if there is none."""
    came: dict[Task, Task] = {}
    queue = [task]
    for waiter in queue:
        on = waiter.waiting_on
        if on is None:
            continue
        for holder in on.holders(waiter):
            if holder is task:
                circle = [waiter]
                while circle[-1] is not task:
                    circle.append(came[circle[-1]])
                return circle[::-1]
            if holder not in came:
                came[holder] = waiter
                queue.append(holder)
    return []


def report(title: str, tasks: Iterable[Task], *, running: Collection[Task] = ()) -> str:
    """Return the message of a DeadlockError: `title`, then each waiting task: what it waits for and who holds that,
    what it holds itself (in checked kernels), and its stack, innermost call first; also those of `running`, which wait
    for nobody.
    """
    lines = [title]
    for task in tasks:
        on = task.waiting_on
        if on is None and task not in running:
            continue
        what = "runs" if on is None else f"waits for {on.wanted_by(task)}{_whose(on, task)}"
        lines.append(f"  task {task.name!r} {what}")
        lines.extend(f"    holds {lock}" for lock in _held(task, on))
        if task.kernel.current is task:
            frame: FrameType | None = sys._getframe()
        else:
            frame = None if task.greenlet is None else task.greenlet.gr_frame
        lines.extend(f"    {line}" for line in stack(frame))
    return "\n".join(lines)


def _whose(on: Waitable, task: Task) -> str:
    # A task is waited for by itself, which says nothing.
    holders = [each for each in on.holders(task) if each is not on]
    ahead = on.ahead_of(task)
    having = [f"task {each.name!r}{on.how_held(each)}" for each in holders if each not in ahead]
    held = f", held by {', '.join(having)}" if having else ""
    return held + (f", behind {', '.join(f'task {each.name!r}' for each in ahead)}" if ahead else "")


def _held(task: Task, on: Waitable | None) -> list[str]:
    # lockdep enters a lock before it is had.
    return [
        f"{lock.describe()}{lock.how_held(task) if isinstance(lock, Waitable) else ''} (taken at {node.place})"
        for lock, node in zip(task.held, task.chain.path(), strict=True)
        if lock is not on
    ]
