"""fs/ramfs and fs/libfs.c, as of Linux 7.3.4: files whose pages are in the page cache and nowhere else.

Areas have the page cache's own operations (mm/filemap.c:generic_file_vm_ops), so a shared mapping begins read-only,
though nobody writes anything back.
"""

from typing import TYPE_CHECKING

from gpusvm.mm.filemap import AddressSpace

if TYPE_CHECKING:
    from gpusvm.mm.memory_manager import MemoryManager

__all__ = ["RamfsFile"]


class RamfsFile(AddressSpace):
    """Be a file of ramfs.

    It chooses addresses for its areas itself (ramfs_mmu_get_unmapped_area), so mremap moves one of them at a time. Each
    truncate, also one that makes it longer, unmaps what lies behind the end (simple_setattr: truncate_setsize).
    """

    __slots__ = ()

    moves_alone = True
    truncate_unmaps_always = True

    def __init__(self, memory: "MemoryManager", name: str, nr_pages: int) -> None:
        super().__init__(memory, name, nr_pages, swapbacked=False, page_mkwrite=True)
