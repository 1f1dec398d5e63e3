"""include/linux/mm_types.h:struct mm_struct and kernel/fork.c, as of Linux 7.3.4: one address space and its two
counts.
"""

from typing import TYPE_CHECKING, Final

from gpusvm.errors import ModelError
from gpusvm.kernel import Work
from gpusvm.mm.pgtable import PageTable
from gpusvm.mm.vma import Vma, VmaTree

if TYPE_CHECKING:
    from gpusvm.mm.filemap import AddressSpace
    from gpusvm.mm.memory_manager import MemoryManager
    from gpusvm.mm.mmu_notifier import NotifierSubscriptions
    from gpusvm.mm.userfaultfd import Userfaultfd

# Indices into `MmStruct.rss`.
MM_ANONPAGES: Final = 0
MM_FILEPAGES: Final = 1
MM_SHMEMPAGES: Final = 2

# `MmStruct.flags`: the OOM reaper has begun to take the memory away, or fork failed to fill it; pages were pinned once.
MMF_UNSTABLE: Final = 1 << 0
# It is done with it, or need not begin.
MMF_OOM_SKIP: Final = 1 << 1
MMF_HAS_PINNED: Final = 1 << 1


class MmStruct:
    """Be one address space: areas, page table, counts, subscriptions.

    `mm_users` counts who uses the memory; at 0 it is torn down. `mm_count` counts who knows the structure; all users
    together hold one.
    """

    __slots__ = (
        "flags",
        "had_prot_none",
        "id",
        "memory",
        "mm_count",
        "mm_users",
        "mmap_lock",
        "name",
        "notifiers",
        "oom_in_a_row",
        "page_table",
        "rss",
        "swapents",
        "userfaultfd",
        "vma_tree",
    )

    def __init__(self, memory: "MemoryManager", name: str, id: int) -> None:
        kernel = memory.kernel
        self.memory = memory
        self.name = name
        self.id = id
        self.mmap_lock = kernel.rwsem("mmap_lock")
        self.page_table = PageTable(kernel, self, memory.geometry)
        self.vma_tree = VmaTree()
        self.rss = [0, 0, 0]
        self.swapents = 0  # MM_SWAPENTS
        self.userfaultfd: Userfaultfd | None = None  # the kernel has one for each area
        self.mm_users = 1
        self.mm_count = 1
        self.flags = 0
        self.oom_in_a_row = 0
        # Some area allowed no access once, though it may have pages: only then do accesses look at areas.
        self.had_prot_none = False
        self.notifiers: NotifierSubscriptions | None = None
        kernel.ledger.get("mm_users", name)

    def __repr__(self) -> str:
        """Show the counts."""
        return f"MmStruct({self.name!r}, users={self.mm_users}, count={self.mm_count})"

    @property
    def vmas(self) -> list[Vma]:
        """Return the areas, ascending."""
        return self.vma_tree.vmas

    def mmget_not_zero(self) -> bool:
        """Take a user reference unless the last is gone."""
        if not self.mm_users:
            return False
        self.mm_users += 1
        self.memory.kernel.ledger.get("mm_users", self.name)
        return True

    def mmget(self) -> None:
        """Take a user reference."""
        if not self.mm_users:
            raise ModelError(f"mmget of {self.name}, whose memory is gone; use mmget_not_zero")
        self.mm_users += 1
        self.memory.kernel.ledger.get("mm_users", self.name)

    def mmput(self) -> None:
        """Drop a user reference; the last tears the address space down and may sleep."""
        if self.mm_users < 1:
            raise ModelError(f"mmput of {self.name} with no users left")
        self.mm_users -= 1
        self.memory.kernel.ledger.put("mm_users", self.name)
        if not self.mm_users:
            self._mmput()

    def mmput_async(self) -> None:
        """Drop a user reference; with the last, a worker tears the address space down: for callers that hold locks
        which that needs.
        """
        if self.mm_users < 1:
            raise ModelError(f"mmput of {self.name} with no users left")
        self.mm_users -= 1
        self.memory.kernel.ledger.put("mm_users", self.name)
        if not self.mm_users:
            self.memory.system_wq.queue(Work(self._mmput, "async_put_work"))

    def _mmput(self) -> None:
        self.memory.exit_mmap(self)
        self.mmdrop()

    def mmgrab(self) -> None:
        """Take a reference on the structure."""
        self.mm_count += 1

    def mmdrop(self) -> None:
        """Drop a reference on the structure; with the last its subscriptions go (__mmdrop)."""
        if self.mm_count < 1:
            raise ModelError(f"mmdrop of {self.name} with no references left")
        self.mm_count -= 1
        if not self.mm_count:
            self.memory.free_mm(self)

    def find_vma(self, addr: int) -> Vma | None:
        """Return the first area with `end > addr`. mmap_lock held."""
        return self.vma_tree.find(addr)

    def vma_lookup(self, addr: int) -> Vma | None:
        """Return the area that contains `addr`. mmap_lock held."""
        return self.vma_tree.lookup(addr)

    def find_vma_intersection(self, start: int, end: int) -> Vma | None:
        """Return the first area that overlaps [start, end). mmap_lock held."""
        vma = self.vma_tree.find(start)
        return vma if vma is not None and vma.start < end else None

    def mmap(
        self,
        addr: int | None,
        length: int,
        prot: int,
        *,
        flags: int = 0,
        file: "AddressSpace | None" = None,
        offset: int = 0,
    ) -> int:
        """Map memory, at `addr` in place of what is there (MAP_FIXED), or where there is room; return where.

        `flags` are VM_ flags besides those that `prot` gives: with VM_SHARED the mapping is shared. `file` from byte
        `offset` on is mapped, or anonymous memory. EINVAL ENOMEM. Takes mmap_lock for write.
        """
        return self.memory.mmap(self, addr, length, prot, flags=flags, file=file, offset=offset)

    def munmap(self, start: int, length: int) -> None:
        """Unmap [start, start + length); no error if nothing is there. EINVAL ENOMEM. Takes mmap_lock for write."""
        self.memory.munmap(self, start, length)

    def mprotect(self, start: int, length: int, prot: int) -> None:
        """Change what is allowed, area by area. EINVAL ENOMEM EACCES. Takes mmap_lock for write."""
        self.memory.mprotect(self, start, length, prot)

    def fork(self, name: str | None = None) -> "MmStruct":
        """Make a child with a copy of everything, in which both share the pages until one writes. ENOMEM.

        Takes mmap_lock for write.
        """
        return self.memory.fork(self, name)

    def mremap(self, old_addr: int, old_len: int, new_len: int, *, flags: int = 0, new_addr: int | None = None) -> int:
        """Resize or move what [old_addr, old_addr + old_len) maps and return where it is then.

        `flags` are MREMAP_ flags. EINVAL EFAULT ENOMEM. Takes mmap_lock for write.
        """
        return self.memory.mremap(self, old_addr, old_len, new_len, flags=flags, new_addr=new_addr)

    def madvise(self, start: int, length: int, advice: int) -> None:
        """Say what is to become of [start, start + length): MADV_DONTNEED and others. EINVAL ENOMEM EAGAIN.

        Over a gap all areas are done, then it is ENOMEM.
        """
        self.memory.madvise(self, start, length, advice)

    def exit(self) -> None:
        """Drop the reference that the process itself holds."""
        self.mmput()
