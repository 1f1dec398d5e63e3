"""The time of one fault with the profile xe-bmg against what the xe THP series measured on hardware.

Francois Dugast, "Enable THP support in drm_pagemap" (dri-devel, 2026-01-05), one 2 MiB range, in us, with 4 KiB
folios and with one PMD folio.
"""

import pytest
from gpusvm.run.costs import load_profile

PAGE, PMD = 4096, 2 << 20

PUBLISHED_US = {
    "never": {"fault": 966, "migrate": 942, "copy": 223, "get_pages": 9, "bind": 10},
    "always": {"fault": 132, "migrate": 128, "copy": 106, "get_pages": 1, "bind": 2},
}


@pytest.mark.parametrize("thp", ["never", "always"])
def test_one_fault_costs_what_was_published(bench, thp):
    b = bench(thp=thp, costs=load_profile("xe-bmg").costs)
    addr = b.map(PMD)
    b.cpu_write(addr, 512)
    clear_ns = b.kernel.costs.bo_clear_ns(PMD)
    assert b.fault(addr).errno == 0
    stages = b.driver.accounts.stages()
    found_us = {
        "fault": b.driver.accounts.latency_ns[0] / 1000,
        "migrate": stages["migrate"] / 1000,
        "copy": (b.driver.tiles[0].engine.busy_ns - clear_ns) / 1000,
        "get_pages": stages["get_pages"] / 1000,
        "bind": stages["bind"] / 1000,
    }
    assert found_us == pytest.approx(PUBLISHED_US[thp], rel=0.05)


def test_the_stages_add_up_to_the_latency(bench):
    b = bench(costs=load_profile("xe-bmg").costs)
    addr = b.map(PMD)
    b.cpu_write(addr, 512)
    b.fault(addr)
    assert sum(b.driver.accounts.stage_ns) == b.driver.accounts.latency_ns[0]
