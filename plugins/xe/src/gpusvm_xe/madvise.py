"""drivers/gpu/drm/xe/xe_vm_madvise.c, as of Linux 7.3.4: a program says where memory should be, and who does atomics.

Nothing moves: the GPU's entries go, and the next fault or prefetch goes by the new attributes.
"""

import errno
from typing import TYPE_CHECKING, Final

from gpusvm.drm import DrmPagemap
from gpusvm.errors import KernelError

from gpusvm_xe.attributes import (
    ATOMIC_CPU,
    ATOMIC_UNDEFINED,
    DEFAULT_DEVICE,
    DEFAULT_SYSTEM,
    MIGRATE_ALL_PAGES,
    MIGRATE_ONLY_SYSTEM_PAGES,
    PreferredLocation,
)

if TYPE_CHECKING:
    from gpusvm_xe.vm import XeVm
    from gpusvm_xe.vma import XeVma

__all__ = ["advise", "fd_of"]

_PAGE: Final = 4096
_FIRST_FD: Final = 3


def fd_of(device: int) -> int:
    """Return the file descriptor under which a program has device number `device` of the machine open.

    The model has no files: the numbers are those after standard error, in the order of the devices.
    """
    return _FIRST_FD + device


def advise(vm: "XeVm", start: int, end: int, what: PreferredLocation | int) -> None:
    """Give [start, end) a preferred location, or a number that says who does atomics; see `XeVm.madvise`."""
    if not _is_sane(start, end, what):
        raise KernelError(errno.EINVAL, f"madvise of [{start:#x}, {end:#x}): {what}")
    vm.garbage.work.flush()
    with vm.lock.write():
        vm.assert_usable()
        dpagemap = _open_pagemap(vm, what) if isinstance(what, PreferredLocation) else None
        try:
            vm.vmas.split(start, end)
            lock = vm.gpusvm.notifier_lock
            lock.down_read()
            try:
                for vma in vm.vmas.overlapping(start, end):
                    vma.skip_invalidation = not _set(vm, vma, what, dpagemap)
                _invalidate(vm, start, end)
            finally:
                lock.up_read()
        finally:
            if dpagemap is not None:
                dpagemap.put("madvise")


def _is_sane(start: int, end: int, what: PreferredLocation | int) -> bool:
    """Check what does not depend on the VM (madvise_args_are_sane)."""
    if start % _PAGE or end % _PAGE or end - start < _PAGE:
        return False
    if not isinstance(what, PreferredLocation):
        return ATOMIC_UNDEFINED <= what <= ATOMIC_CPU
    return (
        what.devmem_fd >= DEFAULT_SYSTEM
        and (what.devmem_fd > DEFAULT_DEVICE or what.region_instance == 0)
        and MIGRATE_ALL_PAGES <= what.migration_policy <= MIGRATE_ONLY_SYSTEM_PAGES
    )


def _open_pagemap(vm: "XeVm", location: PreferredLocation) -> DrmPagemap | None:
    """Take a reference, "madvise", on the pagemap of a device and region (xe_madvise_details_init); None for the
    defaults.
    """
    if location.devmem_fd <= DEFAULT_DEVICE:
        return None
    dpagemap = vm.driver.pagemap_from_fd(location.devmem_fd - _FIRST_FD, location.region_instance)
    if dpagemap.pagemap.owner is not vm.peer.owner:
        dpagemap.put("madvise")
        raise KernelError(errno.ENOLINK, f"no path from {vm.driver.spec.name} to {dpagemap!r}")
    return dpagemap


def _set(vm: "XeVm", vma: "XeVma", what: PreferredLocation | int, dpagemap: DrmPagemap | None) -> bool:
    """Set the attribute of one VMA; whether it was another (madvise_preferred_mem_loc, madvise_atomic).

    As written, two regions of one device are taken for the same location.
    """
    attr = vma.attr
    if not isinstance(what, PreferredLocation):
        if attr.atomic_access == what:
            return False
        vma.allow_atomics(what)
        return True
    old = attr.preferred
    if (
        old.devmem_fd == what.devmem_fd
        and old.migration_policy == what.migration_policy
        and (vm.driver.quirks.same_fd == "as_written" or attr.dpagemap is dpagemap)
    ):
        return False
    vma.prefer(what, dpagemap)
    return True


def _invalidate(vm: "XeVm", start: int, end: int) -> None:
    """Zap what the GPU has mapped of the VMAs that changed, and flush it once (xe_vm_invalidate_madvise_range).

    The notifier lock is held for reading, so no invalidation is under way; the pages stay mapped for DMA.
    """
    zapped = 0
    for vma in vm.vmas.overlapping(start, end):
        if not vma.skip_invalidation:
            for range_ in vm.ranges(vma.start, vma.end):
                zapped |= vm.pt.zap(range_)
    if zapped:
        vm.pt.flush(zapped, start, end)
