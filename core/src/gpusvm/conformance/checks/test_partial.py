"""IGT's partial-* and eviction families: a hole in what the GPU has used, and more memory than a device has.

xe_exec_system_allocator unmaps a half or the middle of a block between two batches, maps something new there or not,
reads it from a CPU before or not, and does stores or atomics. Its evict sections fill nine eighths of the VRAM, from
one process or from one for each engine.
"""

from typing import TYPE_CHECKING, Final

from gpusvm.conformance.agreement import agree, errno_of, no_more_than_the_process
from gpusvm.conformance.areas import huge, written
from gpusvm.conformance.family import every, family
from gpusvm.conformance.small import BLOCK, BLOCK_PAGES, PAGE, small
from gpusvm.conformance.suite import Lab, check
from gpusvm.driver import ACCESS_ATOMIC
from gpusvm.mm.api import PROT_READ, PROT_WRITE

if TYPE_CHECKING:
    from collections.abc import Callable

    from gpusvm.testing import Bench

_RW: Final = PROT_READ | PROT_WRITE
_IGT: Final = "IGT tests/intel/xe_exec_system_allocator.c"
_HOLES: Final = {"half": (0, BLOCK // 2), "middle": (BLOCK // 4, BLOCK // 2)}
_SIZES: Final = ("small", "huge")


def _cut(lab: Lab, use: "Callable[[Bench, int, int], None]", *, hole: str, again: str, cpu: str, size: str) -> None:
    bench = small(lab)
    addr = huge(bench) if size == "huge" else written(bench)
    use(bench, addr, BLOCK_PAGES)
    if cpu == "cpu":
        bench.cpu_read(addr + BLOCK - PAGE)
    offset, length = _HOLES[hole]
    bench.mm.munmap(addr + offset, length)
    if again == "remap":
        bench.mm.mmap(addr + offset, length, _RW)
        bench.cpu_write(addr + offset, length // PAGE)
        use(bench, addr + offset, length // PAGE)
    no_more_than_the_process(bench, addr)
    for first, end in _left(offset, length):
        use(bench, addr + first, (end - first) // PAGE)
        bench.cpu_read(addr + first, (end - first) // PAGE)
    if again == "remap":
        bench.cpu_read(addr, BLOCK_PAGES)
    else:
        fault = bench.fault(addr + offset)
        assert fault.errno in lab.info.refusals.access.unmapped, f"the hole was answered {fault.errno}"


def _left(offset: int, length: int) -> list[tuple[int, int]]:
    return [each for each in ((0, offset), (offset + length, BLOCK)) if each[0] < each[1]]


@family(
    "partial.atomic.{hole}.{again}-{cpu}",
    every(hole=_HOLES, again=("munmap", "remap"), cpu=("cpu", "no-cpu")),
    since="1.0",
    profile="atomics",
    ref=f"{_IGT}: partial-atomic-*; drivers/gpu/drm/drm_gpusvm.c:drm_gpusvm_range_set_unmapped",
)
def test_atomic(lab: Lab, hole: str, again: str, cpu: str) -> None:
    """Atomics go on beside a hole that {again} of the {hole} of a block leaves, with {cpu} touching it before."""

    def use(bench: "Bench", addr: int, pages: int) -> None:
        bench.gpu_atomic(addr, pages)

    _cut(lab, use, hole=hole, again=again, cpu=cpu, size="small")


@family(
    "partial.store.{hole}.{again}-{size}",
    every(hole=_HOLES, again=("munmap", "remap"), size=_SIZES),
    since="1.0",
    profile="device-memory",
    requires=("explicit_populate",),
    ref=f"{_IGT}: partial-*; mm/huge_memory.c:__split_huge_pmd_locked",
)
def test_store(lab: Lab, hole: str, again: str, size: str) -> None:
    """What is left of a {size} block on the device beside the {hole} that {again} changed is still used."""

    def use(bench: "Bench", addr: int, pages: int) -> None:
        bench.vm.populate(addr, addr + pages * PAGE)
        bench.gpu_write(addr, pages)

    _cut(lab, use, hole=hole, again=again, cpu="no-cpu", size=size)


# ---- more than there is room for

_ROOM: Final = 4
_BLOCKS: Final = _ROOM + _ROOM // 2


@family(
    "evict.{who}.{use}",
    every(who=("one-process", "two-processes"), use=("write", "prefetch", "atomic")),
    since="1.0",
    profile="device-memory",
    requires=("explicit_populate", "atomics"),
    ref=f"{_IGT}: evict-malloc, processes-evict-malloc; drivers/gpu/drm/drm_pagemap.c:drm_pagemap_evict_to_ram",
)
def test_evict(lab: Lab, who: str, use: str) -> None:
    """With half as much again as the device holds in use of {who} by {use}, everybody's memory is what it was."""
    bench = small(lab, vram_pages=_ROOM * BLOCK_PAGES)
    blocks = [written(bench) for _ in range(_BLOCKS)]
    mine, vms = bench.process, [bench.vm]
    users = [mine]
    if who == "two-processes":
        other = bench.machine.process("other")
        vms.append(bench.machine.open(other))
        users.append(other)
        for addr in blocks:
            other.mm.mmap(addr, BLOCK, _RW)
    try:
        for _ in range(2):
            for number, addr in enumerate(blocks):
                bench.vm, bench.process = vms[number % len(vms)], users[number % len(users)]
                _use(bench, addr, use)
        for bench.vm, bench.process in zip(vms, users, strict=True):
            for addr in blocks:
                bench.cpu_read(addr, BLOCK_PAGES)
    finally:
        bench.vm, bench.process = vms[0], mine
    for addr in (blocks[0], blocks[-1]):
        agree(lab, bench, addr, 1)


def _use(bench: "Bench", addr: int, use: str) -> None:
    if use == "prefetch":
        bench.vm.populate(addr, addr + BLOCK)
    if use == "atomic":
        bench.gpu_atomic(addr, 2)
    else:
        bench.gpu_write(addr, 2)
    bench.cpu_read(addr + BLOCK - PAGE)


@check(
    "evict.then-partial",
    since="1.0",
    profile="atomics",
    requires=("device_memory", "explicit_populate"),
    ref=f"{_IGT}: evict-malloc, partial-middle-munmap",
)
def test_then_partial(lab: Lab) -> None:
    """A block that was pushed out, and lost its middle then, is used where it is left, atomics among that."""
    bench = small(lab, vram_pages=_ROOM * BLOCK_PAGES)
    blocks = [written(bench) for _ in range(_BLOCKS)]
    for addr in blocks:
        bench.vm.populate(addr, addr + BLOCK)
        bench.gpu_write(addr, BLOCK_PAGES)
    first = blocks[0]
    bench.mm.munmap(first + BLOCK // 4, BLOCK // 2)
    errno = bench.fault(first + BLOCK // 2, ACCESS_ATOMIC).errno
    refusals = lab.info.refusals
    assert errno in refusals.atomic.unmapped, f"an atomic in the hole was answered {errno}"
    errno = errno_of(lambda: bench.gpu_atomic(first, 2))  # without room a driver may say so
    assert errno in {0} | refusals.atomic.contended | refusals.atomic.crowded, f"an atomic was answered {errno}"
    bench.cpu_read(first, BLOCK_PAGES // 4)
    bench.cpu_read(first + 3 * BLOCK // 4, BLOCK_PAGES // 4)
