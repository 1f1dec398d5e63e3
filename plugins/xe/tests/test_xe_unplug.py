"""The device goes away while a process ends: who is left behind in VRAM, and what the unbind waits for."""

import errno

import pytest
from gpusvm.errors import DeadlockError, KernelError
from gpusvm.mm.api import PROT_READ, PROT_WRITE

M = 1 << 20
PAGE, PMD = 4096, 2 * M
BASE = 1 << 45


@pytest.fixture
def two(bench):
    """A bench with memory in VRAM, behind older memory of a process that is ending: one folio of it is still in use."""

    def make(spec="xe", **options):
        b = bench(spec, **options)
        other = b.memory.mm_alloc("other")
        other.mmap(BASE, PMD, PROT_READ | PROT_WRITE)
        b.memory.cpu_write(other, BASE)
        vm = b.driver.vm_create(other, start=0, end=1 << 47)
        vm.populate(BASE, BASE + PMD)
        addr = b.map(PMD)
        b.cpu_write(addr, 512)
        b.gpu_write(addr)
        b.kernel.settle()
        b.kernel.tracer.on = True
        assert b.driver.tiles[0].vram.bos.live == 2
        pfn = b.memory.folio_head(other.page_table.entry(BASE).pfn)
        b.memory.folio_get(pfn)  # what exit_mmap comes to last
        other.mmput()
        b.kernel.settle()

        def ended():
            b.memory.folio_put(pfn)
            b.kernel.settle()
            vm.close()

        return b, addr, ended

    return make


def test_as_written_one_dying_process_leaves_the_memory_of_another_behind(two, events):
    b, addr, ended = two()
    unbind = b.kernel.spawn(b.driver.unplug, name="unbind")
    b.kernel.settle()
    assert events(b, "warn") == [
        (
            "xe_bo_pci_dev_remove_all",
            "evacuating gpu0 ended with -EFAULT: the mm is gone, objects with pages left in VRAM: 2",
        )
    ]
    assert b.where(addr) == "device"
    assert not unbind.done  # it waits for the last page, without a time limit
    with pytest.raises(DeadlockError) as caught:
        unbind.join()
    assert str(caught.value).startswith("deadlock: nothing can run\n  task 'main' waits for end of task 'unbind'\n")
    assert "  task 'unbind' waits for completion 'dev_pagemap done'\n    mm/memremap.py:" in str(caught.value)
    ended()
    assert not unbind.done
    b.cpu_read(addr)  # whoever touches it brings it home
    unbind.join()
    assert b.where(addr) == "system"


def test_fixed_the_memory_of_others_comes_home_and_the_unbind_waits_for_the_process_that_ends(two, events):
    b, addr, ended = two(quirks="fixed")
    unbind = b.kernel.spawn(b.driver.unplug, name="unbind")
    end = b.kernel.spawn(ended, name="exit")
    unbind.join()
    end.join()
    assert b.where(addr) == "system"
    assert events(b, "warn") == []


def test_the_warning_remains_with_only_the_walk_fixed(two, events):
    b, addr, ended = two("xe:quirk.evict_all_stops=fixed")
    unbind = b.kernel.spawn(b.driver.unplug, name="unbind")
    b.kernel.settle()
    assert b.where(addr) == "system"
    ((assertion, what),) = events(b, "warn")
    assert (assertion, what[-3:]) == ("xe_bo_pci_dev_remove_all", ": 1")
    ended()
    unbind.join()


def test_as_written_a_page_that_is_looked_at_keeps_all_behind_it_in_vram(bench):
    b = bench()
    addr = b.map(2 * PMD)
    b.cpu_write(addr, 1024)
    b.gpu_write(addr)
    b.gpu_write(addr + PMD)
    pfn = b.memory.folio_head(b.mm.page_table.entry(addr).pfn)
    b.memory.folio_get(pfn)
    b.driver.evict()  # before the system sleeps
    assert [b.where(addr), b.where(addr + PMD)] == ["device", "device"]
    b.memory.folio_put(pfn)
    b.driver.evict()
    assert [b.where(addr), b.where(addr + PMD)] == ["system", "system"]


