"""lib/test_hmm.c, as of Linux 7.3.4: take pages from the CPUs for the device's atomics (dmirror_exclusive)."""

from typing import TYPE_CHECKING

from gpusvm.gpu import ATOMIC, READ, REMOTE, WRITE

from gpusvm_dmirror.revoked import open_revoked

if TYPE_CHECKING:
    from gpusvm.driver import NotifierWindow

    from gpusvm_dmirror.mirror import Dmirror

__all__ = ["make_exclusive"]


def make_exclusive(mirror: "Dmirror", start: int, end: int) -> None:
    """Make the pages of [start, end) device-exclusive and put them into the mirror table, page by page.

    As written nobody asks whether a page was revoked between the two (quirk exclusive_seq); fixed, a notifier for the
    time of the call says so, as nouveau's does. EFAULT: no VMA, or not writable; EOPNOTSUPP: not anonymous; ENOMEM.
    """
    memory = mirror.memory
    window: NotifierWindow | None = None
    if mirror.device.quirks.exclusive_seq == "fixed":
        window = open_revoked(mirror, start, end)
    try:
        lock = mirror.mm.mmap_lock
        lock.down_read()
        try:
            for addr in range(start, end, memory.geometry.page_size):
                while not _take(mirror, addr, window):
                    pass
        finally:
            lock.up_read()
    finally:
        if window is not None:
            window.close()


def _take(mirror: "Dmirror", addr: int, window: "NotifierWindow | None") -> bool:
    """Take one page; whether it is in the mirror table."""
    memory = mirror.memory
    if window is not None:
        window.begin()
    # Without an owner: the mirror sees its own EXCLUSIVE event, and stores the entry after it.
    pfn = memory.make_device_exclusive(mirror.mm, addr, None)

    def store() -> None:  # dmirror_atomic_map
        mirror.pt_room()
        mirror.page_table.map_run(addr >> memory.geometry.page_shift, pfn, 1, READ | WRITE | ATOMIC | REMOTE)

    try:
        if window is not None and not window.commit(store):
            return False
        if window is None:
            with mirror.mutex:
                store()
    finally:
        head = memory.folio_head(pfn)
        memory.folio_unlock(head)
        memory.folio_put(head)
    memory.kernel.charge("bind_per_pte")
    return True
