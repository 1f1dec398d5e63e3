"""Ask CPU and GPU about the same memory: both have what the process may have of it, and see what was written last."""

from typing import TYPE_CHECKING, Final

from attrs import frozen

from gpusvm.conformance.small import BLOCK_PAGES
from gpusvm.errors import CpuSignal, KernelError, errno_name
from gpusvm.gpu import WRITE
from gpusvm.mm.api import VM_READ, VM_WRITE

if TYPE_CHECKING:
    from collections.abc import Callable
    from collections.abc import Set as AbstractSet

    from gpusvm.conformance.suite import Lab
    from gpusvm.driver import DriverInfo, Refusals
    from gpusvm.testing import Bench

__all__ = ["agree", "errno_of", "is_refused", "no_more_than_the_process"]


def agree(lab: "Lab", bench: "Bench", addr: int, pages: int = BLOCK_PAGES, *, info: "DriverInfo | None" = None) -> None:
    """Read and write pages from the CPU and from the GPU, in both orders: every other page, and then those between.

    What the process may do both can do, and every read is of what was written last, whoever wrote it; what it may not
    do is refused, to the GPU with an errno that the driver states for that (`Refusals.access`, by default of the driver
    under test). Nobody had to touch the page for the GPU to lose what the process has lost. AssertionError.
    """
    no_more_than_the_process(bench, addr, pages)
    size = bench.memory.geometry.page_size
    stated = (info or lab.info).refusals
    answers = {page: _Answers.of(stated, rights_of(bench, page)) for page in range(addr, addr + pages * size, size)}
    # Page by page a driver that moves blocks would move each for every single question. The pages between still have
    # what the change left when the others are asked.
    for some in (list(answers.items())[::2], list(answers.items())[1::2]):
        for asked in _QUESTIONS:
            for page, may in some:
                asked(bench, page, may)
    no_more_than_the_process(bench, addr, pages)


@frozen
class _Answers:
    """Say what has to be answered about a page: who may do what, and what the GPU is refused with."""

    read: bool
    write: bool
    gpu_read: bool
    refusals: "AbstractSet[int]"

    @classmethod
    def of(cls, stated: "Refusals", rights: int | None) -> "_Answers":
        errnos = stated.access
        read, write = bool((rights or 0) & VM_READ), bool((rights or 0) & VM_WRITE)
        return cls(
            read=read,
            write=write,
            gpu_read=read and (write or not stated.read_needs_write),
            refusals=errnos.forbidden if rights is not None else errnos.unmapped,
        )


def _cpu_reads(bench: "Bench", page: int, may: _Answers) -> None:
    _ask(lambda: bench.cpu_read(page), may.read, f"a CPU's read of {page:#x}")


def _cpu_writes(bench: "Bench", page: int, may: _Answers) -> None:
    _ask(lambda: bench.cpu_write(page), may.write, f"a CPU's write to {page:#x}")


def _gpu_reads(bench: "Bench", page: int, may: _Answers) -> None:
    _ask(lambda: bench.gpu_read(page), may.gpu_read, f"the GPU's read of {page:#x}", may.refusals)


def _gpu_writes(bench: "Bench", page: int, may: _Answers) -> None:
    _ask(lambda: bench.gpu_write(page), may.write, f"the GPU's write to {page:#x}", may.refusals)


_QUESTIONS: Final = (_cpu_reads, _gpu_reads, _gpu_writes, _cpu_reads, _cpu_writes, _gpu_reads)


def no_more_than_the_process(bench: "Bench", addr: int, pages: int = BLOCK_PAGES) -> None:
    """Compare the GPU's page table with the process's areas. AssertionError if the GPU may do more."""
    shift = bench.memory.geometry.page_shift
    first = addr >> shift
    for vpn, perm in enumerate(bench.vm.page_table.perms(first, first + pages).tolist(), first):
        rights = rights_of(bench, vpn << shift)
        if rights is None or not rights & VM_READ:
            why = "in no area" if rights is None else "in an area that may not be read"
            assert not perm, f"the GPU has {vpn << shift:#x} mapped, which is {why} of the process"
        elif not rights & VM_WRITE:
            assert not perm & WRITE, f"the GPU may write {vpn << shift:#x}, which the process may only read"


def rights_of(bench: "Bench", addr: int) -> int | None:
    """Return the flags of the area at an address; None if there is none."""
    with bench.mm.mmap_lock.read():
        vma = bench.mm.vma_lookup(addr)
    return None if vma is None else vma.flags


def is_refused(act: "Callable[[], object]", errnos: "AbstractSet[int]", what: str) -> None:
    """Do something that has to be refused with one of some errnos. AssertionError."""
    _ask(act, False, what, errnos)


def errno_of(act: "Callable[[], object]") -> int:
    """Do something, and return the errno that it was refused with; 0 if it was done."""
    try:
        act()
    except KernelError as error:
        return error.errno
    return 0


def _ask(act: "Callable[[], object]", may: bool, what: str, errnos: "AbstractSet[int]" = frozenset()) -> None:
    signal = ""
    errno = 0
    try:
        errno = errno_of(act)
    except CpuSignal as got:
        signal = str(got)
    answer = signal or (errno_name(errno) if errno else "done")
    right = "" if may else " not"
    assert may is (answer == "done"), f"{what} was answered {answer}, and the process may{right} do that"
    stated = ", ".join(sorted(map(errno_name, errnos))) or "none"
    assert not errno or errno in errnos, f"{what} was refused with {answer}; the driver states {stated}"
