"""arch/x86/mm/fault.c, as of Linux 7.3.4, and the accesses that bring it about: the CPUs of the modelled machine.

An access that the page table allows is checked or noted by `memory.contents` at once, many together; one that it does
not allow takes a fault, as often as it needs.
"""

from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from gpusvm.errors import CpuSignal, LivelockError
from gpusvm.mm.api import (
    FAULT_FLAG_ALLOW_RETRY,
    FAULT_FLAG_KILLABLE,
    FAULT_FLAG_USER,
    FAULT_FLAG_VMA_LOCK,
    FAULT_FLAG_WRITE,
    VM_FAULT_ERROR,
    VM_FAULT_HWPOISON,
    VM_FAULT_HWPOISON_LARGE,
    VM_FAULT_OOM,
    VM_FAULT_RETRY,
    VM_FAULT_SIGBUS,
    VM_FAULT_SIGSEGV,
    VM_WRITE,
    Bools,
    Pfns,
)
from gpusvm.mm.memory import fault_in_ptes, handle_mm_fault
from gpusvm.mm.mmap_lock import lock_vma_under_rcu, vma_end_read
from gpusvm.mm.pgtable import PmdKind, PmdLeaf, PteTable
from gpusvm.mm.ptemask import bools, span
from gpusvm.mm.vma import Vma, is_accessible

if TYPE_CHECKING:
    from gpusvm.mm.memory_manager import MemoryManager
    from gpusvm.mm.mm_struct import MmStruct

SIGBUS: Final = 7
SIGKILL: Final = 9
SIGSEGV: Final = 11

# Answers of VM_FAULT_OOM in a row after which the OOM killer finds no other victim.
OOM_MAX: Final = 64
# Accesses looked up at once; after a miss fewer, as what follows a miss misses too.
PIECE: Final = 4096
PIECE_AFTER_MISS: Final = 64


def cpu_access(memory: "MemoryManager", mm: "MmStruct", vpns: Pfns, is_write: Bools) -> None:
    """Let a CPU touch pages in order, faulting where it must.

    `vpns[i]` is a virtual page number, `is_write[i]` whether it is written. CpuSignal where the process would get
    one; the accesses before it are done.
    """
    at, n = 0, len(vpns)
    piece = PIECE
    while at < n:
        stop = min(n, at + piece)
        good, pfns = _look_up(memory, mm, vpns[at:stop], is_write[at:stop])
        if mm.had_prot_none:
            good = _before_prot_none(memory, mm, vpns[at : at + good])
        if good:
            memory.contents.access_many(mm, vpns[at : at + good], pfns[:good], is_write[at : at + good])
            at += good
            piece = min(2 * piece, PIECE)
        if at < stop:
            piece = PIECE_AFTER_MISS
            vpn = int(vpns[at])
            writes = bool(is_write[at])
            if writes == bool(is_write[min(at + 1, n - 1)]) and _fault_run(memory, mm, vpns, is_write, at):
                piece = PIECE
                continue
            cpu_fault(memory, mm, vpn << memory.geometry.page_shift, write=writes)
            # A driver's timeslice lets the fault mend nothing, thousands of times: the other accesses need no look
            # until it does.
            left = memory.cpu_faults_max
            while _is_private(mm, vpn):
                left -= 1
                if not left:
                    raise LivelockError(
                        f"a CPU faults on page {vpn:#x} of {mm.name!r} for ever: {memory.cpu_faults_max:,} times in a "
                        "row the driver says that the page may be tried again, and has not moved it"
                    )
                cpu_fault(memory, mm, vpn << memory.geometry.page_shift, write=writes)


def _is_private(mm: "MmStruct", vpn: int) -> bool:
    # Whether a page is in device-private memory, where no CPU access reaches it.
    page_table = mm.page_table
    entry = page_table.lookup(vpn << page_table.page_shift)
    if isinstance(entry, PteTable):
        return bool(entry.private >> (vpn & (page_table.pmd_nr - 1)) & 1)
    return entry is not None and entry.kind is PmdKind.PRIVATE


