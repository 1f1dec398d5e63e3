"""mm/vma.c and include/linux/mm_types.h:struct vm_area_struct, as of Linux 7.3.4: areas of an address space, split
and merged.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from errno import EINVAL, ENOMEM
from typing import TYPE_CHECKING

from gpusvm.errors import KernelError
from gpusvm.mm.api import (
    VM_EXEC,
    VM_HUGEPAGE,
    VM_HUGETLB,
    VM_IO,
    VM_MAYWRITE,
    VM_MIXEDMAP,
    VM_NOHUGEPAGE,
    VM_PFNMAP,
    VM_READ,
    VM_SHARED,
    VM_SPECIAL,
    VM_WRITE,
)
from gpusvm.mm.huge_memory import split_huge_pmd_address
from gpusvm.mm.mmap_lock import vma_start_write

if TYPE_CHECKING:
    from gpusvm.kernel import RwSemaphore
    from gpusvm.mm.filemap import AddressSpace
    from gpusvm.mm.memory_manager import MemoryManager
    from gpusvm.mm.mm_struct import MmStruct
    from gpusvm.mm.rmap import AnonVma

VM_ACCESS_FLAGS = VM_READ | VM_WRITE | VM_EXEC
# An area with one of these has vm_ops, whether it maps a file of ours or not.
_DRIVERS = VM_IO | VM_PFNMAP | VM_MIXEDMAP | VM_HUGETLB


class Vma:
    """Be one area: [start, end), flags, the file that it maps, and the page index `pgoff` of its start.

    The index is the file's or, of anonymous memory, begins as `start >> PAGE_SHIFT`; it stays when the area moves, so
    that rmap finds its pages. `is_anonymous` says that it has no vm_ops (vma_is_anonymous): no file, and no driver
    that maps what it likes there.
    """

    __slots__ = ("anon_vma", "end", "file", "flags", "is_anonymous", "lock", "lock_seq", "mm", "pgoff", "start")

    def __init__(
        self, mm: "MmStruct", start: int, end: int, flags: int, pgoff: int, file: "AddressSpace | None" = None
    ) -> None:
        self.mm = mm
        self.start = start
        self.end = end
        self.flags = flags
        self.pgoff = pgoff
        self.file = file
        self.is_anonymous = file is None and not flags & _DRIVERS
        self.anon_vma: AnonVma | None = None
        # Who reads the area without mmap_lock, and in which hold of mmap_lock it was last written (mm/mmap_lock.c);
        # most areas are never read so and have no lock.
        self.lock: RwSemaphore | None = None
        self.lock_seq = 0

    @property
    def is_cow(self) -> bool:
        """Tell whether writes go to private copies (vma_is_cow_mapping)."""
        return self.flags & (VM_SHARED | VM_MAYWRITE) == VM_MAYWRITE

    @property
    def page_prot_writes(self) -> bool:
        """Tell whether vm_page_prot lets a page be written as soon as it is mapped (vma_wants_writenotify is not)."""
        both = VM_SHARED | VM_WRITE
        return self.flags & both == both and (self.file is None or not self.file.page_mkwrite)

    def link_file(self, after: "Vma | None" = None) -> None:
        """Take the file, and let its pages be looked for here (vma_link_file)."""
        if self.file is not None:
            self.file.link(self, after)
        self.mm.memory.contents.add_area(self)

    def unlink_file(self) -> None:
        """Let go of the file (unlink_file_vma, remove_vma)."""
        self.mm.memory.contents.remove_area(self)
        if self.file is not None:
            self.file.unlink(self)

    def covers(self, start: int, end: int) -> bool:
        """Tell whether [start, end) lies inside (range_in_vma)."""
        return self.start <= start and end <= self.end

    def __repr__(self) -> str:
        """Show the area as /proc/pid/maps does."""
        flags = self.flags
        marks = (
            ("r" if flags & VM_READ else "-") + ("w" if flags & VM_WRITE else "-") + ("x" if flags & VM_EXEC else "-")
        )
        return f"Vma({self.start:#x}-{self.end:#x} {marks})"


class VmaTree:
    """Keep the areas of one mm, sorted (the maple tree); `changes` counts how often it was written."""

    __slots__ = ("changes", "starts", "vmas")

    def __init__(self) -> None:
        self.vmas: list[Vma] = []
        self.starts: list[int] = []
        self.changes = 0

    def find(self, address: int) -> Vma | None:
        """Return the first area with `end > address` (find_vma)."""
        at = bisect_right(self.starts, address)
        if at and self.vmas[at - 1].end > address:
            return self.vmas[at - 1]
        return self.vmas[at] if at < len(self.vmas) else None

    def lookup(self, address: int) -> Vma | None:
        """Return the area that contains `address` (vma_lookup)."""
        at = bisect_right(self.starts, address)
        if at and self.vmas[at - 1].end > address:
            return self.vmas[at - 1]
        return None

    def overlapping(self, start: int, end: int) -> list[Vma]:
        """Return the areas that overlap [start, end), ascending."""
        at = bisect_right(self.starts, start)
        if at and self.vmas[at - 1].end > start:
            at -= 1
        return self.vmas[at : bisect_left(self.starts, end)]

    def neighbours(self, start: int, end: int) -> tuple[Vma | None, Vma | None]:
        """Return the area that ends at or before `start` and the one that begins at or behind `end`."""
        before = bisect_left(self.starts, start)
        behind = bisect_left(self.starts, end)
        prev = self.vmas[before - 1] if before else None
        if prev is not None and prev.end > start:
            prev = None
        return prev, self.vmas[behind] if behind < len(self.vmas) else None

    def insert(self, vma: Vma, *, after: Vma | None = None) -> None:
        """Add an area, to its file too."""
        if not vma.is_anonymous:
            vma.link_file(after)
        at = bisect_left(self.starts, vma.start)
        self.starts.insert(at, vma.start)
        self.vmas.insert(at, vma)
        self.changes += 1

    def remove(self, vma: Vma) -> None:
        """Take an area out."""
        at = bisect_left(self.starts, vma.start)
        assert self.vmas[at] is vma, vma
        del self.starts[at]
        del self.vmas[at]
        self.changes += 1

    def set_range(self, vma: Vma, start: int, end: int, page_shift: int) -> None:
        """Move the boundaries of an area that is in the tree; its pages keep their indices (vma_set_range)."""
        at = bisect_left(self.starts, vma.start)
        assert self.vmas[at] is vma, vma
        vma.pgoff += (start - vma.start) >> page_shift
        vma.start = self.starts[at] = start
        vma.end = end
        self.changes += 1


def is_accessible(vma: Vma | None) -> bool:
    """Tell whether there is an area and it allows any access (vma_is_accessible)."""
    return vma is not None and bool(vma.flags & VM_ACCESS_FLAGS)


def thp_allowed(memory: "MemoryManager", vma: Vma, block: int) -> bool:
    """Tell whether a fault may map a whole block (thp_vma_allowable_order, thp_vma_suitable_order)."""
    if not vma.is_anonymous:
        return False  # huge pages of shmem are off, and no file system here has large folios
    thp = memory.thp
    if thp == "never" or vma.flags & VM_NOHUGEPAGE or (thp == "madvise" and not vma.flags & VM_HUGEPAGE):
        return False
    shift = memory.geometry.pmd_shift
    return vma.start <= block << shift and (block + 1) << shift <= vma.end


def anon_vma_prepare(memory: "MemoryManager", vma: Vma) -> None:
    """Give an area its anon_vma, a neighbour's if the two could become one (mm/vma.c:find_mergeable_anon_vma)."""
    if vma.anon_vma is not None:
        return
    prev, following = vma.mm.vma_tree.neighbours(vma.start, vma.end)
    for near, left, right in ((following, vma, following), (prev, prev, vma)):
        if near is None or near.anon_vma is None or left is None or right is None or memory.rmap.is_fork_child(near):
            continue
        # anon_vma_compatible: mprotect of the access bits must not keep two areas apart for good.
        same = (left.flags ^ right.flags) & ~VM_ACCESS_FLAGS == 0
        if same and _continues(memory, left, right):
            memory.rmap.anon_vma_link(near.anon_vma, vma)
            return
    memory.rmap.anon_vma_prepare(vma)


