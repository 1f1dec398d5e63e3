"""How a driver answers GPU faults: each once, whatever comes with it, and in the accounts."""

from typing import TYPE_CHECKING, Final

from gpusvm.conformance.agreement import agree
from gpusvm.conformance.areas import written
from gpusvm.conformance.family import every, family
from gpusvm.conformance.scene import ELSEWHERE
from gpusvm.conformance.small import BLOCK, BLOCK_PAGES, PAGE, small
from gpusvm.conformance.suite import Lab, check
from gpusvm.driver import ACCESS_PREFETCH, ACCESS_READ, ACCESS_WRITE
from gpusvm.errors import errno_name
from gpusvm.mm.api import PROT_READ, PROT_WRITE, VM_PFNMAP
from gpusvm.testing import Fault

if TYPE_CHECKING:
    from gpusvm.testing import Bench

_QUEUE: Final = (
    "drivers/gpu/drm/xe/xe_pagefault.c:xe_pagefault_queue_work; drivers/gpu/drm/nouveau/nouveau_svm.c:nouveau_svm_fault"
)
_MMIO: Final = 1 << 40


class _Counted(Fault):
    """Be a fault that knows how often it was answered."""

    __slots__ = ("answers",)

    def __init__(self, bench: "Bench", addr: int, access: int, *, sm: int = 0) -> None:
        super().__init__(addr, access, time_ns=bench.kernel.now_ns, sm=sm)
        self.answers = 0

    def complete(self, errno: int) -> None:
        """Take an answer."""
        self.answers += 1
        super().complete(errno)


def _raise(bench: "Bench", wanted: "list[tuple[int, int]]") -> list[_Counted]:
    faults = [_Counted(bench, addr, access, sm=i) for i, (addr, access) in enumerate(wanted)]
    bench.faults(faults)
    return faults


BATCHES: Final = {
    "one-page": [(0, ACCESS_READ)] * 8,
    "one-page-at-once": [(0, ACCESS_WRITE)] * 32,
    "mixed-access": [(0, ACCESS_READ), (0, ACCESS_WRITE), (1, ACCESS_WRITE), (1, ACCESS_READ)],
    "block": [(page, ACCESS_READ) for page in range(BLOCK_PAGES)],
    "backwards": [(page, ACCESS_WRITE) for page in reversed(range(BLOCK_PAGES))],
    "far-apart": [(page * BLOCK_PAGES, ACCESS_WRITE) for page in range(4)],
    "twice": [(page % 4, ACCESS_WRITE) for page in range(16)],
}


@family("fault.answered-once.{batch}", every(batch=BATCHES), since="1.0", ref=_QUEUE)
def test_answered_once(lab: Lab, batch: str) -> None:
    """Each fault of a batch ({batch}) gets one answer, which lets the access go on."""
    bench = small(lab)
    addr = written(bench, 4 * BLOCK_PAGES)
    faults = _raise(bench, [(addr + page * PAGE, access) for page, access in BATCHES[batch]])
    bench.kernel.settle()
    assert [fault.answers for fault in faults] == [1] * len(faults)
    assert {fault.errno for fault in faults} == {0}
    agree(lab, bench, addr)


@family("fault.bad-among-good.{where}", every(where=("first", "middle", "last")), since="1.0", ref=_QUEUE)
def test_bad_among_good(lab: Lab, where: str) -> None:
    """A fault that is refused, {where} of a batch, changes nothing for the others."""
    bench = small(lab)
    addr = written(bench)
    wanted = [(addr + page * PAGE, ACCESS_WRITE) for page in range(4)]
    place = {"first": 0, "middle": 2, "last": 4}[where]
    wanted.insert(place, (ELSEWHERE, ACCESS_WRITE))
    faults = _raise(bench, wanted)
    assert [fault.answers for fault in faults] == [1] * len(faults)
    bad = faults.pop(place).errno or 0
    assert bad in lab.info.refusals.access.unmapped, f"where nothing is mapped, it was answered {errno_name(bad)}"
    assert {fault.errno for fault in faults} == {0}
    agree(lab, bench, addr)


