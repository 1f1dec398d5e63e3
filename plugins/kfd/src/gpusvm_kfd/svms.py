"""drivers/gpu/drm/amd/amdkfd/kfd_svm.c:struct svm_range_list, as of Linux 7.3.4: the ranges of one process.

A notifier unmaps from the GPUs at once, and splits; the tree and the notifiers of what was split follow in a worker,
under mmap_lock for writing. Order of locks: mmap_lock > svms->lock > migrate_mutex > prange->lock.
"""

from bisect import bisect_right
from contextlib import suppress
from errno import ENOMEM
from operator import attrgetter
from typing import TYPE_CHECKING, Final

from gpusvm.errors import DriverError, KernelError
from gpusvm.kernel import Work
from gpusvm.mm.api import MMU_NOTIFY_RELEASE, MMU_NOTIFY_UNMAP

from gpusvm_kfd.mapping import unmap_from_gpus
from gpusvm_kfd.migrate import vram_to_ram
from gpusvm_kfd.svm_bo import vram_node_free
from gpusvm_kfd.svm_range import (
    GPU_ALWAYS_MAPPED,
    OP_ADD_RANGE,
    OP_NULL,
    OP_UNMAP_RANGE,
    OP_UPDATE_RANGE_NOTIFIER,
    SYSTEM,
    UNDEFINED,
    SvmRange,
    dma_unmap,
)

if TYPE_CHECKING:
    from gpusvm.mm.api import IntervalNotifier, MmApi, MmuNotifierRange

    from gpusvm_kfd.process import KfdProcess
    from gpusvm_kfd.svm_bo import SvmRangeBo

__all__ = ["SvmRangeList"]

_it_start: Final = attrgetter("it_start")
_PARENT: Final = 1  # the lock of a child is taken inside that of its parent (mutex_lock_nested)


