"""mm/madvise.c, as of Linux 7.3.4: what a process says of its memory: discard it, make it huge, keep it from a child.

What is discarded is gone at once (MADV_DONTNEED) or may go (MADV_FREE): nothing reclaims pages in the model, so what
MADV_FREE was said of keeps its contents; only its dirty marks go.
"""

from errno import EAGAIN, EINVAL, ENOMEM
from typing import TYPE_CHECKING, Final

from gpusvm.errors import KernelError, ModelError
from gpusvm.mm.api import (
    MADV_COLLAPSE,
    MADV_DOFORK,
    MADV_DONTFORK,
    MADV_DONTNEED,
    MADV_FREE,
    MADV_GUARD_INSTALL,
    MADV_GUARD_REMOVE,
    MADV_HUGEPAGE,
    MADV_KEEPONFORK,
    MADV_NOHUGEPAGE,
    MADV_NORMAL,
    MADV_WIPEONFORK,
    VM_DONTCOPY,
    VM_HUGEPAGE,
    VM_HUGETLB,
    VM_NOHUGEPAGE,
    VM_PFNMAP,
    VM_SHARED,
    VM_SPECIAL,
    VM_UFFD_MISSING,
    VM_WIPEONFORK,
)
from gpusvm.mm.khugepaged import madvise_collapse
from gpusvm.mm.lazyfree import madvise_free_single_vma
from gpusvm.mm.madvise_guard import madvise_guard_install, madvise_guard_remove
from gpusvm.mm.mmap_lock import lock_vma_under_rcu, vma_end_read
from gpusvm.mm.vma_merge import modify_flags
from gpusvm.mm.zap import zap_vma_range

if TYPE_CHECKING:
    from gpusvm.mm.memory_manager import MemoryManager
    from gpusvm.mm.mm_struct import MmStruct
    from gpusvm.mm.vma import Vma

# What get_lock_mode lets go on under the lock of one area; what changes an area's flags; what exists and is not
# modelled (include/uapi/asm-generic/mman-common.h).
_DISCARDS: Final = frozenset({MADV_DONTNEED, MADV_FREE})
_FLAGS: Final = frozenset(
    {
        MADV_NORMAL,
        MADV_DONTFORK,
        MADV_DOFORK,
        MADV_HUGEPAGE,
        MADV_NOHUGEPAGE,
        MADV_WIPEONFORK,
        MADV_KEEPONFORK,
    }
)
_OTHERS: Final = frozenset({MADV_COLLAPSE, MADV_GUARD_INSTALL, MADV_GUARD_REMOVE})
_NOT_MODELLED: Final = frozenset({1, 2, 3, 9, 12, 13, 16, 17, 20, 21, 22, 23, 24, 100, 101})


def madvise(memory: "MemoryManager", mm: "MmStruct", start: int, length: int, advice: int) -> None:
    """Apply an advice to the areas of [start, start + length). EINVAL ENOMEM EAGAIN (do_madvise).

    Over a gap the areas on both sides are done, and it is ENOMEM at the end.
    """
    page = memory.geometry.page_size
    if advice in _NOT_MODELLED:
        raise ModelError(f"madvise with advice {advice} is not modelled")
    if advice not in _DISCARDS and advice not in _FLAGS and advice not in _OTHERS:
        raise KernelError(EINVAL, f"madvise with advice {advice}")
    end = start + -(-length // page) * page
    if start % page or end < start or end >= 1 << 64:
        raise KernelError(EINVAL, f"madvise of {length} bytes at {start:#x}")
    if end == start:
        return
    if advice in _FLAGS:
        with mm.mmap_lock.write():
            _walk_vmas(memory, mm, start, end, advice)
        return
    # try_vma_read_lock
    vma = lock_vma_under_rcu(mm, start) if advice in _DISCARDS else None
    if vma is not None:
        try:
            # is_vma_lock_sufficient
            if end <= vma.end and not vma.flags & VM_UFFD_MISSING:
                _discard(memory, vma, start, end, advice)
                return
        finally:
            vma_end_read(vma)
    with mm.mmap_lock.read():
        _walk_vmas(memory, mm, start, end, advice)


def _walk_vmas(memory: "MemoryManager", mm: "MmStruct", start: int, end: int, advice: int) -> None:
    # madvise_walk_vmas
    gap = None
    at = start
    while at < end:
        vma = mm.find_vma(at)
        if vma is None or vma.start >= end:
            raise KernelError(ENOMEM, f"madvise over the gap at {at if gap is None else gap:#x}")
        if vma.start > at:
            gap = at if gap is None else gap
            at = vma.start
        stop = min(vma.end, end)
        if advice in _DISCARDS:
            _discard(memory, vma, at, stop, advice)
        elif advice == MADV_COLLAPSE:
            madvise_collapse(memory, vma, at, stop)
        elif advice == MADV_GUARD_INSTALL:
            madvise_guard_install(memory, vma, at, stop)
        elif advice == MADV_GUARD_REMOVE:
            madvise_guard_remove(memory, vma, at, stop)
        else:
            _update(memory, vma, at, stop, advice)
        at = stop
    if gap is not None:
        raise KernelError(ENOMEM, f"madvise over the gap at {gap:#x}")


def _discard(memory: "MemoryManager", vma: "Vma", start: int, end: int, advice: int) -> None:
    # madvise_dontneed_free
    if vma.flags & VM_PFNMAP:
        raise KernelError(EINVAL, f"madvise to discard {vma!r}, which has no pages")
    if vma.flags & VM_HUGETLB:
        size = memory.geometry.pmd_size
        if advice != MADV_DONTNEED or start % size:
            raise KernelError(EINVAL, f"madvise to discard from {start:#x} on in {vma!r}, which has huge pages")
        end &= -size
        if start == end:
            return
    if advice == MADV_DONTNEED:
        zap_vma_range(memory, vma, start, end, reclaim_pt=True)
    else:
        madvise_free_single_vma(memory, vma, start, end)


def _update(memory: "MemoryManager", vma: "Vma", start: int, end: int, advice: int) -> None:
    # madvise_vma_behavior, madvise_update_vma
    flags = _new_flags(vma, advice)
    if flags == vma.flags:
        return
    try:
        modify_flags(memory, vma, start, end, flags)
    except KernelError as error:
        if error.errno != ENOMEM:
            raise
        raise KernelError(EAGAIN, f"madvise of {vma!r}: {error}") from error


def _new_flags(vma: "Vma", advice: int) -> int:
    flags = vma.flags
    if advice == MADV_HUGEPAGE:
        return flags & ~VM_NOHUGEPAGE | VM_HUGEPAGE
    if advice == MADV_NOHUGEPAGE:
        return flags & ~VM_HUGEPAGE | VM_NOHUGEPAGE
    if advice == MADV_DONTFORK:
        return flags | VM_DONTCOPY
    if advice == MADV_DOFORK:
        if flags & VM_SPECIAL:
            raise KernelError(EINVAL, f"madvise to fork {vma!r}, which is special")
        return flags & ~VM_DONTCOPY
    if advice == MADV_WIPEONFORK:
        if not vma.is_anonymous or flags & VM_SHARED:
            raise KernelError(EINVAL, f"madvise to wipe {vma!r} on fork, which is not private anonymous memory")
        return flags | VM_WIPEONFORK
    if advice == MADV_KEEPONFORK:
        return flags & ~VM_WIPEONFORK
    return flags
