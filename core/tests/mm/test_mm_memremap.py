"""The life of a dev_pagemap and of its pages, and zone_device_data."""

from errno import EINVAL, ENOMEM, ENXIO

import numpy as np
import pytest
from gpusvm.errors import KernelError, LockdepError, ModelError
from gpusvm.mm.api import (
    MEMORY_DEVICE_COHERENT,
    MEMORY_DEVICE_FS_DAX,
    MEMORY_DEVICE_GENERIC,
    MEMORY_DEVICE_PCI_P2PDMA,
    MEMORY_DEVICE_PRIVATE,
    DevPagemap,
)
from gpusvm.mm.page import PG_LOCKED, POISON_DEVICE


class Ops:
    """Callbacks that write down what is freed."""

    folio_split = None
    folios_free = None

    def __init__(self):
        self.freed = []

    def migrate_to_ram(self, vmf):
        raise AssertionError

    def folio_free(self, pfn, order):
        self.freed.append((pfn, order))


@pytest.fixture
def one(lab):
    return lab()


def pagemap(one, *, kind=MEMORY_DEVICE_PRIVATE, nr=16, owner="us", ops=None, start=None):
    start = one.memory.request_free_mem_region(nr) if start is None else start
    pgmap = DevPagemap(kind, start, nr, owner, Ops() if ops is None else ops)
    one.memory.memremap_pages(pgmap)
    return pgmap


def refused(one, **options):
    with pytest.raises(KernelError) as caught:
        pagemap(one, **options)
    return caught.value.errno, str(caught.value)


def test_what_memremap_refuses(one):
    mapped = pagemap(one)
    start = mapped.start_pfn
    assert refused(one, nr=0, start=start + 64) == (EINVAL, "-EINVAL: memremap_pages of no pages")
    assert refused(one, owner=None) == (EINVAL, "-EINVAL: a device pagemap needs an owner")
    assert refused(one, owner=None, kind=MEMORY_DEVICE_COHERENT) == (EINVAL, "-EINVAL: a device pagemap needs an owner")
    ops = Ops()
    ops.migrate_to_ram = None
    assert refused(one, ops=ops) == (EINVAL, "-EINVAL: a device-private pagemap needs migrate_to_ram")
    pagemap(one, ops=ops, kind=MEMORY_DEVICE_COHERENT)
    ops = Ops()
    ops.folio_free = None
    assert refused(one, ops=ops) == (EINVAL, "-EINVAL: a device pagemap needs folio_free")
    assert refused(one, kind=9) == (EINVAL, "-EINVAL: no memory type has the number 9")
    overlap = f"-ENOMEM: pfns {start + 15:#x}-{start + 31:#x} overlap another pagemap's"
    assert refused(one, start=start + 15) == (ENOMEM, overlap)
    assert refused(one, start=8) == (ENXIO, "-ENXIO: pfns 0x8-0x18 overlap system RAM")
    one.memory.memunmap_pages(mapped)
    pagemap(one, start=start)


def test_references_of_private_pages(one):
    pgmap = pagemap(one)
    start = pgmap.start_pfn
    assert pgmap.ref == 1
    one.memory.zone_device_folio_init(start, pgmap, 0)
    assert pgmap.ref == 2
    one.memory.zone_device_folio_init(start + 8, pgmap, 3)
    assert pgmap.ref == 10
    one.memory.zone_device_folios_init(np.array([start + 1, start + 4]), pgmap)
    assert pgmap.ref == 12
    assert one.memory.get_dev_pagemap(start) is pgmap
    assert pgmap.ref == 13
    one.memory.put_dev_pagemap(pgmap)
    for pfn in (start + 4, start + 8, start, start + 1):
        one.pages.folio_unlock(pfn)
        one.pages.folio_put(pfn)
    assert pgmap.ops.freed == [(start + 4, 0), (start + 8, 3), (start, 0), (start + 1, 0)]
    assert pgmap.ref == 1


