"""S24 to S26: atomics of the GPU on memory of the process."""

from gpusvm.conformance.probes.probe import PAGE, Lab, probe, written
from gpusvm.driver import ACCESS_ATOMIC
from gpusvm.errors import errno_name
from gpusvm.mm.api import PROT_READ, PROT_WRITE, VM_SHARED
from gpusvm.mm.pgtable import PteKind


@probe(
    "S24",
    "GPU atomic on a page in RAM",
    reference="xe_vma_need_vram_for_atomic; nouveau_atomic_range_fault; dmirror_exclusive",
    capability="atomics",
)
def _on_ram(lab: Lab) -> str:
    lab.need("atomics")
    bench = lab.bench(thp="never")
    addr = written(bench, 16)
    bench.gpu_atomic(addr)
    if bench.where(addr) == "device":
        return "the page moves to VRAM first"
    if bench.mm.page_table.entry(addr).kind is not PteKind.EXCLUSIVE:
        return "in place, shared with the CPUs"
    bench.cpu_read(addr)
    revoked = bench.mm.page_table.entry(addr).kind is not PteKind.EXCLUSIVE and not bench.mapped_pages(addr, 1)
    return "in place, taken from the CPUs until one touches it" if revoked else "in place, taken from the CPUs for ever"


@probe(
    "S25",
    "CPU writes and GPU atomics on one page in turns",
    reference="xe_svm.c: atomic_svm_timeslice_ms; make_device_exclusive",
    capability="atomics",
)
def _in_turns(lab: Lab) -> str:
    lab.need("atomics")
    bench = lab.bench(thp="never")
    addr = written(bench, 16)
    faults, waited = 0, []
    for _ in range(3):
        faults += bench.gpu_atomic(addr)
        before = bench.kernel.now_ns
        bench.cpu_write(addr)
        waited.append((bench.kernel.now_ns - before) // 1_000_000)
    turns = "the page changes hands every time" if faults == len(waited) else f"{faults} faults in 3 turns"
    if not any(waited):
        return f"{turns}, at once"
    times = ", ".join(map(str, sorted(set(waited))))
    return f"{turns}, the GPU keeps it for {times} ms"


@probe(
    "S26",
    "GPU atomic on a shared file mapping",
    reference="__xe_svm_handle_pagefault: EACCES; nouveau_atomic_range_fault; make_device_exclusive: EOPNOTSUPP",
    capability="atomics",
)
def _on_file(lab: Lab) -> str:
    lab.need("atomics")
    bench = lab.bench(thp="never")
    addr, file = 1 << 45, bench.memory.tmpfile(16)
    bench.mm.mmap(addr, 16 * PAGE, PROT_READ | PROT_WRITE, flags=VM_SHARED, file=file)
    file.close()
    bench.cpu_write(addr, 16)
    fault = bench.fault(addr, ACCESS_ATOMIC)
    return f"refused with {errno_name(fault.errno)}" if fault.errno else "served"
