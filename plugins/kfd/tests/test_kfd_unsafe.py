"""Quirks that end the model where they bite: what it says there."""

import errno
import re

import pytest
from gpusvm.errors import DriverError, KernelError, LockdepError, ModelError
from gpusvm.mm.api import MADV_DONTNEED
from gpusvm.testing import Bench
from gpusvm_kfd.plugin import INFO

PAGE, PMD = 4096, 2 << 20


def broken(spec):
    """Return a bench that is not torn down: after such an end nothing of it can be trusted."""
    return Bench(spec, drivers={"kfd": INFO}, thp="never")


def test_live_slot_a_page_that_a_child_has_is_made_anew():
    b = broken("kfd:quirk.live_slot=as_written")
    addr = b.map(PMD)
    b.gpu_write(addr, 512)
    b.mm.fork()
    b.memory.madvise(b.mm, addr, PMD, MADV_DONTNEED)
    b.kernel.sleep_ns(3_000_000)
    with pytest.raises(ModelError) as caught:
        b.gpu_write(addr)
    assert str(caught.value) == "zone_device_folios_init of pages in use in Zone(0x410000-0x430000, device)"


@pytest.mark.parametrize("quirk", ["as_written", "fixed"])
def test_non_blockable_the_oom_reaper_waits_for_a_range(quirk):
    b = broken(f"kfd:quirk.non_blockable={quirk}")
    addr = b.map(4 * PAGE)
    b.gpu_write(addr)
    (prange,) = b.vm.process.svms.objects
    if quirk == "as_written":
        with pytest.raises(LockdepError) as caught:
            b.memory.oom_reap_task_mm(b.mm)
        assert re.sub(r":\d+", "", str(caught.value)).splitlines()[0] == (
            "sleeping while atomic: task 'main' is taking mutex 'prange->lock' at gpusvm_kfd/svms.py, "
            "atomic since mm/mmu_notifier.py (context 'preempt_disable')"
        )
        return
    with prange.lock:
        done = []
        b.kernel.spawn(lambda: done.append(b.memory.oom_reap_task_mm(b.mm)), name="oom_reaper").join()
    assert done == [False]
    assert b.memory.oom_reap_task_mm(b.mm)
    assert b.where(addr) == "none"


@pytest.mark.parametrize("site", ["kfd.range", "kfd.dma_addr"])
@pytest.mark.parametrize(("first", "pages"), [(2, 2), (2, 6), (0, 2)])
@pytest.mark.parametrize("quirk", ["as_written", "fixed"])
def test_split_unchecked_a_munmap_cuts_a_range_without_memory(site, quirk, first, pages):
    b = broken(f"kfd:quirk.split_unchecked={quirk}")
    addr = b.map(8 * PAGE)
    b.cpu_write(addr, 8)
    b.gpu_write(addr)
    start = addr // PAGE
    b.kernel.arm(site)
    if quirk == "as_written":
        with pytest.raises(DriverError) as caught:
            b.memory.munmap(b.mm, addr + first * PAGE, pages * PAGE)
        assert str(caught.value) == (
            f"svm_range_unmap_split: no memory to cut <SvmRange {start:#x}-{start + 8:#x}>: a NULL pointer"
        )
        return
    b.memory.munmap(b.mm, addr + first * PAGE, pages * PAGE)
    b.kernel.settle()
    left = [(each.start - start, each.end - start) for each in b.vm.process.svms.objects]
    assert left == [each for each in ((0, first), (first + pages, 8)) if each[0] < each[1]]


def test_split_unchecked_the_second_cut_of_a_munmap():
    b = broken("kfd")
    addr = b.map(8 * PAGE)
    b.gpu_write(addr)
    start = addr // PAGE
    b.kernel.arm("kfd.range", 2)
    with pytest.raises(DriverError) as caught:
        b.memory.munmap(b.mm, addr + 2 * PAGE, 2 * PAGE)
    assert str(caught.value) == (
        f"svm_range_unmap_split: no memory to cut <SvmRange {start + 2:#x}-{start + 8:#x}>: a NULL pointer"
    )


@pytest.mark.parametrize("site", ["kfd.range", "kfd.dma_addr"])
def test_attributes_for_which_there_is_no_memory_change_nothing(site):
    b = Bench("kfd", drivers={"kfd": INFO}, thp="never")
    addr = b.map(8 * PAGE)
    b.cpu_write(addr, 8)
    b.gpu_write(addr)
    start = addr // PAGE
    for nth in (1, 2, 3):
        b.kernel.arm(site, nth)
        with pytest.raises(KernelError, match=f"injected at {site}") as caught:
            b.vm.set_attr(addr + 2 * PAGE, addr + 4 * PAGE, preferred_loc=0)
        assert caught.value.errno == errno.ENOMEM
        (prange,) = b.vm.process.svms.objects
        assert (prange.start - start, prange.end - start, prange.preferred_loc) == (0, 8, -1)
    b.vm.set_attr(addr + 2 * PAGE, addr + 4 * PAGE, preferred_loc=0)
    assert sorted((each.start - start, each.preferred_loc) for each in b.vm.process.svms.objects) == [
        (0, -1),
        (2, 1),
        (4, -1),
    ]
    b.close()


def test_a_fault_for_whose_range_there_is_no_memory():
    b = Bench("kfd", drivers={"kfd": INFO}, thp="never")
    addr = b.map(8 * PAGE)
    b.cpu_write(addr, 8)
    b.kernel.arm("kfd.range")
    assert b.fault(addr).errno == errno.EFAULT
    assert b.vm.process.svms.objects == []
    b.kernel.sleep_ns(3_000_000)
    b.gpu_write(addr)
    b.close()


def test_a_fault_for_whose_addresses_there_is_no_memory():
    b = Bench("kfd", drivers={"kfd": INFO}, thp="never")
    addr = b.map(8 * PAGE)
    b.cpu_write(addr, 8)
    b.kernel.arm("kfd.dma_addr")
    assert b.fault(addr).errno == errno.ENOMEM
    b.kernel.sleep_ns(3_000_000)
    b.gpu_write(addr)
    b.close()


def test_memory_for_whose_migration_there_is_no_memory_is_mapped_where_it_is():
    b = Bench("kfd", drivers={"kfd": INFO}, thp="never")
    addr = b.map(8 * PAGE)
    b.cpu_write(addr, 8)
    b.kernel.arm("kfd.migrate")
    b.gpu_write(addr)
    assert b.where(addr) == "system"
    b.close()
