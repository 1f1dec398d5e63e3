"""mm/memory-failure.c, as of Linux 7.3.4: take a page out of use whose memory has failed.

A page of RAM is split off its folio, unmapped everywhere, and kept from ever being used again. Nobody is killed at
once (vm.memory_failure_early_kill is 0): a CPU that touches the page later gets SIGBUS, a device EFAULT. What lies in
device memory is the driver's matter, and without its help nothing is done.
"""

from errno import EBUSY, ENXIO, EOPNOTSUPP
from typing import TYPE_CHECKING

from gpusvm.errors import KernelError, ModelError
from gpusvm.mm.api import EHWPOISON, MEMORY_DEVICE_COHERENT, MEMORY_DEVICE_PRIVATE, DevPagemap
from gpusvm.mm.page import PG_HUGETLB, PG_HWPOISON, PG_LRU, PG_RESERVED
from gpusvm.mm.split import split_folio
from gpusvm.mm.try_to_unmap import try_to_unmap

if TYPE_CHECKING:
    from gpusvm.mm.memory_manager import MemoryManager

__all__ = ["memory_failure"]


def memory_failure(memory: "MemoryManager", pfn: int) -> None:
    """Handle the failure of the memory of one page. May sleep.

    ENXIO: no such page, or one of a device whose driver does not help; EHWPOISON: it has failed before, or is part of a
    large folio that somebody holds, which stays mapped then; EBUSY: somebody keeps using it, though no longer through a
    mapping, or it is none that can be taken away.
    """
    pages = memory.pages
    memory.kernel.might_sleep()
    memory.kernel.step()
    if not pages.has_page(pfn):
        raise KernelError(ENXIO, f"pfn {pfn:#x} has no struct page")
    zone = pages.zone(pfn)
    i = pfn - zone.base
    if zone.pgmap is not None:
        _memory_failure_dev_pagemap(memory, pfn)
        return
    head = pages.folio_head(pfn)
    if zone.m_flags[head] & PG_HUGETLB or zone.m_mapping[head] < 0:
        raise ModelError(f"the failure of pfn {pfn:#x}, of a file or of huge pages, is not modelled")
    if zone.m_flags[i] & PG_HWPOISON:
        raise KernelError(EHWPOISON, f"page {pfn:#x} has failed before")
    zone.m_flags[i] |= PG_HWPOISON
    if not zone.m_refcount[head]:
        # take_page_off_buddy
        pages.allocator.take(pfn)
        zone.m_refcount[i] = 1
        return
    if pages.lru is not None and not zone.m_flags[head] & PG_LRU:
        pages.lru.drain_all()  # shake_folio
    if zone.m_flags[head] & PG_RESERVED or not zone.m_flags[head] & PG_LRU:
        # HWPoisonHandlable: the kernel's own, or isolated by somebody who moves it just now
        raise KernelError(EBUSY, f"page {pfn:#x} is not one that can be taken away")
    pages.folio_get(head)
    if zone.m_order[head]:
        # try_to_split_thp_page
        pages.folio_lock(head)
        error = split_folio(memory, head, lock_at=pfn)
        pages.folio_unlock(head if error else pfn)
        if error:
            pages.folio_put(head)
            raise KernelError(EHWPOISON, f"folio {head:#x} cannot be split")
    pages.folio_lock(pfn)
    # hwpoison_user_mappings
    try_to_unmap(memory, pfn)
    mapped = zone.m_mapcount[i] > 0
    # me_pagecache_clean: the reference that is left has to be ours, and it stays for ever.
    zone.m_flags[i] &= ~PG_LRU
    held = zone.m_refcount[i] > 1
    pages.folio_unlock(pfn)
    if mapped or held:
        raise KernelError(EBUSY, f"somebody keeps using page {pfn:#x}")


def _memory_failure_dev_pagemap(memory: "MemoryManager", pfn: int) -> None:
    pgmap = memory.get_dev_pagemap(pfn)
    if pgmap is None:
        raise KernelError(ENXIO, f"the pagemap of pfn {pfn:#x} goes away")
    try:
        # An op that a driver need not have, and no driver here has: it is no part of the protocol.
        handle = getattr(pgmap.ops, "memory_failure", None)
        if handle is not None:
            error = handle(pgmap, pfn, 1, 0)
            if error != -EOPNOTSUPP:
                if error:
                    raise KernelError(-error, f"the driver of pfn {pfn:#x} could not handle its failure")
                return
        _mf_generic_kill_procs(memory, pgmap, pfn)
    finally:
        memory.put_dev_pagemap(pgmap)


def _mf_generic_kill_procs(memory: "MemoryManager", pgmap: DevPagemap, pfn: int) -> None:
    device_memory = pgmap.type in {MEMORY_DEVICE_PRIVATE, MEMORY_DEVICE_COHERENT}
    if not (device_memory and memory.quirks.mm_s7 == "fixed"):
        # dax_lock_folio comes before the look at the type. MM-S7: what it takes for the address_space of a DAX file is
        # the anon_vma of a mapped page here, and what it then finds there is anybody's guess: the model goes on.
        zone = memory.pages.zone(pfn)
        head = memory.pages.folio_head(pfn)
        if not zone.m_mapping[head - zone.base]:
            raise KernelError(EBUSY, f"page {pfn:#x} has no mapping to lock")
        tracer = memory.kernel.tracer
        if tracer.on:
            tracer.emit("warn", "dax_lock_folio", "anon_vma taken for an address_space", pfn)
    if not device_memory:
        raise ModelError(f"the failure of page {pfn:#x} of memory type {pgmap.type}, mapped, is not modelled")
    raise KernelError(ENXIO, f"page {pfn:#x} lies in device memory, which only its driver can handle")