@pytest.mark.parametrize(
    ("kind", "ref", "refcount"),
    [
        (MEMORY_DEVICE_PRIVATE, 1, 0),
        (MEMORY_DEVICE_COHERENT, 1, 0),
        (MEMORY_DEVICE_FS_DAX, 17, 0),
        (MEMORY_DEVICE_GENERIC, 17, 1),
        (MEMORY_DEVICE_PCI_P2PDMA, 17, 0),
    ],
)
def test_references_by_type(one, kind, ref, refcount):
    pgmap = pagemap(one, kind=kind)
    assert pgmap.ref == ref
    zone = one.pages.zone(pgmap.start_pfn)
    assert (zone.refcount == refcount).all()
    assert one.memory.page_pgmap(pgmap.start_pfn + 15) is pgmap
    one.memory.memunmap_pages(pgmap)
    assert pgmap.ref == 0
    assert one.memory.get_dev_pagemap(pgmap.start_pfn) is None


def test_new_folio(one):
    pgmap = pagemap(one)
    start = pgmap.start_pfn
    one.memory.zone_device_folio_init(start, pgmap, 3)
    assert one.counts(start) == "1/0"
    assert one.flags(start) == PG_LOCKED
    assert [one.pages.folio_head(start + i) for i in range(8)] == [start] * 8
    assert [one.pages.folio_order(start + i) for i in range(9)] == [3] * 8 + [0]
    assert one.memory.contents.token(start + 7) == POISON_DEVICE
    one.pages.folio_unlock(start)
    one.pages.folio_put(start)
    # The compound metadata stays until the pages are initialised again, each for itself.
    assert one.pages.folio_order(start) == 3
    one.memory.zone_device_folio_init(start + 2, pgmap, 0)
    assert [one.pages.folio_order(start + i) for i in range(4)] == [3, 3, 0, 3]
    one.memory.zone_device_folio_init(start, pgmap, 1)
    assert [one.pages.folio_order(start + i) for i in range(3)] == [1, 1, 0]


def test_folio_in_use_is_not_initialised_again(one):
    pgmap = pagemap(one)
    start = pgmap.start_pfn
    one.memory.zone_device_folio_init(start, pgmap, 0)
    with pytest.raises(ModelError) as caught:
        one.memory.zone_device_folio_init(start, pgmap, 0)
    assert str(caught.value) == f"zone_device_folio_init of pfn {start:#x}, refcount 1"
    with pytest.raises(ModelError) as caught:
        one.memory.zone_device_folios_init(np.array([start + 1, start]), pgmap)
    assert str(caught.value) == f"zone_device_folios_init of pages in use in {one.pages.zone(start)!r}"
    other = pagemap(one)
    with pytest.raises(ModelError):
        one.memory.zone_device_folio_init(start + 1, other, 0)


def test_unplug_waits_for_the_last_page_and_reference(one):
    pgmap = pagemap(one)
    start = pgmap.start_pfn
    one.memory.zone_device_folio_init(start, pgmap, 0)
    one.pages.folio_unlock(start)
    one.memory.get_dev_pagemap(start)
    unplug = one.kernel.spawn(one.memory.memunmap_pages, pgmap, name="unplug")
    one.kernel.settle()
    assert not unplug.done
    assert pgmap.killed
    # Killed: no new references; pages that are allocated all the same only earn a warning.
    assert one.memory.get_dev_pagemap(start) is None
    one.kernel.tracer.on = True
    one.memory.zone_device_folio_init(start + 1, pgmap, 0)
    assert one.kernel.tracer.events[-1][2:] == ("warn", "zone_device_page_init", "pagemap killed", start)
    one.pages.folio_unlock(start + 1)
    one.pages.folio_put(start + 1)
    one.pages.folio_put(start)
    one.kernel.settle()
    assert not unplug.done
    one.memory.put_dev_pagemap(pgmap)
    unplug.join()
    assert pgmap.ref == 0
    assert not one.pages.has_page(start)
    with pytest.raises(ModelError) as caught:
        one.memory.memunmap_pages(pgmap)
    assert str(caught.value) == f"memunmap_pages of a pagemap that is not mapped, pfn {start:#x}"


def test_too_many_puts(one):
    pgmap = pagemap(one)
    with pytest.raises(ModelError) as caught:
        one.memory.put_dev_pagemap(pgmap)
    assert str(caught.value) == f"pagemap of pfn {pgmap.start_pfn:#x} has 0 references, killed False"


