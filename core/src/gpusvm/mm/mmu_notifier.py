"""mm/mmu_notifier.c, as of Linux 7.3.4: tell drivers that a range of an address space is about to change.

The collision-retry protocol of interval notifiers. `invalidate_seq` of an mm is odd while an
invalidation that overlaps some subscription runs; then the tree is frozen and changes to it wait on the deferred
list. A subscription's own `invalidate_seq` is odd always, and equal to the mm's exactly when it may be colliding.
The subscriptions' spinlock is not an object: its sections begin with `kernel.step()` and do not sleep.
"""

from bisect import bisect_left, insort
from errno import EAGAIN, EINVAL, EOVERFLOW
from typing import TYPE_CHECKING, Final, cast

from gpusvm.errors import KernelError, LockdepError, ModelError
from gpusvm.kernel import Kernel, RwSemaphore
from gpusvm.mm.api import (
    MMU_NOTIFIER_RANGE_BLOCKABLE,
    MMU_NOTIFY_NAMES,
    MMU_NOTIFY_RELEASE,
    IntervalNotifierOps,
    MmuNotifier,
    MmuNotifierRange,
)
from gpusvm.mm.mmap_lock import vma_start_write
from gpusvm.mm.observer import tell

if TYPE_CHECKING:
    from gpusvm.mm.memory_manager import MemoryManager
    from gpusvm.mm.mm_struct import MmStruct
    from gpusvm.mm.vma import Vma

ULONG_MAX: Final = (1 << 64) - 1


class MmuIntervalNotifier:
    """Be one subscription to [start, last] of an mm (struct mmu_interval_notifier)."""

    __slots__ = ("deferred", "in_tree", "invalidate_seq", "last", "mm", "ops", "order", "start")

    def __init__(self, mm: "MmStruct", start: int, last: int, ops: IntervalNotifierOps) -> None:
        self.mm = mm
        self.start = start
        self.last = last
        self.ops = ops
        self.invalidate_seq = 0
        self.in_tree = False
        self.deferred = False
        # Where the tree has it among those of the same start: behind the earlier ones, as an rbtree does.
        self.order = 0

    def __repr__(self) -> str:
        """Show the interval and its sequence."""
        return f"MmuIntervalNotifier({self.mm.name}, {self.start:#x}..{self.last:#x}, seq={self.invalidate_seq})"


class IntervalTree:
    """Find the subscriptions that overlap an interval, in order of their starts (lib/interval_tree.c).

    Subscriptions are sorted by start in one list for each power of two of their lengths, so that a search looks
    only at those that begin less than twice such a length before it, however long others are.
    """

    __slots__ = ("by_size", "count", "inserted")

    def __init__(self) -> None:
        self.by_size: dict[int, list[tuple[int, int, MmuIntervalNotifier]]] = {}
        self.count = 0
        self.inserted = 0

    def insert(self, sub: MmuIntervalNotifier) -> None:
        """Add a subscription."""
        self.inserted += 1
        sub.order = self.inserted
        sub.in_tree = True
        size = (sub.last - sub.start).bit_length()
        insort(self.by_size.setdefault(size, []), (sub.start, sub.order, sub))
        self.count += 1

    def remove(self, sub: MmuIntervalNotifier) -> None:
        """Take a subscription out."""
        size = (sub.last - sub.start).bit_length()
        subs = self.by_size[size]
        del subs[bisect_left(subs, (sub.start, sub.order))]
        if not subs:
            del self.by_size[size]
        sub.in_tree = False
        self.count -= 1

    def overlapping(self, start: int, last: int) -> list[MmuIntervalNotifier]:
        """Return those that overlap [start, last]."""
        found: list[tuple[int, int, MmuIntervalNotifier]] = []
        for size, subs in self.by_size.items():
            if len(subs) == 1:
                at = 0
            else:
                at = bisect_left(subs, (start - (1 << size), 0))
            for entry in subs[at:] if at else subs:
                if entry[0] > last:
                    break
                if entry[2].last >= start:
                    found.append(entry)
        if len(found) > 1:
            found.sort()
        return [entry[2] for entry in found]


