"""Remember which system page stands behind each device page of a chunk (test_hmm.c: BACKING_PAGE).

A device page of dmirror is a dummy: its data lies in a page of system memory, allocated together with it. The contents
of the model are therefore those of the backing page, and the device page's own token is never looked at: copies,
clears and the device's mappings all name the backing page. A page of coherent memory is its own backing.

zone_device_data of a live device page is the `Backing` of its chunk, which has one pfn for each of the chunk's pages.
"""

from typing import TYPE_CHECKING

import numpy as np
from gpusvm.mm.api import MEMORY_DEVICE_COHERENT

if TYPE_CHECKING:
    from gpusvm.driver import Chunk
    from gpusvm.mm.api import Pfns

    from gpusvm_dmirror.mirror import Dmirror

__all__ = ["Backing"]


class Backing:
    """Hold, for one chunk, the backing pfn of every live device page, and the file that last migrated to it.

    The file is what zone_device_data of the backing page is in the kernel: the second step of the chain. `has_split`
    says that backing pages may be parts of a larger folio. `own`: the memory is coherent, each page backs itself. With
    `holds_files` a page that names a file holds it (quirk freed_file).
    """

    __slots__ = ("_files", "_holds_files", "_mirror", "_pfn", "first", "has_split", "own")

    def __init__(self, chunk: "Chunk", *, holds_files: bool) -> None:
        nr = chunk.pagemap.nr_pages
        self.first = chunk.first
        self.own = chunk.pagemap.type == MEMORY_DEVICE_COHERENT
        self._pfn = np.arange(chunk.first, chunk.end) if self.own else np.zeros(nr, np.int64)
        self._mirror = np.zeros(nr, np.int32)
        self._files: list[Dmirror] = []
        self.has_split = False
        self._holds_files = holds_files

    def attach(self, pfns: "Pfns", backing: "Pfns", mirror: "Dmirror") -> None:
        """Put `backing[i]` behind device page `pfns[i]`, for `mirror`."""
        index = pfns - self.first
        self._pfn[index] = backing
        self._mirror[index] = self._number(mirror)
        if self._holds_files:
            mirror.get_pages(len(pfns))

    def attach_run(self, pfn: int, backing: int, pages: int, mirror: "Dmirror") -> None:
        """Put consecutive pages behind consecutive device pages."""
        i = pfn - self.first
        self._pfn[i : i + pages] = np.arange(backing, backing + pages)
        self._mirror[i : i + pages] = self._number(mirror)
        if self._holds_files:
            mirror.get_pages(pages)

    def forget(self, pfns: "Pfns") -> None:
        """Let go of the files of device pages that are free."""
        if self._holds_files and len(self._files) == 1:
            self._files[0].put_pages(len(pfns))
        elif self._holds_files:
            numbers, counts = np.unique(self._mirror[pfns - self.first], return_counts=True)
            for number, count in zip(numbers.tolist(), counts.tolist(), strict=True):
                self._files[number].put_pages(count)

    def of(self, pfn: int) -> int:
        """Return the backing pfn of a device page."""
        return int(self._pfn[pfn - self.first])

    def of_many(self, pfns: "Pfns") -> "Pfns":
        """Return the backing pfns of device pages."""
        return self._pfn[pfns - self.first]

    def mirror_of(self, pfn: int) -> "Dmirror":
        """Return the file that last migrated to a device page."""
        return self._files[int(self._mirror[pfn - self.first])]

    def _number(self, mirror: "Dmirror") -> int:
        for number, file in enumerate(self._files):
            if file is mirror:
                return number
        self._files.append(mirror)
        return len(self._files) - 1
