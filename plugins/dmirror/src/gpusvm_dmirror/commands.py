"""lib/test_hmm.c, as of Linux 7.3.4: the ioctls of a dmirror file as methods, with page contents as tokens."""

import errno
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt
from attrs import field, frozen
from gpusvm.errors import KernelError
from gpusvm.gpu import ATOMIC, READ, WRITE
from gpusvm.mm.api import (
    HMM_PFN_ERROR,
    HMM_PFN_ORDER_MASK,
    HMM_PFN_ORDER_SHIFT,
    HMM_PFN_PFN_MASK,
    HMM_PFN_VALID,
    HMM_PFN_WRITE,
    HmmRange,
    IntervalNotifier,
    MmuNotifierRange,
)

from gpusvm_dmirror.migrate import migrate_to_device, migrate_to_system

if TYPE_CHECKING:
    from gpusvm_dmirror.mirror import Dmirror

__all__ = [
    "PROT_DEV_PRIVATE_LOCAL",
    "PROT_DEV_PRIVATE_REMOTE",
    "PROT_ERROR",
    "PROT_NONE",
    "PROT_PMD",
    "PROT_READ",
    "PROT_WRITE",
    "PROT_ZERO",
    "DmirrorIoctl",
    "Done",
]

# lib/test_hmm_uapi.h: the bytes of a snapshot
PROT_ERROR: Final = 0xFF
PROT_NONE: Final = 0x00
PROT_READ: Final = 0x01
PROT_WRITE: Final = 0x02
PROT_PMD: Final = 0x04
PROT_ZERO: Final = 0x10
PROT_DEV_PRIVATE_LOCAL: Final = 0x20
PROT_DEV_PRIVATE_REMOTE: Final = 0x30

_SNAPSHOT_PAGES: Final = 32


def _no_tokens() -> npt.NDArray[np.int64]:
    return np.zeros(0, np.int64)


@frozen(kw_only=True)
class Done:
    """Say what a successful ioctl copies back: the pages done, the fault rounds, and what the pages hold."""

    cpages: int
    faults: int = 0
    tokens: npt.NDArray[np.int64] = field(factory=_no_tokens, eq=False)


