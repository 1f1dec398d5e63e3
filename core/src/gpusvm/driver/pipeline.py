"""Take one GPU fault through its stages, top to bottom: queue, gc, lookup, migrate, get_pages, bind, ack.

The path is shared by all drivers, so that they can be swapped in it. A driver subclasses `FaultPipeline` and overrides
stages; it does not copy the path. The stages as they stand here are the loop that drivers/gpu/drm/drm_gpusvm.c (Linux
7.3.4) documents for a driver with `GpuSvmRange`s; one that mirrors without ranges overrides lookup, get_pages and bind
with a `NotifierWindow`.

What a stage (gc to bind) may answer:

* True: on to the next stage; False: leave, the fault is answered with `job.errno` (0 unless the stage set it);
* raise `Restart`: something moved meanwhile, begin again at gc;
* raise `KernelError`: the fault is answered with that errno.
"""

import errno
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from gpusvm.driver.fault import (
    STAGE_ACK,
    STAGE_BIND,
    STAGE_GC,
    STAGE_GET_PAGES,
    STAGE_LOOKUP,
    STAGE_MIGRATE,
    STAGE_QUEUE,
    FaultAccounts,
    GpuFault,
)
from gpusvm.driver.unit import FaultUnit, RangeUnit
from gpusvm.errors import KernelError, ModelError

if TYPE_CHECKING:
    from gpusvm.driver.protocols import FaultPolicy
    from gpusvm.drm import DrmPagemap
    from gpusvm.gpu import FaultBuffer
    from gpusvm.kernel import Kernel

__all__ = ["FaultJob", "FaultPipeline", "Restart"]


class Restart(Exception):  # noqa: N818 - not an error: the kernel's "goto retry"
    """Send the fault back to the first stage; `stats.retries` counts it."""


class FaultJob:
    """Hold one fault while it is served: what the stages hand on, and how long each of them took.

    `vm` is the address space, `unit` what lookup found, `pagemap` where place() wants the memory. `tries` and
    `timeslice_ms` survive a restart: they are what a driver's retry policy counts with. `errno` is the answer of a
    stage that leaves early. `scratch` is the driver's own.
    """

    __slots__ = (
        "_kernel",
        "_mark_ns",
        "_stage",
        "_stage_ns",
        "errno",
        "fault",
        "pagemap",
        "scratch",
        "timeslice_ms",
        "tries",
        "unit",
        "vm",
    )

    def __init__(self, kernel: "Kernel", fault: GpuFault, accounts: FaultAccounts) -> None:
        self.fault = fault
        self.vm: Any = None
        self.unit: Any = None
        self.pagemap: DrmPagemap | None = None
        self.tries = 0
        self.timeslice_ms = 0
        self.errno = 0
        self.scratch: Any = None
        # The fault waited in the queue stage from the moment it was raised.
        self._kernel = kernel
        self._stage = STAGE_QUEUE
        self._stage_ns = accounts.stage_ns
        self._mark_ns = fault.time_ns

    def enter(self, stage: int) -> None:
        """End the stage before and begin `stage`: the time since the last call belongs to the one before."""
        now = self._kernel.current.time_ns  # now_ns, without the call: eight times a fault
        self._stage_ns[self._stage] += now - self._mark_ns
        self._mark_ns = now
        self._stage = stage


