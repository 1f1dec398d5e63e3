"""include/drm/drm_pagemap.h:struct drm_pagemap_devmem and its ops, as of Linux 7.3.4: one allocation of device
memory.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from attrs import frozen

from gpusvm.drm.addr import PagemapAddrs
from gpusvm.drm.device import DrmDevice
from gpusvm.drm.fence import Fence
from gpusvm.drm.guard import guarded
from gpusvm.kernel import Kernel
from gpusvm.mm.api import MmApi, Pfns

if TYPE_CHECKING:
    from gpusvm.drm.pagemap import DrmPagemap


class DevmemOps(Protocol):
    """What a driver does for its device memory (struct drm_pagemap_devmem_ops). Errors are KernelErrors.

    In both copies row i says: ``1 << addrs.order[i]`` pages, device memory from pfn ``device_pfns[i]``, the other
    side mapped at ``addrs.addr[i]`` by ``addrs.proto[i]`` and, for the contents, at pfn ``addrs.pfns[i]``. There are
    no rows for pages that have no source; with no rows at all copy_to_devmem is still called, so that it can wait for
    `fence`. The copy is done, and the contents have moved (`copy_contents`), when the op returns. Either op may serve
    another device: a source pushes its pages to the memory of a peer with copy_to_ram.
    """

    @property
    def devmem_release(self) -> Callable[["Devmem"], None] | None:
        """Take the allocation back; its last page is gone. May be in atomic context: must not sleep. None: nothing to
        do.
        """

    def populate_devmem_pfn(self, devmem: "Devmem", npages: int) -> Pfns:
        """Return the pfns of the allocation, one a page, in the order of the addresses."""

    def copy_to_devmem(self, device_pfns: Pfns, addrs: PagemapAddrs, fence: Fence | None) -> None:
        """Copy from `addrs` to device memory, not before `fence`."""

    def copy_to_ram(self, device_pfns: Pfns, addrs: PagemapAddrs, fence: Fence | None) -> None:
        """Copy from device memory to `addrs`, not before `fence`."""


@frozen(kw_only=True)
class MigrateDetails:
    """Say how to migrate (struct drm_pagemap_migrate_details)."""

    timeslice_ms: int = 0
    """How long the CPU cannot take the pages back."""
    can_migrate_same_pagemap: bool = False
    """Whether pages that are in the target's memory already may move into the new allocation, or the migration is
    refused.
    """


class Devmem:
    """Be one allocation of device memory, embedded in the driver's buffer object (drm_pagemap_devmem_init).

    `container` is what embeds it. `detached` completes when its last page is gone. `timeslice_expiration_ns` is until
    when CPU faults leave it alone. `cleared` says that the driver zeroed the memory when it allocated it: a page
    without a source then reads as zero, without a copy.
    """

    __slots__ = (
        "_holds_mm",
        "_released",
        "cleared",
        "container",
        "detached",
        "dpagemap",
        "drm",
        "mm",
        "ops",
        "pre_migrate_fence",
        "size_bytes",
        "timeslice_expiration_ns",
    )

    def __init__(
        self,
        drm: DrmDevice,
        mm: MmApi,
        ops: DevmemOps,
        dpagemap: "DrmPagemap",
        size_bytes: int,
        *,
        pre_migrate_fence: Fence | None = None,
        cleared: bool = True,
        container: Any = None,
    ) -> None:
        kernel: Kernel = drm.kernel
        self.drm = drm
        self.mm = mm
        self._holds_mm = dpagemap.quirks.devmem_mm == "fixed"
        if self._holds_mm:
            mm.mmgrab()
        self.ops = ops if kernel.authors is None else guarded(kernel, ops, DevmemOps, dpagemap.memory)
        self.dpagemap = dpagemap
        self.size_bytes = size_bytes
        self.pre_migrate_fence = pre_migrate_fence
        self.cleared = cleared
        self.container = container
        self.timeslice_expiration_ns = 0
        self.detached = kernel.completion("drm_pagemap_detached")
        self._released = False
        if kernel.authors is not None:
            kernel.authors.made(self)

    @property
    def is_empty(self) -> bool:
        """Tell whether no page of it is left, or, but for quirk `not_detached`, there never was one."""
        return bool(self.detached.done) or (self._released and self.dpagemap.quirks.not_detached == "fixed")

    def release(self) -> None:
        """Give the reference that the migration was handed back to the driver."""
        self._released = True
        authors = self.drm.kernel.authors
        if authors is not None:
            authors.consumed(self)
        release = self.ops.devmem_release
        if release is not None:
            release(self)

    def fini(self) -> None:
        """Give back what it holds itself, as the buffer object around it is freed: a reference on the mm, if any."""
        if self._holds_mm:
            self._holds_mm = False
            self.mm.mmdrop()
