"""xe with its pages leading elsewhere: to the zdd without zone_device_data, to the drm_pagemap by another embedding."""

import errno
import itertools

import pytest
from gpusvm.driver import P2pProvider, read_spec
from gpusvm.drm import page_zdd
from gpusvm.errors import InputError
from gpusvm_xe.plugin import INFO

K, M = 1 << 10, 1 << 20
PAGE, PMD = 4 * K, 2 * M
EMBEDDINGS = ("siblings", "dev_in_drm", "p2p_provider")
INDICES = ("offset", "xarray")


def vram_pfns(b):
    pagemap = b.driver.dev_pagemaps()[0]
    return range(pagemap.start_pfn, pagemap.start_pfn + pagemap.nr_pages)


@pytest.mark.parametrize(("embedding", "index"), list(itertools.product(EMBEDDINGS, INDICES)))
def test_pages_come_and_go_without_zone_device_data(bench, embedding, index):
    b = bench(f"xe:embedding={embedding},page_to_bo={index}", thp="always", vram_bytes=8 * M)
    addr = b.map(2 * PMD + M)
    b.cpu_write(addr, (2 * PMD + M) // PAGE)
    for at in (addr, addr + PMD, addr + 2 * PMD):
        b.gpu_write(at, 4)
    b.mm.munmap(addr + PMD + 8 * PAGE, 64 * K)  # splits a folio of the device
    b.cpu_read(addr, 512)
    b.gpu_write(addr, 512)
    b.mm.munmap(addr + PMD, PMD)
    assert {b.memory.zone_device_data(pfn) for pfn in vram_pfns(b)} == {None}
    assert not any(b.memory.zone_device_flag(pfn) for pfn in vram_pfns(b))
    b.kernel.settle()
    costs = b.driver.tiles[0].dpagemap.index.costs
    assert costs.stores - costs.erases == b.driver.describe()["bos"] == 2
    assert costs.lookups > 0


@pytest.mark.parametrize("embedding", EMBEDDINGS)
def test_a_dev_pagemap_leads_to_its_drm_pagemap_and_to_xes_object(bench, embedding):
    b = bench(f"xe:embedding={embedding}")
    driver = b.driver
    (pagemap,) = driver.dev_pagemaps()
    dpagemap = driver.tiles[0].dpagemap
    assert driver.embedding.pagemap_of(pagemap) is dpagemap
    assert driver.embedding.container_of(pagemap) is dpagemap.container
    assert (pagemap.container is dpagemap) == (embedding == "dev_in_drm")
    if isinstance(driver.embedding, P2pProvider):
        assert driver.embedding.provider_of(pagemap).pgmap is pagemap


def test_eviction_finds_what_an_index_leads_to(bench):
    b = bench("xe:page_to_bo=offset", thp="never", vram_bytes=4 * M)
    addr = b.map(4 * PMD)
    b.cpu_write(addr, 4 * PMD // PAGE)
    for block in range(4):
        b.gpu_write(addr + block * PMD, 512)
    assert b.kernel.stats.evictions == 2
    b.cpu_read(addr, 4 * PMD // PAGE)
    assert b.driver.tiles[0].dpagemap.index.costs.nodes == 0


def test_an_entry_that_gets_no_memory_leaves_the_pages_at_home(bench):
    b = bench("xe:page_to_bo=xarray", thp="never")
    addr = b.map(PMD)
    b.cpu_write(addr, 512)
    b.kernel.arm("page_index.xa_node")
    b.gpu_read(addr)  # an access that is no atomic is served from system memory
    assert b.device_pages(addr, 512) == 0
    with pytest.raises(InputError, match="unknown value"):
        read_spec("xe:page_to_bo=zdd", {"xe": INFO})
    assert errno.ENOMEM in INFO.refusals.populate.failed


def test_lookups_and_entries_agree_on_the_allocation(bench):
    b = bench("xe:page_to_bo=xarray", thp="never")
    addr = b.map(M)
    b.cpu_write(addr, M // PAGE)
    b.gpu_read(addr)
    b.gpu_read(addr + 64 * K)
    zdds = {
        page_zdd(b.memory, int(b.vm.page_table.pfns(at // PAGE, at // PAGE + 1)[0])) for at in (addr, addr + 64 * K)
    }
    assert len(zdds) == 2


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (
            "xe:page_to_bo=chunk",
            (
                "page_to_bo=chunk: one dev_pagemap covers the VRAM of a tile, and many objects lie in it, so that it "
                "cannot lead to the one of a page"
            ),
        ),
        (
            "xe:embedding=chunk",
            (
                "embedding=chunk: a drm_pagemap points to one dev_pagemap, and memory that grows by chunks has one "
                "for each"
            ),
        ),
        (
            "xe:embedding=dev_in_drm+p2p_provider",
            (
                "embedding=dev_in_drm+p2p_provider: xe_pagemap has 2 dev_pagemaps, in its drm_pagemap and in its "
                "pci_p2pdma_pagemap, and a page leads to one: core, which asks a page for its drm_pagemap, needs that "
                "in drm_pagemap; drivers/pci/p2pdma.c:to_p2p_pgmap needs that in pci_p2pdma_pagemap"
            ),
        ),
    ],
)
def test_what_cannot_work_is_refused_with_the_reason(spec, reason):
    with pytest.raises(InputError) as refused:
        read_spec(spec, {"xe": INFO})
    assert str(refused.value) == f"driver spec {spec!r}: {reason}"


def test_without_zone_device_data_each_folio_is_looked_up_when_freed_and_marks_have_a_bitmap(bench):
    b = bench("xe:page_to_bo=offset", thp="never")
    addr = b.map(PMD)
    b.cpu_write(addr, 512)
    b.gpu_write(addr)
    costs, marks = b.driver.tiles[0].dpagemap.index.costs, "page_marks_bytes"
    lookups = costs.lookups
    assert b.kernel.gauges.now[marks] == 512 // 8
    b.mm.munmap(addr, 16 * PAGE)
    assert costs.lookups - lookups == 16
    b.mm.munmap(addr + 16 * PAGE, PMD - 16 * PAGE)
    assert costs.lookups - lookups == 512
    assert (b.kernel.gauges.now[marks], b.kernel.gauges.peak[marks]) == (0, 512 // 8)
