"""Print call graphs as ftrace's function_graph does: calls indented, with braces, times and what happened between."""

from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from itertools import zip_longest
from typing import IO, TYPE_CHECKING, Final

from attrs import frozen

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from gpusvm.report.call_graph import CallGraph, GraphLine
    from gpusvm.report.explained import Explained

__all__ = ["GraphRow", "explained_document", "print_explained", "rows_of_graph"]

_WIDTH: Final = 200
_MARK: Final = {"lock": "+ ", "unlock": "- ", "get": "ref+ ", "put": "ref- ", "charge": "~ ", "event": "* "}
_STYLE: Final = {
    "lock": "cyan",
    "unlock": "cyan",
    "get": "yellow",
    "put": "yellow",
    "charge": "dim",
    "event": "bold magenta",
    "switch": "bold",
}
_LEGEND: Final = (
    "us: virtual time since the operation began | took: of a call, or what is charged\n"
    "+ lock taken, - given back; ref+ reference taken (kind, holder), ref- put; ~ cost; * what the model told"
)


@frozen(kw_only=True)
class GraphRow:
    """Be one printed line: when, how long, how deep, what; `kind` is that of the line, or "switch" to another task."""

    time_ns: int
    took_ns: int | None
    depth: int
    text: str
    kind: str

    def __str__(self) -> str:
        """Say it as it is printed, without its times."""
        return f"{'  ' * self.depth}{self.text}"


def rows_of_graph(graph: "CallGraph") -> list[GraphRow]:
    """Turn a recording into rows; a call in which nothing shows is one row, and times count from the first line."""
    rows: list[GraphRow] = []
    lines = graph.lines
    begun_ns = lines[0].time_ns if lines else 0
    task = None
    at = 0
    while at < len(lines):
        line = lines[at]
        following = lines[at + 1] if at + 1 < len(lines) else None
        if line.task != task:
            text = f"{task} => {line.task}" if task is not None else line.task
            rows.append(_row(line, begun_ns, text, "switch", depth=0))
            task = line.task
        if line.kind == "call" and following is not None and _ends(following, line):
            rows.append(_row(line, begun_ns, f"{line.text}();", "call", took_ns=following.ns or None))
            at += 1
        elif line.kind == "call":
            rows.append(_row(line, begun_ns, f"{line.text}() {{", "call"))
        elif line.kind == "return":
            rows.append(_row(line, begun_ns, f"}} /* {line.text} */", "return", took_ns=line.ns or None))
        else:
            rows.append(_row(line, begun_ns, f"{_MARK[line.kind]}{line.text}", line.kind, took_ns=line.ns or None))
        at += 1
    return rows


def _ends(line: "GraphLine", call: "GraphLine") -> bool:
    return line.kind == "return" and line.ours == call.ours and line.task == call.task


def _row(
    line: "GraphLine", begun_ns: int, text: str, kind: str, *, took_ns: int | None = None, depth: int | None = None
) -> GraphRow:
    return GraphRow(
        time_ns=line.time_ns - begun_ns,
        took_ns=took_ns,
        depth=line.depth if depth is None else depth,
        text=text,
        kind=kind,
    )


def print_explained(explained: "Sequence[Explained]", *, file: IO[str] | None = None) -> None:
    """Print one call graph, or several in columns, with what they have in common in the same rows."""
    from gpusvm.report.console import open_console

    console = open_console(file, width=_WIDTH)
    for each in explained:
        console.print(_headline(each), style="bold", soft_wrap=True)
    legend = _LEGEND if len(explained) == 1 else _LEGEND.replace(" | took: of a call, or what is charged", "")
    console.print(legend, style="dim", soft_wrap=True, markup=False)
    console.print()
    columns = [rows_of_graph(each.graph) for each in explained]
    if len(columns) == 1:
        for row in columns[0]:
            console.print(_line(row), soft_wrap=True)
    else:
        _print_columns(console, [each.driver for each in explained], columns)


def explained_document(explained: "Sequence[Explained]") -> "dict[str, object]":
    """Return what ``gpusvm explain --json`` prints."""
    return {"schema": 1, "explained": [each.to_dict() for each in explained]}


def _headline(explained: "Explained") -> str:
    from gpusvm.report.explained import OPERATIONS

    about = OPERATIONS[explained.operation].about
    took = f"{explained.sim_ns / 1000:,.1f} us"
    return f"{explained.driver}, {explained.operation}: {about}; {explained.answer} after {took}"


def _line(row: GraphRow, *, narrow: bool = False) -> "Text":
    from rich.text import Text

    took = "" if row.took_ns is None else f"{row.took_ns / 1000:.3f}"
    times = f"{row.time_ns / 1000:8.1f}" if narrow else f"{row.time_ns / 1000:10.3f} {took:>9}"
    text = Text(f"{times} | ", style="dim")
    text.append((" " if narrow else "  ") * row.depth + row.text, style=_STYLE.get(row.kind, "not dim"))
    return text


def _print_columns(console: "Console", titles: Sequence[str], columns: "list[list[GraphRow]]") -> None:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, expand=True)
    for title in titles:
        table.add_column(title, no_wrap=True, overflow="ellipsis", ratio=1)
    for rows in _aligned(columns):
        table.add_row(*("" if row is None else _line(row, narrow=True) for row in rows))
    console.print(table)


def _aligned(columns: "list[list[GraphRow]]") -> "Iterator[tuple[GraphRow | None, ...]]":
    """Put rows of the same text beside each other, in the order of the columns; others beside nothing of note."""
    merged: list[tuple[GraphRow | None, ...]] = [(row,) for row in columns[0]]
    for width, column in enumerate(columns[1:], start=1):
        left = [next((row.text for row in reversed(rows) if row is not None), "") for rows in merged]
        matcher = SequenceMatcher(None, left, [row.text for row in column], autojunk=False)
        following: list[tuple[GraphRow | None, ...]] = []
        for _, begin, end, first, last in matcher.get_opcodes():
            for rows, row in zip_longest(merged[begin:end], column[first:last]):
                following.append((*(rows or (None,) * width), row))
        merged = following
    yield from merged
