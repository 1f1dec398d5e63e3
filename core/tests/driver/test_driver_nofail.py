"""Memory that may not fail."""

import numpy as np
from gpusvm.driver import RETRY_NS, alloc_folio_nofail, alloc_pages_nofail
from gpusvm.kernel import Kernel
from gpusvm.mm import Geometry, MemoryManager


def full_machine(pages):
    """Return a machine of which all memory is taken, and that memory."""
    memory = MemoryManager(Kernel(), geometry=Geometry(pmd_order=3), ram_pages=pages, thp="never")
    taken = []
    while (pfn := memory.alloc_folio(0)) is not None:
        taken.append(pfn)
    return memory, taken


def test_a_page_is_waited_for():
    memory, taken = full_machine(64)
    kernel = memory.kernel
    giver = kernel.spawn(lambda: (kernel.sleep_ns(5 * RETRY_NS // 2), memory.folio_put(taken[7])), name="giver")
    assert alloc_folio_nofail(kernel, memory, 0) == taken[7]
    assert kernel.now_ns == 3 * RETRY_NS
    giver.join()


def test_so_many_pages_are_waited_for_one_by_one_and_come_locked():
    memory, taken = full_machine(64)
    kernel = memory.kernel

    def give():
        for pfn in taken[:3]:
            kernel.sleep_ns(RETRY_NS)
            memory.folio_put(pfn)

    kernel.spawn(give, name="giver")
    pages = alloc_pages_nofail(kernel, memory, 3)
    assert sorted(pages.tolist()) == sorted(taken[:3])
    assert all(memory.pages.folio_locked(pfn) for pfn in pages.tolist())
    memory.folios_unlock(np.array(pages))
