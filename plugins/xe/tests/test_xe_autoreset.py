"""Attributes that fall back when the CPU unmaps the memory, and the lookups that this leads astray."""

import errno

import pytest
from gpusvm.driver import ACCESS_WRITE
from gpusvm.errors import KernelError, UseAfterFreeError
from gpusvm.kernel import FirstChoice
from gpusvm_xe.attributes import ATOMIC_CPU, ATOMIC_DEVICE, ATOMIC_GLOBAL, SYSTEM

PAGE, PMD = 4096, 2 << 20


@pytest.fixture
def reset(bench):
    """Return a bench whose VM was bound with autoreset, and an area of 4 PMDs."""

    def make(spec="xe", **options):
        b = bench(spec, **options)
        b.vm.mirror(b.vm.start, b.vm.end, autoreset=True)
        return b, b.map(4 * PMD)

    return make


def spans(vm, addr):
    return [
        (
            None if vma.start == vm.start else (vma.start - addr) // PAGE,
            None if vma.end == vm.end else (vma.end - addr) // PAGE,
        )
        for vma in vm.vmas
    ]


def unmap(b, start, end):
    b.mm.munmap(start, end - start)
    b.kernel.settle()


def test_without_autoreset_attributes_outlive_the_memory(bench):
    b = bench()
    addr = b.map(PMD)
    b.vm.madvise(addr, addr + PMD, preferred_location=SYSTEM)
    b.gpu_write(addr)
    unmap(b, addr, addr + PMD)
    assert spans(b.vm, addr) == [(None, 0), (0, 512), (512, None)]


def test_with_autoreset_they_fall_back_and_the_vmas_merge(reset):
    b, addr = reset()
    b.vm.madvise(addr, addr + PMD, preferred_location=SYSTEM)
    assert spans(b.vm, addr) == [(None, 0), (0, 512), (512, None)]
    b.gpu_write(addr)
    unmap(b, addr, addr + PMD)
    assert spans(b.vm, addr) == [(None, None)]
    (vma,) = b.vm.vmas
    assert (vma.attr.is_default, vma.autoreset) == (True, True)


def test_only_what_the_gpu_had_a_range_for_falls_back(reset):
    b, addr = reset()
    b.vm.madvise(addr, addr + 2 * PMD, preferred_location=SYSTEM)
    b.gpu_write(addr)
    unmap(b, addr, addr + 2 * PMD)
    assert spans(b.vm, addr) == [(None, 512), (512, 1024), (1024, None)]
    assert b.vm.vmas.find(addr + PMD).attr.preferred == SYSTEM


def test_the_whole_range_falls_back_though_one_page_was_unmapped(reset):
    b, addr = reset()
    b.vm.madvise(addr, addr + 2 * PMD, preferred_location=SYSTEM)
    b.gpu_write(addr)
    unmap(b, addr, addr + PAGE)
    assert spans(b.vm, addr) == [(None, 512), (512, 1024), (1024, None)]
    assert b.vm.vmas.find(addr + PAGE).attr.is_default


def test_neighbours_that_were_given_back_their_defaults_merge(reset):
    b, addr = reset()
    b.vm.madvise(addr, addr + PMD, atomic=ATOMIC_CPU)
    b.vm.madvise(addr, addr + PMD, atomic=0)
    b.gpu_write(addr)
    unmap(b, addr, addr + PMD)
    assert spans(b.vm, addr) == [(None, None)]


def test_a_vma_put_over_all_takes_the_flag_of_the_last_of_them(bench):
    b = bench()
    addr = b.map(PMD)
    b.vm.madvise(addr, addr + PMD, atomic=ATOMIC_GLOBAL)
    b.vm.mirror(addr + PMD, addr + 2 * PMD, autoreset=True)
    assert spans(b.vm, addr) == [(None, 0), (0, 512), (512, None)]
    assert [vma.autoreset for vma in b.vm.vmas] == [False, False, True]
    b.vm.vmas.find(addr).autoreset = True
    b.gpu_write(addr)
    unmap(b, addr, addr + PMD)
    assert [vma.autoreset for vma in b.vm.vmas] == [True]


