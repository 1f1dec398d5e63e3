"""Explore every scenario on every driver in several ways, and keep what breaks.

    uv run python benchmarks/survey.py --out survey                       300 schedules of each pair, in eight ways
    uv run python benchmarks/survey.py --out survey --first 300 --schedules 2000 xe-madvise-munmap --driver xe
    uv run python benchmarks/survey.py --out survey --summary             what there is by now
    uv run python benchmarks/survey.py --out survey --record docs/reference/campaigns.json

A way is a scheduler, a setting of the quirks and a number of injected failures. Each line of ``survey.jsonl`` in the
directory is the exploration of one pair in one way; what has its line there is left out when the same command is given
again, so that it may be interrupted at any time. Findings are beside it as ``gpusvm explore`` writes them, in a
directory for each setting of the quirks; `gpusvm replay FILE --explain` shows one. ``gpusvm explore all`` is the same
in one way and in one go. `--record` puts what each driver came to in each way into a file that is kept, of which the
page docs/reference/campaigns.md is made; what that had of the same driver, way, seed and schedules is replaced.
`--commit` says of which model: later ones may have mended what was found.
"""

import argparse
import json
import sys
import traceback
from collections import Counter
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

from gpusvm.explore.exploring import explore
from gpusvm.explore.result import Exploration
from gpusvm.explore.scenario import select_scenarios
from gpusvm.plugins import load_drivers

_LOG = "survey.jsonl"


