"""mm/mremap.c, as of Linux 7.3.4: resize a mapping, or take it to another place."""

from errno import EFAULT, EINVAL, ENOMEM
from typing import TYPE_CHECKING, Final

from attrs import define

from gpusvm.errors import KernelError, ModelError
from gpusvm.mm.api import (
    MREMAP_DONTUNMAP,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    VM_DONTEXPAND,
    VM_HUGETLB,
    VM_PFNMAP,
    VM_SHARED,
    VM_UFFD_MISSING,
)
from gpusvm.mm.mmap import TASK_SIZE, do_vmi_munmap, unmapped_area
from gpusvm.mm.mmap_lock import vma_start_write
from gpusvm.mm.move_tables import move_page_tables
from gpusvm.mm.vma_merge import copy_vma, merge_new

if TYPE_CHECKING:
    from gpusvm.mm.memory_manager import MemoryManager
    from gpusvm.mm.mm_struct import MmStruct
    from gpusvm.mm.vma import Vma

_FLAGS: Final = MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP


@define
class _Remap:
    # struct vma_remap_struct
    memory: "MemoryManager"
    mm: "MmStruct"
    addr: int
    old_len: int
    new_len: int
    flags: int
    new_addr: int

    def implies_new_addr(self) -> bool:
        return bool(self.flags & (MREMAP_FIXED | MREMAP_DONTUNMAP))

    def error(self, errno: int, why: str) -> KernelError:
        return KernelError(
            errno, f"mremap of {self.old_len:#x} bytes at {self.addr:#x} to {self.new_len:#x} bytes: {why}"
        )


