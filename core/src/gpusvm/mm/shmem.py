"""mm/shmem.c, as of Linux 7.3.4: shared anonymous memory, which is a file that no directory names.

Every shared anonymous mmap makes an object of its own; fork and mremap hand it on, and it goes with its last area.
Its pages count as MM_SHMEMPAGES, and nobody wants to hear of their first write, so a page is mapped with all that its
area allows. Huge pages of shmem are off, as is Linux's default (/sys/kernel/mm/transparent_hugepage/shmem_enabled).
"""

from typing import TYPE_CHECKING

from gpusvm.mm.filemap import AddressSpace

if TYPE_CHECKING:
    from gpusvm.mm.memory_manager import MemoryManager

__all__ = ["shmem_file_setup"]


def shmem_file_setup(memory: "MemoryManager", name: str, nr_pages: int) -> AddressSpace:
    """Make an object of `nr_pages`, with one reference (shmem_zero_setup, or memfd_create for a file of tmpfs)."""
    return AddressSpace(memory, name, nr_pages, swapbacked=True, page_mkwrite=False)
