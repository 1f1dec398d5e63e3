"""lib/test_hmm.c, as of Linux 7.3.4: the commands of a dmirror file as methods, with page contents as tokens."""

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt
from attrs import field, frozen
from gpusvm.errors import KernelError, ModelError
from gpusvm.gpu import ATOMIC, READ, WRITE
from gpusvm.mm.api import Pfns

from gpusvm_dmirror.exclusive import make_exclusive
from gpusvm_dmirror.fops import unlocked_ioctl
from gpusvm_dmirror.migrate import migrate_to_device, migrate_to_system
from gpusvm_dmirror.revoked import migration_window
from gpusvm_dmirror.snapshot import snapshot

if TYPE_CHECKING:
    from gpusvm_dmirror.mirror import Dmirror
    from gpusvm_dmirror.uapi import HmmDmirrorCmd

__all__ = ["DmirrorIoctl", "Done"]

Tokens = npt.NDArray[np.int64]

_U64: Final = (1 << 64) - 1


def _no_tokens() -> Tokens:
    return np.zeros(0, np.int64)


@frozen(kw_only=True)
class Done:
    """Say what a successful ioctl copies back: the pages done, the fault rounds, and what the pages hold."""

    cpages: int
    faults: int = 0
    tokens: Tokens = field(factory=_no_tokens, eq=False)


