"""Be the mm subsystem of one machine: everything that a driver or `gpusvm.drm` may call, as methods of one object.

The methods say in one line what they do; what they follow and promise stands at the function of the same name in the
module of that kernel file.
"""

from collections.abc import Callable
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from gpusvm.errors import ModelError
from gpusvm.kernel import Kernel
from gpusvm.mm import cpu, exclusive, hmm, memory, migrate_device, mmap, mmu_notifier, mprotect
from gpusvm.mm.api import (
    Bools,
    DevPagemap,
    Geometry,
    HmmRange,
    IntervalNotifierOps,
    MigrateVma,
    MmuNotifier,
    MmuNotifierRange,
    Pfns,
    Words,
)
from gpusvm.mm.contents import Contents, Mode
from gpusvm.mm.memremap import DevPagemaps
from gpusvm.mm.mm_struct import MmStruct
from gpusvm.mm.mmu_notifier import MmuIntervalNotifier
from gpusvm.mm.page import PG_RESERVED, PageMap
from gpusvm.mm.quirks import MmQuirks
from gpusvm.mm.rmap import Rmap
from gpusvm.mm.vma import Vma

Thp = Literal["always", "madvise", "never"]

# A task that faults again in no time at all has waited for nothing: the virtual time of a kernel without costs would
# stand.
REFAULT_NS: Final = 1000


