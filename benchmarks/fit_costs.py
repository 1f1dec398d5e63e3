"""Fit a cost profile's constants to the measurements of one machine, and print them with their residuals.

    python benchmarks/fit_costs.py core/src/gpusvm/run/profiles/h100-costs.csv

prints what h100-pcie5.toml calls "measured" (a row's median) and "fitted" with a CSV family as its source.

A copy takes ``base + per_piece * pieces + per_byte * bytes``. The fit minimises the sum of squared *relative* errors,
which is linear least squares with each row divided by its time, so a 4 KiB copy counts as much as one of 64 MiB; no
constant may be negative. Rows whose three runs lie more than 30 % apart are left out, as the file's notes ask.
"""

import argparse
import csv
import itertools
from pathlib import Path
from typing import NamedTuple

import numpy as np

MAX_SPREAD_PCT = 30.0

# event -> the row whose median it is: family, detail, size_bytes
MEASURED = {
    "cpu_minor_fault_4k": ("host_fault", "first write of a 4 KiB page per_page of 16384", 4096),
    "zap_per_page": ("host_zap", "madvise DONTNEED 4 KiB pages per_page of 16384", 4096),
    "protect_per_page": ("host_mprotect", "write-protect 4 KiB pages per_page of 16384", 4096),
    "remote_access_latency": ("read_latency", "zero copy random per_hop gpu_time", 0),
}
# the same, but outside the limit on the spread: there is no better row, and the profile says so
MEASURED_ROUGHLY = {
    "cpu_minor_fault_2m": (
        "host_fault",
        "first write with MADV_HUGEPAGE per_2MiB of 32 (a huge page if the kernel gave one)",
        2097152,
    ),
}


class Row(NamedTuple):
    """One row of the file: times are nanoseconds."""

    family: str
    detail: str
    size_bytes: int
    count: int
    streams: int
    ns: float
    spread_pct: float


class Sample(NamedTuple):
    """One copy (or clear) to fit to."""

    nbytes: int
    pieces: int
    ns: float
    label: str


class Fit(NamedTuple):
    """The constants of one copy, and how far from the measurements they are (relative, signed: model - measured)."""

    base_ns: int
    per_piece_ns: int
    ns_per_byte: float
    residuals: tuple[tuple[str, float], ...]

    @property
    def rms(self) -> float:
        return float(np.sqrt(np.mean(np.square([value for _, value in self.residuals]))))

    @property
    def worst(self) -> tuple[str, float]:
        return max(self.residuals, key=lambda residual: abs(residual[1]))


def read_rows(path: Path) -> list[Row]:
    """Read the file; lines that begin with # are its notes."""
    with path.open(encoding="utf-8", newline="") as file:
        lines = csv.DictReader(line for line in file if not line.startswith("#"))
        return [
            Row(
                family=line["test"],
                detail=line["detail"],
                size_bytes=int(line["size_bytes"]),
                count=int(line["count"]),
                streams=int(line["streams"]),
                ns=float(line["median_us"]) * 1000,
                spread_pct=float(line["spread_pct"]),
            )
            for line in lines
        ]


def single_copies(rows: list[Row], direction: str) -> list[Sample]:
    """One contiguous copy."""
    return [
        Sample(row.size_bytes, 1, row.ns, f"{row.family} {row.size_bytes}")
        for row in rows
        if row.spread_pct <= MAX_SPREAD_PCT
        and (row.family, row.detail) in {("copy", direction), ("pages_contiguous", f"{direction} one copy")}
    ]


def gathered(rows: list[Row], direction: str) -> list[Sample]:
    """One kernel that copies scattered pages: of those launched with several widths, the widest (timed by the host)."""
    found: dict[int, tuple[int, Sample]] = {}
    for row in rows:
        if row.family != "pages_scattered" or row.detail.endswith("gpu_time") or row.spread_pct > MAX_SPREAD_PCT:
            continue
        if row.detail == f"{direction} kernel gather":
            blocks = 0
        elif row.detail.startswith(f"{direction} kernel zero copy blocks="):
            blocks = int(row.detail.rpartition("=")[2])
        else:
            continue
        sample = Sample(row.size_bytes, row.count, row.ns, f"{row.family} {row.count}")
        if row.count not in found or found[row.count][0] < blocks:
            found[row.count] = (blocks, sample)
    return [sample for _, sample in found.values()]


def queued(rows: list[Row], direction: str) -> list[Sample]:
    """Many copies in one stream, and one copy a page."""
    found = []
    for row in rows:
        if row.streams != 1 or row.spread_pct > MAX_SPREAD_PCT:
            continue
        if row.family == "copy_queued" and row.detail.startswith(f"{direction} "):
            many = int(row.detail.rpartition(" ")[2])
            label = f"{row.family} {many}x{row.size_bytes}"
            found.append(Sample(row.size_bytes * many, many, row.ns * many, label))
        elif row.family == "pages_scattered" and row.detail == f"{direction} one memcpyAsync a page":
            found.append(Sample(row.size_bytes, row.count, row.ns, f"{row.family} {row.count}"))
    return found


