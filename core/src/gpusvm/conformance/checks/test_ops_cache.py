"""A pagemap that is kept while nobody uses it: who finds it, who destroys it, and how often (drm_pagemap_cache)."""

from typing import TYPE_CHECKING, Final

from gpusvm.conformance.areas import written
from gpusvm.conformance.ops import OpsLog, watched_ops
from gpusvm.conformance.ops_scenes import on_device, pagemap_of, populate
from gpusvm.conformance.small import BLOCK_PAGES, small
from gpusvm.conformance.suite import Lab, check
from gpusvm.drm import DrmPagemap, PagemapCache

if TYPE_CHECKING:
    from gpusvm.testing import Bench

_UTIL: Final = "drivers/gpu/drm/drm_pagemap_util.c"
_NEEDS: Final = ("pagemap_cache",)


def _used(lab: Lab) -> "tuple[Bench, DrmPagemap, PagemapCache]":
    bench = small(lab)
    pagemap = pagemap_of(bench)
    assert pagemap.cache is not None, "the pagemap is in no cache"
    return bench, pagemap, pagemap.cache


def _left(bench: "Bench") -> None:
    bench.machine.close(bench.process)
    bench.process.vms.clear()
    bench.kernel.settle()


def _shrunk(bench: "Bench", nr: int = 8) -> int:
    freed = bench.memory.shrinkers.shrink_slab(nr)
    bench.kernel.settle()
    return freed


def _destroyed(log: OpsLog, pagemap: DrmPagemap) -> int:
    return sum(call.args[0] is pagemap for call in log.of("destroy"))


@check(
    "ops.cache.one", since="1.0", profile="device-memory", requires=_NEEDS, ref=f"{_UTIL}:drm_pagemap_get_from_cache"
)
def test_one(lab: Lab) -> None:
    """Whoever opens a device gets the one pagemap that it has, with a reference."""
    with watched_ops() as log:
        bench, pagemap, cache = _used(lab)
        before = pagemap.refcount
        other = bench.machine.process("other")
        bench.machine.open(other)
        assert pagemap_of(bench) is pagemap is cache.dpagemap
        assert [each for each in log.pagemaps if each.drm is pagemap.drm] == [pagemap], "there are two"
        assert pagemap.refcount == before + 1, f"{before} references were there, and now {pagemap.refcount}"


@check(
    "ops.cache.inactive", since="1.0", profile="device-memory", requires=_NEEDS, ref=f"{_UTIL}:drm_pagemap_shrinker_add"
)
def test_inactive(lab: Lab) -> None:
    """With the last reference a pagemap is not destroyed: it is on the list of the shrinker, and in its cache."""
    with watched_ops() as log:
        bench, pagemap, cache = _used(lab)
        assert not cache.shrinker.count_objects(), "the shrinker is offered a pagemap that is in use"
        _left(bench)
        assert not pagemap.refcount, f"{pagemap.refcount} references are left"
        assert not log.of("destroy"), "it is destroyed"
        assert cache.dpagemap is pagemap, "the cache has forgotten it"
        assert cache.shrinker.count_objects() == 1, f"the shrinker has {cache.shrinker.count_objects()}"


@check(
    "ops.cache.revived",
    since="1.0",
    profile="device-memory",
    requires=_NEEDS,
    ref=f"{_UTIL}:drm_pagemap_get_from_cache",
)
def test_revived(lab: Lab) -> None:
    """Who opens the device again gets the pagemap that was kept, off the shrinker's list, and can populate it."""
    with watched_ops() as log:
        bench, pagemap, cache = _used(lab)
        _left(bench)
        bench.vm = bench.machine.open(bench.process)
        assert pagemap_of(bench) is pagemap, "another one is made"
        assert not cache.shrinker.count_objects(), "the shrinker has one that is in use"
        on_device(bench)
        _shrunk(bench)
        assert not log.of("destroy"), "one that is in use is destroyed"


