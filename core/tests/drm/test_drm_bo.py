from errno import EBUSY, EFAULT, ENOMEM

import pytest
from gpusvm.drm import BoManager, Buddy, DrmDevice, Fence
from gpusvm.drm.owner import OwnerList, Peer
from gpusvm.errors import KernelError, ModelError
from gpusvm.kernel import Kernel


def make(kernel, pages=1024, **kwargs):
    evicted = []
    busy = set()

    def evict(bo):
        assert bo.resv.locked
        if bo in busy:
            raise KernelError(EBUSY, "pages are left")
        evicted.append(bo)

    return BoManager(kernel, Buddy(pages), evict=evict, **kwargs), evicted, busy


def create(manager, pages=512, **kwargs):
    bo = manager.create(pages, **kwargs)
    bo.resv.unlock()
    return bo


def test_a_new_object_is_locked_and_counted():
    kernel = Kernel()
    manager, _, _ = make(kernel)
    bo = manager.create(16)
    assert bo.resv.locked
    assert bo.blocks == [(0, 16)]
    assert kernel.gauges.now["bo"] == 1
    assert kernel.ledger.count("bo") == 1
    bo.resv.unlock()
    bo.put()
    assert manager.buddy.used_pages == 0
    assert kernel.gauges.now["bo"] == 0
    kernel.ledger.assert_empty()


def test_the_oldest_is_evicted_first():
    kernel = Kernel()
    manager, evicted, _ = make(kernel)
    a, b = create(manager), create(manager)
    c = create(manager)
    assert evicted == [a]
    assert (a.blocks, b.blocks, c.blocks) == ([], [(512, 512)], [(0, 512)])
    assert manager.lru() == [b, c]
    assert kernel.stats.evictions == manager.evictions == 1
    manager.bump(b)
    create(manager)
    assert evicted == [a, c]


def test_busy_pinned_locked_and_unevictable_objects_are_skipped():
    kernel = Kernel()
    manager, evicted, busy = make(kernel, 2560)
    a, b, c, d, e = create(manager), create(manager), create(manager), create(manager, evictable=False), create(manager)
    done = kernel.completion("done")

    def hold(lock):
        with lock:
            done.wait()

    busy.add(a)
    b.pinned = True
    kernel.spawn(hold, c.resv, name="other")
    kernel.settle()
    create(manager)
    assert evicted == [e]
    with pytest.raises(KernelError) as caught:
        manager.create(2048)
    assert caught.value.errno == ENOMEM
    assert str(caught.value) == "-ENOMEM: vram: no room for 2048 pages, 512 free, nothing left to evict"
    assert d.blocks
    done.complete()
    kernel.settle()


def test_another_error_ends_the_walk():
    kernel = Kernel()

    def evict(bo):
        raise KernelError(EFAULT, "the mm is gone")

    manager = BoManager(kernel, Buddy(512), evict=evict)
    create(manager)
    with pytest.raises(KernelError) as caught:
        manager.create(16)
    assert caught.value.errno == EFAULT


def test_eviction_goes_on_until_there_is_room():
    kernel = Kernel()
    manager, evicted, _ = make(kernel)
    small = [create(manager, 256) for _ in range(4)]
    create(manager, 512)
    assert evicted == small[:2]


def test_what_is_larger_than_the_memory_evicts_nothing():
    kernel = Kernel()
    manager, evicted, _ = make(kernel)
    create(manager)
    with pytest.raises(KernelError) as caught:
        manager.create(2048)
    assert str(caught.value) == "-ENOMEM: vram: 2048 pages wanted of 1024"
    assert evicted == []


def test_put_async_frees_from_a_worker():
    kernel = Kernel()
    manager, _, _ = make(kernel)
    bo = create(manager)
    with kernel.atomic():
        bo.put_async()
    assert manager.buddy.used_pages == 512
    kernel.settle()
    assert manager.buddy.used_pages == 0
    kernel.ledger.assert_empty()


def test_unplug_waits_for_sections_and_refuses_new_ones():
    kernel = Kernel()
    drm = DrmDevice(kernel, "gpu0")
    cookie = drm.dev_enter()
    order = []

    def unplug():
        drm.unplug()
        order.append("unplugged")

    task = kernel.spawn(unplug, name="unplug")
    kernel.settle()
    with pytest.raises(KernelError) as caught:
        drm.dev_enter()
    assert str(caught.value) == "-ENODEV: gpu0 is unplugged"
    order.append("exit")
    drm.dev_exit(cookie)
    task.join()
    assert order == ["exit", "unplugged"]
    drm.put()
    kernel.ledger.assert_empty()


def test_a_fence_wakes_and_calls_back_once():
    kernel = Kernel()
    fence = Fence(kernel, "copy")
    seen = []
    assert fence.add_callback(lambda f: seen.append(f.error))
    waiter = kernel.spawn(fence.wait, name="waiter")
    kernel.settle()
    assert not waiter.done
    fence.signal(5)
    assert waiter.join() == 5
    assert seen == [5]
    assert not fence.add_callback(seen.append)
    with pytest.raises(ModelError) as caught:
        fence.signal()
    assert str(caught.value) == "fence 'copy' is signaled twice"


def test_a_newcomer_joins_the_first_group_that_it_reaches_as_a_whole():
    reach = {(0, 1), (1, 2), (0, 3), (1, 3)}

    def has_interconnect(a, b):
        return (a.private, b.private) in reach or (b.private, a.private) in reach

    def join(order):
        owners = OwnerList()
        peers = {i: Peer(i) for i in order}
        for i in order:
            owners.acquire_owner(peers[i], has_interconnect)
        groups = []
        for peer in owners.peers:
            if not groups or groups[-1][0].owner is not peer.owner:
                groups.append([])
            groups[-1].append(peer)
        return [[peer.private for peer in group] for group in groups]

    assert join([0, 1, 2, 3]) == [[0, 1, 3], [2]]
    assert join([2, 1, 0, 3]) == [[2, 1], [0, 3]]  # depends on who joined first


def reaches_all(a, b):
    return True


def test_a_peer_can_leave():
    owners = OwnerList()
    a, b = Peer("a"), Peer("b")
    first = owners.acquire_owner(a, reaches_all)
    assert owners.acquire_owner(b, reaches_all) is first
    owners.release_owner(a)
    assert owners.peers == [b]
    assert a.owner is None
