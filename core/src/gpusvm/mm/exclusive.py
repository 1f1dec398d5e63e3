"""mm/rmap.c:make_device_exclusive and the part of mm/gup.c that it needs, as of Linux 7.3.4."""

from errno import EFAULT, ENOMEM, EOPNOTSUPP
from typing import TYPE_CHECKING

from gpusvm.errors import KernelError, ModelError
from gpusvm.mm.api import (
    FAULT_FLAG_REMOTE,
    FAULT_FLAG_WRITE,
    MMU_NOTIFY_EXCLUSIVE,
    VM_FAULT_ERROR,
    VM_FAULT_OOM,
    VM_HUGETLB,
    VM_IO,
    VM_PFNMAP,
    VM_WRITE,
)
from gpusvm.mm.huge_memory import split_huge_pmd
from gpusvm.mm.memory import handle_mm_fault, pte_at
from gpusvm.mm.mmu_notifier import notifier_end, notifier_start
from gpusvm.mm.observer import tell
from gpusvm.mm.page import PG_DIRTY
from gpusvm.mm.pgtable import PmdKind, PmdLeaf

if TYPE_CHECKING:
    from gpusvm.mm.memory_manager import MemoryManager
    from gpusvm.mm.mm_struct import MmStruct
    from gpusvm.mm.vma import Vma


def make_device_exclusive(memory: "MemoryManager", mm: "MmStruct", address: int, owner: object | None) -> int:
    """Take one page away from the CPUs, so that a device may use it atomically; return its pfn. mmap_lock held.

    The page's folio comes back locked and referenced; a CPU that touches the page waits until it is unlocked. A
    driver must filter the EXCLUSIVE event of its own `owner`. EFAULT ENOMEM EOPNOTSUPP. Charged as get_pages of one
    entry.
    """
    page = memory.geometry.page_size
    address &= -page
    kernel = memory.kernel
    pages = memory.pages
    if kernel.checked and not mm.mmap_lock.is_locked:
        raise ModelError(f"make_device_exclusive without the mmap_lock of {mm.name}")
    while True:
        vma, pfn = _get_user_page_write_split(memory, mm, address)
        head = pages.folio_head(pfn)
        zone = pages.zone(head)
        if zone.m_mapping[head - zone.base] <= 0:
            pages.folio_put(head)
            raise KernelError(EOPNOTSUPP, f"the page at {address:#x} is not anonymous")
        pages.folio_lock(head)
        if kernel.observer is not None:
            tell(kernel.observer, "operation_begins", "make_device_exclusive", mm, owner)
        range_ = notifier_start(memory, mm, address, address + page, MMU_NOTIFY_EXCLUSIVE, owner)
        kernel.step()
        found = pte_at(memory, vma, address)
        taken = False
        if found is not None:
            table, i = found
            bit = 1 << i
            if table.present & table.write & bit and table.m_pfn[i] == pfn:
                if table.dirty & bit:
                    zone.m_flags[head - zone.base] |= PG_DIRTY
                table.set_exclusive(bit)
                taken = True
        notifier_end(memory, range_)
        if kernel.observer is not None:
            tell(kernel.observer, "operation_ends", "make_device_exclusive", mm, owner)
        if taken:
            kernel.charge("get_pages_base")
            kernel.charge("get_pages_per_entry")
            return pfn
        pages.folio_unlock(head)
        pages.folio_put(head)


def _get_user_page_write_split(memory: "MemoryManager", mm: "MmStruct", address: int) -> tuple["Vma", int]:
    # get_user_page_vma_remote with FOLL_GET | FOLL_WRITE | FOLL_SPLIT_PMD: the page is mapped writable by a PTE, once.
    vma = mm.vma_lookup(address)
    if vma is None:
        raise KernelError(EFAULT, f"nothing is mapped at {address:#x}")
    if vma.flags & (VM_IO | VM_PFNMAP) or not vma.flags & VM_WRITE:
        raise KernelError(EFAULT, f"{vma!r} cannot be written")
    if vma.flags & VM_HUGETLB:
        raise KernelError(EOPNOTSUPP, f"{vma!r} has huge pages")  # check_vma_flags, FOLL_SPLIT_PMD
    pages = memory.pages
    kernel = memory.kernel
    while True:
        kernel.step()
        entry = mm.page_table.lookup(address)
        if isinstance(entry, PmdLeaf) and entry.kind in {PmdKind.THP, PmdKind.HUGE_ZERO}:
            split_huge_pmd(memory, vma, address)
            kernel.step()
        found = pte_at(memory, vma, address)
        if found is not None:
            table, i = found
            if table.present & table.write & 1 << i:
                pfn = table.m_pfn[i]
                pages.folio_get(pages.folio_head(pfn))
                return vma, pfn
        before = kernel.now_ns
        ret = handle_mm_fault(memory, vma, address, FAULT_FLAG_WRITE | FAULT_FLAG_REMOTE)
        if ret & VM_FAULT_ERROR:
            if ret & VM_FAULT_OOM:
                raise KernelError(ENOMEM, f"no memory for the fault at {address:#x}")
            raise KernelError(EFAULT, f"the fault at {address:#x} ended with vm_fault bits {ret:#x}")
        memory.refault(before)
