"""Bring faults from the GPU to the pipeline: through fault buffers and workers, or in the caller's own thread."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from gpusvm.driver.fault import GpuFault
from gpusvm.driver.pipeline import FaultJob, FaultPipeline
from gpusvm.errors import LateWorkError
from gpusvm.gpu import FaultBuffer
from gpusvm.kernel import Work
from gpusvm.kernel.place import caller

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from gpusvm.kernel import Kernel, Workqueue

__all__ = ["CallerFaults", "CallerPipeline", "FaultQueues", "QueueFaults"]


class FaultQueues:
    """Own the fault buffers of one device, each with a work item that serves it.

    `queues` buffers of `capacity` entries. Up to as many workers run at once as `workqueue` allows. A worker goes on
    until its buffer is empty or `slice_ms` are over (0: no limit); then it queues itself again, so that others get
    their turn. `guard` surrounds each turn (the driver's PM reference). `on_full(queue, fault)` is called for a fault
    that finds no room, and so is not taken.
    """

    def __init__(
        self,
        kernel: "Kernel",
        pipeline: FaultPipeline,
        *,
        workqueue: "Workqueue",
        queues: int,
        capacity: int,
        slice_ms: int,
        guard: "Callable[[], AbstractContextManager[None]]",
        on_full: "Callable[[int, GpuFault], None] | None" = None,
    ) -> None:
        self.kernel = kernel
        self.pipeline = pipeline
        self.workqueue = workqueue
        self.slice_ns = slice_ms * 1_000_000
        self.guard = guard
        self.on_full = on_full
        self.stopped = False
        self._works: list[Work] = []
        self.buffers: list[FaultBuffer[GpuFault]] = []
        for number in range(queues):
            buffer: FaultBuffer[GpuFault] = FaultBuffer(kernel, capacity)
            self.buffers.append(buffer)
            self._works.append(Work(self._turn_of(number, buffer), f"pagefault{number}"))

    def submit(self, queue: int, faults: Sequence[GpuFault], *, again: bool = False) -> int:
        """Write faults into a buffer until it is full, and wake its worker; how many went in.

        `again`: the driver took them before and has not answered them, so that they are counted already.
        """
        if self.stopped:
            kernel = self.kernel
            raise LateWorkError(
                f"late work: task {kernel.current.name!r} submits a fault on {faults[0].addr:#x} to queue {queue} at "
                f"{caller()}, after the device has stopped its fault workers"
            )
        put = self.buffers[queue].put
        taken = 0
        for fault in faults:
            if not put(fault):
                if self.on_full is not None:
                    self.on_full(queue, fault)
                break
            taken += 1
        if taken:
            if not again:
                self.kernel.stats.gpu_faults += taken
            self.workqueue.queue(self._works[queue])
        return taken

    def flush(self) -> None:
        """Wait until every fault submitted so far is served."""
        self.workqueue.flush()

    def pause(self) -> None:
        """Wait until no worker runs, and let none: the hardware stands still. What is submitted waits for `unpause`."""
        for work in self._works:
            work.disable_sync()

    def unpause(self) -> None:
        """Serve faults again."""
        for work, buffer in zip(self._works, self.buffers, strict=True):
            work.enable()
            if len(buffer):
                self.workqueue.queue(work)

    def stop(self) -> None:
        """Wait until no worker runs. Nothing may be submitted afterwards."""
        self.stopped = True
        for work in self._works:
            work.disable_sync()

    def _turn_of(self, number: int, buffer: FaultBuffer[GpuFault]) -> Callable[[], None]:
        def turn() -> None:
            kernel, pipeline = self.kernel, self.pipeline
            deadline = kernel.now_ns + self.slice_ns if self.slice_ns else None
            with self.guard():
                while batch := pipeline.take(buffer):
                    pipeline.run(batch)
                    if deadline is not None and kernel.current.time_ns >= deadline:
                        if len(buffer):
                            self.workqueue.queue(self._works[number])
                        break

        return turn


class QueueFaults:
    """Be the `FaultSource` of one VM of a device with fault queues; `inst` marks its faults, `queue` takes them."""

    def __init__(self, queues: FaultQueues, *, inst: int, queue: int) -> None:
        self.queues = queues
        self.inst = inst
        self.queue = queue
        self._listeners: list[Callable[[], None]] = []

    def submit(self, faults: Sequence[GpuFault]) -> int:
        inst = self.inst
        for fault in faults:
            fault.inst = inst
        return self.queues.submit(self.queue, faults)

    def on_replay(self, listener: Callable[[], None]) -> None:
        self._listeners.append(listener)

    def replayed(self) -> None:
        """Tell the listeners that every access that waits may be tried again."""
        for listener in self._listeners:
            listener()


class CallerPipeline(FaultPipeline):
    """Serve faults that are calls of the kernel, as a device without hardware has them: nothing travels."""

    def receive(self, batch: Sequence[GpuFault]) -> None:
        """Nothing arrives: the fault is a function call."""

    def respond(self, job: FaultJob, answer: int) -> None:
        """Return from the call."""
        job.fault.complete(answer)


class CallerFaults:
    """Be the `FaultSource` of a VM whose faults are served at once, by the task that submits them (dmirror)."""

    def __init__(self, pipeline: FaultPipeline, *, inst: int) -> None:
        self.pipeline = pipeline
        self.inst = inst
        self._listeners: list[Callable[[], None]] = []

    def submit(self, faults: Sequence[GpuFault]) -> int:
        inst = self.inst
        for fault in faults:
            fault.inst = inst
        self.pipeline.kernel.stats.gpu_faults += len(faults)
        self.pipeline.run(faults)
        for listener in self._listeners:
            listener()
        return len(faults)

    def on_replay(self, listener: Callable[[], None]) -> None:
        self._listeners.append(listener)
