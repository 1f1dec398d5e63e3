"""Invariants 36 to 45: notifiers, their windows, and their readers."""

from typing import Any

from gpusvm.check.operations import Migration, Operation
from gpusvm.check.rules import rule
from gpusvm.check.shadow import (
    COUNTED,
    EXCLUSIVE,
    MIGRATION,
    NONE,
    OTHER,
    SPECIAL,
    SWAP,
    ZERO,
    Change,
    Entry,
    Shadow,
    entry_at,
    leaf_entry,
)
from gpusvm.errors import LockdepError
from gpusvm.kernel import Task
from gpusvm.mm import MmStruct
from gpusvm.mm.api import (
    HMM_PFN_PFN_MASK,
    HMM_PFN_REQ_WRITE,
    HMM_PFN_VALID,
    HMM_PFN_WRITE,
    MMU_NOTIFY_EXCLUSIVE,
    MMU_NOTIFY_MIGRATE,
    MMU_NOTIFY_NAMES,
    HmmRange,
    MmuNotifierRange,
)
from gpusvm.mm.mmu_notifier import MmuIntervalNotifier, NotifierSubscriptions
from gpusvm.mm.pgtable import PmdLeaf

__all__ = [
    "active_windows",
    "callback_after_removal",
    "change_in_window",
    "changed_after_refusal",
    "closed_after_refusal",
    "deferred",
    "hmm_words",
    "loses",
    "no_invalidation_since",
    "non_blockable_slept",
    "read_begin_collides",
    "removed_while_called",
    "sequence_grows",
    "sequence_parity",
    "subscription_sequence",
    "window_owner",
]


@rule(36)
def active_windows(s: Shadow, mm: MmStruct, subs: NotifierSubscriptions, windows: list[MmuNotifierRange]) -> None:
    """36: the count of active invalidations is the number of open windows."""
    known = s.spoilt_mms.get(mm) if s.at_rest else None
    if subs.active_invalidate_ranges != len(windows):
        s.report(
            36,
            f"{subs.active_invalidate_ranges} invalidations are counted as active, and {len(windows)} windows are open",
            addresses=tuple((mm.name, range_.start) for range_ in windows),
            known=known,
        )


@rule(37)
def sequence_parity(s: Shadow, mm: MmStruct, subs: NotifierSubscriptions, windows: list[MmuNotifierRange]) -> None:
    """37: nobody invalidates, so the sequence is even and nothing is deferred."""
    if not windows and (subs.invalidate_seq & 1 or subs.deferred_list):
        s.report(
            37,
            f"no window is open, and the sequence is {subs.invalidate_seq} with {len(subs.deferred_list)} deferred",
            addresses=tuple((mm.name, sub.start) for sub in subs.deferred_list),
        )


@rule(38)
def deferred(
    s: Shadow, mm: MmStruct, subs: NotifierSubscriptions, windows: list[MmuNotifierRange], live: list[Any]
) -> None:
    """38: what is deferred waits for an odd sequence; each subscription is in the tree, to come, or to go."""
    if windows and subs.deferred_list and not subs.invalidate_seq & 1:
        s.report(38, f"{len(subs.deferred_list)} are deferred at sequence {subs.invalidate_seq}")
    tree = {id(entry[2]) for entries in subs.itree.by_size.values() for entry in entries}
    waiting = {id(sub) for sub in subs.deferred_list}
    for sub in live:
        if (
            sub.in_tree != (id(sub) in tree)
            or sub.deferred != (id(sub) in waiting)
            or not (sub.in_tree or sub.deferred)
        ):
            where = [
                name for name, it_is in (("in the tree", id(sub) in tree), ("deferred", id(sub) in waiting)) if it_is
            ]
            s.report(
                38,
                f"{sub!r} is {' and '.join(where) or 'neither in the tree nor deferred'}, and it says "
                f"in_tree {sub.in_tree}, deferred {sub.deferred}",
                addresses=((mm.name, sub.start),),
            )


