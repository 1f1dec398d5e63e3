"""Set the scenes of the probes: memory that was written, brought to a device or pinned, devices left alone, and what
happens in the middle of something.

A probe that asks for what a driver does not do ends with NotApplicableError: whether it does is seen, and not read.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MemberDescriptorType
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from attrs import define

from gpusvm.conformance.lab import Lab, NotApplicableError
from gpusvm.driver import CallerFaults
from gpusvm.errors import KernelError, ModelError, errno_name
from gpusvm.mm.api import HMM_PFN_REQ_FAULT, PROT_READ, PROT_WRITE, HmmRange
from gpusvm.testing.bench import Fault

if TYPE_CHECKING:
    from gpusvm.driver import Vm
    from gpusvm.driver.operations import OperationExecutor
    from gpusvm.drm import RuntimePm
    from gpusvm.machine import Process
    from gpusvm.testing import Bench

PAGE: Final = 4096
PMD_PAGES: Final = 512
PMD: Final = PMD_PAGES * PAGE

ELSEWHERE: Final = 1 << 45
"""An address that nothing is mapped at, and no mapping of a bench's comes near."""

_LONG_NS: Final = 60_000_000_000
_PRESENT: Final = 16


# ---- memory


def written(bench: "Bench", pages: int = PMD_PAGES) -> int:
    """Map anonymous memory and write it from the CPU; its address."""
    addr = bench.map(pages * PAGE)
    bench.cpu_write(addr, pages)
    return addr


def written_anew(bench: "Bench", addr: int, pages: int) -> None:
    """Put fresh memory at an address, and write it from the CPU."""
    bench.mm.munmap(addr, pages * PAGE)
    bench.mm.mmap(addr, pages * PAGE, PROT_READ | PROT_WRITE)
    bench.cpu_write(addr, pages)


def populated(bench: "Bench", pages: int = PMD_PAGES) -> int:
    """Write memory from the CPU and have the driver bring it to the device; its address.

    NotApplicableError if the driver brings nothing there, ModelError if it brings a part of it.
    """
    addr = written(bench, pages)
    try:
        bench.vm.populate(addr, addr + pages * PAGE)
    except KernelError as error:
        raise NotApplicableError(f"nothing can be populated ({errno_name(error.errno)})") from None
    moved = bench.device_pages(addr, pages)
    if not moved:
        raise NotApplicableError("populate moves nothing")
    if moved != pages:
        raise ModelError(f"{moved} of {pages} pages came to the device, with none in the way")
    return addr


def on_device(lab: Lab, pages: int = PMD_PAGES, **options: Any) -> "tuple[Bench, int]":
    """Boot a machine and populate memory in it."""
    bench = lab.bench(**options)
    return bench, populated(bench, pages)


def able_to_populate(lab: Lab, **options: Any) -> "Bench":
    """Boot a machine in which one page was populated, and is gone: that the driver can is seen."""
    bench, addr = on_device(lab, _PRESENT, **options)
    bench.mm.munmap(addr, _PRESENT * PAGE)
    bench.kernel.settle()
    return bench


def able_to_do_atomics(lab: Lab, **options: Any) -> "tuple[Bench, int]":
    """Boot a machine, write memory and do an atomic on its first page from the GPU."""
    bench = lab.bench(**options)
    addr = written(bench, _PRESENT)
    try:
        bench.gpu_atomic(addr)
    except KernelError as error:
        raise NotApplicableError(f"no atomics ({errno_name(error.errno)})") from None
    return bench, addr


def other_process(bench: "Bench", addr: int, pages: int = PMD_PAGES) -> "tuple[Process, Vm]":
    """Start another process that has the device open, and memory at an address that its CPU has written."""
    process = bench.machine.process("other")
    vm = bench.machine.open(process)
    process.mm.mmap(addr, pages * PAGE, PROT_READ | PROT_WRITE)
    first = addr // PAGE
    bench.memory.cpu_access(process.mm, np.arange(first, first + pages), np.full(pages, fill_value=True))
    return process, vm


