"""State what a driver's objects do: the driver and its VMs, and the three strategies that make one driver differ
from another.

The ops that run per fault have the kernel's names and live where the kernel has them: `GpuSvmOps`, `PagemapOps` and
`DevmemOps` in `gpusvm.drm`. An optional op is a field that may be None, as a NULL function pointer is.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

from gpusvm.driver.contract import DriverInfo
from gpusvm.driver.fault import FaultAccounts, GpuFault
from gpusvm.driver.unit import FaultUnit
from gpusvm.mm.api import DevPagemap, MmApi, Pfns

if TYPE_CHECKING:
    from gpusvm.drm import DrmDevice, DrmPagemap
    from gpusvm.gpu import GpuPageTable

__all__ = [
    "BoMapping",
    "Driver",
    "FaultPolicy",
    "FaultSource",
    "PagemapEmbedding",
    "RuntimePmPolicy",
    "TiledVm",
    "Vm",
]


class Driver(Protocol):
    """Drive one device of one machine. `DriverInfo.make` builds it, which is the kernel's probe.

    The attributes are for reading: the device, what its faults cost, and the strategies that the driver consists of.
    """

    @property
    def info(self) -> DriverInfo: ...

    @property
    def device(self) -> "DrmDevice": ...

    @property
    def accounts(self) -> FaultAccounts: ...

    @property
    def embedding(self) -> "PagemapEmbedding": ...

    @property
    def bo_mapping(self) -> "BoMapping": ...

    @property
    def pm(self) -> "RuntimePmPolicy": ...

    def pagemaps(self) -> "list[DrmPagemap]":
        """Return the pagemaps that `populate_mm` can be called on, creating a lazy one. Empty without device memory."""

    def dev_pagemaps(self) -> list[DevPagemap]:
        """Return the dev_pagemaps that exist now, in order of creation."""

    def vm_create(self, mm: MmApi, *, start: int, end: int) -> "Vm":
        """Mirror [start, end) of `mm` on the GPU. KernelError: ENODEV after unplug, what the notifiers raise."""

    def shutdown(self) -> None:
        """Remove the device: evacuate its memory, end its workers, give every reference back. The VMs are closed
        before.
        """

    def describe(self) -> Mapping[str, Any]:
        """Return what the driver holds now, as plain values; for messages and reports."""


class Vm(Protocol):
    """Hold one GPU address space that mirrors a process."""

    @property
    def mm(self) -> MmApi: ...

    @property
    def page_table(self) -> "GpuPageTable": ...

    @property
    def faults(self) -> "FaultSource": ...

    def populate(self, start: int, end: int) -> int:
        """Migrate [start, end) on the program's request; the number of bytes this call brought to the device.

        It is the driver's ioctl (a bind operation, SVM_BIND, MIGRATE_TO_DEV), taken by the calling task. Best effort:
        what cannot move stays. KernelError where that ioctl has an errno to return: EINVAL, ENODEV, EOPNOTSUPP.
        """

    def close(self) -> None:
        """End the address space: no fault is served afterwards, and no notifier changes anything of it.

        A driver whose ranges belong to the process (kfd) may keep its notifiers until that ends.
        """


class TiledVm(Vm, Protocol):
    """Be a Vm of a device with tiles: the Vm itself is what the first of them uses."""

    def on_tile(self, index: int) -> Vm:
        """Return the same address space as the engines of another tile use it: a page table and faults of their own."""


class FaultSource(Protocol):
    """Take faults from a GPU. It may be asynchronous (a buffer and workers) or serve them in the caller's thread."""

    def submit(self, faults: Sequence[GpuFault]) -> int:
        """Deliver `faults` in order; how many were taken. The others found the buffer full: raise them again later."""

    def on_replay(self, listener: Callable[[], None]) -> None:
        """Call `listener` after each replay, when every access that waits may be tried again."""


class PagemapEmbedding(Protocol):
    """Say where the dev_pagemap lives, and so how a page leads to the driver's object.

    Sibling of the drm_pagemap, inside a chunk, inside the device, inside a pagemap of PCI p2p: each is another
    answer to `container_of`.
    """

    def container_of(self, pgmap: DevPagemap) -> Any:
        """Return the driver's object that holds `pgmap`."""

    def dev_pagemaps(self) -> list[DevPagemap]:
        """Return those that exist now."""

    def pagemap_of(self, pgmap: DevPagemap) -> "DrmPagemap | None":
        """Return the drm_pagemap that `pgmap` belongs to, None if the driver has none there."""


class BoMapping(Protocol):
    """Say how a device page leads to the buffer object (or chunk) that holds it."""

    def attach(self, bo: Any, pfns: Pfns) -> None:
        """Remember that `bo` holds `pfns`, before they become live pages."""

    def bo_of(self, pfn: int) -> Any:
        """Return the object that holds the live device page `pfn`."""

    def split(self, head: int, tail: int) -> None:
        """Follow the split of a device folio: `tail` is a folio of its own from now on."""

    def free(self, pfn: int, order: int) -> None:
        """Forget a folio whose last reference is gone. May run in atomic context."""


class RuntimePmPolicy(Protocol):
    """Say which runtime-PM reference is held for what. A driver without runtime PM does nothing in all of them."""

    def populate(self) -> AbstractContextManager[None]:
        """Surround one populate: the device is awake inside."""

    def pages_present(self, bo: Any) -> None:
        """Take what the pages of `bo` need: they are about to become part of an address space."""

    def pages_gone(self, bo: Any) -> None:
        """Give back what `pages_present` took: the last page of `bo` left. May run in atomic context."""

    def ioctl(self) -> AbstractContextManager[None]:
        """Surround one ioctl."""

    def fault(self) -> AbstractContextManager[None]:
        """Surround one turn of a fault worker."""

    def prepare(self) -> None:
        """Get ready for system sleep while user space still runs (PM_SUSPEND_PREPARE)."""

    def suspend(self) -> None:
        """Put the device to sleep with the system; user space is frozen. A KernelError refuses it."""

    def resume(self) -> None:
        """Wake it with the system; user space is still frozen."""

    def complete(self) -> None:
        """Give back what `prepare` took; user space runs again (PM_POST_SUSPEND)."""


class FaultPolicy(Protocol):
    """Decide, for the device that took a fault, whether to migrate and to where.

    `state` is what `new_state` returned when the unit was first seen. The unit keeps it: a range for its life, a bare
    window for the one fault.
    """

    def new_state(self, unit: FaultUnit) -> Any:
        """Return the state of a new range or window; None if the policy needs none."""

    def place(self, fault: GpuFault, unit: FaultUnit, state: Any) -> "DrmPagemap | None":
        """Choose the pagemap to populate (its own device's or another's), or None to map the memory where it is."""
