"""Show what explorations came to, and the scenarios that there are."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO, TYPE_CHECKING, Any, Final

from attrs import frozen

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from gpusvm.driver import DriverInfo
    from gpusvm.explore.result import Exploration, Explorations, Found
    from gpusvm.explore.scenario import Scenario

__all__ = ["print_explorations", "print_scenarios", "scenarios_document"]

_WIDTH: Final = 200
_MANY: Final = 100  # schedules of which more than one outcome may be expected
_NAMED: Final = 3


def scenarios_document(scenarios: "Sequence[Scenario]") -> dict[str, Any]:
    """Return what ``gpusvm explore --list --json`` prints; `tasks` is their number."""
    return {
        "schema": 1,
        "scenarios": [{"name": each.name, "tasks": len(each.tasks), "standard": each.standard} for each in scenarios],
    }


def print_scenarios(
    scenarios: "Sequence[Scenario]", drivers: "Mapping[str, DriverInfo]", *, file: IO[str] | None = None
) -> None:
    """Print a table of scenarios in the order of their names, with those of `drivers` that each is for."""
    from rich import box
    from rich.table import Table

    from gpusvm.report.console import open_console

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("scenario", "tasks", "standard", "drivers", "about"):
        table.add_column(
            column,
            justify="right" if column == "tasks" else "left",
            no_wrap=column not in {"drivers", "about"},
            overflow="fold",
        )
    for each in sorted(scenarios, key=lambda scenario: scenario.name):
        names = [name for name in sorted(drivers) if not each.refuses(drivers[name])]
        shown = "all" if names and len(names) == len(drivers) else " ".join(names)
        table.add_row(each.name, str(len(each.tasks)), "yes" if each.standard else "", shown, each.about)
    open_console(file, width=_WIDTH).print(table)


@frozen
class _Column:
    """Be a column of numbers: `given_up` says when it goes if there is no room for all, the least number first."""

    name: str
    text: "Callable[[Exploration], str]"
    given_up: int = 0


_COLUMNS: Final = (
    _Column("schedules", lambda each: f"{each.schedules:,}" + (" (all)" if each.exhausted else "")),
    _Column("a second", lambda each: f"{each.schedules_per_s:,.0f}", 6),
    _Column("steps each", lambda each: f"{each.steps / max(each.schedules, 1):,.0f}", 1),
    _Column("skipped", lambda each: f"{each.skipped or 0:,}"),
    _Column("outcomes", lambda each: f"{len(each.coverage.outcomes):,}", 2),
    _Column("states", lambda each: f"{len(each.coverage.states):,}", 3),
    _Column("yield points", lambda each: _part(len(each.coverage.yields_reached), len(each.coverage.yields_missed)), 5),
    _Column("sites", lambda each: _part(len(each.coverage.sites_reached), len(each.coverage.sites_missed)), 4),
    _Column("findings", lambda each: str(len(each.findings))),
)


def _part(reached: int, missed: int) -> str:
    return f"{reached:,} of {reached + missed:,}"


def print_explorations(explorations: "Explorations", *, coverage: bool = False, file: IO[str] | None = None) -> None:
    """Print a table of explorations, what was left out, and each finding.

    With `coverage` the injection sites and yield points that were reached and those that were not, for each driver.
    """
    from gpusvm.report.console import needed_width, open_console

    console = open_console(file, width=_WIDTH)
    results = explorations.results
    columns = [each for each in _COLUMNS if each.name != "skipped" or any(one.skipped is not None for one in results)]
    table = _table(results, columns)
    while needed_width(console, table) > console.width and any(each.given_up for each in columns):
        columns.remove(min((each for each in columns if each.given_up), key=lambda each: each.given_up))
        table = _table(results, columns)
    console.print(table)
    for line in _legend(explorations, {each.name for each in columns}):
        console.print(line, markup=False, soft_wrap=True)
    if coverage:
        for line in _coverage(results):
            console.print(line, markup=False, soft_wrap=True)
    for result in results:
        for found in result.findings:
            _print_found(console, result, found)


def _table(results: "Sequence[Exploration]", columns: Sequence[_Column]) -> "Table":
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("scenario", "driver"):
        table.add_column(name, no_wrap=True)
    for column in columns:
        table.add_column(column.name, justify="right", no_wrap=True)
    for result in results:
        table.add_row(result.scenario, result.driver, *(column.text(result) for column in columns))
    return table


def _legend(explorations: "Explorations", shown: set[str]) -> Iterator[str]:
    results = explorations.results
    recorded = sum(each.coverage.recorded for each in results)
    looked_at = sum(each.coverage.looked_at for each in results)
    explained = {
        "outcomes": "outcomes: different ways in which the operations ended",
        "states": f"states: different ones at the end of {looked_at:,} executions that were looked at",
        "yield points": f"yield points: places in the code, in {recorded:,} executions that were recorded",
        "sites": "sites: of injected failures",
    }
    kept = [text for name, text in explained.items() if name in shown]
    if kept:
        yield "; ".join(kept)
    for driver in dict.fromkeys(each.driver for each in results):
        missed = _missed(results, driver)
        if missed:
            yield f"sites that {driver} has and nothing here reached: {', '.join(missed)}"
    one_way = [each for each in results if each.scheduler == "random" and _has_one_way(each)]
    if one_way:
        more = f" and {len(one_way) - _NAMED} more" if len(one_way) > _NAMED else ""
        yield (
            f"one outcome only: {', '.join(f'{each.scenario} on {each.driver}' for each in one_way[:_NAMED])}{more}; "
            "random switches at every other point, so that what is long hardly gets on beside what is short: try "
            "--scheduler pct"
        )
    reasons: dict[tuple[str, str], list[str]] = {}
    for each in explorations.left_out:
        reasons.setdefault((each.driver, each.reason), []).append(each.scenario)
    for (driver, reason), names in reasons.items():
        yield f"left out on {driver}: {', '.join(names)}: {reason}"


def _has_one_way(result: "Exploration") -> bool:
    """Tell whether many orders of several tasks came to the same end, and nothing was found."""
    return result.schedules >= _MANY and len(result.coverage.outcomes) == 1 and not result.findings


def _missed(results: "Sequence[Exploration]", driver: str) -> list[str]:
    return sorted(set.intersection(*(set(each.coverage.sites_missed) for each in results if each.driver == driver)))


def _coverage(results: "Sequence[Exploration]") -> Iterator[str]:
    """List by driver what was reached, how often, and what never was."""
    from gpusvm.explore.coverage import Coverage

    for driver in dict.fromkeys(each.driver for each in results):
        whole = Coverage()
        for each in results:
            if each.driver == driver:
                whole.merge(each.coverage)
        reached, missed = whole.sites_reached, whole.sites_missed
        yield ""
        yield f"injection sites of {driver}: {_part(len(reached), len(missed))}, with the number of passings"
        yield from (f"{times:>9,}  {site}" for site, times in reached.items())
        yield from (f"    never  {site}" for site in missed)
        yields, never = whole.yields_reached, whole.yields_missed
        yield ""
        yield (
            f"yield points of {driver}: {_part(len(yields), len(never))}, with the number of recorded executions, "
            f"{whole.recorded:,} in all"
        )
        for place, operations in yields.items():
            times = max(whole.places[operation, place] for operation in operations)
            yield f"{times:>9,}  {place}: {', '.join(operations)}"
        yield from (f"    never  {place}" for place in never)


def _print_found(console: "Console", result: "Exploration", found: "Found") -> None:
    from rich.text import Text

    from gpusvm.report.console import invoked

    finding = found.finding
    console.print()
    head = Text(f"{result.scenario} on {result.driver}: {finding.kind} {finding.invariant}", style="bold red")
    console.print(head, soft_wrap=True)
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
        if found.shrunk.after.steps > found.shrunk.before.steps:
            lines.append("            (more steps for fewer of the others, which are easier to follow)")
    if found.file is not None:
        lines.append(f"{invoked()} replay {found.file} --explain")
    for line in lines:
        console.print(Text(f"  {line}"), soft_wrap=True)
