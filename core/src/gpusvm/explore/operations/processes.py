"""Let processes begin, fork, open devices and end."""

from errno import ENODEV, ENOMEM, ENXIO

from gpusvm.explore.operation import operation
from gpusvm.explore.place import Place

__all__ = ["close", "destroy", "exit_", "fork", "oom_kill", "open_", "process"]


@operation(by="machine")
def process(at: Place, name: str) -> None:
    """Start a process with an empty address space; lines about it begin with its name and a dot."""
    at.world.start(name)


@operation(failed=ENOMEM, locked_exclusive=ENOMEM)
def fork(at: Place, child: str) -> None:
    """Make a child, which shares the pages until one of the two writes; the parent's files stay the parent's.

    If it fails, what follows about the child is left out.
    """
    at.world.start(child, at.mm.fork(child))


@operation(failed=ENOMEM, unplugged=ENODEV, unloaded=ENODEV)
def open_(at: Place) -> None:
    """Open the device in the process: a GPU address space that mirrors it. The first process begins with all open."""
    at.world.open(at.actor, at.step.file)


@operation(by="machine", unloaded=ENXIO)
def close(at: Place) -> None:
    """Close the process's file of the device, and with it the GPU's address space.

    Ioctls that are under way keep it open until they end. Accesses of the GPU that wait in it then end with ECANCELED,
    as those of a context that is gone.
    """
    at.world.close(at.actor, at.step.file)


@operation(through_file=True)
def destroy(at: Place) -> None:
    """End the GPU's address space while the file stays open and ioctls go on (DRM_IOCTL_XE_VM_DESTROY)."""
    at.world.destroy(at.space)


@operation()
def exit_(at: Place) -> None:
    """End the process (do_exit): threads that are in an operation finish it, and the last takes the memory down.

    Its files are closed after that. What other tasks had still to do in its name is left out; the GPU goes on until
    its address space is closed.
    """
    at.world.exit(at.actor)


@operation(by="machine")
def oom_kill(at: Place) -> None:
    """Kill the process for want of memory: the reaper takes its pages away while it ends by itself."""
    at.world.oom_kill(at.actor)