@check("fault.more-than-fit", since="1.0", ref="drivers/gpu/drm/xe/xe_pagefault.c:xe_pagefault_queue_full")
def test_more_than_fit(lab: Lab) -> None:
    """Faults that find no room are not taken, and not answered; raised again, they are served."""
    bench = small(lab)
    addr = written(bench)
    left: list[Fault] = [_Counted(bench, addr + (i % BLOCK_PAGES) * PAGE, ACCESS_READ, sm=i) for i in range(6000)]
    rounds = 0
    while left:
        taken = bench.vm.faults.submit(left)
        assert 0 <= taken <= len(left)
        assert not any(fault.errno is not None for fault in left[taken:]), "a fault was answered that was not taken"
        now, left = left[:taken], left[taken:]
        bench.kernel.settle()
        while any(fault.errno is None for fault in now):
            bench.kernel.sleep_ns(1_000_000)
        assert {fault.errno for fault in now} == {0}
        rounds += 1
        assert rounds < 100, f"{len(left)} faults find no room"
    agree(lab, bench, addr)


@check("fault.accounts", since="1.0", ref="gpusvm.driver.FaultAccounts")
def test_accounts(lab: Lab) -> None:
    """Every fault is in its device's accounts: a latency for each answer, which its stages add up to, and refusals."""
    bench = small(lab)
    addr = written(bench)
    accounts = bench.driver.accounts
    before, failed, staged = len(accounts.latency_ns), accounts.failed, sum(accounts.stage_ns)
    wanted = [(addr, ACCESS_READ), (addr + PAGE, ACCESS_WRITE), (ELSEWHERE, ACCESS_READ)]
    faults = [_Counted(bench, at, access, sm=i) for i, (at, access) in enumerate(wanted)]
    bench.kernel.sleep_ns(1_000)  # they were raised a while ago
    bench.faults(faults)
    assert len(accounts.latency_ns) - before == 3
    assert accounts.failed - failed == 1
    taken = sum(accounts.latency_ns[before:])
    assert sum(accounts.stage_ns) - staged == taken, f"the faults took {taken} ns, and their stages something else"


@check(
    "fault.prefetch.harmless",
    since="1.0",
    ref="drivers/gpu/drm/nouveau/nouveau_svm.c:nouveau_svm_fault: no HMM_PFN_REQ_FAULT",
)
def test_prefetch(lab: Lab) -> None:
    """A prefetch of the hardware where nothing is mapped ends, and the next access of the GPU is served as ever."""
    bench = small(lab)
    addr = written(bench)
    faults = _raise(bench, [(ELSEWHERE, ACCESS_PREFETCH), (addr, ACCESS_PREFETCH)])
    assert [fault.answers for fault in faults] == [1, 1]
    assert not bench.mapped_pages(ELSEWHERE, 1)
    agree(lab, bench, addr)


@check("fault.served-already", since="1.0", ref="drivers/gpu/drm/xe/xe_svm.c:xe_svm_range_is_valid")
def test_served_already(lab: Lab) -> None:
    """A fault on what is mapped already is answered, and the page stays mapped, and what it was."""
    bench = small(lab)
    addr = written(bench)
    bench.gpu_write(addr, BLOCK_PAGES)
    errno = bench.fault(addr, ACCESS_WRITE).errno or 0
    assert not errno, f"the access is allowed, and was refused with {errno_name(errno)}"
    assert bench.mapped_pages(addr, 1)
    agree(lab, bench, addr)


@check("fault.registers.refused", since="1.0", ref="drivers/gpu/drm/drm_gpusvm.c:drm_gpusvm_range_find_or_insert: EIO")
def test_registers(lab: Lab) -> None:
    """Registers of a device that the process maps are not mapped for the GPU; the errno is one that is stated."""
    bench = small(lab)
    addr = bench.map(BLOCK)
    bench.mm.mmap(addr, BLOCK, PROT_READ | PROT_WRITE, flags=VM_PFNMAP)
    with bench.mm.mmap_lock.write():
        vma = bench.mm.vma_lookup(addr)
        assert vma is not None
        bench.memory.remap_pfn_range(vma, addr, _MMIO, BLOCK)
    errno = bench.fault(addr, ACCESS_READ).errno or 0
    assert errno in lab.info.refusals.access.unfit, f"it was answered {errno_name(errno) if errno else 'as done'}"
    assert not bench.mapped_pages(addr, BLOCK_PAGES)
    bench.mm.munmap(addr, BLOCK)


