"""lib/test_hmm.c, as of Linux 7.3.4: one open file of a dmirror device, and its mirror table."""

import errno
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from gpusvm.driver import CallerFaults, NotifierWindow
from gpusvm.errors import KernelError
from gpusvm.gpu import READ, REMOTE, WRITE, GpuPageTable
from gpusvm.kernel import Kref
from gpusvm.mm.api import (
    HMM_PFN_ERROR,
    HMM_PFN_ORDER_MASK,
    HMM_PFN_PFN_MASK,
    HMM_PFN_REQ_FAULT,
    HMM_PFN_REQ_WRITE,
    HMM_PFN_VALID,
    HMM_PFN_WRITE,
    MMU_NOTIFY_MIGRATE,
    VM_MIXEDMAP,
    VM_SHARED,
    HmmRange,
    IntervalNotifier,
    MmApi,
    MmuNotifierRange,
    Pfns,
    Words,
)

from gpusvm_dmirror.commands import DmirrorIoctl
from gpusvm_dmirror.migrate import migrate_to_device
from gpusvm_dmirror.revoked import migration_window
from gpusvm_dmirror.uapi import HMM_DMIRROR_FLAG_FAIL_ALLOC

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gpusvm_dmirror.device import DmirrorDevice

__all__ = ["Dmirror"]

_WORD_PFN = np.uint64(HMM_PFN_PFN_MASK)
_WORD_VALID = np.uint64(HMM_PFN_VALID)
_WORD_STATE = np.uint64(HMM_PFN_VALID | HMM_PFN_ERROR)
_WORD_WRITE = np.uint64(HMM_PFN_WRITE)
_WORD_ORDER = np.uint64(HMM_PFN_ORDER_MASK)
# The interval [0, ULONG_MAX & PAGE_MASK) of dmirror_fops_open.
_ULONG_MAX = (1 << 64) - 1