@pytest.mark.breaks_invariants
def test_folio_free_must_not_sleep(one):
    class Sleeper(Ops):
        def folio_free(self, pfn, order):
            one.kernel.might_sleep()

    pgmap = pagemap(one, ops=Sleeper())
    one.memory.zone_device_folio_init(pgmap.start_pfn, pgmap, 0)
    one.pages.folio_unlock(pgmap.start_pfn)
    with pytest.raises(LockdepError):
        one.pages.folio_put(pgmap.start_pfn)


def test_many_freed_at_once(one):
    class Bulk(Ops):
        def __init__(self):
            super().__init__()
            self.bulk = []
            self.folios_free = self.free_many

        def free_many(self, pfns):
            self.bulk.append(pfns.tolist())

    pgmap = pagemap(one, ops=Bulk())
    start = pgmap.start_pfn
    pfns = np.arange(start + 2, start + 8)
    one.memory.zone_device_folios_init(pfns, pgmap)
    one.pages.unlock_many(pfns)
    one.pages.folio_get(start + 4)
    one.pages.put_many(pfns)
    assert pgmap.ops.bulk == [[start + 2, start + 3, start + 5, start + 6, start + 7]]
    one.pages.folio_put(start + 4)
    assert pgmap.ops.freed == [(start + 4, 0)]
    assert pgmap.ref == 1
    # A large folio among them: one call each.
    one.memory.zone_device_folio_init(start, pgmap, 1)
    one.memory.zone_device_folios_init(np.array([start + 5]), pgmap)
    one.pages.unlock_many(np.array([start, start + 5]))
    one.pages.put_many(np.array([start, start + 5]))
    assert pgmap.ops.freed == [(start + 4, 0), (start, 1), (start + 5, 0)]
    assert pgmap.ref == 1


def test_freed_while_mapped_is_an_error(one):
    one.map(1)
    one.device.migrate(one.mm, one.va(0), one.va(1))
    pfn = one.pfn(0)
    with pytest.raises(ModelError) as caught:
        one.pages.folio_put(pfn)
    assert str(caught.value) == f"device folio {pfn:#x} freed while mapped 1 times"


def test_regions_do_not_touch(one):
    regions = [one.memory.request_free_mem_region(nr) for nr in (1, 8, 9, 20)]
    for (start, nr), behind in zip(zip(regions, (1, 8, 9), strict=False), regions[1:], strict=True):
        assert start % one.nr == 0
        assert behind >= start + nr + one.nr
    assert regions[0] > one.pages.ram_pages
    with pytest.raises(ModelError, match=rf"^pfn {regions[0]:#x} has no struct page$"):
        one.pages.zone(regions[0])


# --- zone_device_data


def test_data_and_flag(one):
    pgmap = pagemap(one)
    memory, start = one.memory, pgmap.start_pfn
    first, second = object(), object()
    pfns = np.arange(start, start + 8)
    assert memory.zone_device_data(start) is None
    memory.set_zone_device_data(pfns, first)
    assert all(memory.zone_device_data(pfn) is first for pfn in pfns.tolist())
    memory.set_zone_device_flag(start + 3)
    memory.set_zone_device_flag(np.array([start + 5, start + 1]))
    assert memory.zone_device_flags(pfns).tolist() == [False, True, False, True, False, True, False, False]
    assert memory.zone_device_flag(start + 3)
    assert memory.zone_device_data(start + 3) is first
    memory.set_zone_device_data(start + 3, second)
    assert not memory.zone_device_flag(start + 3)
    assert memory.zone_device_data(start + 3) is second
    memory.set_zone_device_data(pfns, second)
    assert not memory.zone_device_flags(pfns).any()
    assert all(memory.zone_device_data(pfn) is second for pfn in pfns.tolist())


def test_objects_are_let_go(one):
    pgmap = pagemap(one)
    memory, start = one.memory, pgmap.start_pfn
    table = memory.pagemaps
    pfns = np.arange(start, start + 16)
    for _ in range(40):
        memory.set_zone_device_data(pfns[:8], object())
        memory.set_zone_device_data(pfns[8:], object())
        memory.set_zone_device_data(int(pfns[3]), object())
    assert len(table._objects) <= 6
    memory.set_zone_device_data(pfns, None)
    assert table._objects == [None] * len(table._objects)
    assert not table._slots
    memory.set_zone_device_data(pfns, object())
    memory.memunmap_pages(pgmap)
    assert not table._slots
