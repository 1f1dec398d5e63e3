"""Name what a GPU fault carries to a driver, and keep the accounts of how faults were served."""

from array import array
from typing import Final, Protocol

__all__ = [
    "ACCESS_ATOMIC",
    "ACCESS_NAMES",
    "ACCESS_PREFETCH",
    "ACCESS_READ",
    "ACCESS_WRITE",
    "STAGES",
    "STAGE_ACK",
    "STAGE_BIND",
    "STAGE_GC",
    "STAGE_GET_PAGES",
    "STAGE_LOOKUP",
    "STAGE_MIGRATE",
    "STAGE_QUEUE",
    "FaultAccounts",
    "GpuFault",
]

# The access classes of a fault buffer entry (drivers/gpu/drm/nouveau/nouveau_svm.c numbers them so).
ACCESS_READ: Final = 0
ACCESS_WRITE: Final = 1
ACCESS_ATOMIC: Final = 2
ACCESS_PREFETCH: Final = 3
ACCESS_NAMES: Final = ("read", "write", "atomic", "prefetch")

# The stages of one fault, top to bottom (`gpusvm.driver.pipeline`).
STAGES: Final = ("queue", "gc", "lookup", "migrate", "get_pages", "bind", "ack")
STAGE_QUEUE: Final = 0
STAGE_GC: Final = 1
STAGE_LOOKUP: Final = 2
STAGE_MIGRATE: Final = 3
STAGE_GET_PAGES: Final = 4
STAGE_BIND: Final = 5
STAGE_ACK: Final = 6


class GpuFault(Protocol):
    """A fault as the GPU raised it; `gpusvm.gpu.FaultEntry` is one.

    `addr` is page aligned, `access` one of the ACCESS_ numbers, `sm` the compute unit that waits, `inst` the address
    space (an asid or an instance pointer; the Vm that takes the fault sets it), `time_ns` when it was raised.
    """

    addr: int
    access: int
    sm: int
    inst: int
    time_ns: int

    def complete(self, errno: int) -> None:
        """Tell whoever raised the fault how it ended: 0 lets the access go on, a positive errno ends it.

        The driver calls it once per fault, at the acknowledgement, replay or cancel.
        """


class FaultAccounts:
    """Count what the pipeline of one device did: ns per stage, and the latency of every delivered fault.

    `stage_ns` has one sum per name in `STAGES`; `latency_ns` one entry per acknowledged fault, in order; `failed`
    counts the faults that ended with an errno.
    """

    __slots__ = ("failed", "latency_ns", "stage_ns")

    def __init__(self) -> None:
        self.stage_ns = [0] * len(STAGES)
        self.latency_ns = array("q")
        self.failed = 0

    def stages(self) -> dict[str, int]:
        """Return the sums by stage name."""
        return dict(zip(STAGES, self.stage_ns, strict=True))
