"""mm/page_owner.c, as of Linux 7.3.4: who freed a page, so that whoever uses it afterwards can be told."""

import sys
from typing import TYPE_CHECKING, Final

import numpy as np

from gpusvm.errors import UseAfterFreeError
from gpusvm.kernel.place import Site, name_site
from gpusvm.mm.api import Pfns

if TYPE_CHECKING:
    from gpusvm.mm.page import Index, PageMap, Zone

__all__ = ["PageOwner"]

# What stands between whoever frees a page and the free itself.
_BETWEEN: Final = frozenset(
    __file__.replace("page_owner.py", name) for name in ("page.py", "page_owner.py", "memory_manager.py", "memremap.py")
)


class PageOwner:
    """Remember the last free of each page, and of each region of pages that was removed.

    Only checked explored kernels have one (`PageMap.owner`); it costs a look at the stack for each batch that is freed.
    """

    __slots__ = ("_freed", "_removed", "pages")

    def __init__(self, pages: "PageMap") -> None:
        self.pages = pages
        self._freed: dict[int, tuple[str, Site]] = {}
        self._removed: list[tuple[int, int, tuple[str, Site]]] = []

    def freed(self, zone: "Zone", index: "Index | int", nr: int = 1) -> None:
        """Note that the running task frees `nr` pages from index `index` on, or the pages of a batch."""
        by = self._by()
        if isinstance(index, int):
            first = zone.base + index
            pfns = list(range(first, first + nr))
        elif isinstance(index, slice):
            pfns = list(range(zone.base + index.start, zone.base + index.stop))
        else:
            pfns = (index + zone.base).tolist()
        for pfn in pfns:
            self._freed[pfn] = by

    def removed(self, zone: "Zone") -> None:
        """Note that the running task removes a region with all its struct pages."""
        self._removed.append((zone.base, zone.end, self._by()))

    def last(self, pfn: int) -> str:
        """Return a clause that says who freed page `pfn` or removed it; empty if nobody is known."""
        by = self._freed.get(pfn)
        what = "freed"
        for base, end, remover in self._removed:
            if base <= pfn < end:
                by, what = remover, "removed"
        return "" if by is None else f"; task {by[0]!r} {what} it at {name_site(by[1])}"

    def check(self, doing: str, pfns: Pfns) -> None:
        """Raise UseAfterFreeError if one of many pages belongs to no live folio; -1 is the zero page."""
        for pfn in pfns.tolist():
            if pfn >= 0:
                self.check_one(doing, pfn)

    def check_run(self, doing: str, pfn: int, nr_pages: int) -> None:
        """Do so for consecutive pages."""
        self.check(doing, np.arange(pfn, pfn + nr_pages))

    def check_one(self, doing: str, pfn: int) -> None:
        """Do so for one page."""
        zone = self.pages.zone(pfn)
        i = pfn - zone.base
        if not zone.m_refcount[i - zone.m_head_off[i]]:
            raise self.used(doing, pfn)

    def used(self, doing: str, pfn: int) -> UseAfterFreeError:
        """Return the error of the running task that does something with a free page."""
        task = self.pages.kernel.current.name
        return UseAfterFreeError(f"use after free: task {task!r} {doing} free page {pfn:#x}{self.last(pfn)}")

    def _by(self) -> tuple[str, Site]:
        frame = sys._getframe(2)
        while frame.f_back is not None and frame.f_code.co_filename in _BETWEEN:
            frame = frame.f_back
        return self.pages.kernel.current.name, (frame.f_code, frame.f_lasti)
