"""Several GPUs in one process: memory moves between them through RAM, and is shared within a hive."""

import errno

import pytest
from gpusvm.errors import KernelError
from gpusvm.gpu import ATOMIC, READ, REMOTE, WRITE
from gpusvm.mm.api import MMU_NOTIFY_MIGRATE
from gpusvm_kfd.migrate import migrate_to_vram

PAGE, PMD = 4096, 2 << 20
ALL = READ | WRITE | ATOMIC


def perm(vm, addr):
    return int(vm.page_table.perms(addr // PAGE, addr // PAGE + 1)[0])


def touch(b, vm, addr):
    b.vm = vm
    return b.gpu_write(addr)


def test_one_process_serves_both(bench):
    b = bench(hardware="dual")
    one, two = b.vms
    assert one.process is two.process
    assert {pdd.gpu for pdd in one.process.pdds.values()} == {0, 1}


@pytest.mark.parametrize("hardware", ["dual", "dual-p2p"])
def test_memory_goes_to_the_other_gpu_through_ram(bench, hardware):
    b = bench("kfd:quirk.range_window=fixed", hardware=hardware)
    one, two = b.vms
    addr = b.map(PMD)
    b.cpu_write(addr, 512)
    touch(b, one, addr)
    touch(b, two, addr)
    stats = b.kernel.stats
    assert (stats.migrated_to_device_bytes, stats.migrated_to_ram_bytes) == (2 * PMD, PMD)
    assert [driver.bos.live for driver in b.machine.drivers] == [0, 1]
    assert (perm(one, addr), perm(two, addr)) == (0, ALL)


def test_the_owners_of_a_hive_are_one(bench):
    apart = bench(hardware="dual-p2p")
    assert apart.machine.drivers[0].owner is not apart.machine.drivers[1].owner
    hive = bench("kfd:hive=on", hardware="dual-p2p")
    assert hive.machine.drivers[0].owner is hive.machine.drivers[1].owner
    no_path = bench("kfd:hive=on", hardware="dual")
    assert no_path.machine.drivers[0].owner is not no_path.machine.drivers[1].owner


def test_within_a_hive_memory_is_reached_in_place(bench):
    b = bench("kfd:hive=on,quirk.range_window=fixed", hardware="dual-p2p")
    one, two = b.vms
    addr = b.map(PMD)
    b.cpu_write(addr, 512)
    one.set_attr(addr, addr + PMD, access={1: "in_place"})
    touch(b, one, addr)
    touch(b, two, addr)
    assert b.kernel.stats.migrated_to_ram_bytes == 0
    # To look for what could move is an event, which unmaps from the first, though nothing moves.
    assert (perm(one, addr), perm(two, addr)) == (0, ALL | REMOTE)
    touch(b, one, addr)
    assert perm(one, addr) == ALL


def test_a_preferred_gpu_out_of_reach_is_no_preference(bench):
    b = bench(hardware="dual-p2p")
    one, two = b.vms
    addr = b.map(PMD)
    one.set_attr(addr, addr + PMD, preferred_loc=0)
    touch(b, two, addr)
    assert b.vm.process.svms.objects[0].actual_loc == 2
    hive = bench("kfd:hive=on", hardware="dual-p2p")
    one, two = hive.vms
    addr = hive.map(PMD)
    one.set_attr(addr, addr + PMD, preferred_loc=0)
    touch(hive, two, addr)
    assert hive.vm.process.svms.objects[0].actual_loc == 1


def test_a_prefetch_goes_to_ram_where_a_gpu_in_another_hive_reaches_in_place(bench):
    b = bench(hardware="dual-p2p")
    addr = b.map(PMD)
    b.cpu_write(addr, 512)
    b.vms[0].set_attr(addr, addr + PMD, access={1: "in_place"})
    assert b.vms[0].populate(addr, addr + PMD) == 0
    assert b.device_pages(addr, 512) == 0


def test_what_does_not_leave_a_gpu_does_not_reach_the_other(bench, monkeypatch):
    b = bench("kfd:quirk.range_window=fixed", hardware="dual")
    one = b.vm
    addr = b.map(PMD)
    touch(b, one, addr)
    gone = []
    monkeypatch.setattr("gpusvm_kfd.migrate.vma_to_ram", lambda *_, **__: gone.append(1) or 0)
    monkeypatch.setattr("gpusvm_kfd.mapping.vma_to_ram", lambda *_, **__: 0)
    (prange,) = one.process.svms.objects
    with b.mm.mmap_lock.read(), prange.migrate_mutex, pytest.raises(KernelError) as caught:
        migrate_to_vram(prange, 2, prange.start, prange.end, b.mm)
    assert caught.value.errno == errno.EDEADLK
    assert len(gone) == 3


def test_populate_mm_takes_what_has_a_range(bench):
    b = bench()
    addr = b.map(PMD)
    b.cpu_write(addr, 512)
    (pagemap,) = b.driver.pagemaps()
    with pytest.raises(KernelError) as caught:
        pagemap.populate_mm(addr, addr + PMD, b.mm, 0)
    assert caught.value.errno == errno.ENOENT
    b.vm.set_attr(addr, addr + PMD, preferred_loc="system")
    pagemap.populate_mm(addr, addr + PMD, b.mm, 0)
    assert b.device_pages(addr, 512) == 512


def test_a_process_keeps_its_gpus_awake_as_long_as_it_lives(bench):
    b = bench(hardware="dual")
    rpm = b.driver.pm.rpm
    assert rpm.holders == {"process_device": 1}
    b.machine.close(b.process, 0)
    b.kernel.sleep_ns(60_000_000_000)
    assert (rpm.holders, rpm.state) == ({"process_device": 1}, "D0")
    b.mm.mmput()
    b.machine.processes.clear()
    b.machine.close(b.process, 1)
    b.kernel.settle()
    b.kernel.sleep_ns(60_000_000_000)
    assert (rpm.holders, rpm.state != "D0") == ({}, True)


def test_its_own_migration_is_an_event_like_any_other(bench):
    b = bench()
    addr = b.map(PMD)
    b.gpu_write(addr)
    told = []
    plain = b.vm.process.svms.invalidate
    b.vm.process.svms.invalidate = lambda prange, sub, range_, seq: (
        told.append(range_.event) or plain(prange, sub, range_, seq)
    )
    b.cpu_read(addr)
    del b.vm.process.svms.invalidate
    assert told[0] == MMU_NOTIFY_MIGRATE
    assert b.mapped_pages(addr, 512) == 0
