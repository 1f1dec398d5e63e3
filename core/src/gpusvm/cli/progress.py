"""Show how far a command is, on a terminal; say nothing in a pipe."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from gpusvm.compare import Progress, ProgressListener
    from gpusvm.conformance.characterizing import Listener as CharacterizationListener
    from gpusvm.conformance.conforming import Listener as ConformanceListener
    from gpusvm.conformance.injection import Listener as InjectionListener
    from gpusvm.explore.exploring import ExplorationProgress, Listener
    from gpusvm.realkernel import (
        CheckProgress,
        CheckProgressListener,
        DiffListener,
        DiffProgress,
        RaceListener,
        RaceProgress,
    )
    from gpusvm.realkernel.build import BuildListener

__all__ = [
    "characterization_shown",
    "check_progress_shown",
    "conformance_shown",
    "diff_shown",
    "eta_text",
    "exploration_shown",
    "injection_shown",
    "progress_shown",
    "races_shown",
    "sequences_shown",
    "steps_shown",
]

_WIDE: Final = 120
_DRAW_S: Final = 0.1

Update: TypeAlias = Callable[[int, int | None, str], None]
"""Draw how many are done, of how many (None: nobody knows), and a text."""


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
def sequences_shown() -> "Iterator[Callable[[int, int], None] | None]":
    """Do so for sequences that a real kernel does."""
    with _bar("sequences", quiet=False) as update:
        yield None if update is None else lambda done, total: update(done, total, "")


@contextmanager
def diff_shown() -> "Iterator[DiffListener | None]":
    """Do so for sequences that a real kernel and the model do."""
    with _bar("sequences", quiet=False) as update:
        if update is None:
            yield None
            return

        def listen(progress: "DiffProgress", /) -> None:
            update(progress.done, progress.total, f"{progress.findings} findings  {eta_text(progress.eta_s)}")

        yield listen


@contextmanager
def races_shown() -> "Iterator[RaceListener | None]":
    """Do so for races: orders that the model runs, then tries of a real kernel."""
    with _bar("done", quiet=False) as update:
        if update is None:
            yield None
            return

        def listen(progress: "RaceProgress", /) -> None:
            update(progress.done, progress.total, f"{progress.race}: {progress.side}")

        yield listen


@contextmanager
def steps_shown() -> "Iterator[BuildListener | None]":
    """Do so for the steps of a build."""
    with _bar("done", quiet=False) as update:
        yield None if update is None else lambda step, done, total: update(done, total or None, step)


@contextmanager
def characterization_shown() -> "Iterator[CharacterizationListener | None]":
    """Do so for questions to drivers: each is one."""
    with _bar("questions", quiet=False) as update:
        yield update


@contextmanager
def conformance_shown() -> "Iterator[ConformanceListener | None]":
    """Do so for checks of drivers: each is one."""
    with _bar("checks", quiet=False, threaded=False) as update:  # a process with threads cannot be forked
        yield update


@contextmanager
def injection_shown() -> "Iterator[InjectionListener | None]":
    """Do so for failures that are tried one by one."""
    with _bar("failures", quiet=False) as update:
        yield update


@contextmanager
def exploration_shown() -> "Iterator[Listener | None]":
    """Do so for explorations: schedules, how many a second, what was reached and found."""
    with _bar("schedules", quiet=False) as update:
        if update is None:
            yield None
            return

        def listen(progress: "ExplorationProgress", /) -> None:
            update(progress.exploration.schedules, progress.schedules, exploration_text(progress))

        yield listen


def exploration_text(progress: "ExplorationProgress") -> str:
    """Say in a line which exploration is under way and how it goes."""
    exploration, shrinking = progress.exploration, progress.shrinking
    where = f"{progress.number}/{progress.total} {exploration.scenario} on {exploration.driver}"
    if shrinking is not None:
        return f"{where}  shrinking, {shrinking.executions}/{shrinking.executions_max}: {shrinking.size}"
    coverage = exploration.coverage
    reached = (
        f"{len(coverage.outcomes)} outcomes",
        f"{len(coverage.states)} states",
        f"{len(coverage.yields_reached)} yield points",
        f"{len(coverage.sites_reached)} sites",
    )
    rate = f"{exploration.schedules_per_s:,.0f}/s"
    return "  ".join((where, rate, f"{progress.failed} findings", *reached))


@contextmanager
def _bar(unit: str, *, quiet: bool, threaded: bool = True) -> Iterator[Update | None]:
    """Draw a bar; unless `threaded` it moves only when something is told, ten times a second at most."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar
    from rich.table import Column

    console = Console(stderr=True)
    columns = (
        SpinnerColumn(),
        *([BarColumn(20)] if console.width >= _WIDE else []),  # without room the text says more
        MofNCompleteColumn(),
        TextColumn(unit, table_column=Column(no_wrap=True)),
        TimeElapsedColumn(),
        TextColumn("{task.description}", table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)),
    )
    with Bar(*columns, console=console, transient=True, expand=True, auto_refresh=threaded) as bar:
        task = bar.add_task("", total=None)
        drawn_s = 0.0

        def update(done: int, total: int | None, text: str) -> None:
            nonlocal drawn_s
            due = not threaded and monotonic() >= drawn_s + _DRAW_S
            drawn_s = monotonic() if due else drawn_s
            bar.update(task, total=total, completed=done, description=text, refresh=due)

        yield update


def eta_text(eta_s: float | None) -> str:
    """Say how long it still takes, as far as that is known."""
    if eta_s is None:
        return ""
    seconds = round(eta_s)
    if seconds < 100:
        return f"about {seconds} s left"
    return f"about {round(seconds / 60)} min left"
