"""Show side by side how drivers behave, and below what of that is known to be wrong, and what is not."""

from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, Final

if TYPE_CHECKING:
    from rich.table import Table

    from gpusvm.conformance.characterizing import Characterization
    from gpusvm.conformance.probes import Observation

__all__ = ["print_characterization"]

_WIDTH: Final = 200
_LEAST_COLUMN: Final = 26
_KNOWN: Final = "*"
_FOUND: Final = "!"


def print_characterization(found: "Characterization", *, file: IO[str] | None = None) -> None:
    """Print a row for each question and a column for each driver; without room for columns, a line for each answer.

    Known deviations are marked `*` and findings `!`, and explained below.
    """
    from rich.text import Text

    from gpusvm.report.console import open_console

    console = open_console(file, width=_WIDTH)
    if console.width >= _LEAST_COLUMN * (len(found.drivers) + 1):
        console.print(_table(found))
    else:
        for line in _lines(found):
            console.print(line)
    for each in found.deviations:
        console.print(
            Text(f"{_KNOWN} {each.id} {each.driver}: its code alone reads as '{each.expected}'; {each.deviation}"),
            soft_wrap=True,
        )
    for each in found.findings:
        console.print(Text(f"{_FOUND} {each.id} {each.driver}: {each.finding}", style="bold red"), soft_wrap=True)
    console.print(Text(_summary(found)))


def _summary(found: "Characterization") -> str:
    questions = len(found.observations) // len(found.drivers)
    return (
        f"{_count(questions, 'question')} to {_count(len(found.drivers), 'driver')}: "
        f"{_count(len(found.deviations), 'known deviation')}, {_count(len(found.findings), 'finding')}"
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _rows(found: "Characterization") -> "Iterator[tuple[Observation, ...]]":
    drivers = len(found.drivers)
    for at in range(0, len(found.observations), drivers):
        yield found.observations[at : at + drivers]


def _marked(each: "Observation") -> str:
    mark = _FOUND if each.finding is not None else _KNOWN if each.deviation is not None else ""
    return f"{each.observed} {mark}".rstrip()


def _style(each: "Observation") -> str:
    return "bold red" if each.finding is not None else ""


def _table(found: "Characterization") -> "Table":
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_lines=False)
    table.add_column("", no_wrap=True)
    table.add_column("question", ratio=3, overflow="fold")
    for driver in found.drivers:
        table.add_column(driver, ratio=2, overflow="fold")
    for row in _rows(found):
        table.add_row(row[0].id, Text(row[0].title), *(Text(_marked(each), style=_style(each)) for each in row))
    return table


def _lines(found: "Characterization") -> "Iterator[str]":
    width = max(map(len, found.drivers))
    for row in _rows(found):
        yield f"{row[0].id} {row[0].title}"
        for each in row:
            yield f"  {each.driver:{width}}  {_marked(each)}"
