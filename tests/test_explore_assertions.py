"""The assertions of each driver's source (WARN_ON, xe_assert, lockdep_assert_held_write): each is found in a bundled
scenario where what it guards is taken away, and none falls otherwise.

That of xe_bo_pci_dev_remove_all is in test_explore_unplug_found.py. svmdev's source asserts one thing, that its lock is
held where ranges are looked up (drm_gpusvm_driver_set_lock): test_explore_kinds_found.py.
"""

import re
from functools import partial
from typing import Any

import gpusvm_dmirror.mirror
import pytest
from gpusvm.drm import GpuSvm
from gpusvm.explore.campaign import Campaign
from gpusvm.explore.execution import Failure
from gpusvm.explore.scenario import find_scenario
from gpusvm.explore.schedulers import read_scheduler
from gpusvm.explore.world import World
from gpusvm.plugins import load_drivers
from gpusvm_nouveau.dmem import ChunkBoMapping
from gpusvm_xe.faults import XeFaults
from gpusvm_xe.garbage import GarbageCollector
from gpusvm_xe.vm import XeVm

DRIVERS = load_drivers()


def explore(name: str, driver: str, schedules: int) -> tuple[int, Failure] | None:
    """Run so many schedules at most; the number of the first that fails, and its failure without line numbers."""
    (scenario,) = find_scenario(name)
    boot = partial(World, scenario, driver, drivers=DRIVERS)
    campaign = Campaign(boot=boot, scheduler=read_scheduler("pct:depth=3").make(seed=1), self_test_every=0)
    for schedule, execution in campaign.run(schedules=schedules):
        failure = execution.failure
        assert failure is not None
        message = re.sub(r"\.py:\d+", ".py", failure.message)
        return schedule, Failure(kind=failure.kind, invariant=failure.invariant, message=message)
    return None


def collects_without_the_lock(self: GarbageCollector) -> None:
    """Be a worker that forgets the lock of its address space."""
    if not self.vm.closed:
        self.collect()


def locks_to_read(self: XeFaults, job: Any) -> bool:
    """Let faults of one address space be served side by side."""
    job.vm = vm = self.driver.vms[job.fault.inst]
    vm.get("pagefault")
    vm.lock.down_read()
    job.scratch, job.tries = vm.ctx_fault, 1
    return True


def unlocks_what_it_read(self: XeFaults, job: Any) -> None:
    """Do the other half."""
    job.vm.lock.up_read()
    job.vm.put("pagefault")


def stops_the_collector_first(self: XeVm, *, plain: Any = XeVm.close) -> None:
    """Close in an order in which a fault may still wake the collector."""
    if not self.closed:
        self.garbage.stop()
    plain(self)


def always_to_vram(self: XeFaults, job: Any) -> Any:
    """Migrate without a look at whether the range can."""
    return self.driver.tile_of(job.fault).dpagemap


def inserts_one_that_stays(self: GpuSvm, *args: Any, migrate_devmem: bool, plain: Any = GpuSvm._range_insert) -> Any:
    """Make ranges as if their memory were a file's."""
    return plain(self, *args, migrate_devmem=False)


def counts_no_tail(self: ChunkBoMapping, head: int, tail: int) -> None:
    """Split a folio without counting what comes of it."""


def counts_tails_twice(self: ChunkBoMapping, head: int, tail: int) -> None:
    """Split a folio and count too much."""
    self.pool.chunk_of(tail).callocated += 2


CASES = {
    "xe_svm_garbage_collector": (
        [(GarbageCollector, "_worker", collects_without_the_lock)],
        ("fault-munmap", "xe", 4),
        (
            "the lock of address space 0 is not held for writing; task 'kworker/xe_page_fault_work_queue:1' at "
            "gpusvm_xe/vm.py"
        ),
    ),
    "__xe_svm_handle_pagefault": (
        [(XeFaults, "begin", locks_to_read), (XeFaults, "end", unlocks_what_it_read)],
        ("fault-munmap", "xe", 0),
        (
            "the lock of address space 0 is not held for writing; task 'kworker/xe_page_fault_work_queue:0' at "
            "gpusvm_xe/vm.py"
        ),
    ),
    "xe_svm_close": (
        [(XeVm, "close", stops_the_collector_first)],
        ("close-munmap", "xe", 0),
        "address space 0 still takes faults; task 'closer' at gpusvm_xe/garbage.py",
    ),
    "xe_svm_alloc_vram": (
        [(XeFaults, "place", always_to_vram), (GpuSvm, "_range_insert", inserts_one_that_stays)],
        ("fault-cpu-write", "xe", 0),
        (
            "<XeSvmRange [0x100000000000, 0x100000004000)> is not to migrate to VRAM; task "
            "'kworker/xe_page_fault_work_queue:0' at gpusvm_xe/svm.py"
        ),
    ),
    "nouveau_dmem_folio_free": (
        [(ChunkBoMapping, "split", counts_no_tail)],
        ("home-munmap-part", "nouveau", 0),
        "1 allocations end in a chunk that has 0; task 'one' at gpusvm_nouveau/dmem.py",
    ),
    "nouveau_dmem_fini": (
        [(ChunkBoMapping, "split", counts_tails_twice)],
        ("home-munmap-part", "nouveau", 0),
        "a chunk goes with 3 allocations in it; task 'main' at gpusvm_nouveau/dmem.py",
    ),
    "dmirror_do_fault": (
        [(gpusvm_dmirror.mirror, "HMM_PFN_REQ_FAULT", 0), (gpusvm_dmirror.mirror, "HMM_PFN_REQ_WRITE", 0)],
        ("fault-dontneed", "dmirror", 2),
        "page 0x100000000 was asked for and reported as 0x0; task 'gpu' at gpusvm_dmirror/mirror.py",
    ),
}


@pytest.mark.parametrize("assertion", CASES)
def test_an_assertion_falls_where_what_it_guards_is_taken_away(assertion: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plants, (scenario, driver, schedule), message = CASES[assertion]
    assert explore(scenario, driver, schedule + 1) is None
    for target, name, plant in plants:
        monkeypatch.setattr(target, name, plant)
    found = explore(scenario, driver, schedule + 1)
    assert found == (schedule, Failure(kind="driver", invariant=assertion, message=f"{assertion}: {message}"))
