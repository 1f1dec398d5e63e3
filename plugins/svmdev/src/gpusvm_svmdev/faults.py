"""One fault, stage by stage: the loop that drm_gpusvm.c documents for a fault handler, as the FAULT command does it.

The device has no fault buffer: a fault is a call, of the FAULT command or of a replayed program's access. The latter
stands for FAULT with the flags MIGRATE and RETRY on the device's own memory.
"""

import errno
from typing import TYPE_CHECKING

from attrs import define, field
from gpusvm.driver import ACCESS_WRITE, CallerPipeline, FaultJob, RangeUnit, Restart
from gpusvm.drm import DrmPagemap, GpuSvmCtx, PagemapAddrs
from gpusvm.errors import KernelError

from gpusvm_svmdev.uapi import (
    SVMDEV_F_ALLOW_MIXED,
    SVMDEV_F_CHECK,
    SVMDEV_F_DEVMEM_ONLY,
    SVMDEV_F_MIGRATE,
    SVMDEV_F_NO_DEVMEM,
    SVMDEV_F_NO_OWNER,
    SVMDEV_F_READ_ONLY,
    SVMDEV_F_RETRY,
)

if TYPE_CHECKING:
    from gpusvm_svmdev.device import Svmdev

__all__ = ["FaultCommand", "Stage", "SvmdevFaults"]

Stage = tuple[str, tuple[int, ...]]
"""What a stage answered: "rng" with start, end and whether the range can migrate; or "ins" (no range), "pop"
(populate), "get" (get_pages), "ev" (range_evict) with an errno, 0 for success."""

_CHECKED_BYTES = 64 << 10


@define(eq=False)
class FaultCommand:
    """Be one FAULT: what is asked, and what each stage of each round answered.

    `target` is the device whose memory MIGRATE populates, the file's own or another. `mapped` is what the device can
    access when the command returns, None if that was invalidated already.
    """

    addr: int
    flags: int
    target: "Svmdev"
    time_ns: int = 0
    sm: int = 0
    inst: int = 0
    access: int = ACCESS_WRITE
    errno: int = 0
    stages: list[Stage] = field(factory=list)
    mapped: PagemapAddrs | None = None

    def complete(self, errno: int) -> None:
        self.errno = errno

    def answered(self, stage: str, *what: int) -> None:
        """Note what a stage answered."""
        self.stages.append((stage, what))


class SvmdevFaults(CallerPipeline):
    """Serve faults under the lock of their file."""

    def __init__(self, device: "Svmdev") -> None:
        super().__init__(device.kernel, device.accounts, policy=device.host.fault_policy(device))
        self.device = device

    def begin(self, job: FaultJob) -> bool:
        """Find the file of the fault and lock it; EINVAL if it was closed."""
        file = self.device.files.get(job.fault.inst)
        if file is None:
            raise KernelError(errno.EINVAL, f"no open file has the number {job.fault.inst}")
        file.lock.lock()
        job.vm = file
        if file.closed:
            raise KernelError(errno.EINVAL, f"the file with the number {file.inst} is closed")
        fault = job.fault
        if not isinstance(fault, FaultCommand):
            fault = FaultCommand(fault.addr, SVMDEV_F_MIGRATE | SVMDEV_F_RETRY, self.device)
        job.scratch = fault
        job.tries = self.device.tunables.fault_rounds if fault.flags & SVMDEV_F_RETRY else 1
        return True

    def end(self, job: FaultJob) -> None:
        """Unlock what `begin` locked."""
        if job.vm is not None:
            job.vm.lock.unlock()

    def collect_garbage(self, job: FaultJob) -> bool:
        """Remove ranges whose memory went away, before the lookup could find them."""
        job.vm.collect()
        return True

    def lookup(self, job: FaultJob) -> bool:
        """Find or make the range; a program's access that was served meanwhile needs none."""
        file, command = job.vm, job.scratch
        if command is not job.fault and file.is_mapped(job.fault):
            return False
        try:
            range_ = file.svm.range_find_or_insert(command.addr, file.start, file.end, self._ctx(command.flags))
        except KernelError as error:
            command.answered("ins", error.errno)
            raise
        job.unit = RangeUnit(file.svm, range_)
        command.answered("rng", range_.start, range_.end, range_.migrate_devmem)
        return True

    def place(self, job: FaultJob) -> DrmPagemap | None:
        """Populate the memory that the command names, if it asks for that and the range can go anywhere."""
        if self.policy is not None:
            return super().place(job) if job.unit.range.migrate_devmem else None
        if not job.scratch.flags & SVMDEV_F_MIGRATE or not job.unit.range.migrate_devmem:
            return None
        target: Svmdev = job.scratch.target
        return target.dpagemap if target.cache is None else target.pagemap_get(job)[1]

    def migrate(self, job: FaultJob) -> bool:
        """Populate. Whatever comes of it, the pages are mapped where they are then."""
        job.pagemap = pagemap = self.place(job)
        if pagemap is not None:
            range_ = job.unit.range
            timeslice_ms = job.scratch.target.timeslice_ms if self.policy is None else 0
            try:
                pagemap.populate_mm(range_.start, range_.end, job.vm.mm, timeslice_ms)
                job.scratch.answered("pop", 0)
            except KernelError as error:
                job.scratch.answered("pop", error.errno)
                self.note("migrate_failed", job, error.errno)
            finally:
                if self.policy is None and pagemap.cache is not None:
                    pagemap.put(job)
        return True

    def get_pages(self, job: FaultJob) -> bool:
        """Get the pages, in another round if that fails; what lies in several places comes home before."""
        command, svm, range_ = job.scratch, job.vm.svm, job.unit.range
        try:
            svm.range_get_pages(range_, self._ctx(command.flags))
        except KernelError as error:
            command.answered("get", error.errno)
            self.note("get_pages_failed", job, error.errno)
            job.tries -= 1
            if not job.tries:
                raise
            if error.errno == errno.EOPNOTSUPP:
                try:
                    svm.range_evict(range_)
                    command.answered("ev", 0)
                except KernelError as failed:
                    command.answered("ev", failed.errno)
            raise Restart from error
        command.answered("get", 0)
        return True

    def bind(self, job: FaultJob) -> bool:
        """Let the device access the pages, unless they were invalidated by now: its access faults again then."""
        file, range_ = job.vm, job.unit.range

        def write() -> None:
            file.map(range_)
            job.scratch.mapped = range_.pages.dma_addr

        job.unit.commit(write)
        return True

    def _ctx(self, flags: int) -> GpuSvmCtx:
        return GpuSvmCtx(
            device_private_page_owner=None if flags & SVMDEV_F_NO_OWNER else self.device.owner,
            check_pages_threshold=_CHECKED_BYTES if flags & SVMDEV_F_CHECK else 0,
            read_only=bool(flags & SVMDEV_F_READ_ONLY),
            devmem_possible=not flags & SVMDEV_F_NO_DEVMEM,
            devmem_only=bool(flags & SVMDEV_F_DEVMEM_ONLY),
            allow_mixed=bool(flags & SVMDEV_F_ALLOW_MIXED),
        )
