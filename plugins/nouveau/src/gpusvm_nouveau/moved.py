"""What becomes of GPU entries when the device sleeps (nouveau_dmem_suspend, nouveau_dmem_resume).

An entry of a device page holds an address in VRAM. Nothing writes it anew when the chunk that lay there lies somewhere
else.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
from gpusvm.gpu import REMOTE, runs

if TYPE_CHECKING:
    import numpy.typing as npt
    from gpusvm.driver import Chunk
    from gpusvm.gpu import GpuPageTable

    from gpusvm_nouveau.device import NouveauDevice

__all__ = ["follow_chunks", "forget_chunks"]


def forget_chunks(device: "NouveauDevice") -> None:
    """Clear every entry of a device page, so that the GPU faults again: the quirk moved_chunks as it is fixed."""
    for svmm in list(device.svmms.values()):
        with svmm.mutex:
            for vpns, _, _ in list(_local(svmm.page_table)):
                svmm.vmm.unmap(int(vpns[0]), int(vpns[-1]) + 1)


def follow_chunks(device: "NouveauDevice", before: "Mapping[int, Chunk]", offset: "Callable[[Chunk], int]") -> None:
    """Let each entry name what lies now where it points, given which chunk was at which offset before."""
    now = {offset(chunk): chunk for chunk in before.values()}
    moved = [(chunk, now.get(place)) for place, chunk in before.items() if now.get(place) is not chunk]
    if not moved:
        return
    for svmm in list(device.svmms.values()):
        table = svmm.page_table
        for vpns, pfns, perms in list(_local(table)):
            named = pfns.copy()
            stale = np.zeros(len(pfns), np.bool_)
            for chunk, there in moved:
                inside = (pfns >= chunk.first) & (pfns < chunk.end)
                stale |= inside
                if there is not None:
                    named[inside] += there.first - chunk.first
            if stale.any():
                vpn = int(vpns[0])
                table.map_pages(vpn, named, np.where(stale, perms, np.uint8(0)), written=False)
                for first, last in runs(np.flatnonzero(stale)):
                    table.mark_stale(vpn + first, vpn + last, "moved_chunks")


def _local(
    table: "GpuPageTable",
) -> "Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.uint8]]]":
    """Go through the entries of device pages, one stretch after the other: pages, frames, permissions."""
    for window in table.windows:
        found = np.flatnonzero((window.perm != 0) & (window.perm & REMOTE == 0))
        for first, last in runs(found):
            at = slice(first, last)
            yield np.arange(window.base + first, window.base + last), window.pfn[at].copy(), window.perm[at].copy()
