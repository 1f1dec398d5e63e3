"""mm/mmap_lock.c, as of Linux 7.3.4: read one area without the lock of the whole address space.

A reader of an area tries its lock and takes mmap_lock if that fails. A writer, who holds mmap_lock for write, marks
every area before it changes it and waits until its readers are gone; the mark ends with that hold of mmap_lock.
"""

from typing import TYPE_CHECKING

from gpusvm.errors import ModelError

if TYPE_CHECKING:
    from gpusvm.mm.mm_struct import MmStruct
    from gpusvm.mm.vma import Vma

__all__ = ["lock_vma_under_rcu", "vma_end_read", "vma_start_write"]


def vma_start_write(vma: "Vma") -> None:
    """Keep readers away from an area until mmap_lock, which is held for write, is released or downgraded. May sleep."""
    mmap_lock = vma.mm.mmap_lock
    if not mmap_lock.is_write_locked:
        raise ModelError(f"{vma!r} of {vma.mm.name} is written without the mmap_lock held for write")
    if vma.lock_seq == mmap_lock.writes:
        return
    vma.lock_seq = mmap_lock.writes
    lock = vma.lock
    if lock is not None:
        # __vma_start_exclude_readers: those who are in finish, nobody else comes in.
        lock.down_write()
        lock.up_write()


def lock_vma_under_rcu(mm: "MmStruct", address: int) -> "Vma | None":
    """Find the area of an address and lock it for reading; None if there is none or somebody may be changing it."""
    mm.memory.kernel.step()
    vma = mm.vma_lookup(address)
    if vma is None or _write_locked(mm, vma):
        return None
    lock = vma.lock
    if lock is None:
        lock = vma.lock = mm.memory.kernel.rwsem("vma_lock")
    if not lock.down_read_trylock():
        return None
    # A writer may have come before us, changed the area or taken it away. RCU keeps the memory of the area for us and
    # its lock in order (SLAB_TYPESAFE_BY_RCU), but nothing else of it.
    if mm.vma_lookup(address) is not vma or _write_locked(mm, vma):
        lock.up_read()
        return None
    return vma


def vma_end_read(vma: "Vma") -> None:
    """Let an area go that `lock_vma_under_rcu` locked."""
    assert vma.lock is not None, vma
    vma.lock.up_read()


def _write_locked(mm: "MmStruct", vma: "Vma") -> bool:
    mmap_lock = mm.mmap_lock
    return mmap_lock.is_write_locked and vma.lock_seq == mmap_lock.writes
