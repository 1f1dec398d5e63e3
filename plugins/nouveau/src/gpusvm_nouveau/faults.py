"""drivers/gpu/drm/nouveau/nouveau_svm.c:nouveau_svm_fault, as of Linux 7.3.4: one buffer, worker and replay.

A batch is everything between GET and PUT, sorted by (instance, address, access). A group is one page, or 2 MiB if the
CPU maps so much there; the sorted entries behind it are skipped as far as the group serves them. Faults that could not
be served are cancelled one by one, which kills their channel; for the others the GPU is told once to replay.
"""

import errno
from collections.abc import Mapping, Sequence
from functools import cmp_to_key
from typing import TYPE_CHECKING, Final

import numpy as np
from gpusvm.driver import (
    ACCESS_ATOMIC,
    ACCESS_PREFETCH,
    ACCESS_READ,
    ACCESS_WRITE,
    FaultJob,
    FaultPipeline,
    GpuFault,
    NotifierWindow,
    Restart,
)
from gpusvm.driver.fault import STAGE_ACK
from gpusvm.errors import KernelError
from gpusvm.gpu import ATOMIC, READ, REMOTE, WRITE, FaultBuffer
from gpusvm.mm.api import (
    HMM_PFN_ORDER_SHIFT,
    HMM_PFN_PFN_MASK,
    HMM_PFN_REQ_FAULT,
    HMM_PFN_REQ_WRITE,
    HMM_PFN_VALID,
    HMM_PFN_WRITE,
)

from gpusvm_nouveau.svmm import SvmNotifier

if TYPE_CHECKING:
    from gpusvm_nouveau.device import NouveauDevice
    from gpusvm_nouveau.svmm import NouveauSvmm

__all__ = ["NouveauPipeline", "compare_in_ints", "sort_faults", "sort_key"]

# nouveau_svm.c:nouveau_svm_fault_priority, indexed by access: prefetch, read, write, atomic, weakest first.
_PRIORITY: Final = (1, 2, 3, 0)
_INT_SIGN: Final = 1 << 31
_INT_MASK: Final = (1 << 32) - 1
_REQUEST: Final = (HMM_PFN_REQ_FAULT, HMM_PFN_REQ_FAULT | HMM_PFN_REQ_WRITE, 0, 0)
_REQUEST_WRITE: Final = (_REQUEST[1], *_REQUEST[1:])


def sort_key(fault: GpuFault) -> tuple[int, int, int]:
    """Return what faults are meant to be sorted by (nouveau_svm_fault_cmp)."""
    return fault.inst, fault.addr, _PRIORITY[fault.access]


def compare_in_ints(one: GpuFault, other: GpuFault) -> int:
    """Compare two faults as written: the differences of 64 bits are cut off to an int (nouveau_svm_fault_cmp)."""
    for difference in (one.inst - other.inst, one.addr - other.addr):
        if cut := (difference + _INT_SIGN & _INT_MASK) - _INT_SIGN:
            return cut
    return _PRIORITY[one.access] - _PRIORITY[other.access]


def sort_faults(batch: list[GpuFault], *, in_ints: bool) -> None:
    """Sort a batch in place, `in_ints` as written. Where all is within 2 GiB, the two are the same.

    An order that is none depends on who sorts: lib/sort.c sorts a heap, this merges. Of two faults all agree.
    """
    if in_ints and len(batch) > 1:
        addrs, insts = [fault.addr for fault in batch], [fault.inst for fault in batch]
        if max(addrs) - min(addrs) >= _INT_SIGN or max(insts) - min(insts) >= _INT_SIGN:
            batch.sort(key=cmp_to_key(compare_in_ints))
            return
    batch.sort(key=sort_key)


class _Group:
    """Keep what one group of faults hands from stage to stage."""

    __slots__ = ("atomic", "deadline", "exclusive", "limit", "word")

    def __init__(self, limit: int, deadline: int, *, atomic: bool) -> None:
        self.limit = limit
        self.deadline = deadline
        self.atomic = atomic
        self.word = 0
        self.exclusive = -1


