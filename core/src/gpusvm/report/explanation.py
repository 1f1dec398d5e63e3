"""Show an execution step by step: a column for each task, with the places in the code."""

from collections.abc import Iterator, Sequence
from typing import IO, TYPE_CHECKING, Any, Final

from attrs import frozen

if TYPE_CHECKING:
    from rich.table import Table

    from gpusvm.explore.finding import Finding
    from gpusvm.explore.recording import Entry, Recording
    from gpusvm.explore.repeat import Repeated

__all__ = ["Row", "print_explanation", "print_repeated", "repeated_document", "rows_of"]

_WIDTH: Final = 200
_FOLD: Final = 3  # so many plain steps in a row are worth a line that counts them
_MESSAGE: Final = 40
_ENDS: Final = 1  # but for so many at each end of what a task does in one go


@frozen
class Row:
    """Be one line of an explanation: what one task did, or, with `folded`, how many plain steps are left out."""

    number: int
    task: str
    text: str
    place: str
    kind: str
    code: str = ""
    folded: int = 0
    broken: bool = False
    """Here something first broke."""


def rows_of(recording: "Recording", message: str, *, full: bool = False) -> list[Row]:
    """Turn a recording into rows; plain steps in the middle of what a task does in one go are folded, unless `full`.

    Neither is then shown how the task main waits for the others. Below the row at which it broke stands `message`.
    """
    rows: list[Row] = []
    entries = [
        each
        for at, each in enumerate(recording.entries)
        if full or at == recording.broken_at or each.task != "main" or each.kind not in {"step", "wait"}
    ]
    broken_at = None
    if recording.broken_at is not None:
        broken_at = next(at for at, each in enumerate(entries) if each is recording.entries[recording.broken_at])
    begin = 0
    while begin < len(entries):
        end = begin
        while end < len(entries) and entries[end].task == entries[begin].task:
            end += 1
        for row in _run_of(entries, begin, end, broken_at, full=full):
            rows.append(row)
            if row.broken:
                rows += [Row(row.number, row.task, line, "", "message") for line in message.splitlines()]
        begin = end
    return rows


def _run_of(entries: "list[Entry]", begin: int, end: int, broken_at: int | None, *, full: bool) -> Iterator[Row]:
    def plain(at: int) -> bool:
        return not full and begin + _ENDS <= at < end - _ENDS and entries[at].kind == "step" and at != broken_at

    at = begin
    while at < end:
        stop = at
        while plain(stop):
            stop += 1
        if stop - at >= _FOLD:
            yield Row(entries[at].number, entries[at].task, f"… {stop - at} steps", "", "folded", folded=stop - at)
            at = stop
            continue
        for each in range(at, max(stop, at + 1)):
            yield _row(entries[each], broken=each == broken_at)
        at = max(stop, at + 1)


def _row(entry: "Entry", *, broken: bool) -> Row:
    match entry.kind:
        case "fail":
            text = f"FAILS {entry.what}"
        case "begin":
            text = f"> {entry.what}"
        case "end":
            text = f"< {entry.what}: {entry.on}"
        case "event":
            text = f"* {entry.what} {entry.on}"
        case _:
            text = f"{entry.what} {entry.on}".rstrip()
    return Row(entry.number, entry.task, text, entry.place, entry.kind, entry.code, broken=broken)


_STYLES: Final = {
    "fail": "bold magenta",
    "wait": "yellow",
    "begin": "bold",
    "end": "bold",
    "event": "cyan",
    "folded": "dim",
    "message": "red",
}


def print_explanation(repeated: "Repeated", *, full: bool = False, file: IO[str] | None = None) -> None:
    """Print an execution, a column for each task, one line for each step, and mark where it broke.

    Where a terminal has no room for that the columns are as wide as a mark, and what was done stands beside them.
    """
    from rich.text import Text

    from gpusvm.report.console import needed_width, open_console

    failure = repeated.execution.failure
    rows = rows_of(repeated.recording, "" if failure is None else failure.message, full=full)
    tasks = list(dict.fromkeys(row.task for row in rows))
    table = _wide(rows, tasks)
    console = open_console(file, width=_WIDTH)
    needed = needed_width(console, table)
    if needed > console.width:
        if console.is_terminal:
            table = _narrow(rows, tasks)
        else:
            console = open_console(file, width=needed)
    console.print(table)
    if failure is not None and repeated.recording.broken_at is None:
        console.print(Text("=> after the tasks had ended", style="bold red"))