def _continues(memory: "MemoryManager", left: Vma, right: Vma) -> bool:
    # With the same file, or none (is_mergeable_vma).
    pages = (left.end - left.start) >> memory.geometry.page_shift
    return left.end == right.start and right.pgoff == left.pgoff + pages and left.file is right.file


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


def vma_link(mm: "MmStruct", vma: Vma, *, after: Vma | None = None) -> None:
    """Make an area part of an address space and of its file, there behind the area that it was forked from."""
    if vma.file is None:
        mm.vma_tree.insert(vma)
    else:
        with vma.file.lock.write():
            mm.vma_tree.insert(vma, after=after)


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
    memory.rmap.anon_vma_clone(new, vma)
    vma_start_write(vma)
    vma_start_write(new)
    with rmap_locked(vma):
        adjust_trans_huge(memory, vma, address)
        _set_range(memory, vma, start, end)
        mm.vma_tree.insert(new)
    return new


@contextmanager
def _both_locked(first: "RwSemaphore", second: "RwSemaphore") -> Iterator[None]:
    with first.write(), second.write():
        yield


def rmap_locked(vma: Vma) -> AbstractContextManager[None]:
    """Keep rmap walks away from an area whose bounds or entries change; i_mmap_rwsem comes first.

    mm/vma.c:vma_prepare to vma_complete, mm/mremap.c:take_rmap_locks.
    """
    if vma.file is None:
        return nullcontext() if vma.anon_vma is None else vma.anon_vma.lock.write()
    if vma.anon_vma is None:
        return vma.file.lock.write()
    return _both_locked(vma.file.lock, vma.anon_vma.lock)


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
    extended: Vma | None = None,
) -> Vma | None:
    """Grow a neighbour, or join two, to take in [start, end), where nothing is mapped (vma_merge_new_range).

    `copied_from` is the area that mremap moves there, whose pages are to be found at the new place too
    (vma_merge_copied_range); `extended` the one below that mremap makes longer (vma_merge_extend).
    """
    if flags & VM_SPECIAL:
        return None
    left, right = mm.vma_tree.neighbours(start, end)
    new = Vma(mm, start, end, flags, pgoff, file)
    if left is not None and (left.flags != flags or not _continues(memory, left, new)):
        left = None
    source = copied_from or extended
    if left is not None and not _is_mergeable_anon_vma(memory, left, source):
        left = None
    if right is not None and (right.flags != flags or not _continues(memory, new, right)):
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
    if left is not None and right is not None:
        vma_start_write(right)
        _remove_merged(memory, right)
    _set_range(memory, target, min(start, target.start), max(end, target.end))
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
    start = vma.start
    end = new_address + length
    new = merge_new(memory, vma.mm, new_address, end, vma.flags, pgoff, vma.file, copied_from=vma)
    if new is not None:
        if new.start <= start < new.end:
            vma = new
        return new, vma, new.pgoff <= vma.pgoff
    if memory.kernel.inject("alloc.vma"):
        return None
    new = Vma(vma.mm, new_address, end, vma.flags, pgoff, vma.file)
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


def _remove_merged(memory: "MemoryManager", vma: Vma) -> None:
    # vma_complete, for an area that another has taken in
    vma.mm.vma_tree.remove(vma)
    memory.rmap.unlink_vma(vma)


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
    if start == vma.start and prev is not None and prev.flags == flags and _continues(memory, prev, vma):
        if _is_mergeable_anon_vma(memory, prev, vma):
            left = prev
    if end == vma.end and following is not None and following.flags == flags and _continues(memory, vma, following):
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
        _remove_merged(memory, vma)
        _remove_merged(memory, right)
        _set_range(memory, left, left.start, right.end)
        return left
    if left is not None:
        vma_start_write(left)
        _take_over_anon_vma(memory, left, vma)
        if end == vma.end:
            _remove_merged(memory, vma)
            _set_range(memory, left, left.start, end)
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
        _remove_merged(memory, vma)
        _set_range(memory, right, start, right.end)
        return right
    with rmap_locked(right):
        adjust_trans_huge(memory, vma, start)
        _set_range(memory, vma, vma.start, start)
        _set_range(memory, right, start, right.end)
    return right