@contextmanager
def pinned(bench: "Bench", addr: int, pages: int) -> Iterator[None]:
    """Keep pages where they are, as the DMA of another device would."""
    pins = bench.memory.pin_user_pages_fast(bench.mm, addr, pages)
    try:
        yield
    finally:
        bench.memory.unpin_user_pages(pins)


# ---- the driver's own calls


@define
class Operations:
    """Do a driver's own calls by name, on memory that begins at one address."""

    names: frozenset[str]
    parameters: Mapping[str, Sequence[str]]
    _executor: "OperationExecutor"

    def do(self, name: str, numbers: Sequence[int]) -> None:
        """Do one; a slot is always the same memory, and a page a page of it."""
        self._executor.execute(name, numbers)


def operations(lab: Lab, bench: "Bench", addr: int) -> Operations | None:
    """Return what the driver offers besides what all have (the hook `gpusvm_operations`), None if that is nothing."""
    from gpusvm.driver.operations import OperationHost, PageWords
    from gpusvm.plugins import Registry

    if not isinstance(lab.drivers, Registry):
        return None
    target = lab.drivers.find(lab.driver.partition(":")[0]).operations
    if target is None:
        return None
    host = OperationHost(
        memory=bench.memory,
        mm=bench.mm,
        drivers=bench.machine.drivers,
        vms=bench.vms,
        words=PageWords(bench.memory),
        address=lambda _, page: addr + page * PAGE,
    )
    return Operations(frozenset(target.operations), target.operations, target.start(host))


# ---- faults


def answered(bench: "Bench", fault: Fault) -> str:
    """Say how a fault was answered, and whether that is of use to the GPU."""
    if fault.errno:
        return f"refused with {errno_name(fault.errno)}"
    return "served" if bench.mapped_pages(fault.addr, 1) else "acknowledged, with nothing mapped"


