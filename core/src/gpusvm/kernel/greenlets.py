"""Know greenlets by what they hold: the stack of a task, or nothing."""

from greenlet import getcurrent, greenlet


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
