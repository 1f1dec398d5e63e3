"""Set scenes of two drivers in one machine: the one under test on device 0, and another on device 1."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from gpusvm.conformance.agreement import agree
from gpusvm.conformance.scene import instead
from gpusvm.conformance.small import BLOCK_PAGES, PAGE, small
from gpusvm.errors import ModelError

if TYPE_CHECKING:
    from gpusvm.conformance.suite import Lab
    from gpusvm.driver import DriverSpec
    from gpusvm.mm.api import HmmRange
    from gpusvm.testing import Bench

__all__ = ["MINE", "THEIRS", "both_agree", "bring", "by", "lies_on", "mapped", "owners", "owners_named", "pair"]

MINE: Final = 0
"""The device whose driver is under test."""
THEIRS: Final = 1
"""The device of the other driver."""


def pair(lab: "Lab", *, hardware: str = "dual", beside: "DriverSpec | None" = None, **options: Any) -> "Bench":
    """Boot a small machine with the driver that is asked on all devices but the second, which has another: `beside`, or
    the one that the lab is told.
    """
    return small(lab, hardware=hardware, beside=[beside or lab.other], **options)


@contextmanager
def by(bench: "Bench", device: int) -> Iterator[None]:
    """Let the accesses inside the block be a device's."""
    was, bench.vm = bench.vm, bench.vms[device]
    try:
        yield
    finally:
        bench.vm = was


def bring(bench: "Bench", device: int, addr: int, pages: int = BLOCK_PAGES) -> int:
    """Have a device's driver bring pages to it; their address. ModelError if it leaves one behind."""
    bench.vms[device].populate(addr, addr + pages * PAGE)
    there = lies_on(bench, device, addr, pages)
    if there != pages:
        raise ModelError(f"populate brought {there} of {pages} pages to device {device}, with nothing in their way")
    return addr


def lies_on(bench: "Bench", device: int, addr: int, pages: int = BLOCK_PAGES) -> int:
    """Count the pages of a stretch that are in the memory of a device."""
    mine = {id(pgmap) for pgmap in bench.machine.drivers[device].dev_pagemaps()}
    entries = (bench.mm.page_table.entry(addr + page * PAGE) for page in range(pages))
    return sum(entry.pfn >= 0 and id(bench.memory.page_pgmap(entry.pfn)) in mine for entry in entries)


def mapped(bench: "Bench", device: int, addr: int, pages: int = BLOCK_PAGES) -> int:
    """Count the pages of a stretch that a device has mapped."""
    with by(bench, device):
        return bench.mapped_pages(addr, pages)


def both_agree(lab: "Lab", bench: "Bench", addr: int, pages: int = BLOCK_PAGES) -> None:
    """Let every device and the CPUs read and write the same pages in turns (`agree`)."""
    for device in range(len(bench.vms)):
        with by(bench, device):
            agree(lab, bench, addr, pages, info=bench.machine.drivers[device].info)


def owners(bench: "Bench", device: int) -> set[int]:
    """Return who owns a device's memory, as identities."""
    return {id(pgmap.owner) for pgmap in bench.machine.drivers[device].dev_pagemaps()}


@contextmanager
def owners_named(bench: "Bench") -> Iterator[set[int]]:
    """Collect whose device pages drivers say that they can use (hmm_range.dev_private_owner), as identities."""
    memory, found = bench.memory, set[int]()

    def noting(read: Callable[..., None]) -> Callable[..., None]:
        def note(range_: "HmmRange", *arguments: Any) -> None:
            found.add(id(range_.dev_private_owner))
            read(range_, *arguments)

        return note

    with (
        instead(memory, "hmm_range_fault", noting(memory.hmm_range_fault)),
        instead(memory, "hmm_range_fault_unlocked_timeout", noting(memory.hmm_range_fault_unlocked_timeout)),
    ):
        yield found