def _look_up(memory: "MemoryManager", mm: "MmStruct", vpns: Pfns, is_write: Bools) -> tuple[int, Pfns]:
    # How many of the accesses, from the first on, the page table allows, and the pages they reach.
    order = memory.geometry.pmd_order
    n = len(vpns)
    blocks = vpns >> order
    cuts = np.flatnonzero(blocks[1:] != blocks[:-1]) + 1
    pfns: Pfns = np.empty(n, dtype=np.int64)
    if len(cuts) > n >> 3 and n > PIECE_AFTER_MISS:
        # Scattered: the accesses of each block together, and afterwards back in their order.
        where = np.argsort(blocks, kind="stable")
        vpns, is_write, blocks = vpns[where], is_write[where], blocks[where]
        cuts = np.flatnonzero(blocks[1:] != blocks[:-1]) + 1
        found: Pfns = np.empty(n, dtype=np.int64)
        misses = n
        begin = 0
        for stop in [*cuts.tolist(), n]:
            good = _look_up_block(memory, mm, vpns, is_write, begin, stop, found)
            if begin + good < stop:
                misses = min(misses, int(where[begin + good]))
            begin = stop
        pfns[where] = found
        return misses, pfns
    begin = 0
    for stop in [*cuts.tolist(), n]:
        good = _look_up_block(memory, mm, vpns, is_write, begin, stop, pfns)
        if begin + good < stop:
            return begin + good, pfns
        begin = stop
    return n, pfns


def _look_up_block(
    memory: "MemoryManager", mm: "MmStruct", vpns: Pfns, is_write: Bools, begin: int, stop: int, pfns: Pfns
) -> int:
    # The same for the accesses [begin, stop), which lie in one block.
    inside = memory.geometry.pmd_nr - 1
    entry = mm.page_table.entries.get(int(vpns[begin]) >> memory.geometry.pmd_order)
    pages = vpns[begin:stop] & inside
    writes = is_write[begin:stop]
    if isinstance(entry, PteTable):
        allowed = bools(entry.present, inside + 1).take(pages)
        if entry.present != entry.write:
            allowed &= bools(entry.write, inside + 1).take(pages) | ~writes
        pfns[begin:stop] = entry.pfn.take(pages)
    elif entry is None or entry.kind not in _MAPPED:
        return 0
    else:
        np.add(pages, entry.pfn, out=pfns[begin:stop])
        if entry.write:
            return stop - begin
        allowed = ~writes
    return stop - begin if allowed.all() else int(allowed.argmin())


def _before_prot_none(memory: "MemoryManager", mm: "MmStruct", vpns: Pfns) -> int:
    # How many of the accesses come before the first to an area without any access: its entries are pte_protnone, which
    # is a matter of the area here and no bit of the entry.
    shift = memory.geometry.page_shift
    good = len(vpns)
    for vma in mm.vmas:
        if not is_accessible(vma):
            inside = (vpns >= vma.start >> shift) & (vpns < vma.end >> shift)
            if inside.any():
                good = min(good, int(inside.argmax()))
    return good


_MAPPED: Final = (PmdKind.THP, PmdKind.HUGE_ZERO, PmdKind.HUGETLB)


def _fault_run(memory: "MemoryManager", mm: "MmStruct", vpns: Pfns, is_write: npt.NDArray[np.bool_], at: int) -> bool:
    # Take the faults of neighbouring pages of one table, all none and all touched one after the other in the same
    # way, at once.
    order = memory.geometry.pmd_order
    vpn = int(vpns[at])
    entry = mm.page_table.entries.get(vpn >> order)
    if memory.kernel.explored or not isinstance(entry, PteTable):
        return False
    i = vpn & (memory.geometry.pmd_nr - 1)
    left = min(memory.geometry.pmd_nr - i, len(vpns) - at)
    write = bool(is_write[at])
    same = (vpns[at : at + left] == np.arange(vpn, vpn + left)) & (is_write[at : at + left] == write)
    n = left if same.all() else int(same.argmin())
    free = (span(i, n) & ~entry.used) >> i
    n = ((free + 1) & ~free).bit_length() - 1
    if n < 2:
        return False
    with mm.mmap_lock.read():
        vma = mm.vma_lookup(vpn << memory.geometry.page_shift)
        if vma is None or not _allowed(vma, write=write):
            return False
        n = min(n, (vma.end >> memory.geometry.page_shift) - vpn)
        # The lock may have been waited for.
        mask = span(i, n)
        if mm.page_table.entries.get(vpn >> order) is not entry or entry.used & mask:
            return False
        faults = fault_in_ptes(memory, vma, entry, mask, write=write)
        if not faults:
            return False
        memory.kernel.stats.cpu_minor_faults += faults
    return True


def _allowed(vma: Vma, *, write: bool) -> bool:
    # access_error
    return bool(vma.flags & VM_WRITE) if write else is_accessible(vma)


