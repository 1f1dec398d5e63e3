"""mm/hugetlb.c, as of Linux 7.3.4: memory in huge pages from a pool of their own, mapped by PMDs and nothing smaller.

One size exists, that of a PMD. An mmap reserves its pages in the pool, so that its own faults cannot fail; a child that
writes a page it shares may find the pool empty, which is SIGBUS. Huge pages are in no rss, on no LRU, never split and
never collected by migrate_vma. Left out: a parent that takes a page away from its child when the pool is empty
(unmap_ref_private), surplus pages, shared page tables, memory failure.
"""

from errno import ENOMEM
from typing import TYPE_CHECKING, Final

from gpusvm.errors import KernelError
from gpusvm.mm.api import (
    FAULT_FLAG_WRITE,
    MMU_NOTIFY_CLEAR,
    MMU_NOTIFY_PROTECTION_VMA,
    VM_FAULT_SIGBUS,
    VM_MAYSHARE,
    VM_SHARED,
    VM_WRITE,
)
from gpusvm.mm.filemap import AddressSpace
from gpusvm.mm.mmu_notifier import notifier_end, notifier_start
from gpusvm.mm.page import PG_ANON_EXCLUSIVE, PG_HUGETLB, PG_LRU, PG_SWAPBACKED, PG_UPTODATE, POISON_FREED
from gpusvm.mm.pgtable import PmdKind, PmdLeaf
from gpusvm.mm.vma import anon_vma_prepare

if TYPE_CHECKING:
    from gpusvm.mm.memory_manager import MemoryManager
    from gpusvm.mm.mm_struct import MmStruct
    from gpusvm.mm.vma import Vma

__all__ = [
    "HugetlbFile",
    "HugetlbPool",
    "copy_hugetlb_page_range",
    "hugetlb_change_protection",
    "hugetlb_fault",
    "move_hugetlb_page_tables",
]

DONE: Final = 0


class HugetlbPool:
    """Keep the huge pages that are set aside: `free` ones, of which `reserved` are promised (struct hstate)."""

    __slots__ = ("free", "memory", "nr", "reserved")

    def __init__(self, memory: "MemoryManager") -> None:
        self.memory: Final = memory
        self.nr = 0
        self.free: list[int] = []
        self.reserved = 0

    def set_nr(self, nr: int) -> int:
        """Have `nr` huge pages, or as near as memory and use allow; how many there are (/proc/sys/vm/nr_hugepages)."""
        pages = self.memory.pages
        zone = pages.ram
        while self.nr < nr:
            pfn = pages.alloc_folio(self.memory.geometry.pmd_order)
            if pfn is None:
                break
            zone.m_refcount[pfn] = 0
            zone.m_flags[pfn] |= PG_HUGETLB
            self.free.append(pfn)
            self.nr += 1
        while self.nr > nr and len(self.free) > self.reserved:
            pfn = self.free.pop()
            zone.m_flags[pfn] &= ~PG_HUGETLB
            zone.m_refcount[pfn] = 1
            pages.folio_put(pfn)
            self.nr -= 1
        return self.nr

    def reserve(self, n: int) -> None:
        """Promise `n` pages. ENOMEM (hugetlb_reserve_pages)."""
        if len(self.free) - self.reserved < n:
            raise KernelError(ENOMEM, f"{n} huge pages, of which {len(self.free) - self.reserved} are left")
        self.reserved += n

    def take(self, *, reserved: bool) -> int | None:
        """Take a page, with one reference, cleared; a promised one, or one that is not (dequeue_hugetlb_folio)."""
        if not reserved and len(self.free) <= self.reserved:
            return None
        if reserved:
            self.reserved -= 1
        pfn = self.free.pop()
        memory = self.memory
        memory.pages.ram.m_refcount[pfn] = 1
        memory.contents.clear_folio(pfn, memory.geometry.pmd_nr)
        return pfn

    def give_back(self, pfn: int) -> None:
        """Take a page back whose last reference went (free_huge_folio)."""
        nr = self.memory.geometry.pmd_nr
        zone = self.memory.pages.ram
        zone.m_mapping[pfn] = 0
        zone.flags[pfn : pfn + nr] = 0
        zone.m_flags[pfn] = PG_HUGETLB
        zone.token[pfn : pfn + nr] = POISON_FREED
        self.free.append(pfn)


