"""Run each driver through one scenario on a checked kernel, and write down the lock order that lockdep saw."""

from pathlib import Path

from gpusvm.mm.api import PROT_READ
from gpusvm.run.costs import load_profile
from gpusvm.testing import Bench

from generators.markdown import NOTICE
from generators.shipped import SHIPPED, info_of

__all__ = ["page"]

BLOCKS = 8
PMD = 2 << 20

HEAD = f"""\
# Lock order

{NOTICE}

What lockdep saw in one scenario with each driver: CPU writes over {BLOCKS} blocks of 2 MiB, GPU reads, writes and
atomics, CPU touches of what moved, explicit populates with VRAM for half of the blocks, mprotect, munmap, teardown.
`A > B`: B was taken while A was held. What follows from two other lines is left out.
[Locking](../explanation/locking.md) explains it; an order that contradicts one seen before ends a checked run with both
places named."""


def page(root: Path) -> str:
    """Return docs/reference/lock-order.md."""
    lines = [HEAD]
    for name in SHIPPED:
        lines += ["", f"## {name}", "", "```text", *_reduced(_observe(name)), "```"]
    return "\n".join(lines) + "\n"


def _observe(name: str) -> dict[str, set[str]]:
    """Return, for each lock class, those taken while it was held."""
    # With costs virtual time moves; without it a timeslice would never end.
    costs = load_profile("xe-bmg").costs
    bench = Bench(name, drivers={name: info_of(name)}, vram_bytes=BLOCKS // 2 * PMD, costs=costs)
    pages = PMD >> bench.memory.geometry.page_shift
    addr = bench.map(BLOCKS * PMD)
    bench.cpu_write(addr, BLOCKS * pages)
    bench.gpu_read(addr, pages)
    bench.gpu_write(addr, pages)
    bench.cpu_read(addr, pages)
    bench.gpu_atomic(addr, 4)
    bench.cpu_write(addr, 4)
    for block in range(BLOCKS):
        bench.vm.populate(addr + block * PMD, addr + (block + 1) * PMD)
    bench.cpu_read(addr, BLOCKS * pages)
    bench.mm.mprotect(addr, PMD, PROT_READ)
    bench.mm.munmap(addr + PMD, PMD)
    bench.kernel.settle()
    bench.gpu_read(addr + 2 * PMD, pages)
    bench.close()
    classes = bench.kernel.lockdep._classes.values()
    return {str(cls): {str(after) for after in cls.after} for cls in classes if cls.after}


def _reduced(after: dict[str, set[str]]) -> list[str]:
    """Leave out what two other lines say together; the order has no cycle, lockdep saw to that."""
    return sorted(
        f"{outer} > {each}"
        for outer, inner in after.items()
        for each in inner
        if not any(each in _reach(after, between) for between in inner if between != each)
    )


def _reach(after: dict[str, set[str]], start: str) -> set[str]:
    seen: set[str] = set()
    todo = [start]
    while todo:
        for each in after.get(todo.pop(), ()):
            if each not in seen:
                seen.add(each)
                todo.append(each)
    return seen
