"""Print where a dev_pagemap can lie, who gets from it where, whom populate_mm can be called on, and who holds what.

    uv run python benchmarks/embedding.py

The tables of docs/explanation/pagemap-embedding.md, but for those of page_to_bo.py. Everything is counted in machines
of the model; nothing is timed.
"""

import errno
import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
from gpusvm.driver import ChangedPm, DriverInfo, Siblings, read_spec
from gpusvm.driver.layout import (
    DEV_PAGEMAP,
    DRM_PAGEMAP,
    DRM_PAGEMAP_EMBEDDING,
    P2PDMA_PAGEMAP,
    Struct,
    members,
)
from gpusvm.errors import GpusvmError, InputError, KernelError
from gpusvm.machine import Machine, Process, load_topology
from gpusvm.mm.api import DevPagemap
from gpusvm.plugins import Registry, load_drivers
from gpusvm.testing import Bench

_PAGE: Final = 4 << 10
_BLOCK: Final = 2 << 20
_M: Final = 1 << 20
DRIVERS: Final = ("xe", "nouveau", "dmirror", "kfd")


# ---- where it can lie ------------------------------------------------------------------------------------------------

LAYOUTS: Final = (
    ("siblings", Struct("xe_pagemap", (DEV_PAGEMAP, DRM_PAGEMAP))),
    ("dev_in_drm", Struct("xe_pagemap", (DRM_PAGEMAP_EMBEDDING,))),
    ("p2p_provider", Struct("xe_pagemap", (P2PDMA_PAGEMAP, DRM_PAGEMAP))),
    ("dev_in_drm+p2p_provider", Struct("xe_pagemap", (DRM_PAGEMAP_EMBEDDING, P2PDMA_PAGEMAP))),
    ("chunk", Struct("nouveau_dmem_chunk", (DEV_PAGEMAP,))),
)


def reach() -> str:
    """Return the table of what container_of reaches from a page's dev_pagemap, in each layout."""
    rows: list[tuple[str, ...]] = [("embedding", "dev_pagemaps", "drm_pagemap", "p2p pagemap", "driver's", "in all")]
    wanted = (DRM_PAGEMAP.name, P2PDMA_PAGEMAP.name)
    for name, whole in LAYOUTS:
        paths = members(whole, DEV_PAGEMAP.name)
        steps = [_steps(paths, struct) for struct in (*wanted, whole.name)]
        together = any(all(struct in path for struct in wanted) for path in paths)
        rows.append((name, str(len(paths)), *steps, "yes" if together else "no"))
    return _text(rows, (26, 13, 13, 13, 10, 8))


def _steps(paths: Sequence[tuple[str, ...]], struct: str) -> str:
    """Say in how many steps a struct is reached from a dev_pagemap: from each of them, "-" where from none."""
    found = [str(len(path) - 1 - path.index(struct)) if struct in path else "-" for path in paths]
    return " or ".join(found)


REFUSED: Final = (
    "xe:embedding=dev_in_drm+p2p_provider",
    "xe:embedding=siblings+dev_in_drm",
    "xe:embedding=chunk",
    "xe:page_to_bo=chunk",
    "nouveau:page_to_bo=zone_device_data",
)


def refusals() -> str:
    """Return what the spec strings of combinations that cannot work are answered."""
    drivers = load_drivers()
    lines = []
    for spec in REFUSED:
        try:
            read_spec(spec, drivers)
        except InputError as error:
            lines += [f"{line}\n" for line in textwrap.wrap(str(error), 116, subsequent_indent="    ")]
        else:
            raise AssertionError(spec)
    return "".join(lines)


# ---- whom populate_mm can be called on -------------------------------------------------------------------------------


def objects(driver: str, moments: Sequence[tuple[str, int]]) -> list[tuple[str, ...]]:
    """Return what there is of a driver as its memory fills: a row for the machine with nothing open, and for each
    moment, a number of bytes in device memory.
    """
    machine = Machine.boot(load_topology("single"), [read_spec(driver, load_drivers())], vram_bytes=2048 * _M)
    rows = [_row(machine, driver, "probed")]
    process = machine.process("one")
    vm = machine.open(process, 0)
    rows.append(_row(machine, driver, "opened"))
    base, done = 1 << 40, 0
    process.mm.mmap(base, max(1 << 30, *(upto for _, upto in moments)), 3)
    for name, upto in moments:
        _write(machine, process, base + done, upto - done)
        vm.populate(base + done, base + upto)
        done = upto
        rows.append(_row(machine, driver, name))
    machine.teardown()
    return rows


