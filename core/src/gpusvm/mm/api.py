"""What the rooms above may know of the mm: constants, plain data and protocols, no page-table type.

Follows include/linux/{hmm,migrate,memremap,mmu_notifier,mm_types}.h of Linux 7.3.4. Words keep the kernel's bit
layout. Any implementation of `MemoryManagerApi` can stand below `gpusvm.drm`: the model in this package, a trivial
one in the tests, a live one later. Addresses are bytes, `end` is exclusive unless a name says `last`; pfns are
ints; a folio is named by its head pfn; word arrays are `np.uint64`, pfn arrays `np.int64`.
"""

from collections.abc import Callable
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt
from attrs import define, field, frozen

from gpusvm.kernel import Completion, Kernel, RwSemaphore

Words = npt.NDArray[np.uint64]
Pfns = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

# include/linux/hmm.h:enum hmm_pfn_flags
HMM_PFN_VALID: Final = 1 << 63
HMM_PFN_WRITE: Final = 1 << 62
HMM_PFN_ERROR: Final = 1 << 61
HMM_PFN_DMA_MAPPED: Final = 1 << 60
HMM_PFN_P2PDMA: Final = 1 << 59
HMM_PFN_P2PDMA_BUS: Final = 1 << 58
HMM_PFN_ORDER_SHIFT: Final = 53
HMM_PFN_ORDER_MASK: Final = 0x1F << HMM_PFN_ORDER_SHIFT
HMM_PFN_PFN_MASK: Final = (1 << HMM_PFN_ORDER_SHIFT) - 1
HMM_PFN_STICKY: Final = HMM_PFN_DMA_MAPPED | HMM_PFN_P2PDMA | HMM_PFN_P2PDMA_BUS
HMM_PFN_REQ_FAULT: Final = HMM_PFN_VALID
HMM_PFN_REQ_WRITE: Final = HMM_PFN_WRITE

# include/linux/migrate.h: the words of migrate_vma.src and .dst
MIGRATE_PFN_VALID: Final = 1 << 0
MIGRATE_PFN_MIGRATE: Final = 1 << 1
MIGRATE_PFN_WRITE: Final = 1 << 3
MIGRATE_PFN_COMPOUND: Final = 1 << 4
MIGRATE_PFN_SHIFT: Final = 6

# include/linux/migrate.h:enum migrate_vma_direction
MIGRATE_VMA_SELECT_SYSTEM: Final = 1
MIGRATE_VMA_SELECT_DEVICE_PRIVATE: Final = 2
MIGRATE_VMA_SELECT_DEVICE_COHERENT: Final = 4
MIGRATE_VMA_SELECT_COMPOUND: Final = 8

# include/linux/mmu_notifier.h:enum mmu_notifier_event
MMU_NOTIFY_UNMAP: Final = 0
MMU_NOTIFY_CLEAR: Final = 1
MMU_NOTIFY_PROTECTION_VMA: Final = 2
MMU_NOTIFY_PROTECTION_PAGE: Final = 3
MMU_NOTIFY_SOFT_DIRTY: Final = 4
MMU_NOTIFY_RELEASE: Final = 5
MMU_NOTIFY_MIGRATE: Final = 6
MMU_NOTIFY_EXCLUSIVE: Final = 7
MMU_NOTIFY_NAMES: Final = (
    "UNMAP",
    "CLEAR",
    "PROTECTION_VMA",
    "PROTECTION_PAGE",
    "SOFT_DIRTY",
    "RELEASE",
    "MIGRATE",
    "EXCLUSIVE",
)
MMU_NOTIFIER_RANGE_BLOCKABLE: Final = 1 << 0

# include/linux/memremap.h:enum memory_type
MEMORY_DEVICE_PRIVATE: Final = 1
MEMORY_DEVICE_COHERENT: Final = 2
MEMORY_DEVICE_FS_DAX: Final = 3
MEMORY_DEVICE_GENERIC: Final = 4
MEMORY_DEVICE_PCI_P2PDMA: Final = 5

# include/linux/pci-p2pdma.h:enum pci_p2pdma_map_type
PCI_P2PDMA_MAP_UNKNOWN: Final = 0
PCI_P2PDMA_MAP_NONE: Final = 1
PCI_P2PDMA_MAP_NOT_SUPPORTED: Final = 2
PCI_P2PDMA_MAP_BUS_ADDR: Final = 3
PCI_P2PDMA_MAP_THRU_HOST_BRIDGE: Final = 4

