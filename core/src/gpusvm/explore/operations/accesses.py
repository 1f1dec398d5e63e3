"""Let the CPUs and the GPU touch memory, page by page."""

import errno as _errno
from contextlib import ExitStack
from typing import Final

from gpusvm.driver import ACCESS_ATOMIC, ACCESS_READ, ACCESS_WRITE
from gpusvm.errors import KernelError, ModelError, ProgressError
from gpusvm.explore.operation import operation
from gpusvm.explore.place import Place
from gpusvm.gpu import NEED_OF_OP
from gpusvm.kernel import Kernel

__all__ = ["WaitingFault", "cpu_read", "cpu_write", "gpu_atomic", "gpu_read", "gpu_together", "gpu_write"]

_ACCESS: Final = {"read": ACCESS_READ, "write": ACCESS_WRITE, "atomic": ACCESS_ATOMIC}

FAULTS_MAX: Final = 500
"""Faults that one access may take before that is called no progress."""

SLEPT_MAX: Final = 100
"""Faults of one access after which its device stays awake until it is done. With ``autosuspend_ms=0`` it could fall
asleep after every answer, and take what was mapped along, for ever; delays are seconds, and a replay takes none."""


class WaitingFault:
    """Be one GPU fault that a task waits for (`gpusvm.driver.GpuFault`); `errno` is None until it is answered."""

    __slots__ = ("access", "addr", "answered", "cancelled", "errno", "inst", "sm", "time_ns")

    def __init__(self, kernel: Kernel, addr: int, access: int) -> None:
        self.addr = addr
        self.access = access
        self.sm = 0
        self.inst = 0
        self.time_ns = kernel.now_ns
        self.errno: int | None = None
        self.cancelled = False
        self.answered = kernel.completion("gpu_access")

    def complete(self, errno: int) -> None:
        """Take the driver's answer; ModelError if it has answered before."""
        if self.cancelled:
            return
        if self.errno is not None:
            raise ModelError(f"the fault on {self.addr:#x} is answered twice: with {self.errno}, then with {errno}")
        self.errno = errno
        self.answered.complete()

    def cancel(self) -> None:
        """End the access without an answer: the context that it belongs to is gone."""
        if self.errno is None:
            self.cancelled = True
            self.errno = _errno.ECANCELED
            self.answered.complete()


@operation()
def cpu_read(at: Place, first: int, pages: int) -> None:
    """Read pages from a CPU, in order; what is found is compared with what was written last. SIGSEGV and the like."""
    for page in range(first, first + pages):
        at.look(page)
        at.kernel.step()
        at.memory.cpu_read(at.mm, at.address(page))
        at.succeeded("read")


@operation()
def cpu_write(at: Place, first: int, pages: int) -> None:
    """Write pages from a CPU, in order."""
    for page in range(first, first + pages):
        at.look(page)
        at.kernel.step()
        at.memory.cpu_write(at.mm, at.address(page))
        at.succeeded("write")


@operation(by="gpu")
def gpu_read(at: Place, first: int, pages: int) -> None:
    """Read pages from the GPU, in order; a page that faults is tried again when the fault is answered.

    The driver's errno ends it, and ECANCELED once the GPU's address space is closed.
    """
    _one_by_one(at, "read", first, pages)


@operation(by="gpu")
def gpu_write(at: Place, first: int, pages: int) -> None:
    """Write pages from the GPU."""
    _one_by_one(at, "write", first, pages)


@operation(by="gpu")
def gpu_atomic(at: Place, first: int, pages: int) -> None:
    """Do an atomic read-modify-write on each page from the GPU."""
    _one_by_one(at, "atomic", first, pages)


@operation(by="gpu")
def gpu_together(at: Place, access: str, first: int, pages: int) -> None:
    """Touch pages from the GPU all at once, as threads of a warp do: ``read``, ``write`` or ``atomic``.

    All that fault are raised together; those that were served go on, and whatever faults then is raised again.
    """
    table, kernel = at.space.vm.page_table, at.kernel
    need = int(NEED_OF_OP[_ACCESS[access]])
    left = list(range(first, first + pages))
    at.look(first, range(first, first + pages))
    with ExitStack() as held:
        for again in range(FAULTS_MAX):
            if again > 1:  # one fault is what an access may take
                kernel.retried(by_chance=True)
            if again == SLEPT_MAX:
                held.enter_context(at.awake())
            kernel.step()
            at.wait_for_power()
            left = [page for page in left if not table.access_one(at.address(page) // at.world.page_size, need)]
            if not left:
                return
            _raise(at, [WaitingFault(kernel, at.address(page), _ACCESS[access]) for page in left])
    raise ProgressError(f"{at.step}: page {left[0]} faults for ever, {FAULTS_MAX} times by now")


def _one_by_one(at: Place, how: str, first: int, pages: int) -> None:
    table, kernel = at.space.vm.page_table, at.kernel
    access = _ACCESS[how]
    need = int(NEED_OF_OP[access])
    size = at.world.page_size
    for page in range(first, first + pages):
        at.look(page)
        address = at.address(page)
        with ExitStack() as held:
            for again in range(FAULTS_MAX):
                if again > 1:
                    kernel.retried(by_chance=True)
                if again == SLEPT_MAX:
                    held.enter_context(at.awake())
                kernel.step()
                at.wait_for_power()
                if table.access_one(address // size, need):
                    break
                _raise(at, [WaitingFault(kernel, address, access)])
            else:
                raise ProgressError(f"{at.step}: page {page} faults for ever, {FAULTS_MAX} times by now")
        at.succeeded(how)


def _raise(at: Place, faults: list[WaitingFault]) -> None:
    """Hand faults to the driver and wait for all answers; the first errno ends the operation."""
    space = at.space
    if space.closed or (space.synchronous and not space.open):
        raise KernelError(_errno.ECANCELED, f"the GPU's context of {at.actor.name!r} is gone")
    space.waiting += faults
    taken = space.vm.faults.submit(faults)
    for fault in faults[taken:]:
        raise ModelError(f"the fault source took no fault on {fault.addr:#x}: its buffer is full")
    for fault in faults:
        fault.answered.wait()
        space.waiting.remove(fault)
    for fault in faults:
        if fault.errno:
            page = (fault.addr - at.world.base) // at.world.page_size
            at.attempt.page = page
            raise KernelError(fault.errno, f"GPU access of page {page}")
