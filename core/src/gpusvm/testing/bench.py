"""A workbench for one driver: one machine, one process, one GPU address space, and single accesses from both sides."""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from attrs import evolve

from gpusvm.driver import (
    ACCESS_ATOMIC,
    ACCESS_READ,
    ACCESS_WRITE,
    Driver,
    DriverInfo,
    DriverSpec,
    Errnos,
    Vm,
    read_spec,
)
from gpusvm.drm import OwnerList
from gpusvm.errors import KernelError, ModelError, errno_name
from gpusvm.gpu import NEED_OF_OP
from gpusvm.kernel import Choices, Costs, Kernel
from gpusvm.machine import Machine, Topology, load_topology
from gpusvm.mm import Geometry, MemoryManager, MmStruct
from gpusvm.mm.api import PROT_READ, PROT_WRITE
from gpusvm.mm.pgtable import PmdKind, PteKind

__all__ = ["Bench", "Fault"]

_MOST_FAULTS = 1000


class Fault:
    """One GPU fault raised by hand (`gpusvm.driver.GpuFault`); `errno` is None until the driver has answered."""

    __slots__ = ("access", "addr", "errno", "inst", "kernel", "sm", "time_ns")

    def __init__(self, addr: int, access: int, *, time_ns: int, sm: int = 0, kernel: Kernel | None = None) -> None:
        self.kernel = kernel
        self.addr = addr
        self.access = access
        self.sm = sm
        self.inst = 0
        self.time_ns = time_ns
        self.errno: int | None = None

    def complete(self, errno: int) -> None:
        """Take the driver's answer; ModelError for a second one."""
        if self.errno is not None:
            raise ModelError(
                f"the fault on {self.addr:#x} is answered twice, with {self.errno} and {errno}"
                f"{'' if self.kernel is None else self.kernel.blame('fault-answered')}"
            )
        self.errno = errno


