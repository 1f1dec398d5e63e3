"""Measure what a lookup from a device page to its allocation takes on this machine, in C, in four ways.

    uv run python benchmarks/page_lookup.py                  compiles page_lookup.c with cc, runs it nine times
    uv run python benchmarks/page_lookup.py --runs 3 --json
    uv run python benchmarks/page_lookup.py --from benchmarks/page_lookup_h100.csv

The last prints what was measured on the host of the profile h100-pcie5, whose `page_index_load` is `constant()` of it.
For each way, number of allocations and walk between lookups: the median of the runs' medians, what that is more than
the pointer in the page for each dependent load, and how far the runs lie apart, of their median. A machine that has
something else to do shows it there.
"""

import argparse
import csv
import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, Final

SOURCE: Final = Path(__file__).with_name("page_lookup.c")
HEAD: Final = "way,allocations,walk_mib,loads,ns\n"
WAYS: Final = ("pointer", "tree", "locked tree", "radix")


def compiled(folder: Path) -> Path:
    """Compile the C program into `folder`; its path."""
    program = folder / "page_lookup"
    subprocess.run(["cc", "-O2", "-Wall", "-Wextra", "-Werror", "-o", str(program), str(SOURCE)], check=True)
    return program


def read(path: Path) -> tuple[str, list[str]]:
    """Return the processor's name and the output of each run in a file that --raw wrote."""
    first, _, rest = path.read_text("utf-8").partition("\n")
    return first.removeprefix("# "), [f"{HEAD}{each}" for each in rest.split(HEAD)[1:]]


def results(texts: Sequence[str]) -> list[dict[str, Any]]:
    """Put what several runs printed together: a row for each way, number of allocations and walk."""
    times: dict[tuple[str, int, int], list[float]] = {}
    loads: dict[tuple[str, int, int], float] = {}
    for text in texts:
        for row in csv.DictReader(io.StringIO(text)):
            key = row["way"], int(row["allocations"]), int(row["walk_mib"])
            times.setdefault(key, []).append(float(row["ns"]))
            loads[key] = float(row["loads"])
    found = []
    for (way, allocations, walk_mib), each in times.items():
        pointer = times["pointer", allocations, walk_mib]
        count = loads[way, allocations, walk_mib]
        found.append(
            {
                "way": way,
                "allocations": allocations,
                "walk_mib": walk_mib,
                "loads": count,
                "runs": len(each),
                "min_ns": min(each),
                "median_ns": median(each),
                "max_ns": max(each),
                "load_ns": round((median(each) - median(pointer)) / count, 1) if count else None,
            }
        )
    return found


def constant(rows: Sequence[dict[str, Any]]) -> int:
    """Return the ns of a dependent load that the core's own caches do not have: the median over tree and radix, 4 MiB
    walked, whatever the number of allocations.
    """
    found: list[float] = [row["load_ns"] for row in rows if row["walk_mib"] == 4 and row["way"] in {"tree", "radix"}]
    return round(median(found))


def table(rows: Sequence[dict[str, Any]], processor: str) -> str:
    """Return the rows for reading."""
    counts = sorted({row["allocations"] for row in rows})
    walks = sorted({row["walk_mib"] for row in rows})
    cells = {(row["walk_mib"], row["way"], row["allocations"]): row for row in rows}
    lines = [f"{processor}, {rows[0]['runs']} runs"]
    heads = "".join(f"{count:>9,}" for count in counts)
    lines.append(f"{'walk':<8}{'ns a lookup, of':<17}{heads}  {'a load, of':<11}{heads}".rstrip())
    for walk in walks:
        for way in WAYS:
            each = [cells[walk, way, count] for count in counts]
            loads = "".join(f"{row['load_ns']:>9.0f}" for row in each if row["load_ns"] is not None)
            medians = "".join(f"{row['median_ns']:>9,.0f}" for row in each)
            lines.append(f"{walk:>2} MiB  {way:<17}{medians}  {'':<11}{loads}".rstrip())
    lines.append("")
    lines.append(f"{'walk':<8}{'spread, %, of':<17}{heads}  {'loads, of':<11}{heads}")
    for walk in walks[1:]:
        for way in WAYS:
            each = [cells[walk, way, count] for count in counts]
            spread = "".join(f"{100 * (row['max_ns'] - row['min_ns']) / row['median_ns']:>9.0f}" for row in each)
            loads = "".join(f"{row['loads']:>9.1f}" for row in each)
            lines.append(f"{walk:>2} MiB  {way:<17}{spread}  {'':<11}{loads}")
    return "\n".join(lines) + "\n"


def processor_name() -> str:
    """Return what the machine says that it is."""
    for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
        if line.startswith("model name"):
            return f"{line.partition(':')[2].strip()}, {os.cpu_count()} CPUs"
    return "unknown processor"


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--raw", action="store_true", help="print what page_lookup prints, as --from reads it")
    parser.add_argument("--from", dest="file", type=Path, help="print what --raw has printed, here or elsewhere")
    options = parser.parse_args(arguments)
    if options.file is not None:
        processor, texts = read(options.file)
    else:
        processor = processor_name()
        with tempfile.TemporaryDirectory() as folder:
            program = compiled(Path(folder))
            texts = [
                subprocess.run([program], check=True, capture_output=True, text=True).stdout
                for _ in range(options.runs)
            ]
    if options.raw:
        sys.stdout.write("".join([f"# {processor}\n", *texts]))
        return 0
    rows = results(texts)
    if options.json:
        json.dump({"schema": 1, "processor": processor, "rows": rows}, sys.stdout, indent=1)
        sys.stdout.write("\n")
    else:
        sys.stdout.write(table(rows, processor))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
