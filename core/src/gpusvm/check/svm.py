"""Invariants 56 to 58: what drm_gpusvm and drm_pagemap promise about the pages that they map and move."""

from collections.abc import Mapping

import numpy as np

from gpusvm.check.rules import rule
from gpusvm.check.shadow import Shadow
from gpusvm.drm import Devmem, GpuSvmPages
from gpusvm.mm.api import Pfns

__all__ = ["bounds", "pages_freed", "pages_of_the_owner", "pages_present", "timeslice_kept"]


@rule(56)
def pages_present(s: Shadow, pages: GpuSvmPages) -> None:
    """56: what has just been mapped for a device is in use."""
    _check_free(s, pages, _pfns(pages))


@rule(56)
def pages_freed(s: Shadow, mapped: Mapping[GpuSvmPages, tuple[int, int]], freed: list[int]) -> None:
    """56: nor does a device have one of the pages mapped that have just become free; `mapped` is by `bounds`."""
    lowest, highest = min(freed), max(freed)
    for pages, (first, last) in mapped.items():
        if first <= highest and lowest <= last:
            _check_free(s, pages, np.intersect1d(_pfns(pages), freed))


def bounds(pages: GpuSvmPages) -> tuple[int, int]:
    """Return the lowest and the highest pfn of what is mapped."""
    pfns = _pfns(pages)
    return (int(pfns.min()), int(pfns.max())) if len(pfns) else (0, -1)


@rule(57)
def pages_of_the_owner(s: Shadow, pages: GpuSvmPages, owner: object | None) -> None:
    """57: the device pages among what has just been mapped are of the owner that was asked for."""
    for zone in s.memory.pages.zones:
        pgmap = zone.pgmap
        if pgmap is None or not zone.private or (owner is not None and pgmap.owner is owner):
            continue
        pfns = _pfns(pages)
        others = pfns[(pfns >= zone.base) & (pfns < zone.end)]
        if len(others):
            whose = "for somebody who can take none" if owner is None else "of another owner than was asked for"
            s.report(57, f"{pages.drm.name} is given device pages {whose}", pfns=tuple(others.tolist()))


@rule(58)
def timeslice_kept(s: Shadow, devmem: Devmem) -> None:
    """58: a CPU fault takes home what no timeslice holds any more."""
    left_ns = devmem.timeslice_expiration_ns - s.kernel.now_ns
    if left_ns > 0:
        s.report(58, f"a CPU fault takes pages from {devmem.drm.name} {left_ns} ns before their timeslice is over")


def _pfns(pages: GpuSvmPages) -> Pfns:
    addrs = pages.dma_addr
    return np.zeros(0, np.int64) if addrs is None else addrs.page_pfns()


def _check_free(s: Shadow, pages: GpuSvmPages, pfns: Pfns) -> None:
    free = []
    for pfn in pfns.tolist():
        if s.memory.pages.has_page(pfn):
            zone = s.memory.pages.zone(pfn)
            i = pfn - zone.base
            if zone.m_refcount[i - zone.m_head_off[i]]:
                continue
        free.append(pfn)
    if free:
        s.report(56, f"{pages.drm.name} has a free page mapped for DMA", pfns=tuple(free))