def mremap(
    memory: "MemoryManager",
    mm: "MmStruct",
    old_addr: int,
    old_len: int,
    new_len: int,
    *,
    flags: int = 0,
    new_addr: int | None = None,
) -> int:
    """Resize or move what is mapped at [old_addr, old_addr + old_len); its address then. EINVAL EFAULT ENOMEM.

    Takes mmap_lock for write. A move to a fixed place without a resize may span several areas and gaps: each area is
    moved by itself, in order, and a failure leaves those before it moved (remap_move).
    """
    if flags & MREMAP_FIXED and new_addr is None:
        raise ModelError("mremap with MREMAP_FIXED moves to new_addr, and that was not given")
    page = memory.geometry.page_size
    old_len, new_len = -(-old_len // page) * page, -(-new_len // page) * page
    vrm = _Remap(memory, mm, old_addr, old_len, new_len, flags, new_addr or 0)
    _check_params(vrm)
    with mm.mmap_lock.write():
        if flags & MREMAP_FIXED and old_len == new_len:
            return _remap_move(vrm)
        vma = _check_prep_vma(vrm, mm.vma_lookup(old_addr))
        return _mremap_to(vrm, vma) if vrm.implies_new_addr() else _mremap_at(vrm, vma)


def _check_params(vrm: _Remap) -> None:
    # check_mremap_params
    page = vrm.memory.geometry.page_size
    flags = vrm.flags
    if flags & ~_FLAGS:
        raise vrm.error(EINVAL, f"unknown flags {flags:#x}")
    if vrm.addr % page:
        raise vrm.error(EINVAL, "not at a page")
    if not 0 < vrm.new_len <= TASK_SIZE:
        raise vrm.error(EINVAL, "no such length")
    if not vrm.implies_new_addr():
        return
    if vrm.new_addr > TASK_SIZE - vrm.new_len or vrm.new_addr % page:
        raise vrm.error(EINVAL, f"no such place as {vrm.new_addr:#x}")
    if not flags & MREMAP_MAYMOVE:
        raise vrm.error(EINVAL, "a move without MREMAP_MAYMOVE")
    if flags & MREMAP_DONTUNMAP and vrm.old_len != vrm.new_len:
        raise vrm.error(EINVAL, "a resize with MREMAP_DONTUNMAP")
    if vrm.addr + vrm.old_len > vrm.new_addr and vrm.new_addr + vrm.new_len > vrm.addr:
        raise vrm.error(EINVAL, f"onto itself, at {vrm.new_addr:#x}")


def _check_prep_vma(vrm: _Remap, vma: "Vma | None") -> "Vma":
    # check_prep_vma
    if vma is None:
        raise vrm.error(EFAULT, "nothing is mapped there")
    if not vrm.implies_new_addr():
        vrm.new_addr = vrm.addr
        if vrm.new_len <= vrm.old_len:
            return vma
    if not vrm.old_len and not vma.flags & VM_SHARED:
        raise vrm.error(EINVAL, "private memory cannot be doubled")
    if vrm.flags & MREMAP_DONTUNMAP and vma.flags & (VM_DONTEXPAND | VM_PFNMAP):
        raise vrm.error(EINVAL, f"{vma!r} cannot be at two places")
    if vma.flags & VM_HUGETLB:
        size = vrm.memory.geometry.pmd_size
        if vrm.addr % size or vrm.new_addr % size or vrm.new_len > vrm.old_len:
            raise vrm.error(EINVAL, f"{vma!r} has huge pages")
    # What a shrink unmaps may cross boundaries.
    old_len = min(vrm.old_len, vrm.new_len)
    if old_len > vma.end - vrm.addr:
        raise vrm.error(EFAULT, f"it reaches beyond {vma!r}")
    if vrm.new_len > old_len and vma.flags & (VM_DONTEXPAND | VM_PFNMAP):
        raise vrm.error(EFAULT, f"{vma!r} cannot grow")
    return vma


def _remap_move(vrm: _Remap) -> int:
    # remap_move: every area in the range, gaps kept
    mm = vrm.mm
    start, end = vrm.addr, vrm.addr + vrm.old_len
    by = vrm.new_addr - start
    new_addr = vrm.new_addr
    if mm.vma_lookup(start) is None:
        raise vrm.error(EFAULT, "nothing is mapped there")
    at = start
    while at < end:
        vma = mm.find_vma(at)
        if vma is None or vma.start >= end:
            break
        # vma_multi_allowed: what a process is told of, it is told of one by one; a file that chooses addresses itself
        # might choose others.
        alone = vma.flags & VM_UFFD_MISSING or (vma.file is not None and vma.file.moves_alone)
        if alone and (at > start or vma.end < end):
            raise vrm.error(EFAULT, f"{vma!r}, which a userfaultfd or its file minds, moves alone only")
        vrm.addr = max(vma.start, at)
        at = min(end, vma.end)
        vrm.new_addr = vrm.addr + by
        vrm.old_len = vrm.new_len = at - vrm.addr
        _mremap_to(vrm, _check_prep_vma(vrm, vma))
    return new_addr


def _mremap_to(vrm: _Remap, vma: "Vma") -> int:
    # mremap_to: a place that the caller names, or one that leaves the old place mapped
    mm = vrm.mm
    if vrm.flags & MREMAP_FIXED:
        do_vmi_munmap(vrm.memory, mm, vrm.new_addr, vrm.new_len)
        # It may have cut the area.
        vma = _again(vrm)
    if vrm.new_len < vrm.old_len:
        do_vmi_munmap(vrm.memory, mm, vrm.addr + vrm.new_len, vrm.old_len - vrm.new_len)
        vrm.old_len = vrm.new_len
        vma = _again(vrm)
    if not vrm.flags & MREMAP_FIXED:
        vrm.new_addr = unmapped_area(vrm.memory, mm, vrm.new_len, hint=vrm.new_addr)
    return _move_vma(vrm, vma)


def _again(vrm: _Remap) -> "Vma":
    vma = vrm.mm.vma_lookup(vrm.addr)
    if vma is None:
        raise vrm.error(EFAULT, "nothing is mapped there any more")
    return vma


def _mremap_at(vrm: _Remap, vma: "Vma") -> int:
    # mremap_at: in place, if that is possible
    delta = vrm.new_len - vrm.old_len
    if delta < 0:
        do_vmi_munmap(vrm.memory, vrm.mm, vrm.addr + vrm.new_len, -delta, unlock=True)
    elif delta:
        return _expand_vma(vrm, vma, delta)
    return vrm.addr


def _expand_vma(vrm: _Remap, vma: "Vma", delta: int) -> int:
    mm = vrm.mm
    end = vma.end + delta
    in_place = vma.end - vrm.addr == vrm.old_len and end <= TASK_SIZE
    if in_place and mm.find_vma_intersection(vma.end, end) is None:
        # vma_merge_extend: the new part is merged into the area, and that into what follows, if it can be.
        pgoff = vma.pgoff + ((vma.end - vma.start) >> vrm.memory.geometry.page_shift)
        grown = merge_new(
            vrm.memory, mm, vma.end, end, vma.flags, pgoff, vma.file, extended=vma, anon_shift=vma.anon_shift
        )
        if grown is None:
            raise vrm.error(ENOMEM, f"{vma!r} cannot grow")
        return vrm.addr
    if not vrm.flags & MREMAP_MAYMOVE:
        raise vrm.error(ENOMEM, "no room behind it, and it may not move")
    vrm.new_addr = unmapped_area(vrm.memory, mm, vrm.new_len)
    return _move_vma(vrm, vma)


def _move_vma(vrm: _Remap, vma: "Vma") -> int:
    # move_vma
    memory, mm = vrm.memory, vrm.mm
    vma_start_write(vma)
    copied = copy_vma(memory, vma, vrm.addr, vrm.new_addr, vrm.new_len)
    if copied is None:
        raise vrm.error(ENOMEM, "no memory for the area at the new place")
    new, vma, need_rmap_locks = copied
    # mremap_userfaultfd_prep: a monitor that did not ask for moves loses what moves.
    new.flags &= ~VM_UFFD_MISSING
    done = move_page_tables(memory, vma, new, vrm.addr, vrm.new_addr, vrm.old_len, need_rmap_locks=need_rmap_locks)
    if done < vrm.old_len:
        # copy_vma_and_data: back to where it was, and away with the new area.
        move_page_tables(memory, new, vma, vrm.new_addr, vrm.addr, done, need_rmap_locks=True)
        do_vmi_munmap(memory, mm, vrm.new_addr, vrm.new_len)
        raise vrm.error(ENOMEM, "no memory for its page tables")
    if not vrm.flags & MREMAP_DONTUNMAP:
        # unmap_source_vma
        if vrm.old_len:
            do_vmi_munmap(memory, mm, vrm.addr, vrm.old_len)
    elif new is not vma and vma.start == vrm.addr and vma.end == vrm.addr + vrm.old_len:
        # dontunmap_complete: no page of it is anywhere but at the new place.
        memory.rmap.unlink_anon_vmas(vma)
        vma.anon_shift = 0
        if vma.is_anonymous:
            vma.pgoff = vma.start >> memory.geometry.page_shift
    return vrm.new_addr