# include/linux/dma-mapping.h
DMA_MAPPING_ERROR: Final = (1 << 64) - 1

# include/linux/mm.h: VMA flags (bits of our own; names as the kernel's)
VM_READ: Final = 1 << 0
VM_WRITE: Final = 1 << 1
VM_EXEC: Final = 1 << 2
VM_SHARED: Final = 1 << 3
VM_MAYREAD: Final = 1 << 4
VM_MAYWRITE: Final = 1 << 5
VM_MAYEXEC: Final = 1 << 6
VM_MAYSHARE: Final = 1 << 7
VM_IO: Final = 1 << 8
VM_PFNMAP: Final = 1 << 9
VM_MIXEDMAP: Final = 1 << 10
VM_DONTEXPAND: Final = 1 << 11
VM_HUGETLB: Final = 1 << 12
VM_HUGEPAGE: Final = 1 << 13
VM_NOHUGEPAGE: Final = 1 << 14
VM_DONTCOPY: Final = 1 << 15
VM_WIPEONFORK: Final = 1 << 16
VM_UFFD_MISSING: Final = 1 << 17
VM_SPECIAL: Final = VM_IO | VM_DONTEXPAND | VM_PFNMAP | VM_MIXEDMAP
# What a page fault of the child cannot bring back (the kernel's also has VM_UFFD_WP and VM_MAYBE_GUARD).
VM_COPY_ON_FORK: Final = VM_PFNMAP | VM_MIXEDMAP

# include/uapi/asm-generic/mman-common.h
PROT_NONE: Final = 0
PROT_READ: Final = 1
PROT_WRITE: Final = 2
PROT_EXEC: Final = 4

# include/uapi/linux/mman.h
MREMAP_MAYMOVE: Final = 1
MREMAP_FIXED: Final = 2
MREMAP_DONTUNMAP: Final = 4

# include/uapi/asm-generic/mman-common.h: advice for madvise, as far as it is modelled
MADV_NORMAL: Final = 0
MADV_DONTNEED: Final = 4
MADV_FREE: Final = 8
MADV_DONTFORK: Final = 10
MADV_DOFORK: Final = 11
MADV_HUGEPAGE: Final = 14
MADV_NOHUGEPAGE: Final = 15
MADV_WIPEONFORK: Final = 18
MADV_KEEPONFORK: Final = 19
MADV_COLLAPSE: Final = 25
MADV_GUARD_INSTALL: Final = 102
MADV_GUARD_REMOVE: Final = 103

# include/linux/mm_types.h:enum vm_fault_reason (bits of our own; names as the kernel's without the VM_FAULT_ prefix
# kept)
VM_FAULT_OOM: Final = 1 << 0
VM_FAULT_SIGBUS: Final = 1 << 1
VM_FAULT_MAJOR: Final = 1 << 2
VM_FAULT_HWPOISON: Final = 1 << 4
VM_FAULT_HWPOISON_LARGE: Final = 1 << 5
VM_FAULT_SIGSEGV: Final = 1 << 6
VM_FAULT_NOPAGE: Final = 1 << 8
VM_FAULT_RETRY: Final = 1 << 10
VM_FAULT_FALLBACK: Final = 1 << 11
VM_FAULT_COMPLETED: Final = 1 << 14
VM_FAULT_ERROR: Final = (
    VM_FAULT_OOM | VM_FAULT_SIGBUS | VM_FAULT_SIGSEGV | VM_FAULT_HWPOISON | VM_FAULT_HWPOISON_LARGE | VM_FAULT_FALLBACK
)

# include/linux/mm_types.h:enum fault_flag
FAULT_FLAG_WRITE: Final = 1 << 0
FAULT_FLAG_ALLOW_RETRY: Final = 1 << 2
FAULT_FLAG_KILLABLE: Final = 1 << 4
FAULT_FLAG_USER: Final = 1 << 6
FAULT_FLAG_REMOTE: Final = 1 << 7
FAULT_FLAG_VMA_LOCK: Final = 1 << 12
FAULT_FLAG_UNSHARE: Final = 1 << 10