class DmirrorIoctl:
    """Take the ioctls of one file. An error is a KernelError; what was done before it stays done.

    `addr` is page aligned and `npages` positive, else EINVAL. Contents are tokens (`gpusvm.mm.contents`): what is read
    is checked, what is written gets new ones.
    """

    def __init__(self, mirror: "Dmirror") -> None:
        self.mirror = mirror

    def read(self, addr: int, npages: int) -> Done:
        """READ: read pages through the mirror table, faulting in what it lacks. EFAULT EBUSY ENOMEM EINVAL."""
        return self._access(addr, npages, write=False)

    def write(self, addr: int, npages: int) -> Done:
        """WRITE: write pages through entries that have the tag WRITE. EPERM as well: the VMA is not writable."""
        return self._access(addr, npages, write=True)

    def migrate_to_dev(self, addr: int, npages: int) -> Done:
        """MIGRATE_TO_DEV: move pages, then read all of them back. EINVAL; ENOENT: one is not in the mirror table."""
        start, end = self._span(addr, npages)
        mirror = self.mirror
        with _MmUser(mirror, errno.EINVAL):
            mirror.mm.mmap_lock.down_read()
            try:
                migrate_to_device(mirror.device, mirror, start, end)
            finally:
                mirror.mm.mmap_lock.up_read()
        return self._read_back(start, end)

    def migrate_to_sys(self, addr: int, npages: int) -> Done:
        """MIGRATE_TO_SYS: move the device's pages home; `cpages` counts a PMD folio once (Q15). EINVAL ENOMEM."""
        start, end = self._span(addr, npages)
        mirror = self.mirror
        with _MmUser(mirror, errno.EINVAL):
            mirror.mm.mmap_lock.down_read()
            try:
                moved = migrate_to_system(mirror.device, mirror, start, end)
            finally:
                mirror.mm.mmap_lock.up_read()
        return Done(cpages=moved)

    def exclusive(self, addr: int, npages: int) -> Done:
        """EXCLUSIVE: make pages device-exclusive one by one, then read them back.

        EINVAL; EFAULT: no VMA, or not writable; EOPNOTSUPP: not anonymous; ENOENT: revoked meanwhile.
        """
        start, end = self._span(addr, npages)
        mirror, memory = self.mirror, self.mirror.memory
        with _MmUser(mirror, errno.EINVAL):
            mirror.mm.mmap_lock.down_read()
            try:
                for at in range(start, end, memory.geometry.page_size):
                    pfn = memory.make_device_exclusive(mirror.mm, at, None)
                    mirror.store_exclusive(at, pfn)
                    memory.folio_unlock(memory.folio_head(pfn))
                    memory.folio_put(memory.folio_head(pfn))
            finally:
                mirror.mm.mmap_lock.up_read()
        return self._read_back(start, end)

    def check_exclusive(self, addr: int, npages: int) -> Done:
        """CHECK_EXCLUSIVE: EPERM if any page of the range is still exclusive."""
        start, end = self._span(addr, npages)
        shift = self.mirror.memory.geometry.page_shift
        with self.mirror.mutex:
            if bool((self.mirror.page_table.perms(start >> shift, end >> shift) & ATOMIC).any()):
                raise KernelError(errno.EPERM, "a page is still device-exclusive")
        return Done(cpages=0)

    def snapshot(self, addr: int, npages: int) -> bytes:
        """SNAPSHOT: say how the process maps each page, one byte each, without faulting. EINVAL EBUSY EFAULT."""
        start, end = self._span(addr, npages)
        mirror = self.mirror
        size = _SNAPSHOT_PAGES << mirror.memory.geometry.page_shift
        with _MmUser(mirror, errno.EINVAL):
            return b"".join(self._snapshot_window(at, min(at + size, end)) for at in range(start, end, size))

    def _span(self, addr: int, npages: int) -> tuple[int, int]:
        """Check what every ioctl checks (dmirror_fops_unlocked_ioctl)."""
        geometry = self.mirror.memory.geometry
        if addr % geometry.page_size or npages <= 0:
            raise KernelError(errno.EINVAL, f"{npages} pages at {addr:#x}")
        return addr, addr + npages * geometry.page_size

    def _access(self, addr: int, npages: int, *, write: bool) -> Done:
        start, end = self._span(addr, npages)
        mirror = self.mirror
        tokens: list[npt.NDArray[np.int64]] = []
        done = faults = 0
        while True:
            at = start + (done << mirror.memory.geometry.page_shift)
            with mirror.mutex:
                some = self._through_table(at, end, write=write)
            tokens.append(some)
            done += len(some)
            if done == npages:
                return Done(cpages=done, faults=faults, tokens=np.concatenate(tokens))
            mirror.fault(start + (done << mirror.memory.geometry.page_shift), end, write=write)
            faults += 1

    def _read_back(self, start: int, end: int) -> Done:
        with self.mirror.mutex:
            tokens = self._through_table(start, end, write=False)
        if len(tokens) << self.mirror.memory.geometry.page_shift < end - start:
            raise KernelError(errno.ENOENT, "a page of the range is not in the mirror table")
        return Done(cpages=len(tokens), tokens=tokens)

    def _through_table(self, start: int, end: int, *, write: bool) -> npt.NDArray[np.int64]:
        """Access pages until the first that the mirror table lacks (dmirror_do_read, dmirror_do_write)."""
        table = self.mirror.page_table
        shift = self.mirror.memory.geometry.page_shift
        first, last = start >> shift, end >> shift
        perms = table.perms(first, last)
        usable = perms & (WRITE | ATOMIC) == WRITE if write else perms != 0
        done = len(usable) if usable.all() else int(usable.argmin())
        if not done:
            return _no_tokens()
        need = np.full(done, READ | WRITE if write else READ, np.uint8)
        table.access(np.arange(first, first + done), need)
        contents = table.memory.contents
        return np.array([contents.token(pfn) for pfn in table.pfns(first, first + done).tolist()], np.int64)

    def _snapshot_window(self, start: int, end: int) -> bytes:
        """Read one window under a notifier of its own (dmirror_range_snapshot)."""
        mirror, memory = self.mirror, self.mirror.memory
        deadline = mirror.deadline()
        notifier = memory.mmu_interval_notifier_insert(mirror.mm, start, end - start, _SnapshotOps(mirror))
        try:
            while True:
                if mirror.device.kernel.now_ns > deadline:
                    raise KernelError(errno.EBUSY, f"invalidated for {mirror.device.tunables.hmm_timeout_ms} ms")
                words = np.zeros((end - start) >> memory.geometry.page_shift, np.uint64)
                range_ = HmmRange(
                    notifier=notifier,
                    start=start,
                    end=end,
                    hmm_pfns=words,
                    dev_private_owner=mirror.device,
                    notifier_seq=memory.mmu_interval_read_begin(notifier),
                )
                mirror.mm.mmap_lock.down_read()
                try:
                    memory.hmm_range_fault(range_)
                except KernelError as error:
                    if error.errno == errno.EBUSY:
                        continue
                    raise
                finally:
                    mirror.mm.mmap_lock.up_read()
                with mirror.mutex:
                    if not memory.mmu_interval_read_retry(notifier, range_.notifier_seq):
                        return bytes(self._entry(word) for word in words.tolist())
        finally:
            memory.mmu_interval_notifier_remove(notifier)

    def _entry(self, word: int) -> int:
        """Describe one word (dmirror_mkentry)."""
        if word & HMM_PFN_ERROR:
            return PROT_ERROR
        if not word & HMM_PFN_VALID:
            return PROT_NONE
        memory = self.mirror.memory
        pfn = word & HMM_PFN_PFN_MASK
        entry = PROT_NONE
        if memory.is_device_private(pfn):
            pgmap = memory.page_pgmap(pfn)
            mine = pgmap is not None and pgmap.owner is self.mirror.device
            entry = PROT_DEV_PRIVATE_LOCAL if mine else PROT_DEV_PRIVATE_REMOTE
        elif pfn == memory.zero_pfn:
            entry = PROT_ZERO
        entry |= PROT_WRITE if word & HMM_PFN_WRITE else PROT_READ
        if (word & HMM_PFN_ORDER_MASK) >> HMM_PFN_ORDER_SHIFT == memory.geometry.pmd_order:
            entry |= PROT_PMD
        return entry


class _MmUser:
    """Hold an address-space reference for the time of one ioctl; `gone` is the errno when there is none to be had."""

    def __init__(self, mirror: "Dmirror", gone: int) -> None:
        self.mm = mirror.mm
        self.gone = gone

    def __enter__(self) -> None:
        if not self.mm.mmget_not_zero():
            raise KernelError(self.gone, f"{self.mm.name} is gone")

    def __exit__(self, *_: object) -> None:
        self.mm.mmput()


class _SnapshotOps:
    """Make an invalidation visible to the snapshot (dmirror_snapshot_invalidate)."""

    def __init__(self, mirror: "Dmirror") -> None:
        self.mirror = mirror

    def invalidate(self, sub: IntervalNotifier, range_: MmuNotifierRange, cur_seq: int) -> bool:
        """Set the sequence under the mutex; False if it cannot be had without sleeping."""
        mirror = self.mirror
        if range_.blockable:
            mirror.mutex.lock()
        elif not mirror.mutex.trylock():
            return False
        mirror.memory.mmu_interval_set_seq(sub, cur_seq)
        mirror.mutex.unlock()
        return True
