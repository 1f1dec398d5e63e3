"""Invariants 46 to 52: address spaces, accounting, locks, opaque entries and DMA."""

from typing import Any

import numpy as np

from gpusvm.check.operations import Migration, Operation, page_of
from gpusvm.check.rules import rule
from gpusvm.check.shadow import OTHER, SWAP, Shadow, entry_at
from gpusvm.kernel import Task
from gpusvm.mm import MmStruct
from gpusvm.mm.api import (
    HMM_PFN_DMA_MAPPED,
    HMM_PFN_P2PDMA_BUS,
    HMM_PFN_PFN_MASK,
    HMM_PFN_STICKY,
    HMM_PFN_VALID,
    HmmRange,
)
from gpusvm.mm.hmm_dma import HmmDmaMap
from gpusvm.mm.mmu_notifier import NotifierSubscriptions
from gpusvm.mm.pgtable import PteTable

__all__ = [
    "dma_mapped",
    "dma_unmapped",
    "live_owner",
    "lock_order",
    "mm_count",
    "mm_users",
    "opaque_collected",
    "opaque_valid",
    "rss",
    "rss_after_exit",
    "tables_locked",
    "vmas_locked",
    "waits_in_circle",
]

_RSS = ("MM_ANONPAGES", "MM_FILEPAGES", "MM_SHMEMPAGES")


@rule(46)
def rss(s: Shadow, mm: MmStruct, counted: list[int]) -> None:
    """46: each RSS counter is the number of pages of its kind that entries name."""
    for name, claimed, found in zip(_RSS, mm.rss, counted, strict=False):
        if claimed != found:
            s.report(46, f"{mm.name} counts {claimed} {name}, and its entries name {found}")


@rule(46)
def swapents(s: Shadow, mm: MmStruct, counted: int) -> None:
    """46: so is that of swap entries."""
    if mm.swapents != counted:
        s.report(46, f"{mm.name} counts {mm.swapents} MM_SWAPENTS, and has {counted} swap entries")


@rule(46)
def rss_after_exit(s: Shadow, mm: MmStruct) -> None:
    """46: after exit_mmap every counter is 0."""
    if any(mm.rss) or mm.swapents:
        s.report(46, f"{mm.name} has exited with rss {mm.rss} and {mm.swapents} swap entries")


@rule(47)
def mm_users(s: Shadow, mm: MmStruct, address: int, doing: str) -> None:
    """47: a task faults or migrates only in an mm that has users."""
    if mm.mm_users <= 0:
        s.report(47, f"{doing} in {mm.name}, which has no users", addresses=((mm.name, address),))


@rule(47)
def mm_count(s: Shadow, mm: MmStruct, subs: NotifierSubscriptions, live: list[Any]) -> None:
    """47: mm_count covers the users, all together, and each subscription."""
    wanted = (1 if mm.mm_users > 0 else 0) + len(live) + len(subs.classic)
    if mm.mm_count < wanted:
        s.report(
            47,
            f"mm_count of {mm.name} is {mm.mm_count}, and {wanted} hold it: {mm.mm_users} users, "
            f"{len(live) + len(subs.classic)} subscriptions",
        )


@rule(48)
def vmas_locked(s: Shadow, mm: MmStruct, task: Task) -> None:
    """48: areas have changed, and nobody holds mmap_lock for write."""
    s.report(48, f"the areas of {mm.name} have changed without mmap_lock held for write", tasks=(task,))


@rule(48)
def tables_locked(s: Shadow, mm: MmStruct, address: int, end: int, task: Task, zaps: Operation | None) -> None:
    """48: so do the tables of areas that are attached; those of detached ones go under mmap_lock held for read.

    MADV_DONTNEED frees the tables that it has emptied with no more than the area locked for reading.
    """
    if mm.mmap_lock._writer is task:
        return
    for vma in mm.vma_tree.overlapping(address, end):
        locked = task in mm.mmap_lock._readers or (vma.lock is not None and task in vma.lock._readers)
        if zaps is not None and zaps.what[0] is vma and locked:
            continue
        s.report(
            48,
            f"the table under {vma!r} is freed without mmap_lock held for write",
            addresses=((mm.name, address),),
            tasks=(task,),
        )