def perms(bench: "Bench", addr: int) -> int:
    """Return what the GPU may do with a page."""
    return int(bench.vm.page_table.perms(addr // PAGE, addr // PAGE + 1)[0])


class TimedFault(Fault):
    """Be a fault that remembers when it was answered, and after which others."""

    def __init__(self, bench: "Bench", addr: int, access: int, order: "list[TimedFault]") -> None:
        super().__init__(addr, access, time_ns=bench.kernel.now_ns)
        self.answered_ns = -1
        self._kernel = bench.kernel
        self._order = order

    def complete(self, errno: int) -> None:
        """Take the driver's answer."""
        super().complete(errno)
        self.answered_ns = self._kernel.now_ns
        self._order.append(self)


def at_once(bench: "Bench", wanted: "Sequence[tuple[int, int]]") -> "list[TimedFault]":
    """Raise faults, (address, access), all at once; in the order in which they were answered."""
    order: list[TimedFault] = []
    bench.faults([TimedFault(bench, addr, access, order) for addr, access in wanted])
    return order


def with_fault_buffer(lab: Lab, **options: Any) -> "Bench":
    """Boot a machine whose GPU has a fault buffer."""
    bench = lab.bench(**options)
    if isinstance(bench.vm.faults, CallerFaults):
        raise NotApplicableError("accesses are ioctls, there is no fault buffer")
    return bench


# ---- devices


def rpm(bench: "Bench") -> "RuntimePm":
    """Return the power of the device. NotApplicableError if it has none that changes."""
    pm = bench.driver.device.pm
    if pm is None:
        raise NotApplicableError("the device never sleeps")
    return pm


def falls_asleep(bench: "Bench") -> bool:
    """Let a minute pass in which nobody uses the device, and tell whether it sleeps then."""
    bench.kernel.sleep_ns(_LONG_NS)
    return rpm(bench).state != "D0"


def able_to_sleep(lab: Lab, **options: Any) -> "Bench":
    """Boot a machine whose device sleeps when nobody has it open, or once the process is gone that had: that it can is
    seen first, on a machine of its own, and that the driver can populate.
    """
    bench = able_to_populate(lab, **options)
    close(bench)
    if not falls_asleep(bench):
        bench.machine.processes.remove(bench.process)
        bench.mm.mmput()
        bench.kernel.settle()
    if not falls_asleep(bench):
        raise NotApplicableError("the device never sleeps")
    return lab.bench(**options)


def close(bench: "Bench") -> None:
    """Close the device; the process goes on."""
    bench.machine.close(bench.process)
    bench.process.vms.clear()
    bench.kernel.settle()


# ---- what happens meanwhile, and what is said of it


@contextmanager
def told(bench: "Bench", kind: str) -> "Iterator[list[tuple[Any, ...]]]":
    """Collect the fields of the events of a kind that the model tells inside the block."""
    tracer = bench.kernel.tracer
    was, tracer.on = tracer.on, True
    begun = len(tracer.events)
    found: list[tuple[Any, ...]] = []
    try:
        yield found
    finally:
        tracer.on = was
        found += [tuple(fields) for _, _, each, *fields in tracer.events[begun:] if each == kind]


@contextmanager
def instead(of: object, name: str, use: Callable[..., Any]) -> Iterator[None]:
    """Put a function in place of a method of an object for a while: something that happens in the middle of a call.

    What the object itself has of that name, and not its class alone, it has again at the end.
    """
    slot = isinstance(getattr(type(of), name, None), MemberDescriptorType)
    had = slot or name in getattr(of, "__dict__", {})
    was = getattr(of, name)
    setattr(of, name, use)
    try:
        yield
    finally:
        if had:
            setattr(of, name, was)
        else:
            delattr(of, name)


@contextmanager
def after_hmm(bench: "Bench", act: Callable[[], None]) -> Iterator[None]:
    """Let something happen whenever the driver has had pages made present and read the CPU's page table, before it can
    use what it read. A look at what is there (drm_gpusvm_scan_mm, which has no end of attempts) goes undisturbed.
    """
    memory = bench.memory
    locked, unlocked = memory.hmm_range_fault, memory.hmm_range_fault_unlocked_timeout

    def read_locked(range_: HmmRange) -> None:
        locked(range_)
        if range_.default_flags & HMM_PFN_REQ_FAULT:
            act()

    def read_unlocked(range_: HmmRange, timeout_ns: int) -> None:
        unlocked(range_, timeout_ns)
        if range_.default_flags & HMM_PFN_REQ_FAULT:
            act()

    with (
        instead(memory, "hmm_range_fault", read_locked),
        instead(memory, "hmm_range_fault_unlocked_timeout", read_unlocked),
    ):
        yield


@contextmanager
def before_call(of: object, name: str, act: Callable[[], object]) -> Iterator[None]:
    """Let something happen whenever a method of an object is called."""
    method = getattr(of, name)

    def call(*arguments: Any, **named: Any) -> Any:
        act()
        return method(*arguments, **named)

    with instead(of, name, call):
        yield


@contextmanager
def counted(of: object, name: str) -> Iterator[list[None]]:
    """Count the calls of a method of an object: one entry for each."""
    calls: list[None] = []
    with before_call(of, name, lambda: calls.append(None)):
        yield calls


# ---- words


def answer(act: Callable[[], object]) -> str:
    """Say how an operation ends: ok, or the name of its errno."""
    try:
        act()
    except KernelError as error:
        return errno_name(error.errno)
    return "ok"


def of_block(pages: int) -> str:
    """Say how much of a block of small pages, of which one was touched, a number of pages is."""
    return {0: "nothing", 1: "the page", PMD_PAGES: "the whole block"}.get(pages, f"{pages} pages")


def both(answers: Sequence[str], words: str = "{}, and {}") -> str:
    """Say two answers, or one if they are alike."""
    return answers[0] if answers[0] == answers[1] else words.format(*answers)
