"""A driver's own calls on a piece of memory: whatever they are, the memory stays the process's.

What a driver offers besides what all have it says itself (`gpusvm_operations`); a driver without such calls follows
these rules by having none.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from gpusvm.conformance.scene import PAGE, Operations, after_hmm, operations, written
from gpusvm.conformance.suite import Lab, check
from gpusvm.driver import ACCESS_WRITE
from gpusvm.errors import KernelError
from gpusvm.mm.api import MADV_DONTNEED, PROT_READ, PROT_WRITE

if TYPE_CHECKING:
    from gpusvm.testing import Bench

_PAGES: Final = 16
_OF_MEMORY: Final = ("dev", "slot", "page", "n")
_CALLS_MAX: Final = 100
_NOTIFIER: Final = "mm/mmu_notifier.c:mn_itree_invalidate"


def _each(lab: Lab, prepare: "Callable[[Bench, int], None] | None" = None) -> "Iterator[tuple[Bench, int, str]]":
    """Yield a machine for each call that is about memory and nothing else, after the call on memory that was written,
    and prepared, before it. What a call refuses it may refuse.
    """
    done = 0
    while True:
        bench = lab.bench(thp="never")
        addr = written(bench, _PAGES)
        if prepare is not None:
            prepare(bench, addr)
        calls = operations(lab, bench, addr)
        names = [] if calls is None else sorted(name for name in calls.names if _is_of_memory(calls, name))
        if done == len(names):
            return
        assert calls is not None
        with suppress(KernelError):
            calls.do(names[done], [0, 0, 0, _PAGES])
        yield bench, addr, names[done]
        done += 1


def _is_of_memory(calls: Operations, name: str) -> bool:
    return tuple(calls.parameters[name]) == _OF_MEMORY


def _faulted(bench: "Bench", addr: int) -> None:
    with suppress(KernelError):
        bench.gpu_write(addr, _PAGES)


@check("own-calls.then.cpu-drops", since="1.0", ref=_NOTIFIER)
def test_then_dropped(lab: Lab) -> None:
    """What a CPU drops after a call of the driver's own is mapped nowhere, and what is there next is what is seen."""
    for bench, addr, name in _each(lab):
        _faulted(bench, addr)
        bench.mm.madvise(addr, 4 * PAGE, MADV_DONTNEED)
        left = bench.mapped_pages(addr, 4)
        assert not left, f"{name}: {left} pages that are no more are mapped"
        bench.cpu_write(addr, 4)
        _faulted(bench, addr)
        bench.cpu_read(addr, _PAGES)


@check("own-calls.after.cpu-protects", since="1.0", ref=_NOTIFIER)
def test_protected(lab: Lab) -> None:
    """What the GPU had before a call of the driver's own, and a CPU protects after it, keeps its contents."""

    def used(bench: "Bench", addr: int) -> None:
        bench.gpu_write(addr, _PAGES)

    for bench, addr, _ in _each(lab, used):
        bench.mm.mprotect(addr, _PAGES * PAGE, PROT_READ)
        bench.mm.mprotect(addr, _PAGES * PAGE, PROT_READ | PROT_WRITE)
        _faulted(bench, addr)
        bench.cpu_read(addr, _PAGES)


@check("own-calls.looked.cpu-drops", since="1.0", ref="mm/mmu_notifier.c:mmu_interval_read_retry")
def test_looked(lab: Lab) -> None:
    """What a CPU drops just after the driver has looked at it is not used, whatever was called before."""

    def unlooked(bench: "Bench", addr: int) -> None:
        bench.mm.madvise(addr, PAGE, MADV_DONTNEED)

    for bench, addr, _ in _each(lab):
        unlooked(bench, addr)
        once: list[int] = []

        def drop(bench: "Bench" = bench, addr: int = addr, once: list[int] = once) -> None:
            if not once:
                once.append(addr)
                unlooked(bench, addr)

        with after_hmm(bench, drop):
            bench.fault(addr + PAGE, ACCESS_WRITE)
        _faulted(bench, addr)
        bench.cpu_read(addr, _PAGES)


@check(
    "own-calls.other-device.goes",
    since="1.0",
    profile="multi-device",
    ref="drivers/gpu/drm/drm_pagemap.c:drm_pagemap_release",
)
def test_other_device(lab: Lab) -> None:
    """A device that a call names for another's memory may lose its driver, and the memory keeps its contents."""
    for at in range(_CALLS_MAX):
        bench = lab.bench(hardware="dual-p2p", mode="explored", thp="never")
        addr = written(bench, _PAGES)
        calls = operations(lab, bench, addr)
        names = [] if calls is None else sorted(name for name in calls.names if _names_a_device(calls, name))
        if at == len(names):
            return
        assert calls is not None
        more = len(calls.parameters[names[at]]) - len(_OF_MEMORY) - 1
        with suppress(KernelError):
            calls.do(names[at], [0, 0, 0, _PAGES, 1, *[1] * more])
        _faulted(bench, addr)
        bench.machine.close(bench.process, 1)
        with suppress(KernelError):
            bench.machine.remove(1)
        _faulted(bench, addr)
        bench.cpu_read(addr, _PAGES)
        bench.machine.close(bench.process, 0)
        bench.cpu_read(addr, _PAGES)
        bench.kernel.settle()


def _names_a_device(calls: Operations, name: str) -> bool:
    return tuple(calls.parameters[name])[:5] == (*_OF_MEMORY, "device")
