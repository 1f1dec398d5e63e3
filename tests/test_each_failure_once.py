"""Let every allocation, mapping, copy and populate of a program fail once, one at a time, on every driver.

One program takes memory through everything that a driver does with it. Every passing of every injection site in it is
made to fail, each on a machine of its own. What the program is refused then, it gets when it tries again; every read
sees the last write, the invariants of the machine hold as it goes on and at rest, and taking it down finds nothing that
was not given back.
"""

from collections.abc import Callable
from functools import partial

import attrs
import pytest
from gpusvm.check import Checker
from gpusvm.errors import CpuSignal, KernelError
from gpusvm.machine import load_topology
from gpusvm.mm import Geometry
from gpusvm.mm.api import MADV_DONTNEED, PROT_READ, PROT_WRITE
from gpusvm.run.costs import load_profile
from gpusvm.testing import Bench

SMALL = Geometry(pmd_order=2)
PAGE = SMALL.page_size
PMD = SMALL.pmd_size
SIZE = 4 * PMD
MACHINE = attrs.evolve(load_topology("single"), ram_bytes=4 << 20)

COSTS = load_profile("xe-bmg").costs  # with costs time passes, and timeslices end

# Ranges of every size on blocks of four pages.
SPECS = {
    "xe": "xe:chunk_sizes=16K+8K+4K,timeslice_ms=1",
    "nouveau": "nouveau",
    "dmirror": "dmirror",
    "svmdev": "svmdev:chunk_sizes=16K+8K+4K",
}


PARTS = 4  # of the failures, each a test of its own

# How many failures there are at least, lest the program tests nothing one day.
FEWEST = {"xe": 180, "nouveau": 80, "dmirror": 80, "svmdev": 180}


class Story:
    """Run the program on one machine; what a step was refused ends the step and no more."""

    def __init__(self, driver: str, *, iommu: bool) -> None:
        self.bench = Bench(
            SPECS[driver],
            geometry=SMALL,
            topology=MACHINE,
            vram_bytes=4 * PMD,
            quirks="fixed",
            costs=COSTS,
        )
        self.bench.driver.device.dma.iommu = iommu
        self.bench.driver.device.dma.need_unmap = iommu
        self.checker = Checker.of(self.bench.memory)
        self.addr = self.bench.map(SIZE)
        self.refused: list[str] = []

    def attempt(self, step: Callable[[], object]) -> None:
        """Do one step of the program, and again if it was refused: not twice for one failure."""
        try:
            step()
        except (KernelError, CpuSignal) as error:
            self.refused.append(str(error))
            step()

    def run(self) -> None:
        bench = self.bench
        addr, size = self.addr, SIZE
        pages = size // PAGE
        steps: list[Callable[[], object]] = [
            lambda: bench.cpu_write(addr, pages),
            lambda: bench.gpu_read(addr, pages),
            lambda: bench.gpu_write(addr + PAGE, 2),
            lambda: bench.vm.populate(addr, addr + size),
            lambda: bench.gpu_write(addr, pages),
            lambda: bench.cpu_read(addr + PAGE),
            lambda: bench.cpu_write(addr + PMD, 4),
            lambda: bench.vm.populate(addr, addr + 2 * PMD),
            lambda: bench.mm.mprotect(addr + PMD + PAGE, PAGE, PROT_READ),
            lambda: bench.cpu_write(addr + PMD),
            lambda: bench.mm.mprotect(addr + PMD + PAGE, PAGE, PROT_READ | PROT_WRITE),
            lambda: bench.gpu_read(addr, pages),
            lambda: bench.mm.munmap(addr + 2 * PMD + PAGE, PAGE),
            lambda: bench.gpu_write(addr + 2 * PMD, 1),
            lambda: bench.mm.madvise(addr + 3 * PMD, PMD, MADV_DONTNEED),
            lambda: bench.gpu_atomic(addr + 3 * PMD, 4),
            lambda: bench.cpu_read(addr + 3 * PMD, 4),
            self.fork,
            lambda: bench.vm.populate(addr, addr + PMD),
            lambda: bench.gpu_write(addr, 4),
            self.overcommit,
        ]
        for step in steps:
            self.attempt(step)
        self.look(addr, pages)

    def fork(self) -> None:
        """Have a child write what the device has, and end."""
        child = self.bench.mm.fork()
        try:
            self.bench.memory.cpu_write(child, self.addr)
        finally:
            child.exit()

    def overcommit(self) -> None:
        """Take more memory to the device than it has."""
        bench = self.bench
        other = bench.map(6 * PMD)
        for at in range(other, other + 6 * PMD, PMD):
            self.attempt(partial(bench.cpu_write, at, 4))
            self.attempt(partial(bench.vm.populate, at, at + PMD))
            self.attempt(partial(bench.gpu_write, at, 4))
        self.look(other, 24)

    def look(self, addr: int, pages: int) -> None:
        """Read every page that there is, from the CPU."""
        bench = self.bench
        for at in range(addr, addr + pages * PAGE, PAGE):
            with bench.mm.mmap_lock.read():
                mapped = bench.mm.vma_lookup(at) is not None
            if mapped:
                self.attempt(partial(bench.cpu_read, at))

    def end(self) -> None:
        bench = self.bench
        bench.kernel.settle()
        self.checker.check_quiescent()
        bench.close()


def told(driver: str, *, iommu: bool, site: str | None = None, nth: int = 1) -> tuple[Story, dict[str, int]]:
    """Run the program to its end, with one failure or none; how often each site was passed before the end began."""
    story = Story(driver, iommu=iommu)
    kernel = story.bench.kernel
    before = dict(kernel.inject_sites)
    if site is not None:
        kernel.arm(site, nth=nth)
    story.run()
    passed = {name: count - before.get(name, 0) for name, count in kernel.inject_sites.items()}
    story.end()
    return story, {name: count for name, count in passed.items() if count}


@pytest.mark.slow
@pytest.mark.parametrize("iommu", [False, True], ids=["direct", "iommu"])
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("driver", SPECS)
def test_each_failure_leaves_nothing_behind(driver: str, part: int, *, iommu: bool) -> None:
    story, passed = told(driver, iommu=iommu)
    assert story.refused == []
    assert FEWEST[driver] <= sum(passed.values())
    for site, count in passed.items():
        for nth in range(1 + part, count + 1, PARTS):
            story, _ = told(driver, iommu=iommu, site=site, nth=nth)
            assert story.bench.kernel.injector.failed == [site]
            assert len(story.refused) <= 1, (site, nth)


@pytest.mark.parametrize("driver", SPECS)
def test_the_first_failure_of_each_site_leaves_nothing_behind(driver: str) -> None:
    _, passed = told(driver, iommu=True)
    for site in passed:
        story, _ = told(driver, iommu=True, site=site)
        assert story.bench.kernel.injector.failed == [site]
        assert len(story.refused) <= 1, site