def _row(machine: Machine, driver: str, moment: str) -> tuple[str, ...]:
    (each,) = machine.drivers
    dev_pagemaps = each.dev_pagemaps()
    now, offered = machine.kernel.gauges.now, {"xe": "core's", "nouveau": "adapter", "dmirror": "adapter"}
    return (
        driver,
        moment,
        str(len(dev_pagemaps)),
        f"{sum(pgmap.nr_pages for pgmap in dev_pagemaps) * _PAGE // _M:,}",
        str(len({id(pgmap.owner) for pgmap in dev_pagemaps})),
        f"{len(each.pagemaps())} {offered.get(driver, 'adapter')}",
        str(now.get("bo", 0)),
    )


MOMENTS: Final = (("4 KiB", _PAGE), ("256 MiB", 256 * _M), ("512 MiB", 512 * _M), ("1024 MiB", 1024 * _M))


def callees() -> str:
    """Return the table of objects as memory grows."""
    rows: list[tuple[str, ...]] = [
        ("driver", "in VRAM", "dev_pagemaps", "MiB of pages", "owners", "drm_pagemaps", "bos")
    ]
    for driver in DRIVERS:
        rows += objects(driver, MOMENTS)
    return _text(rows, (10, 10, 14, 14, 8, 14, 6), left=2)


