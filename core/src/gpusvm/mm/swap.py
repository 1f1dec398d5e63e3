"""mm/swapfile.c and mm/vmscan.c, as of Linux 7.3.4: slots that hold pages, and how a page gets into one.

Nothing here decides that memory is short: `swap_out` is for whoever wants a page gone, tests above all. There is no
swap cache: a slot holds what the page held, and every mapping that comes back reads it for itself. Swap entries matter
to devices as something that is not there: collecting skips them, hmm_range_fault faults them in.
"""

from errno import EAGAIN, EBUSY, EFAULT, EINVAL
from typing import TYPE_CHECKING, Final

from gpusvm.errors import KernelError, ModelError
from gpusvm.mm.contents import Contents
from gpusvm.mm.page import PG_LRU, PageMap
from gpusvm.mm.pgtable import PteTable
from gpusvm.mm.split import split_folio
from gpusvm.mm.try_to_unmap import try_to_unmap

if TYPE_CHECKING:
    from gpusvm.mm.memory_manager import MemoryManager
    from gpusvm.mm.mm_struct import MmStruct

__all__ = ["Swap", "swap_out"]


class Swap:
    """Keep the slots: what each holds, as a token, and how many swap entries name it."""

    __slots__ = ("_contents", "_counts", "_next", "_pages", "_tokens")

    def __init__(self, pages: PageMap, contents: Contents) -> None:
        self._pages: Final = pages
        self._contents: Final = contents
        self._tokens: dict[int, int] = {}
        self._counts: dict[int, int] = {}
        self._next = 1

    def alloc(self, pfn: int) -> int:
        """Take a slot for a page and write the page to it; no entry names it yet (folio_alloc_swap)."""
        slot = self._next
        self._next += 1
        self._tokens[slot] = self._contents.token(pfn)
        self._counts[slot] = 0
        return slot

    def count(self, slot: int) -> int:
        """Return how many entries name a slot (swp_swapcount)."""
        return self._counts[slot]

    def dup(self, slot: int) -> None:
        """Count one more entry (swap_duplicate)."""
        self._counts[slot] += 1

    def free(self, slot: int) -> None:
        """Count one entry less; a slot that none names is free again (swap_free)."""
        if self._counts[slot] < 1:
            raise ModelError(f"swap slot {slot} is freed more often than named")
        self._counts[slot] -= 1
        self.drop_unused(slot)

    def drop_unused(self, slot: int) -> None:
        """Free a slot that no entry names."""
        if not self._counts[slot]:
            del self._counts[slot]
            del self._tokens[slot]

    def write(self, slot: int, pfn: int) -> None:
        """Write a page to a slot."""
        self._tokens[slot] = self._contents.token(pfn)

    def read(self, slot: int, pfn: int) -> None:
        """Read a slot into a page."""
        self._pages.ram.m_token[pfn] = self._tokens[slot]

    @property
    def used(self) -> dict[int, int]:
        """Return the slots in use and how many entries name each."""
        return dict(self._counts)


def swap_out(memory: "MemoryManager", mm: "MmStruct", address: int) -> int:
    """Swap one mapped page out, in every address space that maps it, as reclaim does; return its slot.

    mmap_lock is not needed. EFAULT: no page is mapped there; EINVAL: not a page of anonymous system memory; EBUSY: it
    is locked, or not on the LRU; EAGAIN: somebody else holds it, so that it stays (the kernel unmaps it and keeps it
    in the swap cache). A large folio is split first (shrink_folio_list). One CLEAR window in every area that maps it.
    """
    pages = memory.pages
    kernel = memory.kernel
    kernel.step()
    entry = mm.page_table.lookup(address)
    i = (address >> memory.geometry.page_shift) & (memory.geometry.pmd_nr - 1)
    if entry is None or (isinstance(entry, PteTable) and not (entry.present | entry.devexcl) & ~entry.zero & 1 << i):
        raise KernelError(EFAULT, f"{mm.name} maps no page at {address:#x}")
    page = entry.m_pfn[i] if isinstance(entry, PteTable) else entry.pfn + i
    zone = pages.zone(page)
    if zone.pgmap is not None or not pages.folio_test_anon(page):
        raise KernelError(EINVAL, f"the page at {address:#x} is not anonymous system memory")
    head = pages.folio_head(page)
    if pages.lru is not None:
        pages.lru.drain()  # madvise_pageout
    if not zone.m_flags[head] & PG_LRU or not pages.folio_trylock(head):
        raise KernelError(EBUSY, f"page {page:#x} is locked or not on the LRU")
    pages.folio_get(head)
    if zone.m_order[head]:
        error = split_folio(memory, head, lock_at=page)
        if error:
            pages.folio_unlock(head)
            pages.folio_put(head)
            raise KernelError(error, f"folio {head:#x} cannot be split")
    slot = -1
    if zone.m_refcount[page] == zone.m_mapcount[page] + 1:
        zone.m_flags[page] &= ~PG_LRU  # folio_isolate_lru
        slot = memory.swap.alloc(page)
        # The swap cache's, until all entries name the slot: one of them may be swapped in before the next is made.
        memory.swap.dup(slot)
        try_to_unmap(memory, page, slot=slot)
        memory.swap.free(slot)
        if zone.m_mapcount[page]:
            zone.m_flags[page] |= PG_LRU
            slot = -1
    pages.folio_unlock(page)
    pages.folio_put(page)
    if slot < 0:
        raise KernelError(EAGAIN, f"somebody else holds page {page:#x}")
    return slot
