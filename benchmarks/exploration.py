"""Print how many schedules a second exploration runs, and what bounds it.

    uv run python benchmarks/exploration.py                     every standard scenario on every driver
    uv run python benchmarks/exploration.py fault-munmap --driver xe --scheduler pct --schedules 2000
    uv run python benchmarks/exploration.py --jobs              how much faster two processes are than one

`steps` are the mean of an execution. `checked` is what `gpusvm explore` does, with every invariant checked at each
step, some executions looked at for their coverage and each 1000th repeated; `plain` leaves out the checker of
invariants (lockdep, the ledger, contents and the teardown's checks stay). Schedules per second of CPU time, the best of
several repetitions; compare figures of one sitting only. `--jobs` compares wall time, in turns, which means something
only where two CPUs are idle; `by CPU time` is what the processes' CPU time says that it could be at most.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator
from typing import Any

from gpusvm.explore.campaign import Campaign
from gpusvm.explore.exploring import explore
from gpusvm.explore.garbage import seldom_collected
from gpusvm.explore.scenario import Scenario, select_scenarios
from gpusvm.explore.schedulers import read_scheduler
from gpusvm.explore.world import World
from gpusvm.plugins import Registry, load_drivers

_REPETITIONS = 3
_PAIRS = 5


class Rate:
    """Run one scenario on one driver, with or without the checker, a number of schedules at a time."""

    def __init__(self, scenario: Scenario, driver: str, registry: Registry, *, spec: str, seed: int, checked: bool):
        self.campaign = Campaign(
            boot=lambda: World(scenario, driver, drivers=registry, checked=checked),
            scheduler=read_scheduler(spec).make(seed=seed),
        )
        self.best = 0.0
        self.failures: set[str] = set()

    def run(self, schedules: int) -> None:
        """Run so many more, the last of which began from the same machine as the first."""
        campaign = self.campaign
        before = campaign.schedules
        began = time.process_time()
        with seldom_collected():
            for _, execution in campaign.run(schedules=before + schedules):
                assert execution.failure is not None
                self.failures.add(f"{execution.failure.kind} {execution.failure.invariant}")
        self.best = max(self.best, (campaign.schedules - before) / (time.process_time() - began))


def rates(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Measure each scenario on each driver that it is for."""
    registry = load_drivers()
    for scenario in select_scenarios(options.scenario):
        for driver in options.driver or sorted(registry):
            if scenario.refuses(registry[driver.partition(":")[0]]):
                continue
            checked, plain = (
                Rate(scenario, driver, registry, spec=options.scheduler, seed=options.seed, checked=checked)
                for checked in (True, False)
            )
            for each in (checked, plain):
                each.run(1)  # boots
            for _ in range(_REPETITIONS):
                for each in (checked, plain):
                    each.run(options.schedules)
            yield {
                "scenario": scenario.name,
                "driver": driver,
                "steps": checked.campaign.steps / checked.campaign.schedules,
                "schedules_per_s": checked.best,
                "plain_per_s": plain.best,
                "failures": sorted(checked.failures | plain.failures),
            }


def jobs(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Compare two processes with one, in turns, on each scenario and driver."""
    registry = load_drivers()
    for scenario in select_scenarios(options.scenario):
        for driver in options.driver or sorted(registry):
            if scenario.refuses(registry[driver.partition(":")[0]]):
                continue
            ratios, limits = [], []
            for _ in range(_PAIRS):
                seconds, busy = {}, {}
                for count in (1, 2):
                    began, busy_before = time.perf_counter(), sum(os.times()[:4])
                    explore(
                        [scenario],
                        [driver],
                        scheduler=options.scheduler,
                        seed=options.seed,
                        schedules=options.schedules,
                        keep_going=True,
                        shrunk=False,
                        jobs=count,
                    )
                    seconds[count] = time.perf_counter() - began
                    busy[count] = sum(os.times()[:4]) - busy_before
                ratios.append(seconds[1] / seconds[2])
                limits.append(2 * busy[1] / busy[2])
            yield {
                "scenario": scenario.name,
                "driver": driver,
                "ratio": statistics.median(ratios),
                "ratios": ratios,
                "by_cpu_time": statistics.median(limits),
            }


def parser() -> argparse.ArgumentParser:
    """Return what reads the command line."""
    made = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("scenario", nargs="*", default=["standard"], help="as gpusvm explore takes them; standard")
    made.add_argument("--driver", action="append", help="a spec string, may be repeated; all that are installed")
    made.add_argument("--scheduler", default="random", help="random")
    made.add_argument("--schedules", type=int, help="of each repetition; 300, or 8192 with --jobs")
    made.add_argument("--seed", type=int, default=0, help="0")
    made.add_argument("--jobs", action="store_true", help=f"two processes against one, median of {_PAIRS} pairs")
    made.add_argument("--json", action="store_true", help="an array of objects instead of a table")
    return made


def main() -> None:
    """Print a line for each scenario and driver."""
    options = parser().parse_args()
    options.schedules = options.schedules or (8192 if options.jobs else 300)
    measured = []
    for row in jobs(options) if options.jobs else rates(options):
        measured.append(row)
        if options.json:
            continue
        if options.jobs:
            text = f"{row['ratio']:5.2f}  " + " ".join(f"{ratio:.2f}" for ratio in row["ratios"])
            text += f"  {row['by_cpu_time']:.2f} by CPU time"
        else:
            text = (
                f"{row['steps']:7.0f} steps {row['schedules_per_s']:7.0f} /s checked {row['plain_per_s']:7.0f} /s plain"
            )
            text += "".join(f"  {failure}" for failure in row["failures"])
        sys.stdout.write(f"{row['scenario']:<24} {row['driver']:<10} {text}\n")
        sys.stdout.flush()
    if options.json:
        sys.stdout.write(json.dumps(measured, indent=1) + "\n")


if __name__ == "__main__":
    main()
