"""Print what one GPU fault on xe costs with the profile xe-bmg: what was fitted to hardware, and what is predicted.

    uv run python benchmarks/calibration.py

The fitted rows are the measurement of the xe THP series (Francois Dugast, "Enable THP support in drm_pagemap",
dri-devel, 2026-01-05): two rows of five numbers, reproduced by constants whose derivation heads
core/src/gpusvm/run/profiles/xe-bmg.toml. The predicted rows follow from the same constants and nothing else; they are
what a measurement on hardware could refute.
"""

from collections.abc import Callable
from typing import Literal

from gpusvm.plugins import load_drivers
from gpusvm.run.costs import load_profile
from gpusvm.testing import Bench

KIB = 1 << 10
MIB = 1 << 20
PAGE = 4 * KIB
PMD = 2 * MIB

Thp = Literal["always", "never"]
Part = dict[str, float]

PARTS = ("fault", "migrate", "copy", "get_pages", "bind")
PUBLISHED: dict[Thp, Part] = {
    "never": {"fault": 966, "migrate": 942, "copy": 223, "get_pages": 9, "bind": 10},
    "always": {"fault": 132, "migrate": 128, "copy": 106, "get_pages": 1, "bind": 2},
}


def one_fault(thp: Thp, prepare: Callable[[Bench], int], spec: str = "xe") -> Part:
    """Serve one fault on what `prepare` made of a fresh machine; the us of its parts."""
    bench = Bench(spec, drivers=dict(load_drivers()), thp=thp, costs=load_profile("xe-bmg").costs)
    addr = prepare(bench)
    accounts, engine = bench.driver.accounts, bench.driver.tiles[0].engine
    stages, busy, allocated = accounts.stages(), engine.busy_ns, bench.kernel.charged["bo_alloc"]
    bench.fault(addr)
    costs = bench.kernel.costs
    objects = (bench.kernel.charged["bo_alloc"] - allocated) // costs.bo_alloc
    clear = objects * costs.bo_clear_ns(bench.vm.gpusvm.range_find(addr, addr + PAGE).size_bytes)
    after = accounts.stages()
    parts = {
        "fault": accounts.latency_ns[-1] / 1000,
        "migrate": (after["migrate"] - stages["migrate"]) / 1000,
        "copy": (engine.busy_ns - busy - clear) / 1000,
        "get_pages": (after["get_pages"] - stages["get_pages"]) / 1000,
        "bind": (after["bind"] - stages["bind"]) / 1000,
    }
    bench.close()
    return parts


def block(bench: Bench) -> int:
    """Write a whole 2 MiB block."""
    addr = bench.map(PMD)
    bench.cpu_write(addr, PMD // PAGE)
    return addr


def small(bench: Bench) -> int:
    """Write a mapping of 64 KiB, which gets a range of that size."""
    addr = bench.map(64 * KIB)
    bench.cpu_write(addr, 16)
    return addr


def holes(bench: Bench) -> int:
    """Write every other page of a block: the others have no source to be copied, mapped or unmapped."""
    addr = bench.map(PMD)
    for page in range(0, PMD // PAGE, 2):
        bench.cpu_write(addr + page * PAGE)
    return addr


def untouched(bench: Bench) -> int:
    """Map a block and write nothing."""
    return bench.map(PMD)


def resident(bench: Bench) -> int:
    """Bring a block to VRAM and make the GPU forget where it is."""
    addr = block(bench)
    bench.fault(addr)
    bench.mm.mprotect(addr, PAGE, 1)
    bench.mm.mprotect(addr, PAGE, 3)
    return addr


PREDICTED: tuple[tuple[str, Thp, Callable[[Bench], int], str], ...] = (
    ("one 64 KiB range of 4 KiB folios", "never", small, "xe"),
    ("one 2 MiB range, every other page a hole", "never", holes, "xe"),
    ("one 2 MiB range, untouched, as written", "always", untouched, "xe"),
    ("one 2 MiB range, untouched, hole_count fixed", "always", untouched, "xe:quirk.hole_count=fixed"),
    ("one 2 MiB range in RAM, mapped where it is", "always", block, "xe:tries=0"),
    ("one 2 MiB range in VRAM, 4 KiB folios, mapped again", "never", resident, "xe"),
)


def row(name: str, parts: Part, published: Part | None = None) -> str:
    """Format one line: us, and the error against what was published."""
    cells = []
    for part in PARTS:
        error = f" {100 * (parts[part] / published[part] - 1):+5.1f} %" if published else ""
        cells.append(f"{parts[part]:11.1f}{error}")
    return f"  {name:<52}" + "".join(cells)


def main() -> None:
    """Print both tables."""
    print("Fitted (us, and the error against the publication)")
    print(f"  {'':<52}" + "".join(f"{part:>11}{'':8}" for part in PARTS))
    for thp, name in (("never", "one 2 MiB range of 4 KiB folios"), ("always", "one 2 MiB range, one PMD folio")):
        print(row(name, one_fault(thp, block), PUBLISHED[thp]))
    print("\nPredicted from the same constants (us); nobody has published these")
    print(f"  {'':<52}" + "".join(f"{part:>11}" for part in PARTS))
    for name, thp, prepare, spec in PREDICTED:
        print(row(name, one_fault(thp, prepare, spec)))


if __name__ == "__main__":
    main()
