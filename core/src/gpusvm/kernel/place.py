"""Name places in the code that uses the kernel, for errors about two of them."""

import sys
from functools import cache
from pathlib import Path
from types import CodeType, FrameType

# What lies in this room is mechanism: an error names the code that called it.
_ROOM = str(Path(__file__).parent / "_").removesuffix("_")

# Files of those who look on: by whether what called them is theirs, too.
_ONLOOKERS: dict[str, bool] = {}


@cache  # a machine has few places, and passes them often
def place_of(filename: str, line: int) -> str:
    """Return ``directory/file.py:line``: enough to find the place, the same on every machine."""
    return f"{'/'.join(filename.replace(chr(92), '/').split('/')[-2:])}:{line}"


def is_mechanism(code: CodeType) -> bool:
    """Tell whether code lies in gpusvm.kernel."""
    return code.co_filename.startswith(_ROOM)


def line_of(code: CodeType, instruction: int) -> int:
    """Return the line of an instruction (``f_lasti``) of some code."""
    for start, end, line in code.co_lines():
        if start <= instruction < end and line is not None:
            return line
    return code.co_firstlineno


def caller() -> str:
    """Return the place of the nearest frame outside gpusvm.kernel."""
    frame = outside(sys._getframe(1))
    return "?" if frame is None else place_of(frame.f_code.co_filename, frame.f_lineno)


def outside(frame: FrameType | None) -> FrameType | None:
    """Return the nearest frame outside gpusvm.kernel, `frame` itself or one that called it."""
    while frame is not None and is_mechanism(frame.f_code):
        frame = frame.f_back
    return frame


def leave_out(filename: str, *, callers: bool = False) -> None:
    """Leave the frames of a file out of every `stack`, and with `callers` whatever called it.

    For those who look on or start the tasks: errors of the same execution are the same, whoever looked.
    """
    _ONLOOKERS[filename] = callers


def stack(frame: FrameType | None, limit: int = 8) -> list[str]:
    """Return up to `limit` lines ``place in function`` from `frame` outwards, gpusvm.kernel and onlookers left out."""
    lines: list[str] = []
    while frame is not None and len(lines) < limit:
        callers = _ONLOOKERS.get(frame.f_code.co_filename)
        if callers:
            break
        if callers is None and not is_mechanism(frame.f_code):
            lines.append(f"{place_of(frame.f_code.co_filename, frame.f_lineno)} in {frame.f_code.co_name}")
        frame = frame.f_back
    return lines
