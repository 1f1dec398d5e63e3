"""Open the console that reports are printed to. Imports rich, so it is imported when something is printed."""

import os
import shutil
import sys
from pathlib import Path
from typing import IO, Final

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

__all__ = ["invoked", "needed_width", "open_console"]

_ALL_ROOM: Final = 100_000


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leave it to the command line what follows when the reader has gone; rich would exit with 1."""
        raise  # noqa: PLE0704  # rich calls this while it handles the BrokenPipeError


def open_console(file: IO[str] | None, *, width: int) -> Console:
    """Return a console on `file`, by default standard output: in colour and fitted to a terminal, else `width` wide."""
    console = _Console(file=file, highlight=False)
    return console if console.is_terminal else _Console(file=file, highlight=False, width=width)


def needed_width(console: Console, table: Table) -> int:
    """Return how wide a table is that has all the room it wants."""
    return Measurement.get(console, console.options.update(width=_ALL_ROOM), table).maximum


def invoked() -> str:
    """Return how the user has called gpusvm, to be said in what he may type next: ``uv run gpusvm``, a path, or the
    bare name where that is found.
    """
    called = Path(sys.argv[0])
    if called.name != "gpusvm":
        return "gpusvm"  # from Python
    if "UV_RUN_RECURSION_DEPTH" in os.environ:
        return "uv run gpusvm"
    found = shutil.which("gpusvm")
    return "gpusvm" if found is not None and Path(found).resolve() == called.resolve() else sys.argv[0]
