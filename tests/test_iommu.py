"""A device behind an IOMMU, on a whole machine: the pages of a range are linked into one reservation of addresses."""

import pytest
from gpusvm.explore.execution import execute as explore
from gpusvm.explore.random_walk import RandomWalk
from gpusvm.explore.scenario import find_scenario
from gpusvm.explore.stage import Stage
from gpusvm.explore.world import World
from gpusvm.machine import load_topology
from gpusvm.plugins import load_drivers
from gpusvm.run.execute import execute
from gpusvm.run.spec import RunSpec

DRIVERS = dict(load_drivers())
TOPOLOGY = """
name = "iommu"
summary = "one discrete GPU behind an IOMMU"
ram_bytes = 17_179_869_184

[[device]]
name = "gpu0"
discrete = true
p2p = true
d3cold_capable = true
iommu = true
"""


@pytest.fixture
def topology(tmp_path):
    path = tmp_path / "iommu.toml"
    path.write_text(TOPOLOGY)
    return str(path)


def test_a_topology_says_which_devices_have_one(topology):
    assert [device.iommu for device in load_topology(topology).device] == [True]
    assert [device.iommu for device in load_topology("single").device] == [False]


@pytest.mark.parametrize("driver", ["xe", "svmdev", "nouveau", "kfd"])
def test_a_trace_reads_what_was_written(topology, driver):
    spec = RunSpec(driver=driver, workload="llm-decode", vram_bytes=256 << 20, topology=topology, quirks="fixed")
    result = execute(spec)
    assert result["integrity"]["mismatches"] == 0
    assert result["integrity"]["reads_checked"] > 0


@pytest.mark.parametrize(("driver", "name"), [("xe", "iommu-fault"), ("xe", "iommu-evict"), ("svmdev", "iommu-fault")])
def test_exploring_reaches_linking_and_syncing(driver, name):
    (scenario,) = find_scenario(name)
    stage = Stage(lambda: World(scenario, driver, drivers=DRIVERS))
    met = set()
    for seed in range(6):
        walk = RandomWalk(seed=seed)
        walk.new_execution()
        world = stage.ready()
        assert explore(world, walk).failure is None
        met |= set(world.kernel.inject_sites)
    assert met >= {"dma.link", "dma.sync"}
