"""Show what a check of recorded answers found: totals by kind of operation, and each sequence's first difference."""

import re
from typing import IO, TYPE_CHECKING, Final

if TYPE_CHECKING:
    from rich.console import Console

    from gpusvm.realkernel import Check, Difference

__all__ = ["print_check", "shortened"]

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