class NotifierSubscriptions:
    """Hold who watches one mm (struct mmu_notifier_subscriptions); it lives until the mm's structure goes."""

    __slots__ = (
        "active_invalidate_ranges",
        "classic",
        "deferred_list",
        "has_itree",
        "invalidate_seq",
        "itree",
        "srcu",
        "wq",
    )

    def __init__(self, kernel: Kernel) -> None:
        self.classic: list[MmuNotifier] = []
        self.has_itree = False
        self.invalidate_seq = 2
        self.active_invalidate_ranges = 0
        self.itree = IntervalTree()
        self.deferred_list: list[MmuIntervalNotifier] = []
        self.wq = kernel.waitqueue("mmu_notifier")
        self.srcu = kernel.srcu("mmu_notifier")

    @property
    def is_invalidating(self) -> bool:
        """Tell whether the tree is frozen (mn_itree_is_invalidating)."""
        return bool(self.invalidate_seq & 1)


def notifier_start(
    memory: "MemoryManager", mm: "MmStruct", start: int, end: int, event: int, owner: object | None = None
) -> MmuNotifierRange | None:
    """Open a blockable window over [start, end) and return it; None if nobody has ever subscribed to the mm."""
    if mm.notifiers is None:
        return None
    range_ = MmuNotifierRange(mm, start, end, event, owner)
    invalidate_range_start(memory, range_)
    return range_


def notifier_end(memory: "MemoryManager", range_: MmuNotifierRange | None) -> None:
    """Close a window that `notifier_start` opened."""
    if range_ is not None:
        invalidate_range_end(memory, range_)


def invalidate_range_start(memory: "MemoryManager", range_: MmuNotifierRange) -> int:
    """Open a window: 0, or -EAGAIN when the range is not blockable and somebody could not follow.

    After -EAGAIN the caller must not close it (__mmu_notifier_invalidate_range_start).
    """
    mm = cast("MmStruct", range_.mm)
    subs = mm.notifiers
    if subs is None:
        return 0
    kernel = memory.kernel
    tracer = kernel.tracer
    if tracer.on:
        tracer.emit("notifier_start", mm.name, MMU_NOTIFY_NAMES[range_.event], range_.start, range_.end)
    if subs.has_itree:
        ret = _itree_invalidate(memory, subs, range_)
        if ret:
            return ret
    elif kernel.observer is not None:
        tell(kernel.observer, "window_opened", range_)
    if subs.classic:
        ret = _classic_range_start(memory, subs, range_)
        if ret:
            # MM-S5: as written nobody takes back what the interval side counted, and its readers wait for ever.
            if subs.has_itree and memory.quirks.mm_s5 == "fixed":
                _itree_inv_end(memory, subs, range_)
            if kernel.observer is not None:
                if not subs.has_itree:
                    tell(kernel.observer, "window_closed", range_)  # nothing counts it that would keep it open
                tell(kernel.observer, "window_refused", range_)
            return ret
    return 0


def invalidate_range_end(memory: "MemoryManager", range_: MmuNotifierRange) -> None:
    """Close a window (__mmu_notifier_invalidate_range_end)."""
    mm = cast("MmStruct", range_.mm)
    subs = mm.notifiers
    if subs is None:
        return
    kernel = memory.kernel
    if subs.has_itree:
        _itree_inv_end(memory, subs, range_)
    elif kernel.observer is not None:
        tell(kernel.observer, "window_closed", range_)
    if subs.classic:
        _classic_range_end(memory, subs, range_)
    if kernel.tracer.on:
        kernel.tracer.emit("notifier_end", mm.name, MMU_NOTIFY_NAMES[range_.event], range_.start, range_.end)


def _itree_invalidate(memory: "MemoryManager", subs: NotifierSubscriptions, range_: MmuNotifierRange) -> int:
    # mn_itree_inv_start_range, then mn_itree_invalidate
    kernel = memory.kernel
    kernel.step()
    subs.active_invalidate_ranges += 1
    overlapping = subs.itree.overlapping(range_.start, range_.end - 1)
    if overlapping:
        subs.invalidate_seq |= 1
    if kernel.observer is not None:
        tell(kernel.observer, "window_opened", range_)
    if not overlapping:
        return 0
    if _call_back(memory, overlapping, range_, subs.invalidate_seq):
        return 0
    _itree_inv_end(memory, subs, range_)
    if kernel.observer is not None:
        tell(kernel.observer, "window_refused", range_)
    return -EAGAIN


