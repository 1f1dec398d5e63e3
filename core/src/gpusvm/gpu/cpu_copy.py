"""Copies of a device without a copy engine: the CPU does them."""

from gpusvm.kernel import Kernel

__all__ = ["charge_cpu_copy"]


def charge_cpu_copy(kernel: Kernel, nbytes: int, pieces: int) -> None:
    """Charge the running task for copying or clearing `nbytes` in `pieces` contiguous blocks by CPU (memcpy)."""
    costs = kernel.costs
    if costs is not None:
        kernel.charge("cpu_copy_base", pieces)
        kernel.charge_ns("cpu_copy_per_byte", round(costs.cpu_copy_per_byte * nbytes))
