"""A process changes its memory behind the GPU's back: every kind of memory times everything that can happen to it.

IGT changes memory between two executions of a GPU (partial munmap and remap, mremap with and without DONTUNMAP, fork,
race); NVIDIA's tests and hmm-tests add mprotect, discarding and splitting. After each change both sides are asked for
each page, and what the process may no longer do the GPU must not do any more without being told.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import numpy as np

from gpusvm.conformance.agreement import agree, no_more_than_the_process
from gpusvm.conformance.areas import AREAS, DEVICE_AREAS, fork
from gpusvm.conformance.family import every, family
from gpusvm.conformance.small import BLOCK, BLOCK_PAGES, PAGE, small
from gpusvm.conformance.suite import Lab
from gpusvm.errors import KernelError
from gpusvm.mm.api import (
    MADV_COLLAPSE,
    MADV_DONTNEED,
    MADV_FREE,
    MADV_NOHUGEPAGE,
    MREMAP_DONTUNMAP,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    PROT_NONE,
    PROT_READ,
    PROT_WRITE,
)
from gpusvm.mm.swap import swap_out

if TYPE_CHECKING:
    from gpusvm.mm import MmStruct
    from gpusvm.testing import Bench

Change = Callable[["Bench", int], int]
"""Change the block at an address; where to look at it then."""

_RW: Final = PROT_READ | PROT_WRITE
_MIDDLE: Final = 4 * PAGE
_HALF: Final = BLOCK // 2


def _munmap_half(bench: "Bench", addr: int) -> int:
    bench.mm.munmap(addr, _HALF)
    return addr


def _munmap_middle(bench: "Bench", addr: int) -> int:
    bench.mm.munmap(addr + _MIDDLE, _HALF)
    return addr


def _munmap_page(bench: "Bench", addr: int) -> int:
    bench.mm.munmap(addr + 7 * PAGE, PAGE)
    return addr


def _remap_middle(bench: "Bench", addr: int) -> int:
    bench.mm.munmap(addr + _MIDDLE, _HALF)
    bench.mm.mmap(addr + _MIDDLE, _HALF, _RW)
    return addr


def _remap_over(bench: "Bench", addr: int) -> int:
    bench.mm.mmap(addr, BLOCK, _RW)
    return addr


def _move(bench: "Bench", addr: int, *, to: int, flags: int = 0) -> int:
    bench.mm.mremap(addr, BLOCK, BLOCK, flags=MREMAP_MAYMOVE | MREMAP_FIXED | flags, new_addr=to)
    no_more_than_the_process(bench, addr)
    return to


def _mremap(bench: "Bench", addr: int) -> int:
    return _move(bench, addr, to=bench.map(BLOCK))


def _mremap_unaligned(bench: "Bench", addr: int) -> int:
    return _move(bench, addr, to=bench.map(2 * BLOCK) + 4 * PAGE)


def _mremap_dontunmap(bench: "Bench", addr: int) -> int:
    to = _move(bench, addr, to=bench.map(BLOCK), flags=MREMAP_DONTUNMAP)
    bench.cpu_read(addr, BLOCK_PAGES)
    bench.gpu_write(addr)
    return to


def _mremap_read_only(bench: "Bench", addr: int) -> int:
    bench.mm.mprotect(addr, BLOCK, PROT_READ)
    to = _move(bench, addr, to=bench.map(BLOCK))
    bench.mm.mprotect(to, BLOCK, _RW)
    return to


def _read_only(bench: "Bench", addr: int) -> int:
    bench.mm.mprotect(addr, BLOCK, PROT_READ)
    return addr


def _read_only_middle(bench: "Bench", addr: int) -> int:
    bench.mm.mprotect(addr + _MIDDLE, _HALF, PROT_READ)
    return addr


def _none_and_back(bench: "Bench", addr: int) -> int:
    bench.mm.mprotect(addr, BLOCK, PROT_NONE)
    no_more_than_the_process(bench, addr)
    bench.mm.mprotect(addr, BLOCK, _RW)
    return addr


def _none_in_part(bench: "Bench", addr: int) -> int:
    bench.mm.mprotect(addr + _MIDDLE, _HALF, PROT_NONE)
    return addr


def _dontneed(bench: "Bench", addr: int) -> int:
    bench.mm.madvise(addr, BLOCK, MADV_DONTNEED)
    return addr


def _dontneed_page(bench: "Bench", addr: int) -> int:
    bench.mm.madvise(addr + 7 * PAGE, PAGE, MADV_DONTNEED)
    return addr


def _free(bench: "Bench", addr: int) -> int:
    bench.mm.madvise(addr, BLOCK, MADV_FREE)
    return addr


def _split(bench: "Bench", addr: int) -> int:
    bench.mm.madvise(addr + _MIDDLE, _HALF, MADV_NOHUGEPAGE)
    return addr


def _collapse(bench: "Bench", addr: int) -> int:
    with suppress(KernelError):  # of what is on the device it makes nothing
        bench.mm.madvise(addr, BLOCK, MADV_COLLAPSE)
    return addr


def _swap(bench: "Bench", addr: int) -> int:
    bench.cpu_read(addr, BLOCK_PAGES)  # nothing but RAM is swapped out
    for page in range(BLOCK_PAGES):
        swap_out(bench.memory, bench.mm, addr + page * PAGE)
    return addr


def _cpu_writes(bench: "Bench", addr: int) -> int:
    bench.cpu_write(addr, BLOCK_PAGES)
    return addr


def _of_child(bench: "Bench", child: "MmStruct", addr: int, *, write: bool) -> None:
    first = addr // PAGE
    bench.memory.cpu_access(child, np.arange(first, first + BLOCK_PAGES), np.full(BLOCK_PAGES, write))


def _fork_child_writes(bench: "Bench", addr: int) -> int:
    _of_child(bench, fork(bench, "forked"), addr, write=True)
    return addr


def _fork_parent_writes(bench: "Bench", addr: int) -> int:
    child = fork(bench, "forked")
    bench.cpu_write(addr, BLOCK_PAGES)
    _of_child(bench, child, addr, write=False)
    return addr


def _fork_gpu_writes(bench: "Bench", addr: int) -> int:
    child = fork(bench, "forked")
    bench.gpu_write(addr, BLOCK_PAGES)
    _of_child(bench, child, addr, write=False)
    return addr


def _fork_child_ends(bench: "Bench", addr: int) -> int:
    fork(bench, "forked")
    bench.machine.processes.pop().mm.mmput()
    return addr


def _reopen(bench: "Bench", addr: int) -> int:
    bench.machine.close(bench.process)
    bench.vm = bench.vms[0] = bench.machine.open(bench.process)
    return addr


CHANGES: Final[Mapping[str, Change]] = {
    "munmap-half": _munmap_half,
    "munmap-middle": _munmap_middle,
    "munmap-page": _munmap_page,
    "remap-middle": _remap_middle,
    "remap-over": _remap_over,
    "mremap": _mremap,
    "mremap-unaligned": _mremap_unaligned,
    "mremap-dontunmap": _mremap_dontunmap,
    "mremap-read-only": _mremap_read_only,
    "read-only": _read_only,
    "read-only-middle": _read_only_middle,
    "none-and-back": _none_and_back,
    "none-in-part": _none_in_part,
    "dontneed": _dontneed,
    "dontneed-page": _dontneed_page,
    "free": _free,
    "split": _split,
    "collapse": _collapse,
    "swap": _swap,
    "cpu-writes": _cpu_writes,
    "fork-child-writes": _fork_child_writes,
    "fork-parent-writes": _fork_parent_writes,
    "fork-gpu-writes": _fork_gpu_writes,
    "fork-child-ends": _fork_child_ends,
    "reopen": _reopen,
}

_REF: Final = "mm/mmu_notifier.c:__mmu_notifier_invalidate_range_start; drivers/gpu/drm/drm_gpusvm.c:invalidate"


def _changed(lab: Lab, kinds: Mapping[str, Callable[["Bench"], int]], kind: str, change: str) -> None:
    bench = small(lab)
    addr = kinds[kind](bench)
    bench.gpu_write(addr, BLOCK_PAGES)
    where = CHANGES[change](bench, addr)
    bench.kernel.settle()
    agree(lab, bench, where)
    bench.kernel.settle()
    no_more_than_the_process(bench, addr)


@family(
    "change.{change}.{kind}",
    every(
        change=CHANGES,
        kind=("small", "huge", "shared"),
        without=[("free", "shared"), ("swap", "shared"), ("collapse", "shared")],  # not for what is not anonymous
    ),
    since="1.0",
    ref=_REF,
)
def test_change(lab: Lab, change: str, kind: str) -> None:
    """After {change} of {kind} memory the GPU has no more than the process, and both see what was written last."""
    _changed(lab, AREAS, kind, change)


@family(
    "change.{change}.{kind}",
    every(change=CHANGES, kind=("device", "device-huge", "device-half", "device-mapped")),
    since="1.0",
    ref=_REF,
    profile="device-memory",
    requires=("explicit_populate",),
)
def test_change_on_device(lab: Lab, change: str, kind: str) -> None:
    """After {change} of memory of kind {kind} the GPU has no more than the process, and nothing is lost or stale."""
    _changed(lab, DEVICE_AREAS, kind, change)