@check(
    "ops.cache.shrunk", since="1.0", profile="device-memory", requires=_NEEDS, ref=f"{_UTIL}:drm_pagemap_shrinker_scan"
)
def test_shrunk(lab: Lab) -> None:
    """Short of memory an inactive pagemap is destroyed, once, in atomic context or reclaim; the next open makes one."""
    with watched_ops() as log:
        bench, pagemap, cache = _used(lab)
        _left(bench)
        assert _shrunk(bench) == 1, "the shrinker says that it has freed nothing"
        assert [call.args for call in log.of("destroy")] == [(pagemap, True)]
        assert cache.dpagemap is None, "the cache leads to one that is gone"
        assert not _shrunk(bench), "it is freed again"
        bench.vm = bench.machine.open(bench.process)
        assert pagemap_of(bench) is not pagemap, "one that is gone is found"
        addr = on_device(bench)
        bench.cpu_read(addr, BLOCK_PAGES)


@check(
    "ops.cache.pages-keep",
    since="1.0",
    profile="device-memory",
    requires=_NEEDS,
    ref=f"{_UTIL}:drm_pagemap_shrinker_scan",
)
def test_pages_keep(lab: Lab) -> None:
    """A pagemap whose pages a process has is in use, though nobody has the device open; without them it is not."""
    with watched_ops() as log:
        bench, pagemap, cache = _used(lab)
        addr = on_device(bench)
        _left(bench)
        assert pagemap.refcount, "pages lead to a pagemap that nobody holds for them"
        assert not _shrunk(bench), "the shrinker has freed one that is in use"
        bench.cpu_read(addr, BLOCK_PAGES)
        bench.kernel.settle()
        assert not log.of("destroy")
        assert cache.shrinker.count_objects() == 1, "the last page is gone, and it is not offered to the shrinker"
        assert _shrunk(bench) == 1
        assert _destroyed(log, pagemap) == 1


@check(
    "ops.cache.removed", since="1.0", profile="device-memory", requires=_NEEDS, ref=f"{_UTIL}:drm_pagemap_cache_fini"
)
def test_removed(lab: Lab) -> None:
    """With the device an inactive pagemap goes, where one may sleep, once."""
    with watched_ops() as log:
        bench, pagemap, _ = _used(lab)
        _left(bench)
        bench.machine.remove()
        bench.kernel.settle()
        assert [call.args for call in log.of("destroy")] == [(pagemap, False)]


@check(
    "ops.cache.unplugged",
    since="1.0",
    profile="device-memory",
    requires=(*_NEEDS, "unplug"),
    ref=f"{_UTIL}:drm_pagemap_shrinker_add",
)
def test_unplugged(lab: Lab) -> None:
    """After an unplug nothing is kept: with the last reference the pagemap is destroyed, at once and once."""
    with watched_ops() as log:
        bench, pagemap, _ = _used(lab)
        addr = written(bench)
        populate(bench, addr)
        bench.machine.unplug()
        assert not _destroyed(log, pagemap), "it is destroyed with a file open"
        _left(bench)
        assert _destroyed(log, pagemap) == 1, f"it is destroyed {_destroyed(log, pagemap)} times"
    bench.cpu_read(addr, BLOCK_PAGES)


@check(
    "ops.destroy.last",
    since="1.0",
    profile="device-memory",
    requires=("drm_pagemap",),
    ref="drivers/gpu/drm/drm_pagemap.c:drm_pagemap_put",
)
def test_last(lab: Lab) -> None:
    """At the end of the machine every pagemap has been put, and destroyed once if the driver has an op for that."""
    with watched_ops() as log:
        bench = small(lab)
        on_device(bench)
        lab.close()
    assert log.pagemaps, "there was none"
    for pagemap in log.pagemaps:
        assert not pagemap.refcount, f"{pagemap!r} has {pagemap.refcount} references"
        if getattr(pagemap.ops, "destroy", None) is not None:
            assert _destroyed(log, pagemap) == 1, f"{pagemap!r} was destroyed {_destroyed(log, pagemap)} times"
