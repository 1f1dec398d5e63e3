"""drivers/gpu/drm/drm_gpusvm.c:struct drm_gpusvm_range, as of Linux 7.3.4: a piece of the CPU's address space that a
GPU maps.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gpusvm.errors import ModelError
from gpusvm.mm.api import MmuNotifierRange

if TYPE_CHECKING:
    from gpusvm.drm.gpusvm import GpuSvm
    from gpusvm.drm.notifier import GpuSvmNotifier
    from gpusvm.drm.pages import GpuSvmPages


class GpuSvmRange:
    """Be one range; a driver's own class derives from it and is built by ``GpuSvmOps.range_alloc`` without arguments.

    [start, end) is one chunk: a power of two in size, aligned to it, never longer than a PMD. `pages` is how the
    gpusvm's device maps it; without such a device it is the driver's class that has pages, of as many devices as it
    likes. `unmapped`: a munmap has hit it, and no pages can be got for it any more; `partial_unmap`: it hit a part.
    `policy_state` is what the driver remembers of its faults. `migrate_devmem`, fixed at creation, says that its memory
    can go to a device. References: one of the tree, and whoever calls get.
    """

    __slots__ = (
        "end",
        "gpusvm",
        "migrate_devmem",
        "notifier",
        "npages",
        "pages",
        "partial_unmap",
        "policy_state",
        "refcount",
        "removed",
        "start",
        "unmapped",
    )

    gpusvm: "GpuSvm"
    notifier: "GpuSvmNotifier"
    pages: "GpuSvmPages"
    start: int
    end: int
    npages: int
    migrate_devmem: bool
    unmapped: bool
    partial_unmap: bool
    policy_state: Any
    removed: bool
    refcount: int

    def __repr__(self) -> str:
        return f"<{type(self).__name__} [{self.start:#x}, {self.end:#x})>"

    @property
    def size_bytes(self) -> int:
        """Return its length."""
        return self.end - self.start

    def get(self) -> "GpuSvmRange":
        """Take a reference (drm_gpusvm_range_get)."""
        if self.refcount <= 0:
            raise ModelError(f"{self!r}: a reference is taken after the last was put")
        self.refcount += 1
        return self

    def put(self) -> None:
        """Drop a reference (drm_gpusvm_range_put); the last calls ``GpuSvmOps.range_free``."""
        if self.refcount <= 0:
            raise ModelError(f"{self!r}: one reference too many is put")
        self.refcount -= 1
        if not self.refcount:
            self.gpusvm._range_destroy(self)

    def set_unmapped(self, mmu_range: MmuNotifierRange, pages: "Sequence[GpuSvmPages]") -> None:
        """Mark as unmapped, with all its `pages`, and as partly so if it is not all within `mmu_range`
        (drm_gpusvm_range_set_unmapped). The notifier lock is held for writing.
        """
        self.unmapped = True
        for each in pages:
            each.unmapped = True
        if self.start < mmu_range.start or self.end > mmu_range.end:
            self.partial_unmap = True
