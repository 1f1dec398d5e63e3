"""S1 to S13: where memory goes, and what stays behind."""

from gpusvm.conformance.probes.probe import PAGE, PMD, PMD_PAGES, Lab, answer, populated, probe, written
from gpusvm.mm.api import PROT_READ, PROT_WRITE


@probe(
    "S1",
    "first GPU touch of anonymous memory",
    reference="xe_vma_resolve_pagemap; nouveau_range_fault; dmirror_do_fault",
    capability="migrate_on_fault",
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
)
def _one_page_pinned(lab: Lab) -> str:
    lab.need("explicit_populate")
    bench = lab.bench(thp="never")
    addr = written(bench)
    pinned = bench.memory.pin_user_pages_fast(bench.mm, addr + 7 * PAGE, 1)
    bench.vm.populate(addr, addr + PMD)
    moved = bench.device_pages(addr, PMD_PAGES)
    bench.memory.unpin_user_pages(pinned)
    return {0: "nothing moves", PMD_PAGES - 1: "the rest moves"}.get(moved, f"{moved} of {PMD_PAGES} pages move")


@probe(
    "S3",
    "populate of a hole in anonymous memory",
    reference="migrate_vma_collect_hole; drm_gpusvm_range_chunk_size",
    capability="explicit_populate",
)
def _hole(lab: Lab) -> str:
    lab.need("explicit_populate")
    bench = lab.bench(thp="never")
    addr = bench.map(PMD)
    bench.vm.populate(addr, addr + PMD)
    moved = bench.device_pages(addr, PMD_PAGES)
    bench.cpu_read(addr, PMD_PAGES)  # of zeros, which the bench checks
    return "zero-filled device pages" if moved == PMD_PAGES else f"{moved} of {PMD_PAGES} pages"


@probe(
    "S4",
    "populate of a private file mapping whose pages were copied on write",
    reference="drm_pagemap_migrate_to_devmem; __migrate_device_pages",
    capability="explicit_populate",
)
def _private_file(lab: Lab) -> str:
    lab.need("explicit_populate")
    bench = lab.bench(thp="never")
    addr = 1 << 45
    bench.mm.mmap(addr, 16 * PAGE, PROT_READ | PROT_WRITE, file=bench.memory.tmpfile(16))
    bench.cpu_write(addr, 8)
    bench.cpu_read(addr + 8 * PAGE, 8)
    bench.vm.populate(addr, addr + 16 * PAGE)
    copied, cached = bench.device_pages(addr, 8), bench.device_pages(addr + 8 * PAGE, 8)
    return {(0, 0): "refused", (8, 0): "the copied pages move"}.get(
        (copied, cached), f"{copied} copied, {cached} cached"
    )


