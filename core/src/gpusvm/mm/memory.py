"""mm/memory.c and mm/huge_memory.c, as of Linux 7.3.4: what a fault does, whoever takes it.

`handle_mm_fault` maps, upgrades, copies or brings home one page (or one block) and returns VM_FAULT_ bits; 0 only
means "look again". The caller holds mmap_lock and has checked what the area allows. In timed mode `fault_in_ptes`
does the same for many none entries of one table at once, with the same result.
"""

from typing import TYPE_CHECKING, Final

from gpusvm.errors import LivelockError, ModelError
from gpusvm.mm.api import (
    FAULT_FLAG_ALLOW_RETRY,
    FAULT_FLAG_KILLABLE,
    FAULT_FLAG_UNSHARE,
    FAULT_FLAG_USER,
    FAULT_FLAG_VMA_LOCK,
    FAULT_FLAG_WRITE,
    MMU_NOTIFY_CLEAR,
    VM_FAULT_FALLBACK,
    VM_FAULT_HWPOISON,
    VM_FAULT_MAJOR,
    VM_FAULT_OOM,
    VM_FAULT_RETRY,
    VM_FAULT_SIGBUS,
    VM_FAULT_SIGSEGV,
    VM_HUGETLB,
    VM_MAYWRITE,
    VM_SHARED,
    VM_UFFD_MISSING,
    VM_WRITE,
    VmFault,
)
from gpusvm.mm.do_fault import do_fault, do_wp_shared, fault_in_file_ptes
from gpusvm.mm.huge_memory import split_huge_pmd
from gpusvm.mm.hugetlb import hugetlb_fault
from gpusvm.mm.mm_struct import MM_ANONPAGES, MMF_UNSTABLE
from gpusvm.mm.mmu_notifier import notifier_end, notifier_start
from gpusvm.mm.observer import tell
from gpusvm.mm.page import PG_ANON_EXCLUSIVE, PG_DIRTY, PG_LOCKED, Zone
from gpusvm.mm.pgtable import OtherPte, PmdKind, PmdLeaf, PteKind, PteTable
from gpusvm.mm.ptemask import indices
from gpusvm.mm.rmap_walk import mapcount_in
from gpusvm.mm.rss import file_counter
from gpusvm.mm.userfaultfd import handle_userfault
from gpusvm.mm.vma import anon_vma_prepare, thp_allowed

if TYPE_CHECKING:
    from gpusvm.mm.memory_manager import MemoryManager
    from gpusvm.mm.vma import Vma

# Answers of the huge paths that send the fault on to the PTE level are VM_FAULT_FALLBACK, as in the kernel.
DONE: Final = 0


def handle_mm_fault(memory: "MemoryManager", vma: "Vma", address: int, flags: int) -> int:
    """Handle one fault (handle_mm_fault, __handle_mm_fault)."""
    vm_flags = vma.flags
    if flags & FAULT_FLAG_WRITE:
        if not vm_flags & VM_MAYWRITE or (not vm_flags & VM_WRITE and not vma.is_cow) or flags & FAULT_FLAG_UNSHARE:
            return VM_FAULT_SIGSEGV
    elif flags & FAULT_FLAG_UNSHARE and not vma.is_cow:
        flags &= ~FAULT_FLAG_UNSHARE
    if memory.kernel.observer is not None:
        tell(memory.kernel.observer, "operation_begins", "handle_mm_fault", vma, address)
    if vm_flags & VM_HUGETLB:
        return hugetlb_fault(memory, vma, address, flags)
    page_table = vma.mm.page_table
    block = address >> page_table.pmd_shift
    page_table.pud_alloc(address)
    memory.kernel.step()
    entry = page_table.entries.get(block)
    if entry is None:
        if thp_allowed(memory, vma, block):
            ret = _do_huge_pmd_anonymous_page(memory, vma, address, flags)
            if not ret & VM_FAULT_FALLBACK:
                return ret
    elif isinstance(entry, PmdLeaf):
        kind = entry.kind
        if kind is PmdKind.PRIVATE:
            return _do_huge_pmd_device_private(memory, vma, address, flags, entry)
        if kind is PmdKind.MIGRATION:
            memory.pages.folio_wait_locked(entry.pfn)
            return DONE
        if entry.write or not flags & (FAULT_FLAG_WRITE | FAULT_FLAG_UNSHARE):
            return DONE
        ret = _do_huge_pmd_wp_page(memory, vma, block, entry, flags)
        if not ret & VM_FAULT_FALLBACK:
            return ret
    return _handle_pte_fault(memory, vma, address, flags)


