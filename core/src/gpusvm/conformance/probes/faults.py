"""S14 to S23: how GPU faults are answered."""

from errno import ENOMEM
from typing import Final

from gpusvm.conformance.probes.probe import Lab, NotApplicableError, probe
from gpusvm.conformance.scene import (
    ELSEWHERE,
    PAGE,
    PMD_PAGES,
    able_to_populate,
    after_hmm,
    answered,
    at_once,
    perms,
    pinned,
    told,
    with_fault_buffer,
    written,
)
from gpusvm.driver import ACCESS_ATOMIC, ACCESS_PREFETCH, ACCESS_READ, ACCESS_WRITE, CallerFaults
from gpusvm.errors import KernelError
from gpusvm.gpu import ATOMIC, WRITE
from gpusvm.mm.api import MMU_NOTIFY_CLEAR, PROT_READ, PROT_WRITE, VM_PFNMAP, MmuNotifierRange

_RACE_NS: Final = 3_000_000_000

# include/uapi/drm/xe_drm.h: DRM_XE_VM_GET_PROPERTY_FAULTS
_FAULTS: Final = 0

# Where a device's registers might be: no RAM, and no device memory.
_MMIO: Final = 1 << 40


@probe(
    "S14",
    "GPU read where the process may only read",
    reference="drm_gpusvm_range_find_or_insert: EPERM; nouveau_range_fault; dmirror_do_fault",
)
def _read_only(lab: Lab) -> str:
    bench = lab.bench(thp="never")
    addr = written(bench, 16)
    bench.mm.mprotect(addr, 16 * PAGE, PROT_READ)
    found = answered(bench, bench.fault(addr))
    if found != "served":
        return found
    return "mapped for writing" if perms(bench, addr) & WRITE else "mapped read-only"


@probe(
    "S15",
    "GPU read of a page that nobody has written",
    reference="hmm_range_fault without HMM_PFN_REQ_WRITE; drm_gpusvm_get_pages: HMM_PFN_REQ_WRITE",
)
def _never_written(lab: Lab) -> str:
    bench = lab.bench(thp="never")
    addr = bench.map(16 * PAGE)
    bench.gpu_read(addr)
    zero = bench.mm.page_table.entry(addr).pfn == bench.memory.zero_pfn
    return "the shared zero page is mapped" if zero else "a page of its own is allocated"


@probe(
    "S16",
    "GPU access of an address where nothing is mapped",
    reference="drm_gpusvm_range_find_or_insert: ENOENT; hmm_vma_walk_hole: EFAULT",
)
def _unmapped(lab: Lab) -> str:
    bench = lab.bench()
    return answered(bench, bench.fault(ELSEWHERE))


@probe(
    "S17",
    "four faults on one page at once",
    reference="xe_pagefault_queue_work: no dedupe; nouveau_svm_fault: one replay for a batch",
)
def _duplicates(lab: Lab) -> str:
    from gpusvm.run.costs import load_profile

    bench = with_fault_buffer(lab, costs=load_profile("h100-pcie5").costs)
    addr = written(bench)
    answers = {fault.answered_ns for fault in at_once(bench, [(addr, ACCESS_READ)] * 4)}
    return {1: "one answer for all of them", 4: "each is answered by itself"}.get(
        len(answers), f"{len(answers)} answers"
    )


@probe(
    "S18",
    "a fault on a page that is invalidated again and again for more than a second",
    reference="drm_gpusvm_get_pages: HMM_RANGE_DEFAULT_TIMEOUT; nouveau_range_fault; dmirror_range_fault",
)
def _invalidated_for_ever(lab: Lab) -> str:
    bench = lab.bench(thp="never")
    memory, mm = bench.memory, bench.mm
    addr = written(bench, 16)
    begun = bench.kernel.now_ns

    def spoil() -> None:
        """Let what was just read be stale before anybody can use it."""
        if bench.kernel.now_ns < begun + _RACE_NS:
            bench.kernel.sleep_ns(50_000_000)
            window = MmuNotifierRange(mm, addr, addr + 16 * PAGE, MMU_NOTIFY_CLEAR)
            memory.invalidate_range_start(window)
            memory.invalidate_range_end(window)

    # Pinned, so that no driver takes the pages away instead.
    with pinned(bench, addr, 16), after_hmm(bench, spoil):
        (fault,) = at_once(bench, [(addr, ACCESS_READ)])
    found = answered(bench, fault)
    return found if fault.answered_ns < begun + _RACE_NS else "tried until it succeeds"


