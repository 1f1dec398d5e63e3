"""Print how much longer explored runs take with every invariant checked at each step.

    uv run python benchmarks/checking.py

The random walks of the drivers (tests/test_random_walk.py) and a churn of mm operations alone, each with and without a
`gpusvm.check.Checker`, in turns. CPU time, best of three; compare figures of one sitting only.
"""

import sys
import time
from collections.abc import Callable
from contextlib import suppress

import numpy as np
from gpusvm.check import Checker
from gpusvm.errors import CpuSignal, KernelError
from gpusvm.kernel import Kernel, SeededChoices
from gpusvm.machine import load_topology
from gpusvm.mm import Geometry, MemoryManager
from gpusvm.mm.api import MADV_DONTNEED, PROT_READ
from gpusvm.plugins import load_drivers
from gpusvm.testing import Bench

PAGE = 4096
BASE = 1 << 30
N = 24
RUNS = 20


def walk(driver: str, *, check: bool) -> Callable[[int], int]:
    """Let a GPU, a CPU and mprotect work on one block of 8 pages."""

    def run(seed: int) -> int:
        bench = Bench(
            driver,
            geometry=Geometry(pmd_order=3),
            topology=load_topology("single"),
            vram_bytes=4096 * PAGE,
            quirks="fixed",
            mode="explored",
            choices=SeededChoices(seed),
        )
        if check:
            Checker(bench.memory).attach()
        addr = bench.map(8 * PAGE)
        bench.cpu_write(addr, 8)

        def gpu() -> None:
            with suppress(KernelError):
                bench.gpu_write(addr, 3)

        def cpu() -> None:
            with suppress(CpuSignal):
                bench.cpu_write(addr, 3)

        def protect() -> None:
            bench.mm.mprotect(addr, 4 * PAGE, PROT_READ)

        for task in [bench.kernel.spawn(body, name=body.__name__) for body in (gpu, cpu, protect)]:
            task.join()
        bench.kernel.settle()
        steps = bench.kernel.sched.steps
        bench.close()
        return steps

    return run


def churn(*, thp: str, check: bool) -> Callable[[int], int]:
    """Let two CPUs touch what a third task maps, protects, discards and unmaps, in a family of two processes."""

    def run(seed: int) -> int:
        kernel = Kernel(mode="explored", choices=SeededChoices(seed))
        memory = MemoryManager(kernel, ram_pages=1024, geometry=Geometry(pmd_order=3), thp=thp)
        mm = memory.mm_alloc("p")
        if check:
            Checker(memory).attach()
        mm.mmap(BASE, N * PAGE, 3)

        def cpu(which: int) -> None:
            for k in range(60):
                page = (which * 7 + k * 5) % N
                with suppress(CpuSignal):
                    memory.cpu_access(mm, np.array([BASE // PAGE + page]), np.array([(which + k) % 3 > 0]))

        def syscalls() -> None:
            for k in range(30):
                start, length = BASE + (k * 5) % 16 * PAGE, (1 + k * 3 % 8) * PAGE
                with suppress(KernelError):
                    if k % 4 == 0:
                        mm.mprotect(start, length, PROT_READ)
                    elif k % 4 == 1:
                        mm.madvise(start, length, MADV_DONTNEED)
                    elif k % 4 == 2:
                        mm.munmap(start, length)
                    else:
                        mm.mmap(start, length, 3)
                        mm.mprotect(BASE, N * PAGE, 3)

        def family() -> None:
            for k in range(3):
                mm.fork(f"child {k}").exit()

        tasks = [kernel.spawn(cpu, which, name=f"cpu {which}") for which in (1, 2)]
        tasks += [kernel.spawn(syscalls, name="syscalls"), kernel.spawn(family, name="family")]
        for task in tasks:
            task.join()
        steps = kernel.sched.steps
        kernel.close()
        return steps

    return run


def compare(name: str, make: Callable[[bool], Callable[[int], int]]) -> None:
    """Time both, in turns, and print the ratio."""
    best = {False: float("inf"), True: float("inf")}
    steps = 0
    for _ in range(3):
        for check in (False, True):
            run = make(check)
            began = time.process_time()
            steps = sum(run(seed) for seed in range(RUNS))
            best[check] = min(best[check], time.process_time() - began)
    off, on = best[False] / steps * 1e6, best[True] / steps * 1e6
    sys.stdout.write(f"{name:<24} {steps // RUNS:>6} steps  {off:6.1f} us  {on:6.1f} us  ratio {on / off:.2f}\n")


def main() -> None:
    """Print a line for each program."""
    load_drivers()
    for driver in ("xe", "nouveau", "dmirror"):
        compare(f"walk, {driver}", lambda check, driver=driver: walk(driver, check=check))
    for thp in ("never", "always"):
        compare(f"mm churn, thp {thp}", lambda check, thp=thp: churn(thp=thp, check=check))


if __name__ == "__main__":
    main()
