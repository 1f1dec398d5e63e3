"""What a Linux 7.3.4 was recorded to answer, where the cause lies in drm_gpusvm or drm_pagemap.

The texts are the answers of svmdev: ``rng`` a range, ``pop`` populate, ``get`` get_pages, ``map`` access and rows.
"""

import pytest
from gpusvm.drm import SCAN_EQUAL, SCAN_MIXED, SCAN_MIXED_DEVICE, SCAN_OTHER, SCAN_SYSTEM, SCAN_UNPOPULATED
from gpusvm.errors import CpuSignal
from gpusvm.mm.api import MMU_NOTIFY_CLEAR, MMU_NOTIFY_MIGRATE, MMU_NOTIFY_UNMAP, PROT_NONE, PROT_READ

PAGE = 4096


def text(stages):
    return " ".join(stages)


def fault(file, page, **kwargs):
    file.events.clear()
    return text(file.fault(page * PAGE, **kwargs))


def windows(file):
    return [(event, start, end, owner) for event, start, end, owner, _ in file.events]


# --- faults and populate


def test_a_fault_on_populated_system_memory_raises_no_event(machine):
    m = machine()
    m.mmap(0x100, 32)
    m.write(0x100, 32)
    assert fault(m.files[0], 0x105, migrate=False) == "rng(100,110,mig) get(0) map(rw,s0*16)"
    assert m.files[0].events == []


def test_populate_raises_one_migrate_event_and_a_second_from_the_first_filled_hole(machine):
    m = machine(devices=2, same_owner=False)
    m.mmap(0x100, 32)
    m.write(0x100, 20)
    stranger = m.files[1]
    fault(stranger, 0x100, migrate=False)
    stranger.events.clear()
    assert fault(m.files[0], 0x100) == "rng(100,110,mig) pop(0) get(0) map(rw,00*16)"
    assert windows(m.files[0]) == [(MMU_NOTIFY_MIGRATE, 0x100, 0x110, "own")]
    assert windows(stranger) == [(MMU_NOTIFY_MIGRATE, 0x100, 0x110, "other")]
    assert fault(m.files[0], 0x110) == "rng(110,120,mig) pop(0) get(0) map(rw,00*16)"
    assert windows(m.files[0]) == [
        (MMU_NOTIFY_MIGRATE, 0x110, 0x120, "own"),
        (MMU_NOTIFY_MIGRATE, 0x114, 0x120, "own"),
    ]


def test_a_populate_that_is_not_necessary_still_unmaps(machine):
    m = machine()
    m.mmap(0x100, 16)
    m.write(0x100, 16)
    file, device = m.files[0], m.devices[0]
    fault(file, 0x100)
    file.events.clear()
    assert file.populate(0x100 * PAGE, 16) == 0
    assert [hit for *_, hit in file.events] == [[(0x100, 0x110, True)]]
    assert file.map_text(file.find(0x100 * PAGE)) == "map(none)"
    assert (device.allocated, device.released, device.in_use) == (2, 1, 16)
    assert len(device.copies) == 1


def test_a_read_only_mapping_stays_so_until_something_invalidates_it(machine):
    m = machine()
    m.mmap(0x100, 16)
    m.write(0x100, 16)
    file = m.files[0]
    assert fault(file, 0x100, migrate=False, read_only=True) == "rng(100,110,mig) get(0) map(ro,s0*16)"
    assert fault(file, 0x100, migrate=False) == "rng(100,110,mig) get(0) map(ro,s0*16)"
    file.populate(0x100 * PAGE, 16)
    assert fault(file, 0x100, migrate=False) == "rng(100,110,mig) get(0) map(rw,00*16)"


def test_populating_a_pmd_hole_answers_ebusy_although_it_is_done(machine):
    m = machine(thp="always")
    m.mmap(0x200, 512)
    file, device = m.files[0], m.devices[0]
    assert fault(file, 0x2A0) == "rng(200,400,mig) pop(-16) get(0) map(rw,09*1)"
    assert windows(file) == [(MMU_NOTIFY_MIGRATE, 0x200, 0x400, "own")] * 2
    m.device_read(file, 0x200, 512)  # zeros
    m.device_write(file, 0x333)
    m.read(0x333)
    assert device.in_use == 0
    m.read(0x200, 512)