@rule(39)
def subscription_sequence(s: Shadow, mm: MmStruct, subs: NotifierSubscriptions, sub: MmuIntervalNotifier) -> None:
    """39: a subscription's sequence is odd and not ahead of the mm's."""
    if not sub.invalidate_seq & 1 or sub.invalidate_seq > subs.invalidate_seq:
        s.report(
            39,
            f"{sub!r} is at {sub.invalidate_seq}, the mm at {subs.invalidate_seq}",
            addresses=((mm.name, sub.start),),
        )


@rule(39)
def sequence_grows(s: Shadow, mm: MmStruct, subs: NotifierSubscriptions, before: int) -> None:
    """39: the mm's sequence only grows."""
    if subs.invalidate_seq < before:
        s.report(39, f"the sequence of {mm.name} has gone from {before} back to {subs.invalidate_seq}")


def loses(old: Entry, new: Entry) -> bool:
    """Tell whether a device that uses the old entry must hear of the new one."""
    if old[0] in {NONE, MIGRATION, OTHER, SWAP}:
        return False
    if old[0] != new[0] or old[1] != new[1]:
        return True
    return old[2] and not new[2]


@rule(40)
def change_in_window(s: Shadow, change: Change, windows: list[MmuNotifierRange], size: int) -> None:
    """40: what a device may use is taken away only inside a window of the mm that covers it.

    Entries that a section changes and changes back have not changed. A migration entry was announced when it was made.
    """
    start, end = change.address, change.address + size
    for range_ in windows:
        if range_.start <= start and end <= range_.end:
            return
    s.report(
        40,
        f"{_say(change.old)} becomes {_say(change.new)} outside of any window",
        addresses=((change.mm.name, change.address),),
        pfns=(change.old[1],),
        tasks=(change.task,),
    )


def _say(entry: Entry) -> str:
    kind, _, write, _ = entry
    names = {
        NONE: "none",
        ZERO: "the zero page",
        SPECIAL: "a special pfn",
        OTHER: "an opaque entry",
        SWAP: "a swap entry",
    }
    if kind in names:
        return names[kind]
    if kind == EXCLUSIVE:
        return "a device-exclusive entry"
    if kind == MIGRATION:
        return f"a {'WRITE' if write else 'READ'} migration entry"
    return f"a {'writable' if write else 'read-only'} entry"


@rule(41)
def window_owner(s: Shadow, range_: MmuNotifierRange, operations: list[Operation]) -> None:
    """41: MIGRATE and EXCLUSIVE windows carry their operation's owner, others none."""
    wanted: object | None = None
    if range_.event == MMU_NOTIFY_MIGRATE:
        migration = next((one for one in reversed(operations) if isinstance(one, Migration)), None)
        if migration is None:
            return
        wanted = migration.owner
    elif range_.event == MMU_NOTIFY_EXCLUSIVE:
        making = next((one for one in reversed(operations) if one.name == "make_device_exclusive"), None)
        if making is None:
            return
        wanted = making.what[1]
    if range_.owner is not wanted:
        s.report(
            41,
            f"a {MMU_NOTIFY_NAMES[range_.event]} window carries owner {range_.owner!r} instead of {wanted!r}",
            addresses=((range_.mm.name, range_.start),),
        )


@rule(42)
def non_blockable_slept(s: Shadow, range_: MmuNotifierRange, error: LockdepError) -> None:
    """42: a callback for a range that is not blockable does not sleep."""
    if not range_.blockable:
        s.report(
            42,
            f"a callback sleeps for a range that is not blockable: {str(error).splitlines()[0]}",
            addresses=((range_.mm.name, range_.start),),
        )


@rule(42)
def closed_after_refusal(s: Shadow, range_: MmuNotifierRange) -> None:
    """42: nobody closes a range whose start has answered -EAGAIN."""
    s.report(42, "a range is closed whose start has answered -EAGAIN", addresses=((range_.mm.name, range_.start),))


@rule(42)
def changed_after_refusal(s: Shadow, change: Change, range_: MmuNotifierRange) -> None:
    """42: nor changes it what lies in the range."""
    s.report(
        42,
        f"{_say(change.old)} becomes {_say(change.new)} though the start of {range_.start:#x}-{range_.end:#x} has "
        "answered -EAGAIN",
        addresses=((change.mm.name, change.address),),
        pfns=(change.old[1],),
        tasks=(change.task,),
    )