@probe("S19", "GPU access of mapped registers", reference="drm_gpusvm_get_pages; hmm_vma_walk_test: EFAULT")
def _registers(lab: Lab) -> str:
    bench = lab.bench()
    addr = ELSEWHERE
    bench.mm.mmap(addr, 16 * PAGE, PROT_READ | PROT_WRITE, flags=VM_PFNMAP)
    with bench.mm.mmap_lock.write():
        vma = bench.mm.vma_lookup(addr)
        assert vma is not None
        bench.memory.remap_pfn_range(vma, addr, _MMIO, 16 * PAGE)
    return answered(bench, bench.fault(addr))


@probe(
    "S20",
    "a prefetch fault of the hardware on an address where nothing is mapped, and what is said in the log of one that "
    "is none",
    reference="xe_pagefault_queue_work: INVALID_PREFETCH_PAGEFAULT_COUNT; nouveau_svm_fault: no HMM_PFN_REQ_FAULT",
)
def _failing_prefetch(lab: Lab) -> str:
    bench = with_fault_buffer(lab)
    with told(bench, "fault_unsuccessful") as lines:
        found = [answered(bench, bench.fault(ELSEWHERE, ACCESS_PREFETCH))]
    property_ = getattr(bench.vm, "get_property", None)
    if property_ is not None and property_(_FAULTS):
        found.append("kept for the program")
    counters = bench.driver.describe().get("gt_stats", {}).values()
    if any(each.get("invalid_prefetch_pagefault_count") for each in counters):
        found.append("counted")
    with told(bench, "fault_unsuccessful") as others:
        bench.fault(ELSEWHERE, ACCESS_READ)
    if others:
        found.append("in the log" if lines else "not in the log")
    return ", ".join(found)


@probe(
    "S21",
    "order in which faults are served",
    reference="xe_pagefault_queue_work; nouveau_svm_fault: sort(buffer->fault)",
)
def _order_of_service(lab: Lab) -> str:
    bench = with_fault_buffer(lab, thp="never")
    addr = written(bench, 16)
    raised = [(addr + 3 * PAGE, ACCESS_WRITE), (addr + PAGE, ACCESS_WRITE), (addr + PAGE, ACCESS_READ), (addr, 0)]
    served = [(fault.addr, fault.access) for fault in at_once(bench, raised)]
    order = ", ".join(str(raised.index(each) + 1) for each in served)
    return {
        tuple(raised): "as they came",
        tuple(sorted(raised)): "sorted by address, the weakest access first",
    }.get(tuple(served), f"as the numbers {order} of them that came")


@probe(
    "S22",
    "places where the driver as written surprises",
    reference="nouveau_svm_fault: atomic; __xe_svm_handle_pagefault: out; nouveau_dmem_migrate_chunk",
)
def _surprises(lab: Lab) -> str:
    found = [
        text
        for text, there in (
            ("an atomic fault makes the next ones atomic", _sticky_atomic(lab)),
            ("a fault that failed is acknowledged", _acked_failure(lab)),
            ("mappings of moved pages stay behind", _left_behind(lab)),
        )
        if there
    ]
    return "; ".join(found) or "none"


def _sticky_atomic(lab: Lab) -> bool:
    bench = lab.bench(thp="never")
    addr = written(bench, 16)
    if isinstance(bench.vm.faults, CallerFaults):
        return False
    raised = [(addr, ACCESS_ATOMIC), (addr + PAGE, ACCESS_READ)]
    at_once(bench, raised)
    return bool(perms(bench, addr + PAGE) & ATOMIC) and bench.where(addr + PAGE) != "device"


def _acked_failure(lab: Lab) -> bool:
    bench = lab.bench(thp="never")
    addr = written(bench, 16)

    def failing() -> None:
        raise KernelError(ENOMEM, "no memory")

    with pinned(bench, addr, 16), after_hmm(bench, failing):
        fault = bench.fault(addr)
    return answered(bench, fault) == "acknowledged, with nothing mapped"


def _left_behind(lab: Lab) -> bool:
    """Tell whether the GPU goes on writing where a page was before it moved: then the CPU misses what it wrote."""
    try:
        bench = able_to_populate(lab, thp="never")
    except NotApplicableError:
        return False
    addr = written(bench, 16)
    bench.gpu_write(addr)
    bench.vm.populate(addr, addr + 16 * PAGE)
    bench.gpu_write(addr)
    before = sum(bench.memory.contents.known.values())
    bench.cpu_read(addr)
    return sum(bench.memory.contents.known.values()) > before


@probe(
    "S23",
    "what one touch of the GPU maps and moves, of small pages",
    reference="drm_gpusvm_range_chunk_size; nouveau_range_fault; dmirror_fault",
    capability="mixed_units",
)
def _granularity(lab: Lab) -> str:
    bench = lab.bench(thp="never")
    addr = written(bench)
    bench.gpu_read(addr)
    return f"{bench.mapped_pages(addr, PMD_PAGES)} mapped, {bench.device_pages(addr, PMD_PAGES)} moved"
