"""Who uses a page that is free is told who freed it; only checked explored kernels look."""

import re

import numpy as np
import pytest
from gpusvm.errors import UseAfterFreeError
from gpusvm.kernel import Kernel
from gpusvm.mm import Geometry, MemoryManager
from gpusvm.mm.api import MEMORY_DEVICE_PRIVATE, DevPagemap


class Ops:
    folio_split = folios_free = None

    def migrate_to_ram(self, vmf):
        raise NotImplementedError

    def folio_free(self, pfn, order):
        pass


@pytest.fixture
def memory():
    with Kernel(mode="explored") as kernel:
        yield MemoryManager(kernel, ram_pages=32, geometry=Geometry(pmd_order=2))


def _message(action):
    with pytest.raises(UseAfterFreeError) as caught:
        action()
    return re.sub(r"(\.py):\d+", r"\1", str(caught.value))


def _freed(memory):
    pfn = memory.alloc_folio(0)
    memory.kernel.spawn(memory.folio_put, pfn, name="freer").join()
    return pfn


# A task's first frame is the kernel's, which stands for whoever freed it here.
BY = "; task 'freer' freed it at kernel/scheduler.py"


USES = {
    "folio_get of free folio {}, refcount 0": lambda m, pfn: m.folio_get(pfn),
    "folio_put of folio {}, refcount 0": lambda m, pfn: m.folio_put(pfn),
    "pin of free folio {}, refcount 0": lambda m, pfn: m.pages.pin(pfn),
    "use after free: task 'main' locks free page {}": lambda m, pfn: m.folio_trylock(pfn),
    "use after free: task 'main' clears free page {}": lambda m, pfn: m.clear_folio(pfn, 1),
    "use after free: task 'main' copies from free page {}": lambda m, pfn: m.copy_folio(m.zero_pfn, pfn, 1),
    "use after free: task 'main' copies to free page {}": lambda m, pfn: m.copy_folio(pfn, m.zero_pfn, 1),
    "use after free: task 'main' writes to free page {}": lambda m, pfn: m.contents.write(m.mm_alloc("p"), 1, pfn),
}


@pytest.mark.parametrize("message", USES)
def test_each_use_of_a_free_page_names_who_freed_it(memory, message):
    pfn = _freed(memory)
    assert _message(lambda: USES[message](memory, pfn)) == message.format(f"{pfn:#x}") + BY


def test_each_page_of_a_batch_is_looked_at(memory):
    pfn = _freed(memory)
    both = np.array([memory.zero_pfn, pfn])
    expected = f"use after free: task 'main' clears free page {pfn:#x}{BY}"
    assert _message(lambda: memory.clear_pages(both)) == expected
    expected = f"use after free: task 'main' copies from free page {pfn:#x}{BY}"
    assert _message(lambda: memory.copy_pages(both[:1], both[1:])) == expected


def test_a_read_of_a_free_page_is_a_mismatch_that_names_who_freed_it(memory):
    mm, pfn = memory.mm_alloc("p"), memory.alloc_folio(0)
    memory.contents.write(mm, 1, pfn)
    memory.kernel.spawn(memory.folio_put, pfn, name="freer").join()
    memory.contents.read(mm, 1, pfn)
    found = re.sub(r"at \d+ ns|\.py:\d+", "", str(memory.contents.mismatches[0]))
    assert found == (
        f"main read page 0x1 of p  and found freed memory in pfn {pfn:#x} instead of version 1 by writer 0"
        "; task 'freer' freed it at kernel/scheduler"
    )


def test_a_page_of_a_region_that_was_removed_names_who_removed_it(memory):
    start = memory.request_free_mem_region(4)
    pagemap = DevPagemap(type=MEMORY_DEVICE_PRIVATE, start_pfn=start, nr_pages=4, owner=object(), ops=Ops())
    memory.memremap_pages(pagemap)
    memory.zone_device_folio_init(start, pagemap, 0)
    memory.folio_unlock(start)
    memory.kernel.spawn(memory.folio_put, start, name="freer").join()
    assert _message(lambda: memory.folio_get(start)) == f"folio_get of free folio {start:#x}, refcount 0{BY}"
    memory.kernel.spawn(memory.memunmap_pages, pagemap, name="remover").join()
    assert _message(lambda: memory.folio_get(start)) == (
        f"use after free: task 'main' uses page {start:#x}; task 'remover' removed it at kernel/scheduler.py"
    )


def test_a_timed_kernel_does_not_look():
    with Kernel() as kernel:
        memory = MemoryManager(kernel, ram_pages=32)
        assert memory.pages.owner is None
        pfn = memory.alloc_folio(0)
        memory.folio_put(pfn)
        memory.clear_folio(pfn, 1)
