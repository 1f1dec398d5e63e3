"""mm/filemap.c and include/linux/fs.h:struct address_space, as of Linux 7.3.4: files that areas map, and their pages.

An `AddressSpace` is the inode with its page cache: which page holds which index, and which areas map it (i_mmap). It
lives as long as somebody has it open or an area maps it; with the last its pages go. There is no reclaim and no disk
behind it: a page that the cache has not got reads as zeros, and is in the cache from then on. No readahead either:
a fault brings in one page.
"""

from bisect import insort
from errno import EINVAL, EIO, ENOMEM
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from gpusvm.errors import KernelError, ModelError
from gpusvm.kernel import RwSemaphore
from gpusvm.mm.api import VM_FAULT_HWPOISON, VM_FAULT_OOM, VM_FAULT_SIGBUS, Pfns
from gpusvm.mm.mmu_notifier import ULONG_MAX
from gpusvm.mm.page import PG_DIRTY, PG_HWPOISON, PG_LOCKED, PG_LRU, PG_SWAPBACKED, PG_UPTODATE
from gpusvm.mm.zap import zap_vma_range

if TYPE_CHECKING:
    from gpusvm.mm.memory_manager import MemoryManager
    from gpusvm.mm.vma import Vma

__all__ = ["AddressSpace", "fault_folio", "filemap_pages", "read_page", "write_page"]