class NouveauPipeline(FaultPipeline):
    """Serve the fault buffer of one GPU."""

    def __init__(self, device: "NouveauDevice") -> None:
        super().__init__(device.kernel, device.accounts, policy=device.host.fault_policy(device))
        self.device = device
        self.memory = device.memory
        self._page_shift = device.memory.geometry.page_shift
        self._page_size = device.memory.geometry.page_size
        self._timeout_ns = device.host.tunables.hmm_timeout_ms * 1_000_000
        self._sticky = device.quirks.sticky_atomic == "as_written"
        self._ignore_own = device.quirks.exclusive_retry == "fixed"
        self._request = _REQUEST if device.host.tunables.read_faults == "read" else _REQUEST_WRITE
        self._in_ints = device.quirks.sort_overflow == "as_written"
        self._batches = device.host.tunables.fault_batching
        self._skips = device.host.tunables.fault_dedupe
        self._atomic = False  # the flag that a batch never clears
        self._installed = 0  # V, W and A of the entry written last, which a failed group leaves as they were
        self._served: list[FaultJob] = []
        self._svmms: Mapping[int, NouveauSvmm | None] = {}

    # ---- queue ---------------------------------------------------------------------------------------------------

    def take(self, buffer: FaultBuffer[GpuFault]) -> Sequence[GpuFault]:
        """Read all entries that are there when the worker runs, and sort them; GET is written back before they are
        served, so that the hardware can go on.
        """
        batch = buffer.drain(None if self._batches else 1)
        if batch:
            super().receive(batch)
            if not self._batches:
                return batch
            late = buffer.drain()  # what came while the interrupt was on its way
            self.kernel.charge("fault_buffer_entry", len(late))
            batch += late
            sort_faults(batch, in_ints=self._in_ints)
        return batch

    def receive(self, batch: Sequence[GpuFault]) -> None:
        """`take` has waited for the interrupt."""

    def run(self, batch: Sequence[GpuFault]) -> None:
        """Serve a batch that `take` sorted (nouveau_svm_fault).

        Its instances are looked up once, and under a lock that is not held any more when their faults are served: who
        ends an address space takes it off the list and then waits for this worker.
        """
        self._atomic = False
        self._installed = 0
        self._svmms = self.device.find(batch)
        super().run(batch)

    def begin(self, job: FaultJob) -> bool:
        """Take the svmm of the instance; a fault of an unknown one is cancelled."""
        svmm = self._svmms[job.fault.inst]
        if svmm is None:
            raise KernelError(errno.EINVAL, f"instance {job.fault.inst} belongs to no svmm")
        if not svmm.mm.mmget_not_zero():
            raise KernelError(errno.EFAULT, f"{svmm.mm.name} is gone")
        job.vm = svmm
        access = job.fault.access
        if access == ACCESS_ATOMIC or not self._sticky:
            self._atomic = access == ACCESS_ATOMIC
        job.scratch = _Group(
            job.fault.addr + self._page_size, self.kernel.now_ns + self._timeout_ns, atomic=self._atomic
        )
        return True

    def end(self, job: FaultJob) -> None:
        """Remove the group's notifier and drop the address space."""
        if job.scratch is None:
            return
        if job.unit is not None:
            job.unit.close()
        job.vm.mm.mmput()

    # ---- lookup to bind ------------------------------------------------------------------------------------------

    def lookup(self, job: FaultJob) -> bool:
        """Open a window of one page under a notifier of its own."""
        if job.unit is None:
            svmm: NouveauSvmm = job.vm
            addr = job.fault.addr
            own = self.kernel.current if job.scratch.atomic and self._ignore_own else None
            job.unit = NotifierWindow.open(
                self.memory,
                svmm.mm,
                start=addr,
                end=addr + self._page_size,
                ops=SvmNotifier(svmm, own),
                lock=svmm.mutex,
            )
        return True

    def get_pages(self, job: FaultJob) -> bool:
        """Read the page from the CPU's page table (nouveau_range_fault), or take it from the CPU
        (nouveau_atomic_range_fault).
        """
        group: _Group = job.scratch
        window: NotifierWindow = job.unit
        if self.kernel.now_ns > group.deadline:
            raise KernelError(errno.EBUSY, f"{job.fault.addr:#x} was invalidated for {self._timeout_ns} ns")
        if group.atomic:
            window.begin()
            lock = job.vm.mm.mmap_lock
            lock.down_read()
            try:
                group.exclusive = self.memory.make_device_exclusive(job.vm.mm, window.start, self.device.device)
            except KernelError as error:  # every error of the helper becomes this one
                raise KernelError(errno.EINVAL, f"make_device_exclusive: {error}") from error
            finally:
                lock.up_read()
            return True
        try:
            words = window.read_pages(self._request[job.fault.access], self.device.device)
        except KernelError as error:
            if error.errno == errno.EBUSY:
                raise Restart from error
            raise
        group.word = int(words[0])
        return True

    def bind(self, job: FaultJob) -> bool:
        """Write the entry under svmm->mutex, unless the page was invalidated since it was read."""
        group: _Group = job.scratch
        window: NotifierWindow = job.unit
        if not group.atomic:
            if not window.commit(lambda: self._map(job.vm, window.start, group)):
                raise Restart
            return True
        memory = self.memory
        head = memory.folio_head(group.exclusive)
        try:
            written = window.commit(lambda: self._map_exclusive(job.vm, window.start, group))
        finally:
            memory.folio_unlock(head)
            memory.folio_put(head)
        if not written:
            raise Restart
        return True

    def _map_exclusive(self, svmm: "NouveauSvmm", addr: int, group: _Group) -> None:
        """Map a device-exclusive page of system memory, with the atomic bit."""
        self._installed = READ | WRITE | ATOMIC
        svmm.vmm.map_leaf(addr >> self._page_shift, group.exclusive, 1, READ | WRITE | ATOMIC | REMOTE)

    def _map(self, svmm: "NouveauSvmm", addr: int, group: _Group) -> None:
        """Turn the word of hmm_range_fault into an entry, and write it (nouveau_range_fault,
        nouveau_hmm_convert_pfn).
        """
        word = group.word
        vpn = addr >> self._page_shift
        if not word & HMM_PFN_VALID:  # a prefetch of a page that is not there writes an invalid entry
            self._installed = 0
            svmm.vmm.unmap(vpn, vpn + 1)
            return
        perm = READ | WRITE if word & HMM_PFN_WRITE else READ
        self._installed = perm
        pfn = word & HMM_PFN_PFN_MASK
        order = word >> HMM_PFN_ORDER_SHIFT & 0x1F
        private = self.memory.is_device_private(pfn)
        if not private:
            perm |= REMOTE
        if not order:
            svmm.vmm.map_leaf(vpn, pfn, 1, perm)
            return
        # The CPU maps a whole PMD here, so the GPU does: step back from the page to its folio.
        pages = 1 << order
        offset = vpn & (pages - 1)
        vpn -= offset
        group.limit = (vpn + pages) << self._page_shift
        head = pfn - offset
        if private and head != self.memory.folio_head(pfn):
            self._map_shifted(svmm, vpn, head, pages, perm)
        else:
            svmm.vmm.map_leaf(vpn, head, pages, perm)

    def _map_shifted(self, svmm: "NouveauSvmm", vpn: int, head: int, pages: int, perm: int) -> None:
        """Map the wrong 2 MiB of VRAM: mm defect S1 named the folio's head, and we stepped back from it.

        The mapping may begin below the chunk. What lies there in VRAM is not modelled; the other end of the chunk
        stands for it.
        """
        chunk = self.device.dmem.pool.chunk_of(head + pages)
        nr = chunk.pagemap.nr_pages
        pfns = (np.arange(head, head + pages) - chunk.first) % nr + chunk.first
        svmm.vmm.map_wrong_block(vpn, pfns, perm, "mm_s1")

    # ---- ack -----------------------------------------------------------------------------------------------------

    def covers(self, job: FaultJob, answer: int, other: GpuFault) -> bool:
        """Skip a fault within the group if what the *first* fault wanted is installed, whatever this one wants."""
        group: _Group | None = job.scratch
        fault = job.fault
        if group is None or not self._skips or other.inst != fault.inst or other.addr >= group.limit:
            return False
        installed, access = self._installed, fault.access
        if access == ACCESS_PREFETCH:
            return True
        if access == ACCESS_READ:
            return bool(installed & READ)
        if access == ACCESS_WRITE:
            return bool(installed & WRITE)
        return bool(installed & WRITE) and bool(installed & ATOMIC)

    def acknowledge(self, job: FaultJob, answer: int) -> None:
        """Cancel a fault at once; one that was served waits for the replay of its batch."""
        if answer:
            self.note("fault_cancel", job, answer)
            super().acknowledge(job, answer)
        else:
            job.enter(STAGE_ACK)
            self._served.append(job)

    def respond(self, job: FaultJob, answer: int) -> None:
        """Let the access go on, which the replay has paid for, or cancel it."""
        if answer:
            self.kernel.charge("gpu_replay")
        job.fault.complete(answer)
        self.device.power.fault_answered()

    def replay(self, batch: Sequence[GpuFault]) -> None:
        """Tell the GPU once to try everything again, if anything was served (nouveau_svm_fault_replay)."""
        served, self._served = self._served, []
        if not served:
            return
        self.kernel.charge("gpu_replay")
        for job in served:
            super().acknowledge(job, 0)
        for svmm in list(self.device.svmms.values()):
            svmm.faults.replayed()
