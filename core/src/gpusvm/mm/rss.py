"""include/linux/mm.h:mm_counter and its kin, as of Linux 7.3.4: count what areas map, by kind.

Anonymous areas count in place, as all they map is anonymous; areas with vm_ops map pages of a file and private copies.
"""

from typing import TYPE_CHECKING

import numpy as np

from gpusvm.mm.mm_struct import MM_ANONPAGES, MM_FILEPAGES, MM_SHMEMPAGES

if TYPE_CHECKING:
    from gpusvm.mm.memory_manager import MemoryManager
    from gpusvm.mm.pgtable import PteTable
    from gpusvm.mm.vma import Vma

__all__ = ["add_rss", "file_counter"]


def file_counter(vma: "Vma") -> int:
    """Return which rss the pages count in that an area maps and that are no private copies (mm_counter_file)."""
    return MM_SHMEMPAGES if vma.file is not None and vma.file.swapbacked else MM_FILEPAGES


def add_rss(memory: "MemoryManager", vma: "Vma", table: "PteTable", mask: int, sign: int) -> None:
    """Count what an area with vm_ops maps in its mm's rss, or uncount it: pages of the file and private copies."""
    if not mask:
        return
    anon = 0
    for zone, index, _ in memory.pages.split(table.pfns(mask)):
        where = np.arange(index.start, index.stop) if isinstance(index, slice) else index
        anon += int(np.count_nonzero(zone.mapping[where - zone.head_off[index]] > 0))
    rss = vma.mm.rss
    rss[MM_ANONPAGES] += sign * anon
    rss[file_counter(vma)] += sign * (mask.bit_count() - anon)
