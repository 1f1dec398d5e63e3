"""drivers/gpu/drm/amd/amdkfd/kfd_svm.c:svm_range_restore_pages and amdgpu_gmc.c, as of Linux 7.3.4: one retry fault.

No fault is answered: the hardware tries again by itself, and a fault that cannot be served gets an entry that makes
the next try fail. Here a fault that was dropped is answered if its page is mapped by now; otherwise it waits for the
moment from which on the driver would take it again, instead of being raised over and over until then.
"""

import errno
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gpusvm.driver import ACCESS_ATOMIC, ACCESS_WRITE, FaultJob, FaultPipeline, GpuFault, NotifierWindow
from gpusvm.driver.fault import STAGE_BIND, STAGE_GET_PAGES, STAGE_QUEUE
from gpusvm.errors import KernelError
from gpusvm.gpu import NEED_OF_OP, FaultBuffer
from gpusvm.mm.api import VM_READ, VM_WRITE

from gpusvm_kfd.mapping import validate_and_map
from gpusvm_kfd.migrate import migrate_to_vram, vram_to_ram
from gpusvm_kfd.svm_range import OP_ADD_RANGE, OP_UNMAP_RANGE, SYSTEM, UNDEFINED, SvmRange

if TYPE_CHECKING:
    from gpusvm.driver import FaultUnit
    from gpusvm.drm import DrmPagemap

    from gpusvm_kfd.device import KfdDevice
    from gpusvm_kfd.process import KfdProcess, ProcessDevice

__all__ = ["BestLocation", "FaultFilter", "KfdPipeline"]

_NEVER = 1 << 62


class FaultFilter:
    """Drop a fault on a page that faulted a moment ago (amdgpu_gmc_filter_faults): a ring, the newest last."""

    def __init__(self, entries: int, timeout_ns: int) -> None:
        self._entries = entries
        self._timeout_ns = timeout_ns
        self._since_ns: dict[tuple[int, int], int] = {}

    def until(self, fault: GpuFault, now_ns: int) -> int:
        """Return 0 and remember a fault that is new, or when it would be let through."""
        key = (fault.addr, fault.inst)
        ring = self._since_ns
        since = ring.get(key)
        if since is not None and since + self._timeout_ns > now_ns:
            return since + self._timeout_ns
        if since is not None:
            del ring[key]
        if len(ring) >= self._entries:
            oldest, since = next(iter(ring.items()))
            if since + self._timeout_ns > now_ns:
                return since + self._timeout_ns
            del ring[oldest]
        ring[key] = now_ns
        return 0

    def remove(self, fault: GpuFault) -> None:
        """Let the next fault on the page through (amdgpu_gmc_filter_faults_remove)."""
        self._since_ns.pop((fault.addr, fault.inst), None)


class BestLocation:
    """Be kfd's `FaultPolicy`: the pagemap of the device that svm_range_best_restore_location says, None for RAM."""

    def __init__(self, device: "KfdDevice") -> None:
        self.device = device

    def new_state(self, unit: "FaultUnit") -> tuple[()]:
        return ()

    def place(self, fault: GpuFault, unit: "FaultUnit", state: object) -> "DrmPagemap | None":
        """EACCES: the GPU may not have the memory."""
        pdd = self.device.pdds[fault.inst]
        prange = unit.notifier.ops
        assert isinstance(prange, SvmRange)
        location = best_restore_location(pdd.process, prange, pdd.gpu)
        return None if location == SYSTEM else pdd.process.pdds[location - 1].device.pagemaps()[0]