@rule(49)
def lock_order(s: Shadow, task: Task, wanted: str, held: str, pfns: tuple[int, ...]) -> None:
    """49: mmap_lock comes before folio locks, and both before what notifier callbacks lock."""
    s.report(49, f"{wanted} is taken while {held} is held", pfns=pfns, tasks=(task,))


@rule(50)
def live_owner(s: Shadow, pfn: int, waiter: Task, owner: Task) -> None:
    """50: whoever holds the folio lock that a task waits for still lives."""
    if owner.done:
        s.report(
            50,
            f"the folio is locked by {owner.name!r}, which has ended",
            addresses=s.places(pfn),
            pfns=(pfn,),
            tasks=(waiter, owner),
        )


@rule(50)
def waits_in_circle(s: Shadow, pfn: int, tasks: list[Task]) -> None:
    """50: and does not wait, directly or not, for the waiter."""
    s.report(
        50,
        "tasks wait for each other: " + " for ".join(repr(task.name) for task in [*tasks, tasks[0]]),
        addresses=s.places(pfn),
        pfns=(pfn,),
        tasks=tuple(tasks),
    )


@rule(51)
def opaque_collected(s: Shadow, migration: Migration, words: list[int]) -> None:
    """51: a swap, hwpoison or marker entry is not collected."""
    args = migration.args
    if args is None or args.vma is None:
        return
    mm: Any = args.vma.mm  # type: ignore[attr-defined]  # a Vma, here
    for i, word in enumerate(words):
        if word:
            address = args.start + (i << s.page_shift)
            if _is_opaque(s, mm, address):
                pfn = page_of(word)
                s.report(
                    51,
                    f"setup has collected an opaque entry as {word:#x}",
                    addresses=((mm.name, address),),
                    pfns=() if pfn < 0 else (pfn,),
                )


@rule(51)
def opaque_valid(s: Shadow, range_: HmmRange) -> None:
    """51: nor VALID for hmm, while nothing has invalidated the range since its sequence was read.

    A page that is swapped out after its word was made is for whoever asks read_retry.
    """
    sub: Any = range_.notifier
    if sub.invalidate_seq != range_.notifier_seq:
        return
    mm = sub.mm
    entries = mm.page_table.entries
    for block in range(range_.start >> s.pmd_shift, ((range_.end - 1) >> s.pmd_shift) + 1):
        table = entries.get(block)
        if isinstance(table, PteTable) and table.other:
            break
    else:
        return
    for i in np.flatnonzero(range_.hmm_pfns & np.uint64(HMM_PFN_VALID)).tolist():
        address = range_.start + (i << s.page_shift)
        if _is_opaque(s, mm, address):
            s.report(51, "hmm has made the word of an opaque entry VALID", addresses=((mm.name, address),))


def _is_opaque(s: Shadow, mm: MmStruct, address: int) -> bool:
    table = mm.page_table.lookup(address)
    if not isinstance(table, PteTable):
        return False
    return entry_at(table, (address - table.base) >> s.page_shift)[0] in {OTHER, SWAP}


@rule(52)
def dma_mapped(s: Shadow, map_: HmmDmaMap, idx: int) -> None:
    """52: an entry that has been mapped is VALID, and one with a bus address is marked as mapped."""
    word = int(map_.pfn_list[idx])
    if word & HMM_PFN_DMA_MAPPED and not word & HMM_PFN_VALID:
        s.report(52, f"entry {idx} is mapped for DMA, and its word {word:#x} is not VALID")
    if word & HMM_PFN_P2PDMA_BUS and not word & HMM_PFN_DMA_MAPPED:
        s.report(52, f"entry {idx} has a bus address, and its word {word:#x} lacks DMA_MAPPED")


@rule(52)
def dma_unmapped(s: Shadow, map_: HmmDmaMap, idx: int, *, mapped: bool) -> None:
    """52: what is unmapped was mapped, and nothing of that is left in its word."""
    word = int(map_.pfn_list[idx])
    if not mapped:
        s.report(52, f"entry {idx} is unmapped, and it was not mapped", pfns=(word & HMM_PFN_PFN_MASK,))
    if word & HMM_PFN_STICKY:
        s.report(52, f"entry {idx} is unmapped, and its word is {word:#x}", pfns=(word & HMM_PFN_PFN_MASK,))
