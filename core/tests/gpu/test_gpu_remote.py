"""What accesses to system memory cost a launch: their latency, the link, and who waits."""

import attrs
import numpy as np
import pytest
from gpusvm.gpu import NEED_OF_OP, READ, REMOTE, WRITE, ComputeEngine, FaultEntry, GpuPageTable, Link
from gpusvm.kernel import Kernel
from gpusvm.mm import MemoryManager
from gpusvm.run.costs import load_profile

LATENCY_NS = 10_000


class Gpu:
    """A GPU whose driver maps every page it faults on where it is, in system memory, after `service_ns`."""

    def __init__(self, *, service_ns: int = 100_000, ns_per_byte: float = 0.0) -> None:
        costs = attrs.evolve(
            load_profile("h100-pcie5").costs, remote_access_latency=LATENCY_NS, remote_ns_per_byte=ns_per_byte
        )
        self.kernel = Kernel(costs=costs)
        self.memory = MemoryManager(self.kernel, ram_pages=4096, thp="never")
        mm = self.memory.mm_alloc("test")
        self.table = GpuPageTable(self.kernel, self.memory, mm)
        self.service_ns = service_ns
        self.queue: list[FaultEntry] = []
        self.arrived = self.kernel.waitqueue("arrived")
        self.engine = ComputeEngine(self.kernel, self.table, Link(self.kernel), self.raise_faults, pages_per_sm=32)
        self.kernel.spawn(self.driver, name="driver", daemon=True)

    def raise_faults(self, faults: "list[FaultEntry]") -> int:
        self.queue += faults
        self.arrived.wake_up_all()
        return len(faults)

    def driver(self) -> None:
        while True:
            self.arrived.wait_event(lambda: bool(self.queue))
            self.kernel.sleep_ns(self.service_ns)
            fault = self.queue.pop(0)
            self.map(fault.vpn)
            fault.complete(0)

    def map(self, vpn: int) -> None:
        pfn = self.memory.alloc_folio(0)
        assert pfn is not None
        self.memory.clear_folio(pfn, 1)
        self.table.map_run(vpn, pfn, 1, READ | WRITE | REMOTE)

    def run(self, rows: list[tuple[int, int, int, int]]) -> int:
        began = self.kernel.now_ns
        columns = np.array(rows, np.int64).T
        self.engine.run(columns[0], columns[1], NEED_OF_OP[columns[2]], columns[3].astype(np.uint16))
        return self.kernel.now_ns - began


def test_a_launch_ends_when_the_access_behind_its_last_reply_is_through() -> None:
    gpu = Gpu()
    assert gpu.run([(0, 1, 0, 0)]) >= gpu.service_ns + LATENCY_NS


def test_a_launch_ends_when_its_last_access_is_through() -> None:
    gpu = Gpu()
    gpu.map(1)
    assert gpu.run([(0, 1, 0, 0)]) == LATENCY_NS


def test_the_latency_of_one_access_is_not_everybodys_delay() -> None:
    gpu = Gpu(service_ns=20_000)
    faults = 40
    rows = [(i, i + 1, 0, i + 1) for i in range(faults)]  # an SM each, answered one by one
    rows += [(i * 25_000, 1, 0, 0) for i in range(faults)]  # an SM that has the page from early on
    took = gpu.run(rows)
    assert took < faults * 25_000 + 3 * LATENCY_NS


@pytest.mark.parametrize("mapped", [True, False])
def test_the_link_bounds_what_a_launch_reads(mapped: bool) -> None:
    gpu = Gpu(service_ns=10, ns_per_byte=1.0)
    if mapped:
        for vpn in range(1, 101):
            gpu.map(vpn)
    assert gpu.run([(0, vpn, 0, vpn % 7) for vpn in range(1, 101)]) >= 100 * 4096
    assert gpu.kernel.stats.remote_bytes == 100 * 4096
    assert gpu.kernel.stats.remote_ns == 100 * 4096
