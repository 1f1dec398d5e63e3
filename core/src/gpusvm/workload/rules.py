"""Check the contents of a trace file; each function yields problems as ``place: expected …, got …; the mend``.

The rules are those of docs/reference/trace-format.md. Rows are counted from 0.
"""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from gpusvm.workload.trace import (
    ALLOCATION_ALIGN_PAGES,
    ATOMIC,
    CPU,
    GPU,
    NO_SM,
    PAGE_BYTES,
    READ,
    WRITE,
    Allocation,
    Int64s,
)

__all__ = ["address_problems", "allocation_problems", "event_problems", "page_problems", "time_problems"]

_SPACE_PAGES = 2**32  # `page` is uint32


def allocation_problems(allocations: Sequence[Allocation]) -> Iterator[str]:
    """Yield allocations that are empty, not on 2 MiB, outside the flat space, or on top of one another."""
    for i, allocation in enumerate(allocations):
        place, start = f"allocations[{i}] ('{allocation.name}')", allocation.start_page
        if allocation.pages < 1:
            yield f"{place}: expected 1 page or more, got {allocation.pages}; leave it out"
        if start < 0 or start % ALLOCATION_ALIGN_PAGES:
            up = max(-(-start // ALLOCATION_ALIGN_PAGES), 0) * ALLOCATION_ALIGN_PAGES
            yield (
                f"{place}: expected a start_page that is a multiple of {ALLOCATION_ALIGN_PAGES} (2 MiB), got {start}; "
                f"move the allocation and its pages up to {up}"
            )
        if start + allocation.pages > _SPACE_PAGES:
            end = start + allocation.pages
            yield f"{place}: expected to end by page {_SPACE_PAGES} (16 TiB), got {end}; move it down"
    for first, second in itertools.pairwise(_by_start(allocations)):
        if second.start_page < first.start_page + first.pages:
            yield (
                f"allocations: expected no overlap, got '{first.name}' (pages {first.start_page} to "
                f"{first.start_page + first.pages - 1}) and '{second.name}' (from page {second.start_page}); move one"
            )


def time_problems(time_ns: Int64s) -> Iterator[str]:
    """Yield times that are negative or less than the time of the row before."""
    for row in np.flatnonzero(time_ns < 0):
        yield f"row {row}: column 'time_ns': expected 0 or more, got {time_ns[row]}; count from the first event"
    for row in np.flatnonzero(time_ns[1:] < time_ns[:-1]) + 1:
        yield (
            f"row {row}: column 'time_ns': expected {time_ns[row - 1]} (the row before) or more, got {time_ns[row]}; "
            "sort the rows by time"
        )


def address_problems(address: Int64s) -> Iterator[str]:
    """Yield byte addresses that are negative, inside a page, or beyond what a page number can say."""
    space_bytes = _SPACE_PAGES * PAGE_BYTES
    for row in np.flatnonzero((address < 0) | (address >= space_bytes)):
        yield (
            f"row {row}: column 'address': expected 0 to {space_bytes - 1:#x} (16 TiB), got {address[row]:#x}; "
            "subtract the base of the address space"
        )
    for row in np.flatnonzero(address % PAGE_BYTES):
        yield (
            f"row {row}: column 'address': expected a multiple of {PAGE_BYTES}, got {address[row]:#x}; "
            f"round it down to {address[row] - address[row] % PAGE_BYTES:#x}"
        )


def event_problems(agent: NDArray[np.uint8], op: NDArray[np.uint8], sm: NDArray[np.uint16]) -> Iterator[str]:
    """Yield rows with an unknown agent or op, an atomic of the CPU, or an `sm` that does not go with the agent."""
    for row in np.flatnonzero(agent > CPU):
        yield f"row {row}: column 'agent': expected {GPU} (GPU) or {CPU} (CPU), got {agent[row]}; map it to one"
    for row in np.flatnonzero(op > ATOMIC):
        expected = f"{READ} (read), {WRITE} (write) or {ATOMIC} (atomic)"
        yield f"row {row}: column 'op': expected {expected}, got {op[row]}; map it to one"
    for row in np.flatnonzero((op == ATOMIC) & (agent == CPU)):
        yield f"row {row}: column 'op': expected {READ} or {WRITE} on a CPU row, got {ATOMIC}; make it a write"
    for row in np.flatnonzero((sm == NO_SM) & (agent == GPU)):
        yield f"row {row}: column 'sm': expected 0 to {NO_SM - 1} on a GPU row, got {NO_SM}; use 0 if it is unknown"
    for row in np.flatnonzero((sm != NO_SM) & (agent == CPU)):
        yield f"row {row}: column 'sm': expected {NO_SM} on a CPU row, got {sm[row]}; write {NO_SM}"


def page_problems(page: NDArray[np.uint32], allocations: Sequence[Allocation], *, column: str) -> Iterator[str]:
    """Yield pages that lie in no allocation; `column` is the one of the file that they come from."""
    ordered = _by_start(allocations)
    starts = np.array([allocation.start_page for allocation in ordered], dtype=np.int64)
    stops = np.array([0, *(allocation.start_page + allocation.pages for allocation in ordered)], dtype=np.int64)
    for row in np.flatnonzero(page >= stops[np.searchsorted(starts, page, side="right")]):
        yield (
            f"row {row}: column '{column}': expected a page of an allocation, got page {page[row]}; "
            f"{_nearest_allocation(int(page[row]), ordered)}"
        )


def _by_start(allocations: Sequence[Allocation]) -> list[Allocation]:
    return sorted(allocations, key=lambda allocation: allocation.start_page)


def _nearest_allocation(page: int, allocations: Sequence[Allocation]) -> str:
    if not allocations:
        return "the list of allocations is empty: fill it"
    near = min(allocations, key=lambda a: max(a.start_page - page, page - (a.start_page + a.pages - 1)))
    return f"the nearest, '{near.name}', has pages {near.start_page} to {near.start_page + near.pages - 1}"