# --- PMD level, mm/huge_memory.c


def _do_huge_pmd_anonymous_page(memory: "MemoryManager", vma: "Vma", address: int, flags: int) -> int:
    mm = vma.mm
    page_table = mm.page_table
    block = address >> page_table.pmd_shift
    anon_vma_prepare(memory, vma)
    if not flags & FAULT_FLAG_WRITE:
        if memory.kernel.inject("alloc.pte_table"):  # the one to deposit
            return VM_FAULT_OOM
        pfn = memory.huge_zero_folio()
        if pfn is None:
            return VM_FAULT_FALLBACK
        memory.kernel.step()
        if block not in page_table.entries:
            if mm.flags & MMF_UNSTABLE:
                return VM_FAULT_SIGBUS
            if vma.flags & VM_UFFD_MISSING:
                return handle_userfault(memory, vma, address, flags)
            page_table.set_leaf(block, PmdKind.HUGE_ZERO, pfn, write=False)
            memory.kernel.charge("cpu_minor_fault_4k")  # one entry; what it maps was cleared long ago
        return DONE
    geometry = memory.geometry
    pfn = memory.pages.alloc_folio(geometry.pmd_order)
    if pfn is None:
        return VM_FAULT_FALLBACK
    if memory.kernel.inject("alloc.pte_table"):
        memory.pages.folio_put(pfn)
        return VM_FAULT_OOM
    memory.contents.clear_folio(pfn, geometry.pmd_nr)
    memory.kernel.step()
    if block in page_table.entries or mm.flags & MMF_UNSTABLE:
        memory.pages.folio_put(pfn)
        return DONE if block in page_table.entries else VM_FAULT_SIGBUS
    if vma.flags & VM_UFFD_MISSING:
        memory.pages.folio_put(pfn)
        return handle_userfault(memory, vma, address, flags)
    _map_anon_folio_pmd(memory, vma, block, pfn)
    memory.kernel.charge("cpu_minor_fault_2m")
    return DONE


def _map_anon_folio_pmd(memory: "MemoryManager", vma: "Vma", block: int, pfn: int) -> None:
    # map_anon_folio_pmd
    mm = vma.mm
    memory.rmap.folio_add_new_anon_rmap(pfn, vma, block << mm.page_table.pmd_shift)
    mm.page_table.set_leaf(block, PmdKind.THP, pfn, write=bool(vma.flags & VM_WRITE), dirty=True)
    mm.rss[MM_ANONPAGES] += memory.geometry.pmd_nr


def _do_huge_pmd_wp_page(memory: "MemoryManager", vma: "Vma", block: int, leaf: PmdLeaf, flags: int) -> int:
    page_table = vma.mm.page_table
    pages = memory.pages
    if leaf.kind is PmdKind.HUGE_ZERO:
        ret = _do_huge_zero_wp_pmd(memory, vma, block, leaf)
        if not ret & VM_FAULT_FALLBACK:
            return ret
    else:
        zone = pages.ram if leaf.pfn < pages.ram_pages else pages.zone(leaf.pfn)
        i = leaf.pfn - zone.base
        locked = not zone.m_flags[i] & PG_ANON_EXCLUSIVE
        if locked:
            if not pages.folio_trylock(leaf.pfn):
                pages.folio_get(leaf.pfn)
                pages.folio_lock(leaf.pfn)
                memory.kernel.step()
                if page_table.entries.get(block) is not leaf:
                    pages.folio_unlock(leaf.pfn)
                    pages.folio_put(leaf.pfn)
                    return DONE
                pages.folio_put(leaf.pfn)
            if zone.m_refcount[i] == 1:
                # Nobody else can have it any more: the mapping takes the folio over.
                folio_move_anon_rmap(zone, i, vma)
                zone.m_flags[i] |= PG_ANON_EXCLUSIVE
        exclusive = bool(zone.m_flags[i] & PG_ANON_EXCLUSIVE)
        if exclusive and vma.flags & VM_WRITE and not flags & FAULT_FLAG_UNSHARE:
            page_table.set_leaf(block, leaf.kind, leaf.pfn, write=True, dirty=True)
        if locked:
            pages.folio_unlock(leaf.pfn)
        if exclusive:
            return DONE
    split_huge_pmd(memory, vma, block << page_table.pmd_shift)
    return VM_FAULT_FALLBACK


