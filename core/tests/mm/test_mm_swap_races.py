"""Pages that are swapped out and in at the same time."""

from contextlib import suppress

import pytest
from gpusvm.check import Checker
from gpusvm.errors import KernelError
from gpusvm.kernel import FirstChoice, SeededChoices
from gpusvm.mm.swap import swap_out

PAGE = 4096
BASE = 1 << 30


@pytest.mark.parametrize("seed", range(30))
def test_a_page_comes_back_before_it_is_gone_everywhere(lab, seed):
    one = lab(mode="explored", choices=FirstChoice())
    checker = Checker.of(one.memory)
    one.map(1)
    child = one.memory.fork(one.mm, "child")
    one.watch(one.mm, child)
    one.kernel.set_choices(SeededChoices(seed))

    def swap() -> None:
        with suppress(KernelError):  # somebody holds it just now
            swap_out(one.memory, one.mm, BASE)

    def read(mm) -> None:
        for _ in range(4):
            one.kernel.step()
            one.memory.cpu_read(mm, BASE)

    tasks = [
        one.kernel.spawn(swap, name="swap out"),
        one.kernel.spawn(read, one.mm, name="parent"),
        one.kernel.spawn(read, child, name="child"),
    ]
    for task in tasks:
        task.join()
    one.kernel.set_choices(FirstChoice())
    checker.check_quiescent()
    one.memory.mmu_interval_notifier_remove(one.watchers[1].sub)
    child.exit()
    one.read(0)
    one.mm.munmap(BASE, PAGE)
    assert one.memory.swap.used == {}
