"""The driver is taken from a device: what comes home and when, what as written does not, and what is NULL by then."""

import errno

import numpy as np
import pytest
from gpusvm.driver import ACCESS_READ
from gpusvm.errors import CpuSignal, DriverError, KernelError, LivelockError
from gpusvm.mm.api import MIGRATE_VMA_SELECT_DEVICE_PRIVATE, MigrateVma
from gpusvm.testing import Fault
from gpusvm_nouveau.dmem import NouveauDmem

PAGE, PMD = 4096, 2 << 20


def on_device(bench, thp="never", **quirks):
    """Bring a block to the device and close the file; all quirks but those named are fixed."""
    spec = ",".join(f"quirk.{name}={value}" for name, value in quirks.items())
    b = bench(f"nouveau:{spec}" if spec else "nouveau", thp=thp, quirks="fixed")
    addr = b.map(PMD)
    b.cpu_write(addr, 512)
    assert b.vm.populate(addr, addr + PMD) == PMD
    return b, addr


def removal(b):
    """Begin to remove the device, and come back when that waits or is over."""
    task = b.kernel.spawn(lambda: b.machine.remove(0), name="unbind")
    b.kernel.sleep_ns(1_000_000_000)
    return task


@pytest.mark.parametrize(("quirk", "stays"), [("as_written", True), ("fixed", False)])
def test_evicted_folios_a_large_folio_stays_and_is_waited_for(bench, quirk, stays):
    b, addr = on_device(bench, "always", evicted_folios=quirk)
    b.vm.close()
    task = removal(b)
    assert b.where(addr) == ("device" if stays else "system")
    assert task.done is not stays
    b.mm.munmap(addr, PMD)  # the process lets go of them
    task.join()


def test_evicted_folios_single_pages_come_home_all_the_same(bench):
    b, addr = on_device(bench, evicted_folios="as_written")
    b.vm.close()
    removal(b).join()
    assert b.device_pages(addr, 512) == 0


def test_evict_unchecked_a_page_whose_copy_was_not_queued_comes_home_empty(bench):
    b, addr = on_device(bench, evict_unchecked="as_written")
    b.vm.close()
    b.kernel.arm("dma.map")
    removal(b).join()
    assert b.device_pages(addr, 512) == 0
    b.cpu_read(addr, 512)
    assert b.memory.contents.known == {"evict_unchecked": 1}


def test_evict_unchecked_fixed_the_mapping_is_tried_again(bench):
    b, addr = on_device(bench)
    b.vm.close()
    b.kernel.arm("dma.map")
    removal(b).join()
    b.cpu_read(addr, 512)
    assert b.memory.contents.known == {}


@pytest.mark.parametrize("quirk", ["as_written", "fixed"])
def test_evict_unchecked_without_a_large_page_to_come_home_to(bench, quirk):
    b, addr = on_device(bench, "always", evict_unchecked=quirk)
    b.vm.close()
    b.kernel.arm("alloc.folio")
    if quirk == "as_written":
        with pytest.raises(DriverError) as raised:
            b.driver.dmem.fini()
        assert str(raised.value) == (
            "nouveau_dmem_evict_chunk: no page of order 9 for a folio that goes home: a NULL pointer"
        )
        b.machine.processes.clear()
        b.close = b.kernel.close
        return
    removal(b).join()
    b.cpu_read(addr, 512)


def held(b, addr):
    """Collect a page as a CPU fault does, so that its eviction leaves it out; what puts it back."""
    memory = b.memory
    args = MigrateVma(
        vma=b.mm.find_vma(addr),
        start=addr,
        end=addr + PAGE,
        src=np.zeros(1, np.uint64),
        dst=np.zeros(1, np.uint64),
        pgmap_owner=b.driver.device,
        flags=MIGRATE_VMA_SELECT_DEVICE_PRIVATE,
    )
    b.mm.mmap_lock.down_read()
    memory.migrate_vma_setup(args)
    b.mm.mmap_lock.up_read()
    return lambda: memory.migrate_vma_finalize(args)


def test_bo_before_wait_a_page_that_was_left_out_has_no_object_to_be_copied_from(bench):
    b, addr = on_device(bench, bo_before_wait="as_written", evicted_once="as_written")
    b.vm.close()
    put_back = held(b, addr)
    b.kernel.tracer.on = True
    task = removal(b)
    warned = [event[3:] for event in b.kernel.tracer.events if event[2] == "warn"]
    assert warned == [("nouveau_dmem_fini", "a chunk goes with 1 allocations in it")]
    put_back()
    with pytest.raises(DriverError) as raised:
        b.cpu_read(addr)
    assert str(raised.value).startswith("nouveau_dmem_page_addr: the chunk of pfn ")
    assert str(raised.value).endswith(" has no object any more: a NULL pointer, task 'main'")
    assert not task.done
    b.kernel.close()
    b.close = b.kernel.close


