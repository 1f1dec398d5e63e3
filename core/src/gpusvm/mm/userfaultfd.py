"""fs/userfaultfd.c and mm/userfaultfd.c, as of Linux 7.3.4: let a process fill its missing pages itself.

A fault on a missing page of a registered area waits until another thread, the monitor, has put a page there
(UFFDIO_COPY). It gives mmap_lock up to wait, so it can wait only for callers that allow that; others get SIGBUS.
Modelled are MISSING registrations of anonymous memory, one userfaultfd for each address space.
"""

from errno import EEXIST, EINVAL, ENOENT, ENOMEM, EPERM
from typing import TYPE_CHECKING, Final

import numpy as np
from attrs import define

from gpusvm.errors import KernelError, ModelError
from gpusvm.kernel import WaitQueue
from gpusvm.mm.api import (
    FAULT_FLAG_ALLOW_RETRY,
    FAULT_FLAG_VMA_LOCK,
    FAULT_FLAG_WRITE,
    VM_FAULT_RETRY,
    VM_FAULT_SIGBUS,
    VM_MAYWRITE,
    VM_UFFD_MISSING,
    VM_WRITE,
    Pfns,
)
from gpusvm.mm.mm_struct import MM_ANONPAGES
from gpusvm.mm.pgtable import PmdLeaf
from gpusvm.mm.vma import anon_vma_prepare
from gpusvm.mm.vma_merge import modify_flags

if TYPE_CHECKING:
    from gpusvm.mm.memory_manager import MemoryManager
    from gpusvm.mm.mm_struct import MmStruct
    from gpusvm.mm.vma import Vma

__all__ = ["UffdMsg", "Userfaultfd", "handle_userfault"]


@define(eq=False)
class UffdMsg:
    """Be one fault that waits (struct uffd_msg with event UFFD_EVENT_PAGEFAULT, struct userfaultfd_wait_queue)."""

    address: int
    write: bool
    read: bool = False
    woken: bool = False


def handle_userfault(memory: "MemoryManager", vma: "Vma", address: int, flags: int) -> int:
    """Wait until the page is there; VM_FAULT_RETRY without mmap_lock, or SIGBUS with it if it may not be given up."""
    if not flags & FAULT_FLAG_ALLOW_RETRY:
        return VM_FAULT_SIGBUS
    if flags & FAULT_FLAG_VMA_LOCK:
        return VM_FAULT_RETRY  # the kernel waits here at once; who comes again with mmap_lock waits then
    mm = vma.mm
    ctx = mm.userfaultfd
    assert ctx is not None, f"{vma!r} is registered with nobody"
    msg = UffdMsg(address & -memory.geometry.page_size, bool(flags & FAULT_FLAG_WRITE))
    ctx.faults.append(msg)
    # userfaultfd_must_wait: the page may have come before we stood in line.
    waits = ctx.missing(msg.address)
    mm.mmap_lock.up_read()
    if waits:
        ctx.readers.wake_up_all()
        ctx.waiters.wait_event_killable(lambda: msg.woken)
    ctx.faults.remove(msg)
    return VM_FAULT_RETRY