def _do_huge_zero_wp_pmd(memory: "MemoryManager", vma: "Vma", block: int, leaf: PmdLeaf) -> int:
    mm = vma.mm
    geometry = memory.geometry
    pfn = memory.pages.alloc_folio(geometry.pmd_order)
    if pfn is None:
        return VM_FAULT_FALLBACK
    memory.contents.clear_folio(pfn, geometry.pmd_nr)
    start = block << geometry.pmd_shift
    range_ = notifier_start(memory, mm, start, start + geometry.pmd_size, MMU_NOTIFY_CLEAR)
    memory.kernel.step()
    ret = DONE
    if mm.page_table.entries.get(block) is not leaf:
        memory.pages.folio_put(pfn)
    elif mm.flags & MMF_UNSTABLE:
        memory.pages.folio_put(pfn)
        ret = VM_FAULT_SIGBUS
    else:
        mm.page_table.clear(block)
        _map_anon_folio_pmd(memory, vma, block, pfn)
    notifier_end(memory, range_)
    memory.kernel.charge("cpu_minor_fault_2m")
    return ret


def _do_huge_pmd_device_private(memory: "MemoryManager", vma: "Vma", address: int, flags: int, leaf: PmdLeaf) -> int:
    if flags & FAULT_FLAG_VMA_LOCK:
        return VM_FAULT_RETRY  # migrate_to_ram wants mmap_lock
    pages = memory.pages
    if not hold_fault_page(memory, leaf.pfn):
        # MM-Q9: no wait here, other than for a PTE; the task faults again, and again until the lock is free.
        if memory.quirks.mm_q9 == "fixed":
            pages.folio_wait_locked(leaf.pfn)
        elif memory.kernel.explored:
            memory.kernel.cpu_relax()
        return DONE
    return _migrate_to_ram(memory, VmFault(vma.mm, vma, address, leaf.pfn, pte_level=False, flags=flags))


def hold_fault_page(memory: "MemoryManager", head: int) -> bool:
    """Lock a device folio that a CPU touches and take a reference, in the section that found its entry: behind that
    the entry may go at any time, and the page and the driver's data with it. False if somebody has it locked.
    """
    if not memory.pages.folio_trylock(head):
        return False
    memory.pages.folio_get(head)
    return True


def release_fault_page(memory: "MemoryManager", page: int) -> None:
    """Undo that for the folio that holds the page by now: it may have been split.

    Unlocked it is not free yet: who goes by physical pages may lock it, though its contents have moved.
    """
    head = memory.pages.folio_head(page)
    memory.pages.folio_unlock(head)
    memory.kernel.step()
    memory.pages.folio_put(head)


def _migrate_to_ram(memory: "MemoryManager", vmf: VmFault) -> int:
    # The tail of do_swap_page and of do_huge_pmd_device_private.
    kernel = memory.kernel
    pages = memory.pages
    if vmf.flags & FAULT_FLAG_USER:
        kernel.stats.cpu_faults += 1
    if kernel.tracer.on:
        kernel.tracer.emit("migrate_to_ram", vmf.mm.name, vmf.address, vmf.page)
    kernel.charge("cpu_fault")
    kernel.step()
    zone = pages.zone(vmf.page)
    pgmap = zone.pgmap
    assert pgmap is not None, f"device-private entry for pfn {vmf.page:#x} of system memory"
    if not zone.m_refcount[pages.folio_head(vmf.page) - zone.base]:
        raise ModelError(f"use after free: migrate_to_ram is called for page {vmf.page:#x}, which is free")
    ret = pgmap.ops.migrate_to_ram(vmf)
    release_fault_page(memory, vmf.page)
    return ret


