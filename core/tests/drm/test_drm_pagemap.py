"""Migration, eviction and the life of an allocation in drm_pagemap."""

from errno import EBUSY, EINVAL, EIO, ENODEV, ENOENT, ENOMEM, EOPNOTSUPP

import numpy as np
import pytest
from gpusvm.drm import Devmem, Fence, MigrateDetails, evict_to_ram, migrate_to_devmem, page_to_dpagemap
from gpusvm.drm.zdd import Zdd
from gpusvm.errors import CpuSignal, KernelError
from gpusvm.kernel import Kernel, SeededChoices

PAGE = 4096
MS = 1_000_000


def migrate(m, start, end, *, device=0, **details):
    """Migrate pages [start, end) without a driver's populate_mm around it; the Devmem."""
    device = m.devices[device]
    allocation = device.alloc(end - start)
    allocation.devmem = devmem = Devmem(
        device.drm, m.mm, device, device.dpagemap, (end - start) * PAGE, container=allocation
    )
    with m.mm.mmap_lock.read():
        migrate_to_devmem(devmem, m.mm, start * PAGE, end * PAGE, MigrateDetails(**details))
    return devmem


def pfn_of(m, page):
    return int(m.devices[0].pgmap.start_pfn) + page


# --- what comes before the migration


def test_early_errors_release_the_allocation(machine):
    m = machine()
    m.mmap(0x100, 16)
    device = m.devices[0]
    for start, end, errno, message in (
        (0x200, 0x210, ENOENT, "-ENOENT: no VMA at 0x200000"),
        (0x108, 0x118, EINVAL, "-EINVAL: [0x108000, 0x118000) exceeds the VMA [0x100000, 0x110000)"),
    ):
        with pytest.raises(KernelError) as caught:
            migrate(m, start, end)
        assert (caught.value.errno, str(caught.value)) == (errno, message)
        assert device.in_use == 0
    m.kernel.arm("pagemap.zdd")
    with pytest.raises(KernelError) as caught:
        migrate(m, 0x100, 0x110)
    assert caught.value.errno == ENOMEM
    assert (device.allocated, device.released) == (3, 3)


def test_a_missing_op_is_eopnotsupp(machine):
    m = machine()
    m.mmap(0x100, 16)
    m.devices[0].copy_to_ram = None
    with pytest.raises(KernelError) as caught:
        migrate(m, 0x100, 0x110)
    assert caught.value.errno == EOPNOTSUPP
    assert str(caught.value) == "-EOPNOTSUPP: devmem ops lack copy_to_ram"
    assert m.devices[0].in_use == 0
    del m.devices[0].copy_to_ram


def test_all_or_nothing(machine):
    m = machine()
    m.mmap(0x100, 16)
    m.write(0x100, 16)
    file = m.files[0]
    file.fault(0x100 * PAGE, migrate=False)
    pinned = int(file.find(0x100 * PAGE).pages.dma_addr.pfns[5])
    m.memory.folio_get(pinned)
    with pytest.raises(KernelError) as caught:
        migrate(m, 0x100, 0x110)
    assert caught.value.errno == EBUSY
    assert str(caught.value) == "-EBUSY: 15 of 16 pages collected: all or nothing"
    assert (m.devices[0].in_use, m.devices[0].copies) == (0, [])
    m.memory.folio_put(pinned)
    migrate(m, 0x100, 0x110)
    assert m.devices[0].in_use == 16


def test_populate_after_unplug_is_enodev(machine):
    m = machine()
    m.mmap(0x100, 16)
    device = m.devices[0]
    real = device.populate_mm

    def populate_mm(dpagemap, start, end, mm, timeslice_ms):
        cookie = device.drm.dev_enter()
        try:
            real(dpagemap, start, end, mm, timeslice_ms)
        finally:
            device.drm.dev_exit(cookie)

    device.populate_mm = populate_mm
    assert m.files[0].populate(0x100 * PAGE, 16) == 0
    device.drm.unplug()
    assert m.files[0].populate(0x100 * PAGE, 16) == -ENODEV
    device.evict()
    m.read(0x100, 16)


# --- the life of a zdd