def ways(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the ways in which each pair is explored, with what tells one line of the log from another."""
    return [
        {
            "scheduler": scheduler,
            "quirks": quirks,
            "failures": failures,
            "seed": options.seed,
            "first": options.first,
            "asked": options.schedules,
        }
        for failures, quirks, scheduler in product(options.failures, options.quirks, options.scheduler)
    ]


def survey(options: argparse.Namespace) -> None:
    """Explore what the log does not have yet."""
    registry = load_drivers()
    pairs = [
        (scenario, driver)
        for scenario in select_scenarios(options.scenario)
        for driver in options.driver or sorted(registry)
        if not scenario.refuses(registry[driver.partition(":")[0]])
    ]
    options.out.mkdir(parents=True, exist_ok=True)
    log = options.out / _LOG
    before = [json.loads(line) for line in log.read_text("utf-8").splitlines()] if log.exists() else []
    known = {_key(row) for row in before}
    left = [
        row
        for way in ways(options)
        for scenario, driver in pairs
        if _key(row := {"scenario": scenario.name, "driver": driver, **way}) not in known
    ]
    scenarios = {scenario.name: scenario for scenario, _ in pairs}
    began = perf_counter()
    for number, row in enumerate(left, start=1):
        out = options.out / row["quirks"]
        cpu_s = process_time()
        try:
            (exploration,) = explore(
                [scenarios[row["scenario"]]],
                [row["driver"]],
                scheduler=row["scheduler"],
                seed=row["seed"],
                first=row["first"],
                schedules=row["asked"],
                failures_max=row["failures"],
                quirks=row["quirks"],
                keep_going=True,
                jobs=options.jobs,
                shrunk=not options.no_shrink,
                out=out,
                registry=registry if options.jobs == 1 else None,
            ).results
        except Exception:  # noqa: BLE001  # one pair that cannot be explored must not end the survey
            row["error"] = traceback.format_exc()
        else:
            if exploration.interrupted:
                return
            row.update(_counts(exploration))
        row["cpu_seconds"] = round(process_time() - cpu_s, 2)  # shrinking included
        with log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        left_s = (perf_counter() - began) / number * (len(left) - number)
        sys.stderr.write(f"{number}/{len(left)}, {left_s / 60:.0f} min left: {_line(row)}\n")


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    names = ("scenario", "driver", "scheduler", "quirks", "failures", "seed", "first", "asked")
    return tuple(row[name] for name in names)


def _counts(exploration: Exploration) -> dict[str, Any]:
    return {
        "schedules": exploration.schedules,
        "steps": exploration.steps,
        "seconds": round(exploration.seconds, 2),
        "exhausted": exploration.exhausted,
        "findings": [
            {
                "kind": found.finding.kind,
                "invariant": found.finding.invariant,
                "schedule": found.schedule,
                "times": found.times,
                "message": found.finding.message.partition("\n")[0],
                "file": None if found.file is None else str(found.file),
            }
            for found in exploration.findings
        ],
    }


def _line(row: dict[str, Any]) -> str:
    what = "".join(f"  {found['kind']} {found['invariant']} x{found['times']}" for found in row.get("findings", ()))
    if "error" in row:
        what = "  " + row["error"].splitlines()[-1]
    way = f"{row['scheduler']}, {row['quirks']}, failures {row['failures']}"
    return f"{row['scenario']} on {row['driver']} ({way}){what}"


def summarize(out: Path) -> None:
    """Print what was explored in each way, and each kind of finding with the pairs that show it."""
    rows = [json.loads(line) for line in (out / _LOG).read_text("utf-8").splitlines()]
    explored: Counter[tuple[str, str, int]] = Counter()
    pairs: Counter[tuple[str, str, int]] = Counter()
    shown: dict[tuple[str, str, str, str], list[str]] = {}
    for row in rows:
        way = (row["quirks"], row["scheduler"], row["failures"])
        explored[way] += row.get("schedules", 0)
        pairs[way] += 1
        if "error" in row:
            shown.setdefault((row["quirks"], row["driver"], "error", "survey"), []).append(_line(row))
        for found in row.get("findings", ()):
            key = (row["quirks"], row["driver"], found["kind"], found["invariant"])
            shown.setdefault(key, []).append(f"{row['scenario']} {found['file']}: {found['message'][:200]}")
    for way in sorted(explored):
        quirks, scheduler, failures = way
        sys.stdout.write(
            f"{quirks}, {scheduler}, failures {failures}: {explored[way]} schedules of {pairs[way]} pairs\n"
        )
    for (quirks, driver, kind, invariant), files in sorted(shown.items()):
        sys.stdout.write(f"\n{quirks} {driver}: {kind} {invariant}\n")
        for file in dict.fromkeys(files):
            sys.stdout.write(f"    {file}\n")


_WAY = ("driver", "quirks", "scheduler", "failures", "seed", "first", "asked")


def record(out: Path, into: Path, commit: str) -> None:
    """Put the totals of each driver in each way into the file that is kept, explored with the model of `commit`."""
    told = json.loads(into.read_text("utf-8"))["campaigns"] if into.exists() else []
    kept = {tuple(campaign[name] for name in _WAY): campaign for campaign in told}
    for campaign in totals([json.loads(line) for line in (out / _LOG).read_text("utf-8").splitlines()]):
        kept[tuple(campaign[name] for name in _WAY)] = {**campaign, "commit": commit}
    lines = ",\n".join(json.dumps(campaign) for _, campaign in sorted(kept.items()))
    into.write_text('{"schema": 1, "campaigns": [\n' + lines + "\n]}\n", "utf-8")


def totals(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what each driver came to in each way: scenarios, schedules, CPU seconds, and findings by kind."""
    by_way: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        if "error" not in row:
            by_way.setdefault(tuple(row[name] for name in _WAY), []).append(row)
    campaigns = []
    for way, explored in sorted(by_way.items()):
        findings: dict[tuple[str, str], dict[str, int]] = {}
        for row in explored:
            for found in row["findings"]:
                where = findings.setdefault((found["kind"], found["invariant"]), {})
                where[row["scenario"]] = where.get(row["scenario"], 0) + found["times"]
        campaigns.append(
            {
                **dict(zip(_WAY, way, strict=True)),
                "scenarios": len({row["scenario"] for row in explored}),
                "schedules": sum(row["schedules"] for row in explored),
                "steps": sum(row["steps"] for row in explored),
                "cpu_seconds": round(sum(row["cpu_seconds"] for row in explored), 1),
                "findings": [
                    {"kind": kind, "invariant": invariant, "times": sum(where.values()), "scenarios": sorted(where)}
                    for (kind, invariant), where in sorted(findings.items())
                ],
            }
        )
    return campaigns


def parser() -> argparse.ArgumentParser:
    """Return what reads the command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("scenario", nargs="*", default=["all"], help="as gpusvm explore takes them; all")
    made.add_argument("--driver", action="append", help="a spec string, may be repeated; all that are installed")
    made.add_argument("--scheduler", action="append", help="may be repeated; pct and random")
    made.add_argument("--quirks", action="append", choices=("fixed", "as_written"), help="may be repeated; both")
    made.add_argument("--failures", action="append", type=int, help="may be repeated; 0 and 1")
    made.add_argument("--schedules", type=int, default=300, help="of each pair in each way; 300")
    made.add_argument("--first", type=int, default=0, help="number of the first schedule; 0")
    made.add_argument("--seed", type=int, default=0, help="0")
    made.add_argument("--jobs", type=int, default=1, help="processes; 1")
    made.add_argument("--no-shrink", action="store_true", help="keep findings as they were found")
    made.add_argument("--out", type=Path, required=True, help="directory of the log and of the findings")
    made.add_argument("--summary", action="store_true", help="say what there is in the directory by now")
    made.add_argument("--record", type=Path, metavar="FILE", help="put the totals of what there is into a file")
    made.add_argument("--commit", default="", help="with --record: the commit whose model was explored")
    return made


def main() -> None:
    """Explore, or say what was found."""
    options = parser().parse_args()
    options.scheduler = options.scheduler or ["pct", "random"]
    options.quirks = options.quirks or ["fixed", "as_written"]
    options.failures = options.failures or [0, 1]
    if options.record:
        record(options.out, options.record, options.commit)
        return
    if not options.summary:
        survey(options)
    summarize(options.out)


if __name__ == "__main__":
    main()
