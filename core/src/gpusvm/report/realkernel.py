"""Show what a real kernel answered, and where the model answers otherwise."""

import re
from typing import IO, TYPE_CHECKING, Final

if TYPE_CHECKING:
    from rich.console import Console

    from gpusvm.realkernel import Check, Diff, Difference, Finding, Run

__all__ = ["print_check", "print_diff", "print_run", "shortened"]

_WIDTH: Final = 200

# What comes so often in a row is written once: pages by the hundred are alike.
_WORDS: Final = re.compile(r"(?<![^ ,])([^ ,]+)(?:,\1){3,}(?![^ ,])")
_BYTES: Final = re.compile(r"([0-9a-f]{2})\1{7,}")
_LETTERS: Final = re.compile(r"([nPXSs])\1{7,}")


def print_check(check: "Check", *, file: IO[str] | None = None) -> None:
    """Print a table of totals, then the differences; what led to one stands above it."""
    from rich import box
    from rich.table import Table

    from gpusvm.report.console import open_console

    console = open_console(file, width=_WIDTH)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("operation")
    for column in ("compared", "differing", "explained"):
        table.add_column(column, justify="right")
    for name, kind in check.kinds.items():
        table.add_row(name, f"{kind.operations:,}", f"{kind.differing:,}", f"{kind.explained:,}")
    table.add_section()
    table.add_row("all", f"{check.operations:,}", f"{len(check.differences):,}", f"{check.explained:,}")
    console.print(table)
    for reason, count in check.reasons.items():
        console.print(f"{count:,} explained: {reason}", markup=False, soft_wrap=True)
    for difference in check.differences:
        _print_difference(console, difference)
    console.print(
        f"{check.sequences:,} sequences at {check.level}, "
        + (f"{len(check.differences):,} of them differ" if check.differences else "none of them differs"),
        soft_wrap=True,
    )


def _print_difference(console: "Console", difference: "Difference") -> None:
    from rich.text import Text

    level = "failed" if difference.level is None else f"differs at {difference.level}"
    place = f"{difference.file}: sequence {difference.sequence}, operation {difference.index}"
    console.print(Text(f"{place} {level}", style="bold"), soft_wrap=True)
    first = difference.index - len(difference.before)
    lines = [f"  {first + i:>3}  {text} => {shortened(answer)}" for i, (text, answer) in enumerate(difference.before)]
    lines += [
        f"  {difference.index:>3}  {difference.operation}",
        f"       expected  {shortened(difference.expected)}",
        f"       got       {shortened(difference.got)}",
        "",
    ]
    for line in lines:
        console.print(Text(line), soft_wrap=True)


def print_run(run: "Run", *, file: IO[str] | None = None) -> None:
    """Print the sequences, an operation with its answer a line, and what the kernel said when it died."""
    from rich.text import Text

    from gpusvm.report.console import open_console

    console = open_console(file, width=_WIDTH)
    for number, pairs in enumerate(run.sequences):
        console.print(Text(f"sequence {number}", style="bold"))
        for operation, answer in pairs:
            console.print(Text(f"  {operation} => {shortened(answer)}"), soft_wrap=True)
        if number in run.serial:
            console.print(Text(run.serial[number], style="red"), soft_wrap=True)
    died = f", {len(run.serial):,} of which it died of" if run.serial else ""
    console.print(f"{len(run.sequences):,} sequences on Linux {run.header['release']}{died}", soft_wrap=True)


def print_diff(diff: "Diff", *, file: IO[str] | None = None) -> None:
    """Print each finding with what led to it, then the totals."""
    from gpusvm.report.console import open_console

    console = open_console(file, width=_WIDTH)
    for finding in diff.findings:
        _print_finding(console, finding)
    rate = len(diff.sequences) / diff.seconds if diff.seconds else 0
    console.print(
        f"{len(diff.sequences):,} sequences of {diff.header['profile']}, "
        f"{diff.compared.total():,} operations compared at {diff.level} with Linux {diff.header['release']}: "
        + (f"{len(diff.findings):,} findings" if diff.findings else "no difference")
        + f" ({diff.seconds:.0f} s, {rate:.1f} sequences/s)",
        soft_wrap=True,
    )


def _print_finding(console: "Console", finding: "Finding") -> None:
    from rich.text import Text

    words = {
        "difference": "the model fails" if finding.level is None else f"differs at {finding.level}",
        "hang": "the kernel does not return",
        "crash": "the kernel died" if finding.same_as is None else f"the kernel died, as of sequence {finding.same_as}",
        "unsteady": "the kernel answers otherwise when asked again",
    }
    console.print(Text(f"sequence {finding.sequence}: {words[finding.kind]}", style="bold"))
    for operation, answer in finding.pairs if finding.same_as is None else ():
        console.print(Text(f"  {operation} => {shortened(answer)}" if answer else f"  {operation}"), soft_wrap=True)
    if finding.got:
        console.print(Text(f"       model  {shortened(finding.got)}"), soft_wrap=True)
    if finding.serial and finding.same_as is None:
        console.print(Text(finding.serial, style="red"), soft_wrap=True)
    console.print()


def shortened(answer: str) -> str:
    """Write an answer with what is repeated in it counted: ``0,0,0,0`` as ``0×4``, bytes and letters likewise."""
    numbers, space, rest = answer.partition(" ")
    rest = _WORDS.sub(lambda found: f"{found[1]}×{found[0].count(',') + 1}", rest)
    words = rest.split(" ")
    if len(words) > 3 and re.fullmatch(r"(?:[0-9a-f]{2}){8,}", words[3]):
        words[3] = _BYTES.sub(lambda found: f" {found[1]}×{len(found[0]) // 2} ", words[3]).strip()
    elif len(words) > 3 and re.fullmatch(r"[nPXSs]{8,}", words[3]):
        words[3] = _LETTERS.sub(lambda found: f" {found[1]}×{len(found[0])} ", words[3]).strip()
    return f"{numbers}{space}{' '.join(words)}"