class Bench:
    """Put one driver on a machine with one process, to touch memory from the CPU and the GPU page by page.

    Every device of `topology` has the driver, but for those behind the first that `beside` has others for, and is open,
    by default in the order of the devices, else in that of `opened`: `vm` is the address space that GPU accesses go
    through, the first of `vms` (by device) until another is put there. `spec` is a spec string, `drivers` the drivers
    it may name (one `DriverInfo`, or a registry; default: what is installed). Sizes: `vram_bytes` of VRAM, `ram_bytes`
    of RAM in place of the topology's, `geometry` (a small PMD makes small tests). Call `close` at the end: it tears the
    machine down and so checks that nothing leaked. Accesses are checked against the contents of memory. `owners` is the
    what-if of `gpusvm.driver.Host`. With mode "explored" the order of tasks, spawned on `kernel`, is left to `choices`.
    In mode "timed" a `checked` bench says of an error in a driver's code which op, line and rule it is about
    (docs/reference/driver-rules.md).
    """

    def __init__(
        self,
        spec: str,
        *,
        drivers: "Mapping[str, DriverInfo] | None" = None,
        vram_bytes: int = 512 << 20,
        thp: Literal["always", "madvise", "never"] = "always",
        quirks: Literal["as_written", "fixed"] = "as_written",
        geometry: Geometry | None = None,
        costs: Costs | None = None,
        choices: Choices | None = None,
        mode: Literal["timed", "explored"] = "timed",
        topology: Topology | None = None,
        ram_bytes: int | None = None,
        checked: bool = True,
        opened: Sequence[int] | None = None,
        beside: Sequence[DriverSpec] = (),
        owners: OwnerList | None = None,
    ) -> None:
        if drivers is None:
            from gpusvm.plugins import load_drivers

            drivers = load_drivers()
        hardware = topology or load_topology("single")
        if ram_bytes is not None:
            hardware = evolve(hardware, ram_bytes=ram_bytes)
        own = read_spec(spec, drivers, quirks=quirks)
        self.machine = Machine.boot(
            hardware,
            [own, *beside, *[own] * (len(hardware.device) - len(beside) - 1)],
            vram_bytes=vram_bytes,
            thp=thp,
            geometry=geometry,
            costs=costs,
            choices=choices,
            mode=mode,
            checked=checked,
            authors=checked and mode == "timed",
            owners=owners,
        )
        self.process = self.machine.process("bench")
        devices = range(len(hardware.device))
        files = {index: self.machine.open(self.process, index) for index in opened or devices}
        self.vms: list[Vm] = [files[index] for index in devices]
        self.vm = self.vms[0]
        self._next_addr = 1 << 44

    @property
    def kernel(self) -> Kernel:
        return self.machine.kernel

    @property
    def memory(self) -> MemoryManager:
        return self.machine.memory

    @property
    def mm(self) -> MmStruct:
        return self.process.mm

    @property
    def driver(self) -> Driver:
        return self.machine.drivers[0]

    def map(self, length: int, *, prot: int = PROT_READ | PROT_WRITE) -> int:
        """Map `length` bytes of anonymous memory at the next PMD-aligned place; its address."""
        size = self.memory.geometry.pmd_size
        addr = self._next_addr
        self.mm.mmap(addr, length, prot)
        self._next_addr += -(-length // size) * size + size
        return addr

    def cpu_write(self, addr: int, pages: int = 1) -> None:
        """Write pages from the CPU, in order."""
        self._cpu(addr, pages, write=True)

    def cpu_read(self, addr: int, pages: int = 1) -> None:
        """Read pages from the CPU, in order; their contents are checked."""
        self._cpu(addr, pages, write=False)

    def gpu_read(self, addr: int, pages: int = 1) -> int:
        """Read pages from the GPU, one after the other; how many faults that took."""
        return self._gpu(addr, pages, ACCESS_READ)

    def gpu_write(self, addr: int, pages: int = 1) -> int:
        """Write pages from the GPU."""
        return self._gpu(addr, pages, ACCESS_WRITE)

    def gpu_atomic(self, addr: int, pages: int = 1) -> int:
        """Do an atomic read-modify-write on each page from the GPU."""
        return self._gpu(addr, pages, ACCESS_ATOMIC)

    def fault(self, addr: int, access: int = ACCESS_READ) -> Fault:
        """Raise one GPU fault and wait for its answer, whether the access would need it or not."""
        fault = Fault(addr, access, time_ns=self.kernel.now_ns, kernel=self.kernel)
        return self.faults([fault])[0]

    def faults(self, faults: Sequence[Fault]) -> Sequence[Fault]:
        """Raise several at once and wait for all answers."""
        taken = self.vm.faults.submit(faults)
        if taken != len(faults):
            raise ModelError(f"the fault source took {taken} of {len(faults)} faults")
        self.kernel.settle()
        waiting = [fault for fault in faults if fault.errno is None]
        step_ns = 1_000_000
        while waiting and step_ns < 1 << 40:
            # A worker may be asleep (a copy, a timeslice): let the time come.
            self.kernel.sleep_ns(step_ns)
            waiting = [fault for fault in waiting if fault.errno is None]
            step_ns *= 2
        if waiting:
            raise ModelError(
                f"the driver never answered the fault on {waiting[0].addr:#x}{self._blame_answer('fault-answered')}"
            )
        for fault in faults:
            self._check_answer(fault)
        return faults

    def where(self, addr: int, *, mm: MmStruct | None = None) -> Literal["none", "system", "device"]:
        """Say where the page at `addr` is now, from the CPU's page table; `mm` is another process's.

        Memory of a device that the CPU reaches (MEMORY_DEVICE_COHERENT) is on the device too.
        """
        entry = (mm or self.mm).page_table.entry(addr)
        if entry.kind is PteKind.NONE:
            return "none"
        coherent = entry.kind in {PteKind.PRESENT, PmdKind.THP} and self.memory.is_device_memory(entry.pfn)
        return "device" if coherent or entry.kind in {PteKind.PRIVATE, PmdKind.PRIVATE} else "system"

    def device_pages(self, addr: int, pages: int) -> int:
        """Count the pages of a stretch that are in device memory."""
        size = self.memory.geometry.page_size
        return sum(self.where(addr + i * size) == "device" for i in range(pages))

    def mapped_pages(self, addr: int, pages: int) -> int:
        """Count the pages of a stretch that the GPU has mapped."""
        vpn = addr >> self.memory.geometry.page_shift
        return int(np.count_nonzero(self.vm.page_table.perms(vpn, vpn + pages)))

    def close(self) -> None:
        """Tear the machine down and check the contents that were read."""
        self.machine.teardown()
        contents = self.memory.contents
        if contents.mismatch_count:
            raise ModelError(f"{contents.mismatch_count} reads did not see the last write; {contents.mismatches[0]}")

    def _check_answer(self, fault: Fault) -> None:
        """Raise ModelError for an errno that no program may see, whatever happens meanwhile (`DriverInfo.refusals`)."""
        if self.kernel.authors is None or not fault.errno:
            return
        asked = self.vms.index(self.vm) if self.vm in self.vms else 0
        refusals = self.machine.drivers[asked].info.refusals
        stated = (refusals.access, refusals.atomic, refusals.populate, refusals.ioctl, Errnos())
        known = frozenset[int]().union(*(errnos for each in stated for _, errnos in each.items()))
        if fault.errno not in known:
            what = errno_name(fault.errno) if fault.errno > 0 else f"{fault.errno}, which is no errno"
            raise ModelError(
                f"the fault on {fault.addr:#x} is answered with {what}, and DriverInfo.refusals knows of no such answer"
                f"{self._blame_answer('errno')}"
            )

    def _blame_answer(self, duty: str) -> str:
        """Name the function of the driver that answers faults."""
        authors = self.kernel.authors
        if authors is None:
            return ""
        source = self.vm.faults
        pipeline = getattr(getattr(source, "queues", source), "pipeline", source)
        names = ("respond", "acknowledge", "replay", "run", "submit")
        found = (authors.of(getattr(type(pipeline), name, None)) for name in names)
        return authors.says(duty, next((each for each in found if each), None) or authors.of(type(pipeline)))

    def _cpu(self, addr: int, pages: int, *, write: bool) -> None:
        vpn = addr >> self.memory.geometry.page_shift
        self.memory.cpu_access(self.mm, np.arange(vpn, vpn + pages), np.full(pages, write))

    def _gpu(self, addr: int, pages: int, access: int) -> int:
        table, size = self.vm.page_table, self.memory.geometry.page_size
        need = NEED_OF_OP[access : access + 1]
        faults = 0
        for page in range(addr, addr + pages * size, size):
            vpn = np.array([page // size], np.int64)
            tries = 0
            while table.missing(vpn, need)[0]:
                fault = self.fault(page, access)
                faults += 1
                tries += 1
                if fault.errno:
                    raise KernelError(fault.errno, f"GPU fault on {page:#x}")
                if tries > _MOST_FAULTS:
                    raise ModelError(f"livelock: {page:#x} still faults after {tries} answers")
            table.access(vpn, need)
        return faults
