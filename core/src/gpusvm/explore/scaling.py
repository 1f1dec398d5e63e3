"""Shrink a driver's sizes with the machine: a block of four pages stands for one of 512.

A size of 4 KiB stays a page and 2 MiB become the small PMD; what lies between and beyond keeps its place in the order,
on a logarithmic scale. So a driver has ranges of several sizes, a window of several blocks and a chunk of a few of them
on a machine of 16 pages, too.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import attrs

if TYPE_CHECKING:
    from gpusvm.driver import DriverSpec
    from gpusvm.mm import Geometry

__all__ = ["scaled"]

_PAGE_SHIFT = 12
_PMD_ORDER = 9


def scaled(spec: "DriverSpec", geometry: "Geometry", given: Mapping[str, str]) -> "DriverSpec":
    """Return a spec with every tunable of unit "bytes" shrunk, except those that are `given` by name."""
    changes: dict[str, Any] = {}
    for each in attrs.fields(spec.info.tunables):
        if each.metadata["unit"] != "bytes" or each.name in given:
            continue
        value = getattr(spec.tunables, each.name)
        if isinstance(value, tuple):
            sizes = [_size(one, geometry) for one in value]
            changes[each.name] = tuple(sorted(set(sizes), reverse=True))
        else:
            changes[each.name] = _size(value, geometry)
    return attrs.evolve(spec, tunables=attrs.evolve(spec.tunables, **changes))


def _size(size: int, geometry: "Geometry") -> int:
    if size < 1 << _PAGE_SHIFT:
        return size
    order = size.bit_length() - 1 - _PAGE_SHIFT
    return geometry.page_size << (order * geometry.pmd_order + _PMD_ORDER // 2) // _PMD_ORDER
