"""Read the lines that scenarios are made of: ``[PROCESS.]NAME[@FILE] ARGUMENT…``.

What a name stands for is a function, registered with `operation`; its arguments are words, which are read by the name
of the parameter that they are for.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, Literal

from attrs import frozen

from gpusvm.errors import InputError, nearest

if TYPE_CHECKING:
    pass

__all__ = ["MAIN_PROCESS", "OPERATIONS", "Kind", "Operation", "Step", "bind", "operation"]

MAIN_PROCESS: Final = "p"
"""The process that is there from the start; a line that names none is about it."""


@frozen
class Operation:
    """Name one operation of a task, with its arguments as text."""

    name: str
    args: tuple[str, ...] = ()

    @classmethod
    def parse(cls, line: str) -> "Operation":
        """Split a line into words; InputError for an empty one."""
        name, *args = line.split() or [""]
        if not name:
            raise InputError("expected an operation, got an empty line")
        return cls(name, tuple(args))

    def __str__(self) -> str:
        return " ".join((self.name, *self.args))


@frozen(kw_only=True)
class Parameter:
    """Describe one argument: its name, how its word is read, what is taken where it is left out (None: nothing)."""

    name: str
    read: Callable[[str], Any]
    optional: bool
    many: bool


@frozen(kw_only=True)
class Kind:
    """Hold what an operation's name stands for.

    `by` says who does it: a "thread" of the process, its "gpu", or the "machine", which goes on when the process has
    ended. What goes `through_file` is an ioctl, which keeps the file open. `errnos` are what it may answer with, by
    reason (`gpusvm.explore.verdict`).
    """

    name: str
    run: "Callable[..., None]"
    about: str
    parameters: tuple[Parameter, ...]
    by: str
    through_file: bool
    errnos: Mapping[str, frozenset[int]]

    @property
    def usage(self) -> str:
        """Write down how a line with it looks: ``munmap FIRST PAGES``."""
        words = [self.name]
        for each in self.parameters:
            word = each.name.upper() + ("…" if each.many else "")
            words.append(f"[{word}]" if each.optional and not each.many else word)
        return " ".join(words)


@frozen(kw_only=True)
class Step:
    """Hold an operation that is ready to be done: for which process, through which of its files, with which values."""

    operation: Operation
    kind: Kind
    process: str
    file: int
    args: tuple[Any, ...]

    def __str__(self) -> str:
        return str(self.operation)


OPERATIONS: Final[dict[str, Kind]] = {}
"""What a scenario may name; `gpusvm.explore.operations` fills it."""


def operation(
    *, by: Literal["thread", "gpu", "machine"] = "thread", through_file: bool = False, **errnos: int | tuple[int, ...]
) -> "Callable[[Callable[..., None]], Callable[..., None]]":
    """Register a function, which takes the `Place` it acts on and then its arguments, under its own name.

    Keywords are reasons, each with the errno, or errnos, that it allows.
    """

    def register(run: "Callable[..., None]") -> "Callable[..., None]":
        parameters = [
            Parameter(
                name=each.name,
                read=_READERS[each.name],
                optional=each.default is not each.empty or each.kind is each.VAR_POSITIONAL,
                many=each.kind is each.VAR_POSITIONAL,
            )
            for each in list(inspect.signature(run).parameters.values())[1:]
        ]
        name = run.__name__.rstrip("_")
        OPERATIONS[name] = Kind(
            name=name,
            run=run,
            about=inspect.getdoc(run) or "",
            parameters=tuple(parameters),
            by=by,
            through_file=through_file,
            errnos={
                reason: frozenset((errno,) if isinstance(errno, int) else errno) for reason, errno in errnos.items()
            },
        )
        return run

    return register


def bind(operation: Operation) -> Step:
    """Find out what a line means. InputError, in one line, for a name, word or number of arguments that is wrong."""
    name, at, file = operation.name.partition("@")
    process, dot, name = name.rpartition(".")
    if (dot and not process) or (at and not file.isdecimal()):
        raise InputError(f"operation {str(operation)!r}: expected [PROCESS.]NAME[@FILE], got {operation.name!r}")
    kind = OPERATIONS.get(name)
    if kind is None:
        raise InputError(f"unknown operation {name!r}, {nearest(name, OPERATIONS)}")
    words = operation.args
    needed = [each for each in kind.parameters if not each.optional]
    most = None if any(each.many for each in kind.parameters) else len(kind.parameters)
    if len(words) < len(needed) or (most is not None and len(words) > most):
        raise InputError(f"operation {str(operation)!r}: expected {kind.usage!r}")
    args = []
    for i, word in enumerate(words):
        parameter = kind.parameters[min(i, len(kind.parameters) - 1)]
        try:
            args.append(parameter.read(word))
        except ValueError as error:
            raise InputError(f"operation {str(operation)!r}: {parameter.name.upper()}: {error}") from None
    return Step(
        operation=operation,
        kind=kind,
        process=process or MAIN_PROCESS,
        file=int(file or "0"),
        args=tuple(args),
    )


def _whole(least: int) -> Callable[[str], int]:
    def read(word: str) -> int:
        if not (word.isascii() and word.isdigit()) or int(word) < least:
            raise ValueError(f"expected a whole number, {least} or more, got {word!r}")
        return int(word)

    return read


def _one_of(*words: str) -> Callable[[str], str]:
    def read(word: str) -> str:
        if word not in words:
            raise ValueError(f"expected one of {', '.join(words)}, got {word!r}")
        return word

    return read


def _name(word: str) -> str:
    if not word.isidentifier():
        raise ValueError(f"expected a name, got {word!r}")
    return word


# How the word for a parameter is read goes by the parameter's name, which is what a user sees in messages.
_READERS: Final[dict[str, Callable[[str], Any]]] = {
    "first": _whole(0),
    "pages": _whole(1),
    "to": _whole(0),
    "prot": _one_of("rw", "ro", "none"),
    "access": _one_of("read", "write", "atomic"),
    "child": _name,
    "name": _name,
    "command": _name,
    "milliseconds": _whole(0),
    "objects": _whole(1),
    "numbers": _whole(0),
}
