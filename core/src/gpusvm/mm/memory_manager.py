"""Be the mm subsystem of one machine: everything that a driver or `gpusvm.drm` may call, as methods of one object.

The methods say in one line what they do; what they follow and promise stands at the function of the same name in the
module of that kernel file.
"""

from sys import _getframe
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import numpy.typing as npt

from gpusvm.errors import ModelError
from gpusvm.kernel import Kernel
from gpusvm.mm import (
    cpu,
    exclusive,
    fork,
    gup,
    hmm,
    insert_page,
    madvise,
    memory,
    memory_failure,
    migrate_device,
    mmap,
    mmu_notifier,
    mprotect,
    mremap,
    oom_kill,
    shmem,
)
from gpusvm.mm.api import (
    Bools,
    DevPagemap,
    Geometry,
    HmmRange,
    IntervalNotifier,
    IntervalNotifierOps,
    MemoryManagerApi,
    MigrateVma,
    MmApi,
    MmuNotifier,
    MmuNotifierRange,
    Pfns,
    VmaApi,
    Words,
)
from gpusvm.mm.contents import Contents, Mode
from gpusvm.mm.filemap import AddressSpace
from gpusvm.mm.hugetlb import HugetlbPool
from gpusvm.mm.memremap import DevPagemaps
from gpusvm.mm.mm_struct import MmStruct
from gpusvm.mm.mmu_notifier import MmuIntervalNotifier
from gpusvm.mm.observer import tell
from gpusvm.mm.page import PG_RESERVED, PageMap
from gpusvm.mm.quirks import MmQuirks
from gpusvm.mm.rmap import Rmap
from gpusvm.mm.shrinker import Shrinkers
from gpusvm.mm.swap import Swap
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
        self.shrinkers = Shrinkers()
        self.contents = Contents(kernel, self.pages, mode=contents)
        self.hugetlb = HugetlbPool(self)
        self.pages.free_huge_folio = self.hugetlb.give_back
        self.pagemaps = DevPagemaps(kernel, self.pages, geometry=self.geometry)
        self.swap = Swap(self.pages, self.contents)
        self.mms: list[MmStruct] = []
        self.mirrors: list[object] = []
        self.mm_ids = 0
        self.cpu_faults_max = 0
        """So many faults in a row may mend nothing of one page before that is a LivelockError; 0: any number."""
        self.system_wq = kernel.workqueue("events")

    # address spaces

    def mm_alloc(self, name: str) -> MmStruct:
        """Make an empty address space with one user, the process; `MmStruct.exit` drops that."""
        self.mm_ids += 1
        mm = MmStruct(self, name, self.mm_ids)
        self.mms.append(mm)
        return mm

    def free_mm(self, mm: MmStruct) -> None:
        """Forget an address space that nobody knows any more (__mmdrop)."""
        self.contents.forget_mm(mm)
        self.mms.remove(mm)
        if self.kernel.observer is not None:
            tell(self.kernel.observer, "mm_freed", mm)
        self.kernel.free(mm, mm.mmap_lock, mm.page_table, mm.notifiers)

    def mmap(
        self,
        mm: MmStruct,
        addr: int | None,
        length: int,
        prot: int,
        *,
        flags: int = 0,
        file: AddressSpace | None = None,
        offset: int = 0,
    ) -> int:
        """Map private or shared memory, anonymous or of a file. EINVAL ENOMEM."""
        return mmap.mmap(self, mm, addr, length, prot, flags=flags, file=file, offset=offset)

    def tmpfile(self, nr_pages: int, *, name: str = "tmpfile") -> AddressSpace:
        """Make a file of zeros on a file system that wants to hear of first writes; `close` drops the reference."""
        return AddressSpace(self, name, nr_pages, swapbacked=False, page_mkwrite=True)

    def set_nr_hugepages(self, nr: int) -> int:
        """Have a pool of `nr` huge pages, or as near as memory and use allow; how many there are."""
        return self.hugetlb.set_nr(nr)

    def vm_insert_page(self, vma: VmaApi, addr: int, pfn: int) -> None:
        """Map a page of a driver's into its VM_MIXEDMAP area. EFAULT EINVAL EBUSY ENOMEM. mmap_lock held."""
        assert isinstance(vma, Vma)
        insert_page.vm_insert_page(self, vma, addr, pfn)

    def vm_insert_mixed(self, vma: Vma, addr: int, pfn: int) -> None:
        """Map a bare pfn into a VM_MIXEDMAP area. EFAULT EINVAL EBUSY ENOMEM. mmap_lock held."""
        insert_page.vm_insert_mixed(self, vma, addr, pfn)

    def remap_pfn_range(self, vma: Vma, addr: int, pfn: int, size: int) -> None:
        """Map physical memory into a VM_PFNMAP area. EFAULT EINVAL EBUSY ENOMEM. mmap_lock held for write."""
        insert_page.remap_pfn_range(self, vma, addr, pfn, size)

    def memfd_create(self, nr_pages: int, *, name: str = "memfd") -> AddressSpace:
        """Make a shmem object; `close` drops the reference."""
        return shmem.shmem_file_setup(self, name, nr_pages)

    def munmap(self, mm: MmStruct, start: int, length: int) -> None:
        """Unmap a range. EINVAL ENOMEM."""
        mmap.munmap(self, mm, start, length)

    def mprotect(self, mm: MmStruct, start: int, length: int, prot: int) -> None:
        """Change the access that a range allows. EINVAL ENOMEM EACCES."""
        mprotect.mprotect(self, mm, start, length, prot)

    def fork(self, mm: MmStruct, name: str | None = None) -> MmStruct:
        """Make a child of an address space, named after it unless `name` is given. ENOMEM."""
        return fork.fork(self, mm, name)

    def mremap(
        self, mm: MmStruct, old_addr: int, old_len: int, new_len: int, *, flags: int = 0, new_addr: int | None = None
    ) -> int:
        """Resize or move a mapping. EINVAL EFAULT ENOMEM."""
        return mremap.mremap(self, mm, old_addr, old_len, new_len, flags=flags, new_addr=new_addr)

    def madvise(self, mm: MmStruct, start: int, length: int, advice: int) -> None:
        """Say what is to become of a range. EINVAL ENOMEM EAGAIN."""
        madvise.madvise(self, mm, start, length, advice)

    def oom_reap(self, mm: MmStruct) -> bool:
        """Take the memory of a process that was killed for want of memory; whether all of it went."""
        return oom_kill.oom_reap(self, mm)

    def oom_reap_task_mm(self, mm: MmStruct) -> bool:
        """Try that once."""
        return oom_kill.oom_reap_task_mm(self, mm)

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

    def refault(self, before_ns: int, *, in_kernel: bool = False) -> None:
        """Let others go on before a task that took a fault at `before_ns` takes the same one again.

        Where CPUs count, the way back to user space is a place to lose the CPU, and a loop `in_kernel` is none.
        """
        kernel = self.kernel
        if kernel.cpus and in_kernel:
            kernel.give_way()
        elif kernel.now_ns == before_ns:
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
        self, mm: MmApi, start: int, length: int, ops: IntervalNotifierOps
    ) -> MmuIntervalNotifier:
        """Subscribe to [start, start + length). EOVERFLOW EINVAL."""
        assert isinstance(mm, MmStruct)
        return mmu_notifier.mmu_interval_notifier_insert(self, mm, start, length, ops)

    def mmu_interval_notifier_insert_locked(
        self, mm: MmApi, start: int, length: int, ops: IntervalNotifierOps
    ) -> MmuIntervalNotifier:
        """Subscribe with mmap_lock held for write. EOVERFLOW EINVAL."""
        assert isinstance(mm, MmStruct)
        return mmu_notifier.mmu_interval_notifier_insert_locked(self, mm, start, length, ops)

    def mmu_interval_notifier_remove(self, sub: IntervalNotifier) -> None:
        """Unsubscribe; sleeps until no callback runs."""
        assert isinstance(sub, MmuIntervalNotifier)
        mmu_notifier.mmu_interval_notifier_remove(self, sub)

    def mmu_interval_read_begin(self, sub: IntervalNotifier) -> int:
        """Start a collision-retry section; sleeps while an invalidation of `sub` may be running."""
        assert isinstance(sub, MmuIntervalNotifier)
        return mmu_notifier.mmu_interval_read_begin(self, sub)

    def mmu_interval_read_retry(self, sub: IntervalNotifier, seq: int) -> bool:
        """Tell, under the driver's lock, whether the section must start over."""
        retry = sub.invalidate_seq != seq
        if self.kernel.authors is not None and not retry:
            self.kernel.authors.unchanged(sub.mm, sub.start, sub.last + 1)
        if self.kernel.observer is not None:
            tell(self.kernel.observer, "read_retried", sub, seq, retry)
        return retry

    def mmu_interval_check_retry(self, sub: IntervalNotifier, seq: int) -> bool:
        """Tell without a lock whether it must surely start over; False is not conclusive."""
        self.kernel.step()
        return sub.invalidate_seq != seq

    def mmu_interval_set_seq(self, sub: IntervalNotifier, cur_seq: int) -> None:
        """Make an invalidation visible to readers, under the driver's lock."""
        sub.invalidate_seq = cur_seq
        if self.kernel.observer is not None:
            tell(self.kernel.observer, "sequence_set", sub, cur_seq)

    def mmu_notifier_register(self, notifier: MmuNotifier, mm: MmApi) -> None:
        """Subscribe a classic notifier. EINVAL."""
        assert isinstance(mm, MmStruct)
        mmu_notifier.mmu_notifier_register(self, notifier, mm)

    def mmu_notifier_unregister(self, notifier: MmuNotifier, mm: MmApi) -> None:
        """Unsubscribe it; calls release if the mm has not."""
        assert isinstance(mm, MmStruct)
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

    def make_device_exclusive(self, mm: MmApi, addr: int, owner: object | None) -> int:
        """Make one page device-exclusive; its pfn, folio locked and referenced. EFAULT ENOMEM EOPNOTSUPP."""
        assert isinstance(mm, MmStruct)
        pfn = exclusive.make_device_exclusive(self, mm, addr, owner)
        if self.kernel.authors is not None:
            self.kernel.authors.exclusive(mm, addr, pfn)
        return pfn

    # pages behind addresses

    def get_user_pages(self, mm: MmStruct, addr: int, n: int, *, flags: int = 0) -> Pfns:
        """Take a reference on each of `n` pages, mmap_lock held. EFAULT EHWPOISON ENOMEM EINTR."""
        return gup.get_user_pages(self, mm, addr, n, flags=flags)

    def get_user_pages_unlocked(self, mm: MmStruct, addr: int, n: int, *, flags: int = 0) -> Pfns:
        """Do so taking mmap_lock."""
        return gup.get_user_pages_unlocked(self, mm, addr, n, flags=flags)

    def get_user_pages_fast(self, mm: MmStruct, addr: int, n: int, *, flags: int = 0) -> Pfns:
        """Do so without a lock as far as that goes."""
        return gup.get_user_pages_fast(self, mm, addr, n, flags=flags)

    def pin_user_pages(self, mm: MmStruct, addr: int, n: int, *, flags: int = 0) -> Pfns:
        """Pin `n` pages, mmap_lock held. EFAULT EHWPOISON ENOMEM EINTR EBUSY."""
        return gup.pin_user_pages(self, mm, addr, n, flags=flags)

    def pin_user_pages_fast(self, mm: MmStruct, addr: int, n: int, *, flags: int = 0) -> Pfns:
        """Do so without a lock as far as that goes."""
        return gup.pin_user_pages_fast(self, mm, addr, n, flags=flags)

    def unpin_user_pages(self, pfns: Pfns) -> None:
        """Undo one pin of each page."""
        gup.unpin_user_pages(self, pfns)

    # failing memory

    def memory_failure(self, pfn: int) -> None:
        """Take a page out of use whose memory has failed. ENXIO EHWPOISON EBUSY."""
        memory_failure.memory_failure(self, pfn)

    # migration

    def migrate_vma_setup(self, args: MigrateVma) -> None:
        """Collect, lock, isolate and unmap. EINVAL. mmap_lock held."""
        migrate_device.migrate_vma_setup(self, args)
        if self.kernel.authors is not None:
            self.kernel.authors.migrates(args)

    def migrate_vma_pages(self, args: MigrateVma) -> None:
        """Move the metadata of every page that still can move."""
        migrate_device.migrate_vma_pages(self, args)

    def migrate_vma_finalize(self, args: MigrateVma) -> None:
        """Map what moved at its new place and the rest at its old one."""
        migrate_device.migrate_vma_finalize(self, args)
        if self.kernel.authors is not None:
            self.kernel.authors.migrates(args, ends=True)

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

    def release_mem_region(self, start_pfn: int) -> None:
        """Give physical addresses back (release_mem_region)."""
        self.pagemaps.release_mem_region(start_pfn)

    def memremap_pages(self, pgmap: DevPagemap) -> None:
        """Create the pages. EINVAL ENOMEM."""
        self.pagemaps.memremap_pages(pgmap)

    def memunmap_pages(self, pgmap: DevPagemap) -> None:
        """Kill the reference, wait until every page is free, remove the pages."""
        self.pagemaps.memunmap_pages(pgmap)

    def page_pgmap(self, pfn: int) -> DevPagemap | None:
        """Return the pagemap of a ZONE_DEVICE page."""
        return self.pagemaps.page_pgmap(pfn)

    def get_dev_pagemap(self, pfn: int) -> DevPagemap | None:
        """Take a live reference on the pagemap of `pfn`; None once it is killed."""
        return self.pagemaps.get_dev_pagemap(pfn)

    def put_dev_pagemap(self, pgmap: DevPagemap) -> None:
        """Drop one reference."""
        self.pagemaps.put_dev_pagemap(pgmap)

    def zone_device_folio_init(self, pfn: int, pgmap: DevPagemap, order: int) -> None:
        """Make a free device folio live: locked, refcount 1."""
        self.pagemaps.zone_device_folio_init(pfn, pgmap, order)
        if self.kernel.authors is not None:
            self.kernel.authors.took_folio(pfn, _getframe(1))

    def zone_device_folios_init(self, pfns: Pfns, pgmap: DevPagemap) -> None:
        """Do so for many order-0 folios at once."""
        self.pagemaps.zone_device_folios_init(pfns, pgmap)
        if self.kernel.authors is not None:
            for pfn in pfns.tolist():
                self.kernel.authors.took_folio(pfn, _getframe(1))

    def zone_device_data(self, pfn: int) -> Any:
        """Return what set_zone_device_data stored, without the flag bit."""
        return self.pagemaps.zone_device_data(pfn)

    def set_zone_device_data(self, pfn: int | Pfns, data: object | None) -> None:
        """Store the driver's object for one page or for many; clears the flag bit."""
        self.pagemaps.set_zone_device_data(pfn, data)

    def zone_device_flag(self, pfn: int) -> bool:
        """Read the low bit of zone_device_data."""
        return self.pagemaps.zone_device_flag(pfn)

    def zone_device_flags(self, pfns: Pfns) -> Bools:
        """Read the low bits of many."""
        return self.pagemaps.zone_device_flags(pfns)

    def set_zone_device_flag(self, pfn: int | Pfns) -> None:
        """Set the low bit, leaving the object."""
        self.pagemaps.set_zone_device_flag(pfn)

    # folios

    def alloc_folio(self, order: int) -> int | None:
        """Allocate a system folio, refcount 1, unlocked."""
        return self.pages.alloc_folio(order)

    def alloc_pages_bulk(self, n: int) -> Pfns | None:
        """Allocate `n` order-0 pages, each refcount 1, unlocked; all or None."""
        return self.pages.alloc_pages_bulk(n)

    def folio_order(self, pfn: int) -> int:
        """Return the order of the folio that contains `pfn`."""
        return self.pages.folio_order(pfn)

    def folio_head(self, pfn: int) -> int:
        """Return the head pfn of the folio that contains `pfn`."""
        return self.pages.folio_head(pfn)

    def folio_orders(self, pfns: Pfns) -> npt.NDArray[np.uint8]:
        """Return the orders of the folios headed by `pfns`."""
        return self.pages.folio_orders(pfns)

    def folio_get(self, pfn: int) -> None:
        """Take a reference."""
        self.pages.folio_get(pfn)
        if self.kernel.authors is not None:
            self.kernel.authors.took_folio(pfn, _getframe(1))

    def folio_put(self, pfn: int) -> None:
        """Drop a reference; the last frees the folio."""
        self.pages.folio_put(pfn)

    def folios_put(self, pfns: Pfns) -> None:
        """Drop one reference on each of many folios."""
        self.pages.put_many(pfns)

    def folio_lock(self, pfn: int) -> None:
        """Lock; sleeps."""
        self.pages.folio_lock(pfn)

    def folio_trylock(self, pfn: int) -> bool:
        """Lock if free."""
        return self.pages.folio_trylock(pfn)

    def folios_lock_new(self, pfns: Pfns) -> None:
        """Lock many folios that nobody else can know yet."""
        self.pages.lock_new(pfns)

    def folio_unlock(self, pfn: int) -> None:
        """Unlock and wake waiters."""
        self.pages.folio_unlock(pfn)

    def folios_unlock(self, pfns: Pfns) -> None:
        """Unlock many."""
        self.pages.unlock_many(pfns)

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

    def is_device_memory(self, pfn: int) -> bool:
        """Tell whether `pfn` is private or coherent memory of a device."""
        return pfn >= self.pages.ram_pages and self.pages.zone(pfn).device

    def device_memory_mask(self, pfns: Pfns) -> Bools:
        """Tell so for many."""
        found = np.zeros(len(pfns), dtype=np.bool_)
        for zone, _, where in self.pages.split(pfns):
            if zone.device:
                found[where] = True
        return found

    # contents

    def copy_pages(self, dst: Pfns, src: Pfns) -> None:
        """Copy the contents of `src[i]` to `dst[i]`, page by page."""
        self.contents.copy(dst, src)

    def copy_folio(self, dst: int, src: int, nr_pages: int) -> None:
        """Copy `nr_pages` consecutive pages."""
        self.contents.copy_folio(dst, src, nr_pages)

    def clear_pages(self, pfns: Pfns) -> None:
        """Zero pages."""
        self.contents.clear(pfns)

    def clear_frames(self, pfns: Pfns) -> None:
        """Zero memory as an engine does, which does not know whether it is in use."""
        self.contents.clear(pfns, in_use=False)

    def clear_folio(self, pfn: int, nr_pages: int) -> None:
        """Zero consecutive pages."""
        self.contents.clear_folio(pfn, nr_pages)


if TYPE_CHECKING:

    def _is_the_api(memory: MemoryManager) -> MemoryManagerApi:
        return memory
