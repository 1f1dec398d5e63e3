"""Do xe's own ioctls by name, for scenarios: there are no recordings of xe."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from gpusvm.driver.operations import Answer, OperationHost, OperationTarget

from gpusvm_xe.attributes import SYSTEM, PreferredLocation
from gpusvm_xe.madvise import fd_of

if TYPE_CHECKING:
    from gpusvm_xe.vm import XeVm

__all__ = ["OPERATIONS", "XeOperations"]


class XeOperations:
    """Do the ioctls of one process, which has each device open."""

    def __init__(self, host: OperationHost) -> None:
        self.host = host
        self.vms: list[XeVm] = list(host.vms)  # type: ignore[arg-type]  # what vm_create of xe returns

    def take_events(self) -> tuple[str, ...]:
        """Return nothing: nobody listens."""
        return ()

    def execute(self, name: str, numbers: Sequence[int]) -> Answer:
        """Do one ioctl. KernelError stands for an answer of -1."""
        answer: Answer = getattr(self, name)(*numbers)
        return answer

    def prefer(self, dev: int, slot: int, page: int, n: int, device: int, region: int) -> Answer:
        """Prefer a region of a device of the machine."""
        return self._prefer(dev, slot, page, n, PreferredLocation(devmem_fd=fd_of(device), region_instance=region))

    def prefer_ram(self, dev: int, slot: int, page: int, n: int) -> Answer:
        return self._prefer(dev, slot, page, n, SYSTEM)

    def prefer_own(self, dev: int, slot: int, page: int, n: int) -> Answer:
        """Prefer the VRAM of the tile that faults, which is the default."""
        return self._prefer(dev, slot, page, n, PreferredLocation())

    def atomics(self, dev: int, slot: int, page: int, n: int, whose: int) -> Answer:
        self.vms[dev].madvise(*self._span(slot, page, n), atomic=whose)
        return Answer()

    def prefetch(self, dev: int, slot: int, page: int, n: int, region: int) -> Answer:
        self.vms[dev].populate(*self._span(slot, page, n), region=region)
        return Answer()

    def userptr(self, dev: int, slot: int, page: int, n: int) -> Answer:
        """Bind memory by itself, at its own addresses."""
        self.vms[dev].bind_userptr(*self._span(slot, page, n))
        return Answer()

    def mirror(self, dev: int, autoreset: int) -> Answer:
        """Bind the whole address space anew."""
        vm = self.vms[dev]
        vm.mirror(vm.start, vm.end, autoreset=bool(autoreset))
        return Answer()

    def _prefer(self, dev: int, slot: int, page: int, n: int, location: PreferredLocation) -> Answer:
        self.vms[dev].madvise(*self._span(slot, page, n), preferred_location=location)
        return Answer()

    def _span(self, slot: int, page: int, n: int) -> tuple[int, int]:
        return self.host.address(slot, page), self.host.address(slot, page + n)


OPERATIONS = OperationTarget(
    driver="xe",
    devices=1,
    operations={
        "prefer": ("dev", "slot", "page", "n", "device", "region"),
        "prefer_ram": ("dev", "slot", "page", "n"),
        "prefer_own": ("dev", "slot", "page", "n"),
        "atomics": ("dev", "slot", "page", "n", "whose"),
        "prefetch": ("dev", "slot", "page", "n", "region"),
        "userptr": ("dev", "slot", "page", "n"),
        "mirror": ("dev", "autoreset"),
    },
    start=XeOperations,
)
