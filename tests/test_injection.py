"""Whatever fails once, the driver rolls back or retires: nothing leaks, nothing is lost, and errnos have a reason."""

import pytest
from gpusvm.conformance.injection import programs, sweep
from gpusvm.explore.sites import sites_of
from gpusvm.explore.world import World
from gpusvm.plugins import load_drivers

DRIVERS = dict(load_drivers())

# What the programs of the sweep do not pass, and why.
NOT_PASSED = {
    "alloc.hmm_dma_list": "no driver here uses hmm_dma_map",
    "alloc.hmm_pfns": "no driver here uses hmm_dma_map",
    "dma.link": "the devices have no IOMMU: a page is mapped by itself",
    "dma.sync": "the devices have no IOMMU",
    "page_index.xa_node": "pages lead to their objects by a pointer, not by an xarray (page_to_bo)",
    "xe.vma": "no program here gives advice, which splits areas",
    "gpusvm.evict": "xe evicts a range before another attempt, after a race that one task alone does not have",
}


@pytest.mark.parametrize(
    ("driver", "found"),
    [
        ("xe", "20 programs, 20 sites, 514 failures, 148 noticed by the program"),
        ("nouveau", "16 programs, 8 sites, 115 failures, 73 noticed by the program"),
        ("dmirror", "17 programs, 8 sites, 95 failures, 49 noticed by the program"),
        ("svmdev", "16 programs, 16 sites, 251 failures, 111 noticed by the program"),
    ],
)
def test_everything_fails_once(driver: str, found: str) -> None:
    swept = sweep(driver, DRIVERS)
    assert [str(each) for each in swept.findings] == []
    assert str(swept) == f"{driver}: {found}, 0 findings"
    if driver == "xe":
        there = set(sites_of(World(programs()[0], driver, drivers=DRIVERS)))
        assert there - set(swept.failures) == set(NOT_PASSED)


def test_a_failure_that_breaks_something_is_found() -> None:
    """What xe as written does wrong when RAM for a page is short (quirk mm_s3)."""
    swept = sweep("xe", DRIVERS, quirks="as_written", only=["fault"])
    first = next(each for each in swept.findings if each.site == "alloc.folio")
    assert str(first).startswith("fault: alloc.folio fails on passing 1: invariant mm_s3: ")


def test_names_of_programs() -> None:
    assert [program.name for program in programs()] == list(dict.fromkeys(program.name for program in programs()))
