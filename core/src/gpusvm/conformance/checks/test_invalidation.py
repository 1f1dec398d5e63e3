"""What a driver does when core calls its invalidate, whatever the reason, and when nobody waits for it."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

import numpy as np

from gpusvm.conformance.agreement import agree, rights_of
from gpusvm.conformance.areas import AREAS, brought, fork, written
from gpusvm.conformance.family import every, family
from gpusvm.conformance.hand import HandFirst, after_look
from gpusvm.conformance.recorder import Record, data_of, recorded, subscriptions
from gpusvm.conformance.scene import before_call, told
from gpusvm.conformance.small import BLOCK, BLOCK_PAGES, PAGE, small
from gpusvm.conformance.suite import Lab, check
from gpusvm.driver import ACCESS_READ, ACCESS_WRITE
from gpusvm.mm.api import (
    MADV_COLLAPSE,
    MADV_DONTNEED,
    MMU_NOTIFY_CLEAR,
    MMU_NOTIFY_MIGRATE,
    MMU_NOTIFY_NAMES,
    MMU_NOTIFY_PROTECTION_PAGE,
    MMU_NOTIFY_PROTECTION_VMA,
    MMU_NOTIFY_SOFT_DIRTY,
    MMU_NOTIFY_UNMAP,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    PROT_NONE,
    PROT_READ,
    PROT_WRITE,
    Bools,
    MmuNotifierRange,
)
from gpusvm.mm.swap import swap_out

if TYPE_CHECKING:
    from gpusvm.testing import Bench

_NOTIFIER: Final = "mm/mmu_notifier.c:mn_itree_invalidate; include/linux/mmu_notifier.h"
_RW: Final = PROT_READ | PROT_WRITE


def _mapped(lab: Lab) -> tuple["Bench", int]:
    bench = small(lab, thp="never")
    addr = written(bench)
    bench.gpu_write(addr, BLOCK_PAGES)
    return bench, addr


def _munmap(bench: "Bench", addr: int) -> None:
    bench.mm.munmap(addr, BLOCK)


def _munmap_page(bench: "Bench", addr: int) -> None:
    bench.mm.munmap(addr + 7 * PAGE, PAGE)


def _mmap_over(bench: "Bench", addr: int) -> None:
    bench.mm.mmap(addr, BLOCK, _RW)


def _mprotect(bench: "Bench", addr: int) -> None:
    bench.mm.mprotect(addr, BLOCK, PROT_READ)


def _mprotect_none(bench: "Bench", addr: int) -> None:
    bench.mm.mprotect(addr, BLOCK, PROT_NONE)


def _mremap(bench: "Bench", addr: int) -> None:
    bench.mm.mremap(addr, BLOCK, BLOCK, flags=MREMAP_MAYMOVE | MREMAP_FIXED, new_addr=bench.map(BLOCK))


def _dontneed(bench: "Bench", addr: int) -> None:
    bench.mm.madvise(addr, BLOCK, MADV_DONTNEED)


def _collapse(bench: "Bench", addr: int) -> None:
    bench.mm.madvise(addr, BLOCK, MADV_COLLAPSE)


def _swap(bench: "Bench", addr: int) -> None:
    bench.cpu_read(addr, BLOCK_PAGES)
    for page in range(BLOCK_PAGES):
        swap_out(bench.memory, bench.mm, addr + page * PAGE)


def _fork(bench: "Bench", addr: int) -> None:
    fork(bench)


CAUSES: Final[Mapping[str, Callable[["Bench", int], None]]] = {
    "munmap": _munmap,
    "munmap-page": _munmap_page,
    "mmap-over": _mmap_over,
    "mprotect": _mprotect,
    "mprotect-none": _mprotect_none,
    "mremap": _mremap,
    "dontneed": _dontneed,
    "collapse": _collapse,
    "swap": _swap,
    "fork": _fork,
}


@family("invalidate.callback.{cause}", every(cause=CAUSES), since="1.0", ref=_NOTIFIER)
def test_callback(lab: Lab, cause: str) -> None:
    """When {cause} is about to change memory, invalidate leaves none of it mapped and takes the new sequence."""
    bench, addr = _mapped(lab)
    with recorded(bench) as record:
        CAUSES[cause](bench, addr)
    _judge_callbacks(bench, record)


def _judge_callbacks(bench: "Bench", record: Record) -> None:
    own = {pgmap.owner for pgmap in bench.driver.dev_pagemaps()}
    assert record.callbacks, "core changed memory that the GPU has mapped, and the driver has no subscription to it"
    assert any(each.mapped_before for each in record.callbacks), "nothing of it was mapped when the driver was called"
    for each in record.callbacks:
        event = MMU_NOTIFY_NAMES[each.range.event]
        what = f"invalidate of [{each.start:#x}, {each.end:#x}), {event},"
        assert each.answer, f"{what} answered False, and it may wait"
        if each.range.event == MMU_NOTIFY_MIGRATE and each.range.owner in own:
            continue  # of its own migration a driver knows without being told
        assert not each.mapped_after, f"{what} has left {each.mapped_after} of {each.mapped_before} pages mapped"
        assert each.sequence_set, f"{what} has not taken the sequence (mmu_interval_set_seq)"


EVENTS: Final = {
    "unmap": MMU_NOTIFY_UNMAP,
    "clear": MMU_NOTIFY_CLEAR,
    "protection-vma": MMU_NOTIFY_PROTECTION_VMA,
    "protection-page": MMU_NOTIFY_PROTECTION_PAGE,
    "soft-dirty": MMU_NOTIFY_SOFT_DIRTY,
    "migrate": MMU_NOTIFY_MIGRATE,
}


@family("invalidate.event.{event}", every(event=EVENTS), since="1.0", ref=_NOTIFIER)
def test_event(lab: Lab, event: str) -> None:
    """Whatever reason core gives, here {event} of somebody else's, what is in the window is not mapped then."""
    bench, addr = _mapped(lab)
    owner = object() if event == "migrate" else None  # the others have none
    window = MmuNotifierRange(bench.mm, addr, addr + BLOCK, EVENTS[event], owner=owner)
    bench.memory.invalidate_range_start(window)
    left = bench.mapped_pages(addr, BLOCK_PAGES)
    bench.memory.invalidate_range_end(window)
    assert not left, f"{left} pages are mapped while core changes what is behind them"
    bench.kernel.settle()
    agree(lab, bench, addr)


