"""S1 to S13: where memory goes, and what stays behind."""

from typing import Final

from gpusvm.conformance.probes.probe import Lab, applies, probe
from gpusvm.conformance.scene import (
    ELSEWHERE,
    PAGE,
    PMD,
    PMD_PAGES,
    able_to_do_atomics,
    able_to_populate,
    answer,
    both,
    close,
    counted,
    of_block,
    on_device,
    other_process,
    pinned,
    written,
    written_anew,
)
from gpusvm.errors import ModelError
from gpusvm.mm.api import PROT_READ, PROT_WRITE, VM_PFNMAP, VM_SHARED

_MORE_THAN_A_CHUNK: Final = 300 << 20


@probe(
    "S1",
    "first GPU touch of anonymous memory",
    reference="xe_vma_resolve_pagemap; nouveau_range_fault; dmirror_do_fault",
    capability="migrate_on_fault",
    shows=lambda seen: seen == "VRAM",
)
def _first_touch(lab: Lab) -> str:
    bench = lab.bench()
    addr = written(bench)
    bench.gpu_read(addr)
    return {"device": "VRAM", "system": "RAM"}[bench.where(addr)]


@probe(
    "S2",
    "populate of a range with one pinned page",
    reference="drm_pagemap_migrate_to_devmem; migrate_vma_collect_pmd",
    capability="explicit_populate",
    shows=applies,
)
def _one_page_pinned(lab: Lab) -> str:
    bench = able_to_populate(lab, thp="never")
    addr = written(bench)
    with pinned(bench, addr + 7 * PAGE, 1), counted(bench.memory, "migrate_vma_setup") as attempts:
        bench.vm.populate(addr, addr + PMD)
        moved = bench.device_pages(addr, PMD_PAGES)
    what = {0: "nothing moves", PMD_PAGES - 1: "the rest moves"}.get(moved, f"{moved} of {PMD_PAGES} pages move")
    return what if moved else f"{what}, in {len(attempts)} attempt{'s' * (len(attempts) != 1)}"


@probe(
    "S3",
    "populate of a hole in anonymous memory; how much of 64 KiB a fault maps without a hole and with one, and what a "
    "populate brings then",
    reference="migrate_vma_collect_hole; drm_gpusvm_range_chunk_size; vm_bind_ioctl_ops_create",
    capability="explicit_populate",
    shows=applies,
)
def _hole(lab: Lab) -> str:
    bench = able_to_populate(lab, thp="never")
    addr = bench.map(PMD)
    bench.vm.populate(addr, addr + PMD)
    moved = bench.device_pages(addr, PMD_PAGES)
    bench.cpu_read(addr, PMD_PAGES)  # of zeros, which the bench checks
    what = "zero-filled device pages" if moved == PMD_PAGES else f"{moved} of {PMD_PAGES} pages"
    units = []
    for touched in (16, 15):
        addr = bench.map(16 * PAGE)
        bench.cpu_write(addr, touched)
        bench.gpu_read(addr)
        units.append(bench.mapped_pages(addr, 16))
    bench.vm.populate(addr, addr + 16 * PAGE)
    return f"{what}; {units[0]} and {units[1]} mapped, {bench.device_pages(addr, 16)} brought"


@probe(
    "S4",
    "populate of a private file mapping whose pages were copied on write, of those that were not, of shared memory and "
    "of a device's",
    reference="drm_pagemap_migrate_to_devmem; __migrate_device_pages; migrate_vma_setup: EINVAL",
    capability="explicit_populate",
    shows=applies,
)
def _not_anonymous(lab: Lab) -> str:
    bench = able_to_populate(lab, thp="never")
    private, shared, special = ELSEWHERE, ELSEWHERE + PMD, ELSEWHERE + 2 * PMD
    file = bench.memory.tmpfile(16)
    bench.mm.mmap(private, 16 * PAGE, PROT_READ | PROT_WRITE, file=file)
    file.close()
    bench.cpu_write(private, 8)
    bench.cpu_read(private + 8 * PAGE, 8)
    bench.mm.mmap(shared, 16 * PAGE, PROT_READ | PROT_WRITE, flags=VM_SHARED)
    bench.cpu_write(shared, 16)
    bench.mm.mmap(special, 16 * PAGE, PROT_READ | PROT_WRITE, flags=VM_PFNMAP)
    for addr in (private, shared, special):
        answer(lambda addr=addr: bench.vm.populate(addr, addr + 16 * PAGE))  # type: ignore[misc]  # a lambda's default has no annotation
    moved = {
        "the copied pages move": bench.device_pages(private, 8),
        "the file's pages move": bench.device_pages(private + 8 * PAGE, 8),
        "shared pages move": bench.device_pages(shared, 16),
        "a device's pages move": bench.device_pages(special, 16),
    }
    return "; ".join(what for what, pages in moved.items() if pages) or "nothing moves"


