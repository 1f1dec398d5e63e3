"""Give whoever asks a driver something machines of its own to ask in."""

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Literal

from attrs import Factory, define

if TYPE_CHECKING:
    from gpusvm.driver import Capabilities, DriverInfo, DriverSpec
    from gpusvm.testing import Bench

__all__ = ["Lab", "NotApplicableError", "Quirks"]

Quirks = Literal["as_written", "fixed"]


class NotApplicableError(Exception):
    """End a probe that makes no sense for a driver; the message is what was seen of that, in a few words."""


_LINES: Final = 300
_ADDRESS: Final = 1 << 16


@define(slots=False)
class Lab:
    """Give machines with the driver that is asked; `close` tears all of them down, and so checks them.

    `driver` is its spec string, one of `drivers`; `quirks` is what every quirk is set to that the spec does not name.
    """

    driver: str
    drivers: "Mapping[str, DriverInfo]"
    quirks: Quirks = "as_written"
    beside: str = ""
    """The spec of the other driver, one of `drivers`, in machines with two; empty: the one of `conformance.partner`."""
    watched: bool = False
    """Every machine tells what happens in it, and its invariants are checked as it runs and before it goes."""
    _benches: "list[Bench]" = Factory(list)

    @cached_property
    def spec(self) -> "DriverSpec":
        """The driver's spec, read: its settings, its quirks and the mm's. InputError for one that cannot be."""
        from gpusvm.driver import read_spec

        return read_spec(self.driver, self.drivers, quirks=self.quirks)

    @property
    def info(self) -> "DriverInfo":
        """What the driver says of itself."""
        return self.spec.info

    @property
    def capabilities(self) -> "Capabilities":
        """What the driver declares."""
        return self.info.capabilities

    @cached_property
    def partner(self) -> "DriverSpec":
        """The spec of the suite's own driver for machines with two."""
        from gpusvm.conformance.partner import NAME, PARTNER
        from gpusvm.driver import read_spec

        return read_spec(NAME, {NAME: PARTNER}, quirks="fixed")

    @cached_property
    def other(self) -> "DriverSpec":
        """The spec of the driver that stands beside the one under test. Its quirks are fixed unless it names them: it
        is not what is tested.

        InputError for one that cannot be read, and for a driver without memory to bring the process's to.
        """
        from gpusvm.driver import read_spec
        from gpusvm.errors import InputError

        if not self.beside:
            return self.partner
        spec = read_spec(self.beside, self.drivers, quirks="fixed")
        for name in ("device_memory", "explicit_populate"):
            capability = getattr(spec.info.capabilities, name)
            if not capability:
                raise InputError(f"driver {spec.text!r} cannot stand beside another: {name}: {capability.how}")
        return spec

    def bench(self, *, hardware: str = "single", **options: Any) -> "Bench":
        """Return a `gpusvm.testing.Bench` with the driver on every device of a topology; `options` are its."""
        from gpusvm.machine import load_topology
        from gpusvm.testing import Bench

        topology = load_topology(hardware)
        made = Bench(self.driver, drivers=self.drivers, quirks=self.quirks, topology=topology, **options)
        self._benches.append(made)
        if self.watched:
            self._watch(made)
        return made

    def close(self) -> None:
        """Tear every machine down. ModelError if anything is left, or a read was wrong."""
        if self.watched:
            from gpusvm.check import Checker

            for bench in self._benches:
                bench.kernel.settle()
                Checker.of(bench.memory).check_quiescent()
        while self._benches:
            self._benches[-1].close()
            self._benches.pop()

    def abandon(self) -> None:
        """Leave every machine as it is, after something broke in one."""
        while self._benches:
            self._benches.pop().kernel.close()

    def trace(self) -> list[str]:
        """Tell, in lines, the last that happened in each machine that is there."""
        return [line for number, bench in enumerate(self._benches) for line in _told(number, bench)]

    @staticmethod
    def _watch(bench: "Bench") -> None:
        from gpusvm.check import Checker

        bench.kernel.tracer.on = True
        Checker(bench.memory).attach()


def _told(number: int, bench: "Bench") -> "Iterator[str]":
    events = bench.kernel.tracer.events
    yield f"machine {number}: {len(events)} events, at {bench.kernel.now_ns} ns"
    for time_ns, task, kind, *fields in events[-_LINES:]:
        yield f"{time_ns:>12}  {task:<20} {kind:<18} {' '.join(map(_word, fields))}".rstrip()


def _word(field: object) -> str:
    if isinstance(field, int) and not isinstance(field, bool) and field >= _ADDRESS:
        return hex(field)
    return str(field)
