"""mm/memory.c:vm_insert_page and remap_pfn_range, as of Linux 7.3.4: what a driver maps into an area of its own.

A driver's area is made with VM_MIXEDMAP, VM_PFNMAP or VM_IO and has no vm_ops->fault here: what the driver has not
mapped is SIGBUS. `vm_insert_page` maps a normal page, counted, referenced and in rss; `vm_insert_mixed` and
`remap_pfn_range` map bare pfns, which nobody counts (`PteTable.special`). What such pages hold is not checked: their
driver may do with them what it likes.
"""

from errno import EBUSY, EFAULT, EINVAL, ENOMEM
from typing import TYPE_CHECKING

from gpusvm.errors import KernelError
from gpusvm.mm.api import VM_DONTEXPAND, VM_IO, VM_MIXEDMAP, VM_PFNMAP
from gpusvm.mm.pgtable import PmdLeaf, PteTable
from gpusvm.mm.ptemask import span
from gpusvm.mm.rss import file_counter

if TYPE_CHECKING:
    from gpusvm.mm.memory_manager import MemoryManager
    from gpusvm.mm.vma import Vma

__all__ = ["remap_pfn_range", "vm_insert_mixed", "vm_insert_page"]


def vm_insert_page(memory: "MemoryManager", vma: "Vma", address: int, pfn: int) -> None:
    """Map a page of a driver's into its VM_MIXEDMAP area; the mapping takes a reference. EFAULT EINVAL EBUSY ENOMEM.

    mmap_lock held. EBUSY: something is mapped there.
    """
    _check(memory, vma, address, 1, VM_MIXEDMAP)
    zone = memory.pages.zone(pfn)
    if zone.m_mapping[pfn - zone.base] > 0 or not zone.m_refcount[pfn - zone.base]:
        raise KernelError(EINVAL, f"pfn {pfn:#x} is free or anonymous memory")
    table = _table(memory, vma, address)
    at = (address - table.base) >> memory.geometry.page_shift
    _want_none(table, at, 1)
    memory.pages.folio_get(memory.pages.folio_head(pfn))
    memory.rmap.folio_add_file_rmap_pte(pfn)
    vma.mm.rss[file_counter(vma)] += 1
    table.set_present(1 << at, pfn, 1 << at if vma.page_prot_writes else 0)


def vm_insert_mixed(memory: "MemoryManager", vma: "Vma", address: int, pfn: int) -> None:
    """Map a pfn into a VM_MIXEDMAP area as a special entry (vmf_insert_mixed). EFAULT EINVAL EBUSY ENOMEM."""
    _check(memory, vma, address, 1, VM_MIXEDMAP)
    _insert_pfns(memory, vma, address, pfn, 1)


def remap_pfn_range(memory: "MemoryManager", vma: "Vma", address: int, pfn: int, size: int) -> None:
    """Map `size` bytes of physical memory into a VM_PFNMAP area, which may be private only as a whole.

    EFAULT EINVAL EBUSY ENOMEM. mmap_lock held for write. The area is VM_IO and VM_DONTEXPAND from then on.
    """
    page = memory.geometry.page_size
    pages = -(-size // page)
    _check(memory, vma, address, pages, VM_PFNMAP)
    if vma.is_cow and (address, address + pages * page) != (vma.start, vma.end):
        raise KernelError(EINVAL, f"remap_pfn_range of a part of {vma!r}, which is private")
    vma.flags |= VM_IO | VM_DONTEXPAND
    end = address + pages * page
    while address < end:
        stop = min(end, (address & -memory.geometry.pmd_size) + memory.geometry.pmd_size)
        n = (stop - address) // page
        _insert_pfns(memory, vma, address, pfn, n)
        pfn += n
        address = stop


def _check(memory: "MemoryManager", vma: "Vma", address: int, pages: int, flag: int) -> None:
    if address < vma.start or address + (pages << memory.geometry.page_shift) > vma.end:
        raise KernelError(EFAULT, f"{pages} pages at {address:#x} do not lie in {vma!r}")
    if not vma.flags & flag or address & (memory.geometry.page_size - 1) or pages <= 0:
        raise KernelError(EINVAL, f"{vma!r} is no area for {pages} pages of a driver at {address:#x}")


def _table(memory: "MemoryManager", vma: "Vma", address: int) -> PteTable:
    # get_locked_pte
    page_table = vma.mm.page_table
    block = address >> page_table.pmd_shift
    entry = page_table.entries.get(block)
    if isinstance(entry, PmdLeaf) or (entry is None and memory.kernel.inject("alloc.pte_table")):
        raise KernelError(ENOMEM, f"no page table for block {block:#x}")
    memory.kernel.step()
    return page_table.table(block)


def _want_none(table: PteTable, at: int, n: int) -> None:
    if table.used & span(at, n):
        raise KernelError(EBUSY, f"something is mapped in the block at {table.base:#x} already")


def _insert_pfns(memory: "MemoryManager", vma: "Vma", address: int, pfn: int, n: int) -> None:
    # insert_pfn, remap_pte_range
    table = _table(memory, vma, address)
    at = (address - table.base) >> memory.geometry.page_shift
    _want_none(table, at, n)
    mask = span(at, n)
    table.set_special(mask, pfn, mask if vma.page_prot_writes else 0)
