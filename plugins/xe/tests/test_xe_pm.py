"""Runtime PM on xe: who holds a reference, for how long, and when the device sleeps."""

import pytest

M = 1 << 20
PAGE, PMD = 4096, 2 * M
SECOND = 1_000_000_000


def holders(b):
    return dict(b.driver.pm.rpm.holders)


def migrated(b, blocks):
    addr = b.map(blocks * PMD)
    b.cpu_write(addr, blocks * 512)
    for block in range(blocks):
        b.fault(addr + block * PMD)
    b.kernel.settle()
    return addr


@pytest.mark.parametrize("blocks", [1, 3])
def test_n_allocations_hold_n_references_and_the_vm_one(bench, blocks):
    b = bench()
    migrated(b, blocks)
    assert holders(b) == {"vm": 1, "bo": blocks}
    assert b.driver.pm.rpm.usage_count == blocks + 1


def test_nobody_takes_a_reference_without_one_outside(bench):
    b = bench(vram_bytes=4 * M)
    addr = migrated(b, 3)  # evicts
    b.cpu_read(addr, 512)
    b.mm.munmap(addr, 3 * PMD)
    b.kernel.settle()
    assert b.driver.pm.rpm.missing_outer_protection == 0
    assert holders(b) == {"vm": 1}


def test_a_reference_goes_with_the_last_page_not_the_first(bench):
    b = bench(thp="never")
    addr = migrated(b, 1)
    b.mm.munmap(addr, PMD - PAGE)
    b.kernel.settle()
    assert holders(b) == {"vm": 1, "bo": 1}
    assert b.driver.tiles[0].vram.bos.used_bytes == PMD  # one page keeps its whole object
    b.mm.munmap(addr + PMD - PAGE, PAGE)
    b.kernel.settle()
    assert holders(b) == {"vm": 1}


def test_a_failed_populate_gives_its_reference_back(bench):
    b = bench()
    addr = b.map(PMD)
    b.cpu_write(addr, 512)
    b.kernel.arm("xe.copy_to_devmem", nth=1, times=1)
    b.fault(addr)
    b.kernel.settle()
    assert holders(b) == {"vm": 1}


def test_pages_outlive_their_vm_and_keep_the_device_awake(bench):
    b = bench()
    addr = migrated(b, 1)
    b.vm.close()
    assert holders(b) == {"bo": 1}
    b.kernel.sleep_ns(5 * SECOND)
    assert b.driver.pm.rpm.state == "D0"
    b.cpu_read(addr)
    b.kernel.settle()
    assert holders(b) == {}
    b.kernel.sleep_ns(2 * SECOND)
    assert b.driver.pm.rpm.state == "D3cold"


def test_an_idle_device_suspends_after_a_second_and_wakes_for_a_vm(bench):
    b = bench()
    b.vm.close()
    rpm = b.driver.pm.rpm
    b.kernel.sleep_ns(SECOND - 1_000_000)
    assert rpm.state == "D0"
    b.kernel.sleep_ns(2_000_000)
    assert rpm.state == "D3cold"
    vm = b.driver.vm_create(b.mm, start=0, end=1 << 47)
    assert (rpm.state, rpm.resumes) == ("D0", 1)
    vm.close()


def test_the_delay_and_the_threshold_are_tunable(bench):
    b = bench("xe:autosuspend_ms=10,d3cold_mib=0")
    b.vm.close()
    b.kernel.sleep_ns(20_000_000)
    assert b.driver.pm.rpm.state == "D3hot"


def test_with_a_vm_open_the_device_never_sleeps(bench):
    b = bench()
    b.kernel.sleep_ns(10 * SECOND)
    assert b.driver.pm.rpm.state == "D0"
