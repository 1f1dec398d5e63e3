"""Hold what scenarios may do, by what it is about: memory, accesses, processes, devices, other holders, the machine."""

from gpusvm.explore.operations import accesses, devices, holders, machine, memory, processes

__all__ = ["accesses", "devices", "holders", "machine", "memory", "processes"]
