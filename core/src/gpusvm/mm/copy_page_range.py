"""mm/memory.c:copy_page_range and mm/huge_memory.c:copy_huge_pmd, as of Linux 7.3.4: copy the entries of one area.

Parent and child map the same pages afterwards, neither of them writable in a private area. All entries of a table
are copied at once, up to the first whose page may be pinned: the child gets a copy of that one.
"""

from errno import ENOMEM
from typing import TYPE_CHECKING

from gpusvm.errors import KernelError
from gpusvm.mm.api import MMU_NOTIFY_PROTECTION_PAGE, VM_COPY_ON_FORK, VM_HUGETLB, VM_WRITE, Pfns
from gpusvm.mm.huge_memory import split_huge_pmd
from gpusvm.mm.hugetlb import copy_hugetlb_page_range
from gpusvm.mm.memory import restore_exclusive_pte
from gpusvm.mm.mm_struct import MM_ANONPAGES, MMF_HAS_PINNED
from gpusvm.mm.mmu_notifier import notifier_end, notifier_start
from gpusvm.mm.page import PG_ANON_EXCLUSIVE
from gpusvm.mm.pgtable import OtherPte, PmdKind, PmdLeaf, PteKind, PteTable
from gpusvm.mm.ptemask import indices, span
from gpusvm.mm.rss import add_rss

if TYPE_CHECKING:
    from gpusvm.mm.memory_manager import MemoryManager
    from gpusvm.mm.vma import Vma

__all__ = ["copy_page_range"]


def copy_page_range(memory: "MemoryManager", dst_vma: "Vma", src_vma: "Vma") -> int:
    """Copy what `src_vma` maps into `dst_vma`, a new area of a child; return the number of entries. ENOMEM.

    Both mmap_locks held for write. One PROTECTION_PAGE window over a private area that has something to copy.
    """
    # vma_needs_copy: what a fault can bring back is left to a fault.
    if src_vma.anon_vma is None and not dst_vma.flags & VM_COPY_ON_FORK:
        return 0
    if src_vma.flags & VM_HUGETLB:
        return copy_hugetlb_page_range(memory, dst_vma, src_vma)
    range_ = None
    if src_vma.is_cow:
        range_ = notifier_start(memory, src_vma.mm, src_vma.start, src_vma.end, MMU_NOTIFY_PROTECTION_PAGE)
    try:
        return _Copy(memory, dst_vma, src_vma).walk()
    finally:
        notifier_end(memory, range_)