class AddressSpace:
    """Be one file: `nr_pages` long, `pages` by index, mapped by `vmas` in the order in which rmap visits them.

    `id` is negative, as struct pages name it (`Zone.mapping`). `swapbacked` says that it is shmem, `page_mkwrite` that
    the file system wants to hear of the first write to a clean page, so that shared mappings begin read-only.
    `tokens[index]` is what a read of the file must find.
    """

    __slots__ = (
        "id",
        "lock",
        "memory",
        "name",
        "nr_pages",
        "page_mkwrite",
        "pages",
        "swapbacked",
        "tokens",
        "users",
        "vmas",
    )

    moves_alone = False
    """Whether mremap moves an area of it only by itself (mremap.c:vma_multi_allowed)."""
    truncate_unmaps_always = False
    """Whether a truncate that makes it no shorter looks for mapped pages behind its end too."""

    def __init__(
        self, memory: "MemoryManager", name: str, nr_pages: int, *, swapbacked: bool, page_mkwrite: bool
    ) -> None:
        self.memory: Final = memory
        self.name: Final = name
        self.nr_pages = nr_pages
        self.swapbacked: Final = swapbacked
        self.page_mkwrite: Final = page_mkwrite
        self.lock: Final[RwSemaphore] = memory.kernel.rwsem("i_mmap")
        self.vmas: list[Vma] = []
        self.pages: dict[int, int] = {}
        self.tokens: npt.NDArray[np.int64] = np.zeros(nr_pages, np.int64)
        self.users = 1
        self.id: Final[int] = memory.rmap.add_address_space(self)

    def __repr__(self) -> str:
        """Show what a message needs."""
        return f"AddressSpace({self.name!r}, {len(self.pages)} of {self.nr_pages} pages)"

    def token(self, index: int) -> int:
        """Return what a read of one page must find; 0 behind the end."""
        return int(self.tokens[index]) if 0 <= index < len(self.tokens) else 0

    # --- who has it

    def get(self) -> None:
        """Take a reference (get_file)."""
        if not self.users:
            raise ModelError(f"{self!r} is closed and mapped nowhere")
        self.users += 1

    def put(self) -> None:
        """Drop a reference; with the last the pages go (fput, mm/truncate.c:truncate_inode_pages_final)."""
        if self.users < 1:
            raise ModelError(f"{self!r} was closed more often than opened")
        self.users -= 1
        if self.users:
            return
        for index in list(self.pages):
            self.remove(index)
        self.memory.rmap.remove_address_space(self)

    def close(self) -> None:
        """Close the file; areas that map it keep it."""
        self.put()

    # --- areas

    def link(self, vma: "Vma", after: "Vma | None" = None) -> None:
        """Add an area that maps it, with a reference; fork's come right behind the parent's.

        mm/interval_tree.c:vma_interval_tree_insert, vma_interval_tree_insert_after.
        """
        self.get()
        if after is None:
            insort(self.vmas, vma, key=_pgoff)
        else:
            self.vmas.insert(self.vmas.index(after) + 1, vma)

    def moved(self, vma: "Vma") -> None:
        """Sort an area in again whose `pgoff` or bounds changed (vma_prepare and vma_complete)."""
        self.vmas.remove(vma)
        insort(self.vmas, vma, key=_pgoff)

    def unlink(self, vma: "Vma") -> None:
        """Take out an area that goes away, and drop its reference (unlink_file_vma, remove_vma)."""
        self.vmas.remove(vma)
        self.put()

    # --- pages

    def add(self, index: int) -> int | None:
        """Put a new page of zeros, uptodate, into the cache, which holds its reference (filemap_add_folio).

        None if there is no memory; the page that somebody else has put there meanwhile, if so.
        """
        memory = self.memory
        pages = memory.pages
        pfn = pages.alloc_folio(0)
        if pfn is None:
            return None
        found = self.pages.get(index)
        if found is not None:
            pages.folio_put(pfn)
            return found
        memory.contents.clear_folio(pfn, 1)
        zone = pages.ram
        zone.m_mapping[pfn] = self.id
        zone.m_index[pfn] = index
        zone.m_flags[pfn] |= PG_UPTODATE | (PG_SWAPBACKED if self.swapbacked else 0)
        pages.folio_add_lru(pfn)
        self.pages[index] = pfn
        return pfn

    def add_many(self, indices: Pfns) -> Pfns | None:
        """Put as many new pages of zeros into the cache, at indices that have none; None if there is no memory."""
        memory = self.memory
        pfns = memory.pages.alloc_pages_bulk(len(indices))
        if pfns is None or not len(pfns):
            return pfns
        memory.contents.clear(pfns)
        zone = memory.pages.ram
        zone.mapping[pfns] = self.id
        zone.index[pfns] = indices
        zone.flags[pfns] |= np.uint16(PG_LRU | PG_UPTODATE | (PG_SWAPBACKED if self.swapbacked else 0))
        self.pages.update(zip(indices.tolist(), pfns.tolist(), strict=True))
        return pfns

    def remove(self, index: int) -> None:
        """Take a page out, unmapping it if a fault was faster; sleeps on its lock (truncate_inode_folio)."""
        pages = self.memory.pages
        pfn = self.pages[index]
        pages.folio_get(pfn)
        pages.folio_lock(pfn)
        if self.pages.get(index) == pfn:
            zone = pages.zone(pfn)
            if zone.m_mapcount[pfn - zone.base]:
                self.unmap_mapping_range(index, index + 1)
            del self.pages[index]
            zone.m_mapping[pfn - zone.base] = 0
            zone.m_flags[pfn - zone.base] &= ~PG_DIRTY
            pages.folio_put(pfn)
        pages.folio_unlock(pfn)
        pages.folio_put(pfn)

    def replace(self, old: int, new: int) -> None:
        """Let another page take the place of one, under its lock (mm/migrate.c:__folio_migrate_mapping)."""
        pages = self.memory.pages
        zone = pages.zone(old)
        i = old - zone.base
        self.pages[zone.m_index[i]] = new
        zone.m_mapping[i] = 0
        pages.folio_get(new)
        pages.folio_put(old)

    def unmap_mapping_range(self, first: int, end: int) -> None:
        """Unmap the pages [first, end) everywhere, private copies too: a CLEAR window in each area that may map some.

        mm/memory.c:unmap_mapping_range, with even_cows.
        """
        shift = self.memory.geometry.page_shift
        with self.lock.read():
            for vma in tuple(self.vmas):
                low = max(first, vma.pgoff)
                high = min(end, vma.pgoff + ((vma.end - vma.start) >> shift))
                if low < high:
                    start = vma.start + ((low - vma.pgoff) << shift)
                    zap_vma_range(self.memory, vma, start, start + ((high - low) << shift))

    def truncate(self, nr_pages: int) -> None:
        """Make the file `nr_pages` long; what lies behind is gone (ftruncate: mm/truncate.c:truncate_pagecache).

        Two CLEAR windows in each area that maps what is gone: before the pages go, and after, for copies made since.
        """
        old = self.nr_pages
        self.nr_pages = nr_pages
        if nr_pages < old or self.truncate_unmaps_always:
            self.unmap_mapping_range(nr_pages, ULONG_MAX)
            for index in sorted(index for index in self.pages if index >= nr_pages):
                self.remove(index)
            self.unmap_mapping_range(nr_pages, ULONG_MAX)
        # Until here a page that is still mapped could be read.
        self._resize_tokens(nr_pages)

    def extend(self, nr_pages: int) -> None:
        """Make the file at least `nr_pages` long, as a write behind its end does: nobody is told (i_size_write)."""
        if nr_pages > self.nr_pages:
            self.nr_pages = nr_pages
            self._resize_tokens(nr_pages)

    def _resize_tokens(self, nr_pages: int) -> None:
        tokens = np.zeros(nr_pages, np.int64)
        kept = min(len(self.tokens), nr_pages)
        tokens[:kept] = self.tokens[:kept]
        self.tokens = tokens

    # --- read(2) and write(2)

    def pread(self, index: int) -> int:
        """Read one page and check it; its token. EINVAL: behind the end. ENOMEM.

        A hole of shmem stays one (mm/shmem.c:shmem_file_read_iter).
        """
        if self.swapbacked and index not in self.pages and 0 <= index < self.nr_pages:
            return 0
        return read_page(self, index)

    def pwrite(self, index: int) -> int:
        """Write one page; its new token. EINVAL: behind the end. ENOMEM."""
        return write_page(self, index)


