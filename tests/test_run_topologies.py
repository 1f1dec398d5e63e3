"""A trace on machines with several devices and tiles: launches go to each in turn, and every read is right."""

import pytest
from gpusvm.errors import InputError
from gpusvm.machine import topologies
from gpusvm.run.execute import execute
from gpusvm.run.spec import RunSpec
from gpusvm.workload import load

WORKLOAD = "llm-decode"


@pytest.fixture(scope="module")
def run():
    done = {}

    def once(topology, driver="xe"):
        if (topology, driver) not in done:
            done[topology, driver] = execute(
                RunSpec(driver=driver, workload=WORKLOAD, vram_bytes=256 << 20, topology=topology, quirks="fixed")
            )
        return done[topology, driver]

    return once


def test_bundled_topologies():
    assert topologies() == ("discrete-integrated", "dual", "dual-p2p", "single", "triple-p2p", "two-tiles")


@pytest.mark.parametrize("topology", topologies())
def test_xe_reads_what_was_written(run, topology):
    result = run(topology)
    assert result["accesses"] == len(load(WORKLOAD))
    assert result["integrity"]["mismatches"] == 0
    assert result["integrity"]["reads_checked"] > 0


def test_each_device_and_tile_has_a_pagemap_but_an_integrated_one(run):
    found = {topology: run(topology)["objects"]["pagemaps"] for topology in topologies()}
    assert found == {"discrete-integrated": 1, "dual": 2, "dual-p2p": 2, "single": 1, "triple-p2p": 3, "two-tiles": 2}


def test_without_a_path_between_the_devices_memory_goes_through_ram(run):
    home = {topology: run(topology)["migrated_to_ram_bytes"] for topology in ("single", "dual-p2p", "dual")}
    assert home["dual"] > home["dual-p2p"] == home["single"]  # what the CPU reads in the end
    assert run("dual")["sim_ns"] > run("dual-p2p")["sim_ns"] > run("single")["sim_ns"]


def test_an_integrated_device_uses_memory_where_it_is(run):
    # Every second launch runs on it, and brings home what the other device took.
    assert run("discrete-integrated")["migrated_to_ram_bytes"] > 0


@pytest.mark.parametrize("driver", ["nouveau", "dmirror"])
def test_drivers_without_an_integrated_form_are_refused(driver):
    spec = RunSpec(driver=driver, workload=WORKLOAD, vram_bytes=256 << 20, topology="discrete-integrated")
    with pytest.raises(InputError) as error:
        execute(spec)
    assert str(error.value) == (
        f"topology 'discrete-integrated': gpu1 is integrated, and {driver} drives discrete devices only"
    )


@pytest.mark.parametrize("driver", ["nouveau", "dmirror"])
def test_other_drivers_on_two_devices(run, driver):
    result = run("dual", driver)
    assert result["integrity"]["mismatches"] == 0
    assert result["gpu_faults"] > run("single", driver)["gpu_faults"]