def test_bo_before_wait_fixed_a_touch_brings_the_page_home_and_ends_the_wait(bench):
    b, addr = on_device(bench, evicted_once="as_written")
    b.vm.close()
    put_back = held(b, addr)
    task = removal(b)
    put_back()
    assert not task.done
    b.cpu_read(addr)
    task.join()


@pytest.mark.parametrize(("quirk", "waits"), [("as_written", True), ("fixed", False)])
def test_evicted_once_a_page_that_was_left_out_is_waited_for(bench, quirk, waits):
    b, addr = on_device(bench, evicted_once=quirk)
    b.vm.close()
    put_back = held(b, addr)
    task = removal(b)
    assert not task.done
    put_back()
    b.kernel.sleep_ns(1_000_000_000)
    assert task.done is not waits
    assert b.where(addr) == ("device" if waits else "system")
    b.mm.munmap(addr, PMD)
    task.join()


@pytest.mark.parametrize("quirk", ["as_written", "fixed"])
def test_failed_copy_a_page_whose_copy_failed_is_lost_under_its_migration_entry(bench, quirk):
    b, addr = on_device(bench, failed_copy=quirk)
    pfn = b.mm.page_table.entry(addr).pfn
    b.kernel.arm("dma.map")
    with pytest.raises(CpuSignal, match="SIGBUS"):
        b.cpu_read(addr)
    if quirk == "fixed":
        b.cpu_read(addr)
        return
    assert b.memory.zone_device_data(pfn) is b.driver.dmem.pool.free_pages
    with pytest.raises(LivelockError) as raised:
        b.cpu_read(addr)
    assert str(raised.value) == (
        f"livelock: the migration entry at {addr:#x} of bench names pfn {pfn:#x}, which is free"
    )
    b.kernel.close()
    b.close = b.kernel.close


def test_unbind_open_the_channel_of_an_open_file_leaves_through_a_null_pointer(bench):
    b, _ = on_device(bench, unbind_open="as_written")
    with pytest.raises(DriverError) as raised:
        b.machine.remove(0)
    assert str(raised.value) == "nouveau_svmm_part: drm->svm of gpu0 is NULL when instance 1 leaves"
    b.kernel.close()
    b.close = b.kernel.close


def test_unbind_open_fixed_clients_end_with_the_device_and_closing_does_nothing_more(bench):
    b, addr = on_device(bench)
    b.gpu_write(addr, 4)
    b.machine.remove(0)
    assert (b.vm.closed, b.vm.page_table.mapped_pages, b.driver.svmms) == (True, 0, {})
    b.cpu_read(addr, 512)
    b.machine.close(b.process)
    with pytest.raises(KernelError) as refused:
        b.driver.vm_create(b.mm, start=0, end=1 << 47)
    assert refused.value.errno == errno.ENODEV


@pytest.mark.parametrize(("quirk", "waits"), [("as_written", False), ("fixed", True)])
def test_unbind_open_only_fixed_does_the_removal_wait_for_an_ioctl(bench, quirk, waits):
    b, addr = on_device(bench, unbind_open=quirk)
    b.mm.mmap_lock.down_write()
    ioctl = b.kernel.spawn(lambda: b.vm.populate(addr, addr + PMD), name="ioctl")
    b.kernel.settle()
    b.kernel.spawn(b.driver.device.unplug, name="unplug")
    b.kernel.settle()
    done = []
    b.kernel.spawn(lambda: done.append(b.driver.device.unplugged), name="look")
    b.kernel.settle()
    unplug = next((task for task in b.kernel.tasks if task.name == "unplug" and not task.done), None)
    assert (unplug is not None) is waits
    b.mm.mmap_lock.up_write()
    ioctl.join()
    b.kernel.settle()
    b.close = b.kernel.close


def test_faults_are_served_until_everything_is_home(bench, monkeypatch):
    b, addr = on_device(bench)
    evacuate = NouveauDmem._evacuate
    answers = []

    def fault_meanwhile(dmem, chunk):
        evacuate(dmem, chunk)
        fault = Fault(addr, ACCESS_READ, time_ns=b.kernel.now_ns)
        answers.extend(each.errno for each in b.faults([fault]))

    monkeypatch.setattr(NouveauDmem, "_evacuate", fault_meanwhile)
    b.machine.remove(0)
    assert answers == [0]


def test_the_newest_chunk_is_evacuated_first(bench, monkeypatch):
    b, _ = on_device(bench)
    small = b.map(PMD)
    b.memory.mprotect(b.mm, small, PMD, 3)
    pool = b.driver.dmem.pool
    pool.grow(9)
    first, second = pool.chunks
    seen = []
    monkeypatch.setattr(NouveauDmem, "_evacuate", lambda _, chunk: seen.append(chunk))
    b.vm.close()
    b.mm.munmap(b._next_addr - 4 * PMD, 4 * PMD)
    b.driver.dmem.fini()
    assert seen == [second, first]
