"""Be the machine that a scenario runs on, with one method for each operation that a scenario may name.

A world is booted once for a scenario and a driver, set up, and remembered; `reset` puts it back to that moment. Pages
are numbered from 0 in one stretch of address space, which begins at a PMD boundary. An operation that its caller may
fail (a signal, an errno) ends with that as its outcome, which `world.outcomes` records.
"""

from __future__ import annotations

import errno as _errno
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from attrs import evolve

from gpusvm.check import Checker
from gpusvm.driver import ACCESS_ATOMIC, ACCESS_READ, ACCESS_WRITE, read_spec
from gpusvm.errors import CpuSignal, InputError, KernelError, ModelError, nearest
from gpusvm.explore.scenario import Operation, Scenario
from gpusvm.gpu import NEED_OF_OP
from gpusvm.kernel import FirstChoice
from gpusvm.machine import Machine, Process, load_topology
from gpusvm.mm import Geometry
from gpusvm.mm.api import MADV_DONTNEED, MREMAP_FIXED, MREMAP_MAYMOVE, PROT_NONE, PROT_READ, PROT_WRITE

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Literal

    from gpusvm.driver import DriverInfo, Vm
    from gpusvm.kernel import Kernel, Task

__all__ = ["OPERATIONS", "Outcome", "World"]

_BASE: Final = 1 << 44
_ACCESS: Final = {"read": ACCESS_READ, "write": ACCESS_WRITE, "atomic": ACCESS_ATOMIC}
_PROT: Final = {"none": PROT_NONE, "ro": PROT_READ, "rw": PROT_READ | PROT_WRITE}

Outcome = tuple[str, str, str]
"""The task, the operation as text, and "ok" or the name of its errno or signal."""


class _Fault:
    """Be one GPU fault that a task waits for."""

    __slots__ = ("access", "addr", "answered", "errno", "inst", "sm", "time_ns")

    def __init__(self, kernel: Kernel, addr: int, access: int) -> None:
        self.addr = addr
        self.access = access
        self.sm = 0
        self.inst = 0
        self.time_ns = kernel.now_ns
        self.errno: int | None = None
        self.answered = kernel.completion("gpu_access")

    def complete(self, errno: int) -> None:
        self.errno = errno
        self.answered.complete()


