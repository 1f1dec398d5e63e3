"""The pagemap of a tile: made when it is needed, kept when it is not, freed when memory is short or the device goes."""

import errno

import pytest
from gpusvm.errors import KernelError, ModelError
from gpusvm.testing import Bench
from gpusvm_xe.plugin import INFO

PMD = 2 << 20


@pytest.fixture
def bench():
    made = []

    def make(spec="xe"):
        made.append(Bench(spec, drivers={"xe": INFO}, vram_bytes=64 << 20))
        return made[-1]

    yield make
    for each in made:
        each.close()


def reopen(b):
    """Close the only VM, and open another one."""
    b.machine.close(b.process)
    del b.process.vms[0]
    b.kernel.settle()


def test_without_a_vm_and_without_pages_the_pagemap_is_kept_and_the_next_vm_finds_it(bench):
    b = bench()
    dpagemap = b.driver.tiles[0].dpagemap
    reopen(b)
    assert (dpagemap.refcount, b.driver.tiles[0].dpagemap) == (0, None)
    assert b.driver.shrinker.count_objects() == 1
    assert dpagemap.pagemap in b.memory.pagemaps.regions
    b.vm = b.machine.open(b.process)
    assert b.driver.tiles[0].dpagemap is dpagemap
    assert b.driver.shrinker.count_objects() == 0


def test_pages_that_outlive_the_vm_keep_the_pagemap_active(bench):
    b = bench()
    addr = b.map(PMD)
    b.cpu_write(addr, 512)
    b.gpu_write(addr)
    dpagemap = b.driver.tiles[0].dpagemap
    reopen(b)
    assert dpagemap.refcount == 1
    b.cpu_read(addr)
    b.kernel.settle()
    assert (dpagemap.refcount, b.driver.shrinker.count_objects()) == (0, 1)


def test_an_inactive_pagemap_holds_no_reference_on_its_device(bench):
    b = bench()
    held = b.driver.device.refcount
    reopen(b)
    assert b.driver.device.refcount < held


def test_the_shrinker_frees_it_and_the_next_vm_makes_another(bench):
    b = bench()
    dpagemap = b.driver.tiles[0].dpagemap
    reopen(b)
    assert b.memory.shrinkers.shrink_slab(10) == 1
    b.kernel.settle()
    assert dpagemap.pagemap not in b.memory.pagemaps.regions
    assert b.memory.shrinkers.shrink_slab(10) == 0
    b.vm = b.machine.open(b.process)
    assert b.driver.tiles[0].dpagemap is not dpagemap


def test_an_active_pagemap_is_no_business_of_the_shrinker(bench):
    b = bench()
    assert b.memory.shrinkers.shrink_slab(10) == 0
    assert b.driver.tiles[0].dpagemap.refcount == 1


def test_after_unplug_the_last_put_destroys_it(bench):
    b = bench("xe:quirk.pagemap_freed=fixed")
    dpagemap = b.driver.tiles[0].dpagemap
    b.driver.unplug()
    assert dpagemap.refcount == 1
    reopen(b)
    assert dpagemap.refcount == 0
    assert b.driver.shrinker.count_objects() == 0


def test_a_cache_takes_no_second_pagemap(bench):
    b = bench()
    tile = b.driver.tiles[0]
    with pytest.raises(ModelError) as error:
        tile.cache.set_pagemap(tile.dpagemap)
    assert str(error.value) == "drm_pagemap_cache_set_pagemap: <DrmPagemap of 'gpu0'> is in the cache already"


SITES = ("xe.request_region", "xe.pagemap_owner", "xe.memremap")


def fail_once(b, site):
    """Let the site fail at its next passing, while the device is opened without a pagemap in the cache."""
    reopen(b)
    b.memory.shrinkers.shrink_slab(10)
    b.kernel.settle()
    b.kernel.injector.arm(site)
    with pytest.raises(KernelError) as error:
        b.machine.open(b.process)
    return error.value.errno


@pytest.mark.parametrize("site", SITES)
def test_a_pagemap_that_cannot_be_made_leaves_nothing_behind(bench, site):
    b = bench("xe:quirk.create_unwind=fixed")
    assert fail_once(b, site) == errno.ENOMEM
    b.kernel.settle()
    b.vm = b.machine.open(b.process)
    addr = b.map(PMD)
    b.cpu_write(addr, 512)
    assert b.gpu_write(addr) == 1
    assert b.where(addr) == "device"


@pytest.mark.parametrize("site", SITES)
def test_as_written_it_is_taken_apart_twice(site):
    b = Bench("xe", drivers={"xe": INFO}, vram_bytes=64 << 20)
    b.kernel.tracer.on = True
    assert fail_once(b, site) == errno.ENOMEM
    if site == "xe.memremap":
        with pytest.raises(ModelError) as error:
            b.kernel.settle()
        assert "release_owner: the peer has no owner" in str(error.value)
    else:  # it has never had an owner
        b.kernel.settle()
    warned = [event[3:] for event in b.kernel.tracer.events if event[2] == "warn"]
    assert warned == [("devm_release_action", "gpu0 releases what it has not acquired")]
