"""S14 to S23: how GPU faults are answered."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from errno import ENOMEM
from typing import TYPE_CHECKING, Final

from gpusvm.conformance.probes.probe import PAGE, PMD_PAGES, Lab, NotApplicableError, instead, probe, written
from gpusvm.driver import ACCESS_ATOMIC, ACCESS_PREFETCH, ACCESS_READ, ACCESS_WRITE, CallerFaults
from gpusvm.errors import KernelError, errno_name
from gpusvm.gpu import ATOMIC, WRITE
from gpusvm.mm.api import MMU_NOTIFY_CLEAR, PROT_READ, PROT_WRITE, VM_PFNMAP, HmmRange, MmuNotifierRange
from gpusvm.testing.bench import Fault

if TYPE_CHECKING:
    from gpusvm.testing import Bench

_RACE_NS: Final = 3_000_000_000

# Where a device's registers might be: no RAM, and no device memory.
_MMIO: Final = 1 << 40


def _answered(bench: "Bench", fault: Fault) -> str:
    """Say how a fault was answered, and whether that is of use to the GPU."""
    if fault.errno:
        return f"refused with {errno_name(fault.errno)}"
    return "served" if bench.mapped_pages(fault.addr, 1) else "acknowledged, with nothing mapped"


@contextmanager
def _after_hmm(bench: "Bench", act: Callable[[], None]) -> Iterator[None]:
    """Let something happen whenever the driver has read the CPU's page table, before it can use what it read."""
    memory = bench.memory
    locked, unlocked = memory.hmm_range_fault, memory.hmm_range_fault_unlocked_timeout

    def read_locked(range_: HmmRange) -> None:
        locked(range_)
        act()

    def read_unlocked(range_: HmmRange, timeout_ns: int) -> None:
        unlocked(range_, timeout_ns)
        act()

    with (
        instead(memory, "hmm_range_fault", read_locked),
        instead(memory, "hmm_range_fault_unlocked_timeout", read_unlocked),
    ):
        yield


def _perms(bench: "Bench", addr: int) -> int:
    return int(bench.vm.page_table.perms(addr // PAGE, addr // PAGE + 1)[0])


@probe(
    "S14",
    "GPU read where the process may only read",
    reference="drm_gpusvm_range_find_or_insert: EPERM; nouveau_range_fault; dmirror_do_fault",
)
def _read_only(lab: Lab) -> str:
    bench = lab.bench(thp="never")
    addr = written(bench, 16)
    bench.mm.mprotect(addr, 16 * PAGE, PROT_READ)
    found = _answered(bench, bench.fault(addr))
    if found != "served":
        return found
    return "mapped for writing" if _perms(bench, addr) & WRITE else "mapped read-only"


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
    return _answered(bench, bench.fault(1 << 45))


class _Timed(Fault):
    """Be a fault that remembers when it was answered, and after which others."""

    def __init__(self, bench: "Bench", addr: int, access: int, order: "list[_Timed]") -> None:
        super().__init__(addr, access, time_ns=bench.kernel.now_ns)
        self.answered_ns = -1
        self._kernel = bench.kernel
        self._order = order

    def complete(self, errno: int) -> None:
        """Take the driver's answer."""
        super().complete(errno)
        self.answered_ns = self._kernel.now_ns
        self._order.append(self)


def _at_once(bench: "Bench", wanted: "list[tuple[int, int]]") -> "list[_Timed]":
    """Raise faults, (address, access), all at once; in the order in which they were answered."""
    order: list[_Timed] = []
    bench.faults([_Timed(bench, addr, access, order) for addr, access in wanted])
    return order


@probe(
    "S17",
    "four faults on one page at once",
    reference="xe_pagefault_queue_work: no dedupe; nouveau_svm_fault: one replay for a batch",
)
def _duplicates(lab: Lab) -> str:
    from gpusvm.run.costs import load_profile

    bench = lab.bench(costs=load_profile("h100-pcie5").costs)
    _need_hardware(bench)
    addr = written(bench)
    answers = {fault.answered_ns for fault in _at_once(bench, [(addr, ACCESS_READ)] * 4)}
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

    pinned = memory.pin_user_pages_fast(mm, addr, 16)  # so that no driver takes the pages away instead
    with _after_hmm(bench, spoil):
        fault = bench.fault(addr)
    memory.unpin_user_pages(pinned)
    found = _answered(bench, fault)
    return found if bench.kernel.now_ns < begun + _RACE_NS else "tried until it succeeds"


@probe("S19", "GPU access of mapped registers", reference="drm_gpusvm_get_pages; hmm_vma_walk_test: EFAULT")
def _registers(lab: Lab) -> str:
    bench = lab.bench()
    addr = 1 << 45
    bench.mm.mmap(addr, 16 * PAGE, PROT_READ | PROT_WRITE, flags=VM_PFNMAP)
    with bench.mm.mmap_lock.write():
        vma = bench.mm.vma_lookup(addr)
        assert vma is not None
        bench.memory.remap_pfn_range(vma, addr, _MMIO, 16 * PAGE)
    return _answered(bench, bench.fault(addr))


def _need_hardware(bench: "Bench") -> None:
    if isinstance(bench.vm.faults, CallerFaults):
        raise NotApplicableError("accesses are ioctls, there is no fault buffer")


@probe(
    "S20",
    "a prefetch fault of the hardware on an address where nothing is mapped",
    reference="xe_pagefault_service; nouveau_svm_fault: no HMM_PFN_REQ_FAULT",
    capability="prefetch",
)
def _failing_prefetch(lab: Lab) -> str:
    bench = lab.bench()
    _need_hardware(bench)
    return _answered(bench, bench.fault(1 << 45, ACCESS_PREFETCH))


@probe(
    "S21",
    "order in which faults are served",
    reference="xe_pagefault_queue_work; nouveau_svm_fault: sort(buffer->fault)",
)
def _order_of_service(lab: Lab) -> str:
    bench = lab.bench(thp="never")
    _need_hardware(bench)
    addr = written(bench, 16)
    raised = [(addr + 3 * PAGE, ACCESS_WRITE), (addr + PAGE, ACCESS_WRITE), (addr + PAGE, ACCESS_READ), (addr, 0)]
    served = [(fault.addr, fault.access) for fault in _at_once(bench, raised)]
    return {
        tuple(raised): "as they came",
        tuple(sorted(raised)): "sorted by address, the weakest access first",
    }.get(tuple(served), f"otherwise: {[raised.index(each) for each in served]}")


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
    _at_once(bench, raised)
    return bool(_perms(bench, addr + PAGE) & ATOMIC) and bench.where(addr + PAGE) != "device"


def _acked_failure(lab: Lab) -> bool:
    bench = lab.bench(thp="never")
    addr = written(bench, 16)
    pinned = bench.memory.pin_user_pages_fast(bench.mm, addr, 16)

    def failing() -> None:
        raise KernelError(ENOMEM, "no memory")

    with _after_hmm(bench, failing):
        fault = bench.fault(addr)
    bench.memory.unpin_user_pages(pinned)
    return _answered(bench, fault) == "acknowledged, with nothing mapped"


def _left_behind(lab: Lab) -> bool:
    """Tell whether the GPU goes on writing where a page was before it moved: then the CPU misses what it wrote."""
    if not lab.info.capabilities.explicit_populate:
        return False
    bench = lab.bench(thp="never")
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
