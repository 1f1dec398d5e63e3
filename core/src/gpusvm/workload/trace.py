"""Hold a page-touch trace in memory: which 4 KiB pages a program touched, when, how, and from which side.

The file format is docs/reference/trace-format.md; `gpusvm.workload.parquet` reads and writes it.
"""

from typing import TypeAlias

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

__all__ = [
    "ALLOCATION_ALIGN_PAGES",
    "ATOMIC",
    "CPU",
    "GPU",
    "NO_SM",
    "PAGE_BYTES",
    "READ",
    "WRITE",
    "Allocation",
    "CpuPhases",
    "Int64s",
    "Kernel",
    "Launches",
    "Trace",
]

PAGE_BYTES = 4096
ALLOCATION_ALIGN_PAGES = 512  # 2 MiB, so that each allocation can be a VMA that huge pages fill
GPU, CPU = 0, 1  # column `agent`
READ, WRITE, ATOMIC = 0, 1, 2  # column `op`
NO_SM = 65535  # column `sm` on CPU rows

Int64s: TypeAlias = NDArray[np.int64]


@frozen(kw_only=True)
class Allocation:
    """Name one array of the program: pages `start_page` to `start_page + pages` of the trace's flat space."""

    name: str
    start_page: int
    pages: int


@frozen(kw_only=True)
class Kernel:
    """Name one kernel with one launch shape."""

    name: str
    blocks: int
    threads: int


@frozen(kw_only=True, eq=False)
class Launches:
    """List the kernel launches in order, as columns (read-only int64 arrays of one length).

    `kernel` indexes `Trace.kernels`; `call_ns` is the host's launch call, `start_ns` the start of the first block,
    `end_ns` the end of the kernel.
    """

    kernel: Int64s
    call_ns: Int64s
    start_ns: Int64s
    end_ns: Int64s

    def __len__(self) -> int:
        return len(self.kernel)


@frozen(kw_only=True, eq=False)
class CpuPhases:
    """List the host's phases in order, as columns (read-only int64 arrays of one length).

    `name` indexes `Trace.cpu_phase_names`. A phase begins with a call into the host loop, so the first may start
    below 0.
    """

    name: Int64s
    start_ns: Int64s
    end_ns: Int64s

    def __len__(self) -> int:
        return len(self.name)


@frozen(kw_only=True, eq=False)
class Trace:
    """Hold one validated trace; every array is read-only and the five columns have one length.

    Columns: `time_ns` int64, never decreasing; `agent` uint8 (`GPU`, `CPU`); `page` uint32, 4 KiB pages, each inside an
    allocation; `op` uint8 (`READ`, `WRITE`, `ATOMIC`); `sm` uint16 (`NO_SM` on CPU rows). Allocations start on 2 MiB
    and do not overlap. `gpu_ms_logged` and `gpu_ms_unlogged` are the kernels' milliseconds with the log on and off;
    `bucket_ns` is how long a page in use stays one row; `sha256` (hex) and `file_bytes` are of the file, so `sha256` is
    the workload hash of a run.
    """

    name: str
    about: str
    allocations: tuple[Allocation, ...]
    kernels: tuple[Kernel, ...]
    launches: Launches
    cpu_phase_names: tuple[str, ...]
    cpu_phases: CpuPhases
    time_ns: Int64s
    agent: NDArray[np.uint8]
    page: NDArray[np.uint32]
    op: NDArray[np.uint8]
    sm: NDArray[np.uint16]
    gpu_ms_logged: float
    gpu_ms_unlogged: float
    bucket_ns: int
    end_ns: int
    sha256: str
    file_bytes: int

    def __len__(self) -> int:
        return len(self.time_ns)

    @property
    def footprint_pages(self) -> int:
        """Sum the pages of the allocations, touched or not."""
        return sum(allocation.pages for allocation in self.allocations)

    @property
    def kernel_names(self) -> tuple[str, ...]:
        return tuple(kernel.name for kernel in self.kernels)

    @property
    def unlogged_scale(self) -> float:
        """Say what to multiply intervals between GPU rows with, to undo the slow-down of the log."""
        return self.gpu_ms_unlogged / self.gpu_ms_logged