def test_counted_rightly_it_is_a_success(machine):
    m = machine(thp="always", quirk="fixed")
    m.mmap(0x200, 512)
    assert fault(m.files[0], 0x2A0) == "rng(200,400,mig) pop(0) get(0) map(rw,09*1)"


def test_a_pmd_folio_is_migrated_as_one(machine):
    m = machine(thp="always")
    m.mmap(0x200, 512)
    m.write(0x200, 512)
    file, device = m.files[0], m.devices[0]
    assert fault(file, 0x2A0) == "rng(200,400,mig) pop(0) get(0) map(rw,09*1)"
    assert device.copies == [("to_devmem", 1, 512)]
    assert windows(file) == [(MMU_NOTIFY_MIGRATE, 0x200, 0x400, "own")]
    m.device_read(file, 0x200, 512)
    m.read(0x3FF)
    assert device.copies[1:] == [("to_ram", 1, 512)]
    assert device.in_use == 0
    m.read(0x200, 512)


def test_unmigratable_memory_is_mapped_where_it_is(machine):
    m = machine()
    m.mmap(0x100, 16)
    assert fault(m.files[0], 0x100, devmem_possible=False) == "rng(100,110,-) get(0) map(rw,s0*16)"


def test_a_read_only_area_is_refused_unless_the_device_only_reads(machine):
    m = machine()
    m.mmap(0x100, 16)
    m.write(0x100, 16)
    m.mm.mprotect(0x100 * PAGE, 16 * PAGE, PROT_READ)
    assert fault(m.files[0], 0x100) == "ins(-1)"
    assert fault(m.files[0], 0x100, read_only=True) == "rng(100,110,mig) pop(0) get(0) map(ro,00*16)"
    m.device_read(m.files[0], 0x100, 16)


def test_a_split_area_cuts_the_range_that_can_be_populated(machine):
    m = machine()
    m.mmap(0x100, 16)
    m.write(0x100, 16)
    file = m.files[0]
    fault(file, 0x100)
    m.mm.mprotect(0x104 * PAGE, 4 * PAGE, PROT_READ)
    assert fault(file, 0x100) == "rng(100,110,mig) pop(-22) get(0) map(rw,00*16)"
    file.events.clear()
    m.read(0x100, 16)  # three windows, none beyond its area
    assert [(start, end) for _, start, end, *_ in file.events] == [(0x100, 0x104), (0x104, 0x108), (0x108, 0x110)]
    assert fault(file, 0x100) == "rng(100,110,mig) pop(-22) get(-1)"
    m.mm.mprotect(0x104 * PAGE, 4 * PAGE, PROT_NONE)
    assert fault(file, 0x100) == "rng(100,110,mig) pop(-22) get(-14)"


def test_nothing_there(machine):
    m = machine()
    assert fault(m.files[0], 0x100) == "ins(-2)"
    assert m.kernel.gauges.now["notifier"] == 0
    assert fault(m.files[0], (1 << 35) + 1) == "ins(-22)"


# --- mixtures


def two_allocations(m):
    """One range whose halves lie in two allocations of the same pagemap."""
    m.mmap(0x100, 16)
    m.write(0x100, 16)
    m.files[0].populate(0x100 * PAGE, 8)
    m.files[0].populate(0x108 * PAGE, 8)


def test_two_allocations_in_a_range_need_allow_mixed(machine):
    m = machine()
    two_allocations(m)
    file = m.files[0]
    assert fault(file, 0x100) == "rng(100,110,mig) pop(0) get(-95)"
    assert fault(file, 0x100, allow_mixed=True) == "rng(100,110,mig) pop(0) get(0) map(rw,00*16)"
    m.device_read(file, 0x100, 16)


