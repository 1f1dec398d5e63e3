"""mm/vma.c, as of Linux 7.3.4: split areas, and merge what belongs together."""

from errno import EINVAL, ENOMEM
from typing import TYPE_CHECKING

from gpusvm.errors import KernelError
from gpusvm.mm.api import VM_HUGETLB, VM_SPECIAL
from gpusvm.mm.huge_memory import split_huge_pmd_address
from gpusvm.mm.mmap_lock import vma_start_write
from gpusvm.mm.vma import Vma, continues, rmap_locked, vma_link

if TYPE_CHECKING:
    from gpusvm.mm.filemap import AddressSpace
    from gpusvm.mm.memory_manager import MemoryManager
    from gpusvm.mm.mm_struct import MmStruct

__all__ = ["copy_vma", "merge_new", "modify_flags", "split_vma"]


def split_vma(memory: "MemoryManager", vma: Vma, address: int, *, new_below: bool) -> Vma:
    """Cut an area in two at an address inside it and return the new one. mmap_lock held for write. ENOMEM EINVAL.

    A PMD leaf across the new boundary is split; as written, so is one that may not be there.
    """
    if vma.flags & VM_HUGETLB and address % memory.geometry.pmd_size:
        raise KernelError(EINVAL, f"{vma!r} has huge pages, and cannot be cut at {address:#x}")  # hugetlb_vm_op_split
    if memory.kernel.inject("alloc.vma"):
        raise KernelError(ENOMEM, f"no memory to split {vma!r}")
    mm = vma.mm
    shift = memory.geometry.page_shift
    if new_below:
        new = Vma(mm, vma.start, address, vma.flags, vma.pgoff, vma.file)
        start, end = address, vma.end
    else:
        new = Vma(mm, address, vma.end, vma.flags, vma.pgoff + ((address - vma.start) >> shift), vma.file)
        start, end = vma.start, address
    new.anon_shift = vma.anon_shift
    memory.rmap.anon_vma_clone(new, vma)
    vma_start_write(vma)
    vma_start_write(new)
    with rmap_locked(vma):
        adjust_trans_huge(memory, vma, address)
        _set_range(memory, vma, start, end)
        mm.vma_tree.insert(new)
    return new


def _set_range(memory: "MemoryManager", vma: Vma, start: int, end: int) -> None:
    # What vma_prepare and vma_complete do around vma_set_range: a rmap walk visits the area in its new order.
    vma.mm.vma_tree.set_range(vma, start, end, memory.geometry.page_shift)
    memory.rmap.anon_vma_moved(vma)
    if vma.file is not None:
        vma.file.moved(vma)


def adjust_trans_huge(memory: "MemoryManager", vma: Vma, address: int) -> None:
    """Prepare an area, with its old bounds, for a boundary at `address` (mm/huge_memory.c:split_huge_pmd_if_needed)."""
    size = memory.geometry.pmd_size
    block_start = address & -size
    if block_start != address and vma.covers(block_start, block_start + size):
        split_huge_pmd_address(memory, vma, address)


def _anon_vmas_agree(one: Vma, other: Vma) -> bool:
    # can_vma_merge_right, of the areas on both sides
    return one.anon_vma is None or other.anon_vma is None or one.anon_vma is other.anon_vma


def _is_mergeable_anon_vma(memory: "MemoryManager", target: Vma, source: Vma | None) -> bool:
    # is_mergeable_anon_vma; `source` is what is merged or moved, None for a new mapping. What has pages of a parent
    # keeps to itself.
    if target.anon_vma is None:
        return not memory.rmap.is_fork_child(source)
    if source is None or source.anon_vma is None:
        return not memory.rmap.is_fork_child(target)
    return source.anon_vma is target.anon_vma


def merge_new(
    memory: "MemoryManager",
    mm: "MmStruct",
    start: int,
    end: int,
    flags: int,
    pgoff: int,
    file: "AddressSpace | None" = None,
    *,
    copied_from: Vma | None = None,
    anon_shift: int = 0,
    extended: Vma | None = None,
) -> Vma | None:
    """Grow a neighbour, or join two, to take in [start, end), where nothing is mapped (vma_merge_new_range).

    `copied_from` is the area that mremap moves there, whose pages are to be found at the new place too
    (vma_merge_copied_range), with its `anon_shift` there; `extended` the one below that mremap makes longer
    (vma_merge_extend).
    """
    if flags & VM_SPECIAL:
        return None
    left, right = mm.vma_tree.neighbours(start, end)
    new = Vma(mm, start, end, flags, pgoff, file)
    new.anon_shift = anon_shift
    if left is not None and (left.flags != flags or not continues(memory, left, new)):
        left = None
    source = copied_from or extended
    if left is not None and not _is_mergeable_anon_vma(memory, left, source):
        left = None
    if right is not None and (right.flags != flags or not continues(memory, new, right)):
        right = None
    if right is not None and not _is_mergeable_anon_vma(memory, right, source):
        right = None
    if left is not None and right is not None and not _anon_vmas_agree(left, right):
        right = None
    target = right if left is None else left
    if target is None:
        return None
    # vma_expand
    vma_start_write(target)
    if left is not None and right is not None:
        end = right.end
        _take_over_anon_vma(memory, left, right)
    if copied_from is not None:
        _take_over_anon_vma(memory, target, copied_from)
    gone: list[Vma] = []
    if left is not None and right is not None:
        vma_start_write(right)
        gone.append(right)
    _take_in(memory, target, min(start, target.start), max(end, target.end), gone)
    return target


