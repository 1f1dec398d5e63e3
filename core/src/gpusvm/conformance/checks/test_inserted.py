"""Pages that some other driver has put into a process (vm_insert_page): hmm-tests' mixedmap, and what can befall them.

They are normal pages, counted as a file's in the process's rss (invariant 46), and belong to no file and no anonymous
area: no device has a place for them, and neither rmap nor migration finds them. An area of such pages a driver may
refuse altogether, as kfd does.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

import numpy as np

from gpusvm.conformance.agreement import errno_of, no_more_than_the_process
from gpusvm.conformance.areas import fork, inserted
from gpusvm.conformance.family import every, family
from gpusvm.conformance.small import BLOCK, BLOCK_PAGES, PAGE, small
from gpusvm.conformance.suite import Lab, check
from gpusvm.driver import ACCESS_ATOMIC, ACCESS_READ, ACCESS_WRITE
from gpusvm.errors import CpuSignal, errno_name
from gpusvm.mm.api import MADV_DONTNEED, PROT_READ

if TYPE_CHECKING:
    from gpusvm.testing import Bench

_INSERT: Final = "mm/memory.c:vm_insert_page"
_HMM_TEST: Final = "tools/testing/selftests/mm/hmm-tests.c: mixedmap"


def _used(lab: Lab, bench: "Bench", addr: int, access: int) -> bool:
    """Let the GPU use all pages, and tell whether it may; AssertionError for an errno that is not stated for them."""
    errno = bench.fault(addr, access).errno or 0
    if errno:
        refusals = lab.info.refusals.atomic if access == ACCESS_ATOMIC else lab.info.refusals.access
        assert errno in refusals.unfit, f"the GPU was refused with {errno_name(errno)}, not stated for what is unfit"
        assert not bench.mapped_pages(addr, BLOCK_PAGES)
        return False
    {ACCESS_READ: bench.gpu_read, ACCESS_WRITE: bench.gpu_write, ACCESS_ATOMIC: bench.gpu_atomic}[access](
        addr, BLOCK_PAGES
    )
    return True


@family(
    "inserted.reach.{access}",
    every(access=("read", "write")),
    since="1.0",
    ref=f"{_HMM_TEST}; mm/hmm.c:hmm_vma_walk_test",
)
def test_reach(lab: Lab, access: str) -> None:
    """A {access} of pages that a driver has put into the process is served where they are, or refused with a reason."""
    bench = small(lab)
    addr = inserted(bench)
    _used(lab, bench, addr, ACCESS_WRITE if access == "write" else ACCESS_READ)
    bench.cpu_read(addr, BLOCK_PAGES)
    bench.cpu_write(addr, BLOCK_PAGES)
    _used(lab, bench, addr, ACCESS_READ)


@check("inserted.atomic", since="1.0", profile="atomics", ref="mm/rmap.c:make_device_exclusive")
def test_atomic(lab: Lab) -> None:
    """An atomic on pages that a driver has put into the process is done or refused with a reason; none is lost."""
    bench = small(lab)
    addr = inserted(bench)
    _used(lab, bench, addr, ACCESS_ATOMIC)
    bench.cpu_read(addr, BLOCK_PAGES)


@check(
    "inserted.populate.stays",
    since="1.0",
    profile="device-memory",
    requires=("explicit_populate",),
    ref="mm/migrate_device.c:migrate_vma_setup",
)
def test_populate(lab: Lab) -> None:
    """What a driver has put into the process is not brought to a device, and the process still has it."""
    bench = small(lab)
    addr = inserted(bench)
    errno_of(lambda: bench.vm.populate(addr, addr + BLOCK))
    assert not bench.device_pages(addr, BLOCK_PAGES), "there is no place on a device for pages of another driver"
    _used(lab, bench, addr, ACCESS_WRITE)
    bench.cpu_read(addr, BLOCK_PAGES)
    bench.cpu_write(addr, BLOCK_PAGES)


def _munmap(bench: "Bench", addr: int) -> None:
    bench.mm.munmap(addr, BLOCK)


def _munmap_middle(bench: "Bench", addr: int) -> None:
    bench.mm.munmap(addr + 4 * PAGE, BLOCK // 2)


def _read_only(bench: "Bench", addr: int) -> None:
    bench.mm.mprotect(addr, BLOCK, PROT_READ)


def _dontneed(bench: "Bench", addr: int) -> None:
    bench.mm.madvise(addr, BLOCK, MADV_DONTNEED)


def _fork(bench: "Bench", addr: int) -> None:
    child = fork(bench)
    first = addr // PAGE
    bench.memory.cpu_access(child, np.arange(first, first + BLOCK_PAGES), np.ones(BLOCK_PAGES, np.bool_))
    bench.cpu_read(addr, BLOCK_PAGES)


CHANGES: Final[Mapping[str, Callable[["Bench", int], None]]] = {
    "munmap": _munmap,
    "munmap-middle": _munmap_middle,
    "read-only": _read_only,
    "dontneed": _dontneed,
    "fork": _fork,
}


@family("inserted.change.{change}", every(change=CHANGES), since="1.0", ref=f"{_INSERT}; mm/memory.c:zap_present_ptes")
def test_change(lab: Lab, change: str) -> None:
    """After {change} of pages that a driver has put there, the GPU has no more than the process, and rss is right."""
    bench = small(lab)
    addr = inserted(bench)
    _used(lab, bench, addr, ACCESS_WRITE)
    CHANGES[change](bench, addr)
    no_more_than_the_process(bench, addr)
    left = sum(bench.where(addr + page * PAGE) != "none" for page in range(BLOCK_PAGES))
    mapped = bench.mapped_pages(addr, BLOCK_PAGES)
    assert mapped <= left, f"the GPU has {mapped} pages mapped, of which the process has {left}"


@check("inserted.gone.signal", since="1.0", ref="mm/memory.c:do_fault: VM_FAULT_SIGBUS")
def test_gone(lab: Lab) -> None:
    """Of pages that the other driver's area has lost the GPU has none, and a CPU that touches them gets a signal."""
    bench = small(lab)
    addr = inserted(bench)
    _used(lab, bench, addr, ACCESS_WRITE)
    bench.mm.madvise(addr, BLOCK, MADV_DONTNEED)
    try:
        bench.cpu_read(addr)
        signal = "none"
    except CpuSignal as got:
        signal = str(got).split(maxsplit=1)[0]
    assert signal == "SIGBUS", f"a CPU was answered with signal {signal}"
    errno = bench.fault(addr, ACCESS_READ).errno or 0
    refusals = lab.info.refusals.access
    assert errno in refusals.unfit | refusals.unmapped | refusals.forbidden, f"the GPU was answered {errno}"
    assert not bench.mapped_pages(addr, BLOCK_PAGES)
