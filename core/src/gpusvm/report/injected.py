"""Show how many failures were tried, of which sites, and what they broke."""

from collections.abc import Collection
from typing import IO, TYPE_CHECKING, Final

if TYPE_CHECKING:
    from gpusvm.conformance.injection import Sweep

__all__ = ["print_sweeps"]

_WIDTH: Final = 200


def print_sweeps(sweeps: "Collection[Sweep]", *, file: IO[str] | None = None) -> None:
    """Print a row for each site and a column for each driver, with the sums, and a line for each finding."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from gpusvm.report.console import open_console

    console = open_console(file, width=_WIDTH)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("fails once, each time it is passed", no_wrap=True)
    for sweep in sweeps:
        table.add_column(sweep.driver, justify="right")
    for site in sorted({site for sweep in sweeps for site in sweep.failures}):
        table.add_row(site, *(f"{sweep.failures[site]:,}" if site in sweep.failures else "" for sweep in sweeps))
    table.add_section()
    table.add_row("sites", *(f"{len(sweep.failures):,}" for sweep in sweeps))
    table.add_row("failures", *(f"{sum(sweep.failures.values()):,}" for sweep in sweeps))
    table.add_row("refused to the program", *(f"{sweep.refused:,}" for sweep in sweeps))
    table.add_row("programs", *(f"{sweep.programs:,}" for sweep in sweeps))
    table.add_row("findings", *(f"{len(sweep.findings):,}" for sweep in sweeps))
    console.print(table)
    for sweep in sweeps:
        for finding in sweep.findings:
            console.print(Text(f"{sweep.driver}: {finding}", style="bold red"), soft_wrap=True)
