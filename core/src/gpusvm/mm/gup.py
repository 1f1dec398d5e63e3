"""mm/gup.c, as of Linux 7.3.4: get the pages behind addresses, and pin them for devices that know no page table.

`get_user_pages` takes a reference on each page; `pin_user_pages` takes so many that the page counts as pinned
(GUP_PIN_COUNTING_BIAS; a large folio has a count for them), which keeps its mapping where it is. What is not there as
asked is faulted in: device-private memory comes home, device-exclusive pages are given back, migrations are waited
for. A slow walk holds mmap_lock; a fast one holds nothing and leaves to the slow one what it cannot do.

Pages come as an array of pfns, the page of each address, not the heads of their folios. As many as could be had: an
error is raised only if the first could not.
"""

from errno import EBUSY, EFAULT, EINTR, EINVAL, ENOMEM, EOPNOTSUPP
from typing import TYPE_CHECKING, Final

import numpy as np

from gpusvm.errors import KernelError, ModelError
from gpusvm.mm.api import (
    EHWPOISON,
    FAULT_FLAG_ALLOW_RETRY,
    FAULT_FLAG_KILLABLE,
    FAULT_FLAG_REMOTE,
    FAULT_FLAG_UNSHARE,
    FAULT_FLAG_WRITE,
    FOLL_DUMP,
    FOLL_FORCE,
    FOLL_GET,
    FOLL_HWPOISON,
    FOLL_LONGTERM,
    FOLL_PIN,
    FOLL_SPLIT_PMD,
    FOLL_UNLOCKABLE,
    FOLL_WRITE,
    MEMORY_DEVICE_COHERENT,
    VM_FAULT_COMPLETED,
    VM_FAULT_ERROR,
    VM_FAULT_HWPOISON,
    VM_FAULT_HWPOISON_LARGE,
    VM_FAULT_OOM,
    VM_FAULT_RETRY,
    VM_HUGETLB,
    VM_IO,
    VM_MAYREAD,
    VM_MAYWRITE,
    VM_PFNMAP,
    VM_READ,
    VM_SHARED,
    VM_WRITE,
    Pfns,
)
from gpusvm.mm.huge_memory import split_huge_pmd
from gpusvm.mm.memory import handle_mm_fault
from gpusvm.mm.migrate_device import migrate_device_coherent_folio
from gpusvm.mm.mm_struct import MMF_HAS_PINNED
from gpusvm.mm.page import PG_ANON_EXCLUSIVE
from gpusvm.mm.pgtable import PmdKind, PmdLeaf, PteTable

if TYPE_CHECKING:
    from gpusvm.mm.memory_manager import MemoryManager
    from gpusvm.mm.mm_struct import MmStruct
    from gpusvm.mm.vma import Vma

__all__ = [
    "get_dump_page",
    "get_user_pages",
    "get_user_pages_fast",
    "get_user_pages_unlocked",
    "pin_user_pages",
    "pin_user_pages_fast",
    "unpin_user_pages",
]

# What following the page tables answers when there is no page as asked for.
_FAULT: Final = -1
_UNSHARE: Final = -2
_USER_FLAGS: Final = FOLL_WRITE | FOLL_FORCE | FOLL_LONGTERM | FOLL_SPLIT_PMD | FOLL_DUMP | FOLL_HWPOISON


def get_user_pages(memory: "MemoryManager", mm: "MmStruct", addr: int, n: int, *, flags: int = 0) -> Pfns:
    """Take a reference on each of the pages behind `n` addresses; mmap_lock is held and stays held.

    `flags` are FOLL_ bits. EFAULT: no area, one without pages of its own, or without the access asked for; a fault that
    ends with a signal; EHWPOISON in its place where FOLL_HWPOISON asks for it; ENOMEM; EINTR. A reference is dropped
    with `folio_put` of the page's folio.
    """
    return _Gup(memory, mm, _checked(flags) | FOLL_GET).slow(addr, n)


