"""Do what kfd's ioctl for attributes does by name, for scenarios: there are no recordings of kfd."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from gpusvm.driver.operations import Answer, OperationHost, OperationTarget

if TYPE_CHECKING:
    from gpusvm_kfd.attributes import Access
    from gpusvm_kfd.process import KfdFile

__all__ = ["OPERATIONS", "KfdOperations"]

_ACCESS: "tuple[Access, ...]" = ("none", "access", "in_place")


class KfdOperations:
    """Do the ioctls of one process, which has each device open."""

    def __init__(self, host: OperationHost) -> None:
        self.host = host
        self.files: list[KfdFile] = list(host.vms)  # type: ignore[arg-type]  # what vm_create of kfd returns

    def take_events(self) -> tuple[str, ...]:
        """Return nothing: nobody listens."""
        return ()

    def execute(self, name: str, numbers: Sequence[int]) -> Answer:
        """Do one ioctl. KernelError stands for an answer of -1."""
        answer: Answer = getattr(self, name)(*numbers)
        return answer

    def prefer(self, dev: int, slot: int, page: int, n: int, device: int) -> Answer:
        """Prefer the memory of a GPU."""
        self.files[dev].set_attr(*self._span(slot, page, n), preferred_loc=device)
        return Answer()

    def prefer_ram(self, dev: int, slot: int, page: int, n: int) -> Answer:
        self.files[dev].set_attr(*self._span(slot, page, n), preferred_loc="system")
        return Answer()

    def prefetch_ram(self, dev: int, slot: int, page: int, n: int) -> Answer:
        self.files[dev].set_attr(*self._span(slot, page, n), prefetch_loc="system")
        return Answer()

    def access(self, dev: int, slot: int, page: int, n: int, how: int) -> Answer:
        """Say what the GPU may do: 0 nothing, 1 have the memory moved, 2 reach it in place."""
        self.files[dev].set_attr(*self._span(slot, page, n), access={self.files[dev].pdd.gpu: _ACCESS[how]})
        return Answer()

    def granularity(self, dev: int, slot: int, page: int, n: int, pages_log2: int) -> Answer:
        self.files[dev].set_attr(*self._span(slot, page, n), granularity=pages_log2)
        return Answer()

    def _span(self, slot: int, page: int, n: int) -> tuple[int, int]:
        return self.host.address(slot, page), self.host.address(slot, page + n)


OPERATIONS = OperationTarget(
    driver="kfd",
    devices=1,
    operations={
        "prefer": ("dev", "slot", "page", "n", "device"),
        "prefer_ram": ("dev", "slot", "page", "n"),
        "prefetch_ram": ("dev", "slot", "page", "n"),
        "access": ("dev", "slot", "page", "n", "how"),
        "granularity": ("dev", "slot", "page", "n", "pages_log2"),
    },
    start=KfdOperations,
)
