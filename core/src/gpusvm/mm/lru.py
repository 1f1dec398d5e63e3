"""mm/folio.c, as of Linux 7.3.4: a small folio waits in a batch of the CPU that adds it until it is on the LRU.

Only a kernel that counts its CPUs has batches (`PageMap.lru`); elsewhere a folio is on the LRU at once. Of the kernel's
seven kinds there is lru_add, because a folio in it cannot be isolated, which makes migrate_device_unmap wait for every
CPU. The reference that a batch holds is left out: a folio that is freed leaves its batch. As the other kinds (activate,
mlock, buffer heads, …) may hold something on any CPU, `drain_all` waits for all of them, as 7.3.4 does at most.

`ActivateBatch` is lru_activate, for machines that give a real kernel's answers again: whether a folio still waits in it
depends on all that the CPU does, and shows in what the kernel answered.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from gpusvm.kernel import Work

if TYPE_CHECKING:
    from gpusvm.kernel import Kernel
    from gpusvm.mm.mm_struct import MmStruct
    from gpusvm.mm.page import Zone

__all__ = ["FOLIO_BATCH_SIZE", "PG_ACTIVE", "PG_LRU", "PG_REFERENCED", "ActivateBatch", "LruBatches"]

PG_LRU: Final = 2
# Only where there is an ActivateBatch.
PG_REFERENCED: Final = 512
PG_ACTIVE: Final = 1024
_PG_WAITS: Final = 2048  # no flag of the kernel's: the folio is in the batch, unless that was drained meanwhile
# include/linux/folio_batch.h:FOLIO_BATCH_SIZE
FOLIO_BATCH_SIZE: Final = 31


class LruBatches:
    """Hold the folios on their way to the LRU, by CPU (struct cpu_fbatches)."""

    def __init__(self, kernel: Kernel, ram: Zone) -> None:
        self._kernel = kernel
        self._ram = ram
        self._add: list[list[int]] = [[] for _ in range(kernel.cpus)]
        self._works = [Work(self.drain, "lru_add_drain") for _ in range(kernel.cpus)]
        self._queue = kernel.workqueue("mm_percpu_wq")
        self._lock = kernel.mutex("lru_add_drain_all")

    def add(self, pfn: int) -> None:
        """Put a folio on its way to the LRU, and the whole batch there if it is full (folio_add_lru).

        A large folio does not wait (folio_may_be_lru_cached).
        """
        if self._ram.m_order[pfn]:
            self._ram.m_flags[pfn] |= PG_LRU
            return
        cpu = self._kernel.smp_processor_id
        batch = self._add[cpu]
        batch.append(pfn)
        self._kernel.touch(self)
        if len(batch) >= FOLIO_BATCH_SIZE:
            self._drain_cpu(cpu)

    def forget(self, pfn: int) -> None:
        """Take a folio that is freed out of the batch it is in, if it is in one."""
        for batch in self._add:
            if pfn in batch:
                batch.remove(pfn)
                return

    def drain(self) -> None:
        """Put what this CPU has in its batch on the LRU (lru_add_drain)."""
        self._drain_cpu(self._kernel.smp_processor_id)

    def drain_all(self) -> None:
        """Have each CPU drain its batch, and wait until all have; sleeps (lru_add_drain_all)."""
        with self._lock:
            for cpu, work in enumerate(self._works):
                self._queue.queue_on(cpu, work)
            for work in self._works:
                work.flush()

    def _drain_cpu(self, cpu: int) -> None:
        # lru_add_drain_cpu
        batch = self._add[cpu]
        for pfn in batch:
            self._ram.m_flags[pfn] |= PG_LRU
        batch.clear()
        self._kernel.touch(self)


class ActivateBatch:
    """Hold the folios that wait to become active, each with a reference (cpu_fbatches.lru_activate).

    What drains the batch for certain does so here: a migration. What else drains it is not modelled (other processes
    of the CPU, as soon as they copy pages of their own after a fork), so of a folio that may wait `holds` tells, by its
    address space and address, whether it does.
    """

    def __init__(self, holds: Callable[[MmStruct, int], bool]) -> None:
        self._holds = holds
        self._waiting: list[tuple[Zone, int]] = []

    def mark_accessed(self, zone: Zone, i: int) -> None:
        """Make a folio referenced, and one that is so already active, in time (folio_mark_accessed)."""
        flags = zone.m_flags[i]
        if not flags & PG_REFERENCED:
            zone.m_flags[i] = flags | PG_REFERENCED
        elif not flags & PG_ACTIVE:
            zone.m_flags[i] = flags & ~PG_REFERENCED | _PG_WAITS
            self._waiting.append((zone, i))
            if zone.m_order[i]:  # folio_may_be_lru_cached
                self.drain()

    def drain(self) -> None:
        """Make those that wait active (folio_activate_drain)."""
        for zone, i in self._waiting:
            if zone.m_flags[i] & _PG_WAITS:
                zone.m_flags[i] = zone.m_flags[i] & ~_PG_WAITS | PG_ACTIVE
        self._waiting.clear()

    def holds(self, zone: Zone, i: int, mm: MmStruct, address: int) -> bool:
        """Tell whether a small folio that `mm` maps at `address` has a reference of the batch."""
        return bool(zone.m_flags[i] & _PG_WAITS) and self._holds(mm, address)
