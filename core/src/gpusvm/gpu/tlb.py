"""A GPU TLB as far as it costs: what is invalidated, how often, for how long the driver waits."""

from gpusvm.kernel import Kernel

__all__ = ["Tlb"]


class Tlb:
    """Invalidate translations; a model GPU has no stale TLB entries, so only the time and the count remain.

    Charges `tlb_invalidate` to the running task and counts `stats.tlb_invalidations`.
    """

    def __init__(self, kernel: Kernel, name: str = "tlb") -> None:
        self.kernel = kernel
        self.name = name
        self.invalidated_bytes = 0

    def invalidate(self, start: int, end: int, *, waits: bool = True) -> None:
        """Invalidate [start, end) in bytes, and wait until it is done unless one that began with it is waited for."""
        kernel = self.kernel
        self.invalidated_bytes += end - start
        kernel.stats.tlb_invalidations += 1
        tracer = kernel.tracer
        if tracer.on:
            tracer.emit("tlb_invalidate", self.name, start, end)
        if waits:
            kernel.charge("tlb_invalidate")

    def invalidate_all(self) -> None:
        """Invalidate the whole address space and wait until it is done."""
        self.invalidate(0, 0)
