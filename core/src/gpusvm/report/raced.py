"""Show what came of races in a real kernel and in the model."""

from typing import IO, TYPE_CHECKING, Final

if TYPE_CHECKING:
    from rich.console import Console

    from gpusvm.realkernel import RaceResult, Races

__all__ = ["print_races"]

_WIDTH: Final = 200
_COUNT_WIDTH: Final = 6

_VERDICTS: Final = {"allowed": "allowed", "refuted": "NOT ALLOWED", "open": "open: not all orders were run"}


def print_races(races: "Races", *, file: IO[str] | None = None) -> None:
    """Print each race with its outcomes, how often the kernel had them and whether the model has them; then a table."""
    from rich import box
    from rich.table import Table

    from gpusvm.report.console import open_console

    console = open_console(file, width=_WIDTH)
    for result in races.results:
        _print_race(console, result)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("race")
    for column in ("tries", "outcomes of the kernel", "of the model", "orders"):
        table.add_column(column, justify="right")
    table.add_column("verdict")
    for result in races.results:
        allowed = result.allowed
        counts = (result.tries, len(result.kernel), len(allowed.outcomes), allowed.schedules)
        table.add_row(result.race.name, *(f"{count:,}" for count in counts), _VERDICTS[result.verdict])
    console.print(table)
    bound = races.header["preemptions"]
    within = "in all orders" if bound is None else f"in all orders with at most {bound} preemptions"
    cut = sum(not result.allowed.exhausted for result in races.results)
    console.print(
        f"{len(races.results):,} races of {races.header['target']} on Linux {races.header['release']}, "
        f"the model {within if not cut else f'{within}, but for {cut} races that have more than were to be run'} "
        f"({races.seconds:.0f} s)",
        soft_wrap=True,
    )


def _print_race(console: "Console", result: "RaceResult") -> None:
    from rich.text import Text

    race = result.race
    console.print(Text(f"{race.name}: {race.left} | {race.right}", style="bold"), soft_wrap=True)
    console.print(Text(f"  after {'; '.join(race.before)}; then {'; '.join(race.after)}"), soft_wrap=True)
    for outcome in sorted(result.kernel, key=lambda each: (-result.kernel[each], each)):
        known = outcome in result.allowed.outcomes
        _print_outcome(console, f"{result.kernel[outcome]:,}", "both" if known else "NOT ALLOWED", outcome)
    for outcome in result.unseen:
        _print_outcome(console, "0", "never seen", outcome)
        if outcome in result.allowed.broken:
            console.print(Text(f"{'':{_COUNT_WIDTH}}  the model: {result.allowed.broken[outcome]}"), soft_wrap=True)
    console.print()


def _print_outcome(console: "Console", count: str, seen: str, outcome: tuple[str, ...]) -> None:
    from rich.text import Text

    answers = f"{' | '.join(outcome[:2])}{''.join(f'; {answer}' for answer in outcome[2:])}"
    style = "red" if seen == "NOT ALLOWED" else ""
    console.print(Text(f"{count:>{_COUNT_WIDTH}}  {seen:<11}  {answers}", style=style), soft_wrap=True)
