"""Read recorded answers, and say at which level two of them differ."""

import re
from typing import Final, Literal, get_args

from gpusvm.driver.operations import Answer
from gpusvm.errors import InputError

__all__ = ["ENDED", "HANG", "LEVELS", "Level", "first_difference", "read_answer"]

Level = Literal["L0", "L1", "L2", "L3"]
"""How closely answers are compared: L0 return, errno, counts and data; L1 also where the pages are; L2 also which
events came; L3 also in which order."""

HANG: Final = "HANG"
"""What stands for the answer of an operation that never returned: the last of its sequence."""

ENDED: Final = "STATUS "
"""What begins the answer of an operation before whose end its process ended, which no process should."""

LEVELS: Final[tuple[Level, ...]] = get_args(Level)


def read_answer(text: str, events: tuple[str, ...]) -> Answer:
    """Read one answer, whose events begin with a word of `events`. InputError, without its place, for one that is none.

    The payload is what stands between the four numbers and the first event; it may be empty.
    """
    head = re.match(r"(-?\d+) (-?\d+) (-?\d+) (-?\d+)(?: |\Z)", text)
    if head is None:
        raise InputError(f"expected an answer of four numbers, then data and events, got {text!r}")
    words = text.split(" ")[4:]
    starts = tuple(f"{word}(" for word in events)
    first = next((i for i, word in enumerate(words) if word.startswith(starts)), len(words))
    for word in words[first:]:
        if not word.startswith(starts) or not word.endswith(")"):
            kinds = ", ".join(f"{start}…)" for start in starts)
            raise InputError(f"expected events ({kinds}) at the end of an answer, got {word!r}")
    ret, errno, done, rounds = map(int, head.groups())
    payload = " ".join(words[:first]) if first else None
    return Answer(ret, errno, done, rounds, payload, tuple(words[first:]))


def first_difference(expected: Answer, got: Answer, *, residency: bool) -> Level | None:
    """Return the lowest level at which two answers differ, None if they are equal; `residency` as of the operation."""
    if (expected.ret, expected.errno, expected.done, expected.rounds) != (got.ret, got.errno, got.done, got.rounds):
        return "L0"
    if expected.payload != got.payload:
        return "L1" if residency else "L0"
    if expected.events == got.events:
        return None
    return "L3" if sorted(expected.events) == sorted(got.events) else "L2"