# --- PTE level, mm/memory.c


def _handle_pte_fault(memory: "MemoryManager", vma: "Vma", address: int, flags: int) -> int:
    page_table = vma.mm.page_table
    block = address >> page_table.pmd_shift
    table = page_table.entries.get(block)
    if isinstance(table, PmdLeaf):
        return DONE
    i = (address >> page_table.page_shift) & (page_table.pmd_nr - 1)
    bit = 1 << i
    if table is None or not table.used & bit:
        if vma.is_anonymous:
            return _do_anonymous_page(memory, vma, address, flags)
        return do_fault(memory, vma, address, flags)
    if table.present & bit:
        if flags & (FAULT_FLAG_WRITE | FAULT_FLAG_UNSHARE) and not table.write & bit:
            return _do_wp_page(memory, vma, address, flags, table, i)
        return DONE
    return do_swap_page(memory, vma, address, flags, table, i)


def _do_anonymous_page(memory: "MemoryManager", vma: "Vma", address: int, flags: int) -> int:
    mm = vma.mm
    page_table = mm.page_table
    block = address >> page_table.pmd_shift
    if block not in page_table.entries and memory.kernel.inject("alloc.pte_table"):
        return VM_FAULT_OOM
    bit = 1 << ((address >> page_table.page_shift) & (page_table.pmd_nr - 1))
    pfn = -1
    if flags & FAULT_FLAG_WRITE:
        anon_vma_prepare(memory, vma)
        new = memory.pages.alloc_folio(0)
        if new is None:
            return VM_FAULT_OOM
        pfn = new
        memory.contents.clear_folio(pfn, 1)
        memory.kernel.step()
    if isinstance(page_table.entries.get(block), PmdLeaf):
        # A huge fault or hole fill was faster.
        if pfn >= 0:
            memory.pages.folio_put(pfn)
        return DONE
    table = page_table.table(block)
    if table.used & bit or mm.flags & MMF_UNSTABLE:
        if pfn >= 0:
            memory.pages.folio_put(pfn)
        return DONE if table.used & bit else VM_FAULT_SIGBUS
    if vma.flags & VM_UFFD_MISSING:
        if pfn >= 0:
            memory.pages.folio_put(pfn)
        return handle_userfault(memory, vma, address, flags)
    if pfn < 0:
        table.set_zero(bit, memory.zero_pfn)
    else:
        mm.rss[MM_ANONPAGES] += 1
        memory.rmap.folio_add_new_anon_rmap(pfn, vma, address)
        table.set_present(bit, pfn, bit if vma.flags & VM_WRITE else 0, bit)
    memory.kernel.charge("cpu_minor_fault_4k")
    return DONE


def fault_in_ptes(memory: "MemoryManager", vma: "Vma", table: PteTable, mask: int, *, write: bool) -> int:
    """Fault in the none entries of `mask`, a run, at once, as so many faults in a row would; how many there were.

    0, with nothing done, where a page by page fault might do something else: in explored mode, where others may
    come between, and when memory is short.
    """
    mm = vma.mm
    kernel = memory.kernel
    if kernel.explored or mm.flags & MMF_UNSTABLE or vma.flags & VM_UFFD_MISSING:
        return 0
    if not vma.is_anonymous:
        return fault_in_file_ptes(memory, vma, table, mask, write=write)
    n = mask.bit_count()
    if not write:
        table.set_zero(mask, memory.zero_pfn)
    else:
        anon_vma_prepare(memory, vma)
        pfns = memory.pages.alloc_pages_bulk(n)
        if pfns is None:
            return 0
        memory.contents.clear(pfns)
        mm.rss[MM_ANONPAGES] += n
        shift = memory.geometry.page_shift
        memory.rmap.folios_add_new_anon_rmap(pfns, vma, table.base + (indices(mask) << shift))
        table.set_present(mask, pfns, mask if vma.flags & VM_WRITE else 0, mask)
    kernel.charge("cpu_minor_fault_4k", n)
    return n


