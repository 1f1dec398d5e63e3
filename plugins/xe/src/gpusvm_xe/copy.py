"""drivers/gpu/drm/xe/xe_svm.c:xe_svm_copy and xe_migrate.c:xe_migrate_vram, as of Linux 7.3.4: the blitter moves pages.

One command per run of contiguous device pages, at most 8 MiB each; the other side may be scattered, it is addressed
through entries that the command carries. The hook waits for the last command: nothing of the migration overlaps it.
"""

import errno
from typing import TYPE_CHECKING, Final

import numpy as np
from gpusvm.drm import DRM_INTERCONNECT_SYSTEM, Devmem, Fence, PagemapAddrs, copy_contents
from gpusvm.errors import KernelError
from gpusvm.gpu import D2H, H2D, CopyEngine, Direction
from gpusvm.mm.api import Pfns

from gpusvm_xe.gt import SIZES

if TYPE_CHECKING:
    from gpusvm.kernel import Kernel
    from gpusvm.mm.api import MemoryManagerApi

    from gpusvm_xe.bo import XeVram

__all__ = ["EngineFence", "XeDevmemOps"]

# The counter of all commands, and those of commands that copy as much as a range has.
_COPY_KB: Final = {
    direction: (f"svm_{whose}_copy_kb", {size: f"svm_{name}_{whose}_copy_kb" for size, name in SIZES.items()})
    for direction, whose in ((H2D, "device"), (D2H, "cpu"))
}


class EngineFence(Fence):
    """Stand for a command of an engine, of which it is known when it will be done, unless it is `late`: then the engine
    signals it.
    """

    __slots__ = ("due_ns", "late")

    def __init__(self, kernel: "Kernel", name: str, due_ns: int, *, late: bool = False) -> None:
        super().__init__(kernel, name)
        self.due_ns = due_ns
        self.late = late

    @property
    def is_pending(self) -> bool:
        """Tell whether the command is still to be waited for."""
        return not self.signaled if self.late else self.due_ns > self.kernel.now_ns

    def wait(self) -> int:
        """Sleep until the command is done."""
        if self.late:
            return super().wait()
        now = self.kernel.now_ns
        if self.due_ns > now:
            self.kernel.sleep_ns(self.due_ns - now)
        if not self.signaled:
            self.signal()
        return self.error


class XeDevmemOps:
    """Do for xe's device memory what core asks for (struct drm_pagemap_devmem_ops)."""

    def __init__(
        self,
        memory: "MemoryManagerApi",
        vram: "XeVram",
        engine: CopyEngine,
        *,
        chunk_bytes: int,
        stats: dict[str, int],
    ) -> None:
        self.memory = memory
        self.kernel = memory.kernel
        self.vram = vram
        self.engine = engine
        self.chunk_bytes = chunk_bytes
        self.stats = stats  # of the GT that computes: it is likely the one that faulted
        self.page_shift = memory.geometry.page_shift

    def devmem_release(self, devmem: Devmem) -> None:
        """Give the pages' references back (xe_svm_devmem_release): the buffer object goes from a worker."""
        self.vram.release(devmem)

    def populate_devmem_pfn(self, devmem: Devmem, npages: int) -> Pfns:
        """Walk the buddy blocks of the object in their order (xe_svm_populate_devmem_pfn)."""
        return self.vram.pfns(devmem.container, devmem.dpagemap.pagemap)

    def copy_to_devmem(self, device_pfns: Pfns, addrs: PagemapAddrs, fence: Fence | None) -> None:
        if self.kernel.inject("xe.copy_to_devmem"):
            raise KernelError(errno.EIO, "injected at xe.copy_to_devmem")
        self._copy(H2D, device_pfns, addrs, fence)
        copy_contents(self.memory, device_pfns, addrs.pfns, addrs.order, addrs.npages)

    def copy_to_ram(self, device_pfns: Pfns, addrs: PagemapAddrs, fence: Fence | None) -> None:
        """Copy home, or push to a peer's memory when that is what `addrs` map: both leave over this device's link."""
        if self.kernel.inject("xe.copy_to_ram"):
            raise KernelError(errno.EIO, "injected at xe.copy_to_ram")
        self._copy(D2H, device_pfns, addrs, fence)
        copy_contents(self.memory, addrs.pfns, device_pfns, addrs.order, addrs.npages)
        if len(addrs) and addrs.proto[0] != DRM_INTERCONNECT_SYSTEM and self.kernel.tracer.on:
            self.kernel.tracer.emit("copy_p2p", int(device_pfns[0]), addrs.npages)

    def _copy(self, direction: Direction, device_pfns: Pfns, addrs: PagemapAddrs, fence: Fence | None) -> None:
        """Queue the commands, the first of them behind `fence`, and wait for the last."""
        job = self.vram.power.job
        job.get()
        engine = self.engine
        after_ns = 0
        if fence is not None:
            if isinstance(fence, EngineFence) and not fence.late:
                after_ns = fence.due_ns
            else:
                fence.wait()
        through = after_ns
        npages = addrs.npages
        rows = len(addrs.pfns)
        size = npages << self.page_shift
        if not rows:
            pass  # nothing but holes: the clear is all there is to wait for
        elif size <= self.chunk_bytes and (
            rows == 1 or (rows == npages and int(device_pfns[-1]) - int(device_pfns[0]) == npages - 1)
        ):
            self._count(direction, size)
            through = engine.copy(direction, size, rows, after_ns=after_ns)
        else:
            for n, (nbytes, pieces) in enumerate(self._commands(device_pfns, addrs)):
                self._count(direction, nbytes)
                through = engine.copy(direction, nbytes, pieces, after_ns=after_ns, chained=n > 0)
        engine.wait(through)
        job.put()

    def _count(self, direction: Direction, nbytes: int) -> None:
        """Count a command by its size (xe_svm_copy_kb_stats_incr)."""
        total, by_size = _COPY_KB[direction]
        self.stats[total] += nbytes >> 10
        if nbytes in by_size:
            self.stats[by_size[nbytes]] += nbytes >> 10

    def _commands(self, device_pfns: Pfns, addrs: PagemapAddrs) -> list[tuple[int, int]]:
        """Cut where device memory is not contiguous and where a command gets too long: bytes and pieces of each."""
        sizes = np.left_shift(1, addrs.order.astype(np.int64))
        cuts = np.flatnonzero(device_pfns[1:] != device_pfns[:-1] + sizes[:-1]) + 1
        most = self.chunk_bytes >> self.page_shift
        commands: list[tuple[int, int]] = []
        for run in np.split(sizes, cuts):
            pages = pieces = 0
            for row in run.tolist():
                left = row
                while pages + left > most:
                    fits = most - pages
                    commands.append((most << self.page_shift, pieces + (1 if fits else 0)))
                    left -= fits
                    pages = pieces = 0
                if left:
                    pages += left
                    pieces += 1
            if pages:
                commands.append((pages << self.page_shift, pieces))
        return commands