def _call_back(
    memory: "MemoryManager", overlapping: list[MmuIntervalNotifier], range_: MmuNotifierRange, cur_seq: int
) -> bool:
    # The loop of mn_itree_invalidate and mn_itree_finish_pass. False: somebody could not, and the range may not block.
    kernel = memory.kernel
    blockable = range_.flags & MMU_NOTIFIER_RANGE_BLOCKABLE
    done = True
    finish: list[tuple[MmuIntervalNotifier, object]] = []
    task = kernel.current
    task.in_notifier += 1
    if not blockable:
        kernel.preempt_disable()
    try:
        for sub in overlapping:
            kernel.step()
            kernel.stats.notifier_events += 1
            kernel.charge("notifier_callback")
            if kernel.observer is not None:
                tell(kernel.observer, "callback_begins", sub, range_)
            ops = sub.ops
            start_pass = getattr(ops, "invalidate_start", None)
            if start_pass is not None:
                good, token = start_pass(sub, range_, cur_seq)
                if good and token is not None:
                    finish.append((sub, token))
            else:
                good = ops.invalidate(sub, range_, cur_seq)
            if kernel.observer is not None:
                tell(kernel.observer, "callback_ends", sub, range_)
            if not good:
                if blockable:
                    raise ModelError(
                        f"invalidate of {sub!r} returned False for a blockable range "
                        f"({MMU_NOTIFY_NAMES[range_.event]} {range_.start:#x}..{range_.end:#x}); "
                        "it may fail only when range.blockable is False"
                    )
                done = False
                break
        for sub, token in finish:
            sub.ops.invalidate_finish(token)  # type: ignore[attr-defined]  # a two-pass ops has both or neither
    except LockdepError as error:
        if kernel.observer is not None:
            tell(kernel.observer, "callback_slept", range_, error)
        raise
    finally:
        if not blockable:
            kernel.preempt_enable()
        task.in_notifier -= 1
    return done


def _itree_inv_end(memory: "MemoryManager", subs: NotifierSubscriptions, range_: MmuNotifierRange) -> None:
    # mn_itree_inv_end
    kernel = memory.kernel
    kernel.step()
    subs.active_invalidate_ranges -= 1
    if kernel.observer is not None:
        tell(kernel.observer, "window_closed", range_)
    if subs.active_invalidate_ranges or not subs.invalidate_seq & 1:
        return
    subs.invalidate_seq += 1
    if subs.deferred_list:
        do_deferred(memory, subs)
    subs.wq.wake_up_all()


def do_deferred(memory: "MemoryManager", subs: NotifierSubscriptions) -> None:
    """Change the tree as was asked while it was frozen.

    Still in the section in which the sequence has grown: who waits for that, to free a subscription that is to be
    removed here, must not see the one without the other (mmu_interval_seq_released).
    """
    for sub in subs.deferred_list:
        sub.deferred = False
        if sub.in_tree:
            subs.itree.remove(sub)
        else:
            subs.itree.insert(sub)
    subs.deferred_list.clear()


def _classic_range_start(memory: "MemoryManager", subs: NotifierSubscriptions, range_: MmuNotifierRange) -> int:
    # mn_hlist_invalidate_range_start: everybody is called even after a failure, as nobody can know that he was the one.
    kernel = memory.kernel
    blockable = range_.flags & MMU_NOTIFIER_RANGE_BLOCKABLE
    ret = 0
    task = kernel.current
    cookie = subs.srcu.read_lock()
    task.in_notifier += 1
    if not blockable:
        kernel.preempt_disable()
    try:
        for notifier in tuple(subs.classic):
            if notifier.invalidate_range_start is None:
                continue
            kernel.step()
            kernel.stats.notifier_events += 1
            kernel.charge("notifier_callback")
            if kernel.observer is not None:
                tell(kernel.observer, "callback_begins", notifier, range_)
            answer = notifier.invalidate_range_start(range_)
            if kernel.observer is not None:
                tell(kernel.observer, "callback_ends", notifier, range_)
            if answer:
                if blockable or answer != -EAGAIN:
                    raise ModelError(
                        f"invalidate_range_start of {notifier!r} returned {answer} for a range that is "
                        f"{'' if blockable else 'not '}blockable; only -EAGAIN, when it is not blockable, is allowed"
                    )
                ret = answer
        if ret:
            for notifier in tuple(subs.classic):
                if notifier.invalidate_range_end is not None:
                    notifier.invalidate_range_end(range_)
    except LockdepError as error:
        if kernel.observer is not None:
            tell(kernel.observer, "callback_slept", range_, error)
        raise
    finally:
        if not blockable:
            kernel.preempt_enable()
        task.in_notifier -= 1
        subs.srcu.read_unlock(cookie)
    return ret


