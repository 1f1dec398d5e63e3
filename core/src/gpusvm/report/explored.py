"""Show what explorations came to, and the scenarios that there are."""

from collections.abc import Iterator, Sequence
from typing import IO, TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from rich.console import Console

    from gpusvm.explore.result import Exploration, Explorations, Found
    from gpusvm.explore.scenario import Scenario

__all__ = ["print_explorations", "print_scenarios", "scenarios_document"]

_WIDTH: Final = 200


def scenarios_document(scenarios: "Sequence[Scenario]") -> dict[str, Any]:
    """Return what ``gpusvm explore --list --json`` prints; `tasks` is their number."""
    return {
        "schema": 1,
        "scenarios": [{"name": each.name, "tasks": len(each.tasks), "standard": each.standard} for each in scenarios],
    }


def print_scenarios(scenarios: "Sequence[Scenario]", *, file: IO[str] | None = None) -> None:
    """Print a table of scenarios."""
    from rich import box
    from rich.table import Table

    from gpusvm.report.console import open_console

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("scenario", "tasks", "standard", "about"):
        table.add_column(column, justify="right" if column == "tasks" else "left")
    for each in scenarios:
        table.add_row(each.name, str(len(each.tasks)), "yes" if each.standard else "", each.about)
    open_console(file, width=_WIDTH).print(table)


def print_explorations(explorations: "Explorations", *, file: IO[str] | None = None) -> None:
    """Print a table of explorations, what was never reached, and each finding."""
    from rich import box
    from rich.table import Table

    from gpusvm.report.console import open_console

    console = open_console(file, width=_WIDTH)
    known = _known_places(explorations)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("scenario")
    table.add_column("driver")
    skips = any(result.skipped is not None for result in explorations.results)
    columns = [
        "schedules",
        "a second",
        "steps each",
        *(["skipped"] if skips else []),
        "outcomes",
        "operations",
        "sites",
    ]
    for column in (*columns, "findings"):
        table.add_column(column, justify="right")
    for result in explorations.results:
        coverage = result.coverage
        table.add_row(
            result.scenario,
            result.driver,
            f"{result.schedules:,}" + (" (all)" if result.exhausted else ""),
            f"{result.schedules_per_s:,.0f}",
            f"{result.steps / max(result.schedules, 1):,.0f}",
            *([f"{result.skipped or 0:,}"] if skips else []),
            f"{len(coverage.outcomes):,}",
            f"{len(coverage.places):,} of {len(known[result.driver]):,}",
            f"{len(coverage.sites.keys() & coverage.known_sites)} of {len(coverage.known_sites)}",
            str(len(result.findings)),
        )
    console.print(table)
    for line in _legend(explorations.results, known):
        console.print(line, markup=False, soft_wrap=True)
    for result in explorations.results:
        for found in result.findings:
            _print_found(console, result, found)


def _known_places(explorations: "Explorations") -> dict[str, set[tuple[str, str]]]:
    known: dict[str, set[tuple[str, str]]] = {}
    for result in explorations.results:
        known.setdefault(result.driver, set()).update(result.coverage.places)
    return known


def _legend(results: "Sequence[Exploration]", known: dict[str, set[tuple[str, str]]]) -> Iterator[str]:
    recorded = sum(result.coverage.recorded for result in results)
    yield (
        f"outcomes: different ways in which the operations ended; operations: of the kernel, by place in the code, in "
        f"{recorded:,} recorded executions, of those that any of these explorations reached"
    )
    for driver in known:
        coverages = [result.coverage for result in results if result.driver == driver]
        missed = sorted(set.intersection(*(set(coverage.sites_missed) for coverage in coverages)))
        if missed:
            yield f"injection sites that {driver} has and nothing here reached: {', '.join(missed)}"


def _print_found(console: "Console", result: "Exploration", found: "Found") -> None:
    from rich.text import Text

    finding = found.finding
    console.print()
    console.print(Text(f"{result.scenario} on {result.driver}: {finding.kind} {finding.invariant}", style="bold red"))
    for line in finding.message.splitlines():
        console.print(Text(f"  {line}"), soft_wrap=True)
    times = f", and in {found.times - 1:,} more of {result.schedules:,}" if found.times > 1 else ""
    lines = [f"first in schedule {found.schedule}{times}"]
    if found.shrunk is not None:
        lines += [
            f"found with  {found.shrunk.before}",
            f"shrunk to   {found.shrunk.after}, in {found.shrunk.executions:,} executions"
            + ("" if found.shrunk.complete else ", and not to the end"),
        ]
    if found.file is not None:
        lines.append(f"gpusvm replay {found.file} --explain")
    for line in lines:
        console.print(Text(f"  {line}"), soft_wrap=True)