def _pgoff(vma: "Vma") -> int:
    return vma.pgoff


def fault_folio(mapping: AddressSpace, index: int) -> tuple[int, int]:
    """Return 0 and the page that a fault wants, locked and with a reference; else SIGBUS, OOM or HWPOISON bits.

    mm/filemap.c:filemap_fault, mm/shmem.c:shmem_fault. Sleeps with mmap_lock held, where the kernel may drop it.
    """
    pages = mapping.memory.pages
    while True:
        if not 0 <= index < mapping.nr_pages:
            return VM_FAULT_SIGBUS, -1
        pfn = mapping.pages.get(index)
        if pfn is None:
            pfn = mapping.add(index)
            if pfn is None:
                return VM_FAULT_OOM, -1
        pages.folio_get(pfn)
        pages.folio_lock(pfn)
        if mapping.pages.get(index) == pfn and index < mapping.nr_pages:
            if not pages.ram.m_flags[pfn] & PG_HWPOISON:
                return 0, pfn
            pages.folio_unlock(pfn)
            pages.folio_put(pfn)
            return VM_FAULT_HWPOISON, -1
        # Truncated or replaced while we slept.
        pages.folio_unlock(pfn)
        pages.folio_put(pfn)


def filemap_pages(mapping: AddressSpace, first: int, last: int) -> list[tuple[int, int]]:
    """List (index, pfn) of the pages that can be mapped as they are: unlocked good ones (next_uptodate_folio)."""
    pages = mapping.pages
    flags = mapping.memory.pages.ram.m_flags
    found: list[tuple[int, int]] = []
    for index in range(first, min(last, mapping.nr_pages - 1) + 1):
        pfn = pages.get(index)
        if pfn is not None and not flags[pfn] & (PG_LOCKED | PG_HWPOISON):
            found.append((index, pfn))
    return found


def _page(mapping: AddressSpace, index: int) -> int:
    error, pfn = fault_folio(mapping, index)
    if error & VM_FAULT_OOM:
        raise KernelError(ENOMEM, f"no memory for page {index} of {mapping!r}")
    if error & VM_FAULT_HWPOISON:
        raise KernelError(EIO, f"page {index} of {mapping!r} is poisoned")
    if error:
        raise KernelError(EINVAL, f"page {index} lies behind the end of {mapping!r}")
    return pfn


def read_page(mapping: AddressSpace, index: int) -> int:
    """Read one page of a file and check it; its token. EINVAL ENOMEM (filemap_read)."""
    pages = mapping.memory.pages
    pfn = _page(mapping, index)
    token = mapping.memory.contents.read_file(mapping, index, pfn)
    pages.folio_unlock(pfn)
    pages.folio_put(pfn)
    return token


def write_page(mapping: AddressSpace, index: int) -> int:
    """Write one page of a file; its new token. EINVAL ENOMEM (generic_perform_write)."""
    pages = mapping.memory.pages
    pfn = _page(mapping, index)
    token = mapping.memory.contents.write_file(mapping, index, pfn)
    zone = pages.zone(pfn)
    zone.m_flags[pfn - zone.base] |= PG_DIRTY
    pages.folio_unlock(pfn)
    pages.folio_put(pfn)
    return token