@probe(
    "S5",
    "populate of a range of which one page is in the same device memory",
    reference="drm_pagemap_migrate_to_devmem: own pages",
    capability="explicit_populate",
    shows=applies,
)
def _partly_there(lab: Lab) -> str:
    bench, addr = on_device(lab, thp="never")
    written_anew(bench, addr + 7 * PAGE, 1)
    before = bench.kernel.stats.migrated_to_ram_bytes
    bench.vm.populate(addr, addr + PMD)
    bounced = (bench.kernel.stats.migrated_to_ram_bytes - before) // PAGE
    if bench.device_pages(addr, PMD_PAGES) != PMD_PAGES:
        return "the page stays outside"
    if not bounced:
        return "the page joins the others"
    return "all of it bounces through RAM" if bounced == PMD_PAGES - 1 else f"{bounced} pages bounce"


@probe(
    "S6",
    "populate of a range of which half is in the memory of another device",
    reference="drm_pagemap_migrate_to_devmem: owner and path; nouveau_dmem_migrate_vma: MIGRATE_VMA_SELECT_SYSTEM",
    capability="multi_device_p2p",
    shows=lambda seen: "directly" in seen,
)
def _half_elsewhere(lab: Lab) -> str:
    found = []
    for hardware in ("dual", "dual-p2p"):
        bench = able_to_populate(lab, hardware=hardware, thp="never")
        addr = written(bench)
        bench.vms[1].populate(addr, addr + PMD // 2)
        before = bench.kernel.stats.migrated_to_ram_bytes
        bench.vm.populate(addr, addr + PMD)
        through_ram = bench.kernel.stats.migrated_to_ram_bytes > before
        memory, table = bench.memory, bench.mm.page_table
        owned = [memory.page_pgmap(table.entry(addr + i * PAGE).pfn) for i in range(PMD_PAGES)]
        here = sum(each in bench.driver.dev_pagemaps() for each in owned)
        there = sum(each in bench.machine.drivers[1].dev_pagemaps() for each in owned)
        if there:
            found.append("that half stays where it is" if here + there == PMD_PAGES else f"{there} pages stay there")
        elif here < PMD_PAGES:
            found.append("nothing moves")
        else:
            found.append("all of it comes, that half through RAM" if through_ram else "all of it comes, directly")
    return both(found, "without a path {}; with one {}")


@probe(
    "S7",
    "return value of a populate of which nothing can move",
    reference="nouveau_svmm_bind; prefetch_ranges; dmirror_migrate_to_device",
    capability="explicit_populate",
    shows=applies,
)
def _populate_return(lab: Lab) -> str:
    bench = able_to_populate(lab, thp="never")
    addr = written(bench, 16)
    # Of dmirror the ioctl itself, which reads the pages back: `Vm.populate` is the migration alone.
    ioctl = getattr(getattr(bench.vm, "ioctl", None), "migrate_to_dev", None)
    with pinned(bench, addr, 16):
        if ioctl is None:
            return answer(lambda: bench.vm.populate(addr, addr + 16 * PAGE))
        return answer(lambda: ioctl(addr, 16))


@probe(
    "S8",
    "what comes home when a CPU touches one page of a device's block, of small pages and of a huge one",
    reference="__drm_pagemap_migrate_to_ram; nouveau_dmem_migrate_to_ram; dmirror_devmem_fault",
    capability="large_folios",
)
def _cpu_touch(lab: Lab) -> str:
    found = []
    for thp in ("never", "always"):
        bench, addr = on_device(lab, thp=thp)
        bench.cpu_read(addr + 7 * PAGE)
        found.append(of_block(PMD_PAGES - bench.device_pages(addr, PMD_PAGES)))
    return both(found)


@probe(
    "S9",
    "CPU touch of a page that came to the device for an atomic just now",
    reference="xe_svm.c: atomic_svm_timeslice_ms; drm_pagemap.c:__drm_pagemap_migrate_to_ram",
    capability="atomics",
    shows=applies,
)
def _touch_in_timeslice(lab: Lab) -> str:
    bench, addr = able_to_do_atomics(lab, thp="never")
    before = bench.kernel.now_ns
    bench.cpu_read(addr)
    waited_ms = (bench.kernel.now_ns - before) // 1_000_000
    return f"the CPU waits {waited_ms} ms for it" if waited_ms else "it is the CPU's at once"


@probe(
    "S10",
    "more memory than VRAM, of which the oldest part is another process's",
    reference="ttm_bo_evict_cb; nouveau_dmem_pages_alloc; dmirror_allocate_chunk",
    capability="eviction",
    shows=lambda seen: "evict" in seen if applies(seen) else None,
)
def _exhaustion(lab: Lab) -> str:
    able_to_populate(lab)
    bench = lab.bench(vram_bytes=2 * PMD)
    other, vm = other_process(bench, ELSEWHERE)
    vm.populate(ELSEWHERE, ELSEWHERE + PMD)
    blocks = [written(bench) for _ in range(2)]
    for addr in blocks:
        bench.vm.populate(addr, addr + PMD)
    places = [bench.where(ELSEWHERE, mm=other.mm), *map(bench.where, blocks)]
    if bench.kernel.stats.evictions:
        oldest = "the oldest is evicted, whosever it is"
        return oldest if places == ["system", "device", "device"] else f"evictions, {places}"
    left_out = places.count("system")
    return f"{left_out} of 3 blocks stay in RAM" if left_out else "it never runs out"


@probe(
    "S11",
    "VRAM after all of it was unmapped",
    reference="xe_svm_devmem_release; nouveau_dmem_folio_free; dmirror_devmem_free; dmirror_fops_unlocked_ioctl: "
    "HMM_DMIRROR_RELEASE",
    capability="device_memory",
    shows=applies,
)
def _given_back(lab: Lab) -> str:
    bench, addr = on_device(lab, vram_bytes=1 << 30)
    now = bench.kernel.gauges.now

    def objects() -> int:
        return now.get("bo", 0) + len(bench.driver.dev_pagemaps())

    bench.mm.munmap(addr, PMD)
    bench.kernel.settle()
    before = objects()
    pages = _MORE_THAN_A_CHUNK // PAGE
    addr = written(bench, pages)
    bench.vm.populate(addr, addr + pages * PAGE)
    if objects() <= before:
        raise ModelError("device memory was populated, and neither a buffer object nor a pagemap holds it")
    bench.mm.munmap(addr, pages * PAGE)
    bench.kernel.settle()
    if objects() <= before:
        return "given back"
    release = getattr(getattr(bench.vm, "ioctl", None), "release", None)
    if release is not None:
        release()
        if objects() <= before:
            return "kept, until RELEASE or teardown"
    return "kept until teardown"


@probe(
    "S12",
    "device pages of other clients, and its own, when a client closes",
    reference="dmirror_fops_release; xe_svm_close",
    capability="device_memory",
)
def _client_closes(lab: Lab) -> str:
    bench, addr = on_device(lab)
    _, other = other_process(bench, ELSEWHERE)
    other.populate(ELSEWHERE, ELSEWHERE + PMD)
    process = bench.machine.processes[-1]
    close(bench)
    own, others = bench.where(addr) == "device", bench.where(ELSEWHERE, mm=process.mm) == "device"
    if own and others:
        return "pages stay where they are"
    return "its own come home" if others else "the pages of all clients come home"


@probe("S13", "a forked child touches a device page", reference="copy_nonpresent_pte; do_swap_page")
def _forked_child(lab: Lab) -> str:
    bench, addr = on_device(lab, thp="never")
    child = bench.mm.fork("child")
    bench.memory.cpu_read(child, addr)
    moved = bench.where(addr) == "system"
    child.mmput()
    return "it is brought home first" if moved else "it is copied in place"