def best_restore_location(process: "KfdProcess", prange: SvmRange, gpu: int) -> int:
    """Say where memory belongs that a GPU faults on (svm_range_best_restore_location). EACCES."""
    kfd, preferred = process.kfd, prange.preferred_loc
    if preferred in (gpu + 1, SYSTEM):
        return preferred
    if preferred != UNDEFINED and preferred - 1 in process.pdds and kfd.same_hive(gpu, preferred - 1):
        return preferred
    if prange.access >> gpu & 1:
        return gpu + 1
    if prange.in_place >> gpu & 1:
        there = prange.actual_loc
        return there if there and kfd.same_hive(gpu, there - 1) else SYSTEM
    raise KernelError(errno.EACCES, f"GPU {gpu} has no access to {prange!r}")


class _Service:
    """Keep what one fault hands from stage to stage: the process, what is held, and until when it was dropped."""

    __slots__ = ("again", "begun_ns", "locked", "mm", "pdd", "prange", "until_ns", "write_locked")

    def __init__(self, begun_ns: int) -> None:
        self.begun_ns = begun_ns
        self.pdd: ProcessDevice | None = None
        self.prange: SvmRange | None = None
        self.mm = False
        self.locked = False
        self.write_locked = False
        self.until_ns = 0
        self.again = False


