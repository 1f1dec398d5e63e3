"""drivers/gpu/drm/ttm/ttm_bo.c and ttm_resource.c, as of Linux 7.3.4: buffer objects in device memory, and who makes
room.
"""

from collections.abc import Callable
from errno import EBUSY, ENOMEM, ENOSPC
from typing import TYPE_CHECKING, Any

from gpusvm.drm.buddy import Block, Buddy
from gpusvm.errors import KernelError
from gpusvm.kernel import Kernel, Kref, Work

if TYPE_CHECKING:
    from gpusvm.drm.devmem import Devmem
    from gpusvm.drm.fence import Fence


class Bo:
    """Be one allocation of device memory. Built by BoManager.create.

    `blocks` are the places [(first page, pages), …], empty once it was evicted. `resv` is its lock (dma_resv).
    `devmem` and `container` are the driver's: what the object is used for, and what embeds it. `busy` is what the
    device has still to do there before the memory can be somebody else's.
    """

    __slots__ = (
        "_kref",
        "_next",
        "_prev",
        "blocks",
        "busy",
        "container",
        "devmem",
        "evictable",
        "lru_seq",
        "manager",
        "pinned",
        "resv",
        "size_pages",
    )

    def __init__(self, manager: "BoManager", size_pages: int, blocks: list[Block], *, evictable: bool) -> None:
        kernel = manager.kernel
        self.manager = manager
        self.size_pages = size_pages
        self.blocks = blocks
        self.evictable = evictable
        self.pinned = False
        self.devmem: Devmem | None = None
        self.container: Any = None
        self.busy: Fence | None = None
        self.resv = kernel.mutex("dma_resv")
        self.lru_seq = 0  # 0: not on the list
        self._prev: Bo | None = None
        self._next: Bo | None = None
        self._kref = Kref(kernel, "bo", self._release, holder="creator")
        kernel.gauges.inc("bo")

    def get(self, holder: object) -> None:
        """Take a reference (ttm_bo_get)."""
        self._kref.get(holder)

    def get_unless_zero(self, holder: object) -> bool:
        """Take a reference unless the last was put; return whether it was taken (ttm_bo_get_unless_zero)."""
        return self._kref.get_unless_zero(holder)

    def put(self, holder: object = "creator") -> None:
        """Drop a reference (ttm_bo_put); the one from create has no name. The last frees the memory and may sleep."""
        self._kref.put(holder)

    def put_async(self, holder: object = "creator") -> None:
        """Drop a reference from a worker: for atomic context (xe_bo_put_async)."""
        self.manager._put_later(self, holder)

    @property
    def refcount(self) -> int:
        """Return how many references there are."""
        return self._kref.count

    def _release(self) -> None:
        self.manager._destroy(self)


