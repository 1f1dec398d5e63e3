"""Hold what scenarios may do, by what it is about: memory, accesses, processes, devices, other holders of pages."""

from gpusvm.explore.operations import accesses, devices, holders, memory, processes

__all__ = ["accesses", "devices", "holders", "memory", "processes"]