def test_after_eviction_the_retry_succeeds(machine):
    m = machine()
    two_allocations(m)
    assert fault(m.files[0], 0x100, retry=True) == (
        "rng(100,110,mig) pop(0) get(-95) ev(0) rng(100,110,mig) pop(0) get(0) map(rw,00*16)"
    )
    assert m.devices[0].in_use == 16


def test_half_a_range_on_the_device(machine):
    m = machine()
    m.mmap(0x100, 16)
    m.write(0x100, 16)
    file = m.files[0]
    file.populate(0x100 * PAGE, 8)
    assert fault(file, 0x100) == "rng(100,110,mig) pop(-16) get(-95)"
    assert fault(file, 0x100, allow_mixed=True) == "rng(100,110,mig) pop(-16) get(0) map(rw,00*8,s0*8)"
    m.device_read(file, 0x100, 16)
    assert fault(file, 0x100, allow_mixed=True, devmem_only=True) == "rng(100,110,mig) pop(-16) get(-14)"


def test_system_pages_may_come_first_too(machine):
    m = machine()
    m.mmap(0x100, 16)
    m.write(0x100, 16)
    file = m.files[0]
    file.populate(0x104 * PAGE, 4)
    assert fault(file, 0x100, migrate=False) == "rng(100,110,mig) get(-95)"
    assert fault(file, 0x100, migrate=False, allow_mixed=True) == "rng(100,110,mig) get(0) map(rw,s0*4,00*4,s0*8)"


def test_two_pagemaps_in_a_range_are_refused_always(machine):
    m = machine(devices=2)
    m.mmap(0x100, 16)
    m.write(0x100, 16)
    m.files[0].populate(0x100 * PAGE, 8)
    m.files[0].populate(0x108 * PAGE, 8, m.devices[1])
    for allow_mixed in (False, True):
        assert fault(m.files[0], 0x100, migrate=False, allow_mixed=allow_mixed) == "rng(100,110,mig) get(-95)"
    assert (
        m.files[0].svm.scan_mm(m.files[0].find(0x100 * PAGE), m.devices[0].owner, m.devices[0].pgmap)
        == SCAN_MIXED_DEVICE
    )


def test_with_same_pagemap_what_is_there_moves_along(machine):
    m = machine(same_pagemap=True)
    m.mmap(0x100, 16)
    m.write(0x100, 16)
    m.files[0].populate(0x100 * PAGE, 8)
    assert fault(m.files[0], 0x100) == "rng(100,110,mig) pop(0) get(0) map(rw,00*16)"
    assert m.devices[0].copies == [("to_devmem", 8, 8), ("to_ram", 8, 8), ("to_devmem", 8, 8)]
    assert m.devices[0].in_use == 16
    m.device_read(m.files[0], 0x100, 16)


def test_devmem_only_refuses_system_pages(machine):
    m = machine()
    m.mmap(0x100, 16)
    assert fault(m.files[0], 0x100, migrate=False, devmem_only=True) == "rng(100,110,mig) get(-14)"


# --- several devices


def test_same_owner_maps_and_moves_between_devices(machine):
    m = machine(devices=2, thp="always")
    m.mmap(0x200, 512)
    m.write(0x200, 512)
    a, b = m.devices
    file_a, file_b = m.files
    fault(file_a, 0x200)
    assert fault(file_b, 0x200, migrate=False) == "rng(200,400,mig) get(0) map(rw,09*1)"
    m.device_write(file_b, 0x234)
    m.device_read(file_a, 0x200, 512)
    assert fault(file_b, 0x200) == "rng(200,400,mig) pop(0) get(0) map(rw,19*1)"
    assert a.copies[1:] == [("to_ram", 1, 512)]
    assert b.copies == []
    assert (a.in_use, b.in_use) == (0, 512)
    m.device_read(file_b, 0x200, 512)


def test_another_owner_is_not_collected_and_comes_home_on_get_pages(machine):
    m = machine(devices=2, same_owner=False)
    m.mmap(0x100, 16)
    m.write(0x100, 16)
    file_a, file_b = m.files
    fault(file_a, 0x100)
    assert fault(file_b, 0x100) == "rng(100,110,mig) pop(-16) get(0) map(rw,s0*16)"
    assert m.devices[0].in_use == 0