class BoManager:
    """Hand out one device's memory, and evict the least recently used objects when there is not enough.

    The list is in the order of creation unless `bump` moves an object to its end: without bumps eviction is FIFO.
    `evict(bo)` moves the contents away, resv held; a KernelError of EBUSY or ENOSPC skips the object, any other ends
    the walk. What-if: one that `makes_room` not leaves memory full. Charges bo_alloc; injection site ``bo.alloc``
    (ENOMEM).
    """

    __slots__ = (
        "_head",
        "_put_list",
        "_put_work",
        "_seq",
        "_tail",
        "_workqueue",
        "buddy",
        "contiguous",
        "evict",
        "evictions",
        "kernel",
        "live",
        "makes_room",
        "name",
        "on_destroy",
        "page_shift",
        "top_down",
    )

    def __init__(
        self,
        kernel: Kernel,
        buddy: Buddy,
        *,
        name: str = "vram",
        evict: Callable[[Bo], None] | None = None,
        on_destroy: Callable[[Bo], None] | None = None,
        contiguous: bool = True,
        top_down: bool = False,
        page_shift: int = 12,
        makes_room: bool = True,
    ) -> None:
        self.kernel = kernel
        self.buddy = buddy
        self.name = name
        self.evict = evict
        self.on_destroy = on_destroy
        kernel.gauges.declare("bo")
        self.contiguous = contiguous
        self.top_down = top_down
        self.page_shift = page_shift
        self.makes_room = makes_room
        self.evictions = 0
        self.live = 0
        self._head: Bo | None = None
        self._tail: Bo | None = None
        self._seq = 0
        self._put_list: list[tuple[Bo, object]] = []
        self._workqueue = kernel.workqueue("bo_put_async")
        self._put_work = Work(self._put_listed, "bo_put_async")

    def create(
        self, size_pages: int, *, evictable: bool = True, pinned: bool = False, contiguous: bool | None = None
    ) -> Bo:
        """Return a new object with its resv locked (ttm_bo_init_reserved); the caller unlocks it.

        ENOMEM if there is no room even after evicting what can be evicted, or what `evict` raised. An object larger
        than the memory evicts nothing.
        """
        kernel = self.kernel
        kernel.charge("bo_alloc")
        if kernel.inject("bo.alloc"):
            raise KernelError(ENOMEM, f"{self.name}: injected at bo.alloc")
        if size_pages > self.buddy.size_pages:
            raise KernelError(ENOMEM, f"{self.name}: {size_pages} pages wanted of {self.buddy.size_pages}")
        blocks = self._alloc(size_pages, self.contiguous if contiguous is None else contiguous)
        bo = Bo(self, size_pages, blocks, evictable=evictable)
        bo.pinned = pinned
        self.live += 1
        bo.resv.lock()
        self._add_tail(bo)
        return bo

    def evict_all(self, *, passes_over: bool = False) -> KernelError | None:
        """Move the contents of all objects away, oldest first (ttm_resource_manager_evict_all).

        As in Linux the first that cannot be moved ends it, EBUSY and ENOSPC too, and those behind it stay; its error is
        returned. With `passes_over` the others are moved nevertheless, and the first error is returned in the end.
        """
        kernel = self.kernel
        failed: KernelError | None = None
        done_seq = 0
        while True:
            bo = next((bo for bo in self.lru() if bo.lru_seq > done_seq and bo.evictable and not bo.pinned), None)
            if bo is None:
                return failed
            if not bo.get_unless_zero("evict_all"):
                # ttm_bo_evict_first says that it is done with it, and finds it again until its memory is free.
                kernel.cond_resched()
                if bo in self.lru():  # not freed while others were let go first
                    kernel.cpu_relax()
                continue
            seq = bo.lru_seq
            bo.resv.lock()
            try:
                if bo.blocks:
                    self._move_away(bo)
            except KernelError as error:
                failed = failed or error
                if not passes_over:
                    return failed
                done_seq = seq
            finally:
                bo.resv.unlock()
                bo.put("evict_all")
            kernel.cond_resched()

    def move_in(self, bo: Bo) -> None:
        """Give an object that was moved away a place again, the first that is free (ttm_bo_validate). ENOMEM."""
        with bo.resv:
            if not bo.blocks:
                bo.blocks = self._alloc(bo.size_pages, self.contiguous)
                self._add_tail(bo)

    def bump(self, bo: Bo) -> None:
        """Move an object to the end of the list (ttm_bo_move_to_lru_tail)."""
        if bo.lru_seq:
            self._unlink(bo)
            self._add_tail(bo)

    def lru(self) -> list[Bo]:
        """Return the objects, the one to be evicted first at the front."""
        bos = []
        bo = self._head
        while bo is not None:
            bos.append(bo)
            bo = bo._next
        return bos

    @property
    def used_bytes(self) -> int:
        """Return how much memory is handed out."""
        return self.buddy.used_pages << self.page_shift

    def _alloc(self, size_pages: int, contiguous: bool) -> list[Block]:
        try:
            return self.buddy.alloc(size_pages, contiguous=contiguous, top_down=self.top_down)
        except KernelError:
            pass
        # ttm_bo_alloc_resource: walk the list, and after each eviction try again
        done_seq = 0
        bo = self._head if self.makes_room else None
        while bo is not None and self.evict is not None:
            done_seq = bo.lru_seq
            # Until its memory is freed an object stays on the list, though its last reference may be gone. To lock it
            # and to take one is a single step, under the lock of the list (ttm_bo_util.c:ttm_lru_walk_for_evict).
            if bo.evictable and not bo.pinned and bo.blocks and bo.get_unless_zero("evict"):
                try:
                    evicted = bo.resv.trylock() and self._evict_locked(bo)
                finally:
                    bo.put("evict")
                if evicted:
                    try:
                        return self.buddy.alloc(size_pages, contiguous=contiguous, top_down=self.top_down)
                    except KernelError:
                        pass
                # It may have left the list, or moved to its end, or be no more.
                nxt = self._head
            else:
                nxt = bo._next
            while nxt is not None and nxt.lru_seq <= done_seq:
                nxt = nxt._next
            bo = nxt
        raise KernelError(
            ENOMEM, f"{self.name}: no room for {size_pages} pages, {self.buddy.free_pages} free, nothing left to evict"
        )

    def _evict_locked(self, bo: Bo) -> bool:
        try:
            if not bo.blocks:  # somebody else has evicted it before it was locked
                return False
            try:
                self._move_away(bo)
            except KernelError as error:
                if error.errno in (EBUSY, ENOSPC):
                    return False
                raise
            self.evictions += 1
            self.kernel.stats.evictions += 1
            if self.kernel.tracer.on:
                self.kernel.tracer.emit("bo_evict", self.name, bo.size_pages)
            return True
        finally:
            bo.resv.unlock()

    def _move_away(self, bo: Bo) -> None:
        """Move the contents of a locked object (ttm_bo_evict)."""
        assert self.evict is not None
        self.evict(bo)
        # The object lives on in system memory as far as TTM is concerned; its device memory is free at once.
        self._free_blocks(bo)
        if bo.lru_seq:
            self._unlink(bo)

    def _free_blocks(self, bo: Bo) -> None:
        if bo.blocks:
            self.buddy.free(bo.blocks)
            bo.blocks = []

    def _destroy(self, bo: Bo) -> None:
        if bo.busy is not None:
            bo.busy.wait()  # ttm_bo_delayed_delete
        if bo.lru_seq:
            self._unlink(bo)
        self._free_blocks(bo)
        self.live -= 1
        self.kernel.gauges.dec("bo")
        if self.on_destroy is not None:
            self.on_destroy(bo)
        devmem = bo.devmem  # embedded in the driver's buffer object
        if devmem is not None:
            devmem.fini()
        if self.kernel.explored:
            self.kernel.free(bo, bo.resv, devmem, None if devmem is None else devmem.detached)

    def _put_later(self, bo: Bo, holder: object) -> None:
        self._put_list.append((bo, holder))
        self._workqueue.queue(self._put_work)

    def drain(self) -> None:
        """Wait until the references that were to be dropped from a worker are."""
        self._workqueue.drain()

    def _put_listed(self) -> None:
        while self._put_list:
            puts, self._put_list = self._put_list, []
            for bo, holder in puts:
                bo.put(holder)

    def _add_tail(self, bo: Bo) -> None:
        self._seq += 1
        bo.lru_seq = self._seq
        bo._prev = self._tail
        bo._next = None
        if self._tail is None:
            self._head = bo
        else:
            self._tail._next = bo
        self._tail = bo

    def _unlink(self, bo: Bo) -> None:
        if bo._prev is None:
            self._head = bo._next
        else:
            bo._prev._next = bo._next
        if bo._next is None:
            self._tail = bo._prev
        else:
            bo._next._prev = bo._prev
        bo._prev = bo._next = None
        bo.lru_seq = 0
