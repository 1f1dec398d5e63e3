"""drivers/gpu/drm/xe/xe_vm_types.h:struct xe_vma_mem_attr, as of Linux 7.3.4: what a program wished for a stretch of
its address space: where its memory should be, and who does atomics on it.
"""

import errno
from typing import TYPE_CHECKING, Final

from attrs import frozen
from gpusvm.drm import DrmPagemap
from gpusvm.errors import KernelError
from gpusvm.gpu import ATOMIC, READ, REMOTE, WRITE

if TYPE_CHECKING:
    from gpusvm_xe.tile import XeTile

__all__ = [
    "ATOMIC_CPU",
    "ATOMIC_DEVICE",
    "ATOMIC_GLOBAL",
    "ATOMIC_UNDEFINED",
    "DEFAULT_DEVICE",
    "DEFAULT_SYSTEM",
    "MIGRATE_ALL_PAGES",
    "MIGRATE_ONLY_SYSTEM_PAGES",
    "NO_WISHES",
    "SYSTEM",
    "MemAttr",
    "PreferredLocation",
    "permissions",
]

# include/uapi/drm/xe_drm.h: DRM_XE_PREFERRED_LOC_DEFAULT_*, DRM_XE_MIGRATE_*, DRM_XE_ATOMIC_*
DEFAULT_DEVICE: Final = 0
DEFAULT_SYSTEM: Final = -1
MIGRATE_ALL_PAGES: Final = 0
MIGRATE_ONLY_SYSTEM_PAGES: Final = 1
ATOMIC_UNDEFINED: Final = 0
ATOMIC_DEVICE: Final = 1
ATOMIC_GLOBAL: Final = 2
ATOMIC_CPU: Final = 3


@frozen(kw_only=True)
class PreferredLocation:
    """Say where memory should be: the VRAM of the tile that faults (`devmem_fd` DEFAULT_DEVICE), RAM (DEFAULT_SYSTEM),
    or region `region_instance`, from 1 on, of the xe device that a file of the program stands for.

    `migration_policy` is kept, and nothing in 7.3 looks at it.
    """

    devmem_fd: int = DEFAULT_DEVICE
    region_instance: int = 0
    migration_policy: int = MIGRATE_ALL_PAGES


SYSTEM: Final = PreferredLocation(devmem_fd=DEFAULT_SYSTEM)
"""Prefer RAM."""


@frozen(kw_only=True)
class MemAttr:
    """Hold the attributes of a VMA, which has a reference on the `dpagemap` that it wants."""

    preferred: PreferredLocation = PreferredLocation()
    dpagemap: DrmPagemap | None = None
    atomic_access: int = ATOMIC_UNDEFINED

    @property
    def is_default(self) -> bool:
        """Tell whether nothing was wished for (xe_vma_has_default_mem_attrs)."""
        location = self.preferred
        return (
            self.atomic_access == ATOMIC_UNDEFINED
            and location.devmem_fd == DEFAULT_DEVICE
            and location.migration_policy == MIGRATE_ALL_PAGES
        )

    def resolve_pagemap(self, tile: "XeTile") -> DrmPagemap | None:
        """Return the memory that a fault on a tile populates, None for RAM (xe_vma_resolve_pagemap)."""
        if self.dpagemap is not None:
            return self.dpagemap
        return tile.dpagemap if self.preferred.devmem_fd == DEFAULT_DEVICE else None

    def needs_vram(self, *, atomics_in_ram: bool) -> bool:
        """Tell whether an atomic of a discrete device has to have the memory in VRAM (xe_vma_need_vram_for_atomic).

        EACCES where atomics are the CPU's.
        """
        if self.atomic_access == ATOMIC_CPU:
            raise KernelError(errno.EACCES, "atomics on this memory are the CPU's")
        return self.atomic_access != ATOMIC_DEVICE or not atomics_in_ram


NO_WISHES: Final = MemAttr()
"""What a VMA begins with (xe_vma_set_default_attributes)."""


def permissions(atomic_access: int, *, discrete: bool, atomics_in_ram: bool) -> tuple[int, int]:
    """Return the permissions of entries for VRAM and for everything else (xe_atomic_for_vram, xe_atomic_for_system).

    A discrete device leaves over the bus for everything but its own VRAM.
    """
    in_vram = in_ram = atomic_access != ATOMIC_CPU
    if discrete:
        in_ram = atomic_access == ATOMIC_DEVICE
    ram = READ | WRITE | (REMOTE if discrete else 0)
    return READ | WRITE | (ATOMIC if in_vram else 0), ram | (ATOMIC if in_ram and atomics_in_ram else 0)
