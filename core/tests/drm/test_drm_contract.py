"""What core refuses of a driver, and what it survives: contracts that a driver can break, each at its place."""

import re

import numpy as np
import pytest
from gpusvm.drm import D0, D3HOT, Devmem, GpuSvmCtx, RuntimePm, migrate_to_devmem
from gpusvm.errors import KernelError, ModelError
from gpusvm.kernel import Kernel

PAGE = 4096
MS = 1_000_000


@pytest.mark.parametrize("thp", ["never", "always"])
@pytest.mark.parametrize("wrong", [-1, 1])
def test_an_allocation_has_as_many_pages_as_wanted(machine, monkeypatch, thp, wrong):
    m = machine(finish=False, thp=thp)
    m.mmap(0x200, 512)
    m.write(0x200, 512)
    device = m.devices[0]

    def populate(self, devmem, n):
        return np.arange(n + wrong) + self.pgmap.start_pfn

    monkeypatch.setattr(type(device), "populate_devmem_pfn", populate)
    with pytest.raises(ModelError, match=rf"^populate_devmem_pfn of tiny0 gave {512 + wrong} of 512 pages$"):
        m.files[0].populate(0x200 * PAGE, 512)


@pytest.mark.parametrize("pages", [512, 1024])
def test_a_pmd_folio_needs_consecutive_device_pages(machine, monkeypatch, pages):
    m = machine(finish=False, thp="always")
    m.mmap(0x200, 1024)
    m.write(0x200, pages)
    device = m.devices[0]

    def scattered(self, devmem, n):
        pfns = np.arange(n) + self.pgmap.start_pfn
        pfns[511] = self.pgmap.start_pfn + 1900
        return pfns

    monkeypatch.setattr(type(device), "populate_devmem_pfn", scattered)
    first = m.devices[0].pgmap.start_pfn
    message = f"populate_devmem_pfn of tiny0: a PMD folio needs 512 consecutive pages from {first:#x}"
    with pytest.raises(ModelError, match=f"^{re.escape(message)}$"):
        m.files[0].populate(0x200 * PAGE, pages)


def test_migrating_needs_mmap_lock(machine):
    m = machine()
    m.mmap(0x200, 1)
    device = m.devices[0]
    allocation = device.alloc(1)
    allocation.devmem = Devmem(device.drm, m.mm, device, device.dpagemap, PAGE, container=allocation)
    with pytest.raises(ModelError, match=r"^migrate_to_devmem without the mmap_lock of process$"):
        migrate_to_devmem(allocation.devmem, m.mm, 0x200 * PAGE, 0x201 * PAGE)
    device.devmem_release(allocation.devmem)


def test_a_range_at_the_very_end_goes_with_the_rest(machine):
    """The kernel lets a fault at mm_start + mm_range in, and drm_gpusvm_fini looks for ranges everywhere."""
    m = machine()
    file = m.files[0]
    end = file.svm.mm_end
    file.svm.mm_end = 0x300 * PAGE
    m.mmap(0x300, 16)
    with file.lock:
        found = file.svm.range_find_or_insert(0x300 * PAGE, 0, end, GpuSvmCtx())
    assert found.start == 0x300 * PAGE


def test_memory_for_get_pages_may_be_short(machine):
    m = machine()
    m.mmap(0x200, 16)
    file = m.files[0]
    with file.lock:
        range_ = file.svm.range_find_or_insert(0x200 * PAGE, 0, 1 << 47, GpuSvmCtx())
    m.kernel.arm("gpusvm.pages")
    with pytest.raises(KernelError) as caught:
        file.svm.range_get_pages(range_, GpuSvmCtx())
    assert caught.value.errno == 12
    file.svm.range_get_pages(range_, GpuSvmCtx())
    assert file.svm.range_pages_valid(range_)


def test_a_notifier_is_found_by_any_address_in_its_window(machine):
    m = machine(notifier_size=4 << 20)
    m.mmap(0x400, 16)
    file = m.files[0]
    with file.lock:
        range_ = file.svm.range_find_or_insert(0x400 * PAGE, 0, 1 << 47, GpuSvmCtx())
    assert file.svm.notifier_find(0x7FF * PAGE) is range_.notifier
    assert file.svm.notifier_find(0x800 * PAGE) is None


class _Stubborn:
    runtime_idle = None

    def __init__(self):
        self.fails = 1

    def runtime_suspend(self, state):
        pass

    def runtime_resume(self, state):
        if self.fails:
            self.fails -= 1
            raise KernelError(5, "injected")


def test_a_resume_that_fails_can_be_tried_again():
    """pm_runtime_get_sync keeps the reference of a caller whom it could not give an awake device."""
    kernel = Kernel()
    pm = RuntimePm(kernel, "gpu", autosuspend_ms=1000, callbacks=_Stubborn())
    pm.enable()
    kernel.run_until(2000 * MS)
    assert pm.state == D3HOT
    with pytest.raises(KernelError):
        pm.get("a")
    assert (pm.state, pm.usage_count, pm.resumes) == (D3HOT, 1, 0)
    assert not pm.get_if_in_use("b")
    pm.get("b")
    assert (pm.state, pm.usage_count, pm.resumes) == (D0, 2, 1)
    assert pm.get_if_in_use("c")
    for holder in "abc":
        pm.put(holder)
    assert not pm.get_if_in_use("d")
    kernel.ledger.assert_empty()