def test_a_zdd_has_a_reference_a_folio(machine):
    m = machine(thp="always")
    m.mmap(0x200, 1024)
    m.write(0x400, 512)
    devmem = migrate(m, 0x400, 0x600)
    first = pfn_of(m, devmem.container.first)
    zdd = m.memory.zone_device_data(first)
    assert isinstance(zdd, Zdd)
    assert (zdd.devmem, zdd.dpagemap, zdd.kref.count) == (devmem, m.devices[0].dpagemap, 1)
    assert page_to_dpagemap(m.memory, first + 77) is m.devices[0].dpagemap
    assert m.devices[0].dpagemap.refcount == 2
    m.mm.munmap(0x400 * PAGE, PAGE)
    assert not devmem.detached.done
    m.mm.munmap(0x401 * PAGE, 511 * PAGE)
    assert devmem.detached.done
    assert m.devices[0].in_use == 0
    assert m.kernel.gauges.now["zdd"] == 0
    assert m.kernel.gauges.peak["zdd"] == 1


def test_folio_split_passes_reference_and_mark_on(machine):
    m = machine(thp="always")
    m.mmap(0x200, 512)
    m.write(0x200, 512)
    devmem = migrate(m, 0x200, 0x400)
    head = pfn_of(m, devmem.container.first)
    ops = m.devices[0].pgmap.ops
    zdd = m.memory.zone_device_data(head)
    ops.folio_split(head, head + 1)
    assert zdd.kref.count == 2
    assert m.memory.zone_device_data(head + 1) is zdd
    assert not m.memory.zone_device_flag(head + 1)
    m.memory.set_zone_device_flag(head)
    ops.folio_split(head, head + 2)
    assert m.memory.zone_device_flag(head + 2)
    ops.folio_split(head, None)
    assert zdd.kref.count == 3
    m.memory.set_zone_device_data(head, zdd)  # clears the mark
    zdd.kref.put("folio", 2)  # the tails were none


def test_small_folios_are_given_back_together(machine):
    m = machine()
    m.mmap(0x100, 48)
    m.write(0x100, 48)
    a, b = migrate(m, 0x100, 0x110), migrate(m, 0x110, 0x120)
    pfns = np.array([pfn_of(m, i) for i in (0, 1, 2, 16, 17, 3, 18)])
    zdds = [m.memory.zone_device_data(pfn_of(m, d.container.first)) for d in (a, b)]
    assert [zdd.kref.count for zdd in zdds] == [16, 16]
    for zdd in zdds:
        zdd.kref.get("folio", 4)
    m.devices[0].pgmap.ops.folios_free(pfns)
    assert [zdd.kref.count for zdd in zdds] == [16, 17]
    zdds[1].kref.put("folio", 1)


def test_an_allocation_of_scattered_pages(machine):
    m = machine()
    m.mmap(0x100, 16)
    m.write(0x100, 16)
    device = m.devices[0]
    scattered = np.array([5, 9, 7, 100, 101, 102, 64, 65, 66, 67, 30, 20, 21, 22, 23, 24]) + device.pgmap.start_pfn

    def populate_devmem_pfn(devmem, npages):
        return scattered

    device.populate_devmem_pfn = populate_devmem_pfn
    file = m.files[0]
    assert file.fault(0x100 * PAGE)[1:] == ["pop(0)", "get(0)", "map(rw,00*16)"]
    zdd = m.memory.zone_device_data(int(scattered[0]))
    assert zdd.covers(np.append(scattered, [scattered[0] + 1])).tolist() == [True] * 16 + [False]
    assert [zdd.covers_page(int(scattered[0]) + i) for i in range(6)] == [True, False, True, False, True, False]
    m.device_read(file, 0x100, 16)
    m.read(0x104)
    m.read(0x100, 16)
    del device.populate_devmem_pfn


# --- timeslice, fences


def test_the_cpu_waits_for_the_end_of_the_timeslice(machine):
    m = machine()
    m.mmap(0x100, 16)
    m.write(0x100, 16)
    assert m.files[0].populate(0x100 * PAGE, 16, timeslice_ms=5) == 0
    begin = m.kernel.now_ns
    m.read(0x100)
    assert 5 * MS <= m.kernel.now_ns - begin < 6 * MS
    assert m.devices[0].in_use == 0


