"""Measure what the conformance suite costs: CPU time and wall time for each shipped driver and profile.

    uv run python benchmarks/suite.py [--driver SPEC …] [--profile NAME …] [--jobs N]

Each row is a `gpusvm conform` of its own, as a user starts it: imports and the processes that it starts included. CPU
time is that of all its processes, so that rows can be compared between runs on a busy machine, too; wall time can not,
unless `load` (how many processes wanted a CPU when it began) is near 0. What comes out is kept in
docs/reference/conformance-cost.json, of which the page on the suite has a table; rows of other drivers stay.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

from gpusvm.conformance.suite import PROFILES
from gpusvm.plugins import load_drivers

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "reference" / "conformance-cost.json"
COMMAND = "python benchmarks/suite.py"


def measure(driver: str, profile: str, jobs: int) -> dict[str, object]:
    """Run the suite once."""
    arguments = ["conform", "--json", "--driver", driver, "--jobs", str(jobs)]
    arguments += [] if profile == "all" else ["--profile", profile]
    load, before, began_s = os.getloadavg()[0], resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", "from gpusvm.cli import main; main()", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    wall_s = time.perf_counter() - began_s
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    if done.returncode not in {0, 1}:
        raise SystemExit(done.stderr)
    ran = [each for each in json.loads(done.stdout)["results"] if each["status"] not in {"unsupported", "not-run"}]
    return {
        "driver": driver,
        "profile": profile,
        "checks": len(ran),
        "cpu_s": round(cpu_s, 1),
        "wall_s": round(wall_s, 1),
        "load": round(load, 1),
    }


def main() -> int:
    """Measure and write; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--driver", nargs="+", default=sorted(load_drivers()), metavar="SPEC", help="only these")
    parser.add_argument("--profile", nargs="+", default=["all", *PROFILES], metavar="NAME", help="only these, or all")
    parser.add_argument("--jobs", type=int, default=2, help="processes of each run")
    options = parser.parse_args()
    have = json.loads(RESULTS.read_text("utf-8"))["rows"] if RESULTS.is_file() else []
    rows = {(each["driver"], each["profile"]): each for each in have}
    for driver in options.driver:
        claimed = load_drivers()[driver.partition(":")[0]].capabilities
        profiles = [name for name, by in PROFILES.items() if by is None or getattr(claimed, by)]
        for profile in ("all", *profiles):
            if profile not in options.profile:
                continue
            rows[driver, profile] = found = measure(driver, profile, options.jobs)
            print(found, flush=True)
            order = ["all", *PROFILES]
            document = {"schema": 1, "command": COMMAND, "jobs": options.jobs}
            lines = ",\n".join(
                json.dumps(rows[key]) for key in sorted(rows, key=lambda key: (key[0], order.index(key[1])))
            )
            RESULTS.write_text(json.dumps(document)[:-1] + f', "rows": [\n{lines}\n]}}\n', "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