# include/uapi/asm-generic/errno.h: Python's errno has no name for it.
EHWPOISON: Final = 133

# include/linux/mm_types.h: how get_user_pages looks (bits of our own). GET, PIN and UNLOCKABLE are its own to set.
FOLL_WRITE: Final = 1 << 0
FOLL_GET: Final = 1 << 1
FOLL_DUMP: Final = 1 << 2
FOLL_FORCE: Final = 1 << 3
FOLL_HWPOISON: Final = 1 << 4
FOLL_LONGTERM: Final = 1 << 5
FOLL_SPLIT_PMD: Final = 1 << 6
FOLL_PIN: Final = 1 << 7
FOLL_UNLOCKABLE: Final = 1 << 8


def migrate_pfns(pfns: Pfns) -> Words:
    """Return the words that give these pages to a migration (include/linux/migrate.h:migrate_pfn)."""
    return pfns.astype(np.uint64) << _MIGRATE_SHIFT | _MIGRATE_VALID


def migrate_pfns_to_pages(words: Words) -> Pfns:
    """Return the pages that words of a migration name (include/linux/migrate.h:migrate_pfn_to_page).

    Of a word without a page it returns nothing useful.
    """
    return (words >> _MIGRATE_SHIFT).astype(np.int64)


_MIGRATE_SHIFT: Final = np.uint64(MIGRATE_PFN_SHIFT)
_MIGRATE_VALID: Final = np.uint64(MIGRATE_PFN_VALID)


@frozen(kw_only=True)
class Geometry:
    """Give the sizes that everything else derives from.

    `page_shift` bits per page, `pmd_order` so that a PMD maps `1 << pmd_order` pages. The real values are the
    defaults; tests use a PMD order of 2 or 3.
    """

    page_shift: int = 12
    pmd_order: int = 9
    page_size: int = field(init=False)
    pmd_nr: int = field(init=False)
    pmd_shift: int = field(init=False)
    pmd_size: int = field(init=False)

    def __attrs_post_init__(self) -> None:
        """Derive the sizes once; they are read on every fault."""
        object.__setattr__(self, "page_size", 1 << self.page_shift)
        object.__setattr__(self, "pmd_nr", 1 << self.pmd_order)
        object.__setattr__(self, "pmd_shift", self.page_shift + self.pmd_order)
        object.__setattr__(self, "pmd_size", 1 << (self.page_shift + self.pmd_order))


class VmaApi(Protocol):
    """What the rooms above read of a struct vm_area_struct."""

    start: int
    end: int
    flags: int

    @property
    def is_anonymous(self) -> bool:
        """Tell whether the VMA has no vm_ops (include/linux/mm.h:vma_is_anonymous)."""


class MmApi(Protocol):
    """What the rooms above may do with a struct mm_struct."""

    name: str
    mmap_lock: RwSemaphore

    def mmget_not_zero(self) -> bool:
        """Take an address-space reference unless the last is gone."""

    def mmget(self) -> None:
        """Take an address-space reference."""

    def mmput(self) -> None:
        """Drop an address-space reference; the last runs exit_mmap."""

    def mmput_async(self) -> None:
        """Drop an address-space reference; with the last, a worker runs exit_mmap."""

    def mmgrab(self) -> None:
        """Take a reference on the structure."""

    def mmdrop(self) -> None:
        """Drop a reference on the structure."""

    def mmap(self, addr: int | None, length: int, prot: int, *, flags: int = 0) -> int:
        """Map memory and return where; `flags` are VM_ flags. EINVAL ENOMEM. Takes mmap_lock for write."""

    def munmap(self, start: int, length: int) -> None:
        """Unmap a range. EINVAL ENOMEM. Takes mmap_lock for write."""

    def find_vma(self, addr: int) -> VmaApi | None:
        """Return the first VMA with `end > addr`, which may begin behind `addr`. mmap_lock held."""

    def vma_lookup(self, addr: int) -> VmaApi | None:
        """Return the VMA that contains `addr`. mmap_lock held."""

    def find_vma_intersection(self, start: int, end: int) -> VmaApi | None:
        """Return the first VMA that overlaps [start, end). mmap_lock held."""


