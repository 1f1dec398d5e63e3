"""include/linux/mm_types.h:struct vm_area_struct and mm/vma.c, as of Linux 7.3.4: the areas of an address space."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING

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
    VM_WRITE,
)

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

    __slots__ = (
        "anon_shift",
        "anon_vma",
        "end",
        "file",
        "flags",
        "is_anonymous",
        "lock",
        "lock_seq",
        "mm",
        "pgoff",
        "start",
    )

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
        # How far its anonymous page offset (vma_start_anon_pgoff) is from its place, in pages: 0 until it moves with
        # private copies in it. Only whether areas can be one asks for it.
        self.anon_shift = 0
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
        if same and continues(memory, left, right):
            memory.rmap.anon_vma_link(near.anon_vma, vma)
            return
    memory.rmap.anon_vma_prepare(vma)


def continues(memory: "MemoryManager", left: Vma, right: Vma) -> bool:
    """Tell whether an area goes on where another ends, in the same file or in none (is_mergeable_vma).

    Private copies of a file's pages are found by offsets of their own, which have to go on as well
    (needs_adjacent_anon_pgoff).
    """
    pages = (left.end - left.start) >> memory.geometry.page_shift
    if left.end != right.start or right.pgoff != left.pgoff + pages or left.file is not right.file:
        return False
    return left.file is None or not left.is_cow or left.anon_shift == right.anon_shift


def vma_link(mm: "MmStruct", vma: Vma, *, after: Vma | None = None) -> None:
    """Make an area part of an address space and of its file, there behind the area that it was forked from."""
    if vma.file is None:
        mm.vma_tree.insert(vma)
    else:
        with vma.file.lock.write():
            mm.vma_tree.insert(vma, after=after)


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
