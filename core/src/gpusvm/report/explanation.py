"""Show an execution step by step: a column for each task, with the places in the code."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import IO, TYPE_CHECKING, Any, Final

from attrs import evolve, frozen

from gpusvm.errors import errno_name

if TYPE_CHECKING:
    from rich.table import Table

    from gpusvm.explore.finding import Finding
    from gpusvm.explore.recording import Entry, Recording
    from gpusvm.explore.repeat import Repeated

__all__ = ["Row", "print_explanation", "print_repeated", "repeated_document", "rows_of"]

_WIDTH: Final = 200
_FOLD: Final = 3  # so many plain steps in a row are worth a line that counts them
_MESSAGE: Final = 40
_AGAIN: Final = 2  # so often has something to come again, after the first time, to be left out
_PERIOD: Final = 40  # so many rows may be what comes again
_WITH_ERRNO: Final = frozenset({"get_pages_failed"})  # events whose last field is an errno
_GIVES_WAY: Final = frozenset({"cpu_relax", "cond_resched"})
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
    preempts: bool = False
    """Here a task takes over from one that could have gone on."""


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
    _mark_preemptions(rows, entries)
    return rows if full else _without_repetitions(rows)


def _mark_preemptions(rows: list[Row], entries: "Sequence[Entry]") -> None:
    """Mark where a task begins to run though the one before neither waited nor gave way, and goes on later."""
    last = {entry.task: at for at, entry in enumerate(entries)}
    preempting = {
        (now.number, now.task)
        for at, (before, now) in enumerate(pairwise(entries), start=1)
        if before.task != now.task
        and before.kind != "wait"
        and before.what not in _GIVES_WAY
        and last[before.task] > at
    }
    for k, (before, row) in enumerate(pairwise(list(rows)), start=1):
        if before.task != row.task and (row.number, row.task) in preempting:
            rows[k] = evolve(row, preempts=True)


def _without_repetitions(rows: list[Row]) -> list[Row]:
    """Leave out what only repeats the rows before it, as the rounds of a livelock do, and say how often it did."""
    kept: list[Row] = []
    at = 0
    while at < len(rows):
        length, times = _repetition(rows, at)
        kept += rows[at : at + length]
        at += length
        if times:
            first = rows[at]
            text = f"… the same {'row' if length == 1 else f'{length} rows'} {times} times more"
            kept.append(Row(first.number, first.task, text, "", "folded", folded=length * times))
            at += length * times
    return kept


def _repetition(rows: Sequence[Row], at: int) -> tuple[int, int]:
    """Return how many rows from `at` on come again at once, and how often; (1, 0) for a row that does not."""
    for length in range(1, min(_PERIOD, (len(rows) - at) // 2) + 1):
        once = [_alike(row) for row in rows[at : at + length]]
        times = 0
        while [_alike(row) for row in rows[at + (times + 1) * length : at + (times + 2) * length]] == once:
            times += 1
        if times >= _AGAIN:
            return length, times
    return 1, 0


def _alike(row: Row) -> object:
    # What broke, and the message below it, are never left out.
    return row if row.broken or row.kind == "message" else (row.task, row.text, row.place)


def _run_of(entries: "list[Entry]", begin: int, end: int, broken_at: int | None, *, full: bool) -> Iterator[Row]:
    def plain(at: int) -> bool:
        return not full and begin + _ENDS <= at < end - _ENDS and entries[at].kind == "step" and at != broken_at

    at = begin
    while at < end:
        window = None if full else _window(entries, at, end, broken_at)
        if window is not None:
            row = _row(entries[at], broken=False)
            yield evolve(row, text=f"* notifier{row.text.removeprefix('* notifier_start')}, {window - at - 1} steps")
            at = window + 1
            continue
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


def _window(entries: "Sequence[Entry]", at: int, end: int, broken_at: int | None) -> int | None:
    """Return where the invalidation ends that begins at `at`, if nothing but plain steps of its task lies between."""
    if entries[at].what != "notifier_start" or entries[at].kind != "event":
        return None
    for k in range(at + 1, end):
        each = entries[k]
        if each.kind == "event" and each.what == "notifier_end" and each.on == entries[at].on:
            return k
        if each.kind != "step" or k == broken_at:
            return None
    return None


def _row(entry: "Entry", *, broken: bool) -> Row:
    match entry.kind:
        case "fail":
            text = f"FAILS {entry.what}"
        case "begin":
            text = f"> {entry.what}"
        case "end":
            text = f"< {entry.what}: {entry.on}"
        case "event":
            on = entry.on
            if entry.what in _WITH_ERRNO:
                before, _, number = on.rpartition(" ")
                on = f"{before} {errno_name(int(number))}"
            text = f"* {entry.what} {on}"
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
    return "=>" if row.broken else " ~" if row.preempts else "", "" if row.kind == "message" else str(row.number)


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
