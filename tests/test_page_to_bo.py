"""The same programs whichever way pages lead to what holds them: contents, faults and copies are the same."""

import itertools

import pytest
from gpusvm.errors import InputError
from gpusvm.plugins import load_drivers
from gpusvm.testing import Bench

PAGE, PMD = 4 << 10, 2 << 20
WAYS = {
    "xe": ["page_to_bo=zone_device_data", "page_to_bo=offset", "page_to_bo=xarray", "embedding=dev_in_drm"],
    "nouveau": ["page_to_bo=chunk", "page_to_bo=offset", "page_to_bo=xarray"],
    "dmirror": ["page_to_bo=zone_device_data", "page_to_bo=chunk"],
}


def program(spec, thp):
    """Bring two blocks to the device, take parts of them back in every way there is; return what it came to."""
    b = Bench(spec, drivers=load_drivers(), thp=thp, vram_bytes=512 << 20)
    try:
        addr = b.map(2 * PMD)
        b.cpu_write(addr, 2 * PMD // PAGE)
        b.vm.populate(addr, addr + 2 * PMD)
        b.gpu_write(addr, 8)
        b.cpu_write(addr + PMD + 5 * PAGE, 3)
        b.vm.populate(addr, addr + 2 * PMD)
        b.gpu_write(addr + PMD, 16)
        b.mm.munmap(addr + 64 * PAGE, 64 * PAGE)
        b.cpu_read(addr, 64)
        b.gpu_read(addr + PMD, 512)
        stats = b.kernel.stats
        return (
            stats.migrated_to_device_bytes,
            stats.migrated_to_ram_bytes,
            stats.copies,
            b.device_pages(addr, 64),
            b.device_pages(addr + PMD, 512),
        )
    finally:
        b.close()


@pytest.mark.parametrize(("driver", "thp"), list(itertools.product(WAYS, ["always", "never"])))
def test_a_program_comes_to_the_same_whichever_way_pages_lead(driver, thp):
    results = {way: program(f"{driver}:{way}", thp) for way in WAYS[driver]}
    assert len(set(results.values())) == 1, results
    assert next(iter(results.values()))[0] > 0


def test_a_nouveau_page_has_no_second_word():
    with pytest.raises(InputError) as refused:
        Bench("nouveau:page_to_bo=zone_device_data", drivers=load_drivers())
    assert str(refused.value) == (
        "driver spec 'nouveau:page_to_bo=zone_device_data': page_to_bo=zone_device_data: the one word that a page has "
        "names the svmm that it was migrated for"
    )


@pytest.mark.parametrize(("index", "loads"), [("offset", 1), ("xarray", 4)])
def test_what_a_lookup_among_nouveaus_chunks_loads(index, loads):
    b = Bench(f"nouveau:page_to_bo={index}", drivers=load_drivers(), vram_bytes=256 << 20)
    addr = b.map(4 * PAGE)
    b.cpu_write(addr, 4)
    b.vm.populate(addr, addr + 4 * PAGE)
    costs = b.driver.dmem.pool.index.costs
    lookups, loaded = costs.lookups, costs.loads
    b.driver.dmem.pool.chunk_of(b.driver.dmem.pool.chunks[0].first + 1)
    assert (costs.lookups - lookups, costs.loads - loaded) == (1, loads)
    b.close()
    assert costs.nodes == 0