class KfdPipeline(FaultPipeline):
    """Serve the soft ring of one GPU; it also keeps the faults that were dropped."""

    def __init__(self, device: "KfdDevice") -> None:
        policy = device.host.fault_policy(device) or BestLocation(device)
        super().__init__(device.kernel, device.accounts, policy=policy)
        self.device = device
        self.memory = device.memory
        tunables = device.tunables
        self._filter = FaultFilter(tunables.filter_entries, tunables.filter_timeout_us * 1000)
        self._window_ns = tunables.retry_window_us * 1000
        self._by_range = device.quirks.range_window == "as_written"
        self._dropped: list[tuple[int, GpuFault]] = []
        self._stages_ns: list[int] = []
        self._timer = device.kernel.timer("retry_fault", self._retry)

    # ---- queue ---------------------------------------------------------------------------------------------------

    def take(self, buffer: FaultBuffer[GpuFault]) -> Sequence[GpuFault]:
        """Read what is in the ring, and drop what is there for the second time."""
        while batch := buffer.drain():
            super().receive(batch)
            now_ns = self.kernel.now_ns
            first = []
            for fault in batch:
                until_ns = self._filter.until(fault, now_ns)
                if until_ns:
                    self._drop(fault, until_ns)
                else:
                    first.append(fault)
            if first:
                return first
        return ()

    def receive(self, batch: Sequence[GpuFault]) -> None:
        """`take` has waited for the interrupt."""

    def _drop(self, fault: GpuFault, until_ns: int) -> None:
        """Answer a fault whose page is mapped, keep one that is not."""
        if self._may_go_on(fault):
            self._let_go_on(fault)
        else:
            self._dropped.append((until_ns, fault))
            self._arm()

    def _may_go_on(self, fault: GpuFault) -> bool:
        """Tell whether nobody has to serve a fault any more."""
        pdd = self.device.pdds.get(fault.inst)
        return pdd is not None and bool(pdd.files) and not pdd.process.queues.stopped and self._is_mapped(pdd, fault)

    def _let_go_on(self, fault: GpuFault) -> None:
        """Answer such a fault, which spent all its time in the queue. What it wakes may drop faults, or raise them."""
        waited_ns = self.kernel.now_ns - fault.time_ns
        self.accounts.latency_ns.append(waited_ns)
        self.accounts.stage_ns[STAGE_QUEUE] += waited_ns
        fault.complete(0)

    def _is_mapped(self, pdd: "ProcessDevice", fault: GpuFault) -> bool:
        vpn = fault.addr >> self.device.page_shift
        need = int(NEED_OF_OP[fault.access])
        return int(pdd.page_table.perms(vpn, vpn + 1)[0]) & need == need

    def _arm(self) -> None:
        due_ns = min((until_ns for until_ns, _ in self._dropped), default=_NEVER)
        if due_ns < _NEVER:
            self._timer.arm(due_ns)

    def _retry(self) -> None:
        """Raise what the driver would take by now again, as the hardware has done all the time."""
        now_ns = self.kernel.now_ns
        due = [fault for until_ns, fault in self._dropped if until_ns <= now_ns]
        self._dropped = [each for each in self._dropped if each[0] > now_ns]
        mapped: list[GpuFault] = []
        again: list[GpuFault] = []
        for fault in due:
            (mapped if self._may_go_on(fault) else again).append(fault)
        taken = self.device.queues.submit(0, again, again=True) if again else 0
        self._dropped += [(now_ns + 1000, fault) for fault in again[taken:]]
        self._arm()
        for fault in mapped:
            self._let_go_on(fault)

    def release(self, pdd: "ProcessDevice") -> None:
        """Raise everything that waits for a process's queues."""
        self._dropped = [(0 if fault.inst == pdd.pasid else due, fault) for due, fault in self._dropped]
        self._arm()

    def forget(self, pdd: "ProcessDevice") -> None:
        """Forget what a process's waves wait for: they are gone."""
        self._dropped = [each for each in self._dropped if each[1].inst != pdd.pasid]

    def stop(self) -> None:
        """Raise nothing any more."""
        self._timer.cancel_sync()

    def serve(self, job: FaultJob) -> int:
        """Remember how long the stages have taken without this fault, which may be dropped."""
        self._stages_ns = self.accounts.stage_ns.copy()
        return super().serve(job)

    # ---- the locks -----------------------------------------------------------------------------------------------

    def begin(self, job: FaultJob) -> bool:
        """Find the process and lock its ranges.

        Without XNACK no fault is ever resolved: EFAULT. A process that has closed its file has no waves left, and the
        model ends theirs: EINVAL, and EFAULT if its memory is gone.
        """
        service = job.scratch = _Service(self.kernel.now_ns)
        pdd = self.device.pdds.get(job.fault.inst)
        if pdd is None or not pdd.files or not pdd.process.kref.get_unless_zero("fault"):
            raise KernelError(errno.EINVAL, f"no process has the pasid {job.fault.inst}")
        service.pdd = pdd
        process = pdd.process
        if process.queues.stopped:
            service.until_ns = _NEVER
            return False
        if not process.xnack:
            raise KernelError(errno.EFAULT, f"{process.mm.name} runs without XNACK")
        if not process.mm.mmget_not_zero():
            raise KernelError(errno.EFAULT, f"{process.mm.name} is gone")
        service.mm = True
        job.vm = process
        process.mm.mmap_lock.down_read()
        process.svms.lock.lock()
        service.locked = True
        return True

    def end(self, job: FaultJob) -> None:
        """Give back what the stages took."""
        service: _Service = job.scratch
        pdd = service.pdd
        if pdd is None:
            return
        process = pdd.process
        if service.prange is not None:
            service.prange.migrate_mutex.unlock()
        if service.locked:
            process.svms.lock.unlock()
            if service.write_locked:
                process.mm.mmap_lock.up_write()
            else:
                process.mm.mmap_lock.up_read()
        if service.mm:
            process.mm.mmput()
        process.put("fault")

    # ---- lookup --------------------------------------------------------------------------------------------------

    def lookup(self, job: FaultJob) -> bool:
        """Find the range or make one, and see whether the fault is still one.

        EFAULT: there is nothing at the address; EPERM: the area does not allow the access.
        """
        process: KfdProcess = job.vm
        service: _Service = job.scratch
        assert service.pdd is not None
        prange = self._find(job, process, service)
        if prange is None:
            return False
        prange.migrate_mutex.lock()
        service.prange = prange
        if _skips(prange):
            self._filter.remove(job.fault)
            return False
        if self._was_validated(prange, service, job.fault):
            return False
        vma = process.mm.vma_lookup(job.fault.addr)
        if vma is None:
            return False  # unmapped since: the worker removes the range
        need = VM_READ | VM_WRITE if job.fault.access in (ACCESS_WRITE, ACCESS_ATOMIC) else VM_READ
        if vma.flags & need != need:
            raise KernelError(errno.EPERM, f"{job.fault.addr:#x} does not allow the access")
        start, end = prange.window(job.fault.addr >> self.device.page_shift)
        size = self.device.page_shift
        assert prange.notifier is not None
        job.unit = NotifierWindow(self.memory, prange.notifier, start=start << size, end=end << size, lock=prange.lock)
        return True

    def _find(self, job: FaultJob, process: "KfdProcess", service: _Service) -> SvmRange | None:
        """Find the range of a fault, or make one, for which mmap_lock has to be held for writing; None drops it."""
        svms, lock = process.svms, process.mm.mmap_lock
        page = job.fault.addr >> self.device.page_shift
        gpu = self.device.number
        while True:
            checkpoint_ns = svms.checkpoint_ns.get(gpu)
            if checkpoint_ns is not None:
                if job.fault.time_ns <= checkpoint_ns:
                    self._filter.remove(job.fault)
                    return None
                del svms.checkpoint_ns[gpu]
            prange = svms.from_addr(page)
            if prange is not None or service.write_locked:
                break
            svms.lock.unlock()
            service.locked = False
            lock.up_read()
            lock.down_write()
            service.write_locked = True
            svms.lock.lock()
            service.locked = True
        if prange is None:
            prange = self._create(process, page)
        if service.write_locked:
            lock.downgrade_write()
            service.write_locked = False
        return prange

    def _create(self, process: "KfdProcess", page: int) -> SvmRange:
        """Make a range of the granule around a page, within its area and between its neighbours
        (svm_range_create_unregistered_range). EFAULT: there is no area, or no memory for the range.
        """
        svms, size = process.svms, self.device.page_shift
        vma = process.mm.vma_lookup(page << size)
        if vma is None:
            raise KernelError(errno.EFAULT, f"{page << size:#x} is in no area")
        granule = svms.granularity
        start = max(vma.start >> size, page // granule * granule)
        end = min(vma.end >> size, page // granule * granule + granule)
        for neighbour in svms.overlapping(start, end):
            if neighbour.it_start > page:
                end = min(end, neighbour.it_start)
            else:
                start = max(start, neighbour.it_end)
        if start > page:
            raise KernelError(errno.EFAULT, f"{page << size:#x} overlaps a range that has lost it")
        try:
            prange = svms.new_range(start, end)
        except KernelError as error:
            raise KernelError(errno.EFAULT, str(error)) from error
        svms.add(prange, process.mm)
        return prange

    def _was_validated(self, prange: SvmRange, service: _Service, fault: GpuFault) -> bool:
        """Tell whether the range was mapped within the last 2 ms, so that the fault may be older than that; as written,
        whatever part of it was, and whether it is mapped still or not.
        """
        if prange.validated_ns is None or not self._window_ns:
            return False
        assert service.pdd is not None
        until_ns = prange.validated_ns + self._window_ns
        if service.begun_ns >= until_ns:
            return False
        mapped = self._is_mapped(service.pdd, fault)
        if not mapped and not self._by_range:
            return False
        service.until_ns = 0 if mapped else until_ns
        return True

    # ---- migrate, get_pages, bind --------------------------------------------------------------------------------

    def place(self, job: FaultJob) -> "DrmPagemap | None":
        """Ask the policy, whose state the range keeps."""
        prange: SvmRange = job.scratch.prange
        job.unit.state = prange.policy_state
        pagemap = super().place(job)
        prange.policy_state = job.unit.state
        return pagemap

    def migrate(self, job: FaultJob) -> bool:
        """Move the granule to where the policy wants it, else to RAM; what did not come is mapped where it is."""
        prange: SvmRange = job.scratch.prange
        mm, size = job.vm.mm, self.device.page_shift
        start, end = job.unit.start >> size, job.unit.end >> size
        job.pagemap = pagemap = self.place(job)
        if pagemap is None:
            self._fall_back(job, prange, start, end)
            return not job.scratch.again
        target = self.device.kfd.device_of(pagemap)
        try:
            if target is None:
                # drm_pagemap_populate_mm would take mmap_lock, which is held here.
                pagemap.ops.populate_mm(pagemap, job.unit.start, job.unit.end, mm, 0)
            else:
                migrate_to_vram(prange, target.number + 1, start, end, mm)
        except KernelError as error:
            self.note("migrate_failed", job, error.errno)
            if prange.actual_loc and (target is None or prange.actual_loc != target.number + 1):
                self._fall_back(job, prange, start, end)
        return not job.scratch.again

    def _fall_back(self, job: FaultJob, prange: SvmRange, start: int, end: int) -> None:
        """Bring the granule home; with cut_range fixed the hardware tries again if that was because it was cut."""
        try:
            vram_to_ram(prange, job.vm.mm, start, end)
        except KernelError:
            fixed = self.device.quirks.cut_range == "fixed"
            if not fixed or (prange.start <= start and end <= prange.end and not prange.children):
                raise
            self._again(job)

    def _again(self, job: FaultJob) -> None:
        self.kernel.stats.retries += 1
        self._filter.remove(job.fault)
        job.scratch.again = True

    def get_pages(self, job: FaultJob) -> bool:
        """Read and map the granule, area by area; what was invalidated meanwhile the hardware tries again."""
        size = self.device.page_shift
        try:
            validate_and_map(
                job.scratch.prange,
                job.unit.start >> size,
                job.unit.end >> size,
                job.vm.mm,
                gpu=self.device.number,
                on_get_pages=lambda: job.enter(STAGE_GET_PAGES),
                on_bind=lambda: job.enter(STAGE_BIND),
            )
        except KernelError as error:
            if error.errno != errno.EAGAIN:
                raise
            self._again(job)
            return False
        return True

    def bind(self, job: FaultJob) -> bool:
        """Do nothing more: it is mapped."""
        return True

    # ---- ack -----------------------------------------------------------------------------------------------------

    def respond(self, job: FaultJob, answer: int) -> None:
        """Let the next try find the entry, or one that makes it fail (amdgpu_vm_handle_fault)."""
        if answer:
            self.kernel.charge("bind_base")
        job.fault.complete(answer)

    def replay(self, batch: Sequence[GpuFault]) -> None:
        """Answer what was dropped and is mapped now: the hardware has tried again in the meantime."""
        mapped: list[tuple[int, GpuFault]] = []
        dropped: list[tuple[int, GpuFault]] = []
        for each in self._dropped:
            (mapped if self._may_go_on(each[1]) else dropped).append(each)
        # Before any is answered: what that wakes may let the timer look for what is due.
        self._dropped = dropped
        for _, fault in mapped:
            self._let_go_on(fault)

    def acknowledge(self, job: FaultJob, answer: int) -> None:
        """Keep a fault that was dropped; of another the hardware finds out by itself."""
        until_ns = job.scratch.until_ns
        if until_ns and not answer:
            self.accounts.stage_ns[:] = self._stages_ns  # its time is counted when it is answered
            self._drop(job.fault, until_ns)
            return
        super().acknowledge(job, answer)
        if job.scratch.again:
            # Whoever was in the way has to be able to go on before the hardware tries again.
            self.kernel.retried(by_chance=True)
            self.kernel.cond_resched()
            self.kernel.give_way()


def _skips(prange: SvmRange) -> bool:
    """Leave a range alone that the worker has not come to (svm_range_skip_recover)."""
    if not prange.deferred and not prange.children and prange.parent is None:
        return False
    return prange.work_op in (OP_UNMAP_RANGE, OP_ADD_RANGE)
