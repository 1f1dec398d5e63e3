"""Name places in the code that uses the kernel, for errors about two of them."""

import sys
from functools import cache
from pathlib import Path
from types import CodeType, FrameType

# What lies in this room is mechanism: an error names the code that called it.
_ROOM = str(Path(__file__).parent / "_").removesuffix("_")

# Files there of what takes locks and begins sections for others.
_PRIMITIVES = frozenset({"core.py", "lockdep.py", "locks.py", "place.py", "rwsem.py"})

# Files by whether they lie there.
_MECHANISM: dict[str, bool] = {}

Site = tuple[CodeType, int]
"""A place as it is noted where most are never named: some code and the instruction in it (``f_lasti``)."""

# Files of those who look on: by whether what called them is theirs, too.
_ONLOOKERS: dict[str, bool] = {}


@cache  # a machine has few places, and passes them often
def place_of(filename: str, line: int) -> str:
    """Return ``directory/file.py:line``: enough to find the place, the same on every machine."""
    return f"{'/'.join(filename.replace(chr(92), '/').split('/')[-2:])}:{line}"


def is_mechanism(code: CodeType) -> bool:
    """Tell whether code lies in gpusvm.kernel."""
    filename = code.co_filename
    known = _MECHANISM.get(filename)
    if known is None:
        known = _MECHANISM[filename] = filename.startswith(_ROOM)
    return known


def line_of(code: CodeType, instruction: int) -> int:
    """Return the line of an instruction (``f_lasti``) of some code."""
    for start, end, line in code.co_lines():
        if start <= instruction < end and line is not None:
            return line
    return code.co_firstlineno


def name_site(site: Site | None) -> str:
    """Return the place of a site, "?" for None."""
    return "?" if site is None else place_of(site[0].co_filename, line_of(*site))


def site_of_caller() -> Site | None:
    """Return the site of the nearest frame outside gpusvm.kernel; in what only the kernel called, a timer, the frame
    that took the lock or began the section.
    """
    frame = outside(sys._getframe(1)) or _outside_primitives(sys._getframe(1))
    return None if frame is None else (frame.f_code, frame.f_lasti)


def caller() -> str:
    """Return the place of the nearest frame outside gpusvm.kernel, or else as `site_of_caller` does.

    Onlookers are left out, as in every `stack`.
    """
    frame = outside(sys._getframe(1))
    while frame is not None and frame.f_code.co_filename in _ONLOOKERS:
        frame = outside(frame.f_back)
    if frame is None:
        frame = _outside_primitives(sys._getframe(1))
    return "?" if frame is None else place_of(frame.f_code.co_filename, frame.f_lineno)


def outside(frame: FrameType | None) -> FrameType | None:
    """Return the nearest frame outside gpusvm.kernel, `frame` itself or one that called it."""
    known = _MECHANISM
    while frame is not None:
        code = frame.f_code
        inside = known.get(code.co_filename)
        if inside is None:
            inside = is_mechanism(code)
        if not inside:
            break
        frame = frame.f_back
    return frame


def _outside_primitives(frame: FrameType | None) -> FrameType | None:
    """Return the nearest frame of gpusvm.kernel that is not of a lock, or of what watches locks."""
    while frame is not None and Path(frame.f_code.co_filename).name in _PRIMITIVES:
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
