"""Judge how a check ended: what status that is, why in one line, and where."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from itertools import dropwhile
from pathlib import Path
from traceback import extract_tb
from types import FrameType
from typing import Final

from attrs import frozen

from gpusvm.check import InvariantError
from gpusvm.conformance.lab import NotApplicableError
from gpusvm.conformance.suite.check import Check, version
from gpusvm.conformance.suite.defects import DEFECTS
from gpusvm.conformance.suite.expected import Expected, Statement
from gpusvm.conformance.suite.place import place
from gpusvm.conformance.suite.status import Status
from gpusvm.driver import Capabilities
from gpusvm.errors import GpusvmError
from gpusvm.kernel.authors import blames_call

__all__ = ["LIMIT_S", "HangError", "Verdict", "before", "judged", "limited"]

LIMIT_S: Final = 60.0
"""How long one check may take."""

_FOUND = (AssertionError, GpusvmError, NotApplicableError)
_AGAIN_S: Final = 1.0
_LONG: Final = 400

# A place in here says less than the one that called it.
_HOUSE: Final = str(Path(__file__).parents[2])


class HangError(BaseException):  # nothing that runs in a check may take it for an error of its own
    """End a check that has run for too long; the message says where it was."""


@frozen(kw_only=True)
class Verdict:
    """Hold a status and the reason for it in one line, with the reference of whoever gives it."""

    status: Status
    reason: str
    ref: str


def before(check: Check, capabilities: Capabilities, statement: Statement) -> Verdict | None:
    """Say why a check is not run on a driver: by what the driver states, and by nothing else. None: it runs."""
    if version(check.since) > version(statement.targets):
        reason = f"since spec {check.since}, and the driver targets {statement.targets}"
        return Verdict(status=Status.NOT_RUN, reason=reason, ref=check.ref)
    if check.id in DEFECTS:
        reason = f"a defect of the suite: {DEFECTS[check.id]}"
        return Verdict(status=Status.NOT_RUN, reason=reason, ref=check.ref)
    lacking = [name for name in check.requires if not getattr(capabilities, name)]
    if lacking:
        reason = "; ".join(f"{name}: {getattr(capabilities, name).how}" for name in lacking)
        return Verdict(status=Status.UNSUPPORTED, reason=reason, ref=check.ref)
    return None


def judged(check: Check, error: BaseException | None, expected: Expected | None) -> Verdict:
    """Judge a check that ran: `error` is what it ended in, `expected` what the driver states of it."""
    if error is None and expected is None:
        return Verdict(status=Status.PASS, reason="", ref=check.ref)
    if error is None:
        assert expected is not None
        reason = (
            f"it passes, and is stated to fail ({expected.kind}): {expected.reason}; take the entry out "
            f"({expected.place})"
        )
        return Verdict(status=Status.XPASS, reason=reason, ref=expected.ref)
    if not isinstance(error, _FOUND):
        return Verdict(status=Status.ERROR, reason=_said(error, check), ref=check.ref)
    if expected is not None:
        return Verdict(status=Status.XFAIL, reason=f"{expected.kind}: {expected.reason}", ref=expected.ref)
    return Verdict(status=Status.FAIL, reason=_said(error, check), ref=check.ref)


def _said(error: BaseException, check: Check) -> str:
    """Say an error in one line, with the place where it arose: in the check, or in what that called of a driver's."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{type(error).__name__}: {error.msg} ({place(error.filename, error.lineno)})"
    lines = [line.strip() for line in f"{error}{blames_call(error)}".splitlines() if line.strip()]
    if isinstance(error, InvariantError) and len(error.violations) > 1:
        one = len(error.violations)
        lines = [f"{lines[0]}, and {one - 1} more", *lines[one:]]
    # The rule that a driver breaks is said whole, however long the rest is.
    rule = next((i for i, line in enumerate(lines) if line.startswith("rule ")), len(lines))
    # Below an assertion is what its parts came to; other errors go on.
    text = lines[0] if isinstance(error, AssertionError) and lines else " ".join(lines[:rule])
    said = " ".join(lines[rule:])
    if isinstance(error, HangError):
        return text
    if not isinstance(error, GpusvmError | NotApplicableError) and not (isinstance(error, AssertionError) and text):
        text = f"{type(error).__name__}: {text}".removesuffix(": ")
    return f"{_short(text)} {said}".rstrip() + f" ({_where(error, check)})"


def _short(text: str) -> str:
    return text if len(text) <= _LONG else f"{text[: _LONG - 3]}..."


def _where(error: BaseException, check: Check) -> str:
    own = check.run.__code__.co_filename
    frames = list(dropwhile(lambda frame: frame.filename != own, extract_tb(error.__traceback__)))
    theirs = [frame for frame in frames if frame.filename == own or not frame.filename.startswith(_HOUSE)]
    return place(theirs[-1].filename, theirs[-1].lineno) if theirs else "when its machines were taken down"


@contextlib.contextmanager
def limited(seconds: float, *, of_cpu: bool = False) -> Iterator[None]:
    """Raise HangError inside the block once it has run for so long, and again as long as it goes on; `of_cpu`: for so
    much of a CPU's time, which others that want the CPU do not shorten.

    Only the main thread of a process on POSIX can be interrupted so; elsewhere there is no limit.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def end(_signal: int, frame: FrameType | None) -> None:
        at = "?" if frame is None else place(frame.f_code.co_filename, frame.f_lineno)
        raise HangError(f"no end after {seconds:g} s, at {at}")

    timer, alarm = (signal.ITIMER_PROF, signal.SIGPROF) if of_cpu else (signal.ITIMER_REAL, signal.SIGALRM)
    was = signal.signal(alarm, end)
    signal.setitimer(timer, seconds, _AGAIN_S)
    try:
        yield
    finally:
        signal.setitimer(timer, 0)
        signal.signal(alarm, was)
