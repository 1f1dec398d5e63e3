"""mm/khugepaged.c, as of Linux 7.3.4: MADV_COLLAPSE, which makes a huge page of what a PTE table maps.

Only private anonymous memory is collapsed here, and only when asked to: there is no khugepaged. Entries that are not
present are faulted in first, so device-private pages come home (mm/khugepaged.c:__collapse_huge_page_swapin).
"""

from enum import Enum, auto
from errno import EAGAIN, EBUSY, EINVAL, ENOMEM
from typing import TYPE_CHECKING, Final

import numpy as np

from gpusvm.errors import KernelError, ModelError
from gpusvm.mm.api import (
    FAULT_FLAG_ALLOW_RETRY,
    MMU_NOTIFY_CLEAR,
    VM_FAULT_ERROR,
    VM_HUGETLB,
    VM_NOHUGEPAGE,
    VM_SPECIAL,
    VM_UFFD_MISSING,
    VM_WRITE,
)
from gpusvm.mm.memory import do_swap_page
from gpusvm.mm.mm_struct import MM_ANONPAGES
from gpusvm.mm.mmap_lock import vma_start_write
from gpusvm.mm.mmu_notifier import notifier_end, notifier_start
from gpusvm.mm.page import PG_LOCKED, PG_LRU
from gpusvm.mm.pgtable import PmdKind, PteTable
from gpusvm.mm.ptemask import indices

if TYPE_CHECKING:
    from gpusvm.mm.memory_manager import MemoryManager
    from gpusvm.mm.mm_struct import MmStruct
    from gpusvm.mm.vma import Vma


class ScanResult(Enum):
    """Name what came of a block (enum scan_result), as far as it can come here."""

    SUCCEED = auto()
    FAIL = auto()
    NO_PTE_TABLE = auto()
    PMD_MAPPED = auto()
    PTE_NON_PRESENT = auto()
    PAGE_NULL = auto()
    PAGE_LRU = auto()
    PAGE_LOCK = auto()
    PAGE_COUNT = auto()
    EXCEED_NONE_PTE = auto()
    VMA_CHECK = auto()
    ALLOC_HUGE_PAGE_FAIL = auto()


# madvise_collapse_errno; EINVAL is what trying again will not help against.
_ERRNOS: Final = {
    ScanResult.ALLOC_HUGE_PAGE_FAIL: ENOMEM,
    ScanResult.EXCEED_NONE_PTE: EBUSY,
    ScanResult.PAGE_COUNT: EAGAIN,
    ScanResult.PAGE_LOCK: EAGAIN,
    ScanResult.PAGE_LRU: EAGAIN,
}
# After which the next block is looked at.
_GOES_ON: Final = frozenset(
    {
        ScanResult.NO_PTE_TABLE,
        ScanResult.PTE_NON_PRESENT,
        ScanResult.PAGE_NULL,
        ScanResult.PAGE_COUNT,
        ScanResult.PAGE_LOCK,
        ScanResult.PAGE_LRU,
    }
)


