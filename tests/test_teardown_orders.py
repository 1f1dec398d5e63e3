"""Take a machine apart in every order: file, process, a forked child, unplug, driver, module; nothing may be left.

Memory is on the device, some of it unmapped since and some of it shared with the child. Whoever lives on still reads
what was last written.
"""

from errno import EAGAIN, EBUSY
from itertools import permutations

import attrs
import pytest
from gpusvm.check import Checker
from gpusvm.errors import KernelError
from gpusvm.machine import load_topology
from gpusvm.mm import Geometry
from gpusvm.plugins import load_drivers
from gpusvm.testing import Bench

SMALL = Geometry(pmd_order=2)
PAGE = SMALL.page_size
PMD = SMALL.pmd_size
MACHINE = attrs.evolve(load_topology("single"), ram_bytes=4 << 20)
DRIVERS = ["xe", "nouveau", "dmirror", "svmdev", "kfd"]
INSTALLED = load_drivers()  # once, and not for each of two thousand orders
KEPT_BY_FILES = {"xe", "svmdev", "kfd"}  # the others can be removed from a device that is in use


class Ends:
    """Be a machine whose parts can end one by one."""

    def __init__(self, driver: str) -> None:
        self.name = driver
        self.bench = Bench(
            driver, drivers=INSTALLED, geometry=SMALL, topology=MACHINE, vram_bytes=16 * PMD, quirks="fixed"
        )
        self.checker = Checker.of(self.bench.memory)
        bench = self.bench
        self.addr = addr = bench.map(4 * PMD)
        bench.cpu_write(addr, 16)
        bench.vm.populate(addr, addr + 4 * PMD)
        bench.gpu_read(addr, 16)
        self.child = bench.mm.fork()
        bench.gpu_read(addr, 16)
        bench.mm.munmap(addr + 3 * PMD + PAGE, PAGE)  # leaves garbage behind
        self.alive = {"process", "child"}
        self.file_open = True

    def file(self) -> None:
        self.bench.machine.close(self.bench.process)
        self.file_open = False

    def process(self) -> None:
        self.bench.mm.mmput()
        self.alive.remove("process")

    def forked(self) -> None:
        self.child.exit()
        self.alive.remove("child")

    def unplug(self) -> None:
        self.bench.machine.unplug()

    def driver(self) -> None:
        self.bench.machine.remove()

    def module(self) -> None:
        self.bench.kernel.settle()
        self.bench.machine.unload(self.name)
        assert self.name not in self.bench.machine.modules

    @property
    def module_answer(self) -> int:
        """Say what unloading the module has to answer: 0, or an errno."""
        if self.name == "svmdev":
            return EBUSY
        self.bench.kernel.settle()
        # The pages of a drm_pagemap hold it: those of nouveau and dmirror belong to none.
        pages = self.name == "xe" and any(pgmap.ref > 1 for pgmap in self.bench.driver.dev_pagemaps())
        return EAGAIN if self.file_open or pages else 0

    def look(self) -> None:
        """Have whoever lives read all its memory; the contents are checked."""
        self.bench.kernel.settle()
        for name, mm in (("process", self.bench.mm), ("child", self.child)):
            if name in self.alive:
                pages = [i for i in range(16) if i != 13 or name == "child"]
                for i in pages:
                    self.bench.memory.cpu_read(mm, self.addr + i * PAGE)

    def finish(self) -> None:
        kernel, machine = self.bench.kernel, self.bench.machine
        kernel.settle()
        if self.name != "svmdev" and machine.modules:
            machine.unload(self.name)
            kernel.settle()
        machine.remove()
        kernel.settle()
        assert self.bench.memory.contents.mismatch_count == 0
        self.checker.check_quiescent()
        kernel.ledger.assert_empty()


def parts(driver: str) -> list[str]:
    return ["file", "process", "forked", *(["unplug"] if driver == "xe" else [])]


def orders(*more: str) -> list[tuple[str, tuple[str, ...]]]:
    return [(driver, order) for driver in DRIVERS for order in permutations([*parts(driver), *more])]


ORDERS = [*orders("driver"), *orders("module")]
ALL_ORDERS = orders("driver", "module")


def take_apart(driver: str, order: tuple[str, ...], *, looks: bool) -> None:
    """End the parts in order; a driver or a module that somebody keeps goes last."""
    ends = Ends(driver)
    for name in order:
        if name == "driver" and ends.file_open and driver in KEPT_BY_FILES:
            with pytest.raises(KernelError) as error:
                ends.driver()
            assert error.value.errno == EBUSY
        elif name == "module" and (answer := ends.module_answer):
            with pytest.raises(KernelError) as error:
                ends.module()
            assert error.value.errno == answer
        else:
            getattr(ends, name)()
        if looks:
            ends.look()
    ends.finish()


@pytest.mark.parametrize(
    ("driver", "order"), ORDERS, ids=lambda each: each if isinstance(each, str) else "-".join(each)
)
def test_nothing_is_left_in_any_order(driver: str, order: tuple[str, ...]) -> None:
    take_apart(driver, order, looks=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("driver", "order"), [*ORDERS, *ALL_ORDERS], ids=lambda each: each if isinstance(each, str) else "-".join(each)
)
def test_who_lives_on_reads_what_was_written(driver: str, order: tuple[str, ...]) -> None:
    take_apart(driver, order, looks=True)
