"""Print what each way from a device page to the allocation that holds it costs: by itself, and in xe at work.

    uv run python benchmarks/page_to_bo.py

Bytes are those of a 64-bit kernel. Times are virtual: `page_index_load` of the profile h100-pcie5 for each load that
depends on the one before. What a pointer in the page takes is part of what each operation is charged anyway.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal

import numpy as np
from attrs import define
from gpusvm.drm import AllPfns, OffsetMap, PageIndex, XArray
from gpusvm.errors import KernelError
from gpusvm.kernel import Costs, Kernel
from gpusvm.machine import load_topology
from gpusvm.plugins import load_drivers
from gpusvm.run.costs import load_profile
from gpusvm.testing import Bench

_PAGE: Final = 4 << 10
_BLOCK: Final = 2 << 20
_PAGES: Final = _BLOCK // _PAGE
_WORD_BYTES: Final = 8
DEVICE_BYTES: Final = 32 << 30
ALLOCATIONS: Final = (64, 1024, 16384)


@define
class Span:
    """Be a dev_pagemap over the whole device, as far as an index asks."""

    start_pfn: int = 1 << 33
    nr_pages: int = DEVICE_BYTES // _PAGE


def costs() -> Costs:
    """Return the constants that are charged."""
    return load_profile("h100-pcie5").costs


# ---- a way by itself -------------------------------------------------------------------------------------------------


def filled(index: PageIndex, span: Span, allocations: int, pages: int) -> None:
    """Enter allocations of so many pages, evenly over the device."""
    apart = span.nr_pages // allocations
    for n in range(allocations):
        first = span.start_pfn + n * apart
        index.attach(n, np.arange(first, first + pages))


def one_lookup(index: PageIndex, span: Span, allocations: int) -> tuple[float, float]:
    """Return how many loads a lookup has and how many ns it is charged, on average over 64 allocations."""
    kernel = index.kernel  # type: ignore[attr-defined]  # both shipped ones have it
    apart = span.nr_pages // allocations
    loads, began = index.costs.loads, kernel.charged["page_index_load"]
    for n in range(0, allocations, allocations // 64):
        assert index.find(span.start_pfn + n * apart) == n
    return (index.costs.loads - loads) / 64, (kernel.charged["page_index_load"] - began) / 64


def ways() -> str:
    """Return the table of one lookup and of the bytes, for allocations of 2 MiB and of 4 KiB."""
    rows: list[tuple[str, ...]] = [
        ("way", "allocations", "of", "loads", "ns", "B/allocation", "B/page", "KiB at most", "can fail")
    ]
    for pages in (_PAGES, 1):
        for allocations in ALLOCATIONS:
            size = f"{pages * _PAGE >> 10} KiB"
            words = pages * _WORD_BYTES
            rows.append(
                (
                    "zone_device_data",
                    f"{allocations:,}",
                    size,
                    "0.0",
                    "0",
                    f"{words:,}",
                    f"{_WORD_BYTES:.2f}",
                    f"{DEVICE_BYTES // _PAGE * _WORD_BYTES >> 10:,}",
                    "no",
                )
            )
            for name, make in (("offset", OffsetMap), ("xarray", XArray)):
                rows.append((name, f"{allocations:,}", size, *_measured(make, allocations, pages)))
    return _text(rows, (18, 13, 11, 8, 8, 15, 10, 15, 11))


def _measured(make: Callable[[Kernel, Span], Any], allocations: int, pages: int) -> tuple[str, ...]:
    span, kernel = Span(), Kernel(costs=costs())
    index = make(kernel, span)
    filled(index, span, allocations, pages)
    loads, ns = one_lookup(index, span, allocations)
    size = index.costs.bytes_max
    kernel.arm("page_index.xa_node")
    try:
        index.attach("more", np.arange(span.start_pfn + pages, span.start_pfn + 2 * pages))
    except KernelError:
        fails = "ENOMEM"
    else:
        fails = "no"
    return (
        f"{loads:.1f}",
        f"{ns:,.0f}",
        f"{size / allocations:,.0f}",
        f"{size / allocations / pages:,.2f}",
        f"{size >> 10:,}",
        fails,
    )


def chunks() -> str:
    """Return the table of the same where one object fills one dev_pagemap, over everything that pfns can name."""
    rows: list[tuple[str, ...]] = [("way", "chunks", "loads", "ns", "B/chunk", "KiB at most")]
    for count in (1, 16, 128):
        rows.append(("chunk", str(count), "0.0", "0", "0", "0"))
        for name, make in (("offset", OffsetMap), ("xarray", XArray)):
            span, kernel = AllPfns(), Kernel(costs=costs())
            index: Any = make(kernel, span)
            for n in range(count):
                first = (1 << 33) + n * 65536
                index.attach(n, np.arange(first, first + 65536))
            for n in range(count):
                assert index.find((1 << 33) + n * 65536 + 77) == n
            cost = index.costs
            rows.append(
                (
                    name,
                    str(count),
                    f"{cost.loads / count:.1f}",
                    f"{kernel.charged['page_index_load'] / count:,.0f}",
                    f"{cost.bytes_max / count:,.0f}",
                    f"{cost.bytes_max / 1024:,.1f}",
                )
            )
    return _text(rows, (18, 13, 8, 8, 15, 15))


# ---- xe at work ------------------------------------------------------------------------------------------------------


class Work:
    """Be one xe, or two with a path between them, with a block of memory of the CPU; count while something is done."""

    def __init__(self, spec: str, *, thp: Literal["always", "never"], devices: int = 1) -> None:
        topology = load_topology("single" if devices == 1 else "dual-p2p")
        self.bench = Bench(spec, vram_bytes=64 << 20, thp=thp, costs=costs(), topology=topology)
        self.addr = self.bench.map(_BLOCK)
        self.bench.cpu_write(self.addr, _PAGES)
        self.targets = [driver.pagemaps()[0] for driver in self.bench.machine.drivers]
        self.indices: list[Any] = [each.index for each in self.targets if each.index is not None]
        self.held: dict[str, set[str]] = {"find": set(), "attach": set(), "detach": set()}
        self.words = 0
        for index in self.indices:
            for name in self.held:
                setattr(index, name, self._noting(name, getattr(index, name)))
        store = self.bench.memory.set_zone_device_data
        self.bench.memory.set_zone_device_data = self._counting(store)  # type: ignore[method-assign]  # of this one

    def _noting(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*arguments: Any) -> Any:
            held = self.bench.kernel.current.held
            self.held[name].update(getattr(lock, "name", "") for lock in held)
            return function(*arguments)

        return noted

    def _counting(self, store: Callable[..., None]) -> Callable[..., None]:
        def counted(pfns: Any, data: object) -> None:
            self.words += 1 if isinstance(pfns, int) else len(pfns)
            store(pfns, data)

        return counted

    def populate(self, device: int = 0) -> None:
        self.targets[device].populate_mm(self.addr, self.addr + _BLOCK, self.bench.mm, 0)
        self.bench.kernel.settle()

    def during(self, what: Callable[[], object]) -> dict[str, int]:
        """Do something; return what was counted meanwhile."""
        before, began_ns = self._counts(), self.bench.kernel.now_ns
        what()
        took_ns = self.bench.kernel.now_ns - began_ns
        self.bench.kernel.settle()
        return {"took_ns": took_ns, **{name: count - before[name] for name, count in self._counts().items()}}

    def _counts(self) -> dict[str, int]:
        every = [index.costs for index in self.indices]
        return {
            "words": self.words,
            "lookups": sum(each.lookups for each in every),
            "loads": sum(each.loads for each in every),
            "ns": self.bench.kernel.charged["page_index_load"],
            "stores": sum(each.stores for each in every),
            "erases": sum(each.erases for each in every),
        }


def _populate(work: Work) -> Callable[[], object]:
    return work.populate


def _map(work: Work) -> Callable[[], object]:
    work.populate()
    return lambda: work.bench.gpu_read(work.addr)


def _cpu_fault(work: Work) -> Callable[[], object]:
    work.populate()
    return lambda: work.bench.cpu_read(work.addr)


def _unmap_part(work: Work) -> Callable[[], object]:
    work.populate()
    return lambda: work.bench.mm.munmap(work.addr + 8 * _PAGE, 16 * _PAGE)


def _split(work: Work) -> Callable[[], object]:
    _unmap_part(work)()
    return lambda: work.bench.cpu_read(work.addr)


def _unmap(work: Work) -> Callable[[], object]:
    work.populate()
    return lambda: work.bench.mm.munmap(work.addr, _BLOCK)


def _evict(work: Work) -> Callable[[], object]:
    work.populate()
    driver: Any = work.bench.driver
    evict: Callable[[], object] = driver.evict
    return evict


def _to_peer(work: Work) -> Callable[[], object]:
    work.populate()
    return lambda: work.populate(1)


OPERATIONS: Final[tuple[tuple[str, int, Callable[[Work], Callable[[], object]]], ...]] = (
    ("populate_mm", 1, _populate),
    ("map for the GPU", 1, _map),
    ("CPU fault, all home", 1, _cpu_fault),
    ("munmap of 16 pages", 1, _unmap_part),
    ("... then a CPU fault", 1, _split),
    ("munmap of all", 1, _unmap),
    ("evict", 1, _evict),
    ("populate_mm of a peer", 2, _to_peer),
)


def at_work() -> str:
    """Return the table of what operations on 2 MiB do with a pointer, and with an ordered map in its place."""
    texts = []
    pages: tuple[tuple[Literal["always", "never"], str], ...] = (("always", "one folio"), ("never", "512 folios"))
    for thp, what in pages:
        rows: list[tuple[str, ...]] = [
            (f"2 MiB, {what}", "words", "lookups", "loads", "ns", "entered", "erased", "us in all")
        ]
        for name, devices, prepare in OPERATIONS:
            pointer = Work("xe", thp=thp, devices=devices)
            written = pointer.during(prepare(pointer))["words"]
            pointer.bench.close()
            work = Work("xe:page_to_bo=offset", thp=thp, devices=devices)
            found = work.during(prepare(work))
            work.bench.close()
            counts = (found[each] for each in ("lookups", "loads", "ns", "stores", "erases"))
            rows.append((name, f"{written:,}", *(f"{count:,}" for count in counts), f"{found['took_ns'] / 1e3:,.1f}"))
        texts.append(_text(rows, (24, 7, 9, 7, 8, 9, 8, 11)))
    return "\n".join(texts)


def locks() -> str:
    """Return the table of the locks that are held where the index is used; of "atomic" nothing may sleep."""
    held: dict[str, dict[str, set[str]]] = {}
    for name, devices, prepare in OPERATIONS:
        work = Work("xe:page_to_bo=offset", thp="always", devices=devices)
        act = prepare(work)
        for each in work.held.values():
            each.clear()
        work.during(act)
        held[name] = {use: set(found) for use, found in work.held.items()}
        work.bench.close()
    rows: list[tuple[str, ...]] = [("held at", "", "")]
    for name, uses in held.items():
        for use, locks in uses.items():
            known = {lock.replace("preempt_disable", "atomic") for lock in locks if lock in _TELLING}
            if known or locks:
                rows.append((name, use, " ".join(sorted(known)) or "none of these"))
    return "".join(f"{name:<24}{use:<9}{locks}".rstrip() + "\n" for name, use, locks in rows)


_TELLING: Final = frozenset({"mmap_lock", "drm_gpusvm_notifier_lock", "dma_resv", "preempt_disable"})


def _text(rows: Sequence[tuple[str, ...]], widths: Sequence[int]) -> str:
    return "".join(
        f"{row[0]:<{widths[0]}}"
        + "".join(f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True))
        + "\n"
        for row in rows
    )


def page() -> list[str]:
    """Return all tables, in the order of the page that shows them."""
    return [ways(), chunks(), at_work(), locks()]


if __name__ == "__main__":
    load_drivers()
    sys.stdout.write("\n".join(page()))
