"""Show how far a command is, on a terminal; say nothing in a pipe."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from gpusvm.compare import Progress, ProgressListener
    from gpusvm.realkernel import CheckProgress, CheckProgressListener

__all__ = ["check_progress_shown", "eta_text", "progress_shown"]

Update: TypeAlias = Callable[[int, int, str], None]
"""Draw how many are done, of how many, and a text."""


@contextmanager
def progress_shown(*, quiet: bool) -> "Iterator[ProgressListener | None]":
    """Give a listener that draws a bar on standard error; None if that is no terminal, or if `quiet`."""
    with _bar("runs", quiet=quiet) as update:
        if update is None:
            yield None
            return

        def listen(progress: "Progress", /) -> None:
            last = f"  {progress.last.driver} on {progress.last.workload}" if progress.last else ""
            update(progress.done, progress.total, eta_text(progress.eta_s) + last)

        yield listen


@contextmanager
def check_progress_shown() -> "Iterator[CheckProgressListener | None]":
    """Do so for a check of recordings, sequence by sequence."""
    with _bar("sequences", quiet=False) as update:
        if update is None:
            yield None
            return

        def listen(progress: "CheckProgress", /) -> None:
            update(progress.done, progress.total, eta_text(progress.eta_s))

        yield listen


@contextmanager
def _bar(unit: str, *, quiet: bool) -> Iterator[Update | None]:
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns = (
        SpinnerColumn(),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)

        def update(done: int, total: int, text: str) -> None:
            bar.update(task, total=total, completed=done, description=text)

        yield update


def eta_text(eta_s: float | None) -> str:
    """Say how long it still takes, as far as that is known."""
    if eta_s is None:
        return ""
    seconds = round(eta_s)
    if seconds < 100:
        return f"about {seconds} s left"
    return f"about {round(seconds / 60)} min left"
