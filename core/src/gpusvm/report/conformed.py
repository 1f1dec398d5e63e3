"""Show what the conformance suite came to: a matrix of checks and drivers, and what is not a pass, with its reason."""

from collections.abc import Iterator, Sequence
from typing import IO, TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from gpusvm.conformance.suite import Check
    from gpusvm.conformance.suite.baseline import Change
    from gpusvm.conformance.suite.conformance import Conformance, Result

__all__ = ["checks_document", "failure_lines", "print_changes", "print_checks", "print_conformance", "standing_lines"]

_WIDTH: Final = 200
STYLES: Final = {
    "pass": "green",
    "fail": "bold red",
    "error": "bold red",
    "unsupported": "dim",
    "xfail": "yellow",
    "xpass": "bold red",
    "not-run": "bold yellow",
}
"""How each status looks."""


def print_conformance(found: "Conformance", *, file: IO[str] | None = None) -> None:
    """Print the matrix, a paragraph for each reason why cells are not as they should be, and what each conforms to."""
    from rich.text import Text

    from gpusvm.report.console import open_console

    console = open_console(file, width=_WIDTH)
    console.print(_matrix(found, console))
    same: dict[tuple[str, str, str], list[Result]] = {}
    for each in found.failures:
        same.setdefault((each.driver, each.status.value, each.reason), []).append(each)
    for cells in same.values():
        for line in failure_lines(found, *cells):
            console.print(Text(line), soft_wrap=True)
        console.print()
    for line in standing_lines(found):
        console.print(Text(line), soft_wrap=True)


def print_changes(changes: "Sequence[Change]", source: str, *, file: IO[str] | None = None) -> None:
    """Print what is otherwise than in an earlier run, a line for each."""
    from rich.text import Text

    from gpusvm.report.console import open_console

    console = open_console(file, width=_WIDTH)
    for change in changes:
        style = {"REGRESSION": "bold red", "FIX": "green"}.get(change.kind, "")
        console.print(Text(str(change), style=style), soft_wrap=True)
    regressions = sum(change.kind == "REGRESSION" for change in changes)
    console.print(Text(f"against {source}: {_count(regressions, 'regression')}, {_count(len(changes), 'change')}"))


def print_checks(checks: "Sequence[Check]", *, file: IO[str] | None = None) -> None:
    """Print what there is to check."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from gpusvm.report.console import open_console

    console = open_console(file, width=_WIDTH)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("check", "since", "profile"):
        table.add_column(name, no_wrap=True)
    table.add_column("rule", ratio=2)
    table.add_column("requires", ratio=1)
    for check in checks:
        table.add_row(check.id, check.since, check.profile, Text(check.rule), ", ".join(check.requires))
    console.print(table)


def checks_document(checks: "Sequence[Check]") -> dict[str, Any]:
    """Return what ``gpusvm conform --list --json`` prints."""
    from gpusvm.conformance.suite import SPEC_VERSION

    return {
        "schema": 1,
        "spec": SPEC_VERSION,
        "checks": [
            {
                "check": check.id,
                "since": check.since,
                "profile": check.profile,
                "requires": list(check.requires),
                "rule": check.rule,
                "ref": check.ref,
                "place": check.place,
            }
            for check in checks
        ],
    }


def failure_lines(found: "Conformance", result: "Result", *others: "Result") -> Iterator[str]:
    """Say what is wrong in a cell, where the rule comes from, and how to repeat it; and in which others it is the same.

    `others` are of the same driver, with the same status and reason: one broken op may fail every check.
    """
    from gpusvm.report.console import invoked

    rule = next(check.rule for check in found.checks if check.id == result.check)
    yield f"{result.status.value} {result.check} {result.driver}: {result.reason}"
    yield f"    rule   {rule}"
    yield f"    from   {result.ref}"
    yield f"    again  {invoked()} {found.command(result)}"
    if result.status.value == "error":  # the op that Python could not call is found there, with its line
        yield f"    first  {invoked()} drivers --check {result.driver.partition(':')[0]}"
    for each in others:
        yield f"    also   {each.check} ({each.ref}): {invoked()} {found.command(each)}"


def standing_lines(found: "Conformance") -> Iterator[str]:
    """Say in a line for each driver what its cells came to, and to which profiles it conforms."""
    from gpusvm.conformance.suite import SPEC_VERSION

    for driver in found.drivers:
        counts = ", ".join(f"{number} {status.value}" for status, number in found.counts(driver).items())
        conforms = [name for name, each in found.standing(driver).items() if each.conforms]
        words = f"conforms to {', '.join(conforms)} of spec {SPEC_VERSION}" if conforms else ""
        yield f"{driver}: {counts}{'; ' if words else ''}{words}"


def _matrix(found: "Conformance", console: "Console") -> "Table":
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("check", no_wrap=True)
    for driver in found.drivers:
        table.add_column(driver, justify="right", overflow="fold")
    status_of = {(each.check, each.driver): each.status.value for each in found.results}
    for check in found.checks:
        words = [status_of[check.id, driver] for driver in found.drivers]
        table.add_row(check.id, *(Text(word, style=STYLES[word]) for word in words))
    return table


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
