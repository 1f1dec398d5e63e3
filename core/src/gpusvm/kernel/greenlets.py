"""Know greenlets by what they hold, the stack of a task or nothing, and follow what runs in all of them."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from greenlet import getcurrent, gettrace, greenlet, settrace


class IdleGreenlets(list[greenlet]):
    """Be the greenlets that no task runs in, to be used again: a new one costs 30 us, for the system maps its stack.

    They hold nothing of any task, so they are no part of a kernel's state: who puts that back leaves them alone.
    """

    __slots__ = ()


def is_greenlet(what: object) -> bool:
    """Tell whether `what` is a greenlet."""
    return isinstance(what, greenlet)


def is_suspended(what: object) -> bool:
    """Tell whether `what` is a greenlet that was switched away from: a task that has begun and not ended."""
    return isinstance(what, greenlet) and bool(what) and what is not getcurrent()


@contextmanager
def profiled(profile: Callable[[FrameType, str, Any], object]) -> Iterator[None]:
    """Have `profile` called, as `sys.setprofile` says, for what any task does inside the block."""

    def switched(_event: str, _greenlets: tuple[greenlet, greenlet]) -> None:
        sys.setprofile(profile)  # each greenlet has one of its own

    before = gettrace()
    settrace(switched)
    sys.setprofile(profile)
    try:
        yield
    finally:
        sys.setprofile(None)
        settrace(before)
