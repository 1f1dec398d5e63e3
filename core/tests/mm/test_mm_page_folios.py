"""Struct pages: where a pfn lies, references, locks and who waits for them, allocation and what goes wrong."""

import numpy as np
import pytest
from gpusvm.errors import DeadlockError, ModelError
from gpusvm.mm.page import PG_LOCKED


@pytest.fixture
def one(lab):
    return lab()


def test_zones(one):
    pages, device = one.pages, one.device.pgmap.start_pfn
    assert pages.zone(0) is pages.zone(pages.ram_pages - 1) is pages.ram
    zone = pages.zone(device)
    assert (zone.base, zone.nr, zone.pgmap, zone.private) == (device, one.device.nr_pages, one.device.pgmap, True)
    assert repr(zone) == f"Zone({device:#x}-{device + zone.nr:#x}, device)"
    assert repr(pages.ram) == f"Zone(0x0-{pages.ram_pages:#x}, RAM)"
    for pfn in (pages.ram_pages, device - 1, device + zone.nr, -1):
        assert not pages.has_page(pfn)
        with pytest.raises(ModelError) as caught:
            pages.zone(pfn)
        assert str(caught.value) == f"pfn {pfn:#x} has no struct page"


def test_batches_are_runs_where_they_can_be(one):
    pages, device = one.pages, one.device.pgmap.start_pfn
    assert pages.select(np.array([5])) == (pages.ram, slice(5, 6))
    assert pages.select(np.array([5, 6, 7])) == (pages.ram, slice(5, 8))
    assert pages.select(np.array([device + 1, device + 2])) == (pages.zone(device), slice(1, 3))
    zone, index = pages.select(np.array([device + 4, device + 2, device + 3]))
    assert (zone.base, index.tolist()) == (device, [4, 2, 3])
    zone, index = pages.select(np.array([5, 8, 7]))  # the ends are as of a run
    assert index.tolist() == [5, 8, 7]
    mixed = np.array([device + 3, 9, device + 4, 2])
    assert pages.select(mixed) is None
    parts = [(zone.base, index.tolist(), where.tolist()) for zone, index, where in pages.split(mixed)]
    assert parts == [(0, [9, 2], [1, 3]), (device, [3, 4], [0, 2])]
    assert pages.split(np.array([], np.int64)) == []
    with pytest.raises(ModelError, match=r"^a batch names pfns without struct pages$"):
        pages.split(np.array([2, pages.ram_pages, device]))


def test_references(one):
    pages = one.pages
    pfn = pages.alloc_folio(2)
    free = pages.allocator.free_pages
    assert [pages.folio_head(pfn + i) for i in range(4)] == [pfn] * 4
    assert pages.folio_order(pfn + 3) == 2
    pages.folio_get(pfn)
    assert pages.folio_try_get(pfn)
    assert not pages.folio_try_get(pfn + 1)  # a tail
    assert one.counts(pfn) == "3/0"
    pages.folio_put(pfn, 2)
    pages.folio_put(pfn)
    assert pages.allocator.free_pages == free + 4
    assert not pages.folio_try_get(pfn)
    assert [pages.folio_order(pfn + i) for i in range(4)] == [0] * 4
    for act, message in (
        (pages.folio_put, f"folio_put of folio {pfn:#x}, refcount 0"),
        (pages.folio_get, f"folio_get of free folio {pfn:#x}, refcount 0"),
    ):
        with pytest.raises(ModelError) as caught:
            act(pfn)
        assert str(caught.value) == message


def test_many_references(one):
    pages = one.pages
    pfns = pages.alloc_pages_bulk(10)
    device = np.array([one.device.alloc() for _ in range(3)])
    both = np.concatenate([pfns, device])
    for pfn in both.tolist():
        pages.folio_get(pfn)
    assert {one.counts(pfn) for pfn in both.tolist()} == {"2/0"}
    pages.folio_put(int(pfns[4]))
    pages.unlock_many(device)
    pages.put_many(both)
    assert [one.counts(pfn)[0] for pfn in both.tolist()] == list("1111011111111")
    pages.put_many(np.delete(both, 4))
    assert not one.device.live
    with pytest.raises(ModelError) as caught:
        pages.put_many(pfns[:3])
    assert str(caught.value) == f"folio_put of a free folio in {pages.ram!r}"


def test_large_folios_among_many(one):
    pages = one.pages
    free = pages.allocator.free_pages
    pfns = np.array([pages.alloc_folio(0), pages.alloc_folio(2), pages.alloc_folio(0)])
    assert pages.folio_orders(pfns).tolist() == [0, 2, 0]
    pages.put_many(pfns)
    assert pages.allocator.free_pages == free
    mixed = np.array([one.device.alloc(3), 4])
    assert pages.folio_orders(mixed).tolist() == [3, 0]
    assert pages.folio_orders(mixed[:0]).tolist() == []