def fit(samples: list[Sample], *, with_pieces: bool = True) -> Fit:
    """Fit the constants, none below 0: of all subsets of constants that come out so, the one with least error."""
    design = np.array([(1, sample.pieces if with_pieces else 0, sample.nbytes) for sample in samples], dtype=float)
    times = np.array([sample.ns for sample in samples])
    scaled = design / times[:, None]
    best = (np.inf, np.zeros(3))
    for size in (1, 2, 3):
        for kept in itertools.combinations(range(3), size):
            part, *_ = np.linalg.lstsq(scaled[:, kept], np.ones(len(samples)), rcond=None)
            constants = np.zeros(3)
            constants[list(kept)] = part
            error = float(np.sum((scaled @ constants - 1) ** 2))
            if (constants >= 0).all() and error < best[0] - 1e-12:
                best = (error, constants)
    base, per_piece, per_byte = best[1]
    rounded = (round(base), round(per_piece), float(f"{per_byte:.5g}"))
    relative = design @ np.array(rounded) / times - 1
    labels = [sample.label for sample in samples]
    return Fit(*rounded, residuals=tuple(zip(labels, relative.tolist(), strict=True)))


def fit_copies(rows: list[Row]) -> dict[str, Fit]:
    """Fit both kinds of engine in the three directions, keyed like ``copy.gather.h2d``."""
    fits = {}
    for direction in ("h2d", "d2h", "d2d"):
        single = single_copies(rows, direction)
        fits[f"copy.gather.{direction}"] = fit(single + gathered(rows, direction))
        fits[f"copy.per_piece.{direction}"] = fit(single + queued(rows, direction))
    return fits


def fit_lines(rows: list[Row]) -> dict[str, Fit]:
    """Fit what is a base and a rate: clearing device memory, and copying by the CPU (whose rows are all rough)."""
    clear = [
        Sample(row.size_bytes, 1, row.ns, f"{row.family} {row.size_bytes}")
        for row in rows
        if row.family in {"memset", "clear_scattered"} and row.spread_pct <= MAX_SPREAD_PCT
    ]
    copy = [
        Sample(row.size_bytes, 1, row.ns, f"{row.family} {row.size_bytes}")
        for row in rows
        if row.family == "host_memcpy"
    ]
    pin = [
        Sample(0, row.count, row.ns, f"{row.detail} {row.count}")
        for row in rows
        if row.detail == "cudaHostRegister" and row.spread_pct <= MAX_SPREAD_PCT
    ]
    return {
        "bo_clear": fit(clear, with_pieces=False),
        "cpu_copy": fit(copy, with_pieces=False),
        "dma_map_per_folio": fit(pin),
    }


def remote_ns_per_byte(rows: list[Row]) -> float:
    """Take the rate of whole 128-byte lines read at random by many blocks."""
    (row,) = [
        row
        for row in rows
        if (row.family, row.detail[:15], row.count) == ("zero_copy_random", "128-byte lines ", 67584)
    ]
    return float(f"{row.ns / row.size_bytes:.5g}")


def measured(rows: list[Row]) -> dict[str, int]:
    """Look up the medians that are taken as they are."""
    by_name = {(row.family, row.detail, row.size_bytes): row for row in rows}
    return {event: round(by_name[name].ns) for event, name in {**MEASURED, **MEASURED_ROUGHLY}.items()}


def main() -> None:
    """Print everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("csv", type=Path, help="measurements, in the format of h100-costs.csv")
    parser.add_argument("--rows", action="store_true", help="also print the residual of every row")
    arguments = parser.parse_args()
    rows = read_rows(arguments.csv)
    print(f"{'constant':24} {'base_ns':>8} {'per_piece_ns':>12} {'ns_per_byte':>12} {'rms':>7}  worst row")
    for name, one in {**fit_copies(rows), **fit_lines(rows)}.items():
        label, value = one.worst
        print(
            f"{name:24} {one.base_ns:8} {one.per_piece_ns:12} {one.ns_per_byte:12.5g} {one.rms:7.1%}  "
            f"{value:+.1%} {label} ({len(one.residuals)} rows)"
        )
        if arguments.rows:
            for label, value in one.residuals:
                print(f"    {value:+7.1%}  {label}")
    print(f"{'remote_ns_per_byte':24} {remote_ns_per_byte(rows):34.5g}")
    for event, ns in measured(rows).items():
        print(f"{event:24} {ns:8}")


if __name__ == "__main__":
    main()