def test_without_an_owner_only_system_pages_are_mapped(machine):
    m = machine()
    m.mmap(0x100, 16)
    m.write(0x100, 16)
    fault(m.files[0], 0x100)
    m.files[0].populate(0x100 * PAGE, 16)
    assert fault(m.files[0], 0x100, migrate=False, owner=None) == "rng(100,110,mig) get(0) map(rw,s0*16)"


@pytest.mark.parametrize("thp", ["never", "always"])
def test_scan_mm_says_where_a_range_is(machine, thp):
    m = machine(devices=2, thp=thp)
    m.mmap(0x200, 512)
    a, b = m.devices
    file_a = m.files[0]
    fault(file_a, 0x200, migrate=False)
    range_ = file_a.find(0x200 * PAGE)

    def scan(device):
        return file_a.svm.scan_mm(range_, device.owner, device.pgmap)

    assert scan(a) == SCAN_SYSTEM
    file_a.populate(0x200 * PAGE, 512)
    assert (scan(a), scan(b)) == (SCAN_EQUAL, SCAN_OTHER)
    assert file_a.svm.scan_mm(range_, None, a.pgmap) == SCAN_UNPOPULATED
    m.read(0x200)
    file_a.populate(0x200 * PAGE, 256)
    assert scan(a) == SCAN_MIXED
    m.mm.munmap(0x210 * PAGE, PAGE)
    assert scan(a) == SCAN_UNPOPULATED


# --- home again


def test_a_cpu_touch_takes_the_whole_allocation_home_in_one_event(machine):
    m = machine()
    m.mmap(0x100, 64)
    m.write(0x100, 64)
    file = m.files[0]
    file.populate(0x100 * PAGE, 32)
    file.populate(0x120 * PAGE, 32)
    fault(file, 0x100, migrate=False)
    file.events.clear()
    m.read(0x107)
    assert windows(file) == [(MMU_NOTIFY_MIGRATE, 0x100, 0x120, "own")]
    assert m.devices[0].in_use == 32
    assert m.devices[0].copies[2:] == [("to_ram", 32, 32)]


def test_the_window_moves_only_pages_of_the_same_allocation(machine):
    m = machine()
    m.mmap(0x100, 32)
    m.write(0x100, 32)
    file = m.files[0]
    file.populate(0x104 * PAGE, 16)  # not aligned to its size
    file.populate(0x100 * PAGE, 4)
    m.read(0x10F)  # window 0x100-0x110: pages 4 to 15 of the first
    assert m.devices[0].copies[2:] == [("to_ram", 12, 12)]
    assert m.devices[0].in_use == 20
    m.read(0x100, 32)
    assert m.devices[0].in_use == 0


def test_eviction_raises_a_clear_per_page_and_no_migrate(machine):
    m = machine()
    m.mmap(0x100, 16)
    m.write(0x100, 16)
    fault(m.files[0], 0x100)
    m.files[0].events.clear()
    m.devices[0].evict()
    assert windows(m.files[0]) == [(MMU_NOTIFY_CLEAR, 0x100 + i, 0x101 + i, "-") for i in range(16)]
    m.read(0x100, 16)


def test_eviction_raises_one_clear_for_a_pmd(machine):
    m = machine(thp="always")
    m.mmap(0x200, 512)
    m.write(0x200, 512)
    fault(m.files[0], 0x200)
    m.files[0].events.clear()
    m.devices[0].evict()
    assert windows(m.files[0]) == [(MMU_NOTIFY_CLEAR, 0x200, 0x400, "-")]
    assert m.devices[0].copies[1:] == [("to_ram", 1, 512)]
    m.read(0x200, 512)


def test_a_failed_copy_home_is_a_sigbus_and_the_next_touch_works(machine):
    m = machine()
    m.mmap(0x100, 16)
    m.write(0x100, 16)
    fault(m.files[0], 0x100)
    m.devices[0].fail["to_ram"] = 1
    with pytest.raises(CpuSignal) as caught:
        m.read(0x103)
    assert str(caught.value) == "SIGBUS at 0x103000"
    assert m.devices[0].in_use == 16
    m.read(0x100, 16)
    assert m.devices[0].in_use == 0


