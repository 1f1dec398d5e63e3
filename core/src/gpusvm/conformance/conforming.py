"""Run the conformance suite on drivers, through pytest, and hold what each cell came to."""

import contextlib
import os
import sys
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from gpusvm.conformance.forked import Forked
from gpusvm.conformance.lab import Quirks
from gpusvm.conformance.pytest_checks import REGISTRY
from gpusvm.conformance.pytest_plugin import CELLS, Cells
from gpusvm.conformance.suite.baseline import Baseline
from gpusvm.conformance.suite.catalogue import PACKAGE, catalogue, choose, forget
from gpusvm.conformance.suite.check import Check
from gpusvm.conformance.suite.column import Column, read_columns
from gpusvm.conformance.suite.conformance import Conformance, InterruptedConformance, Result, chosen_profiles
from gpusvm.conformance.suite.statements import check_statements
from gpusvm.conformance.suite.status import Status
from gpusvm.conformance.suite.verdict import LIMIT_S
from gpusvm.errors import InputError, ModelError
from gpusvm.plugins import Installed
from gpusvm.run.executor import may_fork

if TYPE_CHECKING:
    from gpusvm.plugins import Registry

__all__ = ["Listener", "conform"]

Listener = Callable[[int, int, str], None]
"""Hear how many of how many cells are there, and which was the last."""

_SETTINGS: Final = Path(__file__).with_name("pytest.ini")

# What would change which checks run and how, if whoever calls has set it for tests of his own.
_FOREIGN: Final = ("PYTEST_ADDOPTS", "PYTEST_PLUGINS")


def conform(
    drivers: str | Sequence[str] = (),
    *,
    profiles: Sequence[str] = (),
    checks: Sequence[str] = (),
    quirks: Quirks = "as_written",
    beside: str = "",
    jobs: int = 0,
    limit_s: float = LIMIT_S,
    without: Sequence[str] = (),
    mutant: str | None = None,
    resumed: Baseline | None = None,
    registry: "Registry | None" = None,
    progress: Listener | None = None,
) -> Conformance:
    """Run the checks of some profiles, by default all, on drivers, by their specs, by default all that are installed.

    `checks` are ids or globs of ids. `beside` is the spec of the driver that the second device has in machines with two
    drivers, by default one of the suite's own. `jobs` is the number of processes, 0 for this one: then a `registry` of
    drivers that are not installed can be given, and a check that ends its process ends this one. A check that takes
    longer than `limit_s` is an error. `mutant` is the id of a bug that Linux had, or of a broken rule, of
    `gpusvm.conformance.mutants`: every machine then has it. `resumed` is an earlier run that was interrupted, of the
    same drivers and settings: checks that it has of every driver are not run again.

    InputError, in one line, for a driver, profile or check that there is not, for what is wrong in a driver's
    `conformance.toml`, and, where no check is left out, for an entry of that file that no check can meet.
    InterruptedConformance, a KeyboardInterrupt, holds what had been run.
    """
    if jobs and registry is not None:
        raise InputError("conform(): a registry does not travel to other processes; use jobs=0")
    if jobs < 0:
        raise InputError(f"expected 0 or more jobs, got {jobs}")
    if limit_s <= 0:
        raise InputError(f"expected a limit of more than 0 s, got {limit_s:g}")
    installed = Installed(tuple(without), registry)
    texts = [drivers] if isinstance(drivers, str) else list(drivers)
    columns = read_columns(texts, installed.registry(), quirks=quirks, beside=beside)
    chosen = choose(catalogue(), globs=checks, profiles=profiles)
    if not chosen:
        raise InputError("no check is of these profiles and has such an id")
    if len(chosen) == len(catalogue()):
        check_statements(columns, chosen)
    kept = {} if resumed is None else resumed.kept(columns, quirks=quirks, mutant=mutant)
    left = [check for check in chosen if not all((check.id, column.driver) in kept for column in columns)]
    if mutant is not None:
        from gpusvm.conformance.mutants import load_any

        with load_any(mutant).active():
            pass  # or every check would say that it cannot be
    run = _Run(installed, len(left) * len(columns), progress)
    options = [f"--gpusvm-quirks={quirks}", f"--gpusvm-limit-s={limit_s}"]
    options += [f"--gpusvm-beside={columns[0].beside}"]
    options += [f"--gpusvm-without={name}" for name in without]
    options += [] if mutant is None else [f"--gpusvm-mutant={mutant}"]
    interrupted = bool(left) and _pytest(run, columns, left, options, jobs=jobs)
    interrupted |= len(run.cells) < len(left) * len(columns)  # other processes may have been, and not this one
    conformance = Conformance(
        quirks=quirks,
        beside=columns[0].beside,
        columns=columns,
        checks=tuple(chosen),
        profiles=chosen_profiles(profiles),
        complete=not checks,
        results=tuple(_results(run.cells, columns, chosen, kept)),
        mutant=mutant,
    )
    if interrupted:
        raise InterruptedConformance(conformance)
    return conformance


