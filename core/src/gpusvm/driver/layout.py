"""Reason about which structs lie inside which: container_of leads from a member to the struct around it, no further.

Every device page leads to one dev_pagemap, the one that memremap_pages was called with. Whoever starts from a page has
to come from there to a struct of his own, so that dev_pagemap has to be a member of it, or of a member of it.
"""

from collections.abc import Iterator, Sequence
from typing import Final

from attrs import frozen

__all__ = [
    "DEV_PAGEMAP",
    "DRM_PAGEMAP",
    "DRM_PAGEMAP_EMBEDDING",
    "P2PDMA_PAGEMAP",
    "PAGE_TO_P2P",
    "Conversion",
    "Struct",
    "diamond",
    "members",
]


@frozen
class Struct:
    """Name a struct and the structs that are members of it, by value."""

    name: str
    embeds: tuple["Struct", ...] = ()

    def __str__(self) -> str:
        inside = ", ".join(str(each) for each in self.embeds)
        return f"{self.name} {{{inside}}}" if inside else self.name


@frozen
class Conversion:
    """Name a step from a page's dev_pagemap to a struct around it, and who takes it."""

    to: str
    who: str


DEV_PAGEMAP: Final = Struct("dev_pagemap")
DRM_PAGEMAP: Final = Struct("drm_pagemap")
"""As Linux 7.3.4 has it: it points to a dev_pagemap, and contains none (drm_pagemap.h)."""
DRM_PAGEMAP_EMBEDDING: Final = Struct("drm_pagemap", (DEV_PAGEMAP,))
"""What-if: it contains one."""
P2PDMA_PAGEMAP: Final = Struct("pci_p2pdma_pagemap", (DEV_PAGEMAP,))
"""As Linux 7.3.4 has it (drivers/pci/p2pdma.c)."""

PAGE_TO_P2P: Final = Conversion("pci_p2pdma_pagemap", "drivers/pci/p2pdma.c:to_p2p_pgmap")


def members(whole: Struct, name: str) -> list[tuple[str, ...]]:
    """Return by which members, from the outermost inwards, `whole` contains a struct of a name; once for each."""
    return list(_paths(whole, name, ()))


def diamond(whole: Struct, conversions: Sequence[Conversion]) -> str | None:
    """Say why no dev_pagemap inside `whole` serves all conversions from a page; None if there is one that does."""
    dev_pagemaps = members(whole, DEV_PAGEMAP.name)
    if any(all(each.to in path for each in conversions) for path in dev_pagemaps):
        return None
    if not dev_pagemaps:
        return f"{whole.name} contains no dev_pagemap"
    inside = " and ".join(f"in its {path[-2]}" if len(path) > 2 else "of its own" for path in dev_pagemaps)
    unserved = "; ".join(
        f"{each.who} needs that in {each.to}"
        for each in conversions
        if not all(each.to in path for path in dev_pagemaps)
    )
    n = "one dev_pagemap" if len(dev_pagemaps) == 1 else f"{len(dev_pagemaps)} dev_pagemaps"
    return f"{whole.name} has {n}, {inside}, and a page leads to one: {unserved}"


def _paths(whole: Struct, name: str, above: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    here = (*above, whole.name)
    if whole.name == name:
        yield here
    for member in whole.embeds:
        yield from _paths(member, name, here)
