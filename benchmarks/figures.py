"""Print the figures that say whether the model keeps up with the hardware it models.

    uv run python benchmarks/figures.py            all of them, about three minutes
    uv run python benchmarks/figures.py faults     some: hits, faults, valid, growth, memory, realtime

Rates count CPU time and are the best of several repetitions; compare figures of one sitting only, as machines differ
and drift.
"""

import argparse
import gc
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from gpusvm.driver import ACCESS_WRITE
from gpusvm.gpu import READ, WRITE
from gpusvm.plugins import load_drivers
from gpusvm.run.costs import load_profile
from gpusvm.run.execute import execute
from gpusvm.run.spec import RunSpec
from gpusvm.testing import Bench, Fault
from gpusvm.workload import bundled

MIB = 1 << 20
PMD = 2 * MIB
PAGE = 4096
_NO_HUGE_PAGES = "NUMPY_MADVISE_HUGEPAGE"  # NumPy reads it when it is imported

Row = tuple[str, str]


def bench(spec: str, *, thp: Literal["always", "never"], vram_bytes: int = 8192 * MIB, checked: bool = False) -> Bench:
    """Put a driver on a machine with the costs of the measured one; unchecked, as `--no-checks` runs are."""
    return Bench(
        spec, thp=thp, vram_bytes=vram_bytes, costs=load_profile("h100-pcie5").costs, quirks="fixed", checked=checked
    )


def hits() -> Iterator[Row]:
    """Count accesses that find their translation, in batches of 4096."""
    b = bench("xe", thp="always")
    pages = 16384
    addr = b.map(pages * PAGE)
    b.cpu_write(addr, pages)
    b.gpu_read(addr, pages)
    table = b.vm.page_table
    vpns = (np.random.default_rng(1).integers(0, pages, 4096) + addr // PAGE).astype(np.int64)
    for name, need in (("reads", READ), ("writes", READ | WRITE)):
        needs = np.full(4096, need, np.uint8)
        rate = 0.0
        for _ in range(5):
            began = time.process_time()
            for _ in range(200):
                if not table.missing(vpns, needs).any():
                    table.access(vpns, needs)
            rate = max(rate, 200 * 4096 / (time.process_time() - began))
        yield f"hit {name}, random pages of 64 MiB", f"{rate / 1e6:.0f} M/s"


def faults() -> Iterator[Row]:
    """Count GPU faults that migrate 2 MiB of written memory, through every stage."""
    for checked in (False, True):
        for thp, name in (("always", "one 2 MiB folio"), ("never", "512 folios of 4 KiB")):
            rates = []
            for _ in range(3):
                b = bench("xe", thp=thp, checked=checked)  # type: ignore[arg-type]  # the two literals above
                blocks = 400 if thp == "always" else 120
                addr = b.map(blocks * PMD)
                b.cpu_write(addr, blocks * 512)
                rates.append(blocks / seconds(lambda b=b, addr=addr, n=blocks: touch(b, addr, n)))  # type: ignore[misc]
            suffix = ", lockdep and ledger on" if checked else ""
            yield f"2 MiB faults that migrate, {name}{suffix}", f"{max(rates):,.0f} /s"


def valid() -> Iterator[Row]:
    """Count GPU faults that find their range mapped, as most of a burst do."""
    b = bench("xe", thp="always")
    addr = b.map(PMD)
    b.cpu_write(addr, 512)
    touch(b, addr, 1)
    faults = 5120
    took_s = [seconds(lambda: touch(b, addr, faults, step=0)) for _ in range(5)]
    yield "faults on a range that is mapped", f"{faults / min(took_s):,.0f} /s"


def growth() -> Iterator[Row]:
    """Compare the cost of a fault among 1 k ranges of 64 KiB with that among 128 k."""
    per_fault = {}
    for ranges in (1024, 131072):
        b = bench("xe:chunk_sizes=64K+4K", thp="always", vram_bytes=16384 * MIB)
        addr = b.map(ranges * 65536)
        b.cpu_write(addr, ranges * 16)
        # All but the last 512 ranges first; then those, which are what is timed.
        touch(b, addr, ranges - 512, step=65536)
        last = addr + (ranges - 512) * 65536
        per_fault[ranges] = seconds(lambda b=b, last=last: touch(b, last, 512, step=65536)) / 512  # type: ignore[misc]
    small, large = per_fault[1024], per_fault[131072]
    yield "fault among 1 k ranges of 64 KiB", f"{small * 1e6:.0f} us"
    yield "fault among 128 k ranges", f"{large * 1e6:.0f} us, {large / small:.2f} x"


def memory() -> Iterator[Row]:
    """Measure the memory that each simulated 4 KiB page takes, mapped by small pages on the CPU and the GPU.

    Without huge pages for NumPy's arrays: each of a dozen arrays would count what it does not use of its last 2 MiB.
    """
    if os.environ.get(_NO_HUGE_PAGES) != "0":
        again = [sys.executable, __file__, "memory"]
        text = subprocess.run(
            again, env={**os.environ, _NO_HUGE_PAGES: "0"}, check=True, capture_output=True, text=True
        )
        what, value = text.stdout.strip().rsplit("  ", 1)
        yield what.strip(), value.strip()
        return
    b = bench("dmirror", thp="never")
    warm = b.map(PMD)
    b.cpu_write(warm, 512)
    b.gpu_read(warm, 512)
    gc.collect()
    before = resident_bytes()
    pages = 262144
    addr = b.map(pages * PAGE)
    b.cpu_write(addr, pages)
    b.gpu_read(addr, pages)
    yield "model state, 4 KiB page mapped by CPU and GPU", f"{(resident_bytes() - before) / pages:.0f} B"


def realtime() -> Iterator[Row]:
    """Divide simulated by wall time, trace by trace."""
    for workload in bundled():
        factors = []
        for driver in ("xe", "nouveau", "dmirror"):
            result = execute(RunSpec(driver=driver, workload=workload, vram_bytes=1024 * MIB, checked=False))
            factors.append(f"{driver} {result['sim_ns'] / 1e9 / result['wall_s']:.2f}")
        yield f"real-time factor, {workload}", ", ".join(factors)


def touch(b: Bench, addr: int, count: int, *, step: int = PMD) -> None:
    """Raise one write fault in each of `count` stretches, as many at once as the fault queue holds."""
    for first in range(0, count, 1024):
        faults = [
            Fault(addr + i * step, ACCESS_WRITE, time_ns=b.kernel.now_ns)
            for i in range(first, min(first + 1024, count))
        ]
        b.faults(faults)


def seconds(work: Callable[[], None]) -> float:
    """Time one call, without the collector."""
    gc.disable()
    began = time.process_time()
    work()
    took = time.process_time() - began
    gc.enable()
    return took


def resident_bytes() -> int:
    """Return the resident set of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


FIGURES: dict[str, Callable[[], Iterator[Row]]] = {
    "hits": hits,
    "faults": faults,
    "valid": valid,
    "growth": growth,
    "memory": memory,
    "realtime": realtime,
}


def main() -> None:
    """Print the figures asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figure", nargs="*", choices=[*FIGURES, []], help="which to print; default: all")
    names = parser.parse_args().figure or list(FIGURES)
    load_drivers()
    for name in names:
        for what, value in FIGURES[name]():
            sys.stdout.write(f"{what:<56} {value}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
