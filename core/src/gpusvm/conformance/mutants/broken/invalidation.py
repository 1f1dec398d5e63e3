"""Mistakes with what core tells of changes: not heard, heard in part, heard too well, or answered wrongly."""

import errno
from collections.abc import Callable
from typing import Any, Final

from gpusvm.conformance.mutants.broken.driver import BrokenDriver
from gpusvm.conformance.mutants.mutant import Swap, instead
from gpusvm.mm.api import (
    MMU_NOTIFY_CLEAR,
    MMU_NOTIFY_MIGRATE,
    MMU_NOTIFY_PROTECTION_PAGE,
    MMU_NOTIFY_PROTECTION_VMA,
    MMU_NOTIFY_SOFT_DIRTY,
    MMU_NOTIFY_UNMAP,
)

__all__ = ["INVALIDATION"]

_START: Final = "gpusvm_nouveau.svmm:NouveauSvmm.invalidate_range_start"
_CLEAR: Final = "gpusvm_nouveau.svmm:NouveauSvmm.invalidate_range"

_EVENTS: Final = {
    "unmap": MMU_NOTIFY_UNMAP,
    "clear": MMU_NOTIFY_CLEAR,
    "protection-vma": MMU_NOTIFY_PROTECTION_VMA,
    "protection-page": MMU_NOTIFY_PROTECTION_PAGE,
    "soft-dirty": MMU_NOTIFY_SOFT_DIRTY,
    "migrate": MMU_NOTIFY_MIGRATE,
}


def _deaf_to(event: int) -> Callable[[Any], Any]:
    def by(guard: Any) -> Any:
        def start(svmm: Any, range_: Any) -> int:
            return 0 if range_.event == event else int(guard(svmm, range_))

        return start

    return by


def _all_but_the_last_page(guard: Any) -> Any:
    # An end that is taken for the last byte.
    def invalidate(svmm: Any, start: int, end: int) -> None:
        guard(svmm, start, end - svmm.memory.geometry.page_size)

    return invalidate


def _whole_blocks(guard: Any) -> Any:
    def invalidate(svmm: Any, start: int, end: int) -> None:
        size = 16 * svmm.memory.geometry.page_size
        if (start + size - 1) & -size < end & -size:
            guard(svmm, (start + size - 1) & -size, end & -size)

    return invalidate


def _everything(guard: Any) -> Any:
    def invalidate(svmm: Any, _start: int, _end: int) -> None:
        guard(svmm, svmm.start, svmm.end)

    return invalidate


def _in_every_address_space(guard: Any) -> Any:
    def invalidate(svmm: Any, start: int, end: int) -> None:
        for each in list(svmm.device.svmms.values()):
            guard(each, start, end)

    return invalidate


def _not_if_it_must_not_wait(guard: Any) -> Any:
    def start(svmm: Any, range_: Any) -> int:
        return int(guard(svmm, range_)) if range_.blockable else 0

    return start


