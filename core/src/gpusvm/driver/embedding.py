"""Offer ways to embed a dev_pagemap, for drivers that have a drm_pagemap (`gpusvm.driver.PagemapEmbedding`).

What is embedded where decides how a page leads to the drm_pagemap and to the driver's object. Linux 7.3.4 has xe's way,
siblings; the others are what-ifs. For a dev_pagemap inside a chunk see `gpusvm.driver.ChunkPool`.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

from attrs import define

from gpusvm.driver.layout import (
    DEV_PAGEMAP,
    DRM_PAGEMAP,
    DRM_PAGEMAP_EMBEDDING,
    P2PDMA_PAGEMAP,
    PAGE_TO_P2P,
    Conversion,
    Struct,
    diamond,
)
from gpusvm.mm.api import DevPagemap

if TYPE_CHECKING:
    from gpusvm.drm import DrmPagemap

__all__ = [
    "DevInDrm",
    "DrmEmbedding",
    "P2pProvider",
    "P2pdmaPagemap",
    "Siblings",
    "drm_embedding",
    "embedding_problems",
]

_PAGE_TO_DRM: Final = Conversion("drm_pagemap", "core, which asks a page for its drm_pagemap,")


class DrmEmbedding(Protocol):
    """Put a dev_pagemap, a drm_pagemap and the driver's object around both together, and find one from another."""

    def embed(self, pgmap: DevPagemap, dpagemap: "DrmPagemap", container: Any) -> None:
        """Do so with new ones, before there are pages."""

    def remove(self, pgmap: DevPagemap) -> None:
        """Forget one that is about to be freed."""

    def container_of(self, pgmap: DevPagemap) -> Any: ...

    def dev_pagemaps(self) -> list[DevPagemap]: ...

    def pagemap_of(self, pgmap: DevPagemap) -> "DrmPagemap": ...


class _Listed:
    """Keep the dev_pagemaps that exist, in order of creation."""

    def __init__(self) -> None:
        self._pagemaps: list[DevPagemap] = []

    def dev_pagemaps(self) -> list[DevPagemap]:
        """Return those that exist now."""
        return list(self._pagemaps)

    def remove(self, pgmap: DevPagemap) -> None:
        """Forget one."""
        self._pagemaps.remove(pgmap)


class Siblings(_Listed):
    """Keep both side by side in the driver's object, as xe does: container_of is one step, and only the driver can get
    from the dev_pagemap to the drm_pagemap, which points the other way.
    """

    def embed(self, pgmap: DevPagemap, dpagemap: "DrmPagemap", container: Any) -> None:
        pgmap.container = dpagemap.container = container
        self._pagemaps.append(pgmap)

    def container_of(self, pgmap: DevPagemap) -> Any:
        """Return the driver's object around the dev_pagemap (xe_page_to_pagemap)."""
        return pgmap.container

    def pagemap_of(self, pgmap: DevPagemap) -> "DrmPagemap":
        """Return its sibling, by way of the driver's object."""
        dpagemap: DrmPagemap = pgmap.container.dpagemap
        return dpagemap


class DevInDrm(_Listed):
    """Embed the dev_pagemap in the drm_pagemap, and that in the driver's object: core gets from a page to the
    drm_pagemap by itself.
    """

    def embed(self, pgmap: DevPagemap, dpagemap: "DrmPagemap", container: Any) -> None:
        pgmap.container = dpagemap
        dpagemap.container = container
        self._pagemaps.append(pgmap)

    def container_of(self, pgmap: DevPagemap) -> Any:
        """Return the driver's object around the drm_pagemap around it: two steps."""
        return pgmap.container.container

    def pagemap_of(self, pgmap: DevPagemap) -> "DrmPagemap":
        """Return the drm_pagemap around it."""
        dpagemap: DrmPagemap = pgmap.container
        return dpagemap


@define(eq=False)
class P2pdmaPagemap:
    """Be the pagemap of a provider of PCI peer-to-peer memory (drivers/pci/p2pdma.c:struct pci_p2pdma_pagemap).

    It embeds `pgmap` and is embedded in `container`.
    """

    pgmap: DevPagemap
    container: Any


class P2pProvider(_Listed):
    """Embed the dev_pagemap in a pagemap of PCI p2p, and that beside the drm_pagemap in the driver's object."""

    def embed(self, pgmap: DevPagemap, dpagemap: "DrmPagemap", container: Any) -> None:
        pgmap.container = P2pdmaPagemap(pgmap, container)
        dpagemap.container = container
        self._pagemaps.append(pgmap)

    def provider_of(self, pgmap: DevPagemap) -> P2pdmaPagemap:
        """Return the pagemap of PCI p2p around it (to_p2p_pgmap)."""
        provider: P2pdmaPagemap = pgmap.container
        return provider

    def container_of(self, pgmap: DevPagemap) -> Any:
        """Return the driver's object around that: two steps."""
        return pgmap.container.container

    def pagemap_of(self, pgmap: DevPagemap) -> "DrmPagemap":
        """Return the drm_pagemap beside that, by way of the driver's object."""
        dpagemap: DrmPagemap = pgmap.container.container.dpagemap
        return dpagemap


def drm_embedding(names: Sequence[str]) -> Siblings | DevInDrm | P2pProvider:
    """Return the embedding of the names in a spec string, of which none is amiss (`embedding_problems`)."""
    if "dev_in_drm" in names:
        return DevInDrm()
    return P2pProvider() if "p2p_provider" in names else Siblings()


def embedding_problems(names: Sequence[str], struct: str) -> list[str]:
    """Say why the driver's `struct` cannot be laid out as `names` demand together; empty if it can."""
    if "chunk" in names:
        return [
            "embedding=chunk: a drm_pagemap points to one dev_pagemap, and memory that grows by chunks has one for each"
        ]
    if "siblings" in names and len(names) > 1:
        other = next(name for name in names if name != "siblings")
        return [f"embedding={'+'.join(names)}: siblings embeds the dev_pagemap in nothing else, {other} does"]
    parts: list[Struct] = []
    needs: list[Conversion] = []
    parts.append(DRM_PAGEMAP_EMBEDDING if "dev_in_drm" in names else DRM_PAGEMAP)
    if "dev_in_drm" in names:
        needs.append(_PAGE_TO_DRM)
    if "p2p_provider" in names:
        parts.append(P2PDMA_PAGEMAP)
        needs.append(PAGE_TO_P2P)
    if "siblings" in names:
        parts.append(DEV_PAGEMAP)
    why = diamond(Struct(struct, tuple(parts)), needs)
    return [] if why is None else [f"embedding={'+'.join(names)}: {why}"]