@family("fault.edge.{edge}", every(edge=("before", "behind")), since="1.0", ref="mm/hmm.c:hmm_vma_walk_hole")
def test_edge(lab: Lab, edge: str) -> None:
    """The page right {edge} an area is refused, and the area's own pages are served."""
    bench = small(lab)
    addr = bench.map(3 * BLOCK)
    bench.mm.munmap(addr, BLOCK + 3 * PAGE)
    bench.mm.munmap(addr + 2 * BLOCK + 5 * PAGE, BLOCK - 5 * PAGE)
    first, end = addr + BLOCK + 3 * PAGE, addr + 2 * BLOCK + 5 * PAGE
    bench.gpu_write(first)
    bench.gpu_write(end - PAGE)
    outside = first - PAGE if edge == "before" else end
    errno = bench.fault(outside, ACCESS_READ).errno or 0
    assert errno in lab.info.refusals.access.unmapped
    assert not bench.mapped_pages(outside, 1)
    agree(lab, bench, first, (end - first) // PAGE)


@check("fault.after-close.refused", since="1.0", ref="drivers/gpu/drm/xe/xe_pagefault.c:xe_pagefault_asid_to_vm")
def test_after_close(lab: Lab) -> None:
    """A fault on an address space that was closed is refused with an errno that is stated, and maps nothing."""
    bench = small(lab)
    addr = written(bench)
    bench.gpu_read(addr)
    vm = bench.vm
    bench.machine.close(bench.process)
    bench.process.vms.clear()
    bench.kernel.settle()
    fault = _Counted(bench, addr, ACCESS_READ)
    vm.faults.submit([fault])
    bench.kernel.settle()
    while fault.errno is None:
        bench.kernel.sleep_ns(1_000_000)
    assert fault.errno in lab.info.refusals.access.closed, f"it was answered {fault.errno}"
    assert not vm.page_table.mapped_pages


@check("fault.two-files.own-answers", since="1.0", ref=_QUEUE)
def test_two_files(lab: Lab) -> None:
    """Faults of two files of one device, at once, each map in the address space that they were raised in."""
    bench = small(lab)
    addr, other = written(bench), written(bench)
    second = bench.machine.open_file(bench.process, 0, 1)
    mine = [_Counted(bench, addr, ACCESS_READ), _Counted(bench, other, ACCESS_READ)]
    bench.vm.faults.submit(mine[:1])
    second.faults.submit(mine[1:])
    bench.kernel.settle()
    while any(fault.errno is None for fault in mine):
        bench.kernel.sleep_ns(1_000_000)
    assert bench.mapped_pages(addr, 1)
    bench.vm, first = second, bench.vm
    assert bench.mapped_pages(other, 1)
    bench.vm = first


@check("fault.many-processes", since="1.0", ref=_QUEUE)
def test_many_processes(lab: Lab) -> None:
    """Six processes with memory at one address each see their own, and end in any order."""
    bench = small(lab)
    addr = written(bench)
    vms = []
    for number in range(5):
        process = bench.machine.process(f"other{number}")
        vms.append(bench.machine.open(process))
        process.mm.mmap(addr, BLOCK, PROT_READ | PROT_WRITE)
    first = bench.vm
    for _ in range(2):
        for vm in (*vms, first):
            bench.vm = vm
            bench.gpu_write(addr, 4)
            bench.gpu_read(addr, 4)
    bench.vm = first
    for process in (bench.machine.processes[3], bench.machine.processes[1]):
        bench.machine.processes.remove(process)
        process.mm.mmput()
        bench.machine.close(process)
    agree(lab, bench, addr)