@check("invalidate.window.one-page", since="1.0", ref=_NOTIFIER)
def test_one_page(lab: Lab) -> None:
    """A window over one page takes that page from the GPU, and no page of another block."""
    bench = small(lab, thp="never")
    addr = written(bench, 3 * BLOCK_PAGES)
    bench.gpu_write(addr, 3 * BLOCK_PAGES)
    bench.mm.madvise(addr + BLOCK + 7 * PAGE, PAGE, MADV_DONTNEED)
    assert not bench.mapped_pages(addr + BLOCK + 7 * PAGE, 1)
    assert bench.mapped_pages(addr, BLOCK_PAGES) == BLOCK_PAGES, "the block before lost pages, too"
    assert bench.mapped_pages(addr + 2 * BLOCK, BLOCK_PAGES) == BLOCK_PAGES, "the block behind lost pages, too"
    agree(lab, bench, addr, 3 * BLOCK_PAGES)


@check("invalidate.window.several-blocks", since="1.0", ref=_NOTIFIER)
def test_several_blocks(lab: Lab) -> None:
    """A window over parts of several blocks takes all of those parts."""
    bench = small(lab, thp="never")
    addr = written(bench, 4 * BLOCK_PAGES)
    bench.gpu_write(addr, 4 * BLOCK_PAGES)
    bench.mm.munmap(addr + 12 * PAGE, 2 * BLOCK)
    assert not bench.mapped_pages(addr + 12 * PAGE, 2 * BLOCK_PAGES)
    agree(lab, bench, addr, 4 * BLOCK_PAGES)


