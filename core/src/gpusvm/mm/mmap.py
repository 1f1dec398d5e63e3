"""mm/mmap.c and mm/vma.c, as of Linux 7.3.4: mmap, munmap, and the end of an address space."""

from errno import EINVAL, ENOMEM
from typing import TYPE_CHECKING, Final

from gpusvm.errors import KernelError, ModelError
from gpusvm.mm.api import (
    PROT_EXEC,
    PROT_READ,
    PROT_WRITE,
    VM_DONTEXPAND,
    VM_EXEC,
    VM_HUGETLB,
    VM_MAYEXEC,
    VM_MAYREAD,
    VM_MAYSHARE,
    VM_MAYWRITE,
    VM_READ,
    VM_SHARED,
    VM_SPECIAL,
    VM_WRITE,
)
from gpusvm.mm.hugetlb import HugetlbFile
from gpusvm.mm.mm_struct import MMF_OOM_SKIP
from gpusvm.mm.mmap_lock import vma_start_write
from gpusvm.mm.mmu_notifier import ULONG_MAX, mmu_notifier_release
from gpusvm.mm.observer import tell
from gpusvm.mm.shmem import shmem_file_setup
from gpusvm.mm.vma import Vma, vma_link
from gpusvm.mm.vma_merge import merge_new, split_vma
from gpusvm.mm.zap import free_pgtables, unmap_vmas

if TYPE_CHECKING:
    from gpusvm.mm.filemap import AddressSpace
    from gpusvm.mm.memory_manager import MemoryManager
    from gpusvm.mm.mm_struct import MmStruct

TASK_SIZE: Final = 1 << 47
MMAP_BASE: Final = 0x7F00_0000_0000


def prot_to_vm_flags(prot: int) -> int:
    """Translate PROT_ bits (calc_vm_prot_bits)."""
    return (
        (VM_READ if prot & PROT_READ else 0)
        | (VM_WRITE if prot & PROT_WRITE else 0)
        | (VM_EXEC if prot & PROT_EXEC else 0)
    )