@define
class MmuNotifierRange:
    """Describe one invalidation (include/linux/mmu_notifier.h:struct mmu_notifier_range)."""

    mm: MmApi
    start: int
    end: int
    event: int
    owner: object | None = None
    flags: int = MMU_NOTIFIER_RANGE_BLOCKABLE

    @property
    def blockable(self) -> bool:
        """Tell whether callbacks may sleep (mmu_notifier_range_blockable)."""
        return bool(self.flags & MMU_NOTIFIER_RANGE_BLOCKABLE)


class IntervalNotifier(Protocol):
    """A live interval subscription (struct mmu_interval_notifier); `last` is inclusive, `invalidate_seq` always odd."""

    start: int
    last: int
    invalidate_seq: int
    ops: "IntervalNotifierOps"

    @property
    def mm(self) -> MmApi:
        """Return the address space that it watches."""


class IntervalNotifierOps(Protocol):
    """The callbacks of an interval subscription (struct mmu_interval_notifier_ops)."""

    def invalidate(self, sub: IntervalNotifier, range_: MmuNotifierRange, cur_seq: int) -> bool:
        """Drop what mirrors the range; False only if it could not and the range is not blockable."""


class MmuNotifier(Protocol):
    """A classic subscription to a whole mm (struct mmu_notifier with its ops); a None op is a NULL pointer."""

    invalidate_range_start: Callable[[MmuNotifierRange], int] | None
    invalidate_range_end: Callable[[MmuNotifierRange], None] | None
    release: Callable[[MmApi], None] | None


@define
class HmmRange:
    """Ask hmm_range_fault for a range (include/linux/hmm.h:struct hmm_range); `hmm_pfns` has one word a page."""

    notifier: IntervalNotifier
    start: int
    end: int
    hmm_pfns: Words
    default_flags: int = 0
    pfn_flags_mask: int = 0
    dev_private_owner: object | None = None
    notifier_seq: int = 0


@define
class MigrateVma:
    """Carry one migration of a VMA range (include/linux/migrate.h:struct migrate_vma); one src and dst word a page."""

    vma: VmaApi | None
    start: int
    end: int
    src: Words
    dst: Words
    pgmap_owner: object | None = None
    flags: int = 0
    fault_page: int | None = None
    cpages: int = 0
    npages: int = 0


@define
class VmFault:
    """Describe a CPU fault to `migrate_to_ram` (struct vm_fault); `pte_level` is `vmf->pte != NULL`."""

    mm: MmApi
    vma: VmaApi
    address: int
    page: int
    pte_level: bool
    flags: int = 0


class DevPagemapOps(Protocol):
    """The callbacks of a dev_pagemap (include/linux/memremap.h:struct dev_pagemap_ops).

    `folio_split(head, tail)` may be None. `folios_free(pfns)` may be None; it is ours: what `folio_free` does, for many
    order-0 folios at once, called in its place when the pages of a migrated block are freed together.
    A driver whose device pages are dummies has `backing_of(pfns)` too, which says which pages hold their data.
    """

    @property
    def folio_split(self) -> Callable[[int, int | None], None] | None:
        """Follow the split of a device folio; None ends it."""

    @property
    def folios_free(self) -> Callable[[Pfns], None] | None:
        """Take many order-0 folios back."""

    def migrate_to_ram(self, vmf: VmFault) -> int:
        """Bring the faulting page home; 0 or VM_FAULT_ERROR bits. mmap_lock read held, folio locked and referenced."""

    def folio_free(self, pfn: int, order: int) -> None:
        """Take back a device folio whose refcount reached 0. May run in atomic context: must not sleep."""


class DevicePower(Protocol):
    """What a checker asks of a device's runtime PM; ours. `excuse` names the quirk by which it may break a promise."""

    name: str
    state: str
    promised: bool
    excuse: str | None

    @property
    def is_asleep(self) -> bool:
        """Tell whether its memory cannot be reached."""


@define(eq=False)
class DevPagemap:
    """Hold device memory's struct pages (include/linux/memremap.h:struct dev_pagemap).

    `container` is the object that embeds it, for container_of. `ref` counts one per allocated page and one until
    killed. `power` is the device's, where a driver has that.
    """

    type: int
    start_pfn: int
    nr_pages: int
    owner: object | None
    ops: DevPagemapOps
    container: Any = None
    ref: int = 0
    killed: bool = False
    done: Completion | None = None
    power: DevicePower | None = None