@probe(
    "S5",
    "populate of a range of which one page is in the same device memory",
    reference="drm_pagemap_migrate_to_devmem: own pages",
    capability="explicit_populate",
)
def _partly_there(lab: Lab) -> str:
    lab.need("explicit_populate")
    bench = lab.bench(thp="never")
    addr = populated(bench)
    bench.mm.munmap(addr + 7 * PAGE, PAGE)
    bench.mm.mmap(addr + 7 * PAGE, PAGE, PROT_READ | PROT_WRITE)
    bench.cpu_write(addr + 7 * PAGE)
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
)
def _half_elsewhere(lab: Lab) -> str:
    lab.need("explicit_populate")
    found = []
    for hardware in ("dual", "dual-p2p"):
        bench = lab.bench(hardware=hardware, thp="never")
        addr = written(bench, PMD_PAGES // 2)
        bench.vms[1].populate(addr, addr + PMD // 2)
        bench.mm.mmap(addr + PMD // 2, PMD // 2, PROT_READ | PROT_WRITE)
        bench.cpu_write(addr + PMD // 2, PMD_PAGES // 2)
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
    return found[0] if found[0] == found[1] else f"without a path {found[0]}; with one {found[1]}"


@probe(
    "S7",
    "return value of a populate of which nothing can move",
    reference="nouveau_svmm_bind; prefetch_ranges; dmirror_migrate_to_device",
    capability="explicit_populate",
)
def _populate_return(lab: Lab) -> str:
    lab.need("explicit_populate")
    bench = lab.bench(thp="never")
    addr = written(bench, 16)
    pinned = bench.memory.pin_user_pages_fast(bench.mm, addr, 16)
    # Of dmirror the ioctl itself, which reads the pages back: `Vm.populate` is the migration alone.
    ioctl = getattr(getattr(bench.vm, "ioctl", None), "migrate_to_dev", None)
    if ioctl is None:
        ended = answer(lambda: bench.vm.populate(addr, addr + 16 * PAGE))
    else:
        ended = answer(lambda: ioctl(addr, 16))
    bench.memory.unpin_user_pages(pinned)
    return ended


@probe(
    "S8",
    "what comes home when a CPU touches one page of a device's block, of small pages and of a huge one",
    reference="__drm_pagemap_migrate_to_ram; nouveau_dmem_migrate_to_ram; dmirror_devmem_fault",
    capability="large_folios",
)
def _cpu_touch(lab: Lab) -> str:
    lab.need("explicit_populate")
    found = []
    for thp in ("never", "always"):
        bench = lab.bench(thp=thp)
        addr = populated(bench)
        bench.cpu_read(addr + 7 * PAGE)
        home = PMD_PAGES - bench.device_pages(addr, PMD_PAGES)
        found.append({1: "the page", PMD_PAGES: "the whole block"}.get(home, f"{home} pages"))
    return found[0] if found[0] == found[1] else f"{found[0]}, and {found[1]}"


@probe(
    "S9",
    "CPU touch of a page that came to the device for an atomic just now",
    reference="xe_svm.c: atomic_svm_timeslice_ms; drm_pagemap.c:__drm_pagemap_migrate_to_ram",
    capability="atomics",
)
def _touch_in_timeslice(lab: Lab) -> str:
    lab.need("atomics")
    bench = lab.bench(thp="never")
    addr = written(bench, 16)
    bench.gpu_atomic(addr)
    before = bench.kernel.now_ns
    bench.cpu_read(addr)
    waited_ms = (bench.kernel.now_ns - before) // 1_000_000
    return f"the CPU waits {waited_ms} ms for it" if waited_ms else "it is the CPU's at once"


@probe(
    "S10",
    "more memory than VRAM",
    reference="ttm_bo_evict_cb; nouveau_dmem_pages_alloc; dmirror_allocate_chunk",
    capability="eviction",
)
def _exhaustion(lab: Lab) -> str:
    lab.need("explicit_populate")
    bench = lab.bench(vram_bytes=2 * PMD)
    blocks = [written(bench) for _ in range(3)]
    for addr in blocks:
        bench.vm.populate(addr, addr + PMD)
    places = [bench.where(addr) for addr in blocks]
    if bench.kernel.stats.evictions:
        return "the oldest is evicted" if places == ["system", "device", "device"] else f"evictions, {places}"
    left_out = places.count("system")
    return f"{left_out} of 3 blocks stay in RAM" if left_out else "it never runs out"


@probe(
    "S11",
    "VRAM after all of it was unmapped",
    reference="xe_svm_devmem_release; nouveau_dmem_folio_free; dmirror_devmem_free",
    capability="device_memory",
)
def _given_back(lab: Lab) -> str:
    lab.need("explicit_populate", "device_memory")
    bench = lab.bench()
    addr = populated(bench)
    bench.mm.munmap(addr, PMD)
    bench.kernel.settle()
    held = bench.driver.describe()
    return "given back" if not held.get("vram_used_bytes", held.get("chunks", 0)) else "kept until teardown"


@probe(
    "S12",
    "device pages of a client when it closes",
    reference="dmirror_fops_release; xe_svm_close",
    capability="eviction",
)
def _client_closes(lab: Lab) -> str:
    lab.need("explicit_populate", "device_memory")
    bench = lab.bench()
    addr = populated(bench)
    other = bench.machine.process("other")
    vm = bench.machine.open(other)
    other.mm.mmap(addr, PMD, PROT_READ | PROT_WRITE)
    vm.close()
    del other.vms[0]
    other_left = bench.device_pages(addr, PMD_PAGES)
    return "the pages of all clients come home" if not other_left else "pages stay where they are"


@probe("S13", "a forked child touches a device page", reference="copy_nonpresent_pte; do_swap_page")
def _forked_child(lab: Lab) -> str:
    lab.need("explicit_populate")
    bench = lab.bench(thp="never")
    addr = populated(bench)
    child = bench.mm.fork("child")
    bench.memory.cpu_read(child, addr)
    moved = bench.where(addr) == "system"
    child.mmput()
    return "it is brought home first" if moved else "it is copied in place"
