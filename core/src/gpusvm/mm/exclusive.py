"""mm/rmap.c:make_device_exclusive, as of Linux 7.3.4: take a page from the CPUs for a device's atomic accesses."""

from errno import EINTR, EOPNOTSUPP
from typing import TYPE_CHECKING

from gpusvm.errors import KernelError, ModelError
from gpusvm.mm.api import FOLL_SPLIT_PMD, FOLL_WRITE, MMU_NOTIFY_EXCLUSIVE
from gpusvm.mm.gup import get_user_pages
from gpusvm.mm.memory import pte_at
from gpusvm.mm.mmu_notifier import notifier_end, notifier_start
from gpusvm.mm.observer import tell
from gpusvm.mm.page import PG_DIRTY

if TYPE_CHECKING:
    from gpusvm.mm.memory_manager import MemoryManager
    from gpusvm.mm.mm_struct import MmStruct


def make_device_exclusive(memory: "MemoryManager", mm: "MmStruct", address: int, owner: object | None) -> int:
    """Take one page away from the CPUs, so that a device may use it atomically; return its pfn. mmap_lock held.

    The page's folio comes back locked and referenced; a CPU that touches the page waits until it is unlocked. A
    driver must filter the EXCLUSIVE event of its own `owner`. EFAULT ENOMEM EINTR EOPNOTSUPP. Charged as get_pages of
    one entry.
    """
    page = memory.geometry.page_size
    address &= -page
    kernel = memory.kernel
    pages = memory.pages
    if kernel.checked and not mm.mmap_lock.is_locked:
        raise ModelError(f"make_device_exclusive without the mmap_lock of {mm.name}")
    while True:
        pfn = int(get_user_pages(memory, mm, address, 1, flags=FOLL_WRITE | FOLL_SPLIT_PMD)[0])
        # Nobody can take the area away: we hold mmap_lock.
        vma = mm.vma_lookup(address)
        assert vma is not None
        head = pages.folio_head(pfn)
        zone = pages.zone(head)
        if pages.activate is not None:
            pages.activate.mark_accessed(zone, head - zone.base)  # FOLL_TOUCH
        if zone.m_mapping[head - zone.base] <= 0:
            pages.folio_put(head)
            raise KernelError(EOPNOTSUPP, f"the page at {address:#x} is not anonymous")
        if not pages.folio_lock_killable(head):
            pages.folio_put(head)
            raise KernelError(EINTR, f"killed while waiting for the folio at {address:#x}")
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