class Userfaultfd:
    """Be an open userfaultfd of a process: registrations, the faults that wait, and the monitor's ioctls."""

    __slots__ = ("faults", "kernel", "memory", "mm", "readers", "waiters")

    def __init__(self, memory: "MemoryManager", mm: "MmStruct") -> None:
        """Open one (userfaultfd(2)); ModelError if the process has one."""
        if mm.userfaultfd is not None:
            raise ModelError(f"{mm.name} has a userfaultfd; one for each address space is modelled")
        self.memory: Final = memory
        self.kernel: Final = memory.kernel
        self.mm: Final = mm
        self.faults: list[UffdMsg] = []
        self.waiters: WaitQueue = memory.kernel.waitqueue("userfaultfd fault")
        self.readers: WaitQueue = memory.kernel.waitqueue("userfaultfd read")
        mm.userfaultfd = self

    # --- registrations

    def register(self, start: int, length: int) -> None:
        """Watch the areas of [start, start + length) for missing pages (UFFDIO_REGISTER_MODE_MISSING).

        EINVAL: a bad range, no area in it, or one that is not anonymous; ENOMEM: none at or behind `start`; EPERM: one
        that may never be written.
        """
        end = self._range(start, length)
        mm = self.mm
        with mm.mmap_lock.write():
            first = mm.find_vma(start)
            if first is None:
                raise KernelError(ENOMEM, f"nothing is mapped from {start:#x} on")
            if first.start >= end:
                raise KernelError(EINVAL, f"nothing is mapped in {start:#x}-{end:#x}")
            areas = mm.vma_tree.overlapping(start, end)
            for vma in areas:
                if not vma.is_anonymous:
                    raise KernelError(EINVAL, f"{vma!r} is not anonymous")
                if not vma.flags & VM_MAYWRITE:
                    raise KernelError(EPERM, f"{vma!r} may never be written")
            self._set(start, end, VM_UFFD_MISSING)

    def unregister(self, start: int, length: int) -> None:
        """Watch a range no longer, and let go who waits there (UFFDIO_UNREGISTER). EINVAL."""
        end = self._range(start, length)
        with self.mm.mmap_lock.write():
            self._set(start, end, 0)
        self.wake(start, length)

    def close(self) -> None:
        """Close it: no area is watched any more, and nobody waits (userfaultfd_release)."""
        with self.mm.mmap_lock.write():
            self._set(0, 1 << 47, 0)
        self.mm.userfaultfd = None
        for msg in self.faults:
            msg.woken = True
        self.waiters.wake_up_all()
        self.readers.wake_up_all()

    def _set(self, start: int, end: int, flag: int) -> None:
        at = start
        while True:
            vma = self.mm.find_vma(at)
            if vma is None or vma.start >= end:
                return
            at = max(at, vma.start)
            stop = min(vma.end, end)
            flags = vma.flags & ~VM_UFFD_MISSING | flag
            if flags != vma.flags:
                modify_flags(self.memory, vma, at, stop, flags)
            at = stop

    def _range(self, start: int, length: int) -> int:
        # validate_range
        page = self.memory.geometry.page_size
        if start % page or length % page or length <= 0:
            raise KernelError(EINVAL, f"a range of {length} bytes at {start:#x}")
        return start + length

    # --- the monitor

    def read(self) -> UffdMsg | None:
        """Return a fault that nobody has read yet; sleeps until there is one. None once it is closed."""
        self.readers.wait_event(lambda: self.mm.userfaultfd is not self or any(not msg.read for msg in self.faults))
        for msg in self.faults:
            if not msg.read:
                msg.read = True
                return msg
        return None

    def copy(self, dst: int, tokens: Pfns, *, wake: bool = True) -> int:
        """Put pages that hold `tokens` at `dst` and wake who waits for them; how many bytes were done (UFFDIO_COPY).

        ENOENT: no registered area covers the range; EEXIST: a page is there; ENOMEM. Raised only if no page was done.
        """
        done = self._fill(dst, len(tokens), tokens)
        if wake:
            self.wake(dst, done)
        return done

    def zeropage(self, start: int, length: int, *, wake: bool = True) -> int:
        """Put the zero page at every page of a range, and wake (UFFDIO_ZEROPAGE). Errors as of `copy`."""
        self._range(start, length)
        done = self._fill(start, length >> self.memory.geometry.page_shift, None)
        if wake:
            self.wake(start, done)
        return done

    def wake(self, start: int, length: int) -> None:
        """Let go who waits for a page in a range (UFFDIO_WAKE)."""
        for msg in self.faults:
            if start <= msg.address < start + length:
                msg.woken = True
        self.waiters.wake_up_all()

    def missing(self, address: int) -> bool:
        """Tell whether nothing is mapped at an address (userfaultfd_must_wait)."""
        self.kernel.step()
        page_table = self.mm.page_table
        entry = page_table.lookup(address)
        if isinstance(entry, PmdLeaf):
            return False
        return entry is None or not entry.used >> ((address >> page_table.page_shift) & (page_table.pmd_nr - 1)) & 1

    def _fill(self, start: int, n: int, tokens: Pfns | None) -> int:
        # mfill_atomic
        page = self.memory.geometry.page_size
        self._range(start, n * page)
        done = 0
        with self.mm.mmap_lock.read():
            vma = self.mm.vma_lookup(start)
            if vma is None or not vma.flags & VM_UFFD_MISSING or start + n * page > vma.end:
                raise KernelError(ENOENT, f"{start:#x}-{start + n * page:#x} does not lie in one registered area")
            for k in range(n):
                try:
                    self._fill_one(vma, start + k * page, None if tokens is None else tokens[k : k + 1])
                except KernelError:
                    if not done:
                        raise
                    break
                done += page
        return done

    def _fill_one(self, vma: "Vma", address: int, token: Pfns | None) -> None:
        # mfill_atomic_pte_copy, mfill_atomic_pte_zeropage, mfill_atomic_install_pte
        memory = self.memory
        page_table = vma.mm.page_table
        block = address >> page_table.pmd_shift
        pfn = -1
        if token is not None:
            anon_vma_prepare(memory, vma)
            new = memory.pages.alloc_folio(0)
            if new is None:
                raise KernelError(ENOMEM, f"no memory for the page at {address:#x}")
            pfn = new
        self.kernel.step()
        there = page_table.entries.get(block)
        bit = 1 << ((address >> page_table.page_shift) & (page_table.pmd_nr - 1))
        if isinstance(there, PmdLeaf) or (there is not None and there.used & bit):
            if pfn >= 0:
                memory.pages.folio_put(pfn)
            raise KernelError(EEXIST, f"a page is at {address:#x}")
        table = page_table.table(block)
        if token is None:
            table.set_zero(bit, memory.zero_pfn)
            return
        memory.contents.write_many(vma.mm, np.array([address >> page_table.page_shift]), np.array([pfn]), tokens=token)
        vma.mm.rss[MM_ANONPAGES] += 1
        memory.rmap.folio_add_new_anon_rmap(pfn, vma, address)
        table.set_present(bit, pfn, bit if vma.flags & VM_WRITE else 0, bit)
        self.kernel.charge("cpu_minor_fault_4k")
