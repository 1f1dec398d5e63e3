"""lib/test_hmm.c:dmirror_fops_unlocked_ioctl, as of Linux 7.3.4: the one argument of all commands, in and out."""

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt
from gpusvm.errors import KernelError

from gpusvm_dmirror import uapi
from gpusvm_dmirror.uapi import HmmDmirrorCmd, UserBuffer

if TYPE_CHECKING:
    from gpusvm_dmirror.commands import DmirrorIoctl, Done

__all__ = ["unlocked_ioctl"]

Handler = Callable[["DmirrorIoctl", HmmDmirrorCmd, int], "Done"]
"""Do one command for a file and an argument, over so many pages."""


def unlocked_ioctl(ioctl: "DmirrorIoctl", request: int, cmd: HmmDmirrorCmd | None) -> None:
    """Check the argument, do the command, and copy the counts out if it succeeds. EFAULT EINVAL, or the command's."""
    if cmd is None:
        raise KernelError(errno.EFAULT, "the argument cannot be read")
    if ioctl.mirror.closed:
        raise KernelError(errno.EBADF, "the file is closed")
    start, end = ioctl.span(cmd.addr, cmd.npages)
    handler = _HANDLERS.get(request)
    if handler is None:
        raise KernelError(errno.EINVAL, f"no command has the number {request:#x}")
    done = handler(ioctl, cmd, (end - start) >> ioctl.mirror.memory.geometry.page_shift)
    cmd.cpages, cmd.faults = done.cpages, done.faults


def _copy_to_user(buffer: UserBuffer | None, at: int, data: npt.NDArray[np.int64] | npt.NDArray[np.uint8]) -> None:
    """Copy into a program's buffer from entry `at` on; EFAULT if it is not there or ends before the data does."""
    room = 0 if buffer is None else len(buffer) - at
    if buffer is not None:
        buffer[at : at + len(data)] = data[: max(room, 0)]
    if room < len(data):
        raise KernelError(errno.EFAULT, f"the buffer has no room for {at + len(data)} pages")


def _copy_from_user(buffer: UserBuffer | None, n: int) -> npt.NDArray[np.int64]:
    """Copy the first `n` entries of a program's buffer; EFAULT if they are not there."""
    if buffer is None or len(buffer) < n:
        raise KernelError(errno.EFAULT, f"the buffer does not hold {n} pages")
    return np.array(buffer[:n], np.int64)


def _with_data(command: "Callable[[DmirrorIoctl, int, int], Done]") -> Handler:
    """Return the handler of a command that answers with the contents of pages."""

    def handle(ioctl: "DmirrorIoctl", cmd: HmmDmirrorCmd, npages: int) -> "Done":
        done = command(ioctl, cmd.addr, npages)
        _copy_to_user(cmd.ptr, 0, done.tokens)
        return done

    return handle


def _write(ioctl: "DmirrorIoctl", cmd: HmmDmirrorCmd, npages: int) -> "Done":
    # The data is fetched before the first fault (dmirror_write).
    return ioctl.write(cmd.addr, npages, _copy_from_user(cmd.ptr, npages))


def _snapshot(ioctl: "DmirrorIoctl", cmd: HmmDmirrorCmd, npages: int) -> "Done":
    # A window is copied out before the next is read (dmirror_snapshot).
    def copy_out(at: int, window: bytes) -> None:
        _copy_to_user(cmd.ptr, at, np.frombuffer(window, np.uint8))

    return ioctl.snapshot_to(cmd.addr, npages, copy_out)


_HANDLERS: Final[dict[int, Handler]] = {
    uapi.HMM_DMIRROR_READ: _with_data(lambda ioctl, addr, npages: ioctl.read(addr, npages)),
    uapi.HMM_DMIRROR_WRITE: _write,
    uapi.HMM_DMIRROR_MIGRATE_TO_DEV: _with_data(lambda ioctl, addr, npages: ioctl.migrate_to_dev(addr, npages)),
    uapi.HMM_DMIRROR_MIGRATE_TO_SYS: lambda ioctl, cmd, npages: ioctl.migrate_to_sys(cmd.addr, npages),
    uapi.HMM_DMIRROR_SNAPSHOT: _snapshot,
    uapi.HMM_DMIRROR_EXCLUSIVE: _with_data(lambda ioctl, addr, npages: ioctl.exclusive(addr, npages)),
    uapi.HMM_DMIRROR_CHECK_EXCLUSIVE: lambda ioctl, cmd, npages: ioctl.check_exclusive(cmd.addr, npages),
    uapi.HMM_DMIRROR_RELEASE: lambda ioctl, _cmd, _npages: ioctl.release(),
    uapi.HMM_DMIRROR_FLAGS: lambda ioctl, cmd, _npages: ioctl.flags(cmd.npages),
    uapi.HMM_DMIRROR_READ_UNLOCKED: _with_data(lambda ioctl, addr, npages: ioctl.read_unlocked(addr, npages)),
}
