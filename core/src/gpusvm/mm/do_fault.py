"""mm/memory.c:do_fault and what it calls, as of Linux 7.3.4: faults in areas that have vm_ops, and write faults there.

A read fault first maps what the page cache has around the page, without waiting for anything; only if that did not map
the page itself is it asked for. A write to a private mapping copies the page at once; one to a shared mapping lets the
file system know.
"""

from typing import TYPE_CHECKING, Final

import numpy as np

from gpusvm.mm.api import (
    FAULT_FLAG_WRITE,
    VM_FAULT_OOM,
    VM_FAULT_SIGBUS,
    VM_HUGETLB,
    VM_SHARED,
    VM_WRITE,
    Pfns,
)
from gpusvm.mm.filemap import fault_folio, filemap_pages
from gpusvm.mm.mm_struct import MM_ANONPAGES, MMF_UNSTABLE
from gpusvm.mm.observer import tell
from gpusvm.mm.page import PG_DIRTY, PG_HWPOISON, PG_LOCKED
from gpusvm.mm.pgtable import PmdLeaf, PteTable
from gpusvm.mm.ptemask import indices, lowest, span
from gpusvm.mm.rss import file_counter
from gpusvm.mm.vma import anon_vma_prepare

if TYPE_CHECKING:
    from gpusvm.mm.memory_manager import MemoryManager
    from gpusvm.mm.vma import Vma

__all__ = ["do_fault", "do_wp_shared", "fault_in_file_ptes"]

# fault_around_bytes, 64 KiB of 4 KiB pages.
FAULT_AROUND_PAGES: Final = 16

DONE: Final = 0


def do_fault(memory: "MemoryManager", vma: "Vma", address: int, flags: int) -> int:
    """Handle a fault on a none entry of an area with vm_ops (do_fault)."""
    if vma.file is None:
        # Its driver maps everything at once, and has no vm_ops->fault.
        return VM_FAULT_SIGBUS
    page_table = vma.mm.page_table
    if address >> page_table.pmd_shift not in page_table.entries and memory.kernel.inject("alloc.pte_table"):
        return VM_FAULT_OOM
    if not flags & FAULT_FLAG_WRITE:
        return _do_read_fault(memory, vma, address)
    if vma.flags & VM_SHARED:
        return _do_shared_fault(memory, vma, address)
    return _do_cow_fault(memory, vma, address)