def get_user_pages_unlocked(memory: "MemoryManager", mm: "MmStruct", addr: int, n: int, *, flags: int = 0) -> Pfns:
    """Do so without mmap_lock held; a fault may give the lock up meanwhile."""
    return _Gup(memory, mm, _checked(flags) | FOLL_GET).unlocked(addr, n)


def get_user_pages_fast(memory: "MemoryManager", mm: "MmStruct", addr: int, n: int, *, flags: int = 0) -> Pfns:
    """Do so without a lock as far as pages are mapped as asked for, and from the first that is not on as
    `get_user_pages_unlocked` does.
    """
    return _Gup(memory, mm, _checked(flags) | FOLL_GET).fast(addr, n)


def pin_user_pages(memory: "MemoryManager", mm: "MmStruct", addr: int, n: int, *, flags: int = 0) -> Pfns:
    """Pin the pages behind `n` addresses; mmap_lock is held and stays held. Errors as of `get_user_pages`.

    With FOLL_LONGTERM no page stays where a device could not keep it: what is in coherent device memory goes to system
    memory first; EBUSY if that cannot be.
    """
    return _Gup(memory, mm, _checked(flags) | FOLL_PIN).slow(addr, n)


def pin_user_pages_fast(memory: "MemoryManager", mm: "MmStruct", addr: int, n: int, *, flags: int = 0) -> Pfns:
    """Do so without mmap_lock held, and without any lock as far as pages are mapped as asked for."""
    return _Gup(memory, mm, _checked(flags) | FOLL_PIN).fast(addr, n)


def unpin_user_pages(memory: "MemoryManager", pfns: Pfns) -> None:
    """Undo `pin_user_pages`, one pin for each pfn (unpin_user_pages)."""
    pages = memory.pages
    for pfn in pfns.tolist():
        if pfn != memory.zero_pfn:
            pages.unpin(pages.folio_head(pfn))


def get_dump_page(memory: "MemoryManager", mm: "MmStruct", addr: int) -> int | None:
    """Return a page for a core dump, referenced; None where the dump shall have a hole. mmap_lock is taken.

    As written (MM-S6) that is also so where a PMD names device-private memory.
    """
    try:
        with mm.mmap_lock.read():
            return int(_Gup(memory, mm, FOLL_FORCE | FOLL_DUMP | FOLL_GET).slow(addr, 1)[0])
    except KernelError:
        return None


def _checked(flags: int) -> int:
    # is_valid_gup_args
    if flags & ~_USER_FLAGS:
        raise ModelError(f"FOLL_ bits {flags & ~_USER_FLAGS:#x} are not the caller's to give")
    return flags