class MemoryManager:
    """Model the memory of one machine: `ram_pages` pages of RAM, device regions, any number of address spaces.

    `thp` is /sys/kernel/mm/transparent_hugepage/enabled; `quirks` choose between what Linux 7.3.4 does and what it
    should; `contents` says whether reads are checked ("tokens") or not ("none").
    """

    def __init__(
        self,
        kernel: Kernel,
        *,
        ram_pages: int,
        geometry: Geometry | None = None,
        thp: Thp = "always",
        quirks: MmQuirks | None = None,
        contents: Mode = "tokens",
    ) -> None:
        if thp not in {"always", "madvise", "never"}:
            raise ModelError(f"thp is {thp!r}; it can be always, madvise or never")
        self.kernel = kernel
        self.geometry = Geometry() if geometry is None else geometry
        self.thp: Thp = thp
        self.quirks = MmQuirks() if quirks is None else quirks
        # One page more than asked for: the zero page, which lies in the kernel's image and not in the allocator's
        # memory.
        self.pages = PageMap(kernel, geometry=self.geometry, ram_pages=ram_pages + 1)
        zero = self.pages.allocator.alloc(0)
        self.pages.ram.m_refcount[zero] = 1
        self.pages.ram.m_flags[zero] = PG_RESERVED
        self.zero_pfn: Final[int] = zero
        self._huge_zero_pfn: int | None = None
        self.rmap = Rmap(kernel, self.pages, geometry=self.geometry)
        self.contents = Contents(kernel, self.pages, mode=contents)
        self.pagemaps = DevPagemaps(kernel, self.pages, geometry=self.geometry)
        self.mms: list[MmStruct] = []
        self._mm_ids = 0
        self._bind()

    def _bind(self) -> None:
        # What runs for every page or folio is bound here, so that a call goes straight to the object that does it.
        pages, pagemaps, contents = self.pages, self.pagemaps, self.contents
        self.alloc_folio: Callable[[int], int | None] = pages.alloc_folio
        self.alloc_pages_bulk: Callable[[int], Pfns | None] = pages.alloc_pages_bulk
        self.folio_order: Callable[[int], int] = pages.folio_order
        self.folio_head: Callable[[int], int] = pages.folio_head
        self.folio_orders: Callable[[Pfns], npt.NDArray[np.uint8]] = pages.folio_orders
        self.folio_get: Callable[[int], None] = pages.folio_get
        self.folios_put: Callable[[Pfns], None] = pages.put_many
        self.folio_lock: Callable[[int], None] = pages.folio_lock
        self.folio_trylock: Callable[[int], bool] = pages.folio_trylock
        self.folios_lock_new: Callable[[Pfns], None] = pages.lock_new
        self.folio_unlock: Callable[[int], None] = pages.folio_unlock
        self.folios_unlock: Callable[[Pfns], None] = pages.unlock_many
        self.page_pgmap: Callable[[int], DevPagemap | None] = pagemaps.page_pgmap
        self.zone_device_folio_init: Callable[[int, DevPagemap, int], None] = pagemaps.zone_device_folio_init
        self.zone_device_folios_init: Callable[[Pfns, DevPagemap], None] = pagemaps.zone_device_folios_init
        self.zone_device_data: Callable[[int], Any] = pagemaps.zone_device_data
        self.zone_device_flag: Callable[[int], bool] = pagemaps.zone_device_flag
        self.zone_device_flags: Callable[[Pfns], Bools] = pagemaps.zone_device_flags
        self.set_zone_device_flag: Callable[[int | Pfns], None] = pagemaps.set_zone_device_flag
        self.set_zone_device_data: Callable[[int | Pfns, object | None], None] = pagemaps.set_zone_device_data
        self.copy_pages: Callable[[Pfns, Pfns], None] = contents.copy
        self.copy_folio: Callable[[int, int, int], None] = contents.copy_folio
        self.clear_pages: Callable[[Pfns], None] = contents.clear
        self.clear_folio: Callable[[int, int], None] = contents.clear_folio

    # address spaces

    def mm_create(self, name: str) -> MmStruct:
        """Make an empty address space with one user, the process; `MmStruct.exit` drops that."""
        self._mm_ids += 1
        mm = MmStruct(self, name, self._mm_ids)
        self.mms.append(mm)
        return mm

    def free_mm(self, mm: MmStruct) -> None:
        """Forget an address space that nobody knows any more (__mmdrop)."""
        self.contents.forget_mm(mm)
        self.mms.remove(mm)

    def mmap(self, mm: MmStruct, addr: int | None, length: int, prot: int, *, flags: int = 0) -> int:
        """Map private anonymous memory. EINVAL ENOMEM."""
        return mmap.mmap(self, mm, addr, length, prot, flags=flags)

    def munmap(self, mm: MmStruct, start: int, length: int) -> None:
        """Unmap a range. EINVAL ENOMEM."""
        mmap.munmap(self, mm, start, length)

    def mprotect(self, mm: MmStruct, start: int, length: int, prot: int) -> None:
        """Change the access that a range allows. EINVAL ENOMEM EACCES."""
        mprotect.mprotect(self, mm, start, length, prot)

    def exit_mmap(self, mm: MmStruct) -> None:
        """Take an address space down; `mmput` calls it."""
        mmap.exit_mmap(self, mm)

    # faults and accesses of the CPUs

    def handle_mm_fault(self, mm: MmStruct, vma: Vma, address: int, flags: int) -> int:
        """Handle one fault; VM_FAULT_ bits. mmap_lock held."""
        assert vma.mm is mm
        return memory.handle_mm_fault(self, vma, address, flags)

    def cpu_access(self, mm: MmStruct, vpns: Pfns, is_write: Bools) -> None:
        """Let a CPU touch pages in order. CpuSignal."""
        cpu.cpu_access(self, mm, vpns, is_write)

    def cpu_read(self, mm: MmStruct, address: int) -> int:
        """Read one page; the token found. CpuSignal."""
        return cpu.cpu_read(self, mm, address)

    def cpu_write(self, mm: MmStruct, address: int) -> int:
        """Write one page; the new token. CpuSignal."""
        return cpu.cpu_write(self, mm, address)

    def refault(self, before_ns: int) -> None:
        """Let others go on before a task that took a fault at `before_ns` takes the same one again."""
        kernel = self.kernel
        if kernel.now_ns == before_ns:
            kernel.sleep_ns(REFAULT_NS)
        else:
            kernel.cond_resched()

    def huge_zero_folio(self) -> int | None:
        """Return the huge zero folio, made at its first use and kept; None if there is no memory for it."""
        if self._huge_zero_pfn is None:
            geometry = self.geometry
            pfn = self.pages.alloc_folio(geometry.pmd_order)
            if pfn is not None:
                self.contents.clear_folio(pfn, geometry.pmd_nr)
                self._huge_zero_pfn = pfn
        return self._huge_zero_pfn

    # interval notifiers

    def mmu_interval_notifier_insert(
        self, mm: MmStruct, start: int, length: int, ops: IntervalNotifierOps
    ) -> MmuIntervalNotifier:
        """Subscribe to [start, start + length). EOVERFLOW EINVAL."""
        return mmu_notifier.mmu_interval_notifier_insert(self, mm, start, length, ops)

    def mmu_interval_notifier_insert_locked(
        self, mm: MmStruct, start: int, length: int, ops: IntervalNotifierOps
    ) -> MmuIntervalNotifier:
        """Subscribe with mmap_lock held for write. EOVERFLOW EINVAL."""
        return mmu_notifier.mmu_interval_notifier_insert_locked(self, mm, start, length, ops)

    def mmu_interval_notifier_remove(self, sub: MmuIntervalNotifier) -> None:
        """Unsubscribe; sleeps until no callback runs."""
        mmu_notifier.mmu_interval_notifier_remove(self, sub)

    def mmu_interval_read_begin(self, sub: MmuIntervalNotifier) -> int:
        """Start a collision-retry section; sleeps while an invalidation of `sub` may be running."""
        return mmu_notifier.mmu_interval_read_begin(self, sub)

    def mmu_interval_read_retry(self, sub: MmuIntervalNotifier, seq: int) -> bool:
        """Tell, under the driver's lock, whether the section must start over."""
        return sub.invalidate_seq != seq

    def mmu_interval_check_retry(self, sub: MmuIntervalNotifier, seq: int) -> bool:
        """Tell without a lock whether it must surely start over; False is not conclusive."""
        self.kernel.step()
        return sub.invalidate_seq != seq

    def mmu_interval_set_seq(self, sub: MmuIntervalNotifier, cur_seq: int) -> None:
        """Make an invalidation visible to readers, under the driver's lock."""
        sub.invalidate_seq = cur_seq

    def mmu_notifier_register(self, notifier: MmuNotifier, mm: MmStruct) -> None:
        """Subscribe a classic notifier. EINVAL."""
        mmu_notifier.mmu_notifier_register(self, notifier, mm)

    def mmu_notifier_unregister(self, notifier: MmuNotifier, mm: MmStruct) -> None:
        """Unsubscribe it; calls release if the mm has not."""
        mmu_notifier.mmu_notifier_unregister(self, notifier, mm)

    def invalidate_range_start(self, range_: MmuNotifierRange) -> int:
        """Open a window; 0, or -EAGAIN from one that is not blockable."""
        return mmu_notifier.invalidate_range_start(self, range_)

    def invalidate_range_end(self, range_: MmuNotifierRange) -> None:
        """Close a window."""
        mmu_notifier.invalidate_range_end(self, range_)

    # hmm

    def hmm_range_fault(self, range_: HmmRange) -> None:
        """Snapshot or fault a range, mmap_lock held. EBUSY EFAULT EPERM ENOMEM EINVAL."""
        hmm.hmm_range_fault(self, range_)

    def hmm_range_fault_unlocked_timeout(self, range_: HmmRange, timeout_ns: int) -> None:
        """Do so taking the lock itself, as often as needed. EBUSY EFAULT EPERM ENOMEM EINVAL."""
        hmm.hmm_range_fault_unlocked_timeout(self, range_, timeout_ns)

    def make_device_exclusive(self, mm: MmStruct, addr: int, owner: object | None) -> int:
        """Make one page device-exclusive; its pfn, folio locked and referenced. EFAULT ENOMEM EOPNOTSUPP."""
        return exclusive.make_device_exclusive(self, mm, addr, owner)

    # migration

    def migrate_vma_setup(self, args: MigrateVma) -> None:
        """Collect, lock, isolate and unmap. EINVAL. mmap_lock held."""
        migrate_device.migrate_vma_setup(self, args)

    def migrate_vma_pages(self, args: MigrateVma) -> None:
        """Move the metadata of every page that still can move."""
        migrate_device.migrate_vma_pages(self, args)

    def migrate_vma_finalize(self, args: MigrateVma) -> None:
        """Map what moved at its new place and the rest at its old one."""
        migrate_device.migrate_vma_finalize(self, args)

    def migrate_device_pfns(self, src: Words, npages: int) -> None:
        """Collect by pfn: pfns in, words out."""
        migrate_device.migrate_device_pfns(self, src, npages)

    def migrate_device_range(self, src: Words, start_pfn: int, npages: int) -> None:
        """Collect `npages` consecutive pfns into `src`."""
        migrate_device.migrate_device_range(self, src, start_pfn, npages)

    def migrate_device_pages(self, src: Words, dst: Words, npages: int) -> None:
        """Move metadata as migrate_vma_pages does, without a VMA."""
        migrate_device.migrate_device_pages(self, src, dst, npages)

    def migrate_device_finalize(self, src: Words, dst: Words, npages: int) -> None:
        """Map as migrate_vma_finalize does, without a VMA."""
        migrate_device.migrate_device_finalize(self, src, dst, npages)

    # device memory

    def request_free_mem_region(self, nr_pages: int) -> int:
        """Reserve fake physical address space; the first pfn."""
        return self.pagemaps.request_free_mem_region(nr_pages)

    def memremap_pages(self, pgmap: DevPagemap) -> None:
        """Create the pages. EINVAL ENOMEM."""
        self.pagemaps.memremap_pages(pgmap)

    def memunmap_pages(self, pgmap: DevPagemap) -> None:
        """Kill the reference, wait until every page is free, remove the pages."""
        self.pagemaps.memunmap_pages(pgmap)

    def get_dev_pagemap(self, pfn: int) -> DevPagemap | None:
        """Take a live reference on the pagemap of `pfn`; None once it is killed."""
        return self.pagemaps.get_dev_pagemap(pfn)

    def put_dev_pagemap(self, pgmap: DevPagemap) -> None:
        """Drop one reference."""
        self.pagemaps.put_dev_pagemap(pgmap)

    # folios

    def folio_put(self, pfn: int) -> None:
        """Drop a reference; the last frees the folio."""
        self.pages.folio_put(pfn)

    def is_zone_device(self, pfn: int) -> bool:
        """Tell whether `pfn` belongs to a device region."""
        return pfn >= self.pages.ram_pages

    def is_device_private(self, pfn: int) -> bool:
        """Tell whether `pfn` is MEMORY_DEVICE_PRIVATE (folio_is_device_private)."""
        return pfn >= self.pages.ram_pages and self.pages.zone(pfn).private

    def device_private_mask(self, pfns: Pfns) -> Bools:
        """Tell so for many."""
        found = np.zeros(len(pfns), dtype=np.bool_)
        for zone, _, where in self.pages.split(pfns):
            if zone.private:
                found[where] = True
        return found