class HmmDmaIova(Protocol):
    """A reservation of device addresses (struct dma_iova_state)."""

    addr: int


class HmmDmaDevice(Protocol):
    """What hmm_dma_map needs of the device that does DMA (struct device, as the DMA API sees it)."""

    name: str

    @property
    def needs_sync(self) -> bool:
        """Tell whether caches or bounce buffers have to be synchronised (not dma_skip_sync)."""

    @property
    def addressing_limited(self) -> bool:
        """Tell whether the device cannot address all memory (dma_addressing_limited)."""

    @property
    def need_unmap(self) -> bool:
        """Tell whether what is mapped has to be unmapped (dma_need_unmap)."""

    def iova_try_alloc(self, size_bytes: int) -> Any:
        """Reserve device addresses: a `HmmDmaIova`, or None if the device has none to reserve."""

    def iova_free(self, state: Any) -> None:
        """Give a reservation back in which nothing is linked (dma_iova_free)."""

    def iova_link_at(self, state: Any, pfn: int, offset: int, size: int, *, mmio: bool) -> None:
        """Link bytes from page `pfn` on at an offset of a reservation (dma_iova_link). KernelError."""

    def iova_sync(self, state: Any, offset: int, size: int) -> None:
        """Let the IOMMU see what was linked (dma_iova_sync). KernelError."""

    def iova_unlink(self, state: Any, offset: int, size: int) -> None:
        """Unlink it (dma_iova_unlink)."""

    def map_phys(self, pfn: int, size: int, *, mmio: bool) -> int:
        """Map bytes from page `pfn` on and return the device's address (dma_map_phys). KernelError."""

    def unmap_phys(self, addr: int, size: int) -> None:
        """Unmap it (dma_unmap_phys)."""

    def p2pdma_map_type(self, provider: DevPagemap) -> int:
        """Tell how the device reaches the memory of a peer (PCI_P2PDMA_MAP_ of pci_p2pdma_map_type)."""

    def p2pdma_bus_offset(self, provider: DevPagemap) -> int:
        """Return what to add to a physical address of a peer for its bus address (p2pdma_provider.bus_offset)."""


class ContentsApi(Protocol):
    """What memory holds, as a device that accesses it by its own page table needs it."""

    def read(self, mm: MmApi, vpn: int, pfn: int) -> int:
        """Read the page `pfn` as `vpn` of `mm`, and check it; the token that was found."""

    def write(self, mm: MmApi, vpn: int, pfn: int, *, writer: int = 0) -> int:
        """Write it; the new token."""

    def read_many(self, mm: MmApi, vpns: Pfns, pfns: Pfns, *, quirk: str | None = None) -> None:
        """Read the pages `pfns` as `vpns` of `mm`, and check them; `quirk` names what left the mappings stale."""

    def write_many(
        self,
        mm: MmApi,
        vpns: Pfns,
        pfns: Pfns,
        *,
        writer: int = 0,
        quirk: str | None = None,
        tokens: Pfns | None = None,
    ) -> None:
        """Write them, in order: a new version each, or what `tokens` say."""

    def new_tokens(self, n: int, *, writer: int = 0) -> Pfns:
        """Make tokens that no page holds yet."""

    def token(self, pfn: int) -> int:
        """Return the token that stands for what one page holds."""

    def taint_pfns(self, pfns: Pfns, quirk: str) -> None:
        """Attribute what these pages hold, and their copies, until they are written again, to a quirk."""


class Shrinker(Protocol):
    """A cache that can give memory back (struct shrinker)."""

    def count_objects(self) -> int:
        """Return how many objects could be freed. Must not sleep."""

    def scan_objects(self, nr_to_scan: int) -> int:
        """Free that many, more or less; how many it were."""


class ShrinkersApi(Protocol):
    """The shrinkers of a system (mm/shrinker.c)."""

    def register(self, shrinker: Shrinker) -> None:
        """Have a cache asked from now on (shrinker_register)."""

    def free(self, shrinker: Shrinker) -> None:
        """Ask it no more (shrinker_free)."""