def one_populate() -> str:
    """Return in how many dev_pagemaps, and objects, the pages of one populate of 4 MiB lie when 254 MiB are taken."""
    rows: list[tuple[str, ...]] = [("4 MiB after 254 MiB", "dev_pagemaps", "drm_pagemaps")]
    for driver in DRIVERS:
        bench = Bench(driver, vram_bytes=2048 * _M, thp="never")
        addr = bench.map(258 * _M)
        bench.cpu_write(addr, 258 * _M // _PAGE)
        bench.vm.populate(addr, addr + 254 * _M)
        bench.vm.populate(addr + 254 * _M, addr + 258 * _M)
        rows.append((driver, str(_spread(bench, addr + 254 * _M, 4 * _M)), str(len(bench.driver.pagemaps()))))
        bench.close()
    return _text(rows, (22, 14, 14))


def _spread(bench: Bench, addr: int, length: int) -> int:
    """Count the dev_pagemaps in which the pages of a piece of memory lie."""
    found = set()
    for at in range(addr, addr + length, _PAGE):
        pgmap = bench.memory.page_pgmap(bench.mm.page_table.entry(at).pfn)
        assert pgmap is not None
        found.add(id(pgmap))
    return len(found)


def _write(machine: Machine, process: Process, addr: int, length: int) -> None:
    """Write memory from the CPU."""
    vpns = np.arange(addr // _PAGE, (addr + length) // _PAGE)
    machine.memory.cpu_access(process.mm, vpns, np.ones(len(vpns), np.bool_))


# ---- who holds what --------------------------------------------------------------------------------------------------

ACCOUNTS: Final = (
    ("PM of gpu0", "pm", 0),
    ("PM of gpu1", "pm", 1),
    ("drm_device", "drm_dev", None),
    ("module", "module", None),
    ("drm_pagemap", "dpagemap", None),
    ("bo", "bo", None),
    ("zdd", "zdd", None),
    ("mm_users", "mm_users", None),
)


class InsidePopulate(ChangedPm):
    """Be xe's power policy, and tell when pages of an object are about to be populated."""

    def __init__(self, shipped: Any) -> None:
        super().__init__(shipped)
        self.told: Callable[[], None] | None = None

    def pages_present(self, bo: Any) -> None:
        super().pages_present(bo)
        if self.told is not None:
            self.told()


def references() -> str:
    """Return who holds references of what while gpu0's process has 2 MiB populated in gpu1's pagemap, and after.

    gpu0 is open in the process, gpu1 is not; the pagemap is had by the file of gpu1, as madvise has it.
    """
    xe = load_drivers()["xe"].variant(pm=InsidePopulate)
    machine = Machine.boot(
        load_topology("dual-p2p"), [read_spec("xe", {"xe": xe})] * 2, vram_bytes=64 * _M, thp="always"
    )
    first, second = machine.drivers
    seen: dict[str, dict[str, str]] = {}
    locks: list[str] = []
    process = machine.process("one")
    machine.open(process, 0)
    seen["opened"] = _held(machine)
    target = first.pagemap_from_fd(1, 1)  # type: ignore[attr-defined]  # it is an XeDriver
    base = 1 << 40
    process.mm.mmap(base, _BLOCK, 3)
    _write(machine, process, base, _BLOCK)
    seen["chosen"] = _held(machine)

    def inside() -> None:
        seen["populate_mm"] = _held(machine)
        locks.extend(lock.name for lock in machine.kernel.current.held)

    second.pm.told = inside  # type: ignore[attr-defined]  # it is an InsidePopulate
    target.populate_mm(base, base + _BLOCK, process.mm, 0)
    seen["populated"] = _held(machine)
    target.put("madvise")
    machine.kernel.settle()
    seen["put"] = _held(machine)
    process.mm.munmap(base, _BLOCK)
    seen["unmapped"] = _held(machine)
    machine.kernel.settle()
    seen["settled"] = _held(machine)
    pagemaps = f"gpu1 then: {len(second.pagemaps())} active drm_pagemaps, {len(second.dev_pagemaps())} dev_pagemaps\n"
    machine.teardown()
    rows: list[tuple[str, ...]] = [("reference", *seen)]
    for name, _, _ in ACCOUNTS:
        cells = [each[name] for each in seen.values()]
        height = max(len(cell.split()) for cell in cells)
        for line in range(max(height, 1)):
            parts = [cell.split()[line] if line < len(cell.split()) else "" for cell in cells]
            rows.append((name if line == 0 else "", *parts))
    widths = (12, *(14 for _ in seen))
    table = "".join(
        "".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() + "\n" for row in rows
    )
    return f"{table}locks in populate_mm: {', '.join(locks)}\n{pagemaps}"


def _held(machine: Machine) -> dict[str, str]:
    """Return the holders of each account, with how many; those that the machine has from its boot are left out."""
    entries = machine.kernel.ledger.entries()
    found = {}
    for name, kind, device in ACCOUNTS:
        if device is not None:
            pm = machine.drivers[device].device.pm
            assert pm is not None
            held = {str(holder): count for holder, count in pm.holders.items()}
        else:
            held = {holder.strip("'"): count for each, holder, count in entries if each == kind}
        held.pop("driver", None)
        found[name] = " ".join(f"{holder}:{count}" for holder, count in held.items())
    return found


# ---- without a way from a dev_pagemap to its drm_pagemap -------------------------------------------------------------


class CoreOnly(Siblings):
    """Lay out as siblings, and let core find the drm_pagemap by container_of alone: there is no such way."""

    def pagemap_of(self, pgmap: DevPagemap) -> Any:
        raise KernelError(errno.ENXIO, "nothing is around the dev_pagemap that core knows")


def without_a_way() -> str:
    """Return what operations come to where pages have no zone_device_data and core finds no drm_pagemap from them."""
    operations: tuple[tuple[str, Callable[[Bench, int], object]], ...] = (
        ("populate_mm", lambda bench, addr: bench.device_pages(addr, 1)),
        ("map for the GPU", lambda bench, addr: bench.gpu_read(addr)),
        ("CPU fault", lambda bench, addr: bench.cpu_read(addr)),
        ("evict", lambda bench, _: bench.driver.evict_all()),  # type: ignore[attr-defined]  # it is an XeDriver
        ("munmap", lambda bench, addr: bench.mm.munmap(addr, _BLOCK)),
    )
    rows: list[tuple[str, ...]] = [("operation", "driver's way", "KiB then", "core alone", "KiB then")]
    for name, operation in operations:
        cells = [name]
        for embedding in (Siblings, CoreOnly):
            answer, left = _outcome(load_drivers()["xe"].variant(embedding=embedding), operation)
            cells += [answer, f"{left >> 10:,}"]
        rows.append(tuple(cells))
    return _text(rows, (18, 14, 12, 14, 12), left=1)


def _outcome(xe: DriverInfo, operation: Callable[[Bench, int], object]) -> tuple[str, int]:
    """Populate 2 MiB without zone_device_data, do something; what it comes to, and the VRAM in use afterwards."""
    bench = Bench("xe:page_to_bo=offset", drivers=Registry.of(xe), thp="never", vram_bytes=64 * _M)
    addr = bench.map(_BLOCK)
    bench.cpu_write(addr, _BLOCK // _PAGE)
    (target,) = bench.driver.pagemaps()
    target.populate_mm(addr, addr + _BLOCK, bench.mm, 0)
    try:
        operation(bench, addr)
        bench.kernel.settle()
    except GpusvmError as error:  # with locks held, and pages half free: this machine goes no further
        told = str(error).partition(":")[0].partition(" ")[0]
    else:
        told = "works"
    return told, int(bench.driver.describe()["vram_used_bytes"])


def _text(rows: Sequence[tuple[str, ...]], widths: Sequence[int], *, left: int = 1) -> str:
    return "".join(
        "".join(
            f"{cell:<{width}}" if at < left else f"{cell:>{width}}"
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        + "\n"
        for row in rows
    )


def page() -> list[str]:
    """Return all tables, in the order of the page that shows them."""
    return [reach(), refusals(), callees(), one_populate(), references(), without_a_way()]


if __name__ == "__main__":
    sys.stdout.write("\n".join(page()))