class FaultPipeline:
    """Serve the faults of one device. `policy` decides about migration; without one nothing migrates on a fault."""

    restart_limit: ClassVar[int | None] = None
    """Restarts of one fault after which it is answered with EBUSY; None for no bound, as most drivers have it."""

    def __init__(self, kernel: "Kernel", accounts: FaultAccounts, *, policy: "FaultPolicy | None" = None) -> None:
        self.kernel = kernel
        self.accounts = accounts
        self.policy = policy
        self._delivery_ns = 0 if kernel.costs is None else kernel.costs.table["gpu_fault_delivery"]

    # ---- queue ---------------------------------------------------------------------------------------------------

    def take(self, buffer: "FaultBuffer[GpuFault]") -> Sequence[GpuFault]:
        """Take a batch from a fault buffer: its size and order are the driver's. Here: the oldest fault alone."""
        fault = buffer.take()
        return () if fault is None else (fault,)

    def receive(self, batch: Sequence[GpuFault]) -> None:
        """Wait until the GPU's messages have arrived, and decode them; faults raised together travel together."""
        kernel = self.kernel
        if self._delivery_ns:
            raised = batch[0].time_ns if len(batch) == 1 else max(fault.time_ns for fault in batch)
            wait_ns = raised + self._delivery_ns - kernel.current.time_ns
            if wait_ns > 0:
                kernel.charge_ns("gpu_fault_delivery", wait_ns)
        kernel.charge("fault_buffer_entry", len(batch))

    def run(self, batch: Sequence[GpuFault]) -> None:
        """Serve a batch in order, acknowledge every fault of it, then tell the GPU that the batch is done."""
        self.receive(batch)
        served, faults = 0, len(batch)
        while served < faults:
            job = FaultJob(self.kernel, batch[served], self.accounts)
            answer = self.serve(job)
            served += 1
            self.acknowledge(job, answer)
            while served < faults and self.covers(job, answer, batch[served]):
                rider = FaultJob(self.kernel, batch[served], self.accounts)
                rider.vm = job.vm
                served += 1
                self.acknowledge(rider, answer)
        self.replay(batch)

    def serve(self, job: FaultJob) -> int:
        """Take one fault from gc to bind. Returns the answer: 0, or a positive errno."""
        job.enter(STAGE_GC)
        restarts = 0
        try:
            if not self.begin(job):
                return job.errno
            while True:
                try:
                    if not self.collect_garbage(job):
                        return job.errno
                    job.enter(STAGE_LOOKUP)
                    if not self.lookup(job):
                        return job.errno
                    job.enter(STAGE_MIGRATE)
                    if not self.migrate(job):
                        return job.errno
                    job.enter(STAGE_GET_PAGES)
                    if not self.get_pages(job):
                        return job.errno
                    job.enter(STAGE_BIND)
                    if not self.bind(job):
                        return job.errno
                    return 0
                except Restart as restart:
                    self.kernel.stats.retries += 1
                    restarts += 1
                    if self.restart_limit is not None and restarts > self.restart_limit:
                        return errno.EBUSY
                    if restarts > self.kernel.restarts_max:
                        raise ModelError(
                            f"no end: the fault on {job.fault.addr:#x} began again {self.kernel.restarts_max} times "
                            f"({restart.__cause__ or 'it was invalidated'}), task {self.kernel.current.name!r}"
                        ) from restart
                    job.enter(STAGE_GC)
                    self.kernel.retried(by_chance=True)
                    # Whoever invalidated has to be able to go on before the fault is tried again.
                    self.kernel.cond_resched()
        except KernelError as error:
            return error.errno
        finally:
            self.end(job)

    def begin(self, job: FaultJob) -> bool:
        """Find the address space and take the locks that the whole service runs under; `end` follows in any case."""
        raise NotImplementedError

    def end(self, job: FaultJob) -> None:
        """Give back what `begin` took."""

    # ---- gc ------------------------------------------------------------------------------------------------------

    def collect_garbage(self, job: FaultJob) -> bool:
        """Remove the units whose VMA went away, so that the lookup does not find them."""
        return True

    # ---- lookup --------------------------------------------------------------------------------------------------

    def lookup(self, job: FaultJob) -> bool:
        """Find or make the unit of the fault; False if it is already mapped as the fault needs it."""
        vm = job.vm
        range_ = vm.gpusvm.range_find_or_insert(job.fault.addr, vm.start, vm.end, vm.ctx)
        job.unit = RangeUnit(vm.gpusvm, range_)
        return not vm.is_mapped(job.unit, job.fault.access)

    # ---- migrate -------------------------------------------------------------------------------------------------

    def place(self, job: FaultJob) -> "DrmPagemap | None":
        """Ask the policy of the device that took the fault which pagemap to populate; None leaves the memory alone."""
        policy, unit = self.policy, job.unit
        if policy is None:
            return None
        state = unit.state
        if state is None:
            state = unit.state = policy.new_state(unit)
        return policy.place(job.fault, unit, state)

    def migrate(self, job: FaultJob) -> bool:
        """Populate the pagemap that `place` chose. Best effort: what did not move is mapped where it is."""
        job.pagemap = pagemap = self.place(job)
        if pagemap is not None:
            try:
                pagemap.populate_mm(job.unit.start, job.unit.end, job.vm.mm, job.timeslice_ms)
            except KernelError as error:
                self.note("migrate_failed", job, error.errno)
        return True

    # ---- get_pages -----------------------------------------------------------------------------------------------

    def get_pages(self, job: FaultJob) -> bool:
        """Fault the CPU's pages in and map them for the device's DMA."""
        gpusvm = job.vm.gpusvm
        try:
            gpusvm.range_get_pages(job.unit.range, job.vm.ctx)
        except KernelError as error:
            if error.errno == errno.EOPNOTSUPP:  # pages of several places in one range: bring all of them home
                gpusvm.range_evict(job.unit.range)
            if error.errno in {errno.EOPNOTSUPP, errno.EFAULT, errno.EPERM}:
                self.note("get_pages_failed", job, error.errno)
                raise Restart from error
            raise
        return True

    # ---- bind ----------------------------------------------------------------------------------------------------

    def bind(self, job: FaultJob) -> bool:
        """Write the GPU's page table, unless the unit was invalidated since its pages were read."""
        unit: FaultUnit = job.unit
        if not unit.commit(lambda: job.vm.map(job.unit)):
            raise Restart
        return True

    # ---- ack -----------------------------------------------------------------------------------------------------

    def acknowledge(self, job: FaultJob, answer: int) -> None:
        """Answer one fault (0, or a positive errno), and account for it."""
        job.enter(STAGE_ACK)
        fault, accounts = job.fault, self.accounts
        raised_ns = fault.time_ns  # who raised it may raise it again as soon as it is answered
        self.respond(job, answer)
        job.enter(STAGE_ACK)
        kernel = self.kernel
        accounts.latency_ns.append(kernel.current.time_ns - raised_ns)
        if answer:
            accounts.failed += 1
        if kernel.tracer.on:
            kernel.tracer.emit("fault_ack", fault.addr, fault.access, fault.inst, answer)

    def respond(self, job: FaultJob, answer: int) -> None:
        """Send the GPU its answer, one fault at a time; a driver that answers a batch at once overrides this."""
        self.kernel.charge("gpu_replay")
        job.fault.complete(answer)

    def covers(self, job: FaultJob, answer: int, other: GpuFault) -> bool:
        """Tell whether the next fault of the batch was served together with this one; it gets the same answer."""
        return False

    def replay(self, batch: Sequence[GpuFault]) -> None:
        """Tell the GPU that a whole batch is done. Nothing to do for a driver that answers fault by fault."""

    def note(self, what: str, job: FaultJob, number: int) -> None:
        """Leave a trace event about the fault."""
        tracer = self.kernel.tracer
        if tracer.on:
            tracer.emit(what, job.fault.addr, job.fault.inst, number)