@check("invalidate.window.nothing-mapped", since="1.0", ref=_NOTIFIER)
def test_nothing_mapped(lab: Lab) -> None:
    """An invalidation of what the GPU never touched changes nothing of what it has."""
    bench, addr = _mapped(lab)
    other = written(bench)
    bench.mm.munmap(other, BLOCK)
    assert bench.mapped_pages(addr, BLOCK_PAGES) == BLOCK_PAGES
    agree(lab, bench, addr)


@check("invalidate.window.nested", since="1.0", ref="mm/mmu_notifier.c:mn_itree_inv_start_range")
def test_nested(lab: Lab) -> None:
    """Two windows over the same memory may be open at once; what is mapped under neither is mapped after both."""
    bench, addr = _mapped(lab)
    windows = [MmuNotifierRange(bench.mm, addr, addr + BLOCK, MMU_NOTIFY_CLEAR) for _ in range(2)]
    for window in windows:
        bench.memory.invalidate_range_start(window)
    bench.memory.invalidate_range_end(windows[0])
    assert not bench.mapped_pages(addr, BLOCK_PAGES)
    bench.memory.invalidate_range_end(windows[1])
    agree(lab, bench, addr)


@check("invalidate.tlb.covers", since="1.0", ref="drivers/gpu/drm/xe/xe_svm.c:xe_svm_invalidate")
def test_tlb(lab: Lab) -> None:
    """Where there is a TLB, a flush covers every page that an invalidation took away, whichever pages those are."""
    bench = small(lab, thp="never")
    addr = written(bench, 3 * BLOCK_PAGES)
    with told(bench, "tlb_invalidate") as ever:
        bench.gpu_write(addr, 3 * BLOCK_PAGES)
        bench.mm.madvise(addr, 3 * BLOCK, MADV_DONTNEED)
    for first, pages in ((1, 1), (12, 9), (15, 2), (30, 16)):
        bench.gpu_write(addr, 3 * BLOCK_PAGES)
        before = _perms(bench, addr, 3 * BLOCK_PAGES)
        with told(bench, "tlb_invalidate") as flushes:
            bench.mm.madvise(addr + first * PAGE, pages * PAGE, MADV_DONTNEED)
        lost = np.flatnonzero(before & ~_perms(bench, addr, 3 * BLOCK_PAGES))
        assert len(lost) >= pages, f"{len(lost)} of {pages} pages were taken away"
        missed = [
            page for page in (addr + lost * PAGE).tolist() if ever and not any(_covers(each, page) for each in flushes)
        ]
        assert not missed, f"no flush of {flushes} covers {missed[0]:#x}"


