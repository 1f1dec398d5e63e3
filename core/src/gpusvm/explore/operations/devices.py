"""Let things happen to a device, or be done with it through the driver."""

import errno as _errno

from gpusvm.explore.operation import operation
from gpusvm.explore.place import Place

__all__ = ["evict", "idle", "ioctl", "populate", "shrink", "shutdown", "sleep", "unload", "unplug"]


@operation(through_file=True)
def populate(at: Place, first: int, pages: int) -> None:
    """Migrate pages with the driver's own ioctl: the prefetch of VM_BIND, SVM_BIND, MIGRATE_TO_DEV."""
    space = at.space
    if not space.open:
        raise at.refuse(_errno.ECANCELED, "the file is closed")
    at.look(first, at.world.reach(first, pages, file=at.step.file))
    space.vm.populate(at.address(first), at.address(first + pages))


@operation(by="machine")
def evict(at: Place) -> None:
    """Bring everything in the device's memory home, as the driver does it for want of room or before sleep.

    Pages that are busy stay, and that is no finding.
    """
    at.world.evict(at.step.file)


@operation(by="machine")
def unplug(at: Place) -> None:
    """Take the device away while it is in use (drm_dev_unplug, then the driver's remove as far as files allow)."""
    at.world.unplug(at.step.file)


@operation(by="machine", in_use=_errno.EBUSY)
def shutdown(at: Place) -> None:
    """Remove the driver from the device; EBUSY while a file is open. Pages that processes still have come home."""
    at.attempt.in_use = at.world.is_in_use(at.step.file)
    at.world.shutdown(at.step.file)


@operation(by="machine", held=_errno.EAGAIN, no_exit=_errno.EBUSY, unloaded=(_errno.EBUSY, _errno.ENOENT))
def unload(at: Place) -> None:
    """Unload the driver's module (rmmod), which removes it from all its devices.

    EAGAIN while a file is open, and where a `drm_pagemap` has pages; EBUSY if the module has no exit function, or is
    going already, ENOENT if it is gone.
    """
    at.kernel.step()
    at.world.unload()


@operation(by="machine")
def idle(at: Place, milliseconds: int) -> None:
    """Do nothing for a while of virtual time, in which timers come due: a device that nobody uses falls asleep."""
    at.kernel.sleep_ns(milliseconds * 1_000_000 or 1)


@operation(
    by="machine",
    contended=(_errno.EBUSY, _errno.ENOSPC),
    touched=(_errno.EBUSY, _errno.ENOSPC),
    failed=(_errno.EBUSY, _errno.ENOSPC, _errno.ENOMEM, _errno.EIO),
    exited=_errno.EFAULT,
)
def sleep(at: Place, milliseconds: int) -> None:
    """Put the whole system to sleep for a while (pm_suspend): the threads of all processes are frozen meanwhile, and
    the devices are powered off. The errno of a device that refuses.
    """
    at.world.sleep(milliseconds)


@operation(by="machine")
def shrink(at: Place, objects: int) -> None:
    """Have every cache of the kernel free so many unused objects (shrink_slab): memory is short."""
    at.memory.shrinkers.shrink_slab(objects)


@operation(through_file=True)
def ioctl(at: Place, command: str, *numbers: int) -> None:
    """Do an operation of the driver's own, as the plugin offers it for recordings (`gpusvm_operations`).

    ``dev`` and ``slot`` among its numbers are filled in, pages count as everywhere; what it answers is not looked at.
    """
    if len(numbers) > 1:
        at.look(numbers[0], at.world.reach(numbers[0], numbers[1], file=at.step.file))
    at.world.command(at.actor, at.step.file, command, numbers)