def fault_in_file_ptes(memory: "MemoryManager", vma: "Vma", table: PteTable, mask: int, *, write: bool) -> int:
    """Fault in the none entries of `mask`, a run, at once, as so many faults in a row would; how many there were.

    0, with nothing done, where a page by page fault might do something else: see `fault_in_ptes`.
    """
    mapping = vma.file
    if mapping is None or vma.flags & VM_HUGETLB or not vma.flags & VM_SHARED:
        return 0
    pages = memory.pages
    zone = pages.ram
    base = _index(memory, vma, table.base)  # of page 0 of the table, wherever the area begins
    run = indices(mask)
    if int(run[-1]) + base >= mapping.nr_pages:
        return 0
    cached = mapping.pages
    found = np.array([cached.get(index, -1) for index in (run + base).tolist()], np.int64)
    absent = found < 0
    there = found[~absent]
    bad = PG_LOCKED | PG_HWPOISON
    if (zone.flags[there] & bad).any():
        return 0
    width = len(table.pfn)
    window = min(FAULT_AROUND_PAGES, width)
    start = (vma.start - table.base) >> memory.geometry.page_shift
    if not write and start > 0 and start % window and int(run[0]) < -(-start // window) * window:
        return 0  # the first window is not an aligned one
    around, around_pfns = (0, found[:0]) if write else _around(memory, vma, table, mask, base)
    made = mapping.add_many(run[absent] + base)
    if made is None:
        return 0
    found[absent] = made
    pfns = np.empty(width, np.int64)
    pfns[run] = found
    pfns[indices(around)] = around_pfns
    every = mask | around
    mapped = pfns[indices(every)]
    zone.refcount[mapped] += 1
    zone.mapcount[mapped] += 1
    if memory.kernel.observer is not None:
        tell(memory.kernel.observer, "mapped", zone, mapped)
    if write:
        zone.flags[mapped] |= np.uint16(PG_DIRTY)
    table.set_present(every, mapped, every if write or vma.page_prot_writes else 0, every if write else 0)
    vma.mm.rss[file_counter(vma)] += len(mapped)
    if write:
        memory.kernel.charge("cpu_minor_fault_4k", len(run))
        return len(run)
    # Each page that was not there takes a fault, and those of a window that were take one together, which is that of
    # its first page if that was not there.
    windows = run // window
    first = np.flatnonzero(np.append(True, windows[1:] != windows[:-1]))
    new = int(np.count_nonzero(absent))
    together = {*windows[~absent].tolist(), *(indices(around) // window).tolist()}
    memory.kernel.charge("cpu_minor_fault_4k", new + len(together))
    return new + int(np.count_nonzero(~absent[first]))


def _around(memory: "MemoryManager", vma: "Vma", table: PteTable, mask: int, base: int) -> tuple[int, Pfns]:
    # What fault-around maps besides the pages of `mask` themselves: mask and pages.
    mapping = vma.file
    assert mapping is not None
    shift = memory.geometry.page_shift
    width = len(table.pfn)
    window = min(FAULT_AROUND_PAGES, width)
    low = max(lowest(mask) // window * window, (vma.start - table.base) >> shift)
    high = min(((mask.bit_length() - 1) // window + 1) * window, (vma.end - table.base) >> shift)
    free = span(low, high - low) & ~mask & ~table.used
    found = filemap_pages(mapping, low + base, high + base - 1) if free else []
    there = [(index - base, pfn) for index, pfn in found if free >> (index - base) & 1]
    bits = 0
    for position, _ in there:
        bits |= 1 << position
    return bits, np.array([pfn for _, pfn in there], np.int64)


def _index(memory: "MemoryManager", vma: "Vma", address: int) -> int:
    return memory.rmap.linear_index(vma, address)


def _do_read_fault(memory: "MemoryManager", vma: "Vma", address: int) -> int:
    if _do_fault_around(memory, vma, address):
        return DONE
    assert vma.file is not None
    error, pfn = fault_folio(vma.file, _index(memory, vma, address))
    if error:
        return error
    ret = _finish_fault(memory, vma, address, pfn, write=False)
    memory.pages.folio_unlock(pfn)
    memory.pages.folio_put(pfn)
    return ret


def _do_fault_around(memory: "MemoryManager", vma: "Vma", address: int) -> bool:
    # do_fault_around, filemap_map_pages: the aligned window, or as many pages from the area's start if it begins in it,
    # cut to the area and the table; True if the page itself is mapped now.
    mapping = vma.file
    assert mapping is not None
    geometry = memory.geometry
    shift = geometry.page_shift
    page_table = vma.mm.page_table
    window = min(FAULT_AROUND_PAGES, geometry.pmd_nr) << shift
    low = max(address & -window, vma.start)
    table_end = (address & -geometry.pmd_size) + geometry.pmd_size
    high = min(low + window, vma.end, table_end)
    first = _index(memory, vma, low)
    memory.kernel.step()
    if isinstance(page_table.lookup(address), PmdLeaf):
        return True
    found = filemap_pages(mapping, first, first + ((high - low) >> shift) - 1)
    if not found:
        return False
    last = mapping.nr_pages - 1
    if found[0][0] == last and not mapping.swapbacked and address >> geometry.pmd_shift not in page_table.entries:
        # filemap_map_pages: filemap_map_pmd, which brings the missing table, is not asked about a folio at the end.
        return False
    table = page_table.table(address >> geometry.pmd_shift)
    at = (low - table.base) >> shift
    used = table.used
    mask = 0
    pfns: list[int] = []
    for index, pfn in found:
        bit = 1 << (at + index - first)
        if not used & bit:
            mask |= bit
            pfns.append(pfn)
    if mask:
        _map_file_pages(memory, vma, table, mask, pfns, write=False)
        memory.kernel.charge("cpu_minor_fault_4k")
    return bool(table.used >> ((address - table.base) >> shift) & 1)


def _map_file_pages(
    memory: "MemoryManager", vma: "Vma", table: PteTable, mask: int, pfns: list[int], *, write: bool
) -> None:
    # set_pte_range with folio_add_file_rmap_ptes: each mapping takes a reference. What a read fault may write is what
    # vm_page_prot says; a write fault makes its page writable and dirty.
    for pfn in pfns:
        memory.pages.folio_get(pfn)
        memory.rmap.folio_add_file_rmap_pte(pfn)
    writable = mask if write or vma.page_prot_writes else 0
    table.set_present(mask, np.array(pfns), writable, mask if write else 0)
    vma.mm.rss[file_counter(vma)] += len(pfns)


def _finish_fault(memory: "MemoryManager", vma: "Vma", address: int, pfn: int, *, write: bool) -> int:
    # finish_fault for a page of the cache, which is locked.
    page_table = vma.mm.page_table
    memory.kernel.step()
    if isinstance(page_table.lookup(address), PmdLeaf):
        return DONE
    if not vma.flags & VM_SHARED and vma.mm.flags & MMF_UNSTABLE:
        return VM_FAULT_SIGBUS
    table = page_table.table(address >> page_table.pmd_shift)
    bit = 1 << ((address - table.base) >> page_table.page_shift)
    if not table.used & bit:
        _map_file_pages(memory, vma, table, bit, [pfn], write=write)
        memory.kernel.charge("cpu_minor_fault_4k")
    return DONE


def _do_shared_fault(memory: "MemoryManager", vma: "Vma", address: int) -> int:
    mapping = vma.file
    assert mapping is not None
    error, pfn = fault_folio(mapping, _index(memory, vma, address))
    if error:
        return error
    # do_page_mkwrite: file systems here always agree, so that its lock need not be dropped for it.
    ret = _finish_fault(memory, vma, address, pfn, write=True)
    memory.pages.ram.m_flags[pfn] |= PG_DIRTY  # fault_dirty_shared_page
    memory.pages.folio_unlock(pfn)
    memory.pages.folio_put(pfn)
    return ret


def _do_cow_fault(memory: "MemoryManager", vma: "Vma", address: int) -> int:
    mapping = vma.file
    assert mapping is not None
    pages = memory.pages
    mm = vma.mm
    anon_vma_prepare(memory, vma)
    new = pages.alloc_folio(0)
    if new is None:
        return VM_FAULT_OOM
    error, old = fault_folio(mapping, _index(memory, vma, address))
    if error:
        pages.folio_put(new)
        return error
    memory.contents.copy_folio(new, old, 1)
    page_table = mm.page_table
    memory.kernel.step()
    ret = DONE
    mapped = isinstance(page_table.lookup(address), PmdLeaf)
    if not mapped and mm.flags & MMF_UNSTABLE:
        ret = VM_FAULT_SIGBUS
    elif not mapped:
        table = page_table.table(address >> page_table.pmd_shift)
        bit = 1 << ((address - table.base) >> page_table.page_shift)
        if not table.used & bit:
            mm.rss[MM_ANONPAGES] += 1
            memory.rmap.folio_add_new_anon_rmap(new, vma, address)
            table.set_present(bit, new, bit if vma.flags & VM_WRITE else 0, bit)
            memory.contents.copied_from_file(vma, address)
            new = -1
    if new >= 0:
        pages.folio_put(new)
    pages.folio_unlock(old)
    pages.folio_put(old)
    memory.kernel.charge("cpu_minor_fault_4k")
    return ret


def do_wp_shared(memory: "MemoryManager", vma: "Vma", address: int, table: PteTable, i: int) -> int:
    """Make a read-only entry of a shared mapping writable (do_wp_page: wp_page_shared, wp_pfn_shared)."""
    bit = 1 << i
    pages = memory.pages
    pfn = table.m_pfn[i]
    if not table.special & bit:
        head = pages.folio_head(pfn)
        pages.folio_get(head)
        # do_page_mkwrite returns with the page locked, and finish_mkwrite_fault looks at the entry again.
        pages.folio_lock(head)
        memory.kernel.step()
        same = vma.mm.page_table.lookup(address) is table and table.present & bit and table.m_pfn[i] == pfn
        if same:
            zone = pages.zone(head)
            zone.m_flags[head - zone.base] |= PG_DIRTY
            table.set_write(bit, bit if vma.flags & VM_WRITE else 0)
            table.set_dirty(bit)
        pages.folio_unlock(head)
        pages.folio_put(head)
        return DONE
    table.set_write(bit, bit if vma.flags & VM_WRITE else 0)
    table.set_dirty(bit)
    return DONE
