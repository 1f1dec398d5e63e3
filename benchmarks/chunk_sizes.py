"""Print what one fault of xe that migrates costs, by the size of its range, and what giving up one page of 2 MiB does.

    uv run python benchmarks/chunk_sizes.py

The times are virtual, of the profile h100-pcie5. The CPU has written the memory; the second fault in each block is
counted, as the first may have to split a huge page, which changes what the others find.
"""

import sys
from collections.abc import Callable, Mapping
from typing import Final, Literal

from gpusvm.driver import ACCESS_WRITE
from gpusvm.mm.api import MADV_DONTNEED
from gpusvm.plugins import load_drivers
from gpusvm.run.costs import load_profile
from gpusvm.testing import Bench, Fault

_PAGE: Final = 4 << 10
_BLOCK: Final = 2 << 20
SIZES: Final = (("2M", _BLOCK), ("64K", 64 << 10), ("4K", _PAGE))
_AT_ONCE: Final = "at once"
PARTS: Final[Mapping[str, tuple[str, ...]]] = {
    "to take it and to answer": ("gpu_fault_delivery", "fault_buffer_entry", "gpu_replay"),
    "to find or make the range": ("range_lookup", "range_insert"),
    "to allocate and clear": ("bo_alloc", "bo_clear_base", "bo_clear_per_byte"),
    "to migrate, once": ("notifier_callback", "migrate_setup_base", "migrate_finalize_base"),
    "to migrate, each folio": ("migrate_setup_per_folio", "migrate_pages_per_folio", "migrate_finalize_per_folio"),
    "to map for DMA and to copy": ("dma_map_per_folio", "copy_gather_h2d"),
    "to get pages and to bind": ("get_pages_base", "get_pages_per_entry", "bind_base", "bind_per_pte"),
    "while the clear runs": (_AT_ONCE,),
}


def one_fault(size: int) -> dict[str, int]:
    """Return the ns that the second fault of a block of written memory takes, event by event, and what of that passes
    at the same time, which is negative.
    """
    bench = Bench(f"xe:chunk_sizes={size}", vram_bytes=64 << 20, costs=load_profile("h100-pcie5").costs)
    addr = bench.map(2 * _BLOCK)
    bench.cpu_write(addr, 2 * _BLOCK >> 12)
    kernel = bench.kernel
    bench.faults([Fault(addr, ACCESS_WRITE, time_ns=kernel.now_ns)])
    before = dict(kernel.charged)
    began_ns = kernel.now_ns
    bench.faults([Fault(addr + size, ACCESS_WRITE, time_ns=began_ns)])
    found = {event: ns - before.get(event, 0) for event, ns in kernel.charged.items()}
    found = {event: ns for event, ns in found.items() if ns}
    left = set(found) - {event for events in PARTS.values() for event in events}
    assert not left, left
    found[_AT_ONCE] = kernel.now_ns - began_ns - sum(found.values())
    bench.close()
    return found


def cost_of_a_fault() -> str:
    """Return the table of what one fault costs, a column for each size."""
    faults = {name: one_fault(size) for name, size in SIZES}
    rows: list[tuple[str, ...]] = [("one fault, us", *(name for name, _ in SIZES))]
    for part, events in PARTS.items():
        rows.append((part, *(f"{sum(each.get(event, 0) for event in events) / 1e3:.1f}" for each in faults.values())))
    sums = {name: sum(each.values()) for name, each in faults.items()}
    rows.append(("all of it", *(f"{ns / 1e3:.1f}" for ns in sums.values())))
    rows.append(("2 MiB in such ranges", *(f"{sums[name] * (_BLOCK // size) / 1e3:,.0f}" for name, size in SIZES)))
    return _text(rows)


def one_page_given_up(spec: str, how: str, quirks: Literal["as_written", "fixed"]) -> dict[str, int]:
    """Return what happens when one of 512 pages in VRAM is given up by `how`, and the GPU reads the others again."""
    bench = Bench(spec, vram_bytes=64 << 20, quirks=quirks)
    stats = bench.kernel.stats
    addr = bench.map(_BLOCK)
    bench.cpu_write(addr, _BLOCK // _PAGE)
    bench.gpu_read(addr, _BLOCK // _PAGE)
    (tlb, *_) = (gt.tlb for gt in bench.driver.tiles[0].gts)  # type: ignore[attr-defined]  # it is an XeDriver
    flushed = tlb.invalidated_bytes
    give_up: Callable[[int, int], None] = (
        bench.mm.munmap if how == "munmap" else lambda start, length: bench.mm.madvise(start, length, MADV_DONTNEED)
    )
    give_up(addr + 7 * _PAGE, _PAGE)
    bench.kernel.settle()
    mapped = bench.mapped_pages(addr, _BLOCK // _PAGE)
    before = stats.gpu_faults, stats.migrated_to_ram_bytes, stats.migrated_to_device_bytes
    bench.gpu_read(addr, 7)
    bench.gpu_read(addr + 8 * _PAGE, _BLOCK // _PAGE - 8)
    after = stats.gpu_faults, stats.migrated_to_ram_bytes, stats.migrated_to_device_bytes
    faults, home, back = (new - old for new, old in zip(after, before, strict=True))
    found = {
        "GPU entries left": mapped,
        "KiB invalidated in each TLB": tlb.invalidated_bytes - flushed >> 10,
        "faults to have the others": faults,
        "KiB moved to RAM": home >> 10,
        "KiB moved to VRAM": back >> 10,
        "KiB of VRAM in use then": bench.driver.describe()["vram_used_bytes"] >> 10,
    }
    bench.close()
    return found


def cost_of_a_page() -> str:
    """Return the tables of what giving up a page does, for each way of it."""
    texts = []
    ways: tuple[tuple[str, Literal["as_written", "fixed"]], ...] = (
        ("munmap", "as_written"),
        ("munmap", "fixed"),
        ("MADV_DONTNEED", "as_written"),
    )
    for how, quirks in ways:
        specs = ("xe", "xe:chunk_sizes=64K+4K", "xe:chunk_sizes=4K")
        found = [one_page_given_up(spec, how, quirks) for spec in specs]
        rows: list[tuple[str, ...]] = [(f"{how}, {quirks}", "default", "64K+4K", "4K")]
        rows += [(what, *(f"{each[what]:,}" for each in found)) for what in found[0]]
        texts.append(_text(rows))
    return "\n".join(texts)


def _text(rows: list[tuple[str, ...]]) -> str:
    return "".join(f"{row[0]:<28}" + "".join(f"{cell:>9}" for cell in row[1:]) + "\n" for row in rows)


if __name__ == "__main__":
    load_drivers()
    sys.stdout.write(f"{cost_of_a_fault()}\n{cost_of_a_page()}")