def test_eviction_does_not_heed_the_timeslice(machine):
    m = machine()
    m.mmap(0x100, 16)
    m.write(0x100, 16)
    migrate(m, 0x100, 0x110, timeslice_ms=5000)
    m.devices[0].evict()
    assert m.devices[0].in_use == 0
    assert m.kernel.now_ns < MS


def test_the_copy_gets_the_fence_of_the_allocation(machine):
    m = machine()
    m.mmap(0x100, 32)
    m.write(0x100, 16)
    device = m.devices[0]
    seen = []
    real = device.copy_to_devmem

    def copy_to_devmem(pfns, addrs, fence):
        seen.append((len(addrs), fence))
        real(pfns, addrs, fence)

    device.copy_to_devmem = copy_to_devmem
    fence = Fence(m.kernel, "clear")
    fence.signal()  # the tiny driver would wait for it
    for start in (0x100, 0x110):  # with a source, and without: the op is called all the same, so that it can wait
        allocation = device.alloc(16)
        allocation.devmem = Devmem(
            device.drm, m.mm, device, device.dpagemap, 16 * PAGE, pre_migrate_fence=fence, container=allocation
        )
        with m.mm.mmap_lock.read():
            migrate_to_devmem(allocation.devmem, m.mm, start * PAGE, (start + 16) * PAGE)
        assert allocation.devmem.pre_migrate_fence is None
    assert seen == [(16, fence), (0, fence)]


@pytest.mark.breaks_invariants
def test_memory_that_was_not_cleared_shows(machine):
    m = machine(finish=False)
    m.mmap(0x100, 16)
    device = m.devices[0]
    allocation = device.alloc(16)
    allocation.devmem = Devmem(
        device.drm, m.mm, device, device.dpagemap, 16 * PAGE, cleared=False, container=allocation
    )
    with m.mm.mmap_lock.read():
        migrate_to_devmem(allocation.devmem, m.mm, 0x100 * PAGE, 0x110 * PAGE)
    m.read(0x104)
    assert m.memory.contents.mismatch_count == 1


# --- home


def test_without_a_large_folio_small_ones_will_do(machine):
    m = machine(thp="always")
    m.mmap(0x200, 512)
    m.write(0x200, 512)
    migrate(m, 0x200, 0x400)
    m.kernel.arm("alloc.folio", times=2)
    m.read(0x222)
    assert m.devices[0].copies[1] == ("to_ram", 512, 512)
    m.read(0x200, 512)
    assert m.devices[0].in_use == 0


def test_without_any_memory_the_cpu_gets_a_sigbus(machine):
    m = machine()
    m.mmap(0x100, 16)
    m.write(0x100, 16)
    migrate(m, 0x100, 0x110)
    m.kernel.arm("alloc.pages")
    with pytest.raises(CpuSignal) as caught:
        m.read(0x100)
    assert str(caught.value) == "SIGBUS at 0x100000"
    m.read(0x100, 16)


def test_eviction_tries_three_times(machine):
    m = machine()
    m.mmap(0x100, 16)
    m.write(0x100, 16)
    devmem = migrate(m, 0x100, 0x110)
    device = m.devices[0]
    real = device.copy_to_ram
    calls = []

    def copy_to_ram(pfns, addrs, fence):
        calls.append(len(addrs))
        if len(calls) < 3:
            raise KernelError(EIO, "not yet")
        real(pfns, addrs, fence)

    device.copy_to_ram = copy_to_ram
    device.evict()
    del device.copy_to_ram
    assert calls == [16, 16, 16]
    assert devmem.detached.done


def test_eviction_gives_up_with_the_last_error(machine):
    m = machine()
    m.mmap(0x100, 16)
    m.write(0x100, 16)
    devmem = migrate(m, 0x100, 0x110)
    device = m.devices[0]
    calls = []

    def copy_to_ram(pfns, addrs, fence):
        calls.append(len(addrs))
        raise KernelError(EIO, "dead")

    device.copy_to_ram = copy_to_ram
    with pytest.raises(KernelError) as caught:
        evict_to_ram(devmem)
    assert caught.value.errno == EIO
    assert calls == [16, 16, 16]
    del device.copy_to_ram
    pfn = pfn_of(m, 3)
    m.memory.folio_lock(pfn)
    with pytest.raises(KernelError) as caught:
        evict_to_ram(devmem)
    assert str(caught.value) == "-EBUSY: device pages are left after 3 attempts"
    m.memory.folio_unlock(pfn)
    evict_to_ram(devmem)
    assert [copy for copy in device.copies if copy[0] == "to_ram"] == [("to_ram", 15, 15), ("to_ram", 1, 1)]
    m.read(0x100, 16)


