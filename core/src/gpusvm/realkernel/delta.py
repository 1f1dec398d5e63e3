"""Make a sequence that differs as short as it can be read (A. Zeller, R. Hildebrandt: Simplifying and Isolating
Failure-Inducing Input, IEEE TSE 28, 2002).
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

__all__ = ["shortened"]

_Item = TypeVar("_Item")


def shortened(items: Sequence[_Item], still: Callable[[Sequence[_Item]], bool], *, tries_max: int) -> list[_Item]:
    """Take out of `items` what can go while `still` holds, first in large parts, then one by one.

    What is left is 1-minimal, unless `tries_max` calls of `still` were not enough. `still` holds for `items`.
    """
    left = list(items)
    part = max(1, len(left) // 2)
    tries = 0
    while True:
        removed = False
        at = len(left)
        # From the end: what comes late is needed by nothing behind it.
        while at > 0:
            begin = max(0, at - part)
            without = [*left[:begin], *left[at:]]
            if tries >= tries_max:
                return left
            tries += 1
            if without and still(without):
                left, removed = without, True
            at = begin
        if part == 1 and not removed:
            return left
        part = part if removed and part == 1 else max(1, part // 2)
