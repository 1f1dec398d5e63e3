"""Compare a run of the suite with an earlier one."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from attrs import field, frozen

from gpusvm.conformance.suite.check import SPEC_VERSION, version
from gpusvm.conformance.suite.column import Column
from gpusvm.conformance.suite.conformance import Conformance, Result
from gpusvm.conformance.suite.status import Status
from gpusvm.documents import structure
from gpusvm.errors import InputError

__all__ = ["Baseline", "Change", "read_baseline"]

Kind = Literal["FIX", "REGRESSION", "NEW", "GONE"]


@frozen(kw_only=True)
class Change:
    """Say how a cell differs from what it was: `before` and `after` are statuses, None where there was no cell."""

    kind: Kind
    check: str
    driver: str
    before: Status | None
    after: Status | None
    reason: str

    def __str__(self) -> str:
        """Say it in a line."""
        words = [each.value for each in (self.before, self.after) if each is not None]
        reason = f": {self.reason}" if self.reason else ""
        return f"{self.kind} {self.check} {self.driver}: {' -> '.join(words)}{reason}"


@frozen(kw_only=True)
class _Cell:
    check: str
    driver: str
    status: Literal["pass", "fail", "error", "unsupported", "xfail", "xpass", "not-run"]
    reason: str = ""
    ref: str = ""
    seconds: float = 0.0


@frozen(kw_only=True)
class _Driver:
    driver: str
    version: str | None = None


@frozen(kw_only=True)
class _Document:
    schema: Literal[1]
    spec: str
    quirks: Literal["as_written", "fixed"]
    results: tuple[_Cell, ...]
    drivers: tuple[_Driver, ...] = ()
    mutant: str | None = None
    beside: str = ""


@frozen(kw_only=True)
class Baseline:
    """Hold the cells of an earlier run by check and driver; `source` is its file, `versions` are those of drivers."""

    source: str
    quirks: str
    cells: Mapping[tuple[str, str], Status]
    results: tuple[Result, ...] = ()
    versions: Mapping[str, str | None] = field(factory=dict)
    mutant: str | None = None
    beside: str = ""

    def kept(self, columns: Sequence[Column], *, quirks: str, mutant: str | None) -> Mapping[tuple[str, str], Result]:
        """Return the cells that a run with these settings need not run again, by check and driver.

        InputError if it was run with others.
        """
        if self.quirks != quirks:
            raise self.other_quirks(quirks)
        was, to_be = _with(self.beside, self.mutant), _with(columns[0].beside, mutant)
        if was != to_be:
            raise InputError(f"{self.source}: it was run with {was}, and this is to be with {to_be}")
        now = {column.driver: column.loaded.version for column in columns}
        for driver, version_ in self.versions.items():
            if driver in now and now[driver] != version_:
                raise InputError(f"{self.source}: it was run on {driver} {version_}, and this is {now[driver]}")
        return {
            (each.check, each.driver): each
            for each in self.results
            if each.driver in now and each.status is not Status.NOT_RUN
        }

    def changes(self, run: Conformance) -> tuple[Change, ...]:
        """Return what is otherwise now, regressions first.

        A cell that came nearer to a pass is a FIX, one that went away from it a REGRESSION. GONE is said only of
        drivers that were asked, and of a run in which no check was left out. InputError if the other run had other
        quirks.
        """
        if self.quirks != run.quirks:
            raise self.other_quirks(run.quirks)
        found: list[Change] = []
        for each in run.results:
            before = self.cells.get((each.check, each.driver))
            if before is None or before.rank != each.status.rank:
                kind: Kind = "NEW" if before is None else "FIX" if each.status.rank > before.rank else "REGRESSION"
                found.append(
                    Change(
                        kind=kind,
                        check=each.check,
                        driver=each.driver,
                        before=before,
                        after=each.status,
                        reason=each.reason,
                    )
                )
        found += self._gone(run)
        order = ("REGRESSION", "FIX", "NEW", "GONE")
        return tuple(sorted(found, key=lambda change: order.index(change.kind)))

    def other_quirks(self, quirks: str) -> InputError:
        """Say that a run with such quirks cannot be compared with this one."""
        return InputError(f"{self.source}: it was run with quirks {self.quirks}, and this is to be with {quirks}")

    def _gone(self, run: Conformance) -> list[Change]:
        if not run.whole:
            return []
        now = {(each.check, each.driver) for each in run.results}
        return [
            Change(kind="GONE", check=check, driver=driver, before=status, after=None, reason="")
            for (check, driver), status in self.cells.items()
            if driver in run.drivers and (check, driver) not in now
        ]


def read_baseline(path: str | Path) -> Baseline:
    """Read a ``conform.json``. InputError, in one line, if it is none, or of a suite that meant something else."""
    source = str(path)
    try:
        text = Path(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{source}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    try:
        document: Any = json.loads(text)
    except ValueError as error:
        raise InputError(f"{source}: no JSON: {error}") from None
    read = structure(document, _Document, source=source, unknown_keys=True)
    try:
        other = version(read.spec)
    except ValueError as error:
        raise InputError(f"{source}: spec: {error}") from None
    if other[0] != version(SPEC_VERSION)[0]:
        raise InputError(f"{source}: it is of spec {read.spec}, whose checks mean something else than {SPEC_VERSION}'s")
    cells = {(cell.check, cell.driver): Status(cell.status) for cell in read.results}
    results = tuple(
        Result(
            check=cell.check,
            driver=cell.driver,
            status=Status(cell.status),
            reason=cell.reason,
            ref=cell.ref,
            seconds=cell.seconds,
        )
        for cell in read.results
    )
    versions = {each.driver: each.version for each in read.drivers}
    return Baseline(
        source=source,
        quirks=read.quirks,
        cells=cells,
        results=results,
        versions=versions,
        mutant=read.mutant,
        beside=read.beside,
    )


def _with(beside: str, mutant: str | None) -> str:
    partner = f"{beside} beside" if beside else "the suite's own driver beside"
    return f"{partner} and {'no mutant' if mutant is None else f'mutant {mutant}'}"