class Dmirror:
    """Mirror one address space (struct dmirror): it is the Vm of the driver contract.

    The mirror table, an xarray in the kernel, is the `GpuPageTable`: an entry names the page that holds the data,
    READ|WRITE is the tag WRITE, READ alone no tag, and READ|WRITE|ATOMIC the tag ATOMIC of a device-exclusive page.
    `ioctl` is called as the system call is, and has a method for each command. A fork shares the file, which keeps
    mirroring the parent. Who is in a call holds the file, so that it is released only when all have left it.
    """

    outlives: ClassVar = frozenset(
        {
            "close",
            "closed",
            "faults",
            "fget",
            "_users",
            "get_unless_released",
            "in_call",
            "ioctl",
            "page_table",
            "populate",
        }
    )
    """What belongs to the file descriptor, and so is there after the file has been released."""

    def __init__(self, device: "DmirrorDevice", mm: MmApi, *, start: int, end: int, inst: int) -> None:
        memory = device.memory
        if device.kernel.inject("dmirror.open"):
            raise KernelError(errno.ENOMEM, "no memory for the file")
        self.device = device
        self.memory = device.memory
        self.mm = mm
        self.start = start
        self.end = end
        self.inst = inst
        self.mutex = device.kernel.mutex("dmirror->mutex")
        self.page_table = GpuPageTable(device.kernel, memory, mm)
        self.ioctl = DmirrorIoctl(self)
        self.flags = 0
        self.closed = False
        self._users = 1  # the descriptor, and who is in a call (struct file.f_ref)
        self._kref = Kref(device.kernel, "dmirror", self._free, holder="file")
        self._page_shift = memory.geometry.page_shift
        length = _ULONG_MAX & -memory.geometry.page_size
        self.notifier = memory.mmu_interval_notifier_insert(mm, 0, length, self)
        device.kernel.gauges.inc("notifier")
        self.faults = CallerFaults(device.pipeline, inst=inst)

    def populate(self, start: int, end: int) -> int:
        """Migrate [start, end) as MIGRATE_TO_DEV does, without reading it back; the bytes moved. EINVAL, ENODEV."""
        if self.closed:
            raise KernelError(errno.EINVAL, "the file is closed")
        self.fget()
        try:
            mm = self.mm
            if not mm.mmget_not_zero():
                raise KernelError(errno.EINVAL, f"{mm.name} is gone")
            before = self.device.kernel.stats.migrated_to_device_bytes
            try:
                with migration_window(self, start, end) as window:
                    mm.mmap_lock.down_read()
                    try:
                        migrate_to_device(self.device, self, start, end, window=window)
                    finally:
                        mm.mmap_lock.up_read()
            finally:
                mm.mmput()
            return self.device.kernel.stats.migrated_to_device_bytes - before
        finally:
            self.fput()

    def mmap(self, length: int, prot: int, *, shared: bool = False, mm: MmApi | None = None) -> int:
        """Map zeroed pages of the kernel's into `mm`, the opener's by default, and return where (dmirror_fops_mmap).

        EINVAL; ENOMEM, or what vm_insert_page returns: nothing is mapped then.
        """
        mm = self.mm if mm is None else mm
        memory = self.memory
        addr = mm.mmap(None, length, prot, flags=VM_MIXEDMAP | (VM_SHARED if shared else 0))
        try:
            with mm.mmap_lock.write():
                vma = mm.vma_lookup(addr)
                assert vma is not None
                for at in range(addr, addr + length, memory.geometry.page_size):
                    page = memory.alloc_folio(0)
                    if page is None:
                        raise KernelError(errno.ENOMEM, "no memory for a page to map")
                    memory.clear_folio(page, 1)
                    try:
                        memory.vm_insert_page(vma, at, page)
                    finally:
                        memory.folio_put(page)
        except KernelError:
            mm.munmap(addr, length)
            raise
        return addr

    def fget(self) -> None:
        """Hold the file for the time of a call. EBADF."""
        if self.closed:
            raise KernelError(errno.EBADF, "the file is closed")
        self._users += 1

    def get_unless_released(self) -> bool:
        """Hold the file, closed or not, unless the last has let go of it; return whether it is held."""
        if not self._users:
            return False
        self._users += 1
        return True

    def fput(self) -> None:
        """Let go of it; the last releases it."""
        self._users -= 1
        if not self._users:
            self._release()

    @contextmanager
    def in_call(self) -> "Iterator[None]":
        """Hold the file inside a with block."""
        self.fget()
        try:
            yield
        finally:
            self.fput()

    def close(self) -> None:
        """Close the descriptor; the file is released as soon as nobody is in a call of it."""
        if self.closed:
            return
        self.closed = True
        self.fput()

    def _release(self) -> None:
        """Release the file (dmirror_fops_release): the pages of *every* file of the device go home."""
        self.page_table.retire()  # nobody is left who could go through it, and soon nobody tells it of changes
        self.memory.mmu_interval_notifier_remove(self.notifier)
        self.device.kernel.gauges.dec("notifier")
        self.device.evict()
        self.page_table.unmap(0, _ULONG_MAX >> self._page_shift)
        self.device.files.remove(self)
        self._kref.put("file")

    def get_pages(self, n: int) -> None:
        """Note that `n` device pages name the file; as written nobody holds it for them (quirk freed_file)."""
        self._kref.get("page", n)

    def put_pages(self, n: int) -> None:
        """Note that they are free."""
        self._kref.put("page", n)

    def _free(self) -> None:
        self.device.kernel.free(self, self.mutex, self.notifier)

    def window(self, start: int, end: int) -> NotifierWindow:
        """Return a window under the file's own notifier."""
        return NotifierWindow(self.memory, self.notifier, start=start, end=end, lock=self.mutex)

    def invalidate(self, sub: IntervalNotifier, range_: MmuNotifierRange, cur_seq: int) -> bool:
        """Erase the entries of a range (dmirror_interval_invalidate); what this device migrates itself, it ignores.

        As written a fault that reads the range meanwhile is not told either, and the device may go on writing pages
        that were copied already (quirk own_migrate_seq); fixed, its own migrations are as any others.
        """
        own = range_.event == MMU_NOTIFY_MIGRATE and range_.owner is self.device
        if own and self.device.quirks.own_migrate_seq == "as_written":
            return True
        if range_.blockable:
            self.mutex.lock()
        elif not self.mutex.trylock():
            return False
        try:
            self.memory.mmu_interval_set_seq(sub, cur_seq)
            shift = self._page_shift
            end = range_.end >> shift
            # dmirror_do_update takes the exclusive end for the last index to erase.
            self.page_table.unmap(range_.start >> shift, end + (self.device.quirks.inclusive_last == "as_written"))
        finally:
            self.mutex.unlock()
        return True

    # ---- faults --------------------------------------------------------------------------------------------------

    def fault(self, start: int, end: int, *, write: bool, unlocked: bool = False) -> None:
        """Fault [start, end) in for the device, window by window (dmirror_fault, dmirror_fault_unlocked).

        EFAULT: the mm is gone, no readable VMA, or no write permission where it was asked for; EPERM: the VMA is not
        writable; EBUSY: the time is over, which is never if `unlocked`; EINTR, only then; ENOMEM.
        """
        if not self.mm.mmget_not_zero():
            raise KernelError(errno.EFAULT, f"{self.mm.name} is gone")
        size = self.device.tunables.fault_window_pages << self._page_shift
        try:
            for at in range(start, end, size):
                until = min(at + size, end)
                if unlocked:
                    self._range_fault_unlocked(at, until, write=write)
                else:
                    self._range_fault(self.window(at, until), write=write)
        finally:
            self.mm.mmput()

    def _range_fault(self, window: NotifierWindow, *, write: bool) -> None:
        """Read the pages of one window and store them, until nothing comes between (dmirror_range_fault)."""
        deadline = self.deadline()
        while True:
            words = self.read_pages(window, deadline, write=write)
            if words is not None and window.commit(lambda words=words: self.store(window.start, words, write=write)):  # type: ignore[misc]  # a lambda's default has no annotation
                return

    def _range_fault_unlocked(self, start: int, end: int, *, write: bool) -> None:
        """Do so by the call that takes mmap_lock itself, without a timeout (dmirror_range_fault_unlocked)."""
        memory = self.memory
        while True:
            range_ = HmmRange(
                notifier=self.notifier,
                start=start,
                end=end,
                hmm_pfns=np.zeros((end - start) >> self._page_shift, np.uint64),
                default_flags=HMM_PFN_REQ_FAULT | HMM_PFN_REQ_WRITE if write else HMM_PFN_REQ_FAULT,
                dev_private_owner=self.device,
            )
            memory.hmm_range_fault_unlocked_timeout(range_, 0)
            with self.mutex:
                if not memory.mmu_interval_read_retry(self.notifier, range_.notifier_seq):
                    self.store(start, range_.hmm_pfns, write=write)
                    return

    def deadline(self) -> int:
        """Return the time after which a fault that begins now fails."""
        return self.device.kernel.now_ns + self.device.tunables.hmm_timeout_ms * 1_000_000

    def read_pages(self, window: NotifierWindow, deadline: int, *, write: bool) -> Words | None:
        """Make one attempt at reading a window; None to try again, EBUSY when it is too late for that."""
        if self.device.kernel.now_ns > deadline:
            raise KernelError(errno.EBUSY, f"invalidated for {self.device.tunables.hmm_timeout_ms} ms")
        flags = HMM_PFN_REQ_FAULT | HMM_PFN_REQ_WRITE if write else HMM_PFN_REQ_FAULT
        try:
            return window.read_pages(flags, self.device)
        except KernelError as error:
            if error.errno != errno.EBUSY:
                raise
        return None

    def store(self, start: int, words: Words, *, write: bool) -> None:
        """Put what hmm_range_fault reported into the mirror table, mutex held (dmirror_do_fault).

        A device-private page of the own device is stored as its backing page, unless the quirk `device_page` has it as
        written. EFAULT at the first page that lacks the write permission asked for; the pages before it are stored.
        ENOMEM.
        """
        self.pt_room()
        vpn = start >> self._page_shift
        if self.device.kernel.explored:
            self._assert_found(vpn, words)
        pfns = (words & _WORD_PFN).astype(np.int64)
        writable = (words & _WORD_WRITE) != 0
        perms = np.where(writable, np.uint8(READ | WRITE | REMOTE), np.uint8(READ | REMOTE))
        private = self.memory.device_private_mask(pfns)
        shifted: list[tuple[int, int]] = []
        if private.any():
            own = pfns[private]
            if bool((words & _WORD_ORDER).any()):
                shifted = self._wrong_halves(vpn, pfns, private & ((words & _WORD_ORDER) != 0))
            if self.device.quirks.device_page == "fixed":
                pfns[private] = self.device.backing_of(own)
            perms[private] &= ~np.uint8(REMOTE)
        refused = write and not writable.all()
        if refused:
            perms[int(writable.argmin()) :] = 0
        self.page_table.map_pages(vpn, pfns, perms)
        for first, last in shifted:
            self.page_table.mark_stale(first, last, "mm_s1")
        kernel = self.device.kernel
        kernel.charge("bind_per_pte", len(words))
        if refused:
            raise KernelError(errno.EFAULT, f"page {vpn + int(writable.argmin()):#x} is not writable for the device")

    def _assert_found(self, vpn: int, words: Words) -> None:
        """Warn of what hmm_range_fault, asked for pages, does not report when it succeeds (dmirror_do_fault)."""
        wrong = (words & _WORD_STATE) != _WORD_VALID
        if wrong.any():
            page = int(wrong.argmax())
            self.device.kernel.warn(
                "dmirror_do_fault", f"page {vpn + page:#x} was asked for and reported as {int(words[page]):#x}"
            )

    def fail_alloc(self) -> bool:
        """Tell whether the allocation that comes now is to fail, as FLAGS asked for; only the first is."""
        fail = bool(self.flags & HMM_DMIRROR_FLAG_FAIL_ALLOC)
        self.flags &= ~HMM_DMIRROR_FLAG_FAIL_ALLOC
        return fail

    def pt_room(self) -> None:
        """Allocate a node of the xarray that the mirror table is in the kernel; ENOMEM."""
        if self.device.kernel.inject("dmirror.pt"):
            raise KernelError(errno.ENOMEM, "no memory for the mirror table")

    def _wrong_halves(self, vpn: int, pfns: Pfns, huge: Any) -> list[tuple[int, int]]:
        """Find pages of own PMD folios that mm defect S1 reported with the pfn of another page of the folio."""
        nr = self.memory.geometry.pmd_nr
        found: list[tuple[int, int]] = []
        first = 0
        while first < len(pfns):
            block_end = min(len(pfns), first + nr - (vpn + first) % nr)
            if huge[first]:
                pfn = int(pfns[first])
                if pfn - self.memory.folio_head(pfn) != (vpn + first) % nr:
                    found.append((vpn + first, vpn + block_end))
            first = block_end
        return found