def mmap(
    memory: "MemoryManager",
    mm: "MmStruct",
    addr: int | None,
    length: int,
    prot: int,
    *,
    flags: int = 0,
    file: "AddressSpace | None" = None,
    offset: int = 0,
) -> int:
    """Map private or shared memory, anonymous or of a file, and return its address. EINVAL ENOMEM.

    Shared anonymous memory is a shmem object of its own. VM_PFNMAP, VM_MIXEDMAP and VM_IO make an area of a driver's,
    empty as yet. VM_HUGETLB maps huge pages, of which there must be enough in the pool (`set_nr_hugepages`); a length
    is rounded up to them.
    """
    page = memory.geometry.page_size
    if flags & VM_HUGETLB:
        if file is not None:
            raise ModelError(f"mmap of {file} with VM_HUGETLB: a file's pages are what they are")
        page = memory.geometry.pmd_size
        flags |= VM_DONTEXPAND
    if offset % page:
        raise KernelError(EINVAL, f"mmap of {file} from byte {offset}")
    if length <= 0:
        raise KernelError(EINVAL, f"mmap of {length} bytes")
    length = -(-length // page) * page
    with mm.mmap_lock.write():
        if addr is None:
            addr = unmapped_area(memory, mm, length)
        if addr % page:
            raise KernelError(EINVAL, f"mmap at {addr:#x}, which is not a multiple of {page}")
        end = addr + length
        if addr < 0 or end > TASK_SIZE:
            raise KernelError(ENOMEM, f"mmap of {addr:#x}-{end:#x}, outside the address space")
        vm_flags = prot_to_vm_flags(prot) | VM_MAYREAD | VM_MAYWRITE | VM_MAYEXEC | flags
        if flags & VM_SHARED:
            vm_flags |= VM_MAYSHARE
        gone = _gather(memory, mm, addr, end)
        if gone:
            # The old areas are still in the tree when the callbacks run (__mmap_setup:vms_clean_up_area).
            floor, ceiling = _limits(mm, addr, end)
            unmap_vmas(memory, mm, gone, addr, end)
            free_pgtables(memory, mm, gone, floor, ceiling)
            _detach(memory, mm, gone)
        _map_region(memory, mm, addr, end, vm_flags, file, offset >> memory.geometry.page_shift)
    return addr


def _map_region(
    memory: "MemoryManager", mm: "MmStruct", addr: int, end: int, flags: int, file: "AddressSpace | None", pgoff: int
) -> None:
    # __mmap_region: an area of its own, or a neighbour grows.
    shift = memory.geometry.page_shift
    own: AddressSpace | None = None
    if file is None:
        pgoff = 0  # of anonymous memory an offset means nothing
        if flags & VM_HUGETLB:
            owner = None if flags & VM_SHARED else mm
            file = own = HugetlbFile(memory, (end - addr) >> shift, owner)  # hugetlb_file_setup
        elif flags & VM_SHARED and not flags & VM_SPECIAL:
            file = own = shmem_file_setup(memory, "dev/zero", (end - addr) >> shift)  # shmem_zero_setup
        else:
            pgoff = addr >> shift
    try:
        if merge_new(memory, mm, addr, end, flags, pgoff, file) is None:
            if memory.kernel.inject("alloc.vma"):
                raise KernelError(ENOMEM, f"no memory for the area {addr:#x}-{end:#x}")
            vma = Vma(mm, addr, end, flags, pgoff, file)
            vma_start_write(vma)
            vma_link(mm, vma)
    finally:
        if own is not None:
            own.put()  # the area has it now


def unmapped_area(memory: "MemoryManager", mm: "MmStruct", length: int, *, hint: int = 0) -> int:
    """Return where there is room for a new area, at `hint` if there is some, mmap_lock held. ENOMEM.

    thp_get_unmapped_area: what can hold a whole block begins at one. Bottom up, so that addresses are easy to read.
    """
    if hint and hint + length <= TASK_SIZE and mm.find_vma_intersection(hint, hint + length) is None:
        return hint
    align = memory.geometry.pmd_size if length >= memory.geometry.pmd_size else memory.geometry.page_size
    addr = MMAP_BASE
    for vma in mm.vmas:
        if vma.end <= addr:
            continue
        if addr + length <= vma.start:
            break
        addr = -(-vma.end // align) * align
    if addr + length > TASK_SIZE:
        raise KernelError(ENOMEM, f"no room for {length} bytes")
    return addr


def munmap(memory: "MemoryManager", mm: "MmStruct", start: int, length: int) -> None:
    """Unmap [start, start + length): detach the areas, then let readers in, then tell and zap. EINVAL ENOMEM."""
    with mm.mmap_lock.write():
        do_vmi_munmap(memory, mm, start, length, unlock=True)


def do_vmi_munmap(memory: "MemoryManager", mm: "MmStruct", start: int, length: int, *, unlock: bool = False) -> None:
    """Unmap [start, start + length), mmap_lock held for write; `unlock` lets readers in before the zap. EINVAL ENOMEM.

    What can fail comes first: after an error the areas may be cut, but all are there.
    """
    page = memory.geometry.page_size
    if start % page or length <= 0 or start + length > TASK_SIZE:
        raise KernelError(EINVAL, f"munmap of {length} bytes at {start:#x}")
    end = start + -(-length // page) * page
    gone = _gather(memory, mm, start, end)
    if not gone:
        return
    floor, ceiling = _limits(mm, start, end)
    _remove(mm, gone)
    # vms_complete_munmap_vmas
    if unlock:
        mm.mmap_lock.downgrade_write()
    unmap_vmas(memory, mm, gone, start, end)
    free_pgtables(memory, mm, gone, floor, ceiling)
    _unlink(memory, gone)


def _gather(memory: "MemoryManager", mm: "MmStruct", start: int, end: int) -> list[Vma]:
    # vms_gather_munmap_vmas: cut the areas at both ends of the range, and return those inside.
    tree = mm.vma_tree
    hit = tree.overlapping(start, end)
    if not hit:
        return []
    if hit[0].start < start:
        split_vma(memory, hit[0], start, new_below=True)
    if hit[-1].end > end:
        split_vma(memory, hit[-1], end, new_below=False)
    gone = tree.overlapping(start, end)
    for vma in gone:
        vma_start_write(vma)
    return gone


def _limits(mm: "MmStruct", start: int, end: int) -> tuple[int, int]:
    prev, following = mm.vma_tree.neighbours(start, end)
    return prev.end if prev is not None else 0, following.start if following is not None else 0


def _remove(mm: "MmStruct", vmas: list[Vma]) -> None:
    for vma in vmas:
        mm.vma_tree.remove(vma)


def _unlink(memory: "MemoryManager", vmas: list[Vma]) -> None:
    for vma in vmas:
        memory.rmap.unlink_vma(vma)
        memory.kernel.free(vma)  # its lock stays as it is: SLAB_TYPESAFE_BY_RCU


def _detach(memory: "MemoryManager", mm: "MmStruct", vmas: list[Vma]) -> None:
    _remove(mm, vmas)
    _unlink(memory, vmas)


def exit_mmap(memory: "MemoryManager", mm: "MmStruct") -> None:
    """Take an address space down, when its last user has gone: RELEASE, then UNMAP over everything."""
    mmu_notifier_release(memory, mm)
    vmas = list(mm.vmas)
    if not vmas:
        return
    with mm.mmap_lock.read():
        unmap_vmas(memory, mm, vmas, 0, ULONG_MAX)
    mm.flags |= MMF_OOM_SKIP
    with mm.mmap_lock.write():
        free_pgtables(memory, mm, vmas, 0, 0)
        _detach(memory, mm, vmas)
    if memory.kernel.observer is not None:
        tell(memory.kernel.observer, "operation_ends", "exit_mmap", mm)
    if any(mm.rss):
        raise ModelError(f"{mm.name} has exited with rss {mm.rss}, which should be [0, 0, 0]")