def copy_vma(
    memory: "MemoryManager", vma: Vma, address: int, new_address: int, length: int
) -> tuple[Vma, Vma, bool] | None:
    """Make [new_address, new_address + length) an area for what `vma` maps from `address` on, or merge it into one.

    Returns the area there; `vma`, or what it became if it was merged too; and whether rmap walks may visit the new
    place first, so that they must be locked out of the move. None if there is no memory.
    """
    shift = memory.geometry.page_shift
    pgoff = vma.pgoff + ((address - vma.start) >> shift)
    if vma.is_anonymous and vma.anon_vma is None:
        # Nothing in it has an index yet.
        pgoff = new_address >> shift
    shifted = 0 if vma.anon_vma is None else vma.anon_shift + ((address - new_address) >> shift)
    start = vma.start
    end = new_address + length
    new = merge_new(memory, vma.mm, new_address, end, vma.flags, pgoff, vma.file, copied_from=vma, anon_shift=shifted)
    if new is not None:
        if new.start <= start < new.end:
            vma = new
        return new, vma, new.pgoff <= vma.pgoff
    if memory.kernel.inject("alloc.vma"):
        return None
    new = Vma(vma.mm, new_address, end, vma.flags, pgoff, vma.file)
    new.anon_shift = shifted
    with rmap_locked(vma):
        memory.rmap.anon_vma_clone(new, vma)
    vma_start_write(new)
    vma_link(vma.mm, new)
    return new, vma, False


def _take_over_anon_vma(memory: "MemoryManager", target: Vma, source: Vma) -> None:
    # dup_anon_vma. Whoever looks for the pages of the source sees both areas from now on.
    if target.anon_vma is None and source.anon_vma is not None:
        with rmap_locked(source):
            memory.rmap.anon_vma_clone(target, source)


def _take_in(memory: "MemoryManager", target: Vma, start: int, end: int, gone: list[Vma]) -> None:
    # vma_prepare to vma_complete, for an area that takes others in. A rmap walk that comes between must find their
    # pages, so they are forgotten last.
    with rmap_locked(target):
        for vma in gone:
            vma.mm.vma_tree.remove(vma)
        _set_range(memory, target, start, end)
    for vma in gone:
        memory.rmap.unlink_vma(vma)
        memory.kernel.free(vma)  # its lock stays as it is: SLAB_TYPESAFE_BY_RCU


def modify_flags(memory: "MemoryManager", vma: Vma, start: int, end: int, flags: int) -> Vma:
    """Make [start, end) of an area one with new flags, merging it into a neighbour that has them. ENOMEM.

    mm/vma.c:vma_modify_flags. A merged area has the new flags; otherwise they are set here too, with the area locked.
    """
    merged = _merge_existing(memory, vma, start, end, flags)
    if merged is not None:
        return merged
    if vma.start < start:
        split_vma(memory, vma, start, new_below=True)
    if vma.end > end:
        split_vma(memory, vma, end, new_below=False)
    vma_start_write(vma)
    vma.flags = flags
    return vma


def _merge_existing(memory: "MemoryManager", vma: Vma, start: int, end: int, flags: int) -> Vma | None:
    # vma_merge_existing_range
    mm = vma.mm
    if flags & VM_SPECIAL:
        return None
    tree = mm.vma_tree
    prev, following = tree.neighbours(vma.start, vma.end)
    left: Vma | None = None
    right: Vma | None = None
    if start == vma.start and prev is not None and prev.flags == flags and continues(memory, prev, vma):
        if _is_mergeable_anon_vma(memory, prev, vma):
            left = prev
    if end == vma.end and following is not None and following.flags == flags and continues(memory, vma, following):
        if _is_mergeable_anon_vma(memory, following, vma) and (left is None or _anon_vmas_agree(left, following)):
            right = following
    if left is None and right is None:
        return None
    if memory.kernel.inject("alloc.vma"):
        raise KernelError(ENOMEM, f"no memory to merge {vma!r}")
    vma_start_write(vma)
    if left is not None and right is not None:
        vma_start_write(left)
        vma_start_write(right)
        _take_over_anon_vma(memory, left, vma if right.anon_vma is None else right)
        _take_in(memory, left, left.start, right.end, [vma, right])
        return left
    if left is not None:
        vma_start_write(left)
        _take_over_anon_vma(memory, left, vma)
        if end == vma.end:
            _take_in(memory, left, left.start, end, [vma])
            return left
        # The neighbour below takes the front part: its end and our start move to `end`.
        with rmap_locked(left):
            adjust_trans_huge(memory, vma, end)
            _set_range(memory, vma, end, vma.end)
            _set_range(memory, left, left.start, end)
        return left
    assert right is not None
    vma_start_write(right)
    _take_over_anon_vma(memory, right, vma)
    if start == vma.start:
        _take_in(memory, right, start, right.end, [vma])
        return right
    with rmap_locked(right):
        adjust_trans_huge(memory, vma, start)
        _set_range(memory, vma, vma.start, start)
        _set_range(memory, right, start, right.end)
    return right
