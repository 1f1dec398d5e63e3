"""Several tasks do to processes and devices what random walks do, in explored order; there is no second model here.

What must hold is what always holds: the invariants in every page-table-lock section, contents, and that nothing is
left at the end. What an operation answers depends on the order, so only that it is an errno or a signal of the ordinary
kind.

MADV_DONTNEED and MADV_FREE are left out: they need no more than the lock of one area, so they run beside
MIGRATE_TO_DEV, whose last step (test_hmm.c:dmirror_migrate_finalize_and_map) stores what moved without asking whether
a CLEAR came meanwhile. Walks with them find device reads of pages that are free, which is what the driver does.
"""

import errno
import random
import signal

import pytest
from attrs import evolve
from dmirror_world import BASE, PAGE, PAGES, Setting, World
from gpusvm.errors import CpuSignal, KernelError
from gpusvm.kernel import SeededChoices
from gpusvm.mm.api import MREMAP_FIXED, MREMAP_MAYMOVE

TASKS, STEPS = 3, 12
USUAL = {errno.EFAULT, errno.EPERM, errno.ENOMEM, errno.ENOENT, errno.EINVAL, errno.EBUSY, errno.EAGAIN}


def at(page):
    return BASE + page * PAGE


class Tasks:
    """Draw what each task does, and let them run."""

    def __init__(self, seed, steps=STEPS, **setting):
        rng = random.Random(seed)
        choices = SeededChoices(seed)
        self.world = World(evolve(Setting(**setting), check_every=10**9), mode="explored", choices=choices)
        self.world.do_fork(0)
        self.pairs = list(self.world.pairs)
        for pair in self.pairs:
            for dev in (0, 1, 3):
                self.world.file(pair, dev)
        self.plans = [[self.draw(rng) for _ in range(steps)] for _ in range(TASKS)]

    def draw(self, rng):
        name = rng.choice(["read", "write", "dread", "dwrite", "to", "to", "from", "protect", "move", "evict"])
        page = rng.randrange(0, PAGES // 2, rng.choice([1, 4]))
        return name, rng.choice(self.pairs), rng.choice([0, 1, 3]), page, rng.choice([1, 2, 4, 8]), rng.random()

    def do(self, name, pair, dev, page, n, chance):
        memory, mm, ioctl = self.world.memory, pair.mm, pair.files[dev].ioctl
        if name in {"read", "write"}:
            for each in range(page, page + n):
                (memory.cpu_read if name == "read" else memory.cpu_write)(mm, at(each))
        elif name == "dread":
            ioctl.read(at(page), n)
        elif name == "dwrite":
            ioctl.write(at(page), n)
        elif name == "to":
            ioctl.migrate_to_dev(at(page), n)
        elif name == "from":
            ioctl.migrate_to_sys(at(page), n)
        elif name == "protect":
            mm.mprotect(at(page), n * PAGE, 3 if chance < 0.7 else 1)
        elif name == "move":
            flags = MREMAP_MAYMOVE | MREMAP_FIXED
            mm.mremap(at(page), n * PAGE, n * PAGE, flags=flags, new_addr=at(PAGES // 2 + page))
        else:
            self.world.devices[dev].evict()

    def run(self, plan):
        for step in plan:
            try:
                self.do(*step)
            except KernelError as error:
                if error.errno not in USUAL:
                    raise
            except CpuSignal as error:
                if error.signal != signal.SIGSEGV:
                    raise


def walk(one):
    world = one.world
    tasks = [world.kernel.spawn(one.run, plan, name=f"task{i}") for i, plan in enumerate(one.plans)]
    for task in tasks:
        task.join()
    assert world.memory.contents.mismatch_count == 0, world.memory.contents.mismatches
    world.finish()


@pytest.mark.parametrize("thp", ["never", "always"])
@pytest.mark.parametrize("seed", range(12))
def test_tasks_in_any_order(seed, thp):
    walk(Tasks(seed, thp=thp, pmd_order=2))


def test_a_page_that_comes_home_while_its_area_is_merged():
    # The area that went was forgotten before the one that took it in had grown, so the walk of the rmap found neither.
    walk(Tasks(1175, 20, thp="always", pmd_order=2))
