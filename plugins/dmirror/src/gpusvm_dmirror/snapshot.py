"""lib/test_hmm.c:dmirror_snapshot, as of Linux 7.3.4: say how a process maps its pages, without faulting."""

import errno
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import numpy as np
from gpusvm.errors import KernelError
from gpusvm.mm.api import (
    HMM_PFN_ERROR,
    HMM_PFN_ORDER_MASK,
    HMM_PFN_ORDER_SHIFT,
    HMM_PFN_PFN_MASK,
    HMM_PFN_VALID,
    HMM_PFN_WRITE,
    MEMORY_DEVICE_COHERENT,
    MEMORY_DEVICE_PRIVATE,
    HmmRange,
    IntervalNotifier,
    MmuNotifierRange,
)

from gpusvm_dmirror.uapi import (
    PROT_DEV_COHERENT_LOCAL,
    PROT_DEV_COHERENT_REMOTE,
    PROT_DEV_PRIVATE_LOCAL,
    PROT_DEV_PRIVATE_REMOTE,
    PROT_ERROR,
    PROT_NONE,
    PROT_PMD,
    PROT_PUD,
    PROT_READ,
    PROT_WRITE,
    PROT_ZERO,
)

if TYPE_CHECKING:
    from gpusvm_dmirror.device import DmirrorDevice
    from gpusvm_dmirror.mirror import Dmirror

__all__ = ["mkentry", "snapshot"]

_PAGES: Final = 32


def snapshot(mirror: "Dmirror", start: int, end: int) -> Iterator[bytes]:
    """Yield one byte for each page of [start, end), a window of 32 pages at a time. EBUSY EFAULT, notifier errors."""
    size = _PAGES << mirror.memory.geometry.page_shift
    for at in range(start, end, size):
        yield _window(mirror, at, min(at + size, end))


def _window(mirror: "Dmirror", start: int, end: int) -> bytes:
    """Read one window under a notifier of its own (dmirror_range_snapshot)."""
    memory = mirror.memory
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
                    return bytes(mkentry(mirror.device, word) for word in words.tolist())
    finally:
        memory.mmu_interval_notifier_remove(notifier)


def mkentry(device: "DmirrorDevice", word: int) -> int:
    """Describe one word of hmm_range_fault by a byte, as `device` sees it (dmirror_mkentry)."""
    if word & HMM_PFN_ERROR:
        return PROT_ERROR
    if not word & HMM_PFN_VALID:
        return PROT_NONE
    memory = device.memory
    pfn = word & HMM_PFN_PFN_MASK
    pgmap = memory.page_pgmap(pfn)
    entry = PROT_NONE
    if pgmap is not None and pgmap.type == MEMORY_DEVICE_PRIVATE:
        entry = PROT_DEV_PRIVATE_LOCAL if pgmap.owner is device else PROT_DEV_PRIVATE_REMOTE
    elif pgmap is not None and pgmap.type == MEMORY_DEVICE_COHERENT:
        entry = PROT_DEV_COHERENT_LOCAL if pgmap.owner is device else PROT_DEV_COHERENT_REMOTE
    elif pfn == memory.zero_pfn:
        entry = PROT_ZERO
    entry |= PROT_WRITE if word & HMM_PFN_WRITE else PROT_READ
    order = (word & HMM_PFN_ORDER_MASK) >> HMM_PFN_ORDER_SHIFT
    pmd_order = memory.geometry.pmd_order
    if order == pmd_order:
        entry |= PROT_PMD
    elif order == 2 * pmd_order:  # a PUD has as many PMDs as a PMD has pages
        entry |= PROT_PUD
    return entry


class _SnapshotOps:
    """Make an invalidation visible to the snapshot (dmirror_snapshot_invalidate)."""

    def __init__(self, mirror: "Dmirror") -> None:
        self.mirror = mirror

    def invalidate(self, sub: IntervalNotifier, range_: MmuNotifierRange, cur_seq: int) -> bool:
        mutex = self.mirror.mutex
        if range_.blockable:
            mutex.lock()
        elif not mutex.trylock():
            return False
        self.mirror.memory.mmu_interval_set_seq(sub, cur_seq)
        mutex.unlock()
        return True
