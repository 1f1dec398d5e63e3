"""Describe a trace in numbers: how long it is, and what kind of locality it has."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpusvm.workload.trace import ATOMIC, CPU, GPU, PAGE_BYTES, READ, WRITE, Trace

__all__ = ["trace_info"]

_MIB_PAGES = 2**20 // PAGE_BYTES
_NEAR_PAGES, _NEAR_EVENTS = 16, 32
_BLOCK_PAGES, _BLOCK_EVENTS = 512, 64


def trace_info(trace: Trace) -> dict[str, Any]:
    """Return what `gpusvm trace info` shows; only JSON types, names and units as in docs/reference/trace-format.md.

    `duration_ns` is the time of the last event. Shares are of events: `retouch_share` 1 - distinct pages / events; the
    rest of GPU events alone: `next_page_share` whose page is the page before + 1; `near_share` within 16 pages of one
    of the last 32, the same page aside; `same_2mib_share` in the aligned 2 MiB of one of the last 64. A share of no
    events is None.
    """
    gpu_page = trace.page[trace.agent == GPU].astype(np.int64)
    return {
        "name": trace.name,
        "about": trace.about,
        "sha256": trace.sha256,
        "file_bytes": trace.file_bytes,
        "footprint_pages": trace.footprint_pages,
        "footprint_mib": trace.footprint_pages / _MIB_PAGES,
        "pages_touched": len(np.unique(trace.page)),
        "duration_ns": int(trace.time_ns[-1]),
        "end_ns": trace.end_ns,
        "bucket_ns": trace.bucket_ns,
        "gpu_ms_logged": trace.gpu_ms_logged,
        "gpu_ms_unlogged": trace.gpu_ms_unlogged,
        "gpu_time_ratio": trace.gpu_ms_logged / trace.gpu_ms_unlogged,
        "launches": len(trace.launches),
        "cpu_phases": len(trace.cpu_phases),
        "sms": len(np.unique(trace.sm[trace.agent == GPU])),
        "agent_switches": int(np.count_nonzero(np.diff(trace.agent))),
        "events": len(trace),
        "gpu_read": _count(trace, GPU, READ),
        "gpu_write": _count(trace, GPU, WRITE),
        "gpu_atomic": _count(trace, GPU, ATOMIC),
        "cpu_read": _count(trace, CPU, READ),
        "cpu_write": _count(trace, CPU, WRITE),
        "retouch_share": 1 - len(np.unique(trace.page)) / len(trace),
        "gpu_retouch_share": 1 - len(np.unique(gpu_page)) / len(gpu_page) if len(gpu_page) else None,
        "next_page_share": _share(np.diff(gpu_page) == 1, len(gpu_page)),
        "near_share": _share(_near(gpu_page), len(gpu_page)),
        "same_2mib_share": _share(_same_block(gpu_page), len(gpu_page)),
        "allocations": [{"name": a.name, "start_page": a.start_page, "pages": a.pages} for a in trace.allocations],
        "kernels": [{"name": k.name, "blocks": k.blocks, "threads": k.threads} for k in trace.kernels],
    }


def _count(trace: Trace, agent: int, op: int) -> int:
    return int(np.count_nonzero((trace.agent == agent) & (trace.op == op)))


def _share(hits: NDArray[np.bool_], events: int) -> float | None:
    return int(np.count_nonzero(hits)) / events if events else None


def _near(page: NDArray[np.int64]) -> NDArray[np.bool_]:
    near = np.zeros(len(page), dtype=np.bool_)
    for back in range(1, min(_NEAR_EVENTS, len(page) - 1) + 1):
        distance = np.abs(page[back:] - page[:-back])
        near[back:] |= (distance <= _NEAR_PAGES) & (distance > 0)
    return near


def _same_block(page: NDArray[np.int64]) -> NDArray[np.bool_]:
    block = page // _BLOCK_PAGES
    same = np.zeros(len(page), dtype=np.bool_)
    for back in range(1, min(_BLOCK_EVENTS, len(page) - 1) + 1):
        same[back:] |= block[back:] == block[:-back]
    return same
