"""Say what can go wrong, as one tree of exceptions.

::

    GpusvmError
    ├── InputError     a bad file, key or name from the user; the command line exits with 2
    ├── KernelError    an errno that a modelled kernel function returns; the number is part of the contract
    ├── ModelError     the model was violated: an invariant, lockdep, the ledger, the contents of memory
    │   ├── DeadlockError   nothing can run and someone waits, or tasks wait for each other in a circle
    │   ├── DriverError     an assertion of the driver's own does not hold (WARN_ON in its source)
    │   ├── LateWorkError   a work or timer is queued, or runs, though its owner has ended
    │   ├── LedgerError     a reference, mapping or the like was put twice, put by a stranger, or never put
    │   ├── LivelockError   tasks run and get nowhere, or one keeps its CPU from the task that it waits for
    │   │   └── ProgressError   no end is in sight after as many steps or attempts as anything may take
    │   ├── LockdepError    a rule about locks was broken: order, context, ownership
    │   └── UseAfterFreeError  something was used, or freed again, after it was freed
    ├── PluginError    a driver plugin cannot be loaded, or breaks the contract of ``gpusvm.driver``
    └── CpuSignal      the modelled process gets a signal for an access of its own: SIGSEGV, SIGBUS
"""

import difflib
import errno as _errno
import re
import signal as _signal
from collections.abc import Iterable
from typing import Final

__all__ = [
    "CpuSignal",
    "DeadlockError",
    "DriverError",
    "GpusvmError",
    "InputError",
    "KernelError",
    "LateWorkError",
    "LedgerError",
    "LivelockError",
    "LockdepError",
    "ModelError",
    "PluginError",
    "ProgressError",
    "UseAfterFreeError",
    "errno_name",
    "nearest",
]

# How like a name has to be, from 0 to 1 (difflib), to be taken for what was meant: as a whole, and, of several, each
# word.
_NEAR: Final = 0.66
_WORD_NEAR: Final = 0.7
_SHORT: Final = 3


# Python knows two names for one number and prefers POSIX's, and none for the other.
_NAMES = {**_errno.errorcode, _errno.EOPNOTSUPP: "EOPNOTSUPP", 133: "EHWPOISON"}


def errno_name(errno: int) -> str:
    """Return the symbolic name of an errno, or its digits if it has none."""
    return _NAMES.get(errno, str(errno))


class GpusvmError(Exception):
    """Be the root of everything that gpusvm raises on purpose."""


class InputError(GpusvmError):
    """Report bad input in one line: file, place, what was expected, the mend."""


class KernelError(GpusvmError):
    """Carry the errno of a modelled kernel function.

    `errno` is positive (``errno.EBUSY``, where the kernel returns ``-EBUSY``); the message is its symbolic name, then
    `detail`, one sentence if there is more to say. Raises ValueError for an errno that is not positive.
    """

    def __init__(self, errno: int, detail: str = "") -> None:
        if errno <= 0:
            raise ValueError(f"an errno is positive here, got {errno}")
        super().__init__(errno, detail)
        self.errno = errno
        self.detail = detail

    def __str__(self) -> str:
        name = f"-{errno_name(self.errno)}"
        return f"{name}: {self.detail}" if self.detail else name


class ModelError(GpusvmError):
    """Report that the model itself was violated: a finding about a driver or about gpusvm, never about the input."""


class DeadlockError(ModelError):
    """Report that nothing can run though someone waits; the message lists who waits for what, who holds it, where."""


class DriverError(ModelError):
    """Report an assertion of a driver that does not hold.

    `assertion` names it, as a rule by the kernel function it stands in; the message says what was found instead.
    """

    def __init__(self, assertion: str, detail: str) -> None:
        super().__init__(assertion, detail)
        self.assertion = assertion
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.assertion}: {self.detail}"


class LateWorkError(ModelError):
    """Report a work, timer or fault of an owner that has ended; the message names who queued it and who ended."""


class LivelockError(ModelError):
    """Report tasks that run and get nowhere; the message names who runs, where, and who waits for that."""


class ProgressError(LivelockError):
    """Report an execution or an operation that takes more steps, or attempts, than any may."""


class LedgerError(ModelError):
    """Report an account of ``gpusvm.kernel.Ledger`` that does not balance, with kind, holder and count."""


class LockdepError(ModelError):
    """Report a broken locking rule; the message names both places, the acquisition and what it conflicts with."""


class UseAfterFreeError(ModelError):
    """Report the use of something that was freed; the message names who used it, who freed it, and both places."""


class CpuSignal(GpusvmError):  # noqa: N818  # no error: what the kernel sends the process
    """Carry the signal that a modelled process gets for an access of its own.

    ``signal`` is its number (11 SIGSEGV, 7 SIGBUS, 9 SIGKILL when memory has run out), ``address`` where the access
    went.
    """

    def __init__(self, signal: int, address: int) -> None:
        """Take the number of a signal and a byte address."""
        super().__init__(signal, address)
        self.signal = signal
        self.address = address

    def __str__(self) -> str:
        """Name the signal: ``SIGSEGV at 0x1000``."""
        return f"{_signal.Signals(self.signal).name} at {self.address:#x}"


class PluginError(GpusvmError):
    """Report a driver plugin that cannot be used, with its distribution and place."""


def nearest(name: str, valid: Iterable[str]) -> str:
    """Return the clause that ends a message about an unknown name.

    With a near name among `valid`: ``did you mean 'x'?``; otherwise ``valid: a, b, c`` in the order given.
    """
    names = list(valid)
    likely = difflib.get_close_matches(name, names, n=3, cutoff=_NEAR if len(name) >= _SHORT else _WORD_NEAR)
    close = [each for each in likely if _words_alike(name, each)] or [each for each in names if _slipped(name, each)]
    return f"did you mean {close[0]!r}?" if close else f"valid: {', '.join(names)}"


def _words_alike(name: str, valid: str) -> bool:
    """Tell whether each word of a name is like one of the other's, which a long word that they share would hide."""
    words, others = re.split("[-_.]", name), re.split("[-_.]", valid)
    return (
        len(words) == 1
        or len(words) != len(others)
        or all(
            a in b or difflib.SequenceMatcher(None, b, a).ratio() >= _WORD_NEAR
            for a, b in zip(words, others, strict=True)
        )
    )


def _slipped(name: str, valid: str) -> bool:
    """Tell whether a name is a part of a valid one, or has one other letter, or two changed round: of short names
    difflib makes little.
    """
    if len(name) < _SHORT:
        return False
    if len(name) != len(valid):
        return name in valid
    return sum(a != b for a, b in zip(name, valid, strict=True)) <= (2 if sorted(name) == sorted(valid) else 1)
