"""Read the page-touch traces that runs replay, and derive the program order a replay has to respect.

Importing this room does not import pyarrow; `load`, `read_trace` and `write_trace` do, when called.
"""

from typing import TYPE_CHECKING, Any

from gpusvm.workload.bundled import DEFAULT_WORKLOADS, bundled, load
from gpusvm.workload.info import trace_info
from gpusvm.workload.segments import CpuPhase, Launch, Segment, segments
from gpusvm.workload.trace import ATOMIC, CPU, GPU, NO_SM, READ, WRITE, Allocation, CpuPhases, Kernel, Launches, Trace

if TYPE_CHECKING:
    from gpusvm.workload.parquet import read_trace, write_trace

__all__ = [
    "ATOMIC",
    "CPU",
    "DEFAULT_WORKLOADS",
    "GPU",
    "NO_SM",
    "READ",
    "WRITE",
    "Allocation",
    "CpuPhase",
    "CpuPhases",
    "Kernel",
    "Launch",
    "Launches",
    "Segment",
    "Trace",
    "bundled",
    "load",
    "read_trace",
    "segments",
    "trace_info",
    "write_trace",
]


def __getattr__(name: str) -> Any:
    if name in {"read_trace", "write_trace"}:
        from gpusvm.workload import parquet

        return getattr(parquet, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
