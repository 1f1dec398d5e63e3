"""Stand between core and a driver, and remember what each asks of the other.

Core calls the driver through the ops of its subscriptions and of its device memory; the driver calls core to migrate
and to read page tables. Both pass through here unchanged. What is remembered is judged by whoever asked for it.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from attrs import Factory, define, frozen

from gpusvm.conformance.scene import instead
from gpusvm.mm.api import (
    MIGRATE_PFN_MIGRATE,
    MIGRATE_PFN_SHIFT,
    MIGRATE_PFN_VALID,
    DevPagemap,
    HmmRange,
    MigrateVma,
    MmuNotifierRange,
    Pfns,
    VmFault,
)

if TYPE_CHECKING:
    from gpusvm.testing import Bench

__all__ = ["Callback", "HomeCall", "Moved", "Record", "Setup", "data_of", "recorded", "subscriptions"]


@frozen(kw_only=True)
class Callback:
    """One call of a subscription's invalidate: of what, what it answered, and what was mapped before and after."""

    range: MmuNotifierRange
    start: int
    end: int
    answer: bool
    mapped_before: int
    mapped_after: int
    sequence_set: bool


@frozen(kw_only=True)
class Setup:
    """One call of migrate_vma_setup, and whether mmap_lock was held."""

    start: int
    end: int
    owner: object | None
    locked: bool
    in_area: bool
    cpages: int


@frozen(kw_only=True)
class Moved:
    """One page that a driver was about to give the process in the place of another: pfns, and what both hold.

    `source` and `source_token` are -1 and 0 where there was none.
    """

    source: int
    target: int
    source_token: int
    target_token: int
    target_locked: bool


@frozen(kw_only=True)
class HomeCall:
    """One call of migrate_to_ram, and what it answered."""

    fault: VmFault
    answer: int


@define
class Record:
    """Hold what was remembered, in order; `reads` are the calls of hmm_range_fault: start, end, sequence."""

    callbacks: list[Callback] = Factory(list)
    reads: list[tuple[int, int, int]] = Factory(list)
    setups: list[Setup] = Factory(list)
    moved: list[Moved] = Factory(list)
    finalized: int = 0
    homes: list[HomeCall] = Factory(list)
    freed: list[tuple[int, int]] = Factory(list)
    splits: list[tuple[int, int | None]] = Factory(list)


@contextmanager
def recorded(bench: "Bench") -> Iterator[Record]:
    """Remember what passes between core and the driver inside the block, for what is there when it begins."""
    record = Record()
    with ExitStack() as undo:
        intervals, classic = subscriptions(bench)
        for sub in intervals:
            _watch_interval(bench, record, sub, undo)
        for notifier in classic:
            _watch_classic(bench, record, notifier, undo)
        for driver in bench.machine.drivers:
            for pgmap in driver.dev_pagemaps():
                _watch_pagemap(record, pgmap, undo)
        _watch_memory(bench, record, undo)
        yield record


def subscriptions(bench: "Bench") -> tuple[list[Any], list[Any]]:
    """Return who watches the process: interval subscriptions, and those to the whole of it."""
    subs = bench.mm.notifiers
    if subs is None:
        return [], []
    return [entry[2] for entries in subs.itree.by_size.values() for entry in entries], list(subs.classic)


class _Ops:
    """Be the ops of somebody else, but for what is given."""

    def __init__(self, ops: object, **other: Callable[..., Any]) -> None:
        self.__ops = ops
        self.__dict__.update(other)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__ops, name)


def _mapped(bench: "Bench", start: int, end: int) -> int:
    shift = bench.memory.geometry.page_shift
    return int(np.count_nonzero(bench.vm.page_table.perms(start >> shift, end >> shift)))


def _watch_classic(bench: "Bench", record: Record, notifier: Any, undo: ExitStack) -> None:
    begin = notifier.invalidate_range_start
    if begin is None:
        return

    def invalidate_range_start(range_: MmuNotifierRange) -> int:
        before = _mapped(bench, range_.start, range_.end)
        answer: int = begin(range_)
        record.callbacks.append(
            Callback(
                range=range_,
                start=range_.start,
                end=range_.end,
                answer=not answer,
                mapped_before=before,
                mapped_after=_mapped(bench, range_.start, range_.end),
                sequence_set=True,  # there is none
            )
        )
        return answer

    undo.enter_context(instead(notifier, "invalidate_range_start", invalidate_range_start))


def _watch_interval(bench: "Bench", record: Record, sub: Any, undo: ExitStack) -> None:
    ops = sub.ops

    def invalidate(of: Any, range_: MmuNotifierRange, sequence: int) -> bool:
        start, end = max(range_.start, of.start), min(range_.end, of.last + 1)
        before = _mapped(bench, start, end)
        answer = bool(ops.invalidate(of, range_, sequence))
        record.callbacks.append(
            Callback(
                range=range_,
                start=start,
                end=end,
                answer=answer,
                mapped_before=before,
                mapped_after=_mapped(bench, start, end),
                sequence_set=of.invalidate_seq == sequence,
            )
        )
        return answer

    sub.ops = _Ops(ops, invalidate=invalidate)
    undo.callback(setattr, sub, "ops", ops)