def test_what_is_mapped_is_not_cut_by_a_new_mirror(bench):
    b = bench()
    addr = b.map(PMD)
    b.vm.madvise(addr, addr + 2 * PMD, atomic=ATOMIC_GLOBAL)
    b.gpu_write(addr)
    with pytest.raises(KernelError) as caught:
        b.vm.mirror(addr, addr + PMD)
    assert caught.value.errno == errno.EBUSY
    assert b.vm.vmas.find(addr).attr.atomic_access == ATOMIC_GLOBAL


def test_a_fault_that_finds_its_attributes_reset_goes_by_the_new_ones(reset):
    b, addr = reset()
    b.vm.madvise(addr, addr + PMD, preferred_location=SYSTEM)
    b.gpu_write(addr)
    b.vm.garbage.work.disable_sync()  # so that the fault is the one to collect
    b.mm.munmap(addr, PAGE)
    assert b.fault(addr + PAGE, ACCESS_WRITE).errno == 0
    assert b.where(addr + PAGE) == "device"
    b.vm.garbage.work.enable()


def test_a_vm_whose_attributes_cannot_be_reset_is_banned(reset):
    b, addr = reset()
    b.vm.madvise(addr, addr + PMD, preferred_location=SYSTEM)
    b.gpu_write(addr)
    b.kernel.arm("xe.vma")
    unmap(b, addr, addr + PMD)
    assert b.vm.banned
    assert b.fault(addr + PMD, ACCESS_WRITE).errno == errno.ENOENT
    with pytest.raises(KernelError) as caught:
        b.vm.populate(addr + PMD, addr + 2 * PMD)
    assert caught.value.errno == errno.ENOENT


@pytest.mark.parametrize(("quirk", "left"), [("as_written", False), ("fixed", True)])
def test_looking_beyond_the_end_may_lose_what_a_page_between_was_given(reset, quirk, left):
    b, addr = reset(f"xe:quirk.reset_beyond={quirk}")
    b.vm.madvise(addr, addr + PMD, preferred_location=SYSTEM)
    b.vm.madvise(addr + PMD, addr + PMD + PAGE, atomic=ATOMIC_DEVICE)
    b.gpu_write(addr)
    b.gpu_write(addr + 2 * PMD)  # the last fault is the neighbour's neighbour
    b.kernel.tracer.on = True
    unmap(b, addr, addr + PMD)
    assert (b.vm.vmas.find(addr + PMD).attr.atomic_access == ATOMIC_DEVICE) is left
    warned = [event[3:] for event in b.kernel.tracer.events if event[2] == "warn"]
    page = f"<XeVma [{addr + PMD:#x}, {addr + PMD + PAGE:#x})>"
    assert warned == ([] if left else [("xe_vm_alloc_vma", f"the attributes of {page} are lost")])


def _remember(reset, quirk):
    """Let a fault collect the garbage that frees its VMA, and the next one look that up."""
    b, addr = reset(f"xe:quirk.last_fault_vma={quirk}", choices=FirstChoice(), mode="explored")
    b.vm.madvise(addr, addr + PMD, preferred_location=SYSTEM)
    b.gpu_write(addr)
    b.vm.garbage.work.disable_sync()
    b.mm.munmap(addr, PAGE)
    assert b.fault(addr + PAGE, ACCESS_WRITE).errno == 0
    b.vm.garbage.work.enable()
    return b, addr


def test_a_fault_remembers_the_vma_that_it_ended_with(reset):
    b, addr = _remember(reset, "fixed")
    assert b.fault(addr + PMD, ACCESS_WRITE).errno == 0


def test_as_written_a_fault_remembers_a_vma_that_is_gone(reset):
    b, addr = _remember(reset, "as_written")
    with pytest.raises(UseAfterFreeError, match=r"reads \.end of <XeVma"):
        b.fault(addr + PMD, ACCESS_WRITE)
    b.vm.vmas.last_fault = None


def test_a_range_that_a_fault_gives_up_takes_no_attributes_along(reset):
    """Its memory was protected in part, and never unmapped (quirk endless_retry, fixed)."""
    b, addr = reset("xe:quirk.endless_retry=fixed")
    b.cpu_write(addr, 512)
    b.vm.madvise(addr, addr + PMD, preferred_location=SYSTEM)
    b.gpu_write(addr)
    b.mm.mprotect(addr + 100 * PAGE, PAGE, 0)
    assert b.gpu_write(addr) == 1
    assert b.vm.gpusvm.range_find(addr, addr + PAGE).end <= addr + 100 * PAGE
    assert not b.vm.vmas.find(addr).attr.is_default
