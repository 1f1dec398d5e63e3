"""mm/page_alloc.c:__GFP_NOFAIL, as of Linux 7.3.4, as drivers use it that bring pages home from a device that goes."""

from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from gpusvm.kernel import Kernel
    from gpusvm.mm.api import MemoryManagerApi, Pfns

__all__ = ["RETRY_NS", "alloc_folio_nofail", "alloc_pages_nofail"]

RETRY_NS: Final = 1_000_000
"""How long who may not fail sleeps before it tries again, in ns (assumed: the kernel waits for what is reclaimed)."""


def alloc_folio_nofail(kernel: "Kernel", memory: "MemoryManagerApi", order: int) -> int:
    """Allocate one system folio, unlocked, and wait until there is one."""
    while (pfn := memory.alloc_folio(order)) is None:
        kernel.sleep_ns(RETRY_NS)
    return pfn


def alloc_pages_nofail(kernel: "Kernel", memory: "MemoryManagerApi", n: int) -> "Pfns":
    """Allocate `n` single pages, each locked, and wait until there are so many."""
    pages = memory.alloc_pages_bulk(n)
    if pages is None:
        pages = np.array([alloc_folio_nofail(kernel, memory, 0) for _ in range(n)], np.int64)
    memory.folios_lock_new(pages)
    return pages