def _watch_pagemap(record: Record, pgmap: DevPagemap, undo: ExitStack) -> None:
    ops = pgmap.ops

    def migrate_to_ram(fault: VmFault) -> int:
        answer = ops.migrate_to_ram(fault)
        record.homes.append(HomeCall(fault=fault, answer=answer))
        return answer

    def folio_free(pfn: int, order: int) -> None:
        record.freed.append((pfn, order))
        ops.folio_free(pfn, order)

    def folios_free(pfns: Pfns) -> None:
        for pfn in pfns.tolist():
            folio_free(pfn, 0)

    def folio_split(head: int, tail: int | None) -> None:
        record.splits.append((head, tail))
        split = ops.folio_split
        assert split is not None
        split(head, tail)

    other: dict[str, Any] = {"migrate_to_ram": migrate_to_ram, "folio_free": folio_free}
    if getattr(ops, "folios_free", None) is not None:
        other["folios_free"] = folios_free
    if ops.folio_split is not None:
        other["folio_split"] = folio_split
    watched: Any = _Ops(ops, **other)
    pgmap.ops = watched
    undo.callback(setattr, pgmap, "ops", ops)


def _watch_memory(bench: "Bench", record: Record, undo: ExitStack) -> None:
    memory = bench.memory
    setup, pages, finalize = memory.migrate_vma_setup, memory.migrate_vma_pages, memory.migrate_vma_finalize
    read, read_unlocked = memory.hmm_range_fault, memory.hmm_range_fault_unlocked_timeout

    def migrate_vma_setup(args: MigrateVma) -> None:
        vma = args.vma
        mm: Any = vma.mm  # type: ignore[union-attr]  # the mm's own class has it
        in_area = vma is not None and vma.start <= args.start < args.end <= vma.end
        locked = mm.mmap_lock.is_locked
        setup(args)
        record.setups.append(
            Setup(
                start=args.start,
                end=args.end,
                owner=args.pgmap_owner,
                locked=locked,
                in_area=in_area,
                cpages=args.cpages,
            )
        )

    def migrate_vma_pages(args: MigrateVma) -> None:
        record.moved += _moves(bench, args)
        pages(args)

    def migrate_vma_finalize(args: MigrateVma) -> None:
        finalize(args)
        record.finalized += 1

    def hmm_range_fault(range_: HmmRange) -> None:
        record.reads.append((range_.start, range_.end, range_.notifier_seq))
        read(range_)

    def hmm_range_fault_unlocked_timeout(range_: HmmRange, timeout_ns: int) -> None:
        read_unlocked(range_, timeout_ns)
        record.reads.append((range_.start, range_.end, range_.notifier_seq))

    for name, use in (
        ("migrate_vma_setup", migrate_vma_setup),
        ("migrate_vma_pages", migrate_vma_pages),
        ("migrate_vma_finalize", migrate_vma_finalize),
        ("hmm_range_fault", hmm_range_fault),
        ("hmm_range_fault_unlocked_timeout", hmm_range_fault_unlocked_timeout),
    ):
        undo.enter_context(instead(memory, name, use))


def _moves(bench: "Bench", args: MigrateVma) -> Iterator[Moved]:
    memory = bench.memory
    contents = memory.contents
    data = data_of(bench)
    for src, dst in zip(args.src.tolist(), args.dst.tolist(), strict=True):
        if not dst & MIGRATE_PFN_VALID or not src & MIGRATE_PFN_MIGRATE:
            continue
        source = src >> MIGRATE_PFN_SHIFT if src & MIGRATE_PFN_VALID else -1
        target = dst >> MIGRATE_PFN_SHIFT
        for i in range(1 << memory.folio_order(target)):
            yield Moved(
                source=source + i if source >= 0 else -1,
                target=target + i,
                source_token=contents.token(data(source + i)) if source >= 0 else 0,
                target_token=contents.token(data(target + i)),
                target_locked=_is_locked(bench, target),
            )


def _is_locked(bench: "Bench", folio: int) -> bool:
    if not bench.memory.folio_trylock(folio):
        return True
    bench.memory.folio_unlock(folio)
    return False


def data_of(bench: "Bench") -> Callable[[int], int]:
    """Return what says which page holds the data of a page; another one where device pages are dummies."""

    def of(pfn: int) -> int:
        pgmap = bench.memory.page_pgmap(pfn)
        find = None if pgmap is None else getattr(pgmap.ops, "backing_of", None)
        return pfn if find is None else int(find(np.array([pfn], np.int64))[0])

    return of
