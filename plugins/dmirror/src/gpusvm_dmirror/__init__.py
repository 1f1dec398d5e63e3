"""The driver dmirror: the kernel's own HMM test device, a backing system page behind each device page.

`HmmDmirror` is its module with all four devices, whose files take the ioctls of lib/test_hmm.c.
"""

from gpusvm_dmirror.commands import DmirrorIoctl, Done
from gpusvm_dmirror.mirror import Dmirror
from gpusvm_dmirror.module import HmmDmirror
from gpusvm_dmirror.uapi import (
    HMM_DMIRROR_CHECK_EXCLUSIVE,
    HMM_DMIRROR_EXCLUSIVE,
    HMM_DMIRROR_FLAG_FAIL_ALLOC,
    HMM_DMIRROR_FLAGS,
    HMM_DMIRROR_MIGRATE_TO_DEV,
    HMM_DMIRROR_MIGRATE_TO_SYS,
    HMM_DMIRROR_READ,
    HMM_DMIRROR_READ_UNLOCKED,
    HMM_DMIRROR_RELEASE,
    HMM_DMIRROR_SNAPSHOT,
    HMM_DMIRROR_WRITE,
    HmmDmirrorCmd,
)

__all__ = [
    "HMM_DMIRROR_CHECK_EXCLUSIVE",
    "HMM_DMIRROR_EXCLUSIVE",
    "HMM_DMIRROR_FLAGS",
    "HMM_DMIRROR_FLAG_FAIL_ALLOC",
    "HMM_DMIRROR_MIGRATE_TO_DEV",
    "HMM_DMIRROR_MIGRATE_TO_SYS",
    "HMM_DMIRROR_READ",
    "HMM_DMIRROR_READ_UNLOCKED",
    "HMM_DMIRROR_RELEASE",
    "HMM_DMIRROR_SNAPSHOT",
    "HMM_DMIRROR_WRITE",
    "Dmirror",
    "DmirrorIoctl",
    "Done",
    "HmmDmirror",
    "HmmDmirrorCmd",
]
