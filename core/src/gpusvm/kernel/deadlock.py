"""Find tasks that wait for each other, and say of each task what it waits for, who holds that, and where it stands."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from types import FrameType
from typing import TYPE_CHECKING

from gpusvm.kernel.place import stack

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


def report(title: str, tasks: Iterable[Task]) -> str:
    """Return the message of a DeadlockError: `title`, then each waiting task with its stack, innermost call first."""
    lines = [title]
    for task in tasks:
        on = task.waiting_on
        if on is None:
            continue
        holders = on.holders(task)
        held_by = (
            f", held by {', '.join(f'task {holder.name!r}' for holder in holders)}"
            if holders and holders != [on]
            else ""
        )
        lines.append(f"  task {task.name!r} waits for {on.describe()}{held_by}")
        if task.kernel.current is task:
            frame: FrameType | None = sys._getframe()
        else:
            frame = None if task.greenlet is None else task.greenlet.gr_frame
        lines.extend(f"    {line}" for line in stack(frame))
    return "\n".join(lines)
