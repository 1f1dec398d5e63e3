"""lib/test_hmm_uapi.h, as of Linux 7.3.4: the requests of /dev/hmm_dmirror, their one argument, the snapshot's bytes.

A page's contents are one token (`gpusvm.mm.contents`), so a user buffer of `npages` pages is an array of `npages`
tokens; SNAPSHOT's is one of bytes. Buffers lie outside the modelled memory.
"""

from typing import Final

import numpy as np
import numpy.typing as npt
from attrs import define

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
    "PROT_DEV_COHERENT_LOCAL",
    "PROT_DEV_COHERENT_REMOTE",
    "PROT_DEV_PRIVATE_LOCAL",
    "PROT_DEV_PRIVATE_REMOTE",
    "PROT_ERROR",
    "PROT_NONE",
    "PROT_PMD",
    "PROT_PUD",
    "PROT_READ",
    "PROT_WRITE",
    "PROT_ZERO",
    "HmmDmirrorCmd",
    "UserBuffer",
]

UserBuffer = npt.NDArray[np.int64] | npt.NDArray[np.uint8]
"""A program's buffer: a token for each page, or for SNAPSHOT a byte."""

_CMD_BYTES: Final = 40


def _iowr(number: int) -> int:
    """Encode a request that goes both ways (the C macro of include/uapi/asm-generic/ioctl.h)."""
    return 3 << 30 | _CMD_BYTES << 16 | ord("H") << 8 | number


HMM_DMIRROR_READ: Final = _iowr(0x00)
HMM_DMIRROR_WRITE: Final = _iowr(0x01)
HMM_DMIRROR_MIGRATE_TO_DEV: Final = _iowr(0x02)
HMM_DMIRROR_MIGRATE_TO_SYS: Final = _iowr(0x03)
HMM_DMIRROR_SNAPSHOT: Final = _iowr(0x04)
HMM_DMIRROR_EXCLUSIVE: Final = _iowr(0x05)
HMM_DMIRROR_CHECK_EXCLUSIVE: Final = _iowr(0x06)
HMM_DMIRROR_RELEASE: Final = _iowr(0x07)
HMM_DMIRROR_FLAGS: Final = _iowr(0x08)
HMM_DMIRROR_READ_UNLOCKED: Final = _iowr(0x09)

HMM_DMIRROR_FLAG_FAIL_ALLOC: Final = 1 << 0

# The bytes of a snapshot, HMM_DMIRROR_PROT_ in the kernel.
PROT_ERROR: Final = 0xFF
PROT_NONE: Final = 0x00
PROT_READ: Final = 0x01
PROT_WRITE: Final = 0x02
PROT_PMD: Final = 0x04
PROT_PUD: Final = 0x08
PROT_ZERO: Final = 0x10
PROT_DEV_PRIVATE_LOCAL: Final = 0x20
PROT_DEV_PRIVATE_REMOTE: Final = 0x30
PROT_DEV_COHERENT_LOCAL: Final = 0x40
PROT_DEV_COHERENT_REMOTE: Final = 0x50


@define
class HmmDmirrorCmd:
    """Be the argument of every request (struct hmm_dmirror_cmd): `cpages` and `faults` are what it answers.

    `ptr` is the program's buffer; None stands for an address without memory. FLAGS takes its flags from `npages`.
    """

    addr: int
    npages: int
    ptr: UserBuffer | None = None
    cpages: int = 0
    faults: int = 0