def madvise_collapse(memory: "MemoryManager", vma: "Vma", start: int, end: int) -> None:
    """Make huge pages of the whole blocks in [start, end) of one area. EINVAL ENOMEM EAGAIN EBUSY.

    mmap_lock is held for read, and again when it returns; meanwhile it is given up. A block that is one already
    counts as done.
    """
    mm = vma.mm
    geometry = memory.geometry
    size = geometry.pmd_size
    if not vma.is_anonymous:
        raise ModelError(f"MADV_COLLAPSE of {vma!r}, which is not anonymous, is not modelled")
    if not _allowable(memory, vma):
        raise KernelError(EINVAL, f"MADV_COLLAPSE of {vma!r}, which can have no huge page")
    if memory.pages.lru is not None:
        memory.pages.lru.drain_all()
    low, high = -(-start // size) * size, end & -size
    last_fail = ScanResult.FAIL
    collapsed = 0
    for address in range(low, high, size):
        found = _revalidate(memory, mm, address)
        if found is None:
            last_fail = ScanResult.VMA_CHECK
            break
        result = _collapse(memory, found, address)
        if result in {ScanResult.SUCCEED, ScanResult.PMD_MAPPED}:
            collapsed += 1
            continue
        last_fail = result
        if result not in _GOES_ON:
            break
    if collapsed == max(0, high - low) // size:
        return
    errno = _ERRNOS.get(last_fail, EINVAL)
    raise KernelError(errno, f"MADV_COLLAPSE of {vma!r} from {start:#x} to {end:#x}: {last_fail.name}")


def _allowable(memory: "MemoryManager", vma: "Vma") -> bool:
    # thp_vma_allowable_order, when it was asked for by name: the policy does not matter, that there may be pages does.
    if vma.flags & (VM_NOHUGEPAGE | VM_SPECIAL | VM_HUGETLB) or vma.anon_vma is None:
        return False
    size = memory.geometry.pmd_size
    return (vma.end & -size) - size >= vma.start


def _revalidate(memory: "MemoryManager", mm: "MmStruct", address: int) -> "Vma | None":
    # hugepage_vma_revalidate
    vma = mm.vma_lookup(address)
    if vma is None or not vma.is_anonymous or not _allowable(memory, vma):
        return None
    return vma if vma.covers(address, address + memory.geometry.pmd_size) else None


def _collapse(memory: "MemoryManager", vma: "Vma", address: int) -> ScanResult:
    # collapse_scan_pmd, and collapse_huge_page if that found nothing in the way
    mm = vma.mm
    memory.kernel.step()
    table = _find_table(mm, address)
    if not isinstance(table, PteTable):
        return table
    result = _scan(memory, vma, table)
    if result is not ScanResult.SUCCEED:
        return result
    # The allocation may take long, so nobody is kept waiting for it.
    mm.mmap_lock.up_read()
    try:
        folio = memory.pages.alloc_folio(memory.geometry.pmd_order)
        if folio is None:
            return ScanResult.ALLOC_HUGE_PAGE_FAIL
        result = _swapin(memory, mm, address)
        if result is ScanResult.SUCCEED:
            with mm.mmap_lock.write():
                result = _replace(memory, mm, address, folio)
        if result is not ScanResult.SUCCEED:
            memory.pages.folio_put(folio)
        return result
    finally:
        mm.mmap_lock.down_read()


def _find_table(mm: "MmStruct", address: int) -> PteTable | ScanResult:
    # find_pmd_or_thp_or_none
    entry = mm.page_table.lookup(address)
    if isinstance(entry, PteTable):
        return entry
    if entry is not None and entry.kind in {PmdKind.THP, PmdKind.HUGE_ZERO}:
        return ScanResult.PMD_MAPPED
    return ScanResult.NO_PTE_TABLE


def _scan(memory: "MemoryManager", vma: "Vma", table: PteTable) -> ScanResult:
    # What is in the way of a collapse, page by page; what is not present may come yet.
    if vma.flags & VM_UFFD_MISSING and (table.zero or table.used.bit_count() != memory.geometry.pmd_nr):
        return ScanResult.EXCEED_NONE_PTE  # a page of zeros is for the process to put there
    for page in table.pfns(table.present & ~table.zero).tolist():
        result = _suitable(memory, page)
        if result is not ScanResult.SUCCEED:
            return result
    return ScanResult.SUCCEED


def _suitable(memory: "MemoryManager", page: int) -> ScanResult:
    zone = memory.pages.zone(page)
    if zone.pgmap is not None:
        return ScanResult.PAGE_NULL
    head = memory.pages.folio_head(page) - zone.base
    if not zone.m_flags[head] & PG_LRU:
        return ScanResult.PAGE_LRU
    if zone.m_flags[head] & PG_LOCKED:
        return ScanResult.PAGE_LOCK
    # is_refcount_suitable: pins, and whoever else has a reference
    return ScanResult.SUCCEED if zone.m_refcount[head] == zone.m_mapcount[head] else ScanResult.PAGE_COUNT


def _swapin(memory: "MemoryManager", mm: "MmStruct", address: int) -> ScanResult:
    # __collapse_huge_page_swapin: one fault for each entry that is not present, whatever comes of it
    geometry = memory.geometry
    with mm.mmap_lock.read():
        vma = _revalidate(memory, mm, address)
        if vma is None:
            return ScanResult.VMA_CHECK
        table = _find_table(mm, address)
        if not isinstance(table, PteTable):
            return table
        absent = table.used & ~table.present
        for i in indices(absent).tolist() if absent else ():
            memory.kernel.step()
            if mm.page_table.lookup(address) is not table:
                return ScanResult.NO_PTE_TABLE
            if (table.used & ~table.present) >> i & 1:
                at = address + (i << geometry.page_shift)
                if do_swap_page(memory, vma, at, FAULT_FLAG_ALLOW_RETRY, table, i) & VM_FAULT_ERROR:
                    return ScanResult.FAIL
    return ScanResult.SUCCEED


def _replace(memory: "MemoryManager", mm: "MmStruct", address: int, folio: int) -> ScanResult:
    # The rest of collapse_huge_page, mmap_lock held for write. The kernel takes the table out, closes the window, and
    # copies then; nobody can look meanwhile, so here it is all one section, in which the counts are right.
    vma = _revalidate(memory, mm, address)
    if vma is None:
        return ScanResult.VMA_CHECK
    if not isinstance(_find_table(mm, address), PteTable):
        return ScanResult.NO_PTE_TABLE
    vma_start_write(vma)
    assert vma.anon_vma is not None, vma
    with vma.anon_vma.lock.write():
        range_ = notifier_start(memory, mm, address, address + memory.geometry.pmd_size, MMU_NOTIFY_CLEAR)
        memory.kernel.step()
        table = _find_table(mm, address)
        result = _isolate(memory, vma, table) if isinstance(table, PteTable) else table
        if result is ScanResult.SUCCEED and isinstance(table, PteTable):
            _copy(memory, vma, table, folio)
        notifier_end(memory, range_)
    if result is ScanResult.SUCCEED:
        memory.kernel.charge("cpu_minor_fault_2m")
    return result


def _isolate(memory: "MemoryManager", vma: "Vma", table: PteTable) -> ScanResult:
    # __collapse_huge_page_isolate; the locks that it takes are not seen by anybody, as nothing is left half done here.
    if table.used & ~table.present:
        return ScanResult.PTE_NON_PRESENT
    return _scan(memory, vma, table)


def _copy(memory: "MemoryManager", vma: "Vma", table: PteTable, folio: int) -> None:
    # __collapse_huge_page_copy, and the new PMD
    mm = vma.mm
    nr = memory.geometry.pmd_nr
    mapped = table.present & ~table.zero
    memory.contents.clear_folio(folio, nr)
    pfns = np.array(table.pfns(mapped))
    if mapped:
        memory.contents.copy(indices(mapped) + folio, pfns)
    table.clear(table.used)
    memory.rmap.unmap_pages(pfns)
    mm.page_table.clear(table.block)
    mm.rss[MM_ANONPAGES] += nr - mapped.bit_count()
    memory.rmap.folio_add_new_anon_rmap(folio, vma, table.base)
    mm.page_table.set_leaf(table.block, PmdKind.THP, folio, write=bool(vma.flags & VM_WRITE), dirty=True)
