"""kernel/fork.c and mm/mmap.c:dup_mmap, as of Linux 7.3.4: make a child of an address space."""

from errno import ENOMEM
from typing import TYPE_CHECKING, Final

from gpusvm.errors import KernelError, ModelError
from gpusvm.mm.api import VM_DONTCOPY, VM_UFFD_MISSING, VM_WIPEONFORK
from gpusvm.mm.copy_page_range import copy_page_range
from gpusvm.mm.mm_struct import MMF_UNSTABLE
from gpusvm.mm.mmap_lock import vma_start_write
from gpusvm.mm.observer import tell
from gpusvm.mm.vma import Vma, vma_link

if TYPE_CHECKING:
    from gpusvm.mm.memory_manager import MemoryManager
    from gpusvm.mm.mm_struct import MmStruct

# include/linux/lockdep.h:SINGLE_DEPTH_NESTING, for the child's mmap_lock: nobody can hold it and want the parent's.
_NESTED: Final = 1


def fork(memory: "MemoryManager", oldmm: "MmStruct", name: str | None = None) -> "MmStruct":
    """Make a child of an address space that shares its pages until one of the two writes; it has one user. ENOMEM.

    The child has no notifier subscriptions and none of the parent's MMF_ flags. If memory is short half way, the
    child is torn down again; what the parent lost by then, it keeps lost: permissions to write, exclusive pages,
    device-exclusive entries (dup_mm). Charged protect_per_page for each entry copied.
    """
    kernel = memory.kernel
    if not oldmm.mm_users:
        raise ModelError(f"fork of {oldmm.name}, whose memory is gone")
    kernel.might_alloc()
    if kernel.inject("alloc.mm"):
        raise KernelError(ENOMEM, f"no memory for a child of {oldmm.name}")
    mm = memory.mm_alloc(f"{oldmm.name}.{memory.mm_ids + 1}" if name is None else name)
    mm.had_prot_none = oldmm.had_prot_none
    try:
        copied = _dup_mmap(memory, mm, oldmm)
    except KernelError:
        mm.flags |= MMF_UNSTABLE
        mm.mmput()
        raise
    kernel.charge("protect_per_page", copied)
    return mm


def _dup_mmap(memory: "MemoryManager", mm: "MmStruct", oldmm: "MmStruct") -> int:
    # How many entries were copied.
    kernel = memory.kernel
    copied = 0
    oldmm.mmap_lock.down_write()
    mm.mmap_lock.down_write(_NESTED)
    if kernel.observer is not None:
        tell(kernel.observer, "operation_begins", "dup_mmap", oldmm, mm)
    try:
        for mpnt in tuple(oldmm.vmas):
            vma_start_write(mpnt)
            if mpnt.flags & VM_DONTCOPY:
                continue
            if kernel.inject("alloc.vma"):
                raise KernelError(ENOMEM, f"no memory to copy {mpnt!r}")
            # dup_userfaultfd: a monitor that did not ask for forks knows nothing of the child.
            tmp = Vma(mm, mpnt.start, mpnt.end, mpnt.flags & ~VM_UFFD_MISSING, mpnt.pgoff, mpnt.file)
            tmp.anon_shift = mpnt.anon_shift
            if not mpnt.flags & VM_WIPEONFORK:
                if mpnt.anon_vma is not None and kernel.inject("alloc.anon_vma"):
                    raise KernelError(ENOMEM, f"no memory for the anon_vma of a copy of {mpnt!r}")
                memory.rmap.anon_vma_fork(tmp, mpnt)
            vma_link(mm, tmp, after=mpnt)
            if not mpnt.flags & VM_WIPEONFORK:
                copied += copy_page_range(memory, tmp, mpnt)
        if kernel.observer is not None:
            tell(kernel.observer, "operation_ends", "dup_mmap", oldmm, mm)
    finally:
        mm.mmap_lock.up_write()
        oldmm.mmap_lock.up_write()
    return copied
