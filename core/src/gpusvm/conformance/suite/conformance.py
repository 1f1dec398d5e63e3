"""Hold what a run of the suite came to: a matrix of checks and drivers, and which profiles each driver conforms to."""

import json
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from attrs import frozen

from gpusvm.conformance.suite.check import PROFILES, SPEC_VERSION, Check
from gpusvm.conformance.suite.column import Column
from gpusvm.conformance.suite.status import Status
from gpusvm.errors import InputError

__all__ = ["Conformance", "InterruptedConformance", "ProfileResult", "Result"]

_ALLOWED: Final = frozenset({Status.PASS, Status.XFAIL, Status.UNSUPPORTED})


@frozen(kw_only=True)
class Result:
    """Hold one cell: what a check of a driver came to, why in one line, and the reference of whoever says so.

    `details` is how it failed, with the code around it, and `trace` the last that happened in its machines; both are
    empty for a pass.
    """

    check: str
    driver: str
    status: Status
    reason: str
    ref: str
    seconds: float
    details: str = ""
    trace: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return it as an entry of ``conform.json``."""
        return {
            "check": self.check,
            "driver": self.driver,
            "status": self.status.value,
            "reason": self.reason,
            "ref": self.ref,
            "seconds": self.seconds,
        }


@frozen(kw_only=True)
class ProfileResult:
    """Say how a driver stands to a profile: it `claims` it by what it declares, and `conforms` if every check of it has
    run and came to no more than failures that it states. None where not all of them were asked for, or it claims none.
    """

    claimed: bool
    conforms: bool | None
    expected_failures: int


@frozen(kw_only=True, repr=False)
class Conformance:
    """Hold a run of the suite: `results` by check, then driver, in the order of `checks` and `columns`.

    `beside` is the driver that stood beside those in machines with two, empty for the suite's own. `complete` says that
    no check of a profile was left out by its id, `mutant` which bug every machine had.
    """

    quirks: str
    beside: str
    columns: tuple[Column, ...]
    checks: tuple[Check, ...]
    profiles: tuple[str, ...]
    complete: bool
    results: tuple[Result, ...]
    mutant: str | None = None

    @property
    def drivers(self) -> tuple[str, ...]:
        """The specs of the drivers, normalised."""
        return tuple(column.driver for column in self.columns)

    @property
    def failures(self) -> tuple[Result, ...]:
        """The cells that are not as they should be."""
        return tuple(each for each in self.results if each.status.is_failure)

    @property
    def ok(self) -> bool:
        """True if every cell ran and nothing is otherwise than the drivers state."""
        return not self.failures

    @property
    def whole(self) -> bool:
        """True if no check was left out, by its id or its profile."""
        return self.complete and self.profiles == tuple(PROFILES)

    def result(self, check: str, driver: str) -> Result:
        """Return one cell; InputError if there is none of that check and (normalised) driver."""
        for each in self.results:
            if (each.check, each.driver) == (check, driver):
                return each
        raise InputError(f"no result of {check!r} on {driver!r}")

    def counts(self, driver: str) -> Mapping[Status, int]:
        """Count the cells of a driver by status, in the order in which those are declared."""
        found = Counter(each.status for each in self.results if each.driver == driver)
        return {status: found[status] for status in Status if found[status]}

    def standing(self, driver: str) -> Mapping[str, ProfileResult]:
        """Say how a driver stands to each profile that was asked for."""
        column = next(each for each in self.columns if each.driver == driver)
        profile_of = {check.id: check.profile for check in self.checks}
        found = {}
        for profile in self.profiles:
            mine = [each.status for each in self.results if each.driver == driver and profile_of[each.check] == profile]
            claimed = profile in column.profiles
            found[profile] = ProfileResult(
                claimed=claimed,
                conforms=_ALLOWED.issuperset(mine) if claimed and self.complete and mine else None,
                expected_failures=mine.count(Status.XFAIL),
            )
        return found

    def command(self, result: Result) -> str:
        """Return the arguments of ``gpusvm`` that repeat one cell."""
        quirks = "" if self.quirks == "as_written" else f" --quirks {self.quirks}"
        beside = f" --beside {shlex.quote(self.beside)}" if self.beside else ""
        mutant = "" if self.mutant is None else f" --mutant {self.mutant}"
        return f"conform --driver {shlex.quote(result.driver)} --check {result.check}{quirks}{beside}{mutant}"

    def to_dict(self) -> dict[str, Any]:
        """Return the content of ``conform.json`` (schema ``conform-1.json``)."""
        return {
            "schema": 1,
            "spec": SPEC_VERSION,
            "quirks": self.quirks,
            **({"beside": self.beside} if self.beside else {}),
            **({} if self.mutant is None else {"mutant": self.mutant}),
            "drivers": [self._driver(column) for column in self.columns],
            "results": [each.to_dict() for each in self.results],
        }

    def to_json(self) -> str:
        """Return ``conform.json`` as text."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n"

    def save(self, directory: str | Path) -> Path:
        """Write ``conform.json`` and ``conform.html`` into a directory, in place of those of an earlier run there.

        Returns its path. InputError if it holds anything else, or cannot be written.
        """
        from gpusvm.report import conformance_page

        path = check_directory(directory)
        try:
            path.mkdir(parents=True, exist_ok=True)
            (path / "conform.json").write_text(self.to_json(), "utf-8")
            (path / "conform.html").write_text(conformance_page(self), "utf-8")
        except OSError as error:
            raise InputError(f"{path}: cannot be written: {error.strerror or error}") from None
        return path

    def _driver(self, column: Column) -> dict[str, Any]:
        standing = self.standing(column.driver)
        return {
            "driver": column.driver,
            "name": column.spec.name,
            "distribution": column.loaded.distribution,
            "version": column.loaded.version,
            "targets": column.statement.targets,
            "profiles": {
                profile: {
                    "claimed": each.claimed,
                    "conforms": each.conforms,
                    "expected_failures": each.expected_failures,
                }
                for profile, each in standing.items()
            },
        }

    def __repr__(self) -> str:
        return (
            f"<Conformance of {', '.join(self.drivers)}: {len(self.checks)} checks of spec {SPEC_VERSION}, "
            f"{len(self.failures)} failures>"
        )

    def _repr_html_(self) -> str:
        """Show the matrix in a notebook."""
        from gpusvm.report import conformance_fragment

        return conformance_fragment(self)


_FILES: Final = frozenset({"conform.json", "conform.html"})


def check_directory(directory: str | Path) -> Path:
    """Return a directory as a path; InputError if a run of the suite cannot be written there."""
    path = Path(directory)
    if path.exists() and not path.is_dir():
        raise InputError(f"{path}: expected a directory, got a file; name another one")
    if path.is_dir() and not _FILES.issuperset(each.name for each in path.iterdir()):
        raise InputError(f"{path}: the directory is not empty and holds no run of the suite; name another one")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from None
    return path


class InterruptedConformance(KeyboardInterrupt):  # as KeyboardInterrupt, it is no error
    """Report an interrupt: `conformance` holds what had been run; the other cells are `not-run`."""

    def __init__(self, conformance: Conformance) -> None:
        """Take what had been run."""
        done = sum(each.status is not Status.NOT_RUN for each in conformance.results)
        super().__init__(f"interrupted with {done} of {len(conformance.results)} cells run")
        self.conformance = conformance


def chosen_profiles(profiles: Sequence[str]) -> tuple[str, ...]:
    """Return the profiles in the order of the suite; all if none is named."""
    return tuple(name for name in PROFILES if not profiles or name in profiles)