class DmirrorIoctl:
    """Take the ioctls of one file. An error is a KernelError; what was done before it stays done.

    Each command is a method, and the object itself is called as ioctl() is. EINVAL: an `addr` that is not page aligned,
    or a range that is empty or reaches past the end of the 64-bit address space; EBADF: the file is closed. Contents
    are tokens (`gpusvm.mm.contents`): what is read is checked.
    """

    def __init__(self, mirror: "Dmirror") -> None:
        self.mirror = mirror

    def __call__(self, request: int, cmd: "HmmDmirrorCmd | None") -> None:
        """Do as ioctl(fd, request, &cmd) does; `cmd` None is an argument that cannot be read (EFAULT).

        `cmd.cpages` and `.faults`, like the buffer, are filled only by a command that succeeds (SNAPSHOT fills its
        buffer a window at a time). EINVAL: an unknown request as well.
        """
        unlocked_ioctl(self, request, cmd)

    # ---- the commands ----------------------------------------------------------------------------------------------

    def read(self, addr: int, npages: int) -> Done:
        """READ: read pages through the mirror table, faulting in what it lacks. EFAULT EBUSY ENOMEM EINVAL."""
        return self._access(addr, npages)

    def read_unlocked(self, addr: int, npages: int) -> Done:
        """READ_UNLOCKED: do so by the call that takes mmap_lock itself and may drop it, for however long it takes.

        EFAULT ENOMEM EINVAL EINTR.
        """
        return self._access(addr, npages, unlocked=True)

    def write(self, addr: int, npages: int, tokens: Tokens | None = None) -> Done:
        """WRITE: write pages through entries that have the tag WRITE. EPERM as well: the VMA is not writable.

        `tokens` are what the pages are to hold; without them every page gets a new one.
        """
        if tokens is None:
            tokens = self.mirror.memory.contents.new_tokens(npages)
        return self._access(addr, npages, tokens)

    def migrate_to_dev(self, addr: int, npages: int) -> Done:
        """MIGRATE_TO_DEV: move pages, then read all of them back. EINVAL; ENOENT: one is not in the mirror table."""
        with self.mirror.in_call():
            start, end = self.span(addr, npages)
            mirror = self.mirror
            with _MmUser(mirror, errno.EINVAL), migration_window(mirror, start, end) as window:
                mirror.mm.mmap_lock.down_read()
                try:
                    migrate_to_device(mirror.device, mirror, start, end, window=window)
                finally:
                    mirror.mm.mmap_lock.up_read()
            return self._read_back(start, end)

    def migrate_to_sys(self, addr: int, npages: int) -> Done:
        """MIGRATE_TO_SYS: move the device's pages home; `cpages` counts a PMD folio once (Q15). EINVAL ENOMEM."""
        with self.mirror.in_call():
            start, end = self.span(addr, npages)
            mirror = self.mirror
            with _MmUser(mirror, errno.EINVAL):
                mirror.mm.mmap_lock.down_read()
                try:
                    moved = migrate_to_system(mirror.device, mirror, start, end)
                finally:
                    mirror.mm.mmap_lock.up_read()
            return Done(cpages=moved)

    def snapshot(self, addr: int, npages: int) -> bytes:
        """SNAPSHOT: say how the process maps each page, one byte each, without faulting. EINVAL EBUSY EFAULT."""
        windows: list[bytes] = []
        self.snapshot_to(addr, npages, lambda _, window: windows.append(window))
        return b"".join(windows)

    def snapshot_to(self, addr: int, npages: int, copy_out: Callable[[int, bytes], None]) -> Done:
        """Do so window by window, each handed out, with the number of its first page, before the next is read."""
        with self.mirror.in_call():
            start, end = self.span(addr, npages)
            done = 0
            with _MmUser(self.mirror, errno.EINVAL):
                for window in snapshot(self.mirror, start, end):
                    copy_out(done, window)
                    done += len(window)
            return Done(cpages=done)

    def exclusive(self, addr: int, npages: int) -> Done:
        """EXCLUSIVE: make pages device-exclusive one by one, then read them back.

        EINVAL; EFAULT: no VMA, or not writable; EOPNOTSUPP: not anonymous; ENOENT: revoked meanwhile.
        """
        with self.mirror.in_call():
            start, end = self.span(addr, npages)
            with _MmUser(self.mirror, errno.EINVAL):
                make_exclusive(self.mirror, start, end)
            return self._read_back(start, end)

    def check_exclusive(self, addr: int, npages: int) -> Done:
        """CHECK_EXCLUSIVE: EPERM if any page of the range is still exclusive."""
        with self.mirror.in_call():
            start, end = self.span(addr, npages)
            shift = self.mirror.memory.geometry.page_shift
            with self.mirror.mutex:
                if bool((self.mirror.page_table.perms(start >> shift, end >> shift) & ATOMIC).any()):
                    raise KernelError(errno.EPERM, "a page is still device-exclusive")
            return Done(cpages=0)

    def release(self) -> Done:
        """RELEASE: evacuate the device, whosever pages it has, and give back all its chunks. Sleeps."""
        with self.mirror.in_call():
            self.mirror.device.release()
            return Done(cpages=0)

    def flags(self, flags: int) -> Done:
        """Set the flags of the file (FLAGS). HMM_DMIRROR_FLAG_FAIL_ALLOC lets the next allocation for it fail, once."""
        with self.mirror.in_call():
            self.mirror.flags = flags
            return Done(cpages=0)

    # ---- what they share -------------------------------------------------------------------------------------------

    def span(self, addr: int, npages: int) -> tuple[int, int]:
        """Check what every ioctl checks of a range (dmirror_fops_unlocked_ioctl); all in 64 bits."""
        geometry = self.mirror.memory.geometry
        size = npages << geometry.page_shift & _U64
        if addr % geometry.page_size or addr >= (addr + size & _U64):
            raise KernelError(errno.EINVAL, f"{npages} pages at {addr:#x}")
        return addr, addr + size

    def _access(self, addr: int, npages: int, tokens: Tokens | None = None, *, unlocked: bool = False) -> Done:
        with self.mirror.in_call():
            start, end = self.span(addr, npages)
            mirror = self.mirror
            shift = mirror.memory.geometry.page_shift
            npages = (end - start) >> shift
            self._bounce()
            found: list[Tokens] = []
            done = faults = 0
            while True:
                with mirror.mutex:
                    some = self._through_table(start, end, None if tokens is None else tokens[done:])
                found.append(some)
                done += len(some)
                if done == npages:
                    return Done(cpages=done, faults=faults, tokens=np.concatenate(found))
                start = end - ((npages - done) << shift)
                mirror.fault(start, end, write=tokens is not None, unlocked=unlocked)
                faults += 1

    def _read_back(self, start: int, end: int) -> Done:
        self._bounce()
        with self.mirror.mutex:
            tokens = self._through_table(start, end)
        if len(tokens) << self.mirror.memory.geometry.page_shift < end - start:
            raise KernelError(errno.ENOENT, "a page of the range is not in the mirror table")
        return Done(cpages=len(tokens), tokens=tokens)

    def _bounce(self) -> None:
        """Allocate the buffer that data passes through (dmirror_bounce_init); ENOMEM."""
        if self.mirror.device.kernel.inject("dmirror.bounce"):
            raise KernelError(errno.ENOMEM, "no memory for the bounce buffer")

    def _through_table(self, start: int, end: int, tokens: Tokens | None = None) -> Tokens:
        """Read, or write `tokens`, until the first page that the mirror table lacks (dmirror_do_read, _do_write)."""
        table = self.mirror.page_table
        shift = self.mirror.memory.geometry.page_shift
        first, last = start >> shift, end >> shift
        perms = table.perms(first, last)
        usable = perms != 0 if tokens is None else perms & (WRITE | ATOMIC) == WRITE
        done = len(usable) if usable.all() else int(usable.argmin())
        if not done:
            return _no_tokens()
        pfns = table.pfns(first, first + done)
        if self.mirror.device.quirks.device_page == "as_written":
            self._check_addressable(first, pfns, "dmirror_do_read" if tokens is None else "dmirror_do_write")
        if tokens is not None:
            table.store(first, tokens[:done])
            return tokens[:done]
        table.access(np.arange(first, first + done), np.full(done, READ, np.uint8))
        contents = table.memory.contents
        return np.array([contents.token(pfn) for pfn in pfns.tolist()], np.int64)

    def _check_addressable(self, first: int, pfns: Pfns, where: str) -> None:
        """Stop where the kernel oopses: the CPU copies from or to memory that only the device has."""
        private = self.mirror.memory.device_private_mask(pfns)
        if private.any():
            at = int(private.argmax())
            raise ModelError(
                f"{where} would oops: the mirror table has device page {int(pfns[at]):#x} itself for page "
                f"{first + at:#x}, put there by dmirror_do_fault (quirk device_page)"
            )


class _MmUser:
    """Hold an address-space reference for the time of one ioctl; `gone` is the errno when there is none to be had."""

    def __init__(self, mirror: "Dmirror", gone: int) -> None:
        self.mm = mirror.mm
        self.gone = gone

    def __enter__(self) -> None:
        if not self.mm.mmget_not_zero():
            raise KernelError(self.gone, f"{self.mm.name} is gone")

    def __exit__(self, *_: object) -> None:
        self.mm.mmput()