def test_fixed_what_is_busy_is_passed_over(bench):
    b = bench("xe:quirk.evict_all_stops=fixed")
    addr = b.map(2 * PMD)
    b.cpu_write(addr, 1024)
    b.gpu_write(addr)
    b.gpu_write(addr + PMD)
    pfn = b.memory.folio_head(b.mm.page_table.entry(addr).pfn)
    b.memory.folio_get(pfn)
    b.driver.evict()
    assert [b.where(addr), b.where(addr + PMD)] == ["device", "system"]
    unbind = b.kernel.spawn(b.driver.unplug, name="unbind")
    b.kernel.spawn(b.memory.folio_put, pfn, name="holder")
    unbind.join()
    assert [b.where(addr), b.where(addr + PMD)] == ["system", "system"]


@pytest.mark.parametrize(("variant", "answer"), [("as_written", errno.EFAULT), ("fixed", None)])
def test_as_written_an_allocation_fails_with_efault_because_another_process_ends(two, variant, answer):
    b, _, ended = two(f"xe:quirk.evict_dying={variant}", vram_bytes=2 * PMD)
    more = b.map(PMD)
    b.cpu_write(more, 512)
    dpagemap = b.driver.tiles[0].dpagemap
    if answer is None:
        dpagemap.populate_mm(more, more + PMD, b.mm, 0)
        assert b.where(more) == "device"
    else:
        with pytest.raises(KernelError) as caught:
            dpagemap.populate_mm(more, more + PMD, b.mm, 0)
        assert caught.value.errno == answer
        assert b.where(more) == "system"
    ended()


def test_a_device_that_goes_keeps_its_pagemap_for_the_address_spaces_that_are_open(bench):
    b = bench()
    addr = b.map(PMD)
    b.cpu_write(addr)
    b.gpu_write(addr)
    dpagemap = b.driver.tiles[0].dpagemap
    b.driver.unplug()
    assert b.driver.tiles[0].dpagemap is dpagemap
    assert dpagemap.refcount == 1
    assert dpagemap.pagemap not in b.memory.pagemaps.regions
    b.driver.unplug()  # nothing is left to do
    b.vm.close()
    b.kernel.settle()
    assert dpagemap.refcount == 0


@pytest.mark.parametrize(("variant", "waits"), [("as_written", False), ("fixed", True)])
def test_as_written_an_unplug_does_not_wait_for_an_ioctl_that_has_begun(bench, variant, waits):
    b = bench(f"xe:quirk.ioctl_unplug={variant}")
    addr = b.map(PMD)
    b.cpu_write(addr, 512)
    with b.vm.lock.read():
        prefetch = b.kernel.spawn(b.vm.populate, addr, addr + PMD, name="prefetch")
        b.kernel.settle()
        unplug = b.kernel.spawn(b.driver.unplug, name="unplug")
        b.kernel.settle()
        assert unplug.done is not waits
    assert prefetch.join() == 0  # what cannot be brought is no error
    unplug.join()
    assert b.where(addr) == "system"


@pytest.mark.parametrize("ioctl", ["populate", "madvise", "mirror", "get_property"])
def test_no_ioctl_begins_after_unplug(bench, ioctl):
    b = bench()
    addr = b.map(PMD)
    arguments = {"get_property": (0,)}.get(ioctl, (addr, addr + PMD))
    b.driver.unplug()
    with pytest.raises(KernelError) as caught:
        getattr(b.vm, ioctl)(*arguments, **({"atomic": 1} if ioctl == "madvise" else {}))
    assert str(caught.value) == "-ENODEV: gpu0 is unplugged"


def test_a_closed_address_space_holds_no_pagemap_though_a_fault_worker_has_it_still(bench):
    """xe_svm_close puts them, not vm_destroy_work_func."""
    b = bench()
    dpagemap = b.driver.tiles[0].dpagemap
    vm = b.driver.vm_create(b.mm, start=0, end=1 << 47)
    assert dpagemap.refcount == 2
    vm.get("pagefault")
    vm.close()
    assert (dpagemap.refcount, vm.peer.owner) == (1, None)
    assert b.driver.power.rpm.holders["vm"] == 2  # until the last reference is gone
    vm.put("pagefault")
    b.kernel.settle()
    assert b.driver.power.rpm.holders["vm"] == 1
