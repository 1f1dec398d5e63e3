"""What the model of the mm costs per operation: `uv run pytest benchmarks/bench_mm.py`.

One operation is a whole migration (setup, allocation, copy of the tokens, pages, finalize) of one 2 MiB block, in timed
mode without costs and unchecked, as in `gpusvm compare`, with one interval subscription on the address space.
"""

import numpy as np
import pytest
from gpusvm.kernel import Kernel
from gpusvm.mm.api import (
    MEMORY_DEVICE_PRIVATE,
    MIGRATE_PFN_COMPOUND,
    MIGRATE_PFN_SHIFT,
    MIGRATE_PFN_VALID,
    MIGRATE_VMA_SELECT_COMPOUND,
    MIGRATE_VMA_SELECT_DEVICE_PRIVATE,
    MIGRATE_VMA_SELECT_SYSTEM,
    PROT_READ,
    PROT_WRITE,
    DevPagemap,
    MigrateVma,
)
from gpusvm.mm.memory_manager import MemoryManager

PAGE = 4096
NR = 512
BASE = 1 << 30
TO_DEVICE = MIGRATE_VMA_SELECT_SYSTEM | MIGRATE_VMA_SELECT_COMPOUND
TO_RAM = MIGRATE_VMA_SELECT_DEVICE_PRIVATE | MIGRATE_VMA_SELECT_COMPOUND


class Driver:
    """One process with one block of memory, and a device that has room for it."""

    def __init__(self, *, thp: str) -> None:
        self.kernel = Kernel(checked=False)
        self.memory = MemoryManager(self.kernel, ram_pages=64 * NR, thp=thp)
        self.compound = thp == "always"
        self.folio_split = None
        start = self.memory.request_free_mem_region(8 * NR)
        self.pgmap = DevPagemap(MEMORY_DEVICE_PRIVATE, start, 8 * NR, self, self)
        self.memory.memremap_pages(self.pgmap)
        self.mm = self.memory.mm_alloc("p")
        self.mm.mmap(BASE, NR * PAGE, PROT_READ | PROT_WRITE)
        self.vpns = np.arange(NR) + (BASE >> 12)
        self.memory.cpu_access(self.mm, self.vpns, np.ones(NR, np.bool_))
        self.memory.mmu_interval_notifier_insert(self.mm, BASE, NR * PAGE, self)
        self.pfns = np.arange(start, start + NR)
        self.args = MigrateVma(
            self.mm.vma_lookup(BASE),
            BASE,
            BASE + NR * PAGE,
            np.zeros(NR, np.uint64),
            np.zeros(NR, np.uint64),
            pgmap_owner=self,
        )

    def invalidate(self, sub, range_, cur_seq) -> bool:
        sub.invalidate_seq = cur_seq
        return True

    def migrate_to_ram(self, vmf) -> int:
        return 0

    def folio_free(self, pfn, order) -> None:
        pass

    def folios_free(self, pfns) -> None:
        pass

    def to_device(self) -> None:
        memory, args = self.memory, self.args
        args.flags = TO_DEVICE
        self.mm.mmap_lock.down_read()
        memory.migrate_vma_setup(args)
        start = self.pgmap.start_pfn
        if self.compound:
            memory.zone_device_folio_init(start, self.pgmap, 9)
            memory.copy_folio(start, int(args.src[0]) >> MIGRATE_PFN_SHIFT, NR)
            args.dst[0] = start << MIGRATE_PFN_SHIFT | MIGRATE_PFN_VALID | MIGRATE_PFN_COMPOUND
        else:
            memory.zone_device_folios_init(self.pfns, self.pgmap)
            memory.copy_pages(self.pfns, (args.src >> MIGRATE_PFN_SHIFT).view(np.int64))
            args.dst[:] = (self.pfns.view(np.uint64) << MIGRATE_PFN_SHIFT) | MIGRATE_PFN_VALID
        memory.migrate_vma_pages(args)
        memory.migrate_vma_finalize(args)
        self.mm.mmap_lock.up_read()

    def to_ram(self) -> None:
        memory, args = self.memory, self.args
        args.flags = TO_RAM
        self.mm.mmap_lock.down_read()
        memory.migrate_vma_setup(args)
        if self.compound:
            pfn = memory.alloc_folio(9)
            memory.folio_lock(pfn)
            memory.copy_folio(pfn, int(args.src[0]) >> MIGRATE_PFN_SHIFT, NR)
            args.dst[0] = pfn << MIGRATE_PFN_SHIFT | MIGRATE_PFN_VALID | MIGRATE_PFN_COMPOUND
        else:
            pfns = memory.alloc_pages_bulk(NR)
            memory.folios_lock_new(pfns)
            memory.copy_pages(pfns, (args.src >> MIGRATE_PFN_SHIFT).view(np.int64))
            args.dst[:] = (pfns.view(np.uint64) << MIGRATE_PFN_SHIFT) | MIGRATE_PFN_VALID
        memory.migrate_vma_pages(args)
        memory.migrate_vma_finalize(args)
        self.mm.mmap_lock.up_read()


@pytest.mark.parametrize("thp", ["always", "never"])
@pytest.mark.parametrize("direction", ["to_device", "to_ram"])
def test_migrate_2mib(benchmark, thp, direction):
    driver = Driver(thp=thp)
    here, back = (driver.to_device, driver.to_ram) if direction == "to_device" else (driver.to_ram, driver.to_device)
    if direction == "to_ram":
        driver.to_device()

    def undo():
        if driver.kernel.stats.migrated_to_device_bytes > driver.kernel.stats.migrated_to_ram_bytes:
            if direction == "to_device":
                back()
        elif direction == "to_ram":
            back()

    benchmark.pedantic(here, setup=undo, rounds=2000, warmup_rounds=50)
    moved = driver.kernel.stats
    assert abs(moved.migrated_to_device_bytes - moved.migrated_to_ram_bytes) <= NR * PAGE


def test_fill_2mib_of_holes(benchmark):
    driver = Driver(thp="never")
    memory, args = driver.memory, driver.args

    def unmap():
        driver.mm.munmap(BASE, NR * PAGE)
        driver.mm.mmap(BASE, NR * PAGE, PROT_READ | PROT_WRITE)
        args.vma = driver.mm.vma_lookup(BASE)

    def fill():
        args.flags = MIGRATE_VMA_SELECT_SYSTEM
        driver.mm.mmap_lock.down_read()
        memory.migrate_vma_setup(args)
        memory.zone_device_folios_init(driver.pfns, driver.pgmap)
        memory.clear_pages(driver.pfns)
        args.dst[:] = (driver.pfns.view(np.uint64) << MIGRATE_PFN_SHIFT) | MIGRATE_PFN_VALID
        memory.migrate_vma_pages(args)
        memory.migrate_vma_finalize(args)
        driver.mm.mmap_lock.up_read()

    benchmark.pedantic(fill, setup=unmap, rounds=1000, warmup_rounds=20)
    assert driver.mm.rss[0] == NR


@pytest.mark.parametrize("what", ["read", "write"])
def test_contents_4096_accesses(benchmark, what):
    driver = Driver(thp="never")
    contents = driver.memory.contents
    where = (np.arange(4096) * 7) % NR
    vpns = driver.vpns[where]
    pfns = driver.mm.page_table.lookup(BASE).pfn[where].copy()
    benchmark(contents.read_many if what == "read" else contents.write_many, driver.mm, vpns, pfns)
    assert contents.mismatch_count == 0
