"""A whole machine, with its checker, is put back before each execution: the same choices leave the same trace."""

import pytest
from attrs import evolve
from gpusvm.check import Checker
from gpusvm.errors import KernelError
from gpusvm.explore.checkpoint import Checkpoint
from gpusvm.kernel import SeededChoices
from gpusvm.machine import load_topology
from gpusvm.mm import Geometry
from gpusvm.plugins import load_drivers
from gpusvm.testing import Bench

PAGE = 4096


class World:
    def __init__(self, driver: str) -> None:
        self.bench = Bench(
            driver,
            mode="explored",
            choices=SeededChoices(0),
            geometry=Geometry(pmd_order=2),
            topology=evolve(load_topology("single"), ram_bytes=128 * PAGE),
            vram_bytes=16 * PAGE,
        )
        self.bench.kernel.tracer.on = True
        self.checker = Checker(self.bench.memory).attach()
        self.addr = self.bench.map(4 * PAGE)
        self.bench.cpu_write(self.addr, 4)

    def execute(self, seed: int) -> tuple:
        bench, kernel = self.bench, self.bench.kernel
        choices = SeededChoices(seed)
        kernel.choices = kernel.injector._choices = choices
        tasks = [
            kernel.spawn(lambda: bench.cpu_write(self.addr, 4), name="cpu"),
            kernel.spawn(lambda: bench.gpu_write(self.addr, 4), name="gpu"),
            kernel.spawn(lambda: bench.mm.munmap(self.addr, 2 * PAGE) if seed & 1 else None, name="unmap"),
        ]
        for task in tasks:
            try:
                task.join()
            except KernelError as error:
                kernel.tracer.emit("error", str(error))
        kernel.settle()
        self.checker.check_quiescent()
        held = [(zone.refcount.tobytes(), zone.token.tobytes()) for zone in bench.memory.pages.zones]
        bench.close()
        self.checker.check_quiescent()
        trace = repr(kernel.tracer.events).encode()
        return trace, choices.taken, choices.widths, kernel.now_ns, kernel.sched.steps, held


@pytest.mark.parametrize("driver", sorted(load_drivers()))
def test_fifty_executions_leave_the_traces_of_fresh_machines(driver):
    seeds = range(5)
    fresh = {}
    for seed in seeds:
        world = World(driver)
        fresh[seed] = world.execute(seed)
        world.bench.kernel.close()
    world = World(driver)
    saved = Checkpoint([world])
    for execution in range(50):
        seed = execution % 5
        again = world.execute(seed)
        assert again == fresh[seed]
        saved.restore()
    assert saved.array_bytes < 1 << 17  # what is put back is as small as the machine
    assert len({result[0] for result in fresh.values()}) > 1