class HugetlbFile(AddressSpace):
    """Be a file of huge pages; `promised` are the indices of its pages that are still in the pool for it.

    In a private mapping they are there for `owner`, who made it, and not for children (HPAGE_RESV_OWNER).
    """

    __slots__ = ("owner", "promised")

    def __init__(self, memory: "MemoryManager", nr_pages: int, owner: "MmStruct | None") -> None:
        nr = memory.geometry.pmd_nr
        memory.hugetlb.reserve(nr_pages // nr)
        super().__init__(memory, "anon_hugepage", nr_pages, swapbacked=False, page_mkwrite=False)
        self.owner: Final = owner
        self.promised = set(range(0, nr_pages, nr))

    def put(self) -> None:
        """Drop a reference; with the last the pages and the promises go."""
        super().put()
        if not self.users:
            self.memory.hugetlb.reserved -= len(self.promised)
            self.promised.clear()

    def take(self, index: int, mm: "MmStruct") -> int | None:
        """Take a page for an index out of the pool (alloc_hugetlb_folio)."""
        reserved = index in self.promised and self.owner in {None, mm}
        if reserved:
            self.promised.discard(index)
        return self.memory.hugetlb.take(reserved=reserved)

    def add(self, index: int) -> int | None:
        """Put a huge page of zeros into the cache, which holds its reference (hugetlb_add_to_page_cache)."""
        reserved = index in self.promised
        pfn = self.memory.hugetlb.take(reserved=reserved)
        if pfn is None:
            return None
        self.promised.discard(index)
        zone = self.memory.pages.ram
        zone.m_mapping[pfn] = self.id
        zone.m_index[pfn] = index
        zone.m_flags[pfn] |= PG_UPTODATE
        self.pages[index] = pfn
        return pfn


def hugetlb_fault(memory: "MemoryManager", vma: "Vma", address: int, flags: int) -> int:
    """Handle one fault of an area of huge pages; VM_FAULT_ bits. mmap_lock held."""
    page_table = vma.mm.page_table
    block = address >> page_table.pmd_shift
    page_table.pud_alloc(address)
    memory.kernel.step()
    leaf = page_table.entries.get(block)
    if leaf is None:
        return _no_page(memory, vma, block, flags)
    assert isinstance(leaf, PmdLeaf), leaf
    if flags & FAULT_FLAG_WRITE and not leaf.write:
        return _wp(memory, vma, block, leaf)
    return DONE


def _index(memory: "MemoryManager", vma: "Vma", block: int) -> int:
    return memory.rmap.linear_index(vma, block << memory.geometry.pmd_shift)


def _no_page(memory: "MemoryManager", vma: "Vma", block: int, flags: int) -> int:
    # hugetlb_no_page: a page of the file, or of a private mapping one of its own, also for a read
    file = vma.file
    assert isinstance(file, HugetlbFile)
    pages = memory.pages
    page_table = vma.mm.page_table
    index = _index(memory, vma, block)
    if index >= file.nr_pages:
        return VM_FAULT_SIGBUS
    shared = bool(vma.flags & VM_MAYSHARE)
    if shared:
        pfn = file.pages.get(index)
        if pfn is None:
            pfn = file.add(index)
        if pfn is not None:
            pages.folio_get(pfn)
            pages.folio_lock(pfn)
    else:
        anon_vma_prepare(memory, vma)
        pfn = file.take(index, vma.mm)
    if pfn is None:
        return VM_FAULT_SIGBUS
    memory.kernel.step()
    mapped = block not in page_table.entries
    if mapped:
        if shared:
            memory.rmap.folio_add_hugetlb_rmap(pfn)
        else:
            _add_new_anon(memory, vma, block, pfn)
        page_table.set_leaf(block, PmdKind.HUGETLB, pfn, write=vma.page_prot_writes, dirty=vma.page_prot_writes)
    if shared:
        pages.folio_unlock(pfn)
    if not mapped:
        pages.folio_put(pfn)
        return DONE
    memory.kernel.charge("cpu_minor_fault_2m")
    if flags & FAULT_FLAG_WRITE and not vma.flags & VM_SHARED:
        leaf = page_table.entries[block]
        assert isinstance(leaf, PmdLeaf)
        return _wp(memory, vma, block, leaf)
    return DONE


def _add_new_anon(memory: "MemoryManager", vma: "Vma", block: int, pfn: int) -> None:
    # hugetlb_add_new_anon_rmap: on no LRU, and not swapbacked
    memory.rmap.folio_add_new_anon_rmap(pfn, vma, block << memory.geometry.pmd_shift)
    memory.pages.ram.m_flags[pfn] &= ~(PG_LRU | PG_SWAPBACKED)


def _wp(memory: "MemoryManager", vma: "Vma", block: int, leaf: PmdLeaf) -> int:
    # hugetlb_wp
    mm = vma.mm
    pages = memory.pages
    page_table = mm.page_table
    writable = bool(vma.flags & VM_WRITE)
    if vma.flags & VM_MAYSHARE:
        page_table.set_leaf(block, PmdKind.HUGETLB, leaf.pfn, write=writable, dirty=True)
        return DONE
    zone = pages.ram
    old = leaf.pfn
    anon = pages.folio_test_anon(old)
    if anon and (zone.m_flags[old] & PG_ANON_EXCLUSIVE or zone.m_mapcount[old] == 1):
        if not zone.m_flags[old] & PG_ANON_EXCLUSIVE:
            assert vma.anon_vma is not None, vma
            zone.m_mapping[old] = vma.anon_vma.id  # folio_move_anon_rmap
            zone.m_flags[old] |= PG_ANON_EXCLUSIVE
        page_table.set_leaf(block, PmdKind.HUGETLB, old, write=writable, dirty=True)
        return DONE
    pages.folio_get(old)
    anon_vma_prepare(memory, vma)
    file = vma.file
    assert isinstance(file, HugetlbFile)
    new = file.take(_index(memory, vma, block), mm)
    if new is None:
        pages.folio_put(old)
        return VM_FAULT_SIGBUS
    geometry = memory.geometry
    memory.contents.copy_folio(new, old, geometry.pmd_nr)
    start = block << geometry.pmd_shift
    range_ = notifier_start(memory, mm, start, start + geometry.pmd_size, MMU_NOTIFY_CLEAR)
    memory.kernel.step()
    if page_table.entries.get(block) is leaf:
        page_table.clear(block)
        memory.rmap.folio_remove_rmap_pmd(old)
        _add_new_anon(memory, vma, block, new)
        page_table.set_leaf(block, PmdKind.HUGETLB, new, write=writable, dirty=True)
        pages.folio_put(old)
    else:
        pages.folio_put(new)
    notifier_end(memory, range_)
    pages.folio_put(old)
    memory.kernel.charge("cpu_minor_fault_2m")
    return DONE


def hugetlb_change_protection(memory: "MemoryManager", vma: "Vma", start: int, end: int) -> None:
    """Give the huge pages of a range what their area allows now; private ones become read-only until written."""
    mm = vma.mm
    range_ = notifier_start(memory, mm, start, end, MMU_NOTIFY_PROTECTION_VMA)
    changed = 0
    for block in mm.page_table.present_blocks(start, end):
        memory.kernel.step()
        leaf = mm.page_table.entries.get(block)
        if isinstance(leaf, PmdLeaf):
            if leaf.write != vma.page_prot_writes:
                mm.page_table.set_leaf(block, leaf.kind, leaf.pfn, write=vma.page_prot_writes, dirty=leaf.dirty)
            changed += 1
    memory.kernel.charge("protect_per_page", changed)
    notifier_end(memory, range_)


def copy_hugetlb_page_range(memory: "MemoryManager", dst_vma: "Vma", src_vma: "Vma") -> int:
    """Let a child share its parent's huge pages, both read-only if private; how many (fork).

    A CLEAR window over a private area of the parent, where small pages have PROTECTION_PAGE.
    """
    mm, child = src_vma.mm, dst_vma.mm
    cow = src_vma.is_cow
    range_ = notifier_start(memory, mm, src_vma.start, src_vma.end, MMU_NOTIFY_CLEAR) if cow else None
    copied = 0
    order = memory.geometry.pmd_order
    for block in mm.page_table.present_blocks(src_vma.start, src_vma.end):
        memory.kernel.step()
        leaf = mm.page_table.entries.get(block)
        if not isinstance(leaf, PmdLeaf):
            continue
        if memory.pages.folio_test_anon(leaf.pfn):
            memory.rmap.folio_try_dup_anon_rmap_pmd(leaf.pfn)
        else:
            memory.pages.folio_get(leaf.pfn)
            memory.rmap.folio_add_hugetlb_rmap(leaf.pfn)
        write = leaf.write and not cow
        if leaf.write and cow:
            mm.page_table.set_leaf(block, leaf.kind, leaf.pfn, write=False, dirty=leaf.dirty)
        child.page_table.set_leaf(block, leaf.kind, leaf.pfn, write=write, dirty=leaf.dirty)
        memory.contents.fork(mm, child, block << order, (block + 1) << order)
        copied += 1
    notifier_end(memory, range_)
    return copied


def move_hugetlb_page_tables(memory: "MemoryManager", vma: "Vma", old_addr: int, new_addr: int, length: int) -> int:
    """Take huge pages to another place, inside a CLEAR window over the old one (mremap); how many bytes."""
    mm = vma.mm
    geometry = memory.geometry
    range_ = notifier_start(memory, mm, old_addr, old_addr + length, MMU_NOTIFY_CLEAR)
    by = (new_addr - old_addr) >> geometry.pmd_shift
    blocks = mm.page_table.present_blocks(old_addr, old_addr + length)
    for block in blocks:
        memory.kernel.step()
        if isinstance(mm.page_table.entries.get(block), PmdLeaf):
            mm.page_table.move(block, block + by)
            memory.contents.move(mm, block << geometry.pmd_order, (block + by) << geometry.pmd_order, geometry.pmd_nr)
    notifier_end(memory, range_)
    memory.kernel.charge("protect_per_page", len(blocks))
    return length