def test_bad_pages_are_not_freed(one):
    pages = one.pages
    pfn = pages.alloc_folio(0)
    pages.folio_lock(pfn)
    with pytest.raises(ModelError) as caught:
        pages.folio_put(pfn)
    assert str(caught.value) == f"bad page {pfn:#x} freed: mapcount 0, locked"
    many = pages.alloc_pages_bulk(3)
    pages.ram.mapcount[many[1]] = 1
    with pytest.raises(ModelError, match=r"^a bad page among many freed: mapped or locked$"):
        pages.put_many(many)


def test_locks(one):
    pages = one.pages
    pfn = pages.alloc_folio(0)
    assert pages.folio_trylock(pfn)
    assert pages.folio_locked(pfn)
    assert not pages.folio_trylock(pfn)
    pages.folio_unlock(pfn)
    with pytest.raises(ModelError) as caught:
        pages.folio_unlock(pfn)
    assert str(caught.value) == f"folio_unlock of folio {pfn:#x}, which is not locked"


def test_many_locks(one):
    pages = one.pages
    pfns = pages.alloc_pages_bulk(6)
    for pfn in pfns.tolist():
        pages.folio_lock(pfn)
    pages.unlock_many(pfns)
    assert not pages.lock_owner
    pages.lock_new(pfns)
    with pytest.raises(ModelError) as caught:
        pages.lock_new(pfns)
    assert str(caught.value) == f"a folio said to be new is locked, in {pages.ram!r}"
    pages.folio_unlock(int(pfns[4]))
    with pytest.raises(ModelError) as caught:
        pages.unlock_many(pfns)
    assert str(caught.value) == f"folio_unlock of folio {pfns[4]:#x}, which is not locked"


@pytest.mark.parametrize("mode", ["timed", "explored"])
@pytest.mark.parametrize("many", [False, True])
def test_waiters_get_the_lock_in_turn(lab, mode, many):
    one = lab(mode=mode)
    pages = one.pages
    pfns = pages.alloc_pages_bulk(2)
    pfn = int(pfns[0])
    pages.lock_new(pfns)
    order = []

    def locker(name):
        pages.folio_lock(pfn)
        order.append(name)
        one.kernel.cond_resched()
        pages.folio_unlock(pfn)

    tasks = [one.kernel.spawn(locker, name, name=name) for name in "abc"]
    watcher = one.kernel.spawn(pages.folio_wait_locked, pfn, name="watcher")
    one.kernel.settle()
    assert order == []
    if many:
        pages.unlock_many(pfns)
    else:
        pages.folio_unlock(pfn)
    for task in tasks:
        task.join()
    watcher.join()
    assert sorted(order) == ["a", "b", "c"]
    assert not pages.folio_locked(pfn)
    assert not pages._waiters


def test_nobody_unlocks(one):
    pages = one.pages
    pfn = pages.alloc_folio(0)
    pages.folio_lock(pfn)
    with pytest.raises(DeadlockError, match=f"folio lock of pfn {pfn:#x}, locked by main"):
        pages.folio_lock(pfn)


def test_injected_failures(one):
    one.kernel.arm("alloc.folio")
    one.kernel.arm("alloc.pages", nth=2)
    assert one.pages.alloc_folio(0) is None
    assert one.pages.alloc_folio(0) is not None
    assert one.pages.alloc_pages_bulk(2) is not None
    assert one.pages.alloc_pages_bulk(2) is None
    assert one.pages.alloc_pages_bulk(2) is not None


def test_memory_runs_out(lab):
    one = lab(ram_pages=16)
    assert one.pages.alloc_pages_bulk(17) is None
    assert one.pages.alloc_folio(3) is not None
    assert one.pages.alloc_pages_bulk(8) is not None
    assert one.pages.alloc_folio(0) is None
    assert len(one.pages.alloc_pages_bulk(0)) == 0


def test_what_a_page_costs(lab):
    """The arrays take at most 45 bytes a page, and nothing for a page that was never touched."""
    one = lab(ram_pages=1 << 22, pmd_order=9)
    zone = one.pages.ram
    arrays = [getattr(zone, name) for name in zone.__slots__ if isinstance(getattr(zone, name), np.ndarray)]
    assert sum(array.itemsize for array in arrays) <= 45
    assert not zone.flags[: 1 << 20].any()
    assert not zone.m_flags[5] & PG_LOCKED
