"""What the mm charges for, and how often."""

import numpy as np
import pytest
from gpusvm.kernel import Kernel
from gpusvm.mm import MemoryManager
from gpusvm.mm.api import MADV_COLLAPSE, MADV_DONTNEED, MREMAP_FIXED, MREMAP_MAYMOVE
from gpusvm.run.costs import load_profile

PAGE, PMD = 4096, 2 << 20
BASE = 1 << 40


@pytest.fixture
def boot():
    def make(thp):
        kernel = Kernel(costs=load_profile("h100-pcie5").costs)
        memory = MemoryManager(kernel, ram_pages=8192, thp=thp)
        mm = memory.mm_alloc("test")
        mm.mmap(BASE, 2 * PMD, 3)
        return kernel, memory, mm

    return make


def touch(memory, mm, first, pages, *, write):
    vpns = np.arange(first, first + pages) + BASE // PAGE
    memory.cpu_access(mm, vpns, np.full(pages, write))


def test_munmap_is_charged_for_each_entry_that_it_zaps(boot):
    kernel, memory, mm = boot("never")
    touch(memory, mm, 0, 100, write=True)
    before = kernel.now_ns
    mm.munmap(BASE, PMD)
    assert kernel.charged["zap_per_page"] == 100 * kernel.costs.zap_per_page
    assert kernel.now_ns - before == 100 * kernel.costs.zap_per_page


def test_a_huge_page_is_one_entry(boot):
    kernel, memory, mm = boot("always")
    touch(memory, mm, 0, 1024, write=True)
    mm.mprotect(BASE, PMD, 1)
    assert kernel.charged["protect_per_page"] == kernel.costs.protect_per_page
    mm.munmap(BASE, 2 * PMD)
    assert kernel.charged["zap_per_page"] == 2 * kernel.costs.zap_per_page


def test_mprotect_is_charged_for_each_entry_that_it_looks_at(boot):
    kernel, memory, mm = boot("never")
    touch(memory, mm, 0, 100, write=True)
    mm.mprotect(BASE + 50 * PAGE, PMD, 1)
    assert kernel.charged["protect_per_page"] == 50 * kernel.costs.protect_per_page


def test_the_huge_zero_page_is_mapped_without_being_cleared_again(boot):
    kernel, memory, mm = boot("always")
    touch(memory, mm, 0, 1024, write=False)
    assert kernel.charged["cpu_minor_fault_4k"] == 2 * kernel.costs.cpu_minor_fault_4k
    assert kernel.charged["cpu_minor_fault_2m"] == 0
    touch(memory, mm, 0, 512, write=True)
    assert kernel.charged["cpu_minor_fault_2m"] == kernel.costs.cpu_minor_fault_2m


def test_discarding_is_charged_as_unmapping_is(boot):
    kernel, memory, mm = boot("never")
    touch(memory, mm, 0, 100, write=True)
    before = kernel.now_ns
    mm.madvise(BASE, PMD, MADV_DONTNEED)
    assert kernel.now_ns - before == 100 * kernel.costs.zap_per_page


@pytest.mark.parametrize(("thp", "offset", "entries"), [("never", 0, 1), ("never", PAGE, 100), ("always", 0, 1)])
def test_moving_is_charged_for_each_entry_moved(boot, thp, offset, entries):
    """A table or a leaf that goes whole is one entry."""
    kernel, memory, mm = boot(thp)
    touch(memory, mm, 0, 100, write=True)
    before = kernel.charged["protect_per_page"]
    to = BASE + 8 * PMD + offset
    mm.mremap(BASE, PMD, PMD, flags=MREMAP_MAYMOVE | MREMAP_FIXED, new_addr=to)
    assert kernel.charged["protect_per_page"] - before == entries * kernel.costs.protect_per_page


def test_collapsing_is_charged_as_a_huge_fault_is(boot):
    kernel, memory, mm = boot("never")
    touch(memory, mm, 0, 100, write=True)
    mm.madvise(BASE, PMD, MADV_COLLAPSE)
    assert kernel.charged["cpu_minor_fault_2m"] == kernel.costs.cpu_minor_fault_2m
