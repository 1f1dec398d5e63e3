"""Replay a trace on a machine: its host phases through the CPU, its launches through the GPU, in the program's order.

The GPU of the trace never faulted, so the trace says when accesses *would* come; here they wait for their faults, and
whatever a phase or launch loses is carried over. Within a launch the intervals are scaled by how much the log slowed
the kernels down.
"""

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
from attrs import frozen

from gpusvm.driver import Vm
from gpusvm.gpu import NEED_OF_OP, ComputeEngine, Link
from gpusvm.machine import Machine, Process
from gpusvm.mm.api import PROT_READ, PROT_WRITE
from gpusvm.workload.segments import CpuPhase, Launch, segments
from gpusvm.workload.trace import PAGE_BYTES, READ, Trace

__all__ = ["BASE_ADDRESS", "Replay", "ReplaySettings"]

# Where page 0 of a trace lies: aligned to what any GPU or CPU page table level maps, far from 0.
BASE_ADDRESS: Final = 1 << 44

# A host phase is handed to the CPU in batches of this many rows.
_CPU_BATCH: Final = 4096


@frozen(kw_only=True)
class ReplaySettings:
    """State what no trace can tell; all of it is assumed and recorded with the run.

    `pages_per_sm`: faulting pages that one SM can hold before it stalls.
    """

    pages_per_sm: int = 32


class Replay:
    """Run one trace in one process, on one GPU or several.

    `engines` are what `Machine.open_engines` gives; launches are dealt to them in turn, one after the other as the
    program had them. `explicit_populate` makes the program ask for all its allocations before the first launch after
    each host phase, on the GPU of that launch. `on_progress` is called with the rows done so far, now and then.
    """

    def __init__(
        self,
        machine: Machine,
        trace: Trace,
        *,
        process: Process,
        engines: Sequence[tuple[Vm, Link]],
        settings: ReplaySettings | None = None,
        explicit_populate: bool = False,
        on_progress: Callable[[int], None] | None = None,
    ) -> None:
        settings = settings or ReplaySettings()
        self.machine = machine
        self.kernel = machine.kernel
        self.trace = trace
        self.process = process
        self._vms = [vm for vm, _ in engines]
        self.explicit_populate = explicit_populate
        self.on_progress = on_progress
        self.cpu_accesses = 0
        self.base_vpn = BASE_ADDRESS // PAGE_BYTES
        self._engines = [
            ComputeEngine(machine.kernel, vm.page_table, link, vm.faults.submit, pages_per_sm=settings.pages_per_sm)
            for vm, link in engines
        ]
        self._launches = 0

    @property
    def accesses(self) -> int:
        """Count the rows replayed so far."""
        return self.cpu_accesses + sum(engine.accesses for engine in self._engines)

    def run(self) -> None:
        """Replay the whole trace in the calling task.

        Raises KernelError for a GPU fault that the driver refused, CpuSignal for a CPU access that it could not serve.
        """
        trace, mm = self.trace, self.process.mm
        for allocation in trace.allocations:
            start = BASE_ADDRESS + allocation.start_page * PAGE_BYTES
            mm.mmap(start, allocation.pages * PAGE_BYTES, PROT_READ | PROT_WRITE)
        last = max(allocation.start_page + allocation.pages for allocation in trace.allocations)
        for vm in self._vms:
            vm.page_table.reserve(self.base_vpn, self.base_vpn + last)
        ended_ns = 0
        host_wrote = True
        for segment in segments(trace):
            # What the program did between two segments is not traced; its time is.
            self.kernel.sleep_ns(max(0, segment.start_ns - ended_ns))
            ended_ns = segment.end_ns
            if isinstance(segment, CpuPhase):
                self._cpu_phase(segment)
                host_wrote = True
            else:
                if host_wrote and self.explicit_populate:
                    self._populate(self._vms[self._launches % len(self._vms)])
                host_wrote = False
                self._launch(segment)
            if self.on_progress is not None:
                self.on_progress(self.accesses)

    def _populate(self, vm: Vm) -> None:
        for allocation in self.trace.allocations:
            start = BASE_ADDRESS + allocation.start_page * PAGE_BYTES
            vm.populate(start, start + allocation.pages * PAGE_BYTES)

    def _cpu_phase(self, phase: CpuPhase) -> None:
        trace, kernel, memory = self.trace, self.kernel, self.machine.memory
        at_ns = phase.start_ns
        for first in range(phase.rows.start, phase.rows.stop, _CPU_BATCH):
            rows = slice(first, min(first + _CPU_BATCH, phase.rows.stop))
            vpns = trace.page[rows].astype(np.int64) + self.base_vpn
            memory.cpu_access(self.process.mm, vpns, trace.op[rows] != READ)
            self.cpu_accesses += len(vpns)
            reached_ns = int(trace.time_ns[rows.stop - 1])
            kernel.sleep_ns(max(0, reached_ns - at_ns))
            at_ns = reached_ns
        kernel.sleep_ns(max(0, phase.end_ns - at_ns))

    def _launch(self, launch: Launch) -> None:
        trace, rows = self.trace, launch.rows
        scale = trace.unlogged_scale
        time_ns = ((trace.time_ns[rows] - launch.start_ns) * scale).astype(np.int64)
        engine = self._engines[self._launches % len(self._engines)]
        self._launches += 1
        engine.run(
            time_ns,
            trace.page[rows].astype(np.int64) + self.base_vpn,
            NEED_OF_OP[trace.op[rows]],
            trace.sm[rows],
        )
        # What the kernel does behind its last traced access takes its time too; delays before it carry over.
        last_ns = int(time_ns[-1]) if len(time_ns) else 0
        self.kernel.sleep_ns(max(0, round((launch.end_ns - launch.start_ns) * scale) - last_ns))