def test_one_failed_copy_does_not_show_when_evicting(machine):
    m = machine()
    m.mmap(0x100, 16)
    m.write(0x100, 16)
    fault(m.files[0], 0x100)
    m.devices[0].fail["to_ram"] = 1
    m.devices[0].evict()
    assert m.devices[0].in_use == 0


@pytest.mark.parametrize(("what", "errno"), [("to_devmem", -5), ("pfn", -12), ("alloc", -12)])
@pytest.mark.parametrize("thp", ["never", "always"])
def test_a_failed_populate_leaves_everything_in_ram(machine, what, errno, thp):
    m = machine(thp=thp)
    m.mmap(0x200, 512)
    m.write(0x200, 512)
    m.devices[0].fail[what] = 1
    rows = "s9*1" if thp == "always" else "s0*512"
    assert fault(m.files[0], 0x200) == f"rng(200,400,mig) pop({errno}) get(0) map(rw,{rows})"
    assert m.devices[0].in_use == 0
    m.device_read(m.files[0], 0x200, 512)


# --- munmap


def test_munmap_of_a_part_leaves_the_range_until_it_is_collected(machine):
    m = machine()
    m.mmap(0x100, 16)
    m.write(0x100, 16)
    file, device = m.files[0], m.devices[0]
    fault(file, 0x100)
    file.events.clear()
    m.mm.munmap(0x104 * PAGE, 2 * PAGE)
    assert windows(file) == [(MMU_NOTIFY_UNMAP, 0x104, 0x106, "-")]
    range_ = file.find(0x100 * PAGE)
    assert (range_.unmapped, range_.partial_unmap) == (True, True)
    # the eviction of the rest stops at the hole: what lies behind it stays on the device, with no range
    assert file.collect() == [(0x100, 0x110, "part", -14)]
    assert file.find(0x100 * PAGE) is None
    assert device.in_use == 16
    assert fault(file, 0x106, migrate=False) == "rng(106,107,mig) get(0) map(rw,00*1)"
    m.read(0x106)
    assert device.in_use == 0


def test_get_pages_refuses_an_unmapped_range(machine):
    m = machine()
    m.mmap(0x100, 16)
    m.write(0x100, 16)
    file = m.files[0]
    fault(file, 0x100)
    m.mm.munmap(0x100 * PAGE, PAGE)
    file.gc.clear()  # a driver that forgets to collect
    assert fault(file, 0x101, migrate=False) == "rng(100,110,mig) get(-14)"


def test_munmap_of_the_whole_frees_the_allocation_in_atomic_context(machine):
    m = machine()
    m.mmap(0x100, 16)
    m.write(0x100, 16)
    fault(m.files[0], 0x100)
    m.mm.munmap(0x100 * PAGE, 16 * PAGE)
    assert m.devices[0].release_atomic == [True]
    assert m.files[0].collect() == [(0x100, 0x110, "whole", 0)]
    assert {kind: n for kind, n in m.kernel.gauges.now.items() if n} == {"pagemap": 1}


# --- notifier windows


def test_ranges_stop_at_notifier_windows(machine):
    m = machine(notifier_size=64 << 10, thp="always")
    m.mmap(0x200, 512)
    m.write(0x200, 512)
    file = m.files[0]
    assert fault(file, 0x2A5, migrate=False) == "rng(2a0,2b0,mig) get(0) map(rw,s4*1)"
    assert fault(file, 0x2B0, migrate=False) == "rng(2b0,2c0,mig) get(0) map(rw,s4*1)"
    assert m.kernel.gauges.now["notifier"] == 2
    m.device_read(file, 0x2A0, 32)
    m.mm.munmap(0x2A0 * PAGE, 16 * PAGE)
    assert file.collect() == [(0x2A0, 0x2B0, "whole", 0)]
    assert m.kernel.gauges.now["notifier"] == 1
