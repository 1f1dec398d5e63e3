"""Without XNACK there are no faults: memory is mapped before, and what is invalidated stops the process's queues."""

import errno

import pytest
from gpusvm.errors import InputError
from gpusvm.explore import explore
from gpusvm.gpu import READ, WRITE
from gpusvm.mm.api import PROT_READ, PROT_WRITE

PAGE, PMD = 4096, 2 << 20
OFF = "kfd:xnack=off"


def mapped(bench, pages=8):
    b = bench(OFF)
    addr = b.map(pages * PAGE)
    b.cpu_write(addr, pages)
    b.vm.set_attr(addr, addr + pages * PAGE, access={0: "access"})
    return b, addr


def reaches(b, addr):
    """Tell what the GPU would do on a page."""
    return bool(b.vm.page_table.access_one(addr // PAGE, READ | WRITE))


def test_what_is_not_mapped_ends_the_program(bench):
    b = bench(OFF)
    addr = b.map(PAGE)
    assert b.fault(addr).errno == errno.EFAULT


def test_access_maps_at_once_and_where_the_memory_is(bench):
    b, addr = mapped(bench)
    assert b.gpu_write(addr, 8) == 0
    assert b.where(addr) == "system"


def test_an_invalidation_stops_the_queues_until_the_worker_has_mapped_anew(bench):
    b, addr = mapped(bench)
    b.memory.mprotect(b.mm, addr, PAGE, PROT_READ)
    process = b.vm.process
    assert process.queues.stopped
    assert b.mapped_pages(addr, 8) == 8  # nothing is unmapped
    assert not reaches(b, addr + PAGE)
    b.memory.mprotect(b.mm, addr, PAGE, PROT_READ | PROT_WRITE)
    begun = b.kernel.now_ns
    assert b.fault(addr + PAGE).errno == 0  # it waits
    assert b.kernel.now_ns >= begun + 1_000_000
    assert not process.queues.stopped
    assert process.svms.evicted_ranges == 0
    assert reaches(b, addr)


def test_a_migration_stops_them_too(bench):
    b, addr = mapped(bench)
    assert b.vm.populate(addr, addr + 8 * PAGE) == 8 * PAGE
    assert b.vm.process.queues.stopped
    b.kernel.sleep_ns(2_000_000)
    assert not b.vm.process.queues.stopped
    assert b.gpu_write(addr, 8) == 0
    b.cpu_read(addr)
    b.kernel.sleep_ns(2_000_000)
    assert b.gpu_read(addr, 8) == 0


def test_memory_of_which_nothing_is_left_is_unmapped_nevertheless(bench):
    b, addr = mapped(bench)
    b.mm.munmap(addr, 4 * PAGE)
    assert b.mapped_pages(addr, 8) == 4
    b.kernel.settle()
    assert b.gpu_read(addr + 4 * PAGE, 4) == 0


def test_a_scenario_that_registers_nothing_is_left_out():
    with pytest.raises(InputError) as caught:
        explore(["fault-munmap"], [OFF], schedules=1)
    assert str(caught.value) == (
        "none of the scenarios is for these drivers: fault-munmap on kfd:xnack=off: 'gpu_write 0 4' may fault, and no "
        "fault is served with these settings of kfd; a scenario whose setup registers what the GPU touches says so by "
        "`settings.kfd`"
    )
    explored = explore(["fault-munmap", "kfd-queues", "populate-swap"], [OFF], schedules=3)
    assert [each.scenario for each in explored.left_out] == ["fault-munmap"]
    assert [(each.scenario, each.schedules) for each in explored.results] == [("kfd-queues", 3), ("populate-swap", 3)]