def do_swap_page(memory: "MemoryManager", vma: "Vma", address: int, flags: int, table: PteTable, i: int) -> int:
    """Bring in what entry `i`, which is not present, stands for; 0 may mean that nothing came of it."""
    bit = 1 << i
    pages = memory.pages
    pfn = table.m_pfn[i]
    if table.other & bit:
        return _do_other(memory, vma, address, flags, table, i)
    if table.migration & bit:
        head = pages.folio_head(pfn)
        zone = pages.zone(head)
        if not zone.m_refcount[head - zone.base]:
            # softleaf_to_folio warns. Nobody will ever put the entry back, and the fault would be taken for ever.
            raise LivelockError(
                f"livelock: the migration entry at {address:#x} of {vma.mm.name} names pfn {pfn:#x}, which is free"
            )
        pages.folio_wait_locked(head)
        return DONE
    if table.devexcl & bit:
        return remove_device_exclusive_entry(memory, vma, address, table, i, flags)
    if flags & FAULT_FLAG_VMA_LOCK:
        return VM_FAULT_RETRY  # migrate_to_ram wants mmap_lock
    if not lock_device_page(memory, pages.folio_head(pfn)):
        return DONE
    return _migrate_to_ram(memory, VmFault(vma.mm, vma, address, pfn, pte_level=True, flags=flags))


def lock_device_page(memory: "MemoryManager", head: int) -> bool:
    """Lock a device-private folio that a CPU touches, and only then take a reference; False after a wait for others.

    The lock comes first, as the references of several CPUs would keep each of them from migrating the page:
    1afaeb8293c9 ("mm/migrate: Trylock device page in do_swap_page") (in v6.15). A CPU that does not get it waits, and
    does not spin, as it may be the one that the owner of the lock waits for: b570f37a2ce4 ("mm: Fix a hmm_range_fault()
    livelock / starvation problem") (in v7.0).
    """
    if hold_fault_page(memory, head):
        return True
    # softleaf_entry_wait_on_locked: no reference is held meanwhile, so the page may be gone afterwards.
    memory.pages.folio_wait_locked(head)
    return False


def _do_other(memory: "MemoryManager", vma: "Vma", address: int, flags: int, table: PteTable, i: int) -> int:
    # do_swap_page and handle_pte_marker, for what maps no page
    entry = table.others[i]
    if entry.kind is PteKind.SWAP:
        return _swap_in(memory, vma, address, table, i, entry)
    if entry.kind is PteKind.MARKER_GUARD:
        return VM_FAULT_SIGSEGV
    if entry.kind is not PteKind.MARKER_UFFD_WP:
        return VM_FAULT_HWPOISON
    # The area is not watched for writes any more: what is left of that goes, and the page is missing (pte_marker_clear,
    # do_pte_missing).
    table.clear(1 << i)
    return _handle_pte_fault(memory, vma, address, flags)


def _swap_in(memory: "MemoryManager", vma: "Vma", address: int, table: PteTable, i: int, entry: OtherPte) -> int:
    # do_swap_page without a swap cache: every mapping reads the slot for itself. The page is the mapper's own unless
    # others may still read the slot, and writable then where the area is and the fault was for writing.
    mm = vma.mm
    new = memory.pages.alloc_folio(0)
    if new is None:
        return VM_FAULT_OOM
    memory.swap.read(entry.value, new)
    memory.kernel.step()
    if mm.page_table.lookup(address) is not table or table.others.get(i) is not entry:
        memory.pages.folio_put(new)
        return DONE
    exclusive = entry.exclusive or memory.swap.count(entry.value) == 1
    memory.swap.free(entry.value)
    mm.swapents -= 1
    mm.rss[MM_ANONPAGES] += 1
    bit = 1 << i
    table.clear(bit)
    memory.rmap.folio_add_new_anon_rmap(new, vma, address & -memory.geometry.page_size)
    if not exclusive:
        # The other mappings of the slot have pages of their own, so that nobody shares this one: mapped as the kernel
        # maps a page that its swap cache may share.
        memory.pages.ram.m_flags[new] &= ~PG_ANON_EXCLUSIVE
    table.set_present(bit, new, bit if exclusive and vma.flags & VM_WRITE else 0, bit)
    memory.kernel.charge("cpu_minor_fault_4k")
    return VM_FAULT_MAJOR


