"""Show a comparison in a terminal: for each workload a table with a column for each driver, and a line for the power of
each device.
"""

from collections.abc import Iterable
from typing import IO

from gpusvm.compare import Comparison, Table
from gpusvm.report.power import power_texts
from gpusvm.report.units import conditions_text, row_texts

__all__ = ["print_comparison"]


def print_comparison(comparison: Comparison, *, file: IO[str] | None = None) -> None:
    """Print the tables of `comparison`, in colour on a terminal; in a pipe as wide as they need to be."""
    from rich.text import Text

    from gpusvm.report.console import open_console

    console = open_console(file, width=_width(comparison))
    for table in comparison.tables():
        console.print(Text(table.workload, style="bold"), soft_wrap=True)
        console.print(Text(conditions_text(table)), soft_wrap=True)
        console.print(_rich(table))
        for line in power_texts([run for run in comparison.runs if run["workload"] == table.workload]):
            console.print(Text(line, style="dim"), soft_wrap=True)
        for note in table.notes:
            console.print(Text(note, style="yellow"), soft_wrap=True)
    console.print("* marks the least of a row. – does not apply.", style="dim")


def _rich(table: Table) -> "object":
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    # The divider and the place of the star keep columns apart: four drivers fit into 80 columns.
    shown = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, padding=0)
    shown.add_column("", no_wrap=True)
    for index, column in enumerate(table.columns):
        head = Text(f"{column} (failed)" if index in table.failed else column, style="bold")
        shown.add_column(head, justify="right", overflow="fold")
    group = table.rows[0].metric.group
    for row in table.rows:
        if row.metric.group != group:
            shown.add_section()
            group = row.metric.group
        cells: Iterable[Text] = (
            Text(f"{text} *", style="bold green") if index in row.best else Text(f"{text}  ")
            for index, text in enumerate(row_texts(row))
        )
        shown.add_row(row.metric.label, *cells)
    return shown


def _width(comparison: Comparison) -> int:
    """Be wide enough for every table: a reader of a file scrolls, a wrapped number is lost."""
    longest = max((len(column) for column in comparison.drivers), default=0) + len(" (failed)")
    return max(80, 40 + (max(longest, 16) + 3) * len(comparison.drivers))
