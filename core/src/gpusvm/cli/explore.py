"""gpusvm explore: try orders and failures of small concurrent programs, and keep what breaks."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from gpusvm.cli.parameters import Flag, Repeatable

__all__ = ["explore"]


def explore(
    *scenarios: str,
    driver: Repeatable = (),
    scheduler: str = "random",
    schedules: int | None = None,
    seconds: float | None = None,
    failures: int = 0,
    seed: int = 0,
    first: int = 0,
    quirks: Annotated[Literal["as_written", "fixed"], Parameter(name_transform=str)] = "fixed",
    mutant: str | None = None,
    keep_going: Flag = False,
    no_shrink: Flag = False,
    coverage: Flag = False,
    jobs: int = 1,
    out: Path = Path("findings"),
    list_: Annotated[Flag, Parameter(name="--list")] = False,
    json: Flag = False,
    without: Repeatable = (),
) -> int:
    """Explore the orders and failures of small concurrent programs, and keep what breaks.

    Exit codes: 0 nothing broke, 1 findings, 2 bad input, 130 interrupted.

    Parameters
    ----------
    scenarios
        Names that --list shows, paths of .toml files, "standard" or "all".
    driver
        Driver: NAME[:KEY=VALUE[,KEY=VALUE...]]; may be given several times. All installed ones if none is named.
    scheduler
        Who decides: random, pct, delay or dfs, with parameters as in pct:depth=3, delay:delays=2, dfs:preemptions=3.
    schedules
        Executions for each scenario and driver; 1000 if neither this nor --seconds is given.
    seconds
        Time for each scenario and driver.
    failures
        Most injected failures in an execution.
    seed
        Decides what is drawn at random.
    first
        Number of the first schedule: goes on where an earlier exploration has ended.
    quirks
        What every quirk is set to that a driver's spec does not name.
    mutant
        Switch a historical bug on, by its id.
    keep_going
        Go on after a finding, and keep the first one of each kind.
    no_shrink
        Keep findings as they were found.
    coverage
        List the injection sites and yield points that were reached, and those that never were.
    jobs
        Processes to run on.
    out
        Directory for the findings; it is made when there is one.
    list_
        List the scenarios, and the installed drivers that each is for.
    json
        Print JSON, and nothing else, on standard output.
    without
        Leave a driver plugin out, broken or not; may be given several times.
    """
    if list_:
        return _list(scenarios, without, as_json=json)
    import sys

    from gpusvm.cli.progress import exploration_shown
    from gpusvm.conformance.mutants import load
    from gpusvm.explore import explore as run_exploration
    from gpusvm.report import print_explorations

    with exploration_shown() as listener:
        explorations = run_exploration(
            scenarios,
            driver,
            scheduler=scheduler,
            schedules=schedules,
            seconds=seconds,
            failures_max=failures,
            seed=seed,
            first=first,
            quirks=quirks,
            mutant=None if mutant is None else load(mutant),
            keep_going=keep_going,
            shrunk=not no_shrink,
            jobs=jobs,
            out=out,
            without=without,
            progress=listener,
        )
    if json:
        print(explorations.to_json(places=coverage), end="")
    else:
        print_explorations(explorations, coverage=coverage)
    sys.stdout.flush()
    if explorations.interrupted:
        kept = f", and what was found is in {out}" if explorations.findings else ""
        print(
            f"gpusvm: interrupted: {explorations.ended} of {explorations.asked} explorations had ended{kept}",
            file=sys.stderr,
        )
        return 130
    return 1 if explorations.findings else 0


def _list(names: tuple[str, ...], without: tuple[str, ...], *, as_json: bool) -> int:
    from gpusvm.explore.scenario import select_scenarios
    from gpusvm.plugins import Installed
    from gpusvm.report import print_json, print_scenarios, scenarios_document

    scenarios = select_scenarios(names or ("all",))
    if as_json:
        print_json(scenarios_document(scenarios))
    else:
        print_scenarios(scenarios, Installed(tuple(without)).registry())
    return 0
