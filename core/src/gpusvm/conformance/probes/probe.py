"""Say what a probe is: one question about how a driver behaves, answered by doing it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Literal

from attrs import Factory, asdict, define, frozen

from gpusvm.conformance.probes.expectation import expectations
from gpusvm.errors import KernelError, ModelError, errno_name

if TYPE_CHECKING:
    from gpusvm.driver import DriverInfo
    from gpusvm.testing import Bench

__all__ = ["PAGE", "PMD", "PMD_PAGES", "PROBES", "Lab", "NotApplicableError", "Observation", "Probe", "answer", "probe"]

PAGE: Final = 4096
PMD_PAGES: Final = 512
PMD: Final = PMD_PAGES * PAGE

PROBES: Final[dict[str, "Probe"]] = {}
"""All probes by id, in the order in which they were made."""

_Quirks = Literal["as_written", "fixed"]


class NotApplicableError(Exception):
    """End a probe that makes no sense for a driver; the message is why, in a few words."""


@define
class Lab:
    """Give a probe machines with the driver that is asked; `close` tears all of them down, and so checks them."""

    driver: str
    drivers: "dict[str, DriverInfo]"
    quirks: _Quirks = "as_written"
    _benches: "list[Bench]" = Factory(list)

    def bench(self, *, hardware: str = "single", **options: Any) -> "Bench":
        """Return a `gpusvm.testing.Bench` with the driver on every device of a topology; `options` are its."""
        from gpusvm.machine import load_topology
        from gpusvm.testing import Bench

        topology = load_topology(hardware)
        made = Bench(self.driver, drivers=self.drivers, quirks=self.quirks, topology=topology, **options)
        self._benches.append(made)
        return made

    @property
    def info(self) -> "DriverInfo":
        """Return what the driver declares."""
        from gpusvm.driver import read_spec

        return read_spec(self.driver, self.drivers).info

    def need(self, *capabilities: str) -> None:
        """End the probe unless the driver declares these capabilities."""
        for name in capabilities:
            capability = getattr(self.info.capabilities, name)
            if not capability:
                raise NotApplicableError(f"{name.replace('_', ' ')}: {capability.how}")

    def close(self) -> None:
        """Tear every machine down. ModelError if anything is left, or a read was wrong."""
        while self._benches:
            self._benches.pop().close()


@frozen(kw_only=True)
class Observation:
    """Hold what one probe saw of one driver.

    `expected` is None where nothing is known, `declared` what the driver says about the capability that the question
    is about, None if it is about none. `deviation` is the reason why something else is seen than expected.
    """

    id: str
    title: str
    driver: str
    observed: str
    expected: str | None
    declared: str | None
    deviation: str | None
    reference: str

    @property
    def agrees(self) -> bool:
        """Tell whether what was seen is expected, or a deviation that is known and has a reason."""
        seen = expectations()[self.id].seen.get(self.driver)
        return self.observed == (self.expected if seen is None else seen)

    def to_json(self) -> dict[str, str | None]:
        """Return it as plain values."""
        return asdict(self)


@frozen(kw_only=True)
class Probe:
    """Be one row of the table of semantic differences.

    `ask` does it in a lab and says in a few words what it saw. `reference` is where Linux says so, `capability` which
    capability of the driver it is about.
    """

    id: str
    title: str
    reference: str
    capability: str | None
    ask: Callable[[Lab], str]

    def observe(self, driver: str, drivers: "dict[str, DriverInfo]", *, quirks: _Quirks = "as_written") -> Observation:
        """Ask a driver. ModelError if it leaves anything behind."""
        lab = Lab(driver, drivers, quirks)
        try:
            observed = self.ask(lab)
        except NotApplicableError as reason:
            observed = f"n/a: {reason}"
        lab.close()
        row = expectations()[self.id]
        name = lab.info.name
        return Observation(
            id=self.id,
            title=self.title,
            driver=name,
            observed=observed,
            expected=row.of(name),
            declared=str(getattr(lab.info.capabilities, self.capability)) if self.capability else None,
            deviation=row.deviation.get(name),
            reference=self.reference,
        )


def probe(
    id_: str, title: str, *, reference: str, capability: str | None = None
) -> Callable[[Callable[[Lab], str]], Callable[[Lab], str]]:
    """Make a probe of a function."""

    def register(ask: Callable[[Lab], str]) -> Callable[[Lab], str]:
        if id_ in PROBES:
            raise ModelError(f"two probes are called {id_}")
        PROBES[id_] = Probe(id=id_, title=title, reference=reference, capability=capability, ask=ask)
        return ask

    return register


def written(bench: "Bench", pages: int = PMD_PAGES) -> int:
    """Map anonymous memory and write it from the CPU; its address."""
    addr = bench.map(pages * PAGE)
    bench.cpu_write(addr, pages)
    return addr


def populated(bench: "Bench", pages: int = PMD_PAGES) -> int:
    """Do so, and have the driver bring it to the device."""
    addr = written(bench, pages)
    bench.vm.populate(addr, addr + pages * PAGE)
    if bench.device_pages(addr, pages) != pages:
        raise ModelError(f"{bench.device_pages(addr, pages)} of {pages} pages came to the device, with none in the way")
    return addr


def answer(act: Callable[[], object]) -> str:
    """Say how an operation ends: ok, or the name of its errno."""
    try:
        act()
    except KernelError as error:
        return errno_name(error.errno)
    return "ok"


@contextmanager
def told(bench: "Bench", kind: str) -> "Iterator[list[tuple[Any, ...]]]":
    """Collect the fields of the events of a kind that the model tells inside the block."""
    tracer = bench.kernel.tracer
    was, tracer.on = tracer.on, True
    begun = len(tracer.events)
    found: list[tuple[Any, ...]] = []
    try:
        yield found
    finally:
        tracer.on = was
        found += [tuple(fields) for _, _, each, *fields in tracer.events[begun:] if each == kind]


@contextmanager
def instead(of: object, name: str, use: Callable[..., Any]) -> "Iterator[None]":
    """Put a function in place of a method of an object for a while: something that happens in the middle of a call."""
    setattr(of, name, use)
    try:
        yield
    finally:
        delattr(of, name)
