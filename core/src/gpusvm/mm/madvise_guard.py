"""mm/madvise.c, as of Linux 7.3.4: guard regions, pages of an area that nobody may touch (MADV_GUARD_INSTALL, _REMOVE).

A guard is a marker in a page table: it costs no area of its own. Installing discards what is there; the markers stay
when their pages are discarded, and go when they are removed or their area is unmapped.
"""

from errno import EINVAL, ENOMEM
from typing import TYPE_CHECKING

from gpusvm.errors import KernelError
from gpusvm.mm.api import VM_HUGETLB, VM_SPECIAL
from gpusvm.mm.pgtable import OtherPte, PmdLeaf, PteKind, PteTable
from gpusvm.mm.ptemask import indices, span
from gpusvm.mm.vma import anon_vma_prepare
from gpusvm.mm.zap import zap_vma_range

if TYPE_CHECKING:
    from gpusvm.mm.memory_manager import MemoryManager
    from gpusvm.mm.vma import Vma

__all__ = ["madvise_guard_install", "madvise_guard_remove"]


def madvise_guard_install(memory: "MemoryManager", vma: "Vma", start: int, end: int) -> None:
    """Make every page of [start, end) of one anonymous area a guard, mmap_lock held. EINVAL ENOMEM.

    One CLEAR window over the range, if anything but guards is in it; putting markers in none entries is no event.
    """
    _check(vma)
    anon_vma_prepare(memory, vma)
    while not _install(memory, vma, start, end):
        # Something is mapped, or somebody has mapped something meanwhile. The kernel tries three times and then
        # restarts the system call.
        zap_vma_range(memory, vma, start, end)


def _install(memory: "MemoryManager", vma: "Vma", start: int, end: int) -> bool:
    # False at the first entry that is neither none nor a guard.
    for block, mask in _blocks(memory, start, end):
        page_table = vma.mm.page_table
        if block not in page_table.entries and memory.kernel.inject("alloc.pte_table"):
            raise KernelError(ENOMEM, f"no memory for a page table to guard {vma!r}")
        memory.kernel.step()
        if isinstance(page_table.entries.get(block), PmdLeaf):
            return False
        table = page_table.table(block)
        guards = _guards(table, mask)
        if table.used & mask & ~guards:
            return False
        for i in indices(mask & ~guards).tolist() if mask & ~guards else ():
            table.set_other(i, OtherPte(PteKind.MARKER_GUARD))
    return True


def madvise_guard_remove(memory: "MemoryManager", vma: "Vma", start: int, end: int) -> None:
    """Make every guard of [start, end) none again; whatever else is there stays, and it is no event. EINVAL."""
    _check(vma)
    for block, mask in _blocks(memory, start, end):
        memory.kernel.step()
        table = vma.mm.page_table.entries.get(block)
        if isinstance(table, PteTable):
            guards = _guards(table, mask)
            if guards:
                table.clear(guards)


def _check(vma: "Vma") -> None:
    # is_valid_guard_vma; guards of files are not modelled, as nothing here maps around them.
    if vma.flags & (VM_SPECIAL | VM_HUGETLB) or not vma.is_anonymous:
        raise KernelError(EINVAL, f"guards in {vma!r}, which is not plain anonymous memory")


def _guards(table: PteTable, mask: int) -> int:
    return sum(1 << i for i, entry in table.others_of(mask) if entry.kind is PteKind.MARKER_GUARD)


def _blocks(memory: "MemoryManager", start: int, end: int) -> list[tuple[int, int]]:
    # The blocks of a range, and which of their pages lie inside.
    geometry = memory.geometry
    found = []
    for block in range(start >> geometry.pmd_shift, ((end - 1) >> geometry.pmd_shift) + 1):
        base = block << geometry.pmd_shift
        first, stop = max(start, base), min(end, base + geometry.pmd_size)
        at, n = (first - base) >> geometry.page_shift, (stop - first) >> geometry.page_shift
        found.append((block, span(at, n)))
    return found
