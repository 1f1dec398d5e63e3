"""S27 to S31: what a driver does when memory that it has mapped changes."""

from functools import partial
from typing import TYPE_CHECKING

from gpusvm.conformance.probes.probe import Lab, applies, probe
from gpusvm.conformance.scene import (
    PAGE,
    PMD_PAGES,
    able_to_populate,
    before_call,
    both,
    of_block,
    pinned,
    told,
    written,
)
from gpusvm.mm.api import MADV_DONTNEED, MMU_NOTIFY_CLEAR, PROT_READ, MmuNotifierRange

if TYPE_CHECKING:
    from gpusvm.testing import Bench


@probe(
    "S27",
    "GPU mapping of a page that could not be populated",
    reference="xe_svm_invalidate: no event is filtered; nouveau_svmm_invalidate_range_start and "
    "dmirror_interval_invalidate: MMU_NOTIFY_MIGRATE",
    capability="explicit_populate",
    shows=applies,
)
def _own_migration(lab: Lab) -> str:
    bench = able_to_populate(lab, thp="never")
    addr = written(bench, 16)
    with pinned(bench, addr + 7 * PAGE, 1):
        bench.gpu_read(addr, 16)
        bench.vm.populate(addr, addr + 16 * PAGE)
        survives = bench.mapped_pages(addr + 7 * PAGE, 1)
    return "survives" if survives else "is gone"


@probe(
    "S28",
    "what mprotect, and MADV_DONTNEED, of one page take from the GPU, of a block of small pages, and how much of it "
    "stays mapped for DMA",
    reference="xe_svm_range_notifier_event_begin; drm_gpusvm_range_unmap_pages; nouveau_svmm_invalidate; "
    "dmirror_do_update; __split_huge_pmd",
)
def _change_one(lab: Lab) -> str:
    bench = lab.bench(thp="never")
    dma = bench.driver.device.dma
    lost, left = [], []
    for madvise in (False, True):
        addr = written(bench)
        before = dma.mapped_rows
        # Pinned, so that RAM is mapped: the block is not to move to the device.
        with pinned(bench, addr, PMD_PAGES):
            bench.gpu_read(addr, PMD_PAGES)
            mapped = dma.mapped_rows - before
            if madvise:
                bench.mm.madvise(addr + 7 * PAGE, PAGE, MADV_DONTNEED)
            else:
                bench.mm.mprotect(addr + 7 * PAGE, PAGE, PROT_READ)
            lost.append(of_block(PMD_PAGES - bench.mapped_pages(addr, PMD_PAGES)))
            left.append(
                f"{dma.mapped_rows - before} of {mapped} mapped for DMA" if mapped else "nothing is mapped for DMA"
            )
    return f"{both(lost)}; {both(left)}"


@probe(
    "S29",
    "how many small pages the GPU maps at once, before and after munmap of one page of their block; ranges before, "
    "at once after it, and when the driver has come to rest",
    reference="xe_svm_garbage_collector; drm_gpusvm_range_set_unmapped; drm_gpusvm_range_chunk_size",
)
def _unmap_one(lab: Lab) -> str:
    bench = lab.bench(thp="never")
    now = bench.kernel.gauges.now
    addr = written(bench)
    bench.gpu_read(addr + 300 * PAGE)
    before, ranges = bench.mapped_pages(addr, PMD_PAGES), [now.get("range", 0)]
    bench.mm.munmap(addr + 7 * PAGE, PAGE)
    ranges.append(now.get("range", 0))
    bench.kernel.settle()
    ranges.append(now.get("range", 0))
    bench.gpu_read(addr + 300 * PAGE)
    had = f"{', '.join(map(str, ranges))} ranges" if any(ranges) else "no ranges"
    return f"{before}, then {bench.mapped_pages(addr, PMD_PAGES)}; {had}"


@probe(
    "S30",
    "an invalidation that must not wait, with nobody in the way, and while the driver writes the GPU's page table",
    reference="drm_gpusvm_notifier_invalidate; nouveau_svmm_invalidate_range_start; dmirror_interval_invalidate: "
    "mutex_trylock",
)
def _must_not_wait(lab: Lab) -> str:
    bench = lab.bench(thp="never")
    addr = written(bench, 16)
    bench.gpu_read(addr)
    found = [_invalidate(bench, addr)]
    bench = lab.bench(thp="never")  # another one: of a refusal something may be left (quirk mm_s5)
    addr, other = written(bench, 16), written(bench, 16)
    bench.gpu_read(addr)
    table, meanwhile = bench.vm.page_table, partial(_invalidate, bench, addr)
    with (
        before_call(table, "map_pages", lambda: found.append(meanwhile())),
        before_call(table, "map_run", lambda: found.append(meanwhile())),
    ):
        bench.gpu_read(other)
    return both(found[:2], "{}; {} meanwhile")


def _invalidate(bench: "Bench", addr: int) -> str:
    window = MmuNotifierRange(bench.mm, addr, addr + 16 * PAGE, MMU_NOTIFY_CLEAR, flags=0)
    refused = bench.memory.invalidate_range_start(window)
    if refused:
        return "refused"
    bench.memory.invalidate_range_end(window)
    return "done" if not bench.mapped_pages(addr, 1) else "ignored"


@probe(
    "S31",
    "what an invalidation of one mapped page waits for",
    reference="xe_svm_invalidate; gp100_vmm_flush; dmirror_do_update",
)
def _waits_for(lab: Lab) -> str:
    from gpusvm.run.costs import load_profile

    bench = lab.bench(thp="never", costs=load_profile("h100-pcie5").costs)
    addr = written(bench)
    bench.gpu_read(addr)
    window = MmuNotifierRange(bench.mm, addr, addr + PAGE, MMU_NOTIFY_CLEAR)
    before = bench.kernel.now_ns
    with told(bench, "tlb_invalidate") as flushes:
        bench.memory.invalidate_range_start(window)
    waited = bench.kernel.now_ns > before
    bench.memory.invalidate_range_end(window)
    if not flushes:
        return "nothing: there is no TLB"
    sizes = {(end - start) >> 20 for _, start, end in flushes}
    of = "all of it" if sizes == {0} else f"{max(sizes)} MiB"
    return f"{len(flushes)} flush{'es' * (len(flushes) > 1)} of the TLB, of {of}{'' if waited else ', not waited for'}"