class _Copy:
    """Carry what the copy of one area needs at every entry."""

    __slots__ = ("copied", "dst", "is_cow", "may_be_pinned", "memory", "page_shift", "src")

    def __init__(self, memory: "MemoryManager", dst_vma: "Vma", src_vma: "Vma") -> None:
        self.memory = memory
        self.dst = dst_vma
        self.src = src_vma
        self.is_cow = src_vma.is_cow
        # include/linux/mm.h:folio_needs_cow_for_dma
        self.may_be_pinned = bool(src_vma.mm.flags & MMF_HAS_PINNED)
        self.page_shift = memory.geometry.page_shift
        self.copied = 0

    def walk(self) -> int:
        """Copy every entry (copy_pmd_range)."""
        src = self.src
        src_table, dst_table = src.mm.page_table, self.dst.mm.page_table
        shift = src_table.pmd_shift
        for pud in range(src.start >> src_table.pud_shift, ((src.end - 1) >> src_table.pud_shift) + 1):
            if pud in src_table.puds:
                dst_table.puds[pud] = None
        for block in src_table.present_blocks(src.start, src.end):
            base = block << shift
            start, end = max(src.start, base), min(src.end, base + src_table.geometry.pmd_size)
            if isinstance(src_table.entries.get(block), PmdLeaf) and self.leaf(block):
                continue
            if isinstance(src_table.entries.get(block), PteTable):
                self.table(block, (start - base) >> self.page_shift, (end - base) >> self.page_shift)
        return self.copied

    def leaf(self, block: int) -> bool:
        """Copy a leaf, which never reaches beyond its area; False if it has become a table (copy_huge_pmd)."""
        memory = self.memory
        if not self.dst.is_anonymous:
            return True
        if memory.kernel.inject("alloc.pte_table"):  # the one to deposit
            raise KernelError(ENOMEM, f"no memory for a page table to copy block {block:#x}")
        memory.kernel.step()
        mm, child = self.src.mm, self.dst.mm
        leaf = mm.page_table.entries.get(block)
        if not isinstance(leaf, PmdLeaf):
            return leaf is None
        kind = leaf.kind
        rmap = memory.rmap
        if kind is PmdKind.THP:
            zone = memory.pages.zone(leaf.pfn)
            exclusive = zone.m_flags[leaf.pfn - zone.base] & PG_ANON_EXCLUSIVE
            if exclusive and self.may_be_pinned and memory.pages.folio_maybe_dma_pinned(leaf.pfn):
                split_huge_pmd(memory, self.src, block << mm.page_table.pmd_shift)
                return False
        if kind in {PmdKind.THP, PmdKind.PRIVATE}:
            rmap.folio_try_dup_anon_rmap_pmd(leaf.pfn)
        if leaf.write or leaf.rexcl:
            mm.page_table.set_leaf(block, kind, leaf.pfn, write=False, dirty=leaf.dirty)
        child.page_table.set_leaf(block, kind, leaf.pfn, write=False, dirty=leaf.dirty)
        if kind is not PmdKind.HUGE_ZERO:
            child.rss[MM_ANONPAGES] += memory.geometry.pmd_nr
        vpn = block << memory.geometry.pmd_order
        memory.contents.fork(mm, child, vpn, vpn + memory.geometry.pmd_nr)
        self.copied += 1
        return True

    def table(self, block: int, at: int, end: int) -> None:
        """Copy the entries [at, end) of a table (copy_pte_range)."""
        memory = self.memory
        kernel = memory.kernel
        src = self.src.mm.page_table.table(block)
        if block not in self.dst.mm.page_table.entries and kernel.inject("alloc.pte_table"):
            raise KernelError(ENOMEM, f"no memory for a page table to copy block {block:#x}")
        dst = self.dst.mm.page_table.table(block)
        spare = -1
        kernel.step()
        while at < end:
            pinned = self.pinned(src, at, end)
            stop = pinned if pinned >= 0 else end
            busy = -1
            exclusive = span(at, stop - at) & src.devexcl
            if exclusive:
                busy = self.restore_exclusive(src, exclusive)
                if busy >= 0:
                    stop = busy
                    pinned = -1
                restored = self.pinned(src, at, stop)
                if restored >= 0:
                    stop = pinned = restored
            self.entries(src, dst, at, stop)
            at = stop
            if pinned >= 0:
                if spare < 0:
                    # The lock goes for this, and the entry is looked at again.
                    spare = self.allocate(block)
                    kernel.step()
                    continue
                self.copy_pinned(src, dst, pinned, spare)
                spare = -1
                at += 1
            elif busy == at:
                # MM-Q12: copy_nonpresent_pte's EBUSY ends as ENOMEM.
                if memory.quirks.mm_q12 == "fixed":
                    memory.pages.folio_wait_locked(memory.pages.folio_head(src.m_pfn[busy]))
                    kernel.step()
                    continue
                raise KernelError(ENOMEM, f"the device-exclusive page {src.m_pfn[busy]:#x} is locked, so it stays")
        if spare >= 0:
            memory.pages.folio_put(spare)

    def restore_exclusive(self, src: PteTable, mask: int) -> int:
        """Make device-exclusive entries present again; the position of the first whose folio is locked, or -1."""
        pages = self.memory.pages
        for i in indices(mask).tolist():
            # try_restore_exclusive_pte: the lock is held only inside this section.
            if pages.folio_locked(pages.folio_head(src.m_pfn[i])):
                return int(i)
            restore_exclusive_pte(self.memory, self.src, src, i)
        return -1

    def entries(self, src: PteTable, dst: PteTable, at: int, end: int) -> None:
        """Copy the entries [at, end), none of which is exclusive to a device or pinned."""
        memory = self.memory
        mask = span(at, end - at) & src.used
        if src.other & mask:
            self.others(src, dst, mask)
            mask &= ~src.other
        vpn = src.base >> self.page_shift
        memory.contents.fork(self.src.mm, self.dst.mm, vpn + at, vpn + end)
        if not mask:
            return
        mapped = mask & ((src.present & ~src.zero) | src.private)
        if mapped:
            memory.rmap.folio_try_dup_anon_rmap_ptes(src.pfns(mapped))
        counted = mapped | (mask & src.migration)
        if self.dst.is_anonymous:
            self.dst.mm.rss[MM_ANONPAGES] += counted.bit_count()
        else:
            add_rss(memory, self.dst, src, counted, 1)
        if self.is_cow:
            # Migration entries, WRITE or READ_EXCLUSIVE, become READ: what was exclusive is shared now.
            writable = mask & (src.write | src.rexcl)
            if writable:
                src.set_write(writable, 0)
        dst.copy(src, mask, 0 if self.is_cow else mask)
        self.copied += mask.bit_count()

    def others(self, src: PteTable, dst: PteTable, mask: int) -> None:
        """Copy swap entries, which both then share, hwpoison entries and markers (copy_nonpresent_pte)."""
        for i, entry in src.others_of(mask):
            copied = entry
            if entry.kind is PteKind.SWAP:
                self.memory.swap.dup(entry.value)
                self.dst.mm.swapents += 1
                copied = OtherPte(PteKind.SWAP, entry.value)
                if entry.exclusive:
                    src.set_other(i, copied)
            elif entry.kind is PteKind.MARKER_UFFD_WP:
                # copy_pte_marker: only where the child is watched too, and a child is never.
                continue
            dst.set_other(i, copied)
            self.copied += 1

    def pinned(self, src: PteTable, at: int, end: int) -> int:
        """Find the first page among [at, end) that is exclusive and may be pinned; its position, or -1."""
        if not self.may_be_pinned:
            return -1
        pages = self.memory.pages
        present = span(at, end - at) & src.present & ~src.zero
        found = end
        for zone, index, where in pages.split(src.pfns(present)):
            exclusive = zone.flags[index] & PG_ANON_EXCLUSIVE != 0
            positions: Pfns = indices(present)[where][exclusive]
            for i in positions.tolist():
                if i >= found:
                    break
                if self.memory.pages.folio_maybe_dma_pinned(pages.folio_head(src.m_pfn[i])):
                    found = i
                    break
        return found if found < end else -1

    def allocate(self, block: int) -> int:
        """Allocate the page for the copy of a pinned one (folio_prealloc)."""
        new = self.memory.pages.alloc_folio(0)
        if new is None:
            raise KernelError(ENOMEM, f"no memory to copy a pinned page of block {block:#x}")
        return new

    def copy_pinned(self, src: PteTable, dst: PteTable, i: int, new: int) -> None:
        """Give the child its own copy of a page that may be pinned; the parent's stays as it is (copy_present_page)."""
        memory = self.memory
        child = self.dst
        bit = 1 << i
        vpn = (src.base >> self.page_shift) + i
        memory.contents.copy_folio(new, src.m_pfn[i], 1)
        memory.contents.fork(self.src.mm, child.mm, vpn, vpn + 1)
        memory.rmap.folio_add_new_anon_rmap(new, child, src.base + (i << self.page_shift))
        child.mm.rss[MM_ANONPAGES] += 1
        dst.set_present(bit, new, bit if child.flags & VM_WRITE else 0, bit)
        self.copied += 1
