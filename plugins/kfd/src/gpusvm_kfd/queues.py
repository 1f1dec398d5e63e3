"""drivers/gpu/drm/amd/amdkfd/kfd_svm.c:svm_range_evict, as of Linux 7.3.4: without XNACK, stop the queues of a process.

Nothing is unmapped then. While its queues are stopped the GPU reaches nothing, and what faults nevertheless waits for
them; a worker maps what was invalidated and lets them go on.
"""

from typing import TYPE_CHECKING

from gpusvm.errors import KernelError
from gpusvm.kernel import Work

from gpusvm_kfd.mapping import validate_and_map

if TYPE_CHECKING:
    from gpusvm_kfd.process import KfdProcess
    from gpusvm_kfd.svm_range import SvmRange

__all__ = ["UserQueues"]


class UserQueues:
    """Stop and resume the queues of one process."""

    def __init__(self, process: "KfdProcess") -> None:
        self.process = process
        self.kernel = process.kernel
        self.stopped = False
        self.restore_work = Work(self._restore, "svm_range_restore_work")
        self._delay_ns = process.kfd.tunables.restore_delay_ms * 1_000_000

    def evict(self, prange: "SvmRange", start: int, end: int) -> None:
        """Note what was invalidated, and stop the queues if that is the first (svm_range_evict)."""
        svms = self.process.svms
        mapped = prange.mapped
        for child in prange.children:
            mapped |= child.mapped
            if child.mapped and child.start < end and child.end > start:
                child.invalid += 1
        if not mapped:
            return
        if prange.start < end and prange.end > start:
            prange.invalid += 1
        svms.evicted_ranges += 1
        if svms.evicted_ranges == 1:
            self.stop()
            self._schedule()

    def stop(self) -> None:
        """Take the queues off the GPUs (kgd2kfd_quiesce_mm)."""
        self.stopped = True
        for pdd in self.process.pdds.values():
            pdd.page_table.stop()

    def resume(self) -> None:
        """Put them back (kgd2kfd_resume_mm); who faulted meanwhile may try again."""
        self.stopped = False
        for pdd in self.process.pdds.values():
            pdd.page_table.resume()
            pdd.device.faults.release(pdd)

    def end(self) -> None:
        """Wait until nothing is restored any more."""
        self.restore_work.disable_sync()

    def _schedule(self) -> None:
        self.process.kfd.restore_queue.queue_delayed(self.restore_work, self._delay_ns)

    def _restore(self) -> None:
        """Map what was invalidated, and resume; in a while again if more was meanwhile (svm_range_restore_work)."""
        process, svms = self.process, self.process.svms
        mm = process.mm
        if not svms.evicted_ranges or not mm.mmget_not_zero():
            return
        with process.info_lock:
            svms.lock_and_flush_work(mm)
            with svms.lock:
                restored = self._map_invalid()
                if restored:
                    self.resume()
            mm.mmap_lock.up_write()
        if not restored:
            self._schedule()
        mm.mmput()

    def _map_invalid(self) -> bool:
        svms = self.process.svms
        evicted = svms.evicted_ranges
        for prange in svms.objects:
            invalid = prange.invalid
            if not invalid:
                continue
            with prange.migrate_mutex:
                try:
                    validate_and_map(prange, prange.start, prange.end, self.process.mm)
                except KernelError:
                    return False
            if prange.invalid != invalid:
                return False
            prange.invalid = 0
        if svms.evicted_ranges != evicted:
            return False
        svms.evicted_ranges = 0
        return True
