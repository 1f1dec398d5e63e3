"""Two xe devices in one machine: who may map whose VRAM, and how memory gets from one to the other."""

import numpy as np
import pytest
from gpusvm.driver import ACCESS_ATOMIC, ACCESS_WRITE, read_spec
from gpusvm.gpu import ATOMIC, READ, REMOTE, WRITE
from gpusvm.machine import Machine, load_topology
from gpusvm.testing import Fault
from gpusvm_xe.plugin import INFO

PAGE, PMD = 4096, 2 << 20
BASE = 1 << 40


@pytest.fixture
def pair(tmp_path):
    made = []

    def make(specs=("xe", "xe"), *, p2p=True, thp="always"):
        device = '[[device]]\nname = "gpu{}"\ndiscrete = true\np2p = {}\nd3cold_capable = true\n'
        path = tmp_path / "pair.toml"
        path.write_text(
            'name = "pair"\nsummary = "two GPUs"\nram_bytes = 1_073_741_824\n'
            + "".join(device.format(i, str(p2p).lower()) for i in (0, 1)),
            encoding="utf-8",
        )
        machine = Machine.boot(
            load_topology(path), [read_spec(spec, {"xe": INFO}) for spec in specs], vram_bytes=64 << 20, thp=thp
        )
        process = machine.process("pair")
        vms = [machine.open(process, device) for device in (0, 1)]
        process.mm.mmap(BASE, PMD, 3)
        vpns = np.arange(BASE // PAGE, BASE // PAGE + 512)
        machine.memory.cpu_access(process.mm, vpns, np.ones(512, np.bool_))
        made.append(machine)
        return machine, vms

    yield make
    for machine in made:
        machine.teardown()
        assert machine.memory.contents.mismatch_count == 0


def fault(machine, vm, access=ACCESS_WRITE):
    one = Fault(BASE, access, time_ns=machine.kernel.now_ns)
    assert vm.faults.submit([one]) == 1
    while one.errno is None:
        machine.kernel.sleep_ns(100_000)
    return one.errno


def used(machine):
    machine.kernel.settle()
    return [driver.tiles[0].vram.bos.used_bytes for driver in machine.drivers]


@pytest.mark.parametrize("thp", ["always", "never"])
def test_between_peers_memory_moves_directly_and_the_source_copies(pair, thp):
    machine, (first, second) = pair(thp=thp)
    assert fault(machine, first) == 0
    assert used(machine) == [PMD, 0]
    machine.kernel.tracer.on = True
    assert fault(machine, second) == 0
    assert used(machine) == [0, PMD]
    assert machine.kernel.stats.migrated_to_ram_bytes == 0
    copies = [event for event in machine.kernel.tracer.events if event[2] == "copy"]
    assert [(event[3], event[4]) for event in copies] == [("gpu0 migrate", "d2h")]


def test_without_a_path_memory_goes_through_ram(pair):
    machine, (first, second) = pair(p2p=False)
    assert fault(machine, first) == 0
    assert fault(machine, second) == 0
    assert used(machine) == [0, PMD]
    assert machine.kernel.stats.migrated_to_ram_bytes == PMD


def test_a_peers_vram_is_mapped_in_place_over_the_bus(pair):
    machine, (first, second) = pair(("xe", "xe:tries=0"))
    assert fault(machine, first) == 0
    assert fault(machine, second) == 0
    assert used(machine) == [PMD, 0]
    assert set(second.page_table.perms(BASE // PAGE, BASE // PAGE + 512).tolist()) == {READ | WRITE | REMOTE}
    assert machine.drivers[1].device.dma.mapped_rows == 1
    process = machine.processes[0]
    vpns = np.arange(BASE // PAGE, BASE // PAGE + 512)
    machine.memory.cpu_access(process.mm, vpns, np.zeros(512, np.bool_))
    assert machine.drivers[1].device.dma.mapped_rows == 0
    assert not second.page_table.perms(BASE // PAGE, BASE // PAGE + 512).any()


def test_without_a_path_the_memory_comes_home_to_be_mapped(pair):
    machine, (first, second) = pair(("xe", "xe:tries=0"), p2p=False)
    assert fault(machine, first) == 0
    assert fault(machine, second) == 0
    assert used(machine) == [0, 0]


def test_one_device_populates_the_others_pagemap(pair):
    machine, (first, _) = pair()
    target = machine.drivers[1].pagemaps()[0]
    target.populate_mm(BASE, BASE + PMD, first.mm, 0)
    assert used(machine) == [0, PMD]
    assert machine.drivers[1].pm.rpm.holders == {"vm": 1, "bo": 1}
    assert machine.drivers[0].pm.rpm.holders == {"vm": 1}


def test_devices_of_one_driver_share_their_lists_and_their_lock(pair):
    machine, _ = pair()
    first, second = machine.drivers
    assert first.shared is second.shared
    assert first.tiles[0].dpagemap.container.pagemap.owner is second.tiles[0].dpagemap.container.pagemap.owner


def test_an_atomic_brings_home_what_is_mapped_in_a_peers_vram(pair):
    machine, (first, second) = pair()
    assert fault(machine, first) == 0
    machine.kernel.arm("bo.alloc", nth=1, times=2)
    assert fault(machine, second) == 0
    assert used(machine) == [PMD, 0]  # no room: mapped where it is
    assert fault(machine, second, ACCESS_ATOMIC) == 0
    assert used(machine) == [0, PMD]
    assert (second.page_table.perms(BASE // PAGE, BASE // PAGE + 512) & ATOMIC).all()


def test_a_prefetch_brings_what_is_mapped_in_a_peers_vram(pair):
    machine, (first, second) = pair()
    assert fault(machine, first) == 0
    machine.kernel.arm("bo.alloc", nth=1, times=2)
    assert fault(machine, second) == 0
    assert second.populate(BASE, BASE + PMD) == PMD
    assert used(machine) == [0, PMD]