def remove_device_exclusive_entry(
    memory: "MemoryManager", vma: "Vma", address: int, table: PteTable, i: int, flags: int
) -> int:
    """Give a device-exclusive page back to the CPU (remove_device_exclusive_entry, restore_exclusive_pte)."""
    kernel = memory.kernel
    pages = memory.pages
    bit = 1 << i
    pfn = table.m_pfn[i]
    head = pages.folio_head(pfn)
    if not pages.folio_try_get(head):
        return DONE
    if not _folio_lock_or_retry(memory, vma, head, flags):
        pages.folio_put(head)
        return VM_FAULT_RETRY
    page_size = memory.geometry.page_size
    range_ = notifier_start(memory, vma.mm, address & -page_size, (address & -page_size) + page_size, MMU_NOTIFY_CLEAR)
    kernel.step()
    if vma.mm.page_table.lookup(address) is table and table.devexcl & bit and table.m_pfn[i] == pfn:
        restore_exclusive_pte(memory, vma, table, i)
        if flags & FAULT_FLAG_USER:
            kernel.stats.cpu_faults += 1
    pages.folio_unlock(head)
    pages.folio_put(head)
    notifier_end(memory, range_)
    kernel.charge("cpu_fault")
    return DONE


def _folio_lock_or_retry(memory: "MemoryManager", vma: "Vma", head: int, flags: int) -> bool:
    # __folio_lock_or_retry: whoever may give mmap_lock up does not hold it while it waits for a folio; True with the
    # folio locked, False without mmap_lock. Who has only the area locked comes again with mmap_lock instead.
    pages = memory.pages
    if pages.folio_trylock(head):
        return True
    if flags & FAULT_FLAG_VMA_LOCK:
        return False
    killable = bool(flags & FAULT_FLAG_KILLABLE)
    if flags & FAULT_FLAG_ALLOW_RETRY:
        vma.mm.mmap_lock.up_read()
        pages.folio_wait_locked(head, killable=killable)
        return False
    pages.folio_lock(head)
    return True


def restore_exclusive_pte(memory: "MemoryManager", vma: "Vma", table: PteTable, i: int) -> None:
    """Make a device-exclusive entry present again, inside a page-table-lock section, its folio locked."""
    bit = 1 << i
    pfn = table.m_pfn[i]
    zone = memory.pages.zone(pfn)
    at = pfn - zone.base
    # can_change_pte_writable
    write = bit if vma.flags & VM_WRITE and zone.m_flags[at] & PG_ANON_EXCLUSIVE else 0
    dirty = bit if zone.m_flags[at - zone.m_head_off[at]] & PG_DIRTY else 0
    table.set_present(bit, pfn, write, dirty)


def _do_wp_page(memory: "MemoryManager", vma: "Vma", address: int, flags: int, table: PteTable, i: int) -> int:
    bit = 1 << i
    unshare = bool(flags & FAULT_FLAG_UNSHARE)
    if vma.flags & VM_SHARED:
        return do_wp_shared(memory, vma, address, table, i)
    if table.zero & bit:
        return _wp_page_copy(memory, vma, address, table, i, unshare=unshare)
    pages = memory.pages
    pfn = table.m_pfn[i]
    zone = pages.ram if pfn < pages.ram_pages else pages.zone(pfn)
    at = pfn - zone.base
    if not vma.is_anonymous and not pages.folio_test_anon(pfn):
        return _wp_page_copy(memory, vma, address, table, i, unshare=unshare)
    if zone.m_flags[at] & PG_ANON_EXCLUSIVE or _wp_can_reuse_anon_folio(memory, vma, address, pfn):
        zone.m_flags[at] |= PG_ANON_EXCLUSIVE
        if unshare:
            return DONE
        # wp_page_reuse: maybe_mkwrite
        table.set_write(bit, bit if vma.flags & VM_WRITE else 0)
        table.set_dirty(bit)
        return DONE
    return _wp_page_copy(memory, vma, address, table, i, unshare=unshare)


