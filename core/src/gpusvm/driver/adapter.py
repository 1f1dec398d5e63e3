"""Offer populate_mm for a driver that has no drm_pagemap in Linux (nouveau, dmirror, kfd)."""

from collections.abc import Callable
from errno import EFAULT
from typing import TYPE_CHECKING

from gpusvm.drm import DrmDevice, DrmPagemap
from gpusvm.errors import KernelError
from gpusvm.mm.api import MmApi, Pfns, Words

if TYPE_CHECKING:
    from gpusvm.drm.addr import Orders, PagemapAddrs, Protos

__all__ = ["Populate", "PopulateOnly"]

Populate = Callable[[int, int, MmApi], None]
"""Migrate [start, end) of an mm to the device, its mmap_lock held."""


class PopulateOnly:
    """Be the ops of a drm_pagemap whose driver has no peers: only populate_mm does anything."""

    destroy = None

    def __init__(self, populate: Populate) -> None:
        self._populate = populate

    def device_map(
        self, dpagemap: DrmPagemap, dev: DrmDevice, pfns: Pfns, order: "Orders", direction: int
    ) -> "tuple[Words, Protos]":
        raise KernelError(EFAULT, f"{dpagemap!r} cannot be mapped by {dev.name}: its driver has no peer access")

    def device_unmap(self, dpagemap: DrmPagemap, dev: DrmDevice, addrs: "PagemapAddrs") -> None:
        """Nothing was mapped."""

    def populate_mm(self, dpagemap: DrmPagemap, start: int, end: int, mm: MmApi, timeslice_ms: int) -> None:
        """Migrate as the driver's own request does; a timeslice has no meaning here."""
        self._populate(start, end, mm)
