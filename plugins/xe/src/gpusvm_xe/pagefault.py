"""drivers/gpu/drm/xe/xe_pagefault.c and xe_vm.c, as of Linux 7.3.4: what a fault says besides its address, how many
of them a queue holds, and what is kept of one that failed.
"""

import errno
from typing import TYPE_CHECKING, Final

from attrs import frozen
from gpusvm.driver import ACCESS_PREFETCH, ACCESS_READ
from gpusvm.errors import KernelError

if TYPE_CHECKING:
    from gpusvm.kernel import Kernel

__all__ = [
    "ACCESS_TYPE_MASK",
    "FAULT_NACK",
    "FAULT_PREFETCH",
    "MAX_FAULTS_SAVED_PER_VM",
    "PROPERTY_FAULTS",
    "SQUASHED",
    "XE_VM_FAULT_BYTES",
    "SavedFaults",
    "XeVmFault",
    "access_type",
    "is_prefetch",
    "queue_capacity",
]

# The `access` of a fault has the two bytes access_type and fault_type_level of struct xe_pagefault, in this order. What
# programs raise is the type of the access alone: level 0 of a page that is not present.
ACCESS_TYPE_MASK: Final = 0b11
FAULT_PREFETCH: Final = 1 << 7
FAULT_NACK: Final = 0xFF << 8
_LEVEL_SHIFT: Final = 8
_TYPE_SHIFT: Final = 12

SQUASHED: Final = -1
"""The `inst` of a queued fault whose GT was reset (gt = NULL): it is passed over and never answered."""

MAX_FAULTS_SAVED_PER_VM: Final = 50
PROPERTY_FAULTS: Final = 0
XE_VM_FAULT_BYTES: Final = 48
_SZ_4K: Final = 4096

_ENTRY_BYTES: Final = 64
_PER_EU: Final = 8
_HW_ENGINES: Final = 27


def queue_capacity(eus: int) -> int:
    """Return how many faults a queue holds on a device of so many EUs (xe_pagefault_queue_init).

    Its size is a power of two, for eight faults of each EU and each engine; one entry always stays free, so that a full
    queue differs from an empty one (xe_pagefault_queue_full).
    """
    size = (eus + _HW_ENGINES) * _ENTRY_BYTES * _PER_EU
    return (1 << (size - 1).bit_length()) // _ENTRY_BYTES - 1


def access_type(access: int) -> int:
    """Return ACCESS_READ, _WRITE or _ATOMIC of what a fault says; a prefetch that says no more is one of a read."""
    kind = access & ACCESS_TYPE_MASK
    return ACCESS_READ if kind == ACCESS_PREFETCH else kind


def is_prefetch(access: int) -> bool:
    """Tell whether nobody waits for what the GPU asked for."""
    return bool(access & FAULT_PREFETCH) or access == ACCESS_PREFETCH


@frozen(kw_only=True)
class XeVmFault:
    """Be what a program learns of a fault that failed (struct xe_vm_fault); that it was a prefetch is not said."""

    address: int
    access_type: int
    fault_type: int
    fault_level: int
    address_precision: int = _SZ_4K


class SavedFaults:
    """Keep the faults of one VM that failed, the first 50 of them (vm->faults). Injection site ``xe.save_fault``."""

    def __init__(self, kernel: "Kernel") -> None:
        self.kernel = kernel
        self.lock = kernel.spinlock("xe_vm_faults.lock")
        self._entries: list[XeVmFault] = []

    def add(self, addr: int, access: int) -> None:
        """Note a fault down, silently not if the list is full (xe_vm_add_fault_entry_pf)."""
        if self.kernel.inject("xe.save_fault"):
            self.kernel.tracer.emit("drm_warn", "Could not allocate memory for fault!")
            return
        with self.lock:
            if len(self._entries) < MAX_FAULTS_SAVED_PER_VM:
                self._entries.append(
                    XeVmFault(
                        address=addr,
                        access_type=access_type(access),
                        fault_type=access >> _TYPE_SHIFT & 0xF,
                        fault_level=access >> _LEVEL_SHIFT & 0xF,
                    )
                )

    def size_bytes(self) -> int:
        """Return what a program is told that asks with size 0."""
        with self.lock:
            return len(self._entries) * XE_VM_FAULT_BYTES

    def first(self, size_bytes: int) -> list[XeVmFault]:
        """Return as many as fit, the oldest first; EINVAL for more than there are, and for a part of one
        (xe_vm_get_property_helper, fill_faults).
        """
        if size_bytes > self.size_bytes() or size_bytes % XE_VM_FAULT_BYTES:
            raise KernelError(errno.EINVAL, f"{size_bytes} bytes of {self.size_bytes()}")
        with self.lock:
            return self._entries[: size_bytes // XE_VM_FAULT_BYTES]
