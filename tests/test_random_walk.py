"""Small concurrent programs under random orders: no order may break what the model checks, on any driver."""

from collections.abc import Callable

import attrs
import pytest
from gpusvm.check import Checker
from gpusvm.errors import CpuSignal, KernelError
from gpusvm.explore import Program, random_walk
from gpusvm.kernel import Choices
from gpusvm.machine import load_topology
from gpusvm.mm import Geometry
from gpusvm.mm.api import PROT_READ
from gpusvm.testing import Bench

DRIVERS = ["xe", "nouveau", "dmirror", "svmdev", "kfd"]

# A PMD of 8 pages: every path exists, and a schedule is short.
SMALL = Geometry(pmd_order=3)

MACHINE = attrs.evolve(load_topology("single"), ram_bytes=64 << 20)

Body = Callable[[Bench, int], None]


def program(driver: str, *bodies: Body) -> Program:
    """Run each body as a task of its own on one written block of 8 pages, then check the machine and tear it down."""

    def run(choices: Choices) -> None:
        bench = Bench(
            driver,
            geometry=SMALL,
            topology=MACHINE,
            vram_bytes=4096 * 4096,
            quirks="fixed",
            mode="explored",
            choices=choices,
        )
        checker = Checker.of(bench.memory)
        addr = bench.map(8 * 4096)
        bench.cpu_write(addr, 8)
        tasks = [bench.kernel.spawn(body, bench, addr, name=body.__name__) for body in bodies]
        for task in tasks:
            task.join()
        bench.kernel.settle()
        checker.check_quiescent()
        bench.close()

    return run


def gpu_writes(bench: Bench, addr: int) -> None:
    """Write from the GPU; the memory may be gone or read-only by then."""
    try:
        bench.gpu_write(addr, 3)
    except KernelError:
        return


def gpu_atomics(bench: Bench, addr: int) -> None:
    try:
        bench.gpu_atomic(addr, 2)
    except KernelError:
        return


def populates(bench: Bench, addr: int) -> None:
    try:
        bench.vm.populate(addr, addr + 8 * 4096)
    except KernelError:
        return


def cpu_writes(bench: Bench, addr: int) -> None:
    try:
        bench.cpu_write(addr, 3)
    except CpuSignal:
        return


def unmaps_part(bench: Bench, addr: int) -> None:
    bench.mm.munmap(addr + 2 * 4096, 3 * 4096)


def protects(bench: Bench, addr: int) -> None:
    bench.mm.mprotect(addr, 4 * 4096, PROT_READ)


PROGRAMS: list[tuple[Body, ...]] = [
    (gpu_writes, cpu_writes),
    (gpu_writes, unmaps_part),
    (gpu_writes, cpu_writes, unmaps_part),
    (populates, cpu_writes, protects),
    (gpu_atomics, cpu_writes),
    (populates, gpu_writes, cpu_writes),
]


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("bodies", PROGRAMS, ids=lambda bodies: "-".join(body.__name__ for body in bodies))
def test_no_order_breaks_a_rule(driver: str, bodies: tuple[Body, ...]) -> None:
    findings = list(random_walk(program(driver, *bodies), schedules=20))
    assert not findings, f"schedule {findings[0].schedule}: {findings[0].error}"
