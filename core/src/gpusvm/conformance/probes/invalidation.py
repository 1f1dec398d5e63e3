"""S27 to S31: what a driver does when memory that it has mapped changes."""

from gpusvm.conformance.probes.probe import PAGE, PMD_PAGES, Lab, probe, told, written
from gpusvm.mm.api import MADV_DONTNEED, MMU_NOTIFY_CLEAR, PROT_READ, MmuNotifierRange


@probe(
    "S27",
    "GPU mapping of a page that could not be populated",
    reference="xe_svm_invalidate: no event is filtered; nouveau_svmm_invalidate_range_start and "
    "dmirror_interval_invalidate: MMU_NOTIFY_MIGRATE",
    capability="explicit_populate",
)
def _own_migration(lab: Lab) -> str:
    lab.need("explicit_populate")
    bench = lab.bench(thp="never")
    addr = written(bench, 16)
    pinned = bench.memory.pin_user_pages_fast(bench.mm, addr + 7 * PAGE, 1)
    bench.gpu_read(addr, 16)
    bench.vm.populate(addr, addr + 16 * PAGE)
    survives = bench.mapped_pages(addr + 7 * PAGE, 1)
    bench.memory.unpin_user_pages(pinned)
    return "survives" if survives else "is gone"


@probe(
    "S28",
    "what mprotect, and MADV_DONTNEED, of one page take from the GPU, of a block of small pages",
    reference="xe_svm_range_notifier_event_begin; nouveau_svmm_invalidate; dmirror_do_update; __split_huge_pmd",
)
def _change_one(lab: Lab) -> str:
    bench = lab.bench(thp="never")
    found = []
    for madvise in (False, True):
        addr = written(bench)
        bench.gpu_read(addr, PMD_PAGES)
        if madvise:
            bench.mm.madvise(addr + 7 * PAGE, PAGE, MADV_DONTNEED)
        else:
            bench.mm.mprotect(addr + 7 * PAGE, PAGE, PROT_READ)
        lost = PMD_PAGES - bench.mapped_pages(addr, PMD_PAGES)
        found.append({1: "the page", PMD_PAGES: "the whole block"}.get(lost, f"{lost} pages"))
    return found[0] if found[0] == found[1] else f"{found[0]}, and {found[1]}"


@probe(
    "S29",
    "how many small pages the GPU maps at once, before and after munmap of one page of their block",
    reference="xe_svm_garbage_collector; drm_gpusvm_range_chunk_size",
)
def _unmap_one(lab: Lab) -> str:
    bench = lab.bench(thp="never")
    addr = written(bench)
    bench.gpu_read(addr + 300 * PAGE)
    before = bench.mapped_pages(addr, PMD_PAGES)
    bench.mm.munmap(addr + 7 * PAGE, PAGE)
    bench.kernel.settle()
    bench.gpu_read(addr + 300 * PAGE)
    return f"{before}, then {bench.mapped_pages(addr, PMD_PAGES)}"


@probe(
    "S30",
    "an invalidation that must not wait, with nobody in the way",
    reference="drm_gpusvm_notifier_invalidate; nouveau_svmm_invalidate_range_start; dmirror_interval_invalidate",
)
def _must_not_wait(lab: Lab) -> str:
    bench = lab.bench(thp="never")
    addr = written(bench, 16)
    bench.gpu_read(addr)
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
