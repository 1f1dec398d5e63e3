"""mm/mremap.c:move_page_tables, as of Linux 7.3.4: take what an area maps to another place, entry by entry or by table.

Entries of every kind are moved as they are: no count, reference or rss changes, and a page keeps its index, so rmap
finds it in the new area. One UNMAP window covers the old side; the new side is told nothing.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from attrs import define

from gpusvm.mm.api import MMU_NOTIFY_UNMAP, VM_HUGETLB
from gpusvm.mm.huge_memory import split_huge_pmd
from gpusvm.mm.hugetlb import move_hugetlb_page_tables
from gpusvm.mm.mmu_notifier import notifier_end, notifier_start
from gpusvm.mm.pgtable import PmdLeaf, PteTable
from gpusvm.mm.ptemask import span
from gpusvm.mm.vma import rmap_locked

if TYPE_CHECKING:
    from gpusvm.mm.memory_manager import MemoryManager
    from gpusvm.mm.vma import Vma


@define
class PagetableMoveControl:
    """Say what moves where (include/linux/mm.h:struct pagetable_move_control); the addresses advance."""

    old: "Vma"
    new: "Vma"
    old_addr: int
    old_end: int
    new_addr: int
    need_rmap_locks: bool

    def rmap_locked(self, *, always: bool = False) -> AbstractContextManager[None]:
        """Keep rmap walks away (take_rmap_locks), where they might miss an entry at both places."""
        return rmap_locked(self.old) if always or self.need_rmap_locks else nullcontext()

    def extent(self, size: int) -> int:
        """Return how far the next step may go: to the next multiple of `size` on either side (get_extent)."""
        return min(
            self.old_end - self.old_addr,
            size - (self.old_addr & (size - 1)),
            size - (self.new_addr & (size - 1)),
        )


def move_page_tables(
    memory: "MemoryManager",
    old: "Vma",
    new: "Vma",
    old_addr: int,
    new_addr: int,
    length: int,
    *,
    need_rmap_locks: bool,
) -> int:
    """Move what [old_addr, old_addr + length) maps to `new_addr`; how many bytes were done: less if memory ran short.

    Both areas are locked for write. Charges protect_per_page for each entry moved.
    """
    if not length:
        return 0
    if old.flags & VM_HUGETLB:
        return move_hugetlb_page_tables(memory, old, old_addr, new_addr, length)
    mm = old.mm
    page_table = mm.page_table
    pmd_size, pud_size = 1 << page_table.pmd_shift, 1 << page_table.pud_shift
    pmc = PagetableMoveControl(old, new, old_addr, old_addr + length, new_addr, need_rmap_locks)
    if _can_realign(pmc, pmd_size):
        pmc.old_addr &= -pmd_size
        pmc.new_addr &= -pmd_size
    range_ = notifier_start(memory, mm, pmc.old_addr, pmc.old_end, MMU_NOTIFY_UNMAP)
    moved = 0
    while pmc.old_addr < pmc.old_end:
        memory.kernel.cond_resched()
        extent = pmc.extent(pud_size)
        if page_table.pud_present(pmc.old_addr):
            done = _move_pud(memory, pmc) if extent == pud_size else 0
            if not done:
                extent = pmc.extent(pmd_size)
                done = _move_pmd(memory, pmc, extent)
            if done < 0:
                break
            moved += done
        pmc.old_addr += extent
        pmc.new_addr += extent
    notifier_end(memory, range_)
    memory.kernel.charge("protect_per_page", moved)
    return max(0, pmc.old_addr - old_addr)


def _can_realign(pmc: PagetableMoveControl, size: int) -> bool:
    # can_realign_addr: begin at a table's boundary where nothing else lies before both areas, so that a table can go
    # whole.
    inside = pmc.old_addr & (size - 1)
    if not inside or inside != pmc.new_addr & (size - 1) or pmc.old_end - pmc.old_addr < size - inside:
        return False
    return _can_align_down(pmc.old, pmc.old_addr, size) and _can_align_down(pmc.new, pmc.new_addr, size)


def _can_align_down(vma: "Vma", address: int, size: int) -> bool:
    return vma.start == address and vma.mm.find_vma_intersection(address & -size, vma.start) is None


def _move_pud(memory: "MemoryManager", pmc: PagetableMoveControl) -> int:
    # move_normal_pud: the whole PMD table, whatever is in it. 0: it has to go entry by entry.
    page_table = pmc.old.mm.page_table
    if page_table.pud_present(pmc.new_addr):
        return 0
    with pmc.rmap_locked(always=True):
        memory.kernel.step()
        blocks = page_table.present_blocks(pmc.old_addr, pmc.old_addr + (1 << page_table.pud_shift))
        by = (pmc.new_addr - pmc.old_addr) >> page_table.pmd_shift
        for block in blocks:
            _move_entry(memory, pmc, block, block + by)
        page_table.pud_alloc(pmc.new_addr)
        del page_table.puds[pmc.old_addr >> page_table.pud_shift]
    return 1


def _move_entry(memory: "MemoryManager", pmc: PagetableMoveControl, block: int, to: int) -> None:
    mm = pmc.old.mm
    mm.page_table.move(block, to)
    order = memory.geometry.pmd_order
    memory.contents.move(mm, block << order, to << order, 1 << order)


def _move_pmd(memory: "MemoryManager", pmc: PagetableMoveControl, extent: int) -> int:
    # What lies under one PMD on both sides: how many entries moved, -1 if there is no memory for a table.
    mm = pmc.old.mm
    page_table = mm.page_table
    kernel = memory.kernel
    block, to = pmc.old_addr >> page_table.pmd_shift, pmc.new_addr >> page_table.pmd_shift
    entry = page_table.entries.get(block)
    if entry is None:
        return 0
    page_table.pud_alloc(pmc.new_addr)
    if extent == 1 << page_table.pmd_shift and to not in page_table.entries:
        # move_huge_pmd and move_normal_pmd
        with pmc.rmap_locked(always=isinstance(entry, PteTable)):
            kernel.step()
            found = page_table.entries.get(block)
            # A leaf may have been split while nobody held a lock.
            if found is not None and isinstance(found, PteTable) == isinstance(entry, PteTable):
                _move_entry(memory, pmc, block, to)
                return 1
    if isinstance(page_table.entries.get(block), PmdLeaf):
        split_huge_pmd(memory, pmc.old, pmc.old_addr)
    return _move_ptes(memory, pmc, extent, block, to)


def _move_ptes(memory: "MemoryManager", pmc: PagetableMoveControl, extent: int, block: int, to: int) -> int:
    # pte_alloc, move_ptes
    mm = pmc.old.mm
    page_table = mm.page_table
    if to not in page_table.entries and memory.kernel.inject("alloc.pte_table"):
        return -1
    with pmc.rmap_locked():
        memory.kernel.step()
        table = page_table.entries.get(block)
        if not isinstance(table, PteTable):
            return 0
        shift = page_table.page_shift
        inside = page_table.pmd_nr - 1
        first = (pmc.old_addr >> shift) & inside
        mask = span(first, extent >> shift) & table.used
        table.move(mask, page_table.table(to), ((pmc.new_addr >> shift) & inside) - first)
        memory.contents.move(mm, pmc.old_addr >> shift, pmc.new_addr >> shift, extent >> shift)
        return mask.bit_count()
