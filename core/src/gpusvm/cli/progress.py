"""Show how far a comparison is, on a terminal; say nothing in a pipe."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpusvm.compare import Progress, ProgressListener

__all__ = ["eta_text", "progress_shown"]


@contextmanager
def progress_shown(*, quiet: bool) -> "Iterator[ProgressListener | None]":
    """Give a listener that draws a bar on standard error; None if that is no terminal, or if `quiet`."""
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
        TextColumn("runs"),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)

        def listen(progress: "Progress", /) -> None:
            last = f"  {progress.last.driver} on {progress.last.workload}" if progress.last else ""
            bar.update(task, total=progress.total, completed=progress.done, description=eta_text(progress) + last)

        yield listen


def eta_text(progress: "Progress") -> str:
    """Say how long it still takes, as far as that is known."""
    if progress.eta_s is None:
        return ""
    seconds = round(progress.eta_s)
    if seconds < 100:
        return f"about {seconds} s left"
    return f"about {round(seconds / 60)} min left"