def _head(row: Row) -> tuple[str, str]:
    return "=>" if row.broken else "", "" if row.kind == "message" else str(row.number)


def _style(row: Row) -> str:
    return "bold red" if row.broken else _STYLES.get(row.kind, "")


def _wide(rows: Sequence[Row], tasks: Sequence[str]) -> "Table":
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold", collapse_padding=True)
    table.add_column("", no_wrap=True)
    table.add_column("step", justify="right", no_wrap=True)
    for task in tasks:
        # What steps say fits into a line; a message is as wide as they are, or as the least that reads well.
        longest = max((len(row.text) for row in rows if row.task == task and row.kind != "message"), default=0)
        told = any(row.task == task and row.kind == "message" for row in rows)
        table.add_column(task, overflow="fold", width=max(longest, len(task), _MESSAGE if told else 0))
    for name in ("place", "code"):
        table.add_column(name, no_wrap=True, style="dim")
    for row in rows:
        cells = [Text(row.text, style=_style(row)) if task == row.task else Text("") for task in tasks]
        table.add_row(*_head(row), *cells, row.place, Text(row.code))
    return table


def _narrow(rows: Sequence[Row], tasks: Sequence[str]) -> "Table":
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("", "step", "", "task"):
        table.add_column(name, justify="right" if name == "step" else "left", no_wrap=True)
    table.add_column("", overflow="fold")
    for row in rows:
        text = Text(row.text, style=_style(row))
        for line in filter(None, (row.place, row.code)):
            text.append(f"\n  {line}", style="dim")
        lanes = "".join("o" if task == row.task else "|" for task in tasks)
        table.add_row(*_head(row), lanes, row.task, text)
    return table


def print_repeated(repeated: "Repeated", finding: "Finding", *, file: IO[str] | None = None) -> None:
    """Say whether a finding shows again, and where the execution strayed if it did."""
    from rich.text import Text

    from gpusvm.report.console import open_console

    console = open_console(file, width=_WIDTH)
    where, what = f"{finding.scenario.name} on {finding.driver}", f"{finding.kind} {finding.invariant}"
    failure = repeated.execution.failure
    lines = []
    if repeated.stray is not None:
        lines.append(f"this is another model than the finding's (gpusvm {finding.version}): it {repeated.stray}")
    if repeated.shows(finding):
        assert failure is not None
        lines += [f"{where}: {what} shows again", *(f"  {line}" for line in failure.message.splitlines())]
    elif failure is None:
        lines.append(f"{where}: {what} does not show: nothing broke in {repeated.execution.steps} steps")
    else:
        lines.append(f"{where}: {what} does not show, but {failure.kind} {failure.invariant} does")
        lines += [f"  {line}" for line in failure.message.splitlines()]
    for line in lines:
        console.print(Text(line), soft_wrap=True)


def repeated_document(repeated: "Repeated", finding: "Finding", *, explain: bool = False) -> dict[str, Any]:
    """Return what ``gpusvm replay --json`` prints; with `explain` every step too."""
    from gpusvm.explore.answers import failures, preemptions

    failure, stray = repeated.execution.failure, repeated.stray
    document: dict[str, Any] = {
        "schema": 1,
        "file": finding.source,
        "scenario": finding.scenario.name,
        "driver": finding.driver,
        "kind": finding.kind,
        "invariant": finding.invariant,
        "shows": repeated.shows(finding),
        "failure": None
        if failure is None
        else {"kind": failure.kind, "invariant": failure.invariant, "message": failure.message},
        "stray": None if stray is None else {"step": stray.step, "recorded": stray.recorded, "found": stray.found},
        "steps": repeated.execution.steps,
        "preemptions": preemptions(repeated.answers),
        "failures": failures(repeated.answers),
    }
    if explain:
        recording = repeated.recording
        document["broken_at"] = recording.broken_at
        document["entries"] = [
            {
                "step": entry.number,
                "task": entry.task,
                "kind": entry.kind,
                "what": entry.what,
                "on": entry.on,
                "place": entry.place,
                "code": entry.code,
            }
            for entry in recording.entries
        ]
    return document
