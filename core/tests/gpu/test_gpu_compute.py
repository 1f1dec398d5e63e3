"""The compute units: order within an SM, the bound on faulting pages, carried delays, and what a launch costs."""

from collections.abc import Sequence

import numpy as np
import pytest
from gpusvm.errors import KernelError
from gpusvm.gpu import NEED_OF_OP, READ, WRITE, ComputeEngine, FaultEntry, GpuPageTable, Link
from gpusvm.kernel import Kernel
from gpusvm.mm import MemoryManager


class Gpu:
    """One page table and one engine; a `driver` task maps each faulting page after `service_ns`, one by one."""

    def __init__(self, *, service_ns: int, pages_per_sm: int = 32, buffer: int = 1000) -> None:
        self.kernel = Kernel()
        self.memory = MemoryManager(self.kernel, ram_pages=1024, thp="never")
        self.mm = self.memory.mm_alloc("test")
        self.table = GpuPageTable(self.kernel, self.memory, self.mm)
        self.service_ns = service_ns
        self.buffer = buffer
        self.queue: list[FaultEntry] = []
        self.most_queued = 0
        self.served: list[tuple[int, int]] = []
        self.errno = 0
        self.arrived = self.kernel.waitqueue("arrived")
        self.engine = ComputeEngine(
            self.kernel, self.table, Link(self.kernel), self.raise_faults, pages_per_sm=pages_per_sm
        )
        self.kernel.spawn(self.driver, name="driver", daemon=True)

    def raise_faults(self, faults: Sequence[FaultEntry]) -> int:
        taken = list(faults[: self.buffer - len(self.queue)])
        self.queue += taken
        self.most_queued = max(self.most_queued, len(self.queue))
        self.arrived.wake_up_all()
        return len(taken)

    def driver(self) -> None:
        while True:
            self.arrived.wait_event(lambda: bool(self.queue))
            self.kernel.sleep_ns(self.service_ns)
            fault = self.queue.pop(0)
            self.served.append((fault.sm, fault.vpn))
            if not self.errno and self.table.perms(fault.vpn, fault.vpn + 1)[0] == 0:
                pfn = self.memory.alloc_folio(0)
                assert pfn is not None
                self.memory.clear_folio(pfn, 1)
                self.table.map_run(fault.vpn, pfn, 1, READ | WRITE)
            fault.complete(self.errno)

    def run(self, rows: list[tuple[int, int, int, int]]) -> int:
        """Run a launch of (time, page, op, sm) rows; the ns that it took."""
        began = self.kernel.now_ns
        columns = np.array(rows, np.int64).T
        self.engine.run(columns[0], columns[1], NEED_OF_OP[columns[2]], columns[3].astype(np.uint16))
        return self.kernel.now_ns - began


def test_without_faults_a_launch_takes_as_long_as_its_rows() -> None:
    gpu = Gpu(service_ns=1000)
    gpu.run([(0, 1, 1, 0)])
    rows = [(t, 1, 0, t % 3) for t in range(0, 50_000, 100)]
    assert gpu.run(rows) == 49_900
    assert gpu.engine.accesses == 501


def test_a_faulting_row_waits_and_the_others_of_its_sm_go_on() -> None:
    gpu = Gpu(service_ns=1_000_000)
    took = gpu.run([(0, 1, 1, 0), (100, 1, 0, 0), (200, 2, 1, 0)])
    # Both pages were raised before the first was served, so the launch waits for two services, not for more.
    assert gpu.served == [(0, 1), (0, 2)]
    assert 2_000_000 <= took < 2_050_000


def test_an_sm_stalls_at_its_bound_and_carries_the_delay_over() -> None:
    gpu = Gpu(service_ns=1_000_000, pages_per_sm=1)
    took = gpu.run([(0, 1, 1, 0), (10, 2, 1, 0), (500_000, 2, 0, 0)])
    # Page 2 is not raised before page 1 is there; the last row comes 499,990 ns behind the second.
    assert gpu.served == [(0, 1), (0, 2)]
    assert 2_000_000 <= took < 2_600_000


def test_sms_stall_one_by_one() -> None:
    gpu = Gpu(service_ns=100_000, pages_per_sm=2)
    gpu.run([(0, page, 1, page % 2) for page in range(1, 9)])
    assert sorted(gpu.served) == [(0, 2), (0, 4), (0, 6), (0, 8), (1, 1), (1, 3), (1, 5), (1, 7)]
    assert gpu.most_queued == 4


def test_a_full_buffer_holds_faults_back() -> None:
    gpu = Gpu(service_ns=10_000, buffer=3)
    gpu.run([(0, page, 1, page) for page in range(40)])
    assert len(gpu.served) == 40
    assert gpu.most_queued == 3


def test_two_sms_fault_on_one_page_each_for_itself() -> None:
    gpu = Gpu(service_ns=1000)
    gpu.run([(0, 7, 1, 0), (0, 7, 1, 1)])
    assert gpu.served == [(0, 7), (1, 7)]


def test_a_refused_fault_ends_the_launch() -> None:
    gpu = Gpu(service_ns=1000)
    gpu.errno = 14
    with pytest.raises(
        KernelError,
        match=r"^-EFAULT: the driver refused the write fault of SM 3 on page 0x5; the GPU context is lost$",
    ):
        gpu.run([(0, 5, 1, 3)])