def _classic_range_end(memory: "MemoryManager", subs: NotifierSubscriptions, range_: MmuNotifierRange) -> None:
    # mn_hlist_invalidate_end
    task = memory.kernel.current
    cookie = subs.srcu.read_lock()
    task.in_notifier += 1
    try:
        for notifier in tuple(subs.classic):
            if notifier.invalidate_range_end is not None:
                notifier.invalidate_range_end(range_)
    finally:
        task.in_notifier -= 1
        subs.srcu.read_unlock(cookie)


def _subscriptions(memory: "MemoryManager", mm: "MmStruct") -> NotifierSubscriptions:
    # __mmu_notifier_register up to where the notifier is linked; mmap_lock held for write
    if mm.mm_users <= 0:
        raise KernelError(EINVAL, f"{mm.name} has no users left")
    _mm_take_all_locks(mm)
    if mm.notifiers is None:
        mm.notifiers = NotifierSubscriptions(memory.kernel)
    return mm.notifiers


def _mm_take_all_locks(mm: "MmStruct") -> None:
    # Whoever opened a window before there was anybody to hear of it has closed it by the time that this returns, or its
    # end would be counted and not its beginning. All locks are free at once then; to hold them serves nobody here.
    for vma in mm.vmas:
        vma_start_write(vma)
    locks = {id(lock): lock for vma in mm.vmas for lock in _rmap_locks(vma)}.values()
    busy = next((lock for lock in locks if lock.is_locked), None)
    while busy is not None:
        busy.down_write()
        busy.up_write()
        busy = next((lock for lock in locks if lock.is_locked), None)


def _rmap_locks(vma: "Vma") -> "list[RwSemaphore]":
    locks = [] if vma.anon_vma is None else [vma.anon_vma.lock]
    return locks if vma.file is None else [*locks, vma.file.lock]


def mmu_interval_notifier_insert(
    memory: "MemoryManager", mm: "MmStruct", start: int, length: int, ops: IntervalNotifierOps
) -> MmuIntervalNotifier:
    """Subscribe to [start, start + length); takes mmap_lock for write the first time. EOVERFLOW EINVAL."""
    if mm.notifiers is None or not mm.notifiers.has_itree:
        with mm.mmap_lock.write():
            _subscriptions(memory, mm).has_itree = True
    return _interval_insert(memory, mm, start, length, ops)


def mmu_interval_notifier_insert_locked(
    memory: "MemoryManager", mm: "MmStruct", start: int, length: int, ops: IntervalNotifierOps
) -> MmuIntervalNotifier:
    """Subscribe with mmap_lock held for write. EOVERFLOW EINVAL."""
    if not mm.mmap_lock.is_write_locked:
        raise ModelError(f"mmu_interval_notifier_insert_locked needs the mmap_lock of {mm.name} held for write")
    if mm.notifiers is None or not mm.notifiers.has_itree:
        _subscriptions(memory, mm).has_itree = True
    return _interval_insert(memory, mm, start, length, ops)


def _interval_insert(
    memory: "MemoryManager", mm: "MmStruct", start: int, length: int, ops: IntervalNotifierOps
) -> MmuIntervalNotifier:
    # __mmu_interval_notifier_insert
    subs = mm.notifiers
    assert subs is not None
    last = start + length - 1
    if length <= 0 or last > ULONG_MAX:
        raise KernelError(EOVERFLOW, f"an interval notifier of {length} bytes at {start:#x}")
    if mm.mm_users <= 0:
        raise KernelError(EINVAL, f"{mm.name} has no users left")
    mm.mmgrab()
    sub = MmuIntervalNotifier(mm, start, last, ops)
    memory.kernel.step()
    if subs.active_invalidate_ranges:
        if subs.is_invalidating:
            subs.deferred_list.append(sub)
            sub.deferred = True
        else:
            subs.invalidate_seq |= 1
            subs.itree.insert(sub)
        # Equal to the mm's: colliding until the invalidation is over.
        sub.invalidate_seq = subs.invalidate_seq
    else:
        # Odd, and different from the mm's, which is even now.
        sub.invalidate_seq = subs.invalidate_seq - 1
        subs.itree.insert(sub)
    if memory.kernel.observer is not None:
        tell(memory.kernel.observer, "subscription_inserted", sub)
    return sub


