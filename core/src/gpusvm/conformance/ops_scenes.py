"""Set the scenes in which the ops of drm_gpusvm and drm_pagemap are looked at: memory of a few kinds on small machines,
and core asked directly for what a driver asks it for.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from gpusvm.conformance.areas import AREAS, huge, written
from gpusvm.conformance.ops import OpCall, OpsLog
from gpusvm.conformance.small import BLOCK_PAGES, PAGE
from gpusvm.drm import Devmem, DrmPagemap, GpuSvm, GpuSvmCtx, GpuSvmRange, PagemapAddrs, evict_to_ram
from gpusvm.drm.addr import expand
from gpusvm.errors import KernelError, errno_name
from gpusvm.mm.api import Pfns
from gpusvm.mm.pgtable import PmdKind

if TYPE_CHECKING:
    from gpusvm.testing import Bench

__all__ = [
    "KINDS",
    "DmaCount",
    "answer_of",
    "assert_released",
    "by_eviction",
    "devmem_of",
    "drivers_lock",
    "evicted",
    "find_range",
    "gpusvm_of",
    "home",
    "look_at_copies",
    "nothing_left",
    "on_device",
    "pagemap_of",
    "pfns_of",
    "populate",
    "references",
    "rows_of",
    "tokens_of",
]

KINDS: Final[Mapping[str, Callable[["Bench"], int]]] = {
    "small": written,
    "huge": huge,
    "every-other": AREAS["every-other"],
}
"""Blocks that can go to a device, by what is there before."""


def pagemap_of(bench: "Bench", device: int = 0) -> DrmPagemap:
    """Return what `populate_mm` of a device is called on."""
    return bench.machine.drivers[device].pagemaps()[0]


def populate(
    bench: "Bench", addr: int, pages: int = BLOCK_PAGES, *, device: int = 0, timeslice_ms: int = 0
) -> DrmPagemap:
    """Call drm_pagemap_populate_mm as a driver does that has chosen this pagemap, its own or another's."""
    pagemap = pagemap_of(bench, device)
    pagemap.populate_mm(addr, addr + pages * PAGE, bench.mm, timeslice_ms)
    return pagemap


def on_device(bench: "Bench", kind: str = "small", *, device: int = 0) -> int:
    """Lay out a block and have all of it populated; its address."""
    addr = KINDS[kind](bench)
    populate(bench, addr, device=device)
    there = bench.device_pages(addr, BLOCK_PAGES)
    assert there == BLOCK_PAGES, f"populate_mm has brought {there} of {BLOCK_PAGES} pages, with nothing in their way"
    return addr


def pfns_of(bench: "Bench", addr: int, pages: int = BLOCK_PAGES) -> Pfns:
    """Return what the process has mapped, page by page; -1 where that is nothing."""
    return np.array([_pfn_of(bench, at) for at in range(addr, addr + pages * PAGE, PAGE)], np.int64)


def _pfn_of(bench: "Bench", addr: int) -> int:
    if bench.where(addr) == "none":
        return -1
    entry = bench.mm.page_table.entry(addr)
    inside = addr // PAGE % BLOCK_PAGES if isinstance(entry.kind, PmdKind) else 0
    return entry.pfn + inside


def tokens_of(bench: "Bench", pfns: Pfns) -> list[int]:
    """Return what pages hold."""
    token = bench.memory.contents.token
    return [token(pfn) for pfn in pfns.tolist()]


def rows_of(call: OpCall) -> tuple[Pfns, PagemapAddrs, Pfns]:
    """Return of a copy the device pages, the rows, and the pages of the other side, page by page."""
    device_pfns, addrs, _ = call.args
    return expand(device_pfns, addrs.order, addrs.npages), addrs, addrs.page_pfns()


def devmem_of(log: OpsLog, at: int = -1) -> Devmem:
    """Return an allocation that was made, by default the last."""
    assert log.devmems, "the driver has made no allocation (Devmem)"
    return log.devmems[at]


def home(bench: "Bench", addr: int, pages: int = 1) -> None:
    """Have a CPU touch pages."""
    bench.cpu_read(addr, pages)