@rule(43)
def hmm_words(s: Shadow, range_: HmmRange, filtered: list[MmuNotifierRange]) -> None:
    """43: a VALID word is the entry, and writable only if the entry is; the driver's lock is held.

    Nothing is said of pages in `filtered`, windows of the driver's own migrations that it chose not to hear of: there
    it updates its mirror itself. Quirk MM-S1 reports the head's pages for a walk that begins inside an owned
    device-private PMD, MM-S2 an owned device-private entry that is read-only for a page asked for writable.
    """
    mm = range_.notifier.mm
    assert isinstance(mm, MmStruct)
    quirks = s.memory.quirks
    words = range_.hmm_pfns
    asked = range_.default_flags & HMM_PFN_REQ_WRITE
    for i, word in enumerate(words.tolist()):
        if not word & HMM_PFN_VALID:
            continue
        address = range_.start + (i << s.page_shift)
        if any(window.start <= address < window.end for window in filtered):
            continue
        found = mm.page_table.lookup(address)
        at = (address >> s.page_shift) & (s.nr - 1)
        private_leaf = False
        if isinstance(found, PmdLeaf):
            kind, pfn, write, _ = leaf_entry(found)
            pfn += at
            private_leaf = found.kind.name == "PRIVATE"
        elif found is None:
            kind, pfn, write = NONE, -1, False
        else:
            kind, pfn, write, _ = entry_at(found, at)
        where = ((mm.name, address),)
        said = word & HMM_PFN_PFN_MASK
        if kind not in COUNTED and kind not in {ZERO, SPECIAL}:
            s.report(43, f"the word is VALID with pfn {said:#x}, and the entry is not mapped", addresses=where)
        elif said != pfn:
            known = "mm_s1" if private_leaf and quirks.mm_s1 == "as_written" else None
            if known:
                # What the device writes goes to the wrong page, and is missing in the right one.
                s.misplaced[mm, address] = known
                s.misplaced[mm, address + ((said - pfn) << s.page_shift)] = known
            s.report(43, f"the word has pfn {said:#x}, the entry {pfn:#x}", addresses=where, pfns=(pfn,), known=known)
        elif word & HMM_PFN_WRITE and not write:
            s.report(43, "the word has WRITE, and the entry is read-only", addresses=where, pfns=(pfn,))
        elif asked and not word & HMM_PFN_WRITE:
            private = s.memory.pages.zone(pfn).private
            known = "mm_s2" if private and quirks.mm_s2 == "as_written" else None
            s.report(43, "the word was asked for WRITE and has none", addresses=where, pfns=(pfn,), known=known)


@rule(44)
def read_begin_collides(s: Shadow, sub: MmuIntervalNotifier, seq: int) -> None:
    """44: read_begin returns only when the invalidation that it may collide with is over."""
    subs = sub.mm.notifiers
    if subs is not None and seq == subs.invalidate_seq:
        s.report(
            44,
            f"read_begin of {sub!r} returns {seq}, which is the mm's sequence",
            addresses=((sub.mm.name, sub.start),),
        )


@rule(44)
def no_invalidation_since(s: Shadow, sub: MmuIntervalNotifier, seq: int, hits: int) -> None:
    """44: a reader is told that nothing happened; `hits` counts the invalidations since its read_begin."""
    if hits:
        s.report(
            44,
            f"a reader with sequence {seq} need not retry, and {hits} invalidations have set it since",
            addresses=((sub.mm.name, sub.start),),
        )


@rule(45)
def callback_after_removal(s: Shadow, sub: MmuIntervalNotifier, range_: MmuNotifierRange) -> None:
    """45: a callback begins, and its subscription has been removed."""
    s.report(45, f"{sub!r} is called after its removal", addresses=((sub.mm.name, range_.start),))


@rule(45)
def removed_while_called(s: Shadow, sub: MmuIntervalNotifier, tasks: list[Task]) -> None:
    """45: a removal returns, and a callback still runs."""
    s.report(
        45,
        f"the removal of {sub!r} returns while a callback runs",
        addresses=((sub.mm.name, sub.start),),
        tasks=(s.kernel.current, *tasks),
    )
