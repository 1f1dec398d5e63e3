"""Which structs can lie in which: what a page leads to."""

import pytest
from gpusvm.driver import embedding_problems
from gpusvm.driver.layout import (
    DEV_PAGEMAP,
    DRM_PAGEMAP,
    DRM_PAGEMAP_EMBEDDING,
    P2PDMA_PAGEMAP,
    PAGE_TO_P2P,
    Conversion,
    Struct,
    diamond,
    members,
)

TO_DRM = Conversion("drm_pagemap", "core")


def test_the_paths_to_a_member_are_found():
    both = Struct("driver_pagemap", (DRM_PAGEMAP_EMBEDDING, P2PDMA_PAGEMAP))
    assert members(both, "dev_pagemap") == [
        ("driver_pagemap", "drm_pagemap", "dev_pagemap"),
        ("driver_pagemap", "pci_p2pdma_pagemap", "dev_pagemap"),
    ]
    assert members(both, "drm_pagemap") == [("driver_pagemap", "drm_pagemap")]
    assert members(DRM_PAGEMAP, "dev_pagemap") == []
    assert str(both) == "driver_pagemap {drm_pagemap {dev_pagemap}, pci_p2pdma_pagemap {dev_pagemap}}"


def test_one_dev_pagemap_serves_who_lies_around_it():
    assert diamond(Struct("x", (DEV_PAGEMAP, DRM_PAGEMAP)), []) is None
    assert diamond(Struct("x", (DRM_PAGEMAP_EMBEDDING,)), [TO_DRM]) is None
    assert diamond(Struct("x", (P2PDMA_PAGEMAP, DRM_PAGEMAP)), [PAGE_TO_P2P]) is None
    # A drm_pagemap inside the pagemap of PCI p2p would serve both, if that embedded what drm defines.
    nested = Struct("x", (Struct("pci_p2pdma_pagemap", (DRM_PAGEMAP_EMBEDDING,)),))
    assert diamond(nested, [TO_DRM, PAGE_TO_P2P]) is None


def test_two_dev_pagemaps_are_a_diamond():
    both = Struct("xe_pagemap", (DRM_PAGEMAP_EMBEDDING, P2PDMA_PAGEMAP))
    assert diamond(both, [TO_DRM, PAGE_TO_P2P]) == (
        "xe_pagemap has 2 dev_pagemaps, in its drm_pagemap and in its pci_p2pdma_pagemap, and a page leads to one: "
        "core needs that in drm_pagemap; drivers/pci/p2pdma.c:to_p2p_pgmap needs that in pci_p2pdma_pagemap"
    )


def test_a_struct_that_points_leads_nowhere():
    assert diamond(Struct("x", (DEV_PAGEMAP, DRM_PAGEMAP)), [TO_DRM]) == (
        "x has one dev_pagemap, of its own, and a page leads to one: core needs that in drm_pagemap"
    )
    assert diamond(Struct("x", (DRM_PAGEMAP,)), []) == "x contains no dev_pagemap"


@pytest.mark.parametrize("names", [["siblings"], ["dev_in_drm"], ["p2p_provider"]])
def test_each_embedding_works_alone(names):
    assert embedding_problems(names, "xe_pagemap") == []


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        (
            ["dev_in_drm", "p2p_provider"],
            (
                "embedding=dev_in_drm+p2p_provider: xe_pagemap has 2 dev_pagemaps, in its drm_pagemap and in its "
                "pci_p2pdma_pagemap, and a page leads to one: core, which asks a page for its drm_pagemap, needs that "
                "in drm_pagemap; drivers/pci/p2pdma.c:to_p2p_pgmap needs that in pci_p2pdma_pagemap"
            ),
        ),
        (
            ["siblings", "dev_in_drm"],
            "embedding=siblings+dev_in_drm: siblings embeds the dev_pagemap in nothing else, dev_in_drm does",
        ),
        (
            ["chunk"],
            (
                "embedding=chunk: a drm_pagemap points to one dev_pagemap, and memory that grows by chunks has one for "
                "each"
            ),
        ),
    ],
)
def test_what_cannot_be_laid_out_is_refused_with_the_reason(names, problem):
    assert embedding_problems(names, "xe_pagemap") == [problem]