def _half_if_it_must_not_wait(guard: Any) -> Any:
    def start(svmm: Any, range_: Any) -> int:
        if range_.blockable:
            return int(guard(svmm, range_))
        svmm.invalidate_range(range_.start, (range_.start + range_.end) // 2)
        return -errno.EAGAIN

    return start


def _waits_all_the_same(svmm: Any, range_: Any) -> int:
    with svmm.mutex:
        svmm.invalidate_range(range_.start, range_.end)
    return 0


def _false(_notifier: Any, _sub: Any, _range: Any, _cur_seq: int) -> bool:
    return False


def _one_page(guard: Any) -> Any:
    def flush(pt: Any, tiles: int, start: int, _end: int) -> None:
        guard(pt, tiles, start, start + (1 << pt.page_shift))

    return flush


def _flush_of_many(guard: Any) -> Any:
    # Of one page the TLB is thought to know by itself.
    def flush(pt: Any, tiles: int, start: int, end: int) -> None:
        if end - start > 1 << pt.page_shift:
            guard(pt, tiles, start, end)

    return flush


def _own_moves_change_nothing(guard: Any) -> Any:
    # What the device moves itself it takes for known: as nouveau does, but it has no new entries to write.
    def invalidate(file: Any, gpusvm: Any, notifier: Any, mmu_range: Any) -> None:
        if mmu_range.event != MMU_NOTIFY_MIGRATE or mmu_range.owner is not file.device.owner:
            guard(file, gpusvm, notifier, mmu_range)

    return invalidate


def _collects_without_unmapping(guard: Any) -> Any:
    # Whoever has a collector may think that it does all of the work.
    def invalidate(file: Any, gpusvm: Any, notifier: Any, mmu_range: Any) -> None:
        if mmu_range.event != MMU_NOTIFY_UNMAP:
            guard(file, gpusvm, notifier, mmu_range)
            return
        for range_ in notifier.ranges(max(notifier.start, mmu_range.start), min(notifier.end, mmu_range.end)):
            gpusvm.range_set_unmapped(range_, mmu_range)
            with file.gclock:
                file.gc.setdefault(range_)

    return invalidate


def _first_range_only(guard: Any) -> Any:
    def ranges(notifier: Any, start: int, end: int) -> Any:
        found = list(guard(notifier, start, end))
        return found[:1] if len(found) > 1 and end - start < notifier.end - notifier.start else found

    return ranges


INVALIDATION: Final = (
    *(
        BrokenDriver(
            id=f"deaf-to-{name}",
            rule=f"it has no case for MMU_NOTIFY_{name.upper().replace('-', '_')}",
            driver="nouveau",
            swaps=(Swap(_START, _deaf_to(event)),),
        )
        for name, event in _EVENTS.items()
    ),
    BrokenDriver(
        id="keeps-last-page",
        rule="it keeps the last page of what is invalidated",
        driver="nouveau",
        swaps=(Swap(_CLEAR, _all_but_the_last_page),),
    ),
    BrokenDriver(
        id="whole-blocks-only",
        rule="it invalidates only the blocks of 16 pages that a window covers as a whole",
        driver="nouveau",
        swaps=(Swap(_CLEAR, _whole_blocks),),
    ),
    BrokenDriver(
        id="clears-everything",
        rule="it clears its whole page table at each invalidation",
        driver="nouveau",
        swaps=(Swap(_CLEAR, _everything),),
    ),
    BrokenDriver(
        id="clears-others",
        rule="it clears the addresses in every address space of the device",
        driver="nouveau",
        swaps=(Swap(_CLEAR, _in_every_address_space),),
    ),
    BrokenDriver(
        id="ignores-non-blockable",
        rule="it leaves things as they are when it must not wait, and answers that they are done",
        driver="nouveau",
        swaps=(Swap(_START, _not_if_it_must_not_wait),),
    ),
    BrokenDriver(
        id="half-non-blockable",
        rule="it does half of an invalidation, and answers that it would have to wait",
        driver="nouveau",
        swaps=(Swap(_START, _half_if_it_must_not_wait),),
    ),
    BrokenDriver(
        id="waits-in-non-blockable",
        rule="it waits for its mutex when it must not wait",
        driver="nouveau",
        swaps=(Swap(_START, instead(_waits_all_the_same)),),
    ),
    BrokenDriver(
        id="invalidate-false",
        rule="it answers invalidate with False though it may wait",
        driver="nouveau",
        swaps=(Swap("gpusvm_nouveau.svmm:SvmNotifier.invalidate", instead(_false)),),
    ),
    BrokenDriver(
        id="flushes-one-page",
        rule="it flushes one page from the TLB, however many were taken away",
        driver="xe",
        swaps=(Swap("gpusvm_xe.pt:XePt.flush", _one_page),),
    ),
    BrokenDriver(
        id="flushes-no-page",
        rule="it flushes the TLB for more than one page only",
        driver="xe:chunk_sizes=4K",
        swaps=(Swap("gpusvm_xe.pt:XePt.flush", _flush_of_many),),
    ),
    BrokenDriver(
        id="keeps-own-moves",
        rule="it keeps the entries of pages that it moves itself",
        driver="svmdev",
        swaps=(Swap("gpusvm_svmdev.file:SvmdevFile.invalidate", _own_moves_change_nothing),),
    ),
    BrokenDriver(
        id="leaves-it-to-the-collector",
        rule="it leaves what is unmapped to its garbage collector, entries and all",
        driver="svmdev",
        swaps=(Swap("gpusvm_svmdev.file:SvmdevFile.invalidate", _collects_without_unmapping),),
    ),
    BrokenDriver(
        id="first-range-only",
        rule="it unmaps the first range of a window, and not those behind it",
        driver="svmdev",
        swaps=(Swap("gpusvm.drm.notifier:GpuSvmNotifier.ranges", _first_range_only),),
    ),
)
"""Drivers that do not do what an invalidation asks for."""