def _wp_can_reuse_anon_folio(memory: "MemoryManager", vma: "Vma", address: int, pfn: int) -> bool:
    # Whether whoever shared the page once is gone: nobody else has a reference on it. The kernel locks a small folio
    # for this, but all within one section of the page-table lock: it is enough that the lock is free.
    pages = memory.pages
    head = pages.folio_head(pfn)
    zone = pages.zone(head)
    h = head - zone.base
    if zone.m_order[h]:
        # __wp_can_reuse_large_anon_folio: every reference is a mapping, and every mapping is ours. A single page of a
        # large folio is copied, so that the folio can go. The kernel keeps book of two address spaces only
        # (folio_test_large_maybe_mapped_shared): a third that is left over may have to copy there.
        mapcount = zone.m_mapcount[h]
        return mapcount > 1 and mapcount == zone.m_refcount[h] == mapcount_in(memory, head, vma.mm)
    if zone.m_refcount[h] != 1 or zone.m_flags[h] & PG_LOCKED:
        return False
    if pages.activate is not None and pages.activate.holds(zone, h, vma.mm, address):
        return False
    folio_move_anon_rmap(zone, h, vma)
    return True


def folio_move_anon_rmap(zone: Zone, i: int, vma: "Vma") -> None:
    """Let a folio that only `vma` maps be found through its own anon_vma from now on (mm/rmap.c)."""
    assert vma.anon_vma is not None, f"{vma!r} maps an anonymous page without an anon_vma"
    zone.m_mapping[i] = vma.anon_vma.id


def _wp_page_copy(memory: "MemoryManager", vma: "Vma", address: int, table: PteTable, i: int, *, unshare: bool) -> int:
    # A copy that is made for a pin that reads (FAULT_FLAG_UNSHARE) stays read-only.
    mm = vma.mm
    pages = memory.pages
    bit = 1 << i
    old = table.m_pfn[i]
    zero = bool(table.zero & bit)
    special = bool(table.special & bit)
    from_file = not zero and not vma.is_anonymous and not pages.folio_test_anon(old)
    old_head = -1
    if not zero:
        old_head = pages.folio_head(old)
        pages.folio_get(old_head)
    anon_vma_prepare(memory, vma)
    new = pages.alloc_folio(0)
    if new is None:
        if not zero:
            pages.folio_put(old_head)
        return VM_FAULT_OOM
    if zero and not (special and pages.has_page(old)):
        memory.contents.clear_folio(new, 1)
    else:
        memory.contents.copy_folio(new, old, 1)
    page_size = memory.geometry.page_size
    start = address & -page_size
    range_ = notifier_start(memory, mm, start, start + page_size, MMU_NOTIFY_CLEAR)
    memory.kernel.step()
    same = mm.page_table.lookup(address) is table and table.present & ~table.write & bit
    if same and table.m_pfn[i] == old and bool(table.zero & bit) == zero:
        if zero:
            mm.rss[MM_ANONPAGES] += 1
        elif from_file:
            mm.rss[file_counter(vma)] -= 1
            mm.rss[MM_ANONPAGES] += 1
            memory.contents.copied_from_file(vma, start)
        table.clear(bit)
        memory.rmap.folio_add_new_anon_rmap(new, vma, start)
        table.set_present(bit, new, bit if vma.flags & VM_WRITE and not unshare else 0, 0 if unshare else bit)
        if not zero:
            memory.rmap.folio_remove_rmap_pte(old)
            pages.folio_put(old_head)
    else:
        pages.folio_put(new)
    notifier_end(memory, range_)
    if not zero:
        pages.folio_put(old_head)
    memory.kernel.charge("cpu_minor_fault_4k")
    return DONE


def pte_at(memory: "MemoryManager", vma: "Vma", address: int) -> tuple[PteTable, int] | None:
    """Return the table and the position of an address that has a PTE table."""
    page_table = vma.mm.page_table
    table = page_table.entries.get(address >> page_table.pmd_shift)
    if not isinstance(table, PteTable):
        return None
    return table, (address >> page_table.page_shift) & (page_table.pmd_nr - 1)
