"""Define the unit that one GPU fault is served in, and the two that core ships.

A unit is a stretch of the address space with a notifier over it: what is read under `seq` may be written to the
GPU's page table only through `commit`, which checks under the driver's lock that nothing was invalidated since.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from gpusvm.mm.api import (
    HMM_PFN_ORDER_SHIFT,
    HmmRange,
    IntervalNotifier,
    IntervalNotifierOps,
    MemoryManagerApi,
    MmApi,
    Words,
)

if TYPE_CHECKING:
    from gpusvm.drm import GpuSvm, GpuSvmRange
    from gpusvm.kernel import Mutex

__all__ = ["FaultUnit", "NotifierWindow", "RangeUnit"]


class FaultUnit(Protocol):
    """Stand for [start, end) while a fault on it is served; `state` is the `FaultPolicy`'s, None to begin with."""

    state: Any

    @property
    def start(self) -> int: ...

    @property
    def end(self) -> int: ...

    @property
    def notifier(self) -> IntervalNotifier:
        """The interval subscription that covers the unit."""

    @property
    def seq(self) -> int:
        """What mmu_interval_read_begin returned when the pages of the unit were last read."""

    def commit(self, write: Callable[[], None]) -> bool:
        """Run `write` under the driver's lock if nothing was invalidated since `seq`; False if it was, and must
        retry.
        """


class RangeUnit:
    """Serve a fault in a `GpuSvmRange` (xe): the range outlives the fault, its notifier covers a whole window of
    ranges.
    """

    __slots__ = ("gpusvm", "range")

    def __init__(self, gpusvm: "GpuSvm", range_: "GpuSvmRange") -> None:
        self.gpusvm = gpusvm
        self.range = range_

    @property
    def state(self) -> Any:
        """What the policy remembers of the range, as long as that lives."""
        return self.range.policy_state

    @state.setter
    def state(self, state: Any) -> None:
        self.range.policy_state = state

    @property
    def start(self) -> int:
        return self.range.start

    @property
    def end(self) -> int:
        return self.range.end

    @property
    def notifier(self) -> IntervalNotifier:
        return self.range.notifier.notifier

    @property
    def seq(self) -> int:
        return self.range.pages.notifier_seq

    def commit(self, write: Callable[[], None]) -> bool:
        """Write under the notifier lock, for read, if the range's pages are still valid."""
        lock = self.gpusvm.notifier_lock
        lock.down_read()
        try:
            if not self.gpusvm.range_pages_valid(self.range):
                return False
            write()
            return True
        finally:
            lock.up_read()


class NotifierWindow:
    """Serve a fault in a bare window under an interval notifier (nouveau, dmirror): no object remains afterwards.

    With `NotifierWindow.open` the subscription belongs to the window and `close` ends it (nouveau, one per fault);
    built around a subscription that the driver keeps (dmirror, one per file), `close` leaves it. `lock` is the
    mutex that the driver's invalidate callback takes.
    """

    __slots__ = ("_own", "end", "lock", "memory", "notifier", "seq", "start", "state")

    def __init__(
        self, memory: MemoryManagerApi, notifier: IntervalNotifier, *, start: int, end: int, lock: "Mutex"
    ) -> None:
        self.memory = memory
        self.notifier = notifier
        self.start = start
        self.end = end
        self.lock = lock
        self.seq = 0
        self.state: Any = None
        self._own = False

    @classmethod
    def open(
        cls,
        memory: MemoryManagerApi,
        mm: MmApi,
        *,
        start: int,
        end: int,
        ops: IntervalNotifierOps,
        lock: "Mutex",
    ) -> "NotifierWindow":
        """Subscribe to [start, end) of `mm` for the time of one fault."""
        window = cls(
            memory, memory.mmu_interval_notifier_insert(mm, start, end - start, ops), start=start, end=end, lock=lock
        )
        window._own = True
        memory.kernel.gauges.inc("notifier")
        return window

    def begin(self) -> int:
        """Start a collision-retry section; may sleep. Returns the new `seq`."""
        self.seq = self.memory.mmu_interval_read_begin(self.notifier)
        return self.seq

    def read_pages(self, flags: int, owner: object | None, *, mmap_locked: bool = False) -> Words:
        """Begin a section and read the CPU's page table (hmm_range_fault); one word a page.

        `flags` are the HMM_PFN_REQ_ bits wanted of every page, `owner` the dev_pagemap owner whose device pages may be
        named. Takes the mmap_lock, unless the caller holds it (`mmap_locked`). EBUSY means that the caller should try
        again until its time is over; the other errors are those of hmm_range_fault.
        """
        memory = self.memory
        kernel = memory.kernel
        seq = self.begin()  # anew at every attempt: an old one is invalid for ever
        pages = (self.end - self.start) >> memory.geometry.page_shift
        words = np.zeros(pages, np.uint64)
        lock = self.notifier.mm.mmap_lock
        if not mmap_locked:
            lock.down_read()
        try:
            memory.hmm_range_fault(
                HmmRange(
                    notifier=self.notifier,
                    start=self.start,
                    end=self.end,
                    hmm_pfns=words,
                    default_flags=flags,
                    dev_private_owner=owner,
                    notifier_seq=seq,
                )
            )
        finally:
            if not mmap_locked:
                lock.up_read()
        kernel.charge("get_pages_base")
        order = int(words[0]) >> HMM_PFN_ORDER_SHIFT & 0x1F
        kernel.charge("get_pages_per_entry", (pages - 1 >> order) + 1)
        return words

    def commit(self, write: Callable[[], None]) -> bool:
        """Write under the driver's mutex if mmu_interval_read_retry says that nothing happened since `begin`."""
        with self.lock:
            if self.memory.mmu_interval_read_retry(self.notifier, self.seq):
                return False
            write()
            return True

    def revoked(self) -> bool:
        """Tell whether something happened since `begin`, as mmu_interval_read_retry says; the mutex is held."""
        return self.memory.mmu_interval_read_retry(self.notifier, self.seq)

    def close(self) -> None:
        """Unsubscribe what `open` subscribed; sleeps until no callback runs."""
        if self._own:
            kernel = self.memory.kernel
            self.memory.mmu_interval_notifier_remove(self.notifier)
            kernel.gauges.dec("notifier")
            kernel.free(self.notifier)
            self._own = False
