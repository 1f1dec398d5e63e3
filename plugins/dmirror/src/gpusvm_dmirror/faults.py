"""Serve the GPU accesses of a replayed program as dmirror serves its ioctls: in the caller's thread (lib/test_hmm.c).

The program touches page by page, so one touch stands for a READ or WRITE ioctl that begins there and covers one fault
window; an atomic stands for EXCLUSIVE on its page. A device-exclusive page is mapped writable, so that the program's
stores to it hit; the ioctl WRITE, which wants the tag WRITE, would fault.
"""

import errno
from typing import TYPE_CHECKING, Any

from gpusvm.driver import ACCESS_ATOMIC, ACCESS_WRITE, CallerPipeline, FaultJob, NotifierWindow, Restart
from gpusvm.errors import KernelError
from gpusvm.gpu import ATOMIC, READ, WRITE

from gpusvm_dmirror.exclusive import make_exclusive

if TYPE_CHECKING:
    from gpusvm_dmirror.device import DmirrorDevice
    from gpusvm_dmirror.mirror import Dmirror

__all__ = ["DmirrorPipeline"]

_NEED = (READ, READ | WRITE, READ | WRITE | ATOMIC, READ)


class _Fault:
    """Keep what one fault hands from stage to stage: when it gives up, and what get_pages found."""

    __slots__ = ("deadline", "words")

    def __init__(self, deadline: int) -> None:
        self.deadline = deadline
        self.words: Any = None


class DmirrorPipeline(CallerPipeline):
    """Serve faults window by window."""

    def __init__(self, device: "DmirrorDevice") -> None:
        super().__init__(device.kernel, device.accounts, policy=device.host.fault_policy(device))
        self.device = device

    def begin(self, job: FaultJob) -> bool:
        """Take the address space of the file (dmirror_fault: mmget_not_zero)."""
        mirror: Dmirror | None = next((file for file in self.device.files if file.inst == job.fault.inst), None)
        if mirror is None or mirror.closed:
            raise KernelError(errno.EINVAL, f"no open file has the number {job.fault.inst}")
        mirror.fget()
        job.vm = mirror
        if not mirror.mm.mmget_not_zero():
            raise KernelError(errno.EFAULT, f"{mirror.mm.name} is gone")
        job.scratch = _Fault(mirror.deadline())
        return True

    def end(self, job: FaultJob) -> None:
        """Give the address space and the file back."""
        mirror: Dmirror | None = job.vm
        if mirror is None:
            return
        if job.scratch is not None:
            mirror.mm.mmput()
        mirror.fput()

    def lookup(self, job: FaultJob) -> bool:
        """Look into the mirror table first, then open the window that begins at the fault."""
        mirror: Dmirror = job.vm
        geometry = mirror.memory.geometry
        addr = job.fault.addr
        vpn = addr >> geometry.page_shift
        need = _NEED[job.fault.access]
        if int(mirror.page_table.perms(vpn, vpn + 1)[0]) & need == need:
            return False
        if job.unit is None:
            end = addr + geometry.page_size
            if job.fault.access != ACCESS_ATOMIC:
                end = self._window_end(mirror, addr)
            job.unit = mirror.window(addr, end)
        return True

    def get_pages(self, job: FaultJob) -> bool:
        """Read the window (dmirror_range_fault), or take one page from the CPU and store it (dmirror_exclusive)."""
        mirror: Dmirror = job.vm
        fault: _Fault = job.scratch
        if job.fault.access == ACCESS_ATOMIC:
            page_size = mirror.memory.geometry.page_size
            start = job.fault.addr & -page_size
            make_exclusive(mirror, start, start + page_size)
            return True
        fault.words = mirror.read_pages(job.unit, fault.deadline, write=job.fault.access == ACCESS_WRITE)
        if fault.words is None:
            raise Restart
        return True

    def bind(self, job: FaultJob) -> bool:
        """Store into the mirror table under the mutex; a window only if nothing was invalidated meanwhile."""
        mirror: Dmirror = job.vm
        fault: _Fault = job.scratch
        window: NotifierWindow = job.unit
        if job.fault.access == ACCESS_ATOMIC:
            return True
        write = job.fault.access == ACCESS_WRITE
        if not window.commit(lambda: mirror.store(window.start, fault.words, write=write)):
            raise Restart
        return True

    def _window_end(self, mirror: "Dmirror", addr: int) -> int:
        """End the window after its pages, or where the program's request would: at the end of the VMA."""
        end = addr + (self.device.tunables.fault_window_pages << mirror.memory.geometry.page_shift)
        lock = mirror.mm.mmap_lock
        lock.down_read()
        try:
            vma = mirror.mm.vma_lookup(addr)
        finally:
            lock.up_read()
        return end if vma is None else min(end, vma.end)
