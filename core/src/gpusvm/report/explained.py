"""Run one operation of a driver on a fresh machine, and keep which functions of the kernel it went through."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import attrs
from attrs import frozen

from gpusvm.errors import InputError, KernelError, errno_name, nearest
from gpusvm.report.call_graph import CallGraph, recorded_calls

if TYPE_CHECKING:
    from gpusvm.driver import DriverInfo
    from gpusvm.testing import Bench

__all__ = ["OPERATIONS", "Explained", "explain"]

_VRAM: Final = 256 << 20


@frozen(kw_only=True)
class Explained:
    """Hold one real run of an operation: on which driver, how it ended, and its call graph.

    `answer` is "ok" or the errno's name; `sim_ns` is the virtual time from its begin until nothing was left to do.
    """

    operation: str
    driver: str
    answer: str
    sim_ns: int
    graph: CallGraph

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as ``gpusvm explain --json`` prints them in its `explained`."""
        return {
            "operation": self.operation,
            "driver": self.driver,
            "answer": self.answer,
            "sim_ns": self.sim_ns,
            "lines": [attrs.asdict(line) for line in self.graph.lines],
        }


@frozen
class _Operation:
    """Say what is prepared and what is then looked at; `needs` are the capabilities without which it cannot be."""

    about: str
    prepare: "Callable[[Bench, int, int], None]"
    act: "Callable[[Bench, int, int], None]"
    needs: tuple[str, ...] = ()


def _written(bench: "Bench", addr: int, pages: int) -> None:
    bench.cpu_write(addr, pages)


def _on_device(bench: "Bench", addr: int, pages: int) -> None:
    bench.cpu_write(addr, pages)
    info = bench.driver.info
    if info.capabilities.explicit_populate:
        bench.vm.populate(addr, addr + pages * bench.memory.geometry.page_size)
    bench.gpu_write(addr, pages)


def _fault(bench: "Bench", addr: int, pages: int) -> None:
    bench.gpu_write(addr)


def _cpu_fault(bench: "Bench", addr: int, pages: int) -> None:
    bench.cpu_read(addr)


def _populate(bench: "Bench", addr: int, pages: int) -> None:
    bench.vm.populate(addr, addr + pages * bench.memory.geometry.page_size)


def _evict(bench: "Bench", addr: int, pages: int) -> None:
    evict: Callable[[], None] = bench.driver.evict  # type: ignore[attr-defined]  # drivers that can evict have it
    evict()


def _munmap(bench: "Bench", addr: int, pages: int) -> None:
    bench.mm.munmap(addr, pages * bench.memory.geometry.page_size)


def _unplug(bench: "Bench", addr: int, pages: int) -> None:
    unplug: Callable[[], None] = bench.driver.unplug  # type: ignore[attr-defined]  # so have those that can be unplugged
    unplug()


OPERATIONS: Final[Mapping[str, _Operation]] = {
    "fault": _Operation("the GPU writes memory that the CPU has written", _written, _fault),
    "cpu-fault": _Operation(
        "a CPU reads memory that is on the device", _on_device, _cpu_fault, ("device_memory", "explicit_populate")
    ),
    "populate": _Operation(
        "the program asks for memory to be brought to the device", _written, _populate, ("explicit_populate",)
    ),
    "evict": _Operation("what is on the device is brought home", _on_device, _evict, ("device_memory", "eviction")),
    "munmap": _Operation("memory that the GPU has mapped is unmapped", _on_device, _munmap),
    "unplug": _Operation("the device goes away while it holds memory", _on_device, _unplug, ("unplug",)),
}
"""What can be explained, by name."""


def explain(
    operation: str,
    drivers: "Sequence[str]" = ("xe",),
    *,
    thp: Literal["always", "madvise", "never"] = "always",
    quirks: Literal["as_written", "fixed"] = "as_written",
    costs: str | Path = "h100-pcie5",
    full: bool = False,
    registry: "Mapping[str, DriverInfo] | None" = None,
) -> tuple[Explained, ...]:
    """Run an operation of `OPERATIONS` on 2 MiB of memory, with each driver on a machine of its own.

    A driver is a spec string, and `registry` replaces what is installed. `thp` "never" has 512 pages where else there
    is one huge page. `full` shows functions that follow none of Linux's by name, too. InputError for an operation or a
    driver that is not there, and for a driver without the capability that the operation needs.
    """
    from gpusvm.driver import read_spec
    from gpusvm.plugins import load_drivers

    what = OPERATIONS.get(operation)
    if what is None:
        raise InputError(f"unknown operation {operation!r}; {nearest(operation, OPERATIONS)}")
    known = dict(load_drivers()) if registry is None else dict(registry)
    specs = [read_spec(spec, known, quirks=quirks) for spec in drivers]
    for spec in specs:
        for name in what.needs:
            capability = getattr(spec.info.capabilities, name)
            if not capability:
                raise InputError(
                    f"{operation} cannot be explained on {spec.info.name}: {name.replace('_', ' ')}: {capability.how}"
                )
    return tuple(
        _explained(operation, what, spec.text, known, thp=thp, quirks=quirks, costs=costs, full=full) for spec in specs
    )


def _explained(
    operation: str,
    what: _Operation,
    spec: str,
    drivers: "dict[str, DriverInfo]",
    *,
    thp: Literal["always", "madvise", "never"],
    quirks: Literal["as_written", "fixed"],
    costs: str | Path,
    full: bool,
) -> Explained:
    from gpusvm.driver import read_spec
    from gpusvm.run.costs import load_profile
    from gpusvm.testing import Bench

    costs_table = load_profile(costs).costs
    package = read_spec(spec, drivers).info.make.__module__.partition(".")[0]
    bench = Bench(spec, drivers=drivers, vram_bytes=_VRAM, thp=thp, quirks=quirks, costs=costs_table)
    geometry = bench.memory.geometry
    pages = geometry.pmd_size // geometry.page_size
    addr = bench.map(geometry.pmd_size)
    what.prepare(bench, addr, pages)
    bench.kernel.settle()
    begun_ns = bench.kernel.now_ns
    answer = "ok"
    with recorded_calls(bench.kernel, packages=(package,), full=full) as graph:
        try:
            what.act(bench, addr, pages)
        except KernelError as error:
            answer = errno_name(error.errno)
        bench.kernel.settle()
    sim_ns = bench.kernel.now_ns - begun_ns
    bench.close()
    return Explained(operation=operation, driver=spec, answer=answer, sim_ns=sim_ns, graph=graph)
