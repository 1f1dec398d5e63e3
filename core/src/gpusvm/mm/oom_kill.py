"""mm/oom_kill.c, as of Linux 7.3.4: the OOM reaper, which takes the memory of a killed process before its end."""

from typing import TYPE_CHECKING, Final

from gpusvm.mm.api import VM_HUGETLB, VM_PFNMAP, VM_SHARED
from gpusvm.mm.mm_struct import MMF_OOM_SKIP, MMF_UNSTABLE
from gpusvm.mm.zap import zap_vma_for_reaping

if TYPE_CHECKING:
    from gpusvm.mm.memory_manager import MemoryManager
    from gpusvm.mm.mm_struct import MmStruct

MAX_OOM_REAP_RETRIES: Final = 10
RETRY_NS: Final = 100_000_000  # schedule_timeout_idle(HZ/10)


def oom_reap(memory: "MemoryManager", mm: "MmStruct") -> bool:
    """Reap an address space, trying again every 100 ms while something is in the way; whether all of it went.

    What is not gone after ten attempts is left to exit_mmap. The caller holds a reference on `mm` (oom_reap_task).
    """
    done = False
    for attempt in range(MAX_OOM_REAP_RETRIES):
        if attempt:
            memory.kernel.sleep_ns(RETRY_NS)
        done = oom_reap_task_mm(memory, mm)
        if done:
            break
    # Reaped, or beyond help: the OOM killer looks for another victim.
    mm.flags |= MMF_OOM_SKIP
    return done


def oom_reap_task_mm(memory: "MemoryManager", mm: "MmStruct") -> bool:
    """Reap an address space once; False if a writer holds its mmap_lock or somebody could not let go of an area."""
    if not mm.mmap_lock.down_read_trylock():
        return False
    try:
        # exit_mmap takes what is left itself.
        return bool(mm.flags & MMF_OOM_SKIP) or _reap(memory, mm)
    finally:
        mm.mmap_lock.up_read()


def _reap(memory: "MemoryManager", mm: "MmStruct") -> bool:
    # __oom_reap_task_mm: the last area first, as exit_mmap goes the other way. From now on no fault may bring anonymous
    # memory in, and what a fault finds may be gone.
    mm.flags |= MMF_UNSTABLE
    done = True
    for vma in reversed(mm.vmas):
        if vma.flags & (VM_HUGETLB | VM_PFNMAP):
            continue
        if vma.is_anonymous or not vma.flags & VM_SHARED:
            done = zap_vma_for_reaping(memory, vma) and done
    return done
