"""Write the page of what was explored for long, from what benchmarks/survey.py has recorded."""

import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from generators.markdown import NOTICE, code, table

__all__ = ["page"]

HEAD = """\
# Campaigns: what was explored, for how long, and what it found

{notice}

[Exploration](../explanation/exploration.md) of the drivers as they ship, with the quirks of Linux as written and
fixed, with failures and without, over the bundled [scenarios](scenarios.md) and
[some longer ones](../../benchmarks/survey.toml), whose names begin with x: {schedules} schedules, {steps} steps of
their tasks, {hours} hours of one CPU. The [figures](campaigns.json) come from

    uv run python benchmarks/survey.py --out DIR [SCENARIO …] --driver DRIVER --quirks QUIRKS --scheduler SCHEDULER \\
        --failures N --schedules N --seed N
    uv run python benchmarks/survey.py --out DIR --record docs/reference/campaigns.json --commit COMMIT

which goes on where it was interrupted. Schedules are the same wherever they are run, as long as the model is: the
commit names it, where it was noted. What is called mended below is so in a later one. CPU time has the booting of
machines and the shrinking of findings in it.

## By campaign

"""

FOUND = """

## What was found

With the quirks as written the last column names the quirk that explains a kind of finding on a driver: what exploring
with that one alone as written showed as well, or with that one alone fixed no more. With the quirks fixed there should
be nothing: what there was is a defect of the model, or of what it was asked.

"""


def page(root: Path) -> str:
    """Return docs/reference/campaigns.md. KeyError: docs/generators/campaigns.toml does not explain a finding."""
    campaigns = json.loads((root / "docs" / "reference" / "campaigns.json").read_text("utf-8"))["campaigns"]
    said = tomllib.loads((root / "docs" / "generators" / "campaigns.toml").read_text("utf-8"))["finding"]
    head = HEAD.format(
        notice=NOTICE,
        schedules=f"{sum(each['schedules'] for each in campaigns):,}",
        steps=f"{sum(each['steps'] for each in campaigns):,}",
        hours=f"{sum(each['cpu_seconds'] for each in campaigns) / 3600:.2f}",
    )
    lines = [
        head + "\n".join(table(_HEADINGS, [_row(each) for each in campaigns])),
        FOUND + "\n".join(table(("driver", "quirks", "found", "times:", "in", "because"), _found(campaigns, said))),
    ]
    return "\n".join(lines) + "\n"


_HEADINGS = (
    "driver",
    "quirks",
    "scheduler",
    "failures:",
    "seed:",
    "scenarios:",
    "schedules:",
    "CPU seconds:",
    "commit",
    "found",
)


def _row(campaign: Mapping[str, Any]) -> tuple[str, ...]:
    found = ", ".join(f"{_kind(each)} × {each['times']}" for each in campaign["findings"])
    return (
        code(campaign["driver"]),
        campaign["quirks"],
        code(campaign["scheduler"]),
        str(campaign["failures"]),
        str(campaign["seed"]),
        str(campaign["scenarios"]),
        f"{campaign['schedules']:,}",
        f"{campaign['cpu_seconds']:,.1f}",
        code(campaign["commit"]) if campaign.get("commit") else "",
        found or "nothing",
    )


def _kind(found: Mapping[str, Any]) -> str:
    return f"{found['kind']} {found['invariant']}"


def _found(
    campaigns: Sequence[Mapping[str, Any]], said: Sequence[Mapping[str, str]]
) -> list[tuple[str, str, str, str, str, str]]:
    """Put together what the campaigns of a driver found of a kind, with why."""
    why = {(each["driver"], each["quirks"], each["found"]): each["because"] for each in said}
    times: dict[tuple[str, str, str], int] = {}
    places: dict[tuple[str, str, str], set[str]] = {}
    for campaign in campaigns:
        for found in campaign["findings"]:
            key = (campaign["driver"].partition(":")[0], campaign["quirks"], _kind(found))
            times[key] = times.get(key, 0) + found["times"]
            places.setdefault(key, set()).update(found["scenarios"])
    return [
        (code(key[0]), key[1], key[2], f"{times[key]:,}", ", ".join(map(code, sorted(places[key]))), why[key])
        for key in sorted(times)
    ]
