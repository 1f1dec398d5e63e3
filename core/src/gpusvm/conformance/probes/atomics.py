"""S24 to S26: atomics of the GPU on memory of the process."""

from collections.abc import Sequence
from errno import EOPNOTSUPP
from typing import TYPE_CHECKING, Final

from gpusvm.conformance.probes.probe import Lab, applies, probe
from gpusvm.conformance.scene import (
    ELSEWHERE,
    PAGE,
    able_to_do_atomics,
    after_hmm,
    answered,
    operations,
    written,
)
from gpusvm.driver import ACCESS_ATOMIC
from gpusvm.errors import KernelError
from gpusvm.mm.api import PROT_READ, PROT_WRITE, VM_SHARED
from gpusvm.mm.pgtable import PteKind

if TYPE_CHECKING:
    from gpusvm.testing import Bench

# include/uapi/drm/xe_drm.h: DRM_XE_ATOMIC_*
_DEVICE: Final = 1
_CPU: Final = 3


@probe(
    "S24",
    "GPU atomic on a page in RAM; and where the program gave atomics to the CPUs, or to the device",
    reference="xe_vma_need_vram_for_atomic; nouveau_atomic_range_fault; dmirror_exclusive",
    capability="atomics",
    shows=applies,
)
def _on_ram(lab: Lab) -> str:
    bench, addr = able_to_do_atomics(lab, thp="never")
    found = _how(bench, addr)
    advised = [_advised(lab, whose) for whose in (_CPU, _DEVICE)]
    return f"{found}; {advised[0]}; {advised[1]}" if all(advised) else found


def _how(bench: "Bench", addr: int) -> str:
    if bench.where(addr) == "device":
        return "the page moves to VRAM first"
    if bench.mm.page_table.entry(addr).kind is not PteKind.EXCLUSIVE:
        return "in place, shared with the CPUs"
    bench.cpu_read(addr)
    revoked = bench.mm.page_table.entry(addr).kind is not PteKind.EXCLUSIVE and not bench.mapped_pages(addr, 1)
    return "in place, taken from the CPUs until one touches it" if revoked else "in place, taken from the CPUs for ever"


def _advised(lab: Lab, whose: int) -> str:
    """Prefer RAM and say whose atomics are, as far as the driver has advice; empty if it has none."""
    bench = lab.bench(thp="never")
    addr = written(bench, 16)
    advise = operations(lab, bench, addr)
    if advise is None or not {"prefer_ram", "atomics"} <= advise.names:
        return ""
    span: Sequence[int] = (0, 0, 0, 16)
    advise.do("prefer_ram", span)
    advise.do("atomics", (*span, whose))
    found = answered(bench, bench.fault(addr, ACCESS_ATOMIC))
    return found if found != "served" else _how(bench, addr)


@probe(
    "S25",
    "CPU writes and GPU atomics on one page in turns, and after the GPU's turn had to be tried twice",
    reference="xe_svm.c: atomic_svm_timeslice_ms; __xe_svm_handle_pagefault: timeslice_ms; make_device_exclusive",
    capability="atomics",
    shows=applies,
)
def _in_turns(lab: Lab) -> str:
    bench, addr = able_to_do_atomics(lab, thp="never")
    bench.cpu_write(addr)
    faults, waited = 0, []
    for _ in range(3):
        faults += bench.gpu_atomic(addr)
        waited.append(_wait_ms(bench, addr))
    turns = "the page changes hands every time" if faults == len(waited) else f"{faults} faults in 3 turns"
    if not any(waited):
        return f"{turns}, at once"
    failures = [KernelError(EOPNOTSUPP, "some pages are elsewhere")]

    def fail_once() -> None:
        if failures and bench.where(addr) == "device":
            raise failures.pop()

    with after_hmm(bench, fail_once):
        bench.gpu_atomic(addr)
    times = ", ".join(map(str, sorted(set(waited))))
    return f"{turns}, the GPU keeps it for {times} ms, and for {_wait_ms(bench, addr)} ms"


def _wait_ms(bench: "Bench", addr: int) -> int:
    """Write from a CPU; how long that takes."""
    before = bench.kernel.now_ns
    bench.cpu_write(addr)
    return (bench.kernel.now_ns - before) // 1_000_000


@probe(
    "S26",
    "GPU atomic on a shared file mapping",
    reference="__xe_svm_handle_pagefault: EACCES; nouveau_atomic_range_fault; make_device_exclusive: EOPNOTSUPP",
    capability="atomics",
)
def _on_file(lab: Lab) -> str:
    bench, _ = able_to_do_atomics(lab, thp="never")
    file = bench.memory.tmpfile(16)
    bench.mm.mmap(ELSEWHERE, 16 * PAGE, PROT_READ | PROT_WRITE, flags=VM_SHARED, file=file)
    file.close()
    bench.cpu_write(ELSEWHERE, 16)
    return answered(bench, bench.fault(ELSEWHERE, ACCESS_ATOMIC))
