"""Derive the program order of a trace: host phases and kernel launches, one after the other.

A trace is one host thread and one GPU queue that never overlap: each row lies in exactly one segment, and the rows of a
segment are a slice of the trace. A replay has to respect this order whatever its faults cost; within a launch, it has
to respect the order of each SM's rows.
"""

from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from gpusvm.workload.trace import CPU, GPU, CpuPhases, Int64s, Launches, Trace

__all__ = ["CpuPhase", "Launch", "Segment", "misplaced", "segments"]


@frozen(kw_only=True)
class CpuPhase:
    """Name one host phase: `index` into `trace.cpu_phases`, and `rows` of the trace, all of them the CPU's."""

    index: int
    name: str
    start_ns: int
    end_ns: int
    rows: slice


@frozen(kw_only=True)
class Launch:
    """Name one kernel launch: `index` into `trace.launches`, and `rows` of the trace, all of them the GPU's."""

    index: int
    kernel: str
    blocks: int
    threads: int
    call_ns: int
    start_ns: int
    end_ns: int
    rows: slice

    def rows_by_sm(self, trace: Trace) -> dict[int, Int64s]:
        """Return the int64 indices of this launch's rows, in order, for each SM that has some (ascending)."""
        sm = trace.sm[self.rows]
        order = np.argsort(sm, kind="stable")
        numbers, first = np.unique(sm[order], return_index=True)
        groups = np.split(order + self.rows.start, first)[1:]  # the first lies before the first SM, and is empty
        return dict(zip(numbers.tolist(), groups, strict=True))


Segment: TypeAlias = CpuPhase | Launch


def segments(trace: Trace) -> tuple[Segment, ...]:
    """List the phases and launches of `trace` in program order, with the rows of each.

    The slices follow one another without gap or overlap; a segment without rows has an empty slice at its place.
    """
    timeline = _timeline(trace.launches, trace.cpu_phases)
    of_row = _segment_of_row(timeline, time_ns=trace.time_ns, agent=trace.agent)
    edges = np.searchsorted(of_row, np.arange(len(timeline.index) + 1)).tolist()
    return tuple(
        _launch(trace, index, slice(first, stop)) if agent == GPU else _cpu_phase(trace, index, slice(first, stop))
        for agent, index, first, stop in zip(
            timeline.agent.tolist(), timeline.index.tolist(), edges[:-1], edges[1:], strict=True
        )
    )


def misplaced(launches: Launches, cpu_phases: CpuPhases, *, time_ns: Int64s, agent: NDArray[np.uint8]) -> Iterator[str]:
    """Yield what keeps a trace from having a program order; each as ``place: expected …, got …; the mend``.

    Checked: call <= start <= end of each launch and start <= end of each phase; no two of them overlap; each row lies
    in one of its own agent; rows of one time stand in the order of their segments. A later check relies on the earlier
    ones, so only the first problem is sure to be one.
    """
    backwards = (launches.call_ns > launches.start_ns) | (launches.start_ns > launches.end_ns)
    for i in np.flatnonzero(backwards):
        got = f"{launches.call_ns[i]}, {launches.start_ns[i]}, {launches.end_ns[i]}"
        yield f"launches[{i}]: expected launch_ns <= start_ns <= end_ns, got {got}"
    for i in np.flatnonzero(cpu_phases.start_ns > cpu_phases.end_ns):
        got = f"{cpu_phases.start_ns[i]}, {cpu_phases.end_ns[i]}"
        yield f"cpu_phases[{i}]: expected start_ns <= end_ns, got {got}"

    timeline = _timeline(launches, cpu_phases)
    for k in np.flatnonzero(timeline.start_ns[1:] < timeline.end_ns[:-1]).tolist():
        yield (
            f"{timeline.place(k + 1)}: expected a start at or after the end of {timeline.place(k)} "
            f"({timeline.end_ns[k]} ns), got {timeline.start_ns[k + 1]} ns; a replay runs them one after the other"
        )

    of_row = _segment_of_row(timeline, time_ns=time_ns, agent=agent)
    for row in np.flatnonzero(of_row < 0):
        who, where = ("GPU", "launch") if agent[row] == GPU else ("CPU", "CPU phase")
        yield f"row {row}: expected a {who} row to lie in a {where}, got {time_ns[row]} ns, in none; widen its {where}"
    for row in np.flatnonzero(of_row[1:] < of_row[:-1]):
        yield (
            f"row {row + 1}: expected rows of one time ({time_ns[row]} ns) in program order, got one of "
            f"{timeline.place(of_row[row + 1])} after one of {timeline.place(of_row[row])}; swap them"
        )


@frozen(kw_only=True, eq=False)
class _Timeline:
    """All segments in program order, as columns: whose it is, its index among its agent's, when it ran."""

    agent: NDArray[np.uint8]
    index: Int64s
    start_ns: Int64s
    end_ns: Int64s

    def place(self, position: int) -> str:
        return f"{'launches' if self.agent[position] == GPU else 'cpu_phases'}[{self.index[position]}]"


def _timeline(launches: Launches, cpu_phases: CpuPhases) -> _Timeline:
    agent = np.repeat(np.array([GPU, CPU], dtype=np.uint8), [len(launches), len(cpu_phases)])
    index = np.concatenate([np.arange(len(launches)), np.arange(len(cpu_phases))])
    start_ns = np.concatenate([launches.start_ns, cpu_phases.start_ns])
    end_ns = np.concatenate([launches.end_ns, cpu_phases.end_ns])
    order = np.lexsort((end_ns, start_ns))
    return _Timeline(agent=agent[order], index=index[order], start_ns=start_ns[order], end_ns=end_ns[order])


def _segment_of_row(timeline: _Timeline, *, time_ns: Int64s, agent: NDArray[np.uint8]) -> Int64s:
    """Give each row its position: the last segment of its agent that began by then, or -1 if that is over or none."""
    of_row = np.full(len(time_ns), -1, dtype=np.int64)
    for who in (GPU, CPU):
        rows = np.flatnonzero(agent == who)
        own = np.flatnonzero(timeline.agent == who)
        if not len(own):
            continue
        last = np.searchsorted(timeline.start_ns[own], time_ns[rows], side="right") - 1
        position = own[np.maximum(last, 0)]
        inside = (last >= 0) & (time_ns[rows] <= timeline.end_ns[position])
        of_row[rows] = np.where(inside, position, -1)
    return of_row


def _launch(trace: Trace, index: int, rows: slice) -> Launch:
    launches = trace.launches
    kernel = trace.kernels[launches.kernel[index]]
    return Launch(
        index=index,
        kernel=kernel.name,
        blocks=kernel.blocks,
        threads=kernel.threads,
        call_ns=int(launches.call_ns[index]),
        start_ns=int(launches.start_ns[index]),
        end_ns=int(launches.end_ns[index]),
        rows=rows,
    )


def _cpu_phase(trace: Trace, index: int, rows: slice) -> CpuPhase:
    phases = trace.cpu_phases
    return CpuPhase(
        index=index,
        name=trace.cpu_phase_names[phases.name[index]],
        start_ns=int(phases.start_ns[index]),
        end_ns=int(phases.end_ns[index]),
        rows=rows,
    )