class _Gup:
    """Be one call."""

    __slots__ = ("flags", "kernel", "locked", "memory", "mm", "pages", "shift")

    def __init__(self, memory: "MemoryManager", mm: "MmStruct", flags: int) -> None:
        self.memory = memory
        self.kernel = memory.kernel
        self.pages = memory.pages
        self.mm = mm
        self.shift = memory.geometry.page_shift
        if flags & FOLL_LONGTERM and not flags & FOLL_PIN:
            raise KernelError(EINVAL, "FOLL_LONGTERM without a pin")
        self.flags = flags
        self.locked = True

    # --- with mmap_lock

    def slow(self, addr: int, n: int) -> Pfns:
        """Get the pages with mmap_lock held (__gup_longterm_locked)."""
        if self.kernel.checked and not self.mm.mmap_lock.is_locked:
            raise ModelError(f"get_user_pages without the mmap_lock of {self.mm.name}")
        while True:
            found = self.some(addr, n)
            if not self.flags & FOLL_LONGTERM or self.pinnable(found):
                return np.array(found, np.int64)

    def unlocked(self, addr: int, n: int) -> Pfns:
        """Take mmap_lock, and again whenever a fault gave it up (__get_user_pages_locked with FOLL_UNLOCKABLE)."""
        mm = self.mm
        self.flags |= FOLL_UNLOCKABLE
        while True:
            found: list[int] = []
            while len(found) < n:
                if not mm.mmap_lock.down_read_killable():
                    if found:
                        break
                    raise KernelError(EINTR, f"killed while waiting for the mmap_lock of {mm.name}")
                self.locked = True
                try:
                    found += self.some(addr + (len(found) << self.shift), n - len(found))
                except KernelError:
                    if not found:
                        raise
                    break
                finally:
                    if self.locked:
                        mm.mmap_lock.up_read()
                if self.locked:
                    break
            if not self.flags & FOLL_LONGTERM or self.pinnable(found):
                return np.array(found, np.int64)

    def some(self, addr: int, n: int) -> list[int]:
        """Get pages until one cannot be had, or the lock was given up (__get_user_pages)."""
        if self.flags & FOLL_PIN:
            self.mm.flags |= MMF_HAS_PINNED
        found: list[int] = []
        addr &= -1 << self.shift
        try:
            while len(found) < n:
                vma = self.mm.vma_lookup(addr)
                if vma is None:
                    raise KernelError(EFAULT, f"nothing is mapped at {addr:#x}")
                self.check_vma_flags(vma)
                page = self.page(vma, addr)
                if page < 0:
                    break
                found.append(page)
                addr += 1 << self.shift
        except KernelError:
            if not found:
                raise
        return found

    def check_vma_flags(self, vma: "Vma") -> None:
        flags = self.flags
        vm_flags = vma.flags
        if vm_flags & VM_HUGETLB and flags & FOLL_SPLIT_PMD:
            raise KernelError(EOPNOTSUPP, f"{vma!r} has huge pages, which are not split")
        good = not vm_flags & (VM_IO | VM_PFNMAP)
        if flags & FOLL_WRITE:
            # FOLL_FORCE writes to what the process may not write now, and never to what others share.
            forced = flags & FOLL_FORCE and vma.is_cow
            good = good and bool(vm_flags & VM_WRITE or forced)
        elif not vm_flags & VM_READ:
            good = good and bool(flags & FOLL_FORCE and vm_flags & VM_MAYREAD)
        if not good:
            how = "written" if flags & FOLL_WRITE else "read"
            raise KernelError(EFAULT, f"{vma!r} cannot be {how}")

    def page(self, vma: "Vma", addr: int) -> int:
        """Get one page, faulting as often as it takes; -1 if the lock was given up."""
        kernel = self.kernel
        while True:
            if kernel.current.fatal_signal_pending:
                raise KernelError(EINTR, f"killed while getting the page at {addr:#x}")
            kernel.cond_resched()
            page = self.follow(vma, addr)
            if page >= 0:
                return page
            before_ns = kernel.now_ns
            if not self.fault_in(vma, addr, unshare=page == _UNSHARE):
                return -1
            memory = self.memory
            memory.refault(before_ns)

    def fault_in(self, vma: "Vma", addr: int, *, unshare: bool) -> bool:
        """Handle the fault that stands between us and the page; False if it gave the lock up (faultin_page)."""
        flags = self.flags
        fault_flags = FAULT_FLAG_REMOTE
        if flags & FOLL_WRITE:
            fault_flags |= FAULT_FLAG_WRITE
        if flags & FOLL_UNLOCKABLE:
            fault_flags |= FAULT_FLAG_ALLOW_RETRY | FAULT_FLAG_KILLABLE
        if unshare:
            fault_flags |= FAULT_FLAG_UNSHARE
        ret = handle_mm_fault(self.memory, vma, addr, fault_flags)
        if ret & (VM_FAULT_COMPLETED | VM_FAULT_RETRY):
            self.locked = False
            return False
        if ret & VM_FAULT_ERROR:
            # vm_fault_to_errno
            if ret & VM_FAULT_OOM:
                raise KernelError(ENOMEM, f"no memory for the fault at {addr:#x}")
            if ret & (VM_FAULT_HWPOISON | VM_FAULT_HWPOISON_LARGE) and flags & FOLL_HWPOISON:
                raise KernelError(EHWPOISON, f"the page at {addr:#x} is poisoned")
            raise KernelError(EFAULT, f"the fault at {addr:#x} ended with vm_fault bits {ret:#x}")
        return True

    # --- the page tables

    def follow(self, vma: "Vma", addr: int) -> int:
        """Return the page that is mapped as asked for, grabbed; else what has to be done (follow_page_mask)."""
        self.kernel.step()
        page_table = self.mm.page_table
        entry = page_table.lookup(addr)
        if isinstance(entry, PmdLeaf):
            if entry.kind in {PmdKind.PRIVATE, PmdKind.MIGRATION}:
                # MM-S6: as written a core dump takes what is not present for a hole.
                return self.no_page_table(vma) if self.memory.quirks.mm_s6 == "as_written" else _FAULT
            if not self.flags & FOLL_SPLIT_PMD:
                return self.follow_leaf(vma, entry, (addr >> self.shift) & (page_table.pmd_nr - 1))
            split_huge_pmd(self.memory, vma, addr)
            self.kernel.step()
            entry = page_table.lookup(addr)
        if not isinstance(entry, PteTable):
            return self.no_page_table(vma) if entry is None else _FAULT
        return self.follow_pte(vma, entry, (addr - entry.base) >> self.shift)

    def no_page_table(self, vma: "Vma") -> int:
        # A core dump leaves a hole where nothing was ever mapped.
        if self.flags & FOLL_DUMP and vma.is_anonymous:
            raise KernelError(EFAULT, f"nothing to dump of {vma!r}")
        return _FAULT

    def follow_leaf(self, vma: "Vma", leaf: PmdLeaf, offset: int) -> int:
        """Follow a present leaf (follow_huge_pmd)."""
        flags = self.flags
        page = leaf.pfn + offset
        zone = self.pages.zone(leaf.pfn)
        exclusive = bool(zone.m_flags[leaf.pfn - zone.base] & PG_ANON_EXCLUSIVE)
        if flags & FOLL_WRITE and not leaf.write and not self.may_force(vma, exclusive=exclusive, dirty=leaf.dirty):
            return _FAULT
        if leaf.kind is PmdKind.HUGE_ZERO:
            if flags & FOLL_DUMP:
                raise KernelError(EFAULT, "the huge zero page is not dumped")
            anon = False
        else:
            anon = self.pages.folio_test_anon(leaf.pfn)
        if not leaf.write and self.must_unshare(vma, anon=anon, exclusive=exclusive):
            return _UNSHARE
        _grab(self.memory, page, flags)
        return page

    def follow_pte(self, vma: "Vma", table: PteTable, i: int) -> int:
        """Follow a PTE (follow_page_pte)."""
        bit = 1 << i
        flags = self.flags
        if not table.present & bit:
            return _FAULT if table.used & bit else self.no_page_table(vma)
        page = table.m_pfn[i]
        zone = self.pages.zone(page) if self.pages.has_page(page) else None
        write = bool(table.write & bit)
        exclusive = zone is not None and bool(zone.m_flags[page - zone.base] & PG_ANON_EXCLUSIVE)
        if flags & FOLL_WRITE and not write:
            if not self.may_force(vma, exclusive=exclusive, dirty=bool(table.dirty & bit)):
                return _FAULT
        normal = not table.zero & bit
        if not normal:
            # No normal page: nothing for a core dump, and otherwise the zero page only.
            if flags & FOLL_DUMP or page != self.memory.zero_pfn:
                raise KernelError(EFAULT, f"pfn {page:#x} is no normal page")
        anon = normal and self.pages.folio_test_anon(page)
        if not write and self.must_unshare(vma, anon=anon, exclusive=normal and exclusive):
            return _UNSHARE
        _grab(self.memory, page, flags)
        return page

    def may_force(self, vma: "Vma", *, exclusive: bool, dirty: bool) -> bool:
        # can_follow_write_common: after a forced fault the page is our own, though the area is read-only.
        if not self.flags & FOLL_FORCE or vma.flags & (VM_SHARED | VM_WRITE) or not vma.flags & VM_MAYWRITE:
            return False
        return exclusive and dirty

    def must_unshare(self, vma: "Vma | None", *, anon: bool, exclusive: bool) -> bool:
        """Tell whether a page that is mapped read-only must become our own before it is pinned (gup_must_unshare)."""
        if self.flags & (FOLL_WRITE | FOLL_PIN) != FOLL_PIN:
            return False
        if not anon:
            # A shared file's page is pinned as it is; a private mapping's, or the zero page, might be exchanged later.
            return bool(self.flags & FOLL_LONGTERM) and (vma is None or vma.is_cow)
        return not exclusive

    # --- without a lock

    def fast(self, addr: int, n: int) -> Pfns:
        """Get what can be had without a lock, and the rest with mmap_lock (gup_fast_fallback)."""
        if self.flags & FOLL_PIN:
            self.mm.flags |= MMF_HAS_PINNED
        addr &= -1 << self.shift
        found: list[int] = []
        self.kernel.step()
        with self.kernel.atomic():
            while len(found) < n:
                page = self.fast_page(addr + (len(found) << self.shift))
                if page < 0:
                    break
                found.append(page)
        if len(found) == n:
            return np.array(found, np.int64)
        try:
            rest = self.unlocked(addr + (len(found) << self.shift), n - len(found))
        except KernelError:
            if not found:
                raise
            rest = np.empty(0, np.int64)
        return np.concatenate([np.array(found, np.int64), rest])

    def fast_page(self, addr: int) -> int:
        """Get one page with a look at its entry; -1 to leave it to the slow walk (gup_fast_pte_range)."""
        page_table = self.mm.page_table
        entry = page_table.lookup(addr)
        i = (addr >> self.shift) & (page_table.pmd_nr - 1)
        if isinstance(entry, PteTable):
            if not entry.present & ~entry.zero & 1 << i:
                return -1
            page = entry.m_pfn[i]
            write = bool(entry.write >> i & 1)
            flagged = page
        elif entry is None or entry.kind is not PmdKind.THP:
            return -1
        else:
            page, write, flagged = entry.pfn + i, entry.write, entry.pfn
        flags = self.flags
        if flags & FOLL_WRITE and not write:
            return -1
        if flags & FOLL_LONGTERM and not _longterm_pinnable(self.memory, page):
            return -1
        zone = self.pages.zone(page)
        exclusive = bool(zone.m_flags[flagged - zone.base] & PG_ANON_EXCLUSIVE)
        if not write and self.must_unshare(None, anon=self.pages.folio_test_anon(page), exclusive=exclusive):
            return -1
        _grab(self.memory, page, flags)
        return page

    # --- for long

    def pinnable(self, found: list[int]) -> bool:
        """Tell whether all pinned pages may stay where they are; else unpin them, and move those that may not.

        EBUSY if one cannot be moved (check_and_migrate_movable_pages, migrate_longterm_unpinnable_folios).
        """
        memory = self.memory
        coherent: list[int] = []
        for page in found:
            head = self.pages.folio_head(page)
            if not _longterm_pinnable(memory, page) and head not in coherent:
                coherent.append(head)
        if not coherent:
            return True
        # A pin would keep the page from moving: each is held by a reference of ours instead.
        for head in coherent:
            self.pages.folio_get(head)
        unpin_user_pages(memory, np.array(found, np.int64))
        for k, head in enumerate(coherent):
            if migrate_device_coherent_folio(memory, head):
                for left in coherent[k + 1 :]:
                    self.pages.folio_put(left)
                raise KernelError(EBUSY, f"coherent page {head:#x} cannot be moved to system memory")
        return False


def _longterm_pinnable(memory: "MemoryManager", page: int) -> bool:
    # include/linux/mm.h:folio_is_longterm_pinnable
    pgmap = memory.pages.zone(page).pgmap
    return pgmap is None or pgmap.type != MEMORY_DEVICE_COHERENT


def _grab(memory: "MemoryManager", page: int, flags: int) -> None:
    # try_grab_folio
    pages = memory.pages
    head = pages.folio_head(page)
    if flags & FOLL_GET:
        pages.folio_get(head)
    elif page != memory.zero_pfn:  # which is not going anywhere
        pages.pin(head)