def _perms(bench: "Bench", addr: int, pages: int) -> "Bools":
    found: Bools = bench.vm.page_table.perms(addr // PAGE, addr // PAGE + pages) != 0
    return found


def _covers(flush: tuple[object, int, int], page: int) -> bool:
    _, start, end = flush
    return start == end or start <= page < end  # an empty one stands for everything


@check("invalidate.non-blockable.idle", since="1.0", ref="mm/oom_kill.c:__oom_reap_task_mm; mm/mmu_notifier.c")
def test_non_blockable(lab: Lab) -> None:
    """An invalidation that must not wait is done, or refused and nothing has changed; never ignored, never slept in."""
    bench, addr = _mapped(lab)
    window = MmuNotifierRange(bench.mm, addr, addr + BLOCK, MMU_NOTIFY_CLEAR, flags=0)
    refused = bench.memory.invalidate_range_start(window)
    left = bench.mapped_pages(addr, BLOCK_PAGES)
    if refused:
        assert left == BLOCK_PAGES, f"it was refused, and {BLOCK_PAGES - left} pages are gone"
    else:
        bench.memory.invalidate_range_end(window)
        assert not left, f"it was done, and {left} pages are mapped"
    agree(lab, bench, addr)


@check(
    "invalidate.non-blockable.while-binding",
    since="1.0",
    ref="drivers/gpu/drm/drm_gpusvm.c:drm_gpusvm_notifier_invalidate",
)
def test_non_blockable_while_binding(lab: Lab) -> None:
    """While the driver writes its page table, an invalidation that must not wait is done or refused, never slept in."""
    bench, addr = _mapped(lab)
    other = written(bench)
    answers = []

    def invalidate() -> None:
        window = MmuNotifierRange(bench.mm, addr, addr + PAGE, MMU_NOTIFY_CLEAR, flags=0)
        if bench.memory.invalidate_range_start(window):
            answers.append("refused")
            return
        bench.memory.invalidate_range_end(window)
        answers.append("ignored" if bench.mapped_pages(addr, 1) else "done")

    table = bench.vm.page_table
    with before_call(table, "map_pages", invalidate), before_call(table, "map_run", invalidate):
        bench.gpu_write(other)
    assert answers, "the GPU had to have nothing bound for its access"
    assert "ignored" not in answers
    agree(lab, bench, addr)


@check("invalidate.subscription.ends", since="1.0", ref="mm/mmu_notifier.c:mmu_interval_notifier_remove")
def test_subscriptions_end(lab: Lab) -> None:
    """Once the device is closed and the process is gone, no subscription of the driver's is left."""
    bench, _ = _mapped(lab)
    assert any(subscriptions(bench)), "the GPU has memory of the process mapped, and the driver does not watch it"
    bench.machine.close(bench.process)
    bench.process.vms.clear()
    bench.machine.processes.remove(bench.process)
    bench.mm.mmput()
    bench.kernel.settle()
    left = subscriptions(bench)
    assert not any(left), f"{left} are left"


@check("invalidate.after-close.nothing", since="1.0", ref="drivers/gpu/drm/drm_gpusvm.c:drm_gpusvm_fini")
def test_after_close(lab: Lab) -> None:
    """A GPU address space that was closed maps nothing, and nothing that happens to the process changes it."""
    bench, addr = _mapped(lab)
    table = bench.vm.page_table
    bench.machine.close(bench.process)
    bench.process.vms.clear()
    bench.kernel.settle()
    assert not np.count_nonzero(table.perms(addr // PAGE, addr // PAGE + BLOCK_PAGES))
    bench.cpu_write(addr, BLOCK_PAGES)
    bench.mm.munmap(addr, BLOCK)
    assert not table.mapped_pages


@check("invalidate.two-processes.apart", since="1.0", ref=_NOTIFIER)
def test_two_processes(lab: Lab) -> None:
    """What one process does with an address changes nothing for another that has memory at the same one."""
    bench, addr = _mapped(lab)
    process = bench.machine.process("other")
    vm = bench.machine.open(process)
    process.mm.mmap(addr, BLOCK, _RW)
    first = addr // PAGE
    bench.memory.cpu_access(process.mm, np.arange(first, first + BLOCK_PAGES), np.ones(BLOCK_PAGES, np.bool_))
    mine, bench.vm = bench.vm, vm
    bench.gpu_write(addr, BLOCK_PAGES)
    process.mm.munmap(addr, BLOCK)
    assert not bench.mapped_pages(addr, BLOCK_PAGES)
    bench.vm = mine
    assert bench.mapped_pages(addr, BLOCK_PAGES) == BLOCK_PAGES
    agree(lab, bench, addr)


# ---- what happens between a look at the process's pages and their use


def _replaced(bench: "Bench", addr: int) -> None:
    bench.mm.madvise(addr, PAGE, MADV_DONTNEED)
    bench.cpu_write(addr)


def _copied(bench: "Bench", addr: int) -> None:
    fork(bench)
    bench.cpu_write(addr)


def _moved_away(bench: "Bench", addr: int) -> None:
    bench.mm.mremap(addr, BLOCK, BLOCK, flags=MREMAP_MAYMOVE | MREMAP_FIXED, new_addr=bench.map(BLOCK))


def _mapped_anew(bench: "Bench", addr: int) -> None:
    bench.mm.mmap(addr, BLOCK, _RW)
    bench.cpu_write(addr, BLOCK_PAGES)


def _written_by_cpu(bench: "Bench", addr: int) -> None:
    bench.cpu_write(addr, BLOCK_PAGES)


def _swapped(bench: "Bench", addr: int) -> None:
    bench.cpu_read(addr)
    swap_out(bench.memory, bench.mm, addr)


MEANWHILE: Final[Mapping[str, Callable[["Bench", int], None]]] = {
    "munmap": _munmap,
    "mprotect": _mprotect,
    "mprotect-none": _mprotect_none,
    "moved": _moved_away,
    "replaced": _replaced,
    "copied": _copied,
    "mapped-anew": _mapped_anew,
    "cpu-write": _written_by_cpu,
    "swapped": _swapped,
    "collapse": _collapse,
}


@family(
    "invalidate.after-read.{what}.{access}",
    every(what=MEANWHILE, access=("read", "write")),
    since="1.0",
    ref="include/linux/mmu_notifier.h:mmu_interval_read_retry; Documentation/mm/hmm.rst",
)
def test_after_read(lab: Lab, what: str, access: str) -> None:
    """What was read of the process is not used for a {access} once {what} has changed it: it is read again."""
    bench = small(lab, thp="never", mode="explored", choices=HandFirst())
    addr = written(bench)
    with after_look(bench, lambda: MEANWHILE[what](bench, addr)) as looked:
        fault = bench.fault(addr, ACCESS_WRITE if access == "write" else ACCESS_READ)
    assert looked.times, "the driver has answered without a look at the process's pages"
    _judge_answer(lab, bench, addr, fault.errno or 0)
    agree(lab, bench, addr)


def _judge_answer(lab: Lab, bench: "Bench", addr: int, errno: int) -> None:
    refusals, rights = lab.info.refusals.access, rights_of(bench, addr)
    if not errno:
        return  # of what came between, or right behind it, the GPU's page table tells
    if rights is None:
        assert errno in refusals.unmapped, f"the page is gone, and the GPU was refused with {errno}"
    else:
        assert errno in refusals.forbidden, f"the page is there, and the GPU was refused with {errno}"


@check(
    "invalidate.during-populate", since="1.0", profile="device-memory", requires=("explicit_populate",), ref=_NOTIFIER
)
def test_populate_invalidates(lab: Lab) -> None:
    """Memory that goes to the device is not mapped where it was before, and what is mapped then is what is there."""
    bench, addr = _mapped(lab)
    brought(bench, addr)
    data = data_of(bench)
    pfns = bench.vm.page_table.pfns(addr // PAGE, addr // PAGE + BLOCK_PAGES)
    for page in np.flatnonzero(_perms(bench, addr, BLOCK_PAGES)).tolist():
        entry = bench.mm.page_table.entry(addr + page * PAGE)
        there = {entry.pfn, data(entry.pfn)}
        assert int(pfns[page]) in there, "the GPU has a page mapped that the process does not have any more"
    agree(lab, bench, addr)


@check("invalidate.home.unmapped", since="1.0", profile="device-memory", requires=("explicit_populate",), ref=_NOTIFIER)
def test_home_invalidates(lab: Lab) -> None:
    """Memory that a CPU has brought home is not mapped on the device any more."""
    bench, addr = _mapped(lab)
    brought(bench, addr)
    bench.gpu_write(addr, BLOCK_PAGES)
    with recorded(bench) as record:
        bench.cpu_write(addr, BLOCK_PAGES)
    for page in range(addr, addr + BLOCK, PAGE):
        assert bench.where(page) == "system"
    assert record.homes, "a CPU touched device pages, and the driver was not asked to bring them home"
    agree(lab, bench, addr)


@family(
    "invalidate.exit.{kind}", every(kind=("small", "huge", "shared", "file")), since="1.0", ref="mm/mmap.c:exit_mmap"
)
def test_exit(lab: Lab, kind: str) -> None:
    """A process that ends while its GPU has {kind} memory mapped leaves nothing mapped, and no fault is served."""
    bench = small(lab)
    addr = AREAS[kind](bench)
    bench.gpu_write(addr, BLOCK_PAGES)
    bench.machine.processes.remove(bench.process)
    bench.mm.mmput()
    assert not bench.vm.page_table.mapped_pages, "the memory is gone, and the GPU has it mapped"
    errno = bench.fault(addr, ACCESS_READ).errno or 0
    assert errno in lab.info.refusals.access.exited, f"a fault of a process that has ended was answered {errno}"
    bench.machine.close(bench.process)