def evicted(devmem: Devmem) -> None:
    """Bring an allocation home as a driver does that wants its memory for something else."""
    evict_to_ram(devmem)


class DmaCount:
    """Count what is mapped for DMA in a machine."""

    def __init__(self, bench: "Bench") -> None:
        self._ledger = bench.kernel.ledger

    def __call__(self) -> int:
        """Return how many rows are mapped, and how many reservations there are."""
        return self._ledger.count("dma") + self._ledger.count("iova")


@contextmanager
def nothing_left(bench: "Bench") -> Iterator[None]:
    """Compare every reference before the block and after it. AssertionError with what has come, or has gone."""

    def held() -> dict[tuple[str, str], int]:
        bench.kernel.settle()
        found: dict[tuple[str, str], int] = {}
        for kind, holder, count in bench.kernel.ledger.entries():
            found[kind, holder] = found.get((kind, holder), 0) + count
        return found

    before = held()
    yield
    after = held()
    changed = [
        f"{kind!r} of {holder}: {before.get((kind, holder), 0)} before, {after.get((kind, holder), 0)} now"
        for kind, holder in sorted({*before, *after})
        if before.get((kind, holder), 0) != after.get((kind, holder), 0)
    ]
    assert not changed, f"references are otherwise than before: {'; '.join(changed)}"


def references(bench: "Bench", pfn: int) -> int:
    """Return how many references a page has."""
    zone = bench.memory.pages.zone(pfn)
    return int(zone.refcount[pfn - zone.base])


def answer_of(bench: "Bench", addr: int, *, device: int = 0) -> str:
    """Populate a block, and say how that ends."""
    try:
        populate(bench, addr, device=device)
    except KernelError as error:
        return errno_name(error.errno)
    return "ok"


def assert_released(log: OpsLog, first: int = 0) -> None:
    """Raise AssertionError unless each allocation, from the first on, was released once."""
    released = [call.args[0] for call in log.of("devmem_release")]
    for devmem in log.devmems[first:]:
        times = sum(each is devmem for each in released)
        assert times == 1, f"an allocation was released {times} times"


def look_at_copies(bench: "Bench", log: OpsLog, op: str) -> None:
    """Compare both sides of every copy before and after it."""
    to_device = op == "copy_to_devmem"

    @log.before(op)
    def remember(call: OpCall) -> None:
        device, _, other = rows_of(call)
        call.seen["source"] = tokens_of(bench, other if to_device else device)

    @log.after(op)
    def compare(call: OpCall) -> str | None:
        device, _, other = rows_of(call)
        source, target = (other, device) if to_device else (device, other)
        if tokens_of(bench, source) != call.seen["source"]:
            return "the source is changed"
        if call.error is None and tokens_of(bench, target) != call.seen["source"]:
            return "it returned, and the target does not hold what the source does"
        return None


def by_eviction(bench: "Bench", log: OpsLog, addr: int) -> None:
    """Evict the allocation that was made last."""
    evicted(devmem_of(log))


# ---- ranges


def gpusvm_of(log: OpsLog, at: int = 0) -> GpuSvm:
    """Return a gpusvm of a process that was made, by default the first."""
    assert log.gpusvms, "the driver has made no gpusvm"
    return log.gpusvms[at]


@contextmanager
def drivers_lock(gpusvm: GpuSvm) -> Iterator[None]:
    """Hold what the driver has said protects the ranges (drm_gpusvm_driver_set_lock)."""
    lock: Any = gpusvm._driver_lock
    if lock is None:
        yield
        return
    with lock.write() if hasattr(lock, "write") else lock:
        yield


def find_range(gpusvm: GpuSvm, addr: int, ctx: GpuSvmCtx | None = None) -> GpuSvmRange:
    """Call drm_gpusvm_range_find_or_insert, the whole mirror being one GPU-VMA. The driver's lock is held."""
    return gpusvm.range_find_or_insert(addr, gpusvm.mm_start, gpusvm.mm_end, ctx or GpuSvmCtx())