def mmu_interval_notifier_remove(memory: "MemoryManager", sub: MmuIntervalNotifier) -> None:
    """Unsubscribe; sleeps until no callback of `sub` runs or will run. Not from a callback, nor under a lock of one."""
    mm = sub.mm
    subs = mm.notifiers
    kernel = memory.kernel
    if subs is None or not (sub.in_tree or sub.deferred):
        raise ModelError(f"{sub!r} is removed twice")
    kernel.might_sleep()
    if kernel.current.in_notifier:
        raise ModelError(f"{sub!r} is removed inside a notifier callback, which would wait for itself")
    kernel.step()
    if kernel.observer is not None:
        tell(kernel.observer, "subscription_removing", sub)
    seq = 0
    if subs.is_invalidating:
        if sub.in_tree:
            if sub.deferred:
                raise ModelError(f"{sub!r} is removed twice")
            subs.deferred_list.append(sub)
            sub.deferred = True
            seq = subs.invalidate_seq
        else:
            # The insert was deferred: it never was in the tree, so nobody can be calling it.
            subs.deferred_list.remove(sub)
            sub.deferred = False
    else:
        subs.itree.remove(sub)
    if seq:
        subs.wq.wait_event(lambda: subs.invalidate_seq != seq)
    if kernel.observer is not None:
        tell(kernel.observer, "subscription_removed", sub)
    mm.mmdrop()


def mmu_interval_read_begin(memory: "MemoryManager", sub: MmuIntervalNotifier) -> int:
    """Start a collision-retry section and return its sequence; sleeps while `sub` may be colliding."""
    subs = sub.mm.notifiers
    assert subs is not None, sub
    memory.kernel.step()
    seq = sub.invalidate_seq
    if seq == subs.invalidate_seq:
        subs.wq.wait_event(lambda: subs.invalidate_seq != seq)
    if memory.kernel.observer is not None:
        tell(memory.kernel.observer, "read_began", sub, seq)
    return seq


def mmu_notifier_register(memory: "MemoryManager", notifier: MmuNotifier, mm: "MmStruct") -> None:
    """Subscribe a classic notifier to the whole mm; takes mmap_lock for write. EINVAL."""
    with mm.mmap_lock.write():
        subs = _subscriptions(memory, mm)
        if notifier in subs.classic:
            raise ModelError(f"{notifier!r} is registered twice with {mm.name}")
        mm.mmgrab()
        # hlist_add_head_rcu: the newest is called first.
        subs.classic.insert(0, notifier)


def mmu_notifier_unregister(memory: "MemoryManager", notifier: MmuNotifier, mm: "MmStruct") -> None:
    """Unsubscribe; calls release if the mm has not. Sleeps until no callback of `notifier` runs."""
    subs = mm.notifiers
    assert subs is not None, notifier
    memory.kernel.might_sleep()
    if notifier in subs.classic:
        if notifier.release is not None:
            notifier.release(mm)
        if notifier in subs.classic:
            subs.classic.remove(notifier)
    subs.srcu.synchronize()
    mm.mmdrop()


def mmu_notifier_release(memory: "MemoryManager", mm: "MmStruct") -> None:
    """Tell everybody that the address space goes (__mmu_notifier_release, from exit_mmap)."""
    subs = mm.notifiers
    if subs is None:
        return
    kernel = memory.kernel
    if subs.has_itree:
        # mn_itree_release: one window over everything; the subscriptions stay in the tree.
        range_ = MmuNotifierRange(mm, 0, ULONG_MAX, MMU_NOTIFY_RELEASE)
        if kernel.tracer.on:
            kernel.tracer.emit("notifier_start", mm.name, "RELEASE", 0, ULONG_MAX)
        _itree_invalidate(memory, subs, range_)
        _itree_inv_end(memory, subs, range_)
        if kernel.tracer.on:
            kernel.tracer.emit("notifier_end", mm.name, "RELEASE", 0, ULONG_MAX)
    for notifier in tuple(subs.classic):
        if notifier.release is not None:
            notifier.release(mm)
    subs.classic.clear()
