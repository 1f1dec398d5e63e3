"""drivers/gpu/drm/xe/xe_gt_types.h, xe_gt_stats.c and xe_tlb_inval.c, as of Linux 7.3.4: a GT of a tile, with its
counters and its TLB.

A tile has a GT that computes and, on most devices, one for media. A VM may be used by both, so both forget what it
unmaps.
"""

import errno
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from gpusvm.errors import KernelError
from gpusvm.gpu import Tlb

if TYPE_CHECKING:
    from gpusvm.kernel import Kernel

    from gpusvm_xe.pm import XeRuntimePm
    from gpusvm_xe.tile import XeTile

__all__ = ["SIZES", "Batch", "XeGt", "XeTlb", "new_stats", "normalize_invalidation_range", "submit_range", "wait_batch"]

_2M: Final = 2 << 20
_16M: Final = 16 << 20

SIZES: Final = {4 << 10: "4K", 64 << 10: "64K", _2M: "2M"}
"""The sizes of ranges that the counters tell apart; others are in none of them."""

# TLB_INVALIDATION_SEQNO_MAX
_SEQNO_MAX: Final = 0x100000
# Two times the second that a full queue of commands takes, besides the time of the hardware itself
# (xe_guc_tlb_inval.c:tlb_inval_timeout_delay, xe_guc_ct.c:xe_guc_ct_queue_proc_time_jiffies).
_QUEUED_NS: Final = 2 * 1_000_000_000


def new_stats() -> dict[str, int]:
    """Return the counters that are kept, under their names in gt<N>/stats."""
    names = ["svm_pagefault_count", "tlb_inval_count", "svm_tlb_inval_count", "invalid_prefetch_pagefault_count"]
    names += ["vma_pagefault_count", "vma_pagefault_kb"]
    for each in ("pagefault_count", "valid_pagefault_count", "migrate_count"):
        names += [f"svm_{size}_{each}" for size in SIZES.values()]
    for whose in ("device", "cpu"):
        names += [f"svm_{whose}_copy_kb", *(f"svm_{size}_{whose}_copy_kb" for size in SIZES.values())]
    return dict.fromkeys(names, 0)


class XeGt:
    """Hold one GT, numbered over the whole device."""

    def __init__(
        self, kernel: "Kernel", device: str, number: int, pm: "XeRuntimePm", *, tlb_min: int, tlb_timeout_ms: int
    ) -> None:
        self.name = f"{device} gt{number}"
        self.stats = new_stats()
        self.tlb = XeTlb(kernel, self.name, self.stats, pm, least=tlb_min, timeout_ms=tlb_timeout_ms)


class XeTlb(Tlb):
    """Invalidate translations in one GT: messages with sequence numbers, answered in their order (xe_tlb_inval).

    Injection sites: ``xe.tlb_inval_send``, the message cannot be sent; ``xe.tlb_inval_done``, it is never answered.
    """

    def __init__(
        self,
        kernel: "Kernel",
        name: str,
        stats: dict[str, int],
        pm: "XeRuntimePm",
        *,
        least: int = _16M,
        timeout_ms: int = 250,
    ) -> None:
        super().__init__(kernel, name)
        self.least = least
        self.timeout_ns = timeout_ms * 1_000_000 + _QUEUED_NS
        self.stats = stats
        self.pm = pm
        self.outstanding = 0
        self.seqno = 1
        self.seqno_recv = 0

    def submit(self, start: int, end: int) -> int:
        """Send the message for [start, end) of an address space; its number if the answer will never come, 0 otherwise
        (xe_tlb_inval_range). EPIPE.
        """
        kernel = self.kernel
        seqno = self.seqno
        self.seqno = (seqno + 1) % _SEQNO_MAX or 1
        self.stats["tlb_inval_count"] += 1
        if kernel.inject("xe.tlb_inval_send"):
            raise KernelError(errno.EPIPE, f"injected at xe.tlb_inval_send of {self.name}")
        self.pm.tlb_inval.get()  # the fence's (xe_tlb_inval_fence_init)
        if not self.outstanding:
            self.pm.guc_ct.get()
        self.outstanding += 1
        self.invalidate(*normalize_invalidation_range(start, end, self.least), waits=False)
        if kernel.inject("xe.tlb_inval_done"):
            return seqno
        self.seqno_recv = seqno
        return 0

    def signal(self) -> None:
        """End a message and its fence, answered or given up: with the last of this GT nobody waits for its GuC
        (xe_tlb_inval_fence_fini, g2h_release_space).
        """
        self.outstanding -= 1
        if not self.outstanding:
            self.pm.guc_ct.put()
        self.pm.tlb_inval.put()

    def give_up(self, seqno: int) -> None:
        """Take a message for done that was not answered in time: its fence gets ETIME, at which nobody looks
        (xe_tlb_inval_fence_timeout).
        """
        self.kernel.tracer.emit("tlb_inval_timeout", self.name, seqno, self.seqno_recv)

    def invalidate_vm(self) -> None:
        """Invalidate a whole address space, and wait (xe_tlb_inval_vm): all that 48 bits reach."""
        with suppress(KernelError):
            wait_batch([(self, self.submit(0, 1 << 48))])

    def reset(self) -> None:
        """Take everything as answered: a reset of the GT leaves nothing in its TLB (xe_tlb_inval_reset)."""
        self.seqno_recv = _SEQNO_MAX - 1 if self.seqno == 1 else self.seqno - 1


Batch = list[tuple[XeTlb, int]]
"""Messages that are under way (struct xe_tlb_inval_batch): to whom, and what `XeTlb.submit` said of each."""


def submit_range(tiles: "Iterable[XeTile]", mask: int, start: int, end: int) -> Batch:
    """Send the messages for [start, end) to all GTs of a mask of tiles (xe_tlb_inval_range_tilemask_submit).

    EPIPE when one cannot be sent: the GTs behind get none, and those before have answered.
    """
    batch: Batch = []
    try:
        for tile in tiles:
            if tile.bit & mask:
                for gt in tile.gts:
                    batch.append((gt.tlb, gt.tlb.submit(start, end)))
    except KernelError:
        wait_batch(batch)
        raise
    return batch


def wait_batch(batch: Batch) -> None:
    """Wait for all answers, or until the time of those that do not come is over (xe_tlb_inval_batch_wait)."""
    if not batch:
        return
    kernel = batch[0][0].kernel
    kernel.charge("tlb_invalidate")
    lost = [(tlb, seqno) for tlb, seqno in batch if seqno]
    if lost:  # their time runs at once
        kernel.charge_ns("tlb_invalidate", lost[0][0].timeout_ns)
        for tlb, seqno in lost:
            tlb.give_up(seqno)
    for tlb, _ in batch:
        tlb.signal()


def normalize_invalidation_range(start: int, end: int, least: int = _16M) -> tuple[int, int]:
    """Widen to what the hardware can invalidate: an aligned power of two, from 2 MiB on at least 16 MiB, or `least`
    (xe_guc_tlb_inval.c).
    """
    length = 1 << max(end - start - 1, 0).bit_length()
    while True:
        if length >= _2M:
            length = max(least, length)
        first = start & -length
        if first + length >= end:
            return first, first + length
        length <<= 1