class SvmRangeList:
    """Hold the ranges of a process; `objects` is the tree, in order of addresses."""

    def __init__(self, process: "KfdProcess") -> None:
        kernel = process.kernel
        self.process = process
        self.kernel = kernel
        self.memory = process.memory
        self.exact = process.kfd.exact
        self.lock = kernel.mutex("svms->lock")
        self.objects: list[SvmRange] = []
        self.deferred: list[SvmRange] = []
        self.deferred_lock = kernel.spinlock("svms->deferred_list_lock")
        self.deferred_work = Work(self._deferred_list_work, "svm_range_deferred_list_work")
        self.evicted_ranges = 0
        self.checkpoint_ns: dict[int, int] = {}
        tunables = process.kfd.tunables
        self.granularity = tunables.granularity >> self.memory.geometry.page_shift
        self._blockable_only = process.kfd.quirks.non_blockable == "fixed"
        self._by_parent = process.kfd.quirks.child_mapped == "as_written"
        self._gap = process.kfd.quirks.notifier_gap == "as_written"
        self._reserves = process.kfd.quirks.split_unchecked == "fixed"
        self._home = SYSTEM if tunables.preferred_loc == "system" else UNDEFINED
        self._in_place = tunables.access == "in_place"
        kernel.gauges.declare("range")

    # ---- the tree ------------------------------------------------------------------------------------------------

    def new_range(self, start: int, end: int, *, reserved: bool = False) -> SvmRange:
        """Make a range with the default attributes (svm_range_new). ENOMEM, unless its memory was `reserved`."""
        kernel = self.kernel
        if not reserved and kernel.inject("kfd.range"):
            raise KernelError(ENOMEM, "injected at kfd.range")
        prange = SvmRange(
            svms=self,
            start=start,
            end=end,
            lock=kernel.mutex("prange->lock"),
            migrate_mutex=kernel.mutex("prange->migrate_mutex"),
            preferred_loc=self._home,
            granularity=self.granularity,
        )
        if self.process.xnack:
            if self._in_place:
                prange.in_place = self.process.supported
            else:
                prange.access = self.process.supported
        kernel.gauges.inc("range")
        kernel.charge("range_insert")
        return prange

    def overlapping(self, start: int, end: int) -> list[SvmRange]:
        """Return what the tree has within [start, end), in order."""
        first = bisect_right(self.objects, start, key=_it_start)
        if first and self.objects[first - 1].it_end > start:
            first -= 1
        last = first
        while last < len(self.objects) and self.objects[last].it_start < end:
            last += 1
        return self.objects[first:last]

    def from_addr(self, page: int) -> SvmRange | None:
        """Find the range of a page, which may be a child that the tree does not have yet (svm_range_from_addr)."""
        self.kernel.charge("range_lookup")
        for prange in self.overlapping(page, page + 1):
            for each in (prange, *prange.children):
                if each.start <= page < each.end:
                    return each
        return None

    def add(self, prange: SvmRange, mm: "MmApi") -> None:
        """Put a range into the tree, with a notifier (svm_range_add_to_svms, svm_range_add_notifier_locked)."""
        self._insert(prange)
        self._add_notifier(prange, mm)

    def _insert(self, prange: SvmRange) -> None:
        prange.it_start, prange.it_end = prange.start, prange.end
        self.objects.insert(bisect_right(self.objects, prange.it_start, key=_it_start), prange)

    def _add_notifier(self, prange: SvmRange, mm: "MmApi") -> None:
        size = self.memory.geometry.page_shift
        prange.notifier = self.memory.mmu_interval_notifier_insert_locked(
            mm, prange.start << size, prange.pages << size, prange
        )
        self.kernel.gauges.inc("notifier")

    def _remove_notifier(self, sub: "IntervalNotifier | None") -> None:
        if sub is not None:
            self.memory.mmu_interval_notifier_remove(sub)
            self.kernel.gauges.dec("notifier")
            self.kernel.free(sub)

    def remove(self, prange: SvmRange, *, unmap: bool) -> None:
        """Take a range out and free it (svm_range_unlink, svm_range_remove_notifier, svm_range_free).

        Without `unmap` its DMA mappings are a clone's.
        """
        _unlink(prange)
        if prange in self.objects:
            self.objects.remove(prange)
        self._remove_notifier(prange.notifier)
        prange.notifier = None
        self.free(prange, unmap=unmap)

    def free(self, prange: SvmRange, *, unmap: bool) -> None:
        """Free a range that is in no tree, once nobody evicts it (svm_range_free). Sleeps.

        The kernel takes the mutex of a child inside its parent's without saying so, which lockdep would complain of.
        """
        _unlink(prange)
        prange.migrate_mutex.lock(_PARENT)
        prange.migrate_mutex.unlock()
        _unlink(prange)  # an eviction that failed has put it back
        vram_node_free(prange)
        if unmap:
            prange.dma_unmap()
        self.kernel.gauges.dec("range")
        self.kernel.free(prange, prange.lock, prange.migrate_mutex)

    def discard(self, prange: SvmRange) -> None:
        """Free a range that nobody knows and that holds nothing. The kernel takes its locks even then, inside those of
        the range that it was to be cut from.
        """
        self.kernel.gauges.dec("range")
        self.kernel.free(prange, prange.lock, prange.migrate_mutex)

    # ---- notifier ------------------------------------------------------------------------------------------------

    def invalidate(self, prange: SvmRange, sub: "IntervalNotifier", range_: "MmuNotifierRange", cur_seq: int) -> bool:
        """Do what svm_range_cpu_invalidate_pagetables does; what is our own is no exception."""
        if range_.event == MMU_NOTIFY_RELEASE:
            return True
        size = self.memory.geometry.page_shift
        if range_.blockable or not self._blockable_only:
            prange.lock.lock()
        elif not prange.lock.trylock():
            return False
        self.memory.mmu_interval_set_seq(sub, cur_seq)
        start = max(sub.start, range_.start) >> size
        end = (min(sub.last, range_.end - 1) >> size) + 1
        if range_.event == MMU_NOTIFY_UNMAP:
            self._unmap_from_cpu(sub.mm, prange, start, end)
        else:
            self._evict(prange, start, end)
        prange.lock.unlock()
        return True

    def _evict(self, prange: SvmRange, start: int, end: int) -> None:
        """Unmap what changes, or stop the process's queues until it is mapped again (svm_range_evict)."""
        if not self.process.xnack or prange.flags & GPU_ALWAYS_MAPPED:
            self.process.queues.evict(prange, start, end)
            return
        self._unmap(prange, start, end)

    def _unmap(self, prange: SvmRange, start: int, end: int) -> None:
        """Unmap from GPUs what a range and its children have of [start, end)."""
        for each in (*prange.children, prange):
            first, last = max(start, each.start), min(end, each.end)
            if first < last:
                unmap_from_gpus(each, first, last, self._mapped(prange, each))

    def _mapped(self, prange: SvmRange, each: SvmRange) -> int:
        """Return which GPUs have a range or a child of it mapped: as written those that have the range."""
        return prange.mapped if self._by_parent else each.mapped

    def _unmap_from_cpu(self, mm: "MmApi", prange: SvmRange, start: int, end: int) -> None:
        """Unmap, split off what goes, and leave the rest to the worker (svm_range_unmap_from_cpu)."""
        if not self.process.kfd.is_listed(self.process):
            return  # the queues are gone
        self.update_checkpoints()
        whole = start <= prange.start and end >= prange.end
        for child in list(prange.children):
            child.lock.lock(_PARENT)
            first, last = max(start, child.start), min(end, child.end)
            if first < last:
                unmap_from_gpus(child, first, last, self._mapped(prange, child))
            self._unmap_split(prange, child, start, end)
            child.lock.unlock()
        first, last = max(start, prange.start), min(end, prange.end)
        if first < last:
            unmap_from_gpus(prange, first, last, prange.mapped)
        self._unmap_split(prange, prange, start, end)
        self._defer(prange, mm, OP_UNMAP_RANGE if whole else OP_UPDATE_RANGE_NOTIFIER)

    def update_checkpoints(self) -> None:
        """Have faults dropped that were raised before now (svm_range_update_checkpoint_timestamp)."""
        for gpu, pdd in self.process.pdds.items():
            if pdd.device.has_faults:
                self.checkpoint_ns[gpu] = self.kernel.now_ns

    def _unmap_split(self, parent: SvmRange, prange: SvmRange, start: int, end: int) -> None:
        """Cut [start, end) out of a range (svm_range_unmap_split)."""
        if prange.work_op == OP_UNMAP_RANGE or start >= prange.end or end <= prange.start:
            return
        tail = self._cut(prange, prange.start, start) if start > prange.start else prange
        head = self._cut(tail, end, tail.end) if end < tail.end else prange
        if head is not prange and tail is not prange:
            self._add_child(parent, head, OP_UNMAP_RANGE)
            self._add_child(parent, tail, OP_ADD_RANGE)
        elif tail is not prange:
            self._add_child(parent, tail, OP_UNMAP_RANGE)
        elif head is not prange:
            self._add_child(parent, head, OP_UNMAP_RANGE)
        elif parent is not prange:
            prange.work_op = OP_UNMAP_RANGE

    def _cut(self, prange: SvmRange, start: int, end: int) -> SvmRange:
        """Split a range with its lock held, and so without reclaim; nobody can be told of a failure, nor, as written,
        asks: what is to be the new range is NULL. With split_unchecked fixed what it takes was set aside.
        """
        if self._reserves:
            return prange.split(start, end, reserved=True)
        try:
            return prange.split(start, end)
        except KernelError as error:
            raise DriverError("svm_range_unmap_split", f"no memory to cut {prange!r}: a NULL pointer") from error

    @staticmethod
    def _add_child(parent: SvmRange, child: SvmRange, op: int) -> None:
        child.work_op = op
        child.parent = parent
        parent.children.append(child)

    # ---- the worker ----------------------------------------------------------------------------------------------

    def _defer(self, prange: SvmRange, mm: "MmApi", op: int) -> None:
        """Queue a range for the worker (svm_range_add_list_work); not if the process is ending."""
        with self.deferred_lock:
            if prange.deferred:
                if op != OP_NULL and prange.work_op != OP_UNMAP_RANGE:
                    prange.work_op = op
            elif mm.mmget_not_zero():
                prange.work_mm = mm
                prange.work_op = op
                prange.deferred = True
                self.deferred.append(prange)
            queue = bool(self.deferred)
        if queue:
            self.process.kfd.deferred_queue.queue(self.deferred_work)

    def _deferred_list_work(self) -> None:
        """Let tree and notifiers follow (svm_range_deferred_list_work)."""
        while True:
            with self.deferred_lock:
                prange = self.deferred[0] if self.deferred else None
            if prange is None:
                return
            mm = prange.work_mm
            assert mm is not None
            with mm.mmap_lock.write():
                # Under mmap_lock, so that whoever has that and finds the list empty finds nothing half done.
                with self.deferred_lock:
                    self.deferred.remove(prange)
                    prange.deferred = False
                with self.lock:
                    if self._gap:
                        self._take_children(prange, mm)
                        self._handle(prange, mm)
                    else:
                        self._take_over(prange, mm)
            mm.mmput_async()

    def _take_children(self, prange: SvmRange, mm: "MmApi") -> None:
        """Put what a split left where it belongs: off the list, by which the notifier finds it, and then handled."""
        with prange.migrate_mutex:
            while prange.children:
                child = prange.children.pop(0)
                child.parent = None
                self._handle(child, mm)

    def _take_over(self, prange: SvmRange, mm: "MmApi") -> None:
        """Do the same with notifier_gap fixed: the old notifier, and what it finds, go when the new ones are there, and
        when it tells nobody any more.
        """
        children = list(prange.children)
        for child in children:
            if child.work_op == OP_ADD_RANGE:
                self.add(child, mm)
        freed = prange.work_op == OP_UNMAP_RANGE
        self._handle(prange, mm)
        if not freed:
            prange.children.clear()
        for child in children:
            child.parent = None
            if child.work_op != OP_ADD_RANGE:
                self._handle(child, mm)

    def _handle(self, prange: SvmRange, mm: "MmApi") -> None:
        """Do what was deferred for one range (svm_range_handle_list_op)."""
        if prange.work_op == OP_UNMAP_RANGE:
            self.remove(prange, unmap=True)
        elif prange.work_op == OP_ADD_RANGE:
            self.add(prange, mm)
        elif (prange.it_start, prange.it_end) != (prange.start, prange.end):
            # svm_range_update_notifier_and_interval_tree
            self.objects.remove(prange)
            old = prange.notifier
            if self._gap:
                self._remove_notifier(old)
                self.add(prange, mm)
            else:
                self.add(prange, mm)
                self._remove_notifier(old)

    def lock_and_flush_work(self, mm: "MmApi") -> None:
        """Take mmap_lock for writing with nothing deferred (svm_range_list_lock_and_flush_work)."""
        while True:
            self.deferred_work.flush()
            mm.mmap_lock.down_write()
            if not self.deferred:
                return
            mm.mmap_lock.up_write()
            self.kernel.cond_resched()

    def forget_gpu(self, gpu: int, mm: "MmApi") -> None:
        """Let no range have anything on a GPU that goes."""
        bit = 1 << gpu
        for prange in self.objects:
            with prange.migrate_mutex:
                if prange.actual_loc == gpu + 1:
                    with suppress(KernelError):  # what does not come is brought home by pfn
                        vram_to_ram(prange, mm, prange.start, prange.end)
                    prange.actual_loc = SYSTEM
                    prange.counted_pages = 0
                    vram_node_free(prange)
                prange.access &= ~bit
                prange.in_place &= ~bit
                with prange.lock:
                    prange.mapped &= ~bit
                kinds = prange.dma.pop(gpu, None)
                if kinds is not None:
                    dma_unmap(self.process.pdds[gpu], kinds)

    def remove_all(self) -> None:
        """Free every range, with nothing deferred."""
        for prange in list(self.objects):
            self.remove(prange, unmap=True)

    def fini(self) -> None:
        """Free all ranges, at the end of the process (svm_range_list_fini). Sleeps."""
        self.deferred_work.flush()
        self.remove_all()
        self.kernel.free(self, self.lock, self.deferred_lock, self.deferred_work)


def _unlink(prange: SvmRange) -> None:
    """Take a range off the list of its object, of which it need not hold a reference (svm_range_unlink).

    As written the object may be freed meanwhile. With freed_range fixed it is held, or has forgotten the range first.
    """
    kernel = prange.svms.kernel
    while prange.svm_bo is not None:
        if prange.svms.process.kfd.quirks.freed_range == "as_written":
            prange.svm_bo.unlink(prange)
            return
        with prange.lock:
            # The end of the object may have made the range forget it until here.
            svm_bo: SvmRangeBo | None = prange.svm_bo
            if svm_bo is None:
                return
            held = svm_bo.kref.get_unless_zero("unlink")
        if held:
            svm_bo.unlink(prange)
            if not prange.has_res:
                prange.svm_bo = None
            svm_bo.unref("unlink")
            return
        if prange.svm_bo is not None:
            kernel.cpu_relax()