class World:
    """Run one scenario's operations on one driver."""

    def __init__(
        self,
        scenario: Scenario,
        spec: str,
        *,
        drivers: Mapping[str, DriverInfo],
        quirks: Literal["as_written", "fixed"] = "fixed",
        checked: bool = True,
    ) -> None:
        """Boot the scenario's machine with the driver of a spec string, attach the checker, run the setup.

        InputError for a spec, or an operation, that there is not.
        """
        self.scenario = scenario
        self.spec = spec
        geometry = Geometry(pmd_order=scenario.pmd_order)
        self.page_size = geometry.page_size
        for operation in (*scenario.setup, *(op for ops in scenario.tasks.values() for op in ops), *scenario.end):
            self._look_up(operation)
        topology = evolve(load_topology("single"), ram_bytes=scenario.ram_pages * geometry.page_size)
        self.machine = Machine.boot(
            topology,
            [read_spec(spec, dict(drivers), quirks=quirks)],
            vram_bytes=scenario.vram_pages * geometry.page_size,
            thp=scenario.thp,
            geometry=geometry,
            choices=FirstChoice(),
            mode="explored",
            checked=True,
        )
        self.process: Process = self.machine.process("p")
        self.vm: Vm = self.machine.open(self.process)
        self.outcomes: list[Outcome] = []
        self._waiting: list[_Fault] = []
        self.checker = Checker(self.machine.memory).attach() if checked else None
        for operation in scenario.setup:
            self.do(operation)
        self.kernel.settle()

    @property
    def kernel(self) -> Kernel:
        return self.machine.kernel

    def run_task(self, operations: tuple[Operation, ...]) -> None:
        """Do the operations of one task, and record the outcome of each."""
        task: Task = self.kernel.current
        for operation in operations:
            try:
                self.do(operation)
                outcome = "ok"
            except KernelError as error:
                outcome = _errno.errorcode.get(error.errno, str(error.errno))
            except CpuSignal as signal:
                outcome = str(signal).split(maxsplit=1)[0]
            self.outcomes.append((task.name, str(operation), outcome))

    def do(self, operation: Operation) -> None:
        """Do one operation. KernelError, CpuSignal: what its caller is told."""
        self._look_up(operation)(self, *operation.args)

    @staticmethod
    def _look_up(operation: Operation) -> Callable[..., None]:
        method = OPERATIONS.get(operation.name)
        if method is None:
            raise InputError(f"unknown operation {operation.name!r}, {nearest(operation.name, OPERATIONS)}")
        return method

    # ---- operations: the arguments are words of a scenario's line

    def map(self, first: str, pages: str, prot: str = "rw") -> None:
        """Map anonymous memory: first page, pages, and ``rw``, ``ro`` or ``none``."""
        self.process.mm.mmap(self._at(first), int(pages) * self.page_size, _PROT[prot])

    def cpu_read(self, first: str, pages: str) -> None:
        """Read pages from the CPU, in order; what is found is compared with what was written last."""
        for address in self._pages(first, pages):
            self.kernel.step()
            self.machine.memory.cpu_read(self.process.mm, address)

    def cpu_write(self, first: str, pages: str) -> None:
        """Write pages from the CPU, in order."""
        for address in self._pages(first, pages):
            self.kernel.step()
            self.machine.memory.cpu_write(self.process.mm, address)

    def gpu_read(self, first: str, pages: str) -> None:
        """Read pages from the GPU, in order; a page that faults is tried again when the fault is answered."""
        self._gpu(first, pages, "read")

    def gpu_write(self, first: str, pages: str) -> None:
        """Write pages from the GPU."""
        self._gpu(first, pages, "write")

    def gpu_atomic(self, first: str, pages: str) -> None:
        """Do an atomic read-modify-write on each page from the GPU."""
        self._gpu(first, pages, "atomic")

    def populate(self, first: str, pages: str) -> None:
        """Migrate pages with the driver's own ioctl (prefetch, SVM_BIND, MIGRATE_TO_DEV)."""
        start = self._at(first)
        self.vm.populate(start, start + int(pages) * self.page_size)

    def munmap(self, first: str, pages: str) -> None:
        """Unmap pages."""
        self.process.mm.munmap(self._at(first), int(pages) * self.page_size)

    def mprotect(self, first: str, pages: str, prot: str) -> None:
        """Change the protection of pages to ``rw``, ``ro`` or ``none``."""
        self.process.mm.mprotect(self._at(first), int(pages) * self.page_size, _PROT[prot])

    def mremap(self, first: str, pages: str, to: str) -> None:
        """Move pages to another place, over what is there (MREMAP_FIXED)."""
        length = int(pages) * self.page_size
        flags = MREMAP_MAYMOVE | MREMAP_FIXED
        self.process.mm.mremap(self._at(first), length, length, flags=flags, new_addr=self._at(to))

    def dontneed(self, first: str, pages: str) -> None:
        """Drop pages (MADV_DONTNEED)."""
        self.process.mm.madvise(self._at(first), int(pages) * self.page_size, MADV_DONTNEED)

    def close(self) -> None:
        """Close the GPU's address space; accesses that wait in it end, as those of a context that is gone."""
        self.vm.close()
        waiting, self._waiting = self._waiting, []
        for fault in waiting:
            if fault.errno is None:
                fault.complete(_errno.ECANCELED)

    # ---- parts

    def _at(self, page: str) -> int:
        return _BASE + int(page) * self.page_size

    def _pages(self, first: str, pages: str) -> range:
        start = self._at(first)
        return range(start, start + int(pages) * self.page_size, self.page_size)

    def _gpu(self, first: str, pages: str, how: str) -> None:
        table, kernel = self.vm.page_table, self.kernel
        access = _ACCESS[how]
        need = int(NEED_OF_OP[access])
        for address in self._pages(first, pages):
            kernel.step()
            while not table.access_one(address // self.page_size, need):
                fault = _Fault(kernel, address, access)
                self._waiting.append(fault)
                if not self.vm.faults.submit([fault]):
                    raise ModelError(f"the fault source took no fault on {address:#x}: its buffer is full")
                fault.answered.wait()
                self._waiting.remove(fault)
                if fault.errno:
                    raise KernelError(fault.errno, f"GPU {how} of {address:#x}")
                kernel.step()


OPERATIONS: Final[Mapping[str, Callable[..., None]]] = {
    method.__name__: method
    for method in (
        World.map,
        World.cpu_read,
        World.cpu_write,
        World.gpu_read,
        World.gpu_write,
        World.gpu_atomic,
        World.populate,
        World.munmap,
        World.mprotect,
        World.mremap,
        World.dontneed,
        World.close,
    )
}
"""What a scenario may name: each is documented at the method."""