class _Run:
    """Be the plugin through which pytest is given the drivers, and its cells are heard of."""

    def __init__(self, installed: Installed, total: int, progress: Listener | None) -> None:
        self.cells: Cells = {}
        self._installed = installed
        self._total = total
        self._progress = progress

    @pytest.hookimpl(trylast=True)
    def pytest_configure(self, config: pytest.Config) -> None:
        config.stash[REGISTRY] = self._installed
        # Python's own tracebacks: for pytest's the file of each call on the stack is parsed.
        config.option.tbstyle = "native"
        self.cells = config.stash[CELLS]

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        if self._progress is not None and nodeid in self.cells:
            cell = self.cells[nodeid]
            self._progress(len(self.cells), self._total, f"{cell['check']}: {cell['driver']}")


def _pytest(
    run: _Run,
    columns: Sequence[Column],
    chosen: Sequence[Check],
    options: Sequence[str],
    *,
    jobs: int,
) -> bool:
    """Run pytest; whether it was interrupted."""
    # Modules of which no check is wanted are not imported.
    modules = dict.fromkeys(check.run.__module__ for check in chosen)
    everything = len(chosen) == len(catalogue())
    arguments = [
        "--pyargs",
        *([PACKAGE] if everything else modules),
        "-c",
        str(_SETTINGS),
        "--noconftest",
        "--disable-plugin-autoload",
    ]
    arguments += ["-p", "gpusvm.conformance.pytest_plugin", "-p", "no:terminal", "-p", "no:cacheprovider"]
    # These two collect all garbage at the end, for warnings that nothing here would print.
    arguments += ["-p", "no:unraisableexception", "-p", "no:threadexception"]
    arguments += ["-p", "no:faulthandler", "--capture=sys", *options]
    arguments += [f"--gpusvm-driver={column.driver}" for column in columns]
    if not everything:
        arguments += [f"--gpusvm-check={check.id}" for check in chosen]
    plugins: list[object] = [run]
    if jobs and may_fork():
        plugins.append(Forked(jobs, deaf=(run,)))
    elif jobs:
        arguments += ["-p", "xdist.plugin", f"--numprocesses={jobs}", "--dist=worksteal"]
    forget()
    with _undisturbed():
        code = pytest.main(arguments, plugins=plugins)
    if code not in {pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.INTERRUPTED}:
        raise ModelError(f"the suite could not be run: pytest ended with {pytest.ExitCode(code).name}")
    return code == pytest.ExitCode.INTERRUPTED


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Let nothing of whoever calls change the run, and the run nothing of his."""
    kept = {name: os.environ.pop(name) for name in _FOREIGN if name in os.environ}
    path, modules = list(sys.path), sys.dont_write_bytecode
    try:
        yield
    finally:
        os.environ.update(kept)
        sys.path[:], sys.dont_write_bytecode = path, modules


def _results(
    cells: Cells, columns: Sequence[Column], chosen: Sequence[Check], kept: Mapping[tuple[str, str], Result]
) -> Generator[Result]:
    found = {(cell["check"], cell["driver"]): cell for cell in cells.values()}
    for check in chosen:
        for column in columns:
            cell = found.get((check.id, column.driver))
            if cell is not None:
                yield _result(cell)
            else:
                yield kept.get((check.id, column.driver)) or _unheard_of(check, column)


def _result(cell: dict[str, Any]) -> Result:
    return Result(
        check=cell["check"],
        driver=cell["driver"],
        status=Status(cell["status"]),
        reason=cell["reason"],
        ref=cell["ref"],
        seconds=cell["seconds"],
        details=cell["details"],
        trace=tuple(cell["trace"]),
    )


def _unheard_of(check: Check, column: Column) -> Result:
    reason = "the run ended before it"
    return Result(
        check=check.id, driver=column.driver, status=Status.NOT_RUN, reason=reason, ref=check.ref, seconds=0.0
    )
