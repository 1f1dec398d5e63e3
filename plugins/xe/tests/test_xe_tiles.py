"""One xe device with two tiles: whose VRAM a fault brings memory to, and what the tiles share."""

import attrs
import numpy as np
import pytest
from gpusvm.driver import ACCESS_ATOMIC, ACCESS_WRITE, read_spec
from gpusvm.errors import InputError
from gpusvm.gpu import ATOMIC, READ, WRITE
from gpusvm.machine import Machine, load_topology
from gpusvm.run.costs import load_profile
from gpusvm.testing import Fault
from gpusvm_xe.plugin import INFO

PAGE, PMD = 4096, 2 << 20
BASE = 1 << 40
COSTS = load_profile("h100-pcie5").costs
VPNS = (BASE // PAGE, BASE // PAGE + 512)


@pytest.fixture
def tiles():
    machine = Machine.boot(
        load_topology("two-tiles"),
        [read_spec("xe", {"xe": INFO})],
        vram_bytes=64 << 20,
        costs=COSTS,
    )
    process = machine.process("tiles")
    vm = machine.open(process)
    process.mm.mmap(BASE, PMD, 3)
    vpns = np.arange(*VPNS)
    machine.memory.cpu_access(process.mm, vpns, np.ones(512, np.bool_))
    yield machine, vm, [vm, vm.on_tile(1)]
    machine.teardown()
    assert machine.memory.contents.mismatch_count == 0


def fault(machine, vm, access=ACCESS_WRITE):
    one = Fault(BASE, access, time_ns=machine.kernel.now_ns)
    assert vm.faults.submit([one]) == 1
    while one.errno is None:
        machine.kernel.sleep_ns(100_000)
    machine.kernel.settle()
    return one.errno


def used(machine):
    return [tile.vram.bos.used_bytes for tile in machine.drivers[0].tiles]


def mapped(vm):
    return [set(table.perms(*VPNS).tolist()) for table in vm.page_tables]


def test_a_fault_brings_memory_to_the_tile_that_took_it(tiles):
    machine, vm, (_, second) = tiles
    assert fault(machine, second) == 0
    assert used(machine) == [0, PMD]
    assert mapped(vm) == [{0}, {READ | WRITE | ATOMIC}]


def test_the_other_tile_takes_it_over_and_the_source_copies(tiles):
    machine, vm, (first, second) = tiles
    assert fault(machine, second) == 0
    home = machine.kernel.stats.migrated_to_ram_bytes
    machine.kernel.tracer.on = True
    assert fault(machine, first) == 0
    assert used(machine) == [PMD, 0]
    assert machine.kernel.stats.migrated_to_ram_bytes == home
    copies = [event[3:5] for event in machine.kernel.tracer.events if event[2] == "copy"]
    assert copies == [("gpu0 tile1 migrate", "d2h")]
    assert mapped(vm) == [{READ | WRITE | ATOMIC}, {0}]


def test_an_atomic_is_valid_only_in_the_memory_of_its_own_tile(tiles):
    machine, _, (first, second) = tiles
    assert fault(machine, first, ACCESS_ATOMIC) == 0
    assert fault(machine, second, ACCESS_ATOMIC) == 0
    assert used(machine) == [0, PMD]


def test_a_prefetch_maps_on_all_tiles_what_it_brought_to_the_first(tiles):
    machine, vm, _ = tiles
    assert vm.populate(BASE, BASE + PMD) == PMD
    assert used(machine) == [PMD, 0]
    assert mapped(vm) == [{READ | WRITE | ATOMIC}, {READ | WRITE | ATOMIC}]


def test_an_invalidation_zaps_and_flushes_all_tiles_at_once(tiles):
    machine, vm, _ = tiles
    vm.populate(BASE, BASE + PMD)
    flushes = machine.kernel.stats.tlb_invalidations
    charged = machine.kernel.charged["tlb_invalidate"]
    vm.mm.mprotect(BASE, PAGE, 1)
    assert mapped(vm) == [{0}, {0}]
    gts = [gt for tile in machine.drivers[0].tiles for gt in tile.gts]
    assert [gt.name for gt in gts] == [f"{machine.drivers[0].spec.name} gt{number}" for number in range(4)]
    assert machine.kernel.stats.tlb_invalidations - flushes == 4
    assert [gt.tlb.invalidated_bytes for gt in gts] == [16 << 20] * 4
    assert machine.kernel.charged["tlb_invalidate"] - charged == COSTS.tlb_invalidate


def test_an_unplug_evacuates_all_tiles(tiles):
    machine, _, (_, second) = tiles
    assert fault(machine, second) == 0
    machine.drivers[0].unplug()
    machine.kernel.settle()
    assert used(machine) == [0, 0]


def test_tiles_have_pagemaps_of_their_own_and_one_owner(tiles):
    machine, _, _ = tiles
    pagemaps = machine.drivers[0].dev_pagemaps()
    assert len(pagemaps) == 2
    assert pagemaps[0].owner is pagemaps[1].owner
    assert pagemaps[0].start_pfn != pagemaps[1].start_pfn
    assert [pgmap.nr_pages * PAGE for pgmap in pagemaps] == [32 << 20] * 2


def test_device_addresses_of_tiles_do_not_overlap(tiles):
    driver = tiles[0].drivers[0]
    first, second = (tile.dpagemap.container for tile in driver.tiles)
    pfns = [np.array([each.pagemap.start_pfn]) for each in (first, second)]
    assert first.page_to_dpa(pfns[0]).tolist() == [0]
    assert second.page_to_dpa(pfns[1]).tolist() == [32 << 20]
    assert (second.page_to_pcie(pfns[1]) - first.page_to_pcie(pfns[0])).tolist() == [(32 << 20) // PAGE]


def test_a_driver_that_knows_no_tiles_is_refused():
    plain = attrs.evolve(INFO, name="plain", tiles_max=1)
    with pytest.raises(InputError) as error:
        Machine.boot(load_topology("two-tiles"), [read_spec("plain", {"plain": plain})], vram_bytes=64 << 20)
    assert str(error.value) == "topology 'two-tiles': gpu0 has 2 tiles, and plain knows 1 at most"


def test_vram_that_tiles_cannot_share_is_refused():
    with pytest.raises(InputError) as error:
        Machine.boot(load_topology("two-tiles"), [read_spec("xe", {"xe": INFO})], vram_bytes=PMD)
    assert str(error.value) == (
        "VRAM of 2097152 bytes cannot be shared by the 2 tiles of gpu0; give each 2097152 bytes at least, "
        "and whole pages"
    )
