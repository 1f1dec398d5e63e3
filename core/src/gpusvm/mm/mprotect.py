"""mm/mprotect.c, as of Linux 7.3.4: change what an area allows, in its flags and in every entry."""

from errno import EACCES, EINVAL, ENOMEM
from typing import TYPE_CHECKING

from gpusvm.errors import KernelError
from gpusvm.mm.api import (
    MMU_NOTIFY_PROTECTION_VMA,
    PROT_EXEC,
    PROT_READ,
    PROT_WRITE,
    VM_HUGETLB,
    VM_SHARED,
    VM_WRITE,
    MmuNotifierRange,
)
from gpusvm.mm.huge_memory import walk_pmds
from gpusvm.mm.hugetlb import hugetlb_change_protection
from gpusvm.mm.mmap import prot_to_vm_flags
from gpusvm.mm.mmu_notifier import notifier_end, notifier_start
from gpusvm.mm.observer import tell
from gpusvm.mm.page import PG_ANON_EXCLUSIVE
from gpusvm.mm.pgtable import PmdKind, PmdLeaf, PteTable
from gpusvm.mm.ptemask import from_indices, indices
from gpusvm.mm.vma import VM_ACCESS_FLAGS, Vma
from gpusvm.mm.vma_merge import modify_flags

if TYPE_CHECKING:
    from gpusvm.mm.memory_manager import MemoryManager
    from gpusvm.mm.mm_struct import MmStruct


def mprotect(memory: "MemoryManager", mm: "MmStruct", start: int, length: int, prot: int) -> None:
    """Change the access that [start, start + length) allows, area by area. EINVAL ENOMEM EACCES.

    A gap is ENOMEM: at the front nothing is done, further on the areas before it are.
    """
    page = memory.geometry.page_size
    if start % page:
        raise KernelError(EINVAL, f"mprotect of {length} bytes at {start:#x} to {prot}")
    end = start + -(-length // page) * page
    if end == start:
        return
    if end < start:
        raise KernelError(ENOMEM, f"mprotect of {length} bytes at {start:#x}")
    if prot & ~(PROT_READ | PROT_WRITE | PROT_EXEC):
        raise KernelError(EINVAL, f"mprotect of {length} bytes at {start:#x} to {prot}")
    with mm.mmap_lock.write():
        vma = mm.vma_lookup(start)
        if vma is None:
            raise KernelError(ENOMEM, f"mprotect at {start:#x}, where nothing is mapped")
        at = start
        while at < end:
            vma = mm.vma_lookup(at)
            if vma is None:
                raise KernelError(ENOMEM, f"mprotect over the gap at {at:#x}")
            flags = (vma.flags & ~VM_ACCESS_FLAGS) | prot_to_vm_flags(prot)
            # VM_MAY% lies 4 bits above VM_%.
            if (flags & ~(flags >> 4)) & VM_ACCESS_FLAGS:
                raise KernelError(EACCES, f"mprotect of {vma!r} to {prot}, which it may never be")
            stop = min(vma.end, end)
            if flags != vma.flags:
                if not flags & VM_ACCESS_FLAGS:
                    mm.had_prot_none = True
                vma = modify_flags(memory, vma, at, stop, flags)
                _change_protection(memory, vma, at, stop)
            at = stop


def _change_protection(memory: "MemoryManager", vma: Vma, start: int, end: int) -> None:
    # change_protection_range down to change_pte_range. The window opens at the first populated PUD, if there is one.
    mm = vma.mm
    if vma.flags & VM_HUGETLB:
        hugetlb_change_protection(memory, vma, start, end)
        return
    page_table = mm.page_table
    pud_shift = page_table.pud_shift
    range_: MmuNotifierRange | None = None
    changed = 0
    for pud in range(start >> pud_shift, ((end - 1) >> pud_shift) + 1):
        if pud not in page_table.puds:
            continue
        low, high = max(start, pud << pud_shift), min(end, (pud + 1) << pud_shift)
        if range_ is None:
            range_ = notifier_start(memory, mm, low, end, MMU_NOTIFY_PROTECTION_VMA)
        for block, entry, mask in walk_pmds(memory, vma, low, high):
            if isinstance(entry, PmdLeaf):
                _change_huge_pmd(memory, vma, block, entry)
                changed += 1
            else:
                _change_ptes(memory, vma, entry, mask)
                changed += (mask & entry.used).bit_count()
    memory.kernel.charge("protect_per_page", changed)
    if memory.kernel.observer is not None:
        tell(memory.kernel.observer, "operation_ends", "change_protection", vma, start, end)
    notifier_end(memory, range_)


def _writable_again(vma: Vma) -> bool:
    # vma_wants_manual_pte_write_upgrade and can_change_private_pte_writable: an exclusive page needs no fault to be
    # written.
    return bool(vma.flags & VM_WRITE)


def _change_huge_pmd(memory: "MemoryManager", vma: Vma, block: int, leaf: PmdLeaf) -> None:
    kind = leaf.kind
    write, rexcl = leaf.write, leaf.rexcl
    if kind is PmdKind.HUGE_ZERO:
        return
    if kind is PmdKind.THP:
        zone = memory.pages.zone(leaf.pfn)
        write = _writable_again(vma) and bool(zone.m_flags[leaf.pfn - zone.base] & PG_ANON_EXCLUSIVE)
    elif kind is PmdKind.PRIVATE:
        # change_non_present_huge_pmd: WRITE becomes READ and never comes back (MM-Q13).
        write = False
        if memory.quirks.mm_q13 == "fixed" and _writable_again(vma):
            zone = memory.pages.zone(leaf.pfn)
            write = bool(zone.m_flags[leaf.pfn - zone.base] & PG_ANON_EXCLUSIVE)
    elif write:
        write, rexcl = False, True
    if (write, rexcl) != (leaf.write, leaf.rexcl):
        vma.mm.page_table.set_leaf(block, kind, leaf.pfn, write, rexcl=rexcl, dirty=leaf.dirty)


def _change_ptes(memory: "MemoryManager", vma: Vma, table: PteTable, mask: int) -> None:
    # change_softleaf_pte: device-private WRITE becomes READ, migration WRITE becomes READ_EXCLUSIVE; exclusive
    # entries stay.
    rexcl = mask & table.migration & (table.write | table.rexcl)
    present = mask & table.present & ~table.zero
    changing = mask & ~(table.devexcl | table.other | table.zero)
    writable = 0
    if memory.quirks.mm_q13 == "fixed":
        present |= mask & table.private
    if not vma.is_anonymous:
        rexcl = _anon(memory, table, rexcl)  # of a page of the file: READ
        changing |= mask & table.special
    if vma.flags & VM_SHARED:
        if vma.page_prot_writes:
            writable = mask & table.present
        elif vma.flags & VM_WRITE:
            writable = present & table.dirty  # can_change_shared_pte_writable: the file system knows of it
    elif present and _writable_again(vma):
        for zone, index, where in memory.pages.split(table.pfns(present)):
            exclusive = zone.flags[index] & PG_ANON_EXCLUSIVE != 0
            writable |= from_indices(indices(present)[where][exclusive], memory.geometry.pmd_nr)
    if (table.write ^ writable) & changing or (table.rexcl ^ rexcl) & changing:
        table.set_write(changing, writable, rexcl)


def _anon(memory: "MemoryManager", table: PteTable, mask: int) -> int:
    # The entries that name anonymous pages.
    found = 0
    for zone, index, where in memory.pages.split(table.pfns(mask)) if mask else ():
        found |= from_indices(indices(mask)[where][zone.mapping[index] > 0], memory.geometry.pmd_nr)
    return found
