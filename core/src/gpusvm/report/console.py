"""Open the console that reports are printed to. Imports rich, so it is imported when something is printed."""

from typing import IO, Final

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

__all__ = ["needed_width", "open_console"]

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