def cpu_fault(memory: "MemoryManager", mm: "MmStruct", address: int, *, write: bool) -> None:
    """Take one page fault of a CPU, which may mend nothing: the access is then tried again (do_user_addr_fault)."""
    kernel = memory.kernel
    before_ns = kernel.now_ns
    flags = FAULT_FLAG_USER | FAULT_FLAG_ALLOW_RETRY | FAULT_FLAG_KILLABLE | (FAULT_FLAG_WRITE if write else 0)
    device_faults = kernel.stats.cpu_faults
    ret = _fault_under_vma_lock(memory, mm, address, flags, write=write) if kernel.explored else VM_FAULT_RETRY
    if ret & VM_FAULT_RETRY:
        ret = _fault_under_mmap_lock(memory, mm, address, flags, write=write)
    if ret & VM_FAULT_RETRY:
        # The handler gave the lock up to wait, and the access is tried again unless that wait was ended.
        if kernel.current.fatal_signal_pending:
            raise CpuSignal(SIGKILL, address)
        return
    if ret & VM_FAULT_ERROR:
        if ret & VM_FAULT_OOM:
            # pagefault_out_of_memory: the access is tried again, and whoever is to blame may be gone by then.
            mm.oom_in_a_row += 1
            if mm.oom_in_a_row < OOM_MAX:
                memory.refault(before_ns)
                return
            raise CpuSignal(SIGKILL, address)
        if ret & (VM_FAULT_SIGBUS | VM_FAULT_HWPOISON | VM_FAULT_HWPOISON_LARGE):
            raise CpuSignal(SIGBUS, address)
        raise CpuSignal(SIGSEGV, address)
    mm.oom_in_a_row = 0
    if kernel.stats.cpu_faults == device_faults:
        kernel.stats.cpu_minor_faults += 1
    memory.refault(before_ns)


def _fault_under_vma_lock(memory: "MemoryManager", mm: "MmStruct", address: int, flags: int, *, write: bool) -> int:
    # The fault with only its area locked; VM_FAULT_RETRY where that is not enough. Timed mode goes without: what
    # differs is only who may come between.
    vma = lock_vma_under_rcu(mm, address)
    if vma is None:
        return VM_FAULT_RETRY
    try:
        if not _allowed(vma, write=write):
            raise CpuSignal(SIGSEGV, address)
        # An anon_vma is made, and a driver's area filled, under mmap_lock.
        if (vma.is_cow and vma.anon_vma is None) or (vma.file is None and not vma.is_anonymous):
            return VM_FAULT_RETRY
        return handle_mm_fault(memory, vma, address, flags | FAULT_FLAG_VMA_LOCK)
    finally:
        vma_end_read(vma)


def _fault_under_mmap_lock(memory: "MemoryManager", mm: "MmStruct", address: int, flags: int, *, write: bool) -> int:
    # With VM_FAULT_RETRY the handler has given the lock up.
    lock = mm.mmap_lock
    lock.down_read()
    ret = VM_FAULT_SIGSEGV
    try:
        vma = mm.vma_lookup(address)
        if vma is not None and _allowed(vma, write=write):
            ret = handle_mm_fault(memory, vma, address, flags)
    finally:
        if not ret & VM_FAULT_RETRY:
            lock.up_read()
    return ret


def _touch(memory: "MemoryManager", mm: "MmStruct", address: int, *, write: bool) -> int:
    # Fault until the page table allows the access; the page that it reaches.
    page_table = mm.page_table
    shift, inside = page_table.page_shift, page_table.pmd_nr - 1
    again = False
    while True:
        entry = page_table.lookup(address)
        i = (address >> shift) & inside
        if mm.had_prot_none and not is_accessible(mm.vma_lookup(address)):
            pass
        elif isinstance(entry, PteTable):
            if (entry.write & entry.present if write else entry.present) >> i & 1:
                return entry.m_pfn[i]
        elif isinstance(entry, PmdLeaf) and entry.kind in _MAPPED and (entry.write or not write):
            return entry.pfn + i
        if again and not mm.oom_in_a_row:  # which ends by itself
            memory.kernel.retried()
        again = True
        cpu_fault(memory, mm, address, write=write)


def cpu_read(memory: "MemoryManager", mm: "MmStruct", address: int) -> int:
    """Read one page and return the token found. CpuSignal."""
    pfn = _touch(memory, mm, address, write=False)
    return memory.contents.read(mm, address >> memory.geometry.page_shift, pfn)


def cpu_write(memory: "MemoryManager", mm: "MmStruct", address: int) -> int:
    """Write one page and return the new token. CpuSignal."""
    pfn = _touch(memory, mm, address, write=True)
    return memory.contents.write(mm, address >> memory.geometry.page_shift, pfn)