def test_a_page_is_not_copied_home_twice(machine):
    """The folio outlives its migration, the CPU writes to the new page, then the allocation is evicted."""
    m = machine()
    m.mmap(0x100, 16)
    m.write(0x100, 16)
    devmem = migrate(m, 0x100, 0x110)
    pfn = pfn_of(m, 2)
    real = m.memory.migrate_vma_finalize

    def finalize(args):
        m.memory.folio_get(pfn)  # somebody has found the page, whose contents have moved by now
        real(args)

    m.memory.migrate_vma_finalize = finalize
    m.read(0x105)
    del m.memory.migrate_vma_finalize
    assert m.memory.zone_device_flag(pfn)
    assert m.devices[0].copies[1:] == [("to_ram", 16, 16)]
    m.write(0x102)
    with pytest.raises(KernelError) as caught:
        evict_to_ram(devmem)
    assert caught.value.errno == EBUSY
    assert len(m.devices[0].copies) == 2
    m.read(0x102)
    m.memory.folio_put(pfn)
    assert devmem.detached.done
    assert m.devices[0].in_use == 0


def test_the_device_outlives_the_last_pagemap_reference(machine):
    m = machine(finish=False)
    device = m.devices[0]
    destroyed = []
    device.destroy = lambda dpagemap, atomic: destroyed.append((dpagemap, atomic, device.drm.refcount))
    m.mmap(0x100, 16)
    m.write(0x100, 16)
    migrate(m, 0x100, 0x110)
    device.dpagemap.put()
    assert destroyed == []
    m.mm.munmap(0x100 * PAGE, 16 * PAGE)  # the last page goes under a page-table lock
    assert destroyed == [(device.dpagemap, True, 2)]
    m.kernel.settle()
    assert device.drm.refcount == 1


# --- a range of both kinds


def test_large_and_small_entries_migrate_together(machine):
    m = machine(thp="always")
    m.mmap(0x200, 512)
    m.write(0x200, 512)
    m.mmap(0x400, 16)
    m.write(0x400, 16)
    area = m.mm.find_vma(0x200 * PAGE)
    assert (area.start, area.end) == (0x200 * PAGE, 0x410 * PAGE)
    device = m.devices[0]
    devmem = migrate(m, 0x200, 0x410)
    assert device.copies == [("to_devmem", 17, 528)]
    assert m.memory.folio_order(pfn_of(m, devmem.container.first)) == 9
    m.files[0].fault(0x200 * PAGE, migrate=False)
    m.device_read(m.files[0], 0x200, 512)
    evict_to_ram(devmem)
    assert device.copies[1:] == [("to_ram", 17, 528)]
    m.read(0x200, 528)


@pytest.mark.parametrize("quirk", ["as_written", "fixed"])
def test_small_holes_beside_a_large_folio(machine, quirk):
    """drm_pagemap_cpages sees no size in a hole, so as written such a range can never be populated."""
    m = machine(thp="always", quirk=quirk)
    m.mmap(0x200, 512)
    m.write(0x200, 512)
    m.mmap(0x400, 16)
    m.write(0x400, 8)
    if quirk == "as_written":
        with pytest.raises(KernelError) as caught:
            migrate(m, 0x200, 0x410)
        assert str(caught.value) == "-EBUSY: 520 of 528 pages collected: all or nothing"
    else:
        evict_to_ram(migrate(m, 0x200, 0x410))
    m.read(0x200, 528)


@pytest.mark.parametrize("seed", range(4))
def test_two_cpus_touch_what_a_device_has(machine, seed):
    m = machine(kernel=Kernel(mode="explored", choices=SeededChoices(seed)), thp="always" if seed % 2 else "never")
    m.mmap(0x200, 512)
    m.write(0x200, 512)
    migrate(m, 0x200, 0x400)
    tasks = [m.kernel.spawn(m.read, page, name=f"cpu{i}") for i, page in enumerate((0x203, 0x204, 0x2FF))]
    for task in tasks:
        task.join()
    assert m.devices[0].in_use == 0
    m.read(0x200, 512)
