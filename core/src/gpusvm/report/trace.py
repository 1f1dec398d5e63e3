"""Show what a trace is like."""

from collections.abc import Mapping
from typing import IO, Any

from gpusvm.report.units import NONE, value_text

__all__ = ["print_trace_info"]


def print_trace_info(info: Mapping[str, Any], *, file: IO[str] | None = None) -> None:
    """Print what `gpusvm.trace_info` returns: numbers, then the allocations and kernels."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from gpusvm.report.console import open_console

    console = open_console(file, width=200)
    console.print(Text.assemble((info["name"], "bold"), f"  {info['about']}"))
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(justify="right")
    for key, value in info.items():
        if key not in ("name", "about", "allocations", "kernels"):
            grid.add_row(Text(f"  {key}", style="dim"), _text(key, value))
    console.print(grid)
    for title in ("allocations", "kernels"):
        rows = info[title]
        if not rows:
            continue
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        for column in rows[0]:
            table.add_column(column, justify="left" if column == "name" else "right")
        for row in rows:
            table.add_row(*(_text(key, value) for key, value in row.items()))
        console.print(table)


def _text(key: str, value: Any) -> str:
    if value is None:
        return NONE
    if key.endswith("_ns"):
        return value_text(value, "ns")
    if key.endswith("_bytes"):
        return value_text(value, "bytes")
    if key.endswith("_share"):
        return f"{value:.3f}"
    if isinstance(value, float):
        return f"{value:,.2f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