class MemoryManagerApi(Protocol):
    """The mm subsystem as the rooms above may use it. Every error is a KernelError with the kernel's errno."""

    kernel: Kernel
    geometry: Geometry
    mirrors: list[object]
    """What devices hold of address spaces: their page tables, for whoever checks those."""

    @property
    def contents(self) -> ContentsApi: ...

    @property
    def zero_pfn(self) -> int:
        """The shared page of zeros."""

    @property
    def shrinkers(self) -> ShrinkersApi:
        """The caches that are asked for memory when it is short."""

    # interval notifiers, mm/mmu_notifier.c
    def mmu_interval_notifier_insert(
        self, mm: MmApi, start: int, length: int, ops: IntervalNotifierOps
    ) -> IntervalNotifier:
        """Subscribe to [start, start+length). EOVERFLOW, EINVAL. May take mmap_lock for write the first time."""

    def mmu_interval_notifier_insert_locked(
        self, mm: MmApi, start: int, length: int, ops: IntervalNotifierOps
    ) -> IntervalNotifier:
        """Subscribe with mmap_lock held for write."""

    def mmu_interval_notifier_remove(self, sub: IntervalNotifier) -> None:
        """Unsubscribe; sleeps until no callback runs."""

    def mmu_interval_read_begin(self, sub: IntervalNotifier) -> int:
        """Start a collision-retry section; sleeps while an invalidation is running."""

    def mmu_interval_read_retry(self, sub: IntervalNotifier, seq: int) -> bool:
        """Tell, under the driver's lock, whether the section must start over."""

    def mmu_interval_check_retry(self, sub: IntervalNotifier, seq: int) -> bool:
        """Tell without a lock whether it must surely start over; False is not conclusive."""

    def mmu_interval_set_seq(self, sub: IntervalNotifier, cur_seq: int) -> None:
        """Make an invalidation visible to readers, under the driver's lock."""

    def mmu_notifier_register(self, notifier: MmuNotifier, mm: MmApi) -> None:
        """Subscribe a classic notifier to the whole mm. Takes mmap_lock for write."""

    def mmu_notifier_unregister(self, notifier: MmuNotifier, mm: MmApi) -> None:
        """Unsubscribe; calls release if the mm has not."""

    # mm/memory.c
    def vm_insert_page(self, vma: VmaApi, addr: int, pfn: int) -> None:
        """Map a driver's page into its VM_MIXEDMAP area. EFAULT EINVAL EBUSY ENOMEM. mmap_lock held."""

    # mm/hmm.c
    def hmm_range_fault(self, range_: HmmRange) -> None:
        """Snapshot or fault a range, mmap_lock held. EBUSY EFAULT EPERM ENOMEM EINVAL."""

    def hmm_range_fault_unlocked_timeout(self, range_: HmmRange, timeout_ns: int) -> None:
        """Do so taking the lock itself; EBUSY when the time (0 = forever) is over, EINTR."""

    # mm/migrate_device.c
    def migrate_vma_setup(self, args: MigrateVma) -> None:
        """Collect, lock, isolate and unmap. EINVAL. mmap_lock held from here to finalize."""

    def migrate_vma_pages(self, args: MigrateVma) -> None:
        """Move the metadata of every page that still can move; clear MIGRATE on the others."""

    def migrate_vma_finalize(self, args: MigrateVma) -> None:
        """Map what moved at its new place and the rest at its old one."""

    def migrate_device_pfns(self, src: Words, npages: int) -> None:
        """Collect by pfn: pfns in, words out. No mmap_lock."""

    def migrate_device_range(self, src: Words, start_pfn: int, npages: int) -> None:
        """Collect `npages` consecutive pfns into `src`."""

    def migrate_device_pages(self, src: Words, dst: Words, npages: int) -> None:
        """As migrate_vma_pages, without a VMA."""

    def migrate_device_finalize(self, src: Words, dst: Words, npages: int) -> None:
        """As migrate_vma_finalize, without a VMA."""

    # mm/memremap.c
    def request_free_mem_region(self, nr_pages: int) -> int:
        """Reserve fake physical address space; the first pfn."""

    def release_mem_region(self, start_pfn: int) -> None:
        """Give back what request_free_mem_region returned, where no pages are."""

    def memremap_pages(self, pgmap: DevPagemap) -> None:
        """Create the pages. EINVAL ENOMEM."""

    def memunmap_pages(self, pgmap: DevPagemap) -> None:
        """Kill the reference, wait until every page is free, remove the pages."""

    def page_pgmap(self, pfn: int) -> DevPagemap | None:
        """Return the pagemap of a ZONE_DEVICE page."""

    def get_dev_pagemap(self, pfn: int) -> DevPagemap | None:
        """Take a live reference on the pagemap of `pfn`; None once it is killed."""

    def put_dev_pagemap(self, pgmap: DevPagemap) -> None:
        """Drop one reference."""

    def zone_device_folio_init(self, pfn: int, pgmap: DevPagemap, order: int) -> None:
        """Make a free device folio live: locked, refcount 1."""

    def zone_device_folios_init(self, pfns: Pfns, pgmap: DevPagemap) -> None:
        """Do so for many order-0 folios at once."""

    def zone_device_data(self, pfn: int) -> Any:  # the driver's object
        """Return what set_zone_device_data stored, without the flag bit."""

    def set_zone_device_data(self, pfn: int | Pfns, data: object | None) -> None:
        """Store the driver's object for one page or for many; clears the flag bit."""

    def zone_device_flag(self, pfn: int) -> bool:
        """Read the low bit of zone_device_data."""

    def zone_device_flags(self, pfns: Pfns) -> Bools:
        """Read the low bits of many."""

    def set_zone_device_flag(self, pfn: int | Pfns) -> None:
        """Set the low bit, leaving the object."""

    # mm/rmap.c
    def make_device_exclusive(self, mm: MmApi, addr: int, owner: object | None) -> int:
        """Make one page device-exclusive; the pfn, folio locked and referenced. EFAULT EOPNOTSUPP EINTR ENOMEM."""

    # folios
    def alloc_folio(self, order: int) -> int | None:
        """Allocate a system folio, refcount 1, unlocked; None when memory (or an injected failure) says so."""

    def alloc_pages_bulk(self, n: int) -> Pfns | None:
        """Allocate `n` order-0 pages, each refcount 1, unlocked; all or None."""

    def folio_order(self, pfn: int) -> int:
        """Return the order of the folio that contains `pfn`."""

    def folio_head(self, pfn: int) -> int:
        """Return the head pfn of the folio that contains `pfn`."""

    def folio_orders(self, pfns: Pfns) -> npt.NDArray[np.uint8]:
        """Return the orders of the folios headed by `pfns`."""

    def folio_get(self, pfn: int) -> None:
        """Take a reference."""

    def folio_put(self, pfn: int) -> None:
        """Drop a reference; the last frees the folio."""

    def folios_put(self, pfns: Pfns) -> None:
        """Drop one reference on each of many folios."""

    def folio_lock(self, pfn: int) -> None:
        """Lock; sleeps."""

    def folio_trylock(self, pfn: int) -> bool:
        """Lock if free."""

    def folios_lock_new(self, pfns: Pfns) -> None:
        """Lock many folios that nobody else can know yet (destinations of a migration)."""

    def folio_unlock(self, pfn: int) -> None:
        """Unlock and wake waiters."""

    def folios_unlock(self, pfns: Pfns) -> None:
        """Unlock many."""

    def is_zone_device(self, pfn: int) -> bool:
        """Tell whether `pfn` belongs to a device region."""

    def is_device_private(self, pfn: int) -> bool:
        """Tell whether `pfn` is MEMORY_DEVICE_PRIVATE (folio_is_device_private)."""

    def device_private_mask(self, pfns: Pfns) -> Bools:
        """Tell so for many."""

    def is_device_memory(self, pfn: int) -> bool:
        """Tell whether `pfn` is private or coherent memory of a device."""

    def device_memory_mask(self, pfns: Pfns) -> Bools:
        """Tell so for many."""

    # contents
    def copy_pages(self, dst: Pfns, src: Pfns) -> None:
        """Copy the contents of `src[i]` to `dst[i]`, page by page."""

    def copy_folio(self, dst: int, src: int, nr_pages: int) -> None:
        """Copy `nr_pages` consecutive pages."""

    def clear_pages(self, pfns: Pfns) -> None:
        """Zero pages."""

    def clear_frames(self, pfns: Pfns) -> None:
        """Zero memory as an engine does, which does not know whether it is in use."""

    def clear_folio(self, pfn: int, nr_pages: int) -> None:
        """Zero consecutive pages."""
