"""drivers/gpu/drm/drm_pagemap_util.c, as of Linux 7.3.4: keep a pagemap that nobody uses, until memory is short.

A pagemap is active while it has references, inactive when the last was put, and gone when it was destroyed. An
inactive one waits on the list of its device's shrinker and is revived by whoever looks it up. After unplug nothing is
kept: the last put destroys it.
"""

from collections import deque
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from gpusvm.errors import KernelError, ModelError

if TYPE_CHECKING:
    from gpusvm.drm.device import DrmDevice
    from gpusvm.drm.pagemap import DrmPagemap
    from gpusvm.drm.quirks import DrmQuirks

__all__ = ["PagemapCache", "PagemapShrinker"]


class PagemapShrinker:
    """Hold the inactive pagemaps of one device, oldest first (struct drm_pagemap_shrinker).

    Lock order: a cache's lock, then this one's.
    """

    __slots__ = ("_dpagemaps", "_lock", "_quirks", "drm")

    def __init__(self, drm: "DrmDevice", *, quirks: "DrmQuirks") -> None:
        self.drm = drm
        self._quirks = quirks
        self._lock = drm.kernel.spinlock("drm_pagemap_shrinker.lock")
        self._dpagemaps: deque[DrmPagemap] = deque()

    def add(self, dpagemap: "DrmPagemap") -> None:
        """Keep a pagemap whose last reference is gone (drm_pagemap_shrinker_add); destroy it if the device is gone too.

        May be in atomic context.
        """
        try:
            cookie = self.drm.dev_enter()
        except KernelError:
            self._forget(dpagemap)
            dpagemap.destroy(in_atomic=True)
            return
        cache = dpagemap.cache
        assert cache is not None
        with self._lock:
            self._dpagemaps.append(dpagemap)
        cache.queued.complete_all()
        self.drm.dev_exit(cookie)

    def _forget(self, dpagemap: "DrmPagemap") -> None:
        """Have the cache forget a pagemap that is destroyed because its device is gone; as written it does not."""
        cache = dpagemap.cache
        if cache is not None and self._quirks.stale_cache == "fixed":
            with cache.lock:
                if cache.dpagemap is dpagemap:
                    cache.dpagemap = None

    @staticmethod
    def cancel(dpagemap: "DrmPagemap") -> bool:
        """Take a pagemap off the list of its shrinker (drm_pagemap_shrinker_cancel); False if it is not there."""
        cache = dpagemap.cache
        assert cache is not None
        shrinker = cache.shrinker
        with shrinker._lock:
            if dpagemap not in shrinker._dpagemaps:
                return False
            shrinker._dpagemaps.remove(dpagemap)
            return True

    def count_objects(self) -> int:
        """Return how many pagemaps could be destroyed (drm_pagemap_shrinker_count)."""
        return len(self._dpagemaps)

    def scan_objects(self, nr_to_scan: int) -> int:
        """Destroy inactive pagemaps, the oldest first, `nr_to_scan` at most and one at least; how many it were
        (drm_pagemap_shrinker_scan).
        """
        freed = 0
        while True:
            with self._lock:
                if not self._dpagemaps:
                    return freed
                dpagemap = self._dpagemaps.popleft()
            cache = dpagemap.cache
            assert cache is not None
            with cache.lock:
                # Between the two locks a lookup may have found the pagemap gone and put another into the cache: as
                # written that one is forgotten.
                if self._quirks.shrinker_forgets == "as_written" or cache.dpagemap is dpagemap:
                    cache.dpagemap = None
            dpagemap.destroy(in_atomic=True)
            freed += 1
            if freed >= nr_to_scan:
                return freed

    def fini(self) -> None:
        """End with the device (drm_pagemap_shrinker_fini). ModelError, where the kernel warns, if pagemaps are left."""
        if self._dpagemaps:
            raise ModelError(
                f"{self.drm.name}: {len(self._dpagemaps)} pagemaps are on the shrinker's list, and no cache knows them"
            )


class PagemapCache:
    """Hold the one pagemap of a piece of device memory (struct drm_pagemap_cache), without a reference.

    `lookup` is held around `get` and what follows when that finds nothing.
    """

    __slots__ = ("_lookup_mutex", "dpagemap", "lock", "queued", "shrinker")

    def __init__(self, shrinker: PagemapShrinker) -> None:
        kernel = shrinker.drm.kernel
        self.shrinker = shrinker
        self.lock = kernel.spinlock("drm_pagemap_cache.lock")
        self._lookup_mutex = kernel.mutex("drm_pagemap_cache.lookup_mutex")
        self.queued = kernel.completion("drm_pagemap_cache.queued")
        self.dpagemap: DrmPagemap | None = None

    def lookup(self) -> AbstractContextManager[object]:
        """Make a lookup atomic (drm_pagemap_cache_lock_lookup, drm_pagemap_cache_unlock_lookup)."""
        return self._lookup_mutex

    def get_if_active(self, holder: object) -> "DrmPagemap | None":
        """Return the pagemap with a reference, or None if it is not active (drm_pagemap_get_from_cache_if_active)."""
        with self.lock:
            dpagemap = self.dpagemap
            return dpagemap if dpagemap is not None and dpagemap.get_unless_zero(holder) else None

    def get(self, holder: object) -> "DrmPagemap | None":
        """Return the pagemap with a reference, revived if it was inactive; None if there is none
        (drm_pagemap_get_from_cache).
        """
        while True:
            with self.lock:
                dpagemap = self.dpagemap
                if dpagemap is None:
                    return None
                if dpagemap.get_unless_zero(holder):
                    return dpagemap
                if self.queued.done:
                    revived = self.shrinker.cancel(dpagemap)
                    self.dpagemap = None
                    break
            self.queued.wait()  # the last reference was put, and whoever did that has not got to the list yet
        if not revived:
            return None
        dpagemap.reinit(holder)
        self.set_pagemap(dpagemap)
        return dpagemap

    def set_pagemap(self, dpagemap: "DrmPagemap") -> None:
        """Put an active pagemap into the cache (drm_pagemap_cache_set_pagemap)."""
        with self.lock:
            before, self.dpagemap = self.dpagemap, dpagemap
            dpagemap.cache = self
            self.queued.reinit()
        if before is not None:
            raise ModelError(f"drm_pagemap_cache_set_pagemap: {before!r} is in the cache already")

    def fini(self) -> None:
        """End with the device (drm_pagemap_cache_fini); an inactive pagemap goes with it.

        An active one is still what faults find, whose populate then answers ENODEV. The kernel frees the cache here;
        its hardware raises no more faults by then. Nobody may look anything up any more.
        """
        with self.lock:
            dpagemap = self.dpagemap
            if dpagemap is not None and self.shrinker.cancel(dpagemap):
                self.dpagemap = None
            else:
                dpagemap = None
        if dpagemap is not None:
            dpagemap.destroy(in_atomic=False)
        self.shrinker.drm.kernel.free(self._lookup_mutex)
