"""mm/swap.c, as of Linux 7.3.4: a small folio waits in a batch of the CPU that adds it until it is on the LRU.

Only a kernel that counts its CPUs has batches (`PageMap.lru`); elsewhere a folio is on the LRU at once. Of the kernel's
seven kinds there is lru_add, because a folio in it cannot be isolated, which makes migrate_device_unmap wait for every
CPU. The reference that a batch holds is left out: a folio that is freed leaves its batch. As the other kinds (activate,
mlock, buffer heads, …) may hold something on any CPU, `drain_all` waits for all of them, as 7.3.4 does at most.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from gpusvm.kernel import Work

if TYPE_CHECKING:
    from gpusvm.kernel import Kernel
    from gpusvm.mm.page import Zone

__all__ = ["FOLIO_BATCH_SIZE", "PG_LRU", "LruBatches"]

PG_LRU: Final = 2
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
