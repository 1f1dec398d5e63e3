"""fork over device memory: what both processes have afterwards, and how the pages come home, are evicted and end."""

from errno import ENOMEM

import numpy as np
import pytest
from gpusvm.errors import KernelError
from gpusvm.mm.api import (
    HMM_PFN_REQ_FAULT,
    HMM_PFN_REQ_WRITE,
    HMM_PFN_VALID,
    MIGRATE_VMA_SELECT_COMPOUND,
    MIGRATE_VMA_SELECT_SYSTEM,
    PROT_READ,
    HmmRange,
)
from gpusvm.mm.mm_struct import MMF_HAS_PINNED
from gpusvm.mm.page import GUP_PIN_COUNTING_BIAS, PG_ANON_EXCLUSIVE, PG_LOCKED
from gpusvm.mm.pgtable import PmdKind, PmdLeaf, Pte, PteKind

PAGE = 4096
BASE = 1 << 30
TO_DEVICE = MIGRATE_VMA_SELECT_SYSTEM | MIGRATE_VMA_SELECT_COMPOUND


def read(one, mm, *pages: int) -> list[int]:
    return [one.memory.cpu_read(mm, BASE + page * PAGE) for page in pages]


def write(one, mm, *pages: int) -> list[int]:
    return [one.memory.cpu_write(mm, BASE + page * PAGE) for page in pages]


def page_of(one, page: int, mm) -> int:
    entry = one.entry(page, mm)
    return entry.pfn + (page % one.nr if isinstance(entry, PmdLeaf) else 0)


def to_device(one, n: int, *, at: int = 0) -> None:
    one.device.migrate(one.mm, BASE + at * PAGE, BASE + (at + n) * PAGE)


@pytest.mark.parametrize("writable", [True, False])
def test_device_ptes_are_shared_read_only(lab, writable):
    one = lab()
    one.map(4)
    if not writable:
        one.mm.mprotect(BASE, 4 * PAGE, PROT_READ)
    tokens = one.read(0, 1, 2, 3)
    to_device(one, 4)
    pfns = [one.pfn(i) for i in range(4)]
    one.watch()
    child = one.mm.fork()
    assert one.events == [("p", "PROTECTION_PAGE", 0, 4, "-")]
    for i, pfn in enumerate(pfns):
        assert one.entry(i) == one.entry(i, child) == Pte(PteKind.PRIVATE, pfn)
        assert one.counts(pfn) == "2/2"
        assert not one.flags(pfn) & PG_ANON_EXCLUSIVE
    assert (one.mm.rss, child.rss) == ([4, 0, 0], [4, 0, 0])
    assert one.device.faults == []  # nothing was copied
    one.check_quiescent()
    assert read(one, child, 0, 1, 2, 3) == tokens
    child.exit()
    one.check_quiescent()
    one.finish()


def test_a_device_pmd_is_shared_read_only(lab):
    one = lab(thp="always")
    one.map(8)
    tokens = one.read(*range(8))
    to_device(one, 8)
    head = one.entry(0).pfn
    one.watch()
    child = one.mm.fork("c")
    assert one.events == [("p", "PROTECTION_PAGE", 0, 8, "-")]
    for mm in (one.mm, child):
        leaf = one.entry(0, mm)
        assert (leaf.kind, leaf.pfn, leaf.write) == (PmdKind.PRIVATE, head, False)
        assert mm.rss == [8, 0, 0]
    assert one.counts(head) == "2/2"
    assert one.pages.zone(head).m_entire[head - one.pages.zone(head).base] == 2
    one.check_quiescent()
    one.watch(child)
    one.events.clear()
    # The first access of either brings it home for both, whole. The walk that unmaps it elsewhere begins at the parent.
    assert one.read(3) == tokens[3:4]
    assert one.events == [("p", "MIGRATE", 0, 8, "own"), ("p", "CLEAR", 0, 8, "-"), ("c", "CLEAR", 0, 8, "-")]
    assert [one.entry(0, mm).kind for mm in (one.mm, child)] == [PmdKind.THP] * 2
    assert read(one, child, *range(8)) == tokens
    one.check_quiescent()
    one.memory.mmu_interval_notifier_remove(one.watchers.pop().sub)
    child.exit()
    one.finish()


def test_a_device_folio_mapped_by_ptes_is_shared_page_by_page(lab):
    one = lab(thp="always")
    one.map(8)
    tokens = one.read(*range(8))
    to_device(one, 8)
    head = one.entry(0).pfn
    one.mm.mprotect(BASE + 6 * PAGE, 2 * PAGE, PROT_READ)
    assert one.counts(head) == "8/8"
    child = one.mm.fork()
    assert one.counts(head) == "16/16"
    assert [one.entry(i, child) for i in range(8)] == [Pte(PteKind.PRIVATE, head + i) for i in range(8)]
    assert read(one, child, 0) == tokens[:1]
    one.check_quiescent()
    # The split gave each page the mappings it had; the device got back what came home.
    assert {one.counts(one.pfn(i)) for i in range(8)} == {"2/2"}
    assert one.read(*range(8)) == tokens
    assert read(one, child, *range(8)) == tokens
    assert not one.device.live
    child.exit()
    one.check_quiescent()
    one.finish()


@pytest.mark.parametrize("first", ["parent", "child"])
def test_first_access_takes_it_home_for_both_and_a_write_copies(lab, first):
    """t7 and t11: the CPU fault unmaps the page in the other process; the write then breaks the share."""
    one = lab()
    one.map(1)
    (token,) = one.read(0)
    to_device(one, 1)
    child = one.mm.fork("c")
    one.watch(one.mm, child)
    mm, other = (one.mm, child) if first == "parent" else (child, one.mm)
    (new,) = write(one, mm, 0)
    walked = [("p", "CLEAR", 0, 1, "-"), ("c", "CLEAR", 0, 1, "-")][: 2 if first == "parent" else 1]
    assert one.events == [(mm.name, "MIGRATE", 0, 1, "own"), *walked, (mm.name, "CLEAR", 0, 1, "-")]
    assert read(one, mm, 0) == [new]
    assert read(one, other, 0) == [token]
    assert one.entry(0, mm).write
    assert not one.entry(0, other).write
    one.events.clear()
    write(one, other, 0)
    assert one.events == []
    one.check_quiescent()
    for watcher in one.watchers:
        one.memory.mmu_interval_notifier_remove(watcher.sub)
    one.watchers = []
    child.exit()
    one.finish()


def test_t7_a_page_of_two_processes_goes_to_the_device(lab):
    """The walk visits the parent too, where nothing is mapped any more, and opens its window before it looks.

    Seen on 7.3.4 with a huge page and a parent that migrates: MIGRATE and then CLEAR of the same range.
    """
    one = lab()
    one.map(2)
    child = one.mm.fork("c")
    one.watch(one.mm, child)
    to_device(one, 2)
    cleared = [(name, "CLEAR", i, i + 1, "-") for i in (0, 1) for name in ("p", "c")]
    assert one.events == [("p", "MIGRATE", 0, 2, "own"), *cleared]
    assert one.entry(0, child) == one.entry(0) == Pte(PteKind.PRIVATE, one.pfn(0))
    assert one.counts(one.pfn(0)) == "2/2"
    one.check_quiescent()
    for watcher in one.watchers:
        one.memory.mmu_interval_notifier_remove(watcher.sub)
    one.watchers = []
    child.exit()
    one.finish()


def test_both_processes_map_a_thp_that_goes_to_the_device(lab):
    one = lab(thp="always")
    one.map(8)
    child = one.mm.fork("c")
    one.watch(one.mm, child)
    to_device(one, 8)
    assert one.events == [("p", "MIGRATE", 0, 8, "own"), ("p", "CLEAR", 0, 8, "-"), ("c", "CLEAR", 0, 8, "-")]
    assert [one.entry(0, mm).kind for mm in (one.mm, child)] == [PmdKind.PRIVATE] * 2
    assert one.counts(one.entry(0).pfn) == "2/2"
    one.check_quiescent()
    for watcher in one.watchers:
        one.memory.mmu_interval_notifier_remove(watcher.sub)
    one.watchers = []
    child.exit()
    one.check_quiescent()
    one.finish()


def test_a_split_of_a_folio_that_both_map(lab):
    """t6: one CLEAR in every process that maps it, then each page has its mappings in both."""
    one = lab(thp="always")
    one.map(8)
    tokens = one.read(*range(8))
    child = one.mm.fork("c")
    one.watch(one.mm, child)
    to_device(one, 2, at=3)
    cleared = [(name, "CLEAR", *where, "-") for where in ((0, 8), (3, 4), (4, 5)) for name in ("p", "c")]
    assert one.events == [("p", "MIGRATE", 3, 5, "own"), *cleared]
    kinds = [PteKind.PRIVATE if i in {3, 4} else PteKind.PRESENT for i in range(8)]
    assert [one.entry(i).kind for i in range(8)] == [one.entry(i, child).kind for i in range(8)] == kinds
    assert {one.counts(one.pfn(i)) for i in range(8)} == {"2/2"}
    one.check_quiescent()
    assert read(one, child, *range(8)) == tokens
    for watcher in one.watchers:
        one.memory.mmu_interval_notifier_remove(watcher.sub)
    one.watchers = []
    child.exit()
    one.finish()


@pytest.mark.parametrize("gone", ["parent", "child"])
@pytest.mark.parametrize("thp", ["never", "always"])
def test_one_process_ends_while_the_other_has_its_device_pages(lab, thp, gone):
    one = lab(thp=thp)
    one.map(8)
    tokens = one.read(*range(8))
    to_device(one, 8)
    child = one.mm.fork("c")
    live = dict(one.device.live)
    (one.mm if gone == "parent" else child).exit()
    if gone == "parent":
        one.mm = child
    assert one.device.live == live
    assert not one.entry(0).write
    one.check_quiescent()
    heads = sorted(live)
    one.watch()
    one.device.evict(heads + [0] * (8 - len(heads)))
    assert one.events == [
        ("p" if gone == "child" else "c", "CLEAR", i, i + (8 // len(heads)), "-") for i in range(len(heads))
    ]
    assert not one.device.live
    assert one.read(*range(8)) == tokens
    one.write(*range(8))
    assert len(one.events) == len(heads)  # taken over in place
    one.check_quiescent()
    one.finish()


@pytest.mark.parametrize("thp", ["never", "always"])
def test_the_last_process_frees_the_device_pages(lab, thp):
    one = lab(thp=thp)
    one.map(8)
    to_device(one, 8)
    child = one.mm.fork()
    one.mm.munmap(BASE, 8 * PAGE)
    assert one.device.live
    child.exit()
    assert not one.device.live
    one.check_quiescent()
    one.finish()


def test_a_hole_in_the_parent_only(lab):
    """What one process unmapped of a large device folio is still the other's."""
    one = lab(thp="always")
    one.map(8)
    tokens = one.read(*range(8))
    to_device(one, 8)
    head = one.entry(0).pfn
    child = one.mm.fork("c")
    one.mm.munmap(BASE + 2 * PAGE, 2 * PAGE)
    assert one.counts(head) == "7/7"  # six PTEs of the parent's and the child's PMD
    one.check_quiescent()
    assert read(one, child, *range(8)) == tokens
    one.check_quiescent()
    assert one.read(0, 1, 4, 7) == [tokens[i] for i in (0, 1, 4, 7)]
    child.exit()
    one.check_quiescent()
    one.finish()


# --- migration entries


@pytest.mark.parametrize("thp", ["never", "always"])
@pytest.mark.parametrize("kind", ["write", "read_exclusive", "read"])
@pytest.mark.parametrize("moves", [True, False])
def test_migration_entries_become_read_in_both(lab, thp, kind, moves):
    """A driver in the middle of an eviction holds no mmap_lock: fork copies the migration entries it finds."""
    one = lab(thp=thp)
    one.map(8)
    tokens = one.read(*range(8))
    to_device(one, 8)
    first = None
    if kind == "read_exclusive":
        one.mm.mprotect(BASE, 8 * PAGE, PROT_READ)
    elif kind == "read":
        first = one.mm.fork("first")
    heads = sorted(one.device.live)
    src = np.array(heads + [0] * (8 - len(heads)), np.uint64)
    dst = np.zeros(8, np.uint64)
    one.memory.migrate_device_pfns(src, 8)
    if kind == "read_exclusive":
        # The entry was READ and the page AnonExclusive.
        assert one.entry(0).rexcl
    child = one.mm.fork("c")
    refs = [one.counts(head) for head in heads]
    assert set(refs) == {"1/0"}  # no reference, no mapping
    for mm in (one.mm, child):
        entries = [one.entry(i, mm) for i in range(8)]
        for entry in entries:
            assert entry.kind in {PmdKind.MIGRATION, PteKind.MIGRATION}
            assert not entry.write
            assert not entry.rexcl
        assert mm.rss == [8, 0, 0]
    if moves:
        one.device.fill_to_ram(src, dst, 8)
    one.memory.migrate_device_pages(src, dst, 8)
    one.memory.migrate_device_finalize(src, dst, 8)
    n = 3 if first else 2
    expected = PteKind.PRESENT if moves else PteKind.PRIVATE
    if thp == "always":
        expected = PmdKind.THP if moves else PmdKind.PRIVATE
    for mm in (one.mm, child):
        assert one.entry(0, mm).kind is expected
        assert not one.entry(0, mm).write
    assert one.counts(one.pfn(0)) == f"{n}/{n}"
    assert not one.flags(one.pfn(0)) & PG_ANON_EXCLUSIVE
    one.check_quiescent()
    assert read(one, child, *range(8)) == tokens
    for mm in filter(None, (first, child)):
        mm.exit()
    one.check_quiescent()
    one.finish()


def test_a_child_ends_before_the_migration_does(lab):
    one = lab()
    one.map(2)
    to_device(one, 2)
    src = np.array([one.pfn(0), one.pfn(1)], np.uint64)
    dst = np.zeros(2, np.uint64)
    one.memory.migrate_device_pfns(src, 2)
    child = one.mm.fork()
    child.exit()  # a migration entry that goes takes nothing but rss with it
    one.device.fill_to_ram(src, dst, 2)
    one.memory.migrate_device_pages(src, dst, 2)
    one.memory.migrate_device_finalize(src, dst, 2)
    one.check_quiescent()
    one.write(0, 1)
    one.finish()


# --- device-exclusive entries


def exclusive(one, page: int) -> int:
    with one.mm.mmap_lock.read():
        return one.memory.make_device_exclusive(one.mm, BASE + page * PAGE, one)


def test_an_exclusive_page_is_restored_and_then_shared(lab):
    one = lab()
    one.map(4)
    tokens = one.read(*range(4))
    pfn = exclusive(one, 2)
    one.memory.folio_unlock(pfn)
    one.memory.folio_put(pfn)
    one.watch()
    child = one.mm.fork()
    # The restore has no window of its own (mm/memory.c:try_restore_exclusive_pte).
    assert one.events == [("p", "PROTECTION_PAGE", 0, 4, "-")]
    assert one.entry(2) == one.entry(2, child) == Pte(PteKind.PRESENT, pfn, dirty=True)
    assert one.counts(pfn) == "2/2"
    assert read(one, child, *range(4)) == tokens
    one.check_quiescent()
    child.exit()
    one.finish()


def test_a_busy_exclusive_page_fails_the_fork(lab):
    """MM-Q12: the device has the page locked, copy_nonpresent_pte says EBUSY, and fork ENOMEM."""
    one = lab()
    one.map(6)
    first = exclusive(one, 1)
    one.memory.folio_unlock(first)
    one.memory.folio_put(first)
    busy = exclusive(one, 3)
    last = exclusive(one, 5)
    one.memory.folio_unlock(last)
    one.memory.folio_put(last)
    with pytest.raises(KernelError) as caught:
        one.mm.fork()
    assert caught.value.errno == ENOMEM
    assert str(caught.value) == f"-ENOMEM: the device-exclusive page {busy:#x} is locked, so it stays"
    kinds = [one.entry(i).kind.name for i in range(6)]
    assert kinds == ["PRESENT", "PRESENT", "PRESENT", "EXCLUSIVE", "PRESENT", "EXCLUSIVE"]
    # What was copied before it stays write-protected, and its pages are the parent's alone again.
    assert [one.entry(i).write for i in range(6)] == [False, False, False, False, True, False]
    assert [one.counts(one.pfn(i)) for i in range(6)] == ["1/1", "1/1", "1/1", "2/1", "1/1", "1/1"]
    assert one.flags(busy) & PG_LOCKED
    one.memory.folio_unlock(busy)
    one.memory.folio_put(busy)
    one.write(*range(6))
    one.check_quiescent()
    one.mm.fork().exit()
    one.finish()


def test_a_pinned_page_that_was_exclusive_to_the_device_is_copied(lab):
    one = lab()
    one.map(3)
    tokens = one.read(0, 1, 2)
    pfn = exclusive(one, 1)
    one.memory.folio_unlock(pfn)
    one.mm.flags |= MMF_HAS_PINNED
    one.pages.ram.m_refcount[pfn] += GUP_PIN_COUNTING_BIAS - 1
    child = one.mm.fork()
    assert one.entry(1).pfn == pfn
    assert one.entry(1).write
    assert one.entry(1, child).pfn != pfn
    assert read(one, child, 0, 1, 2) == tokens
    one.pages.folio_put(pfn, GUP_PIN_COUNTING_BIAS)
    child.exit()
    one.check_quiescent()
    one.finish()


# --- what the device sees


def test_the_parents_mirror_is_told_and_a_write_does_not_break_the_share(lab):
    """MM-S2: an own device page satisfies a request to write though its entry is READ since the fork."""
    one = lab()
    one.map(2)
    to_device(one, 2)
    one.watch()
    sub = one.watchers[0].sub
    words = np.zeros(2, np.uint64)
    range_ = HmmRange(
        sub, BASE, BASE + 2 * PAGE, words, HMM_PFN_REQ_FAULT | HMM_PFN_REQ_WRITE, dev_private_owner=one.device.owner
    )

    def fault() -> list[int]:
        range_.notifier_seq = one.memory.mmu_interval_read_begin(sub)
        with one.mm.mmap_lock.read():
            one.memory.hmm_range_fault(range_)
        return [word >> 62 for word in words.tolist()]

    assert fault() == [3, 3]
    child = one.mm.fork()
    assert one.memory.mmu_interval_read_retry(sub, range_.notifier_seq)
    assert fault() == [HMM_PFN_VALID >> 62] * 2
    child.exit()
    one.finish()


def test_a_failed_fork_leaves_device_pages_as_they_were(lab):
    one = lab(thp="always")
    one.map(16)
    to_device(one, 16)
    live = dict(one.device.live)
    for nth in (1, 2):
        one.kernel.arm("alloc.pte_table", nth=nth)
        with pytest.raises(KernelError) as caught:
            one.mm.fork()
        assert caught.value.errno == ENOMEM
        assert one.device.live == live
        one.check_quiescent()
    one.finish()


def test_shared_pages_of_several_devices_are_unmapped_in_the_order_of_their_addresses(lab):
    one = lab()
    other = type(one.device)(one.memory, 8, owner=one.device)  # one owner for both: a migration takes them together
    one.map(6)
    other.migrate(one.mm, BASE, BASE + 2 * PAGE)
    other.migrate(one.mm, BASE + 3 * PAGE, BASE + 5 * PAGE)
    to_device(one, 6)
    child = one.mm.fork()
    one.watch(child)
    one.mm.mmap_lock.down_read()
    good, args = other.bring_home(one.mm, BASE, BASE + 6 * PAGE)
    one.mm.mmap_lock.up_read()
    assert (good, args.cpages) == (True, 6)
    assert one.events == [(child.name, "CLEAR", i, i + 1, "-") for i in range(6)]
    child.exit()
    one.mm.exit()
    one.memory.memunmap_pages(other.pgmap)


@pytest.mark.parametrize("thp", ["never", "always"])
def test_what_a_migration_keeps_in_every_process(lab, thp):
    """Invariant 24: which address of whom maps it, whether it may write there, and how much each process has."""
    one = lab(thp=thp)
    one.map(24)
    tokens = one.read(*range(24))
    child = one.mm.fork()
    wrote = write(one, child, 1, 17)
    one.write(9)
    grandchild = child.fork()
    own = write(one, grandchild, 2)
    one.mm.mprotect(BASE + 20 * PAGE, 2 * PAGE, PROT_READ)
    mms = (one.mm, child, grandchild)

    def picture():
        entries = {(mm.name, i): one.entry(i, mm) for mm in mms for i in range(24)}
        kept = {where: entry.write for where, entry in entries.items() if entry.kind is not PteKind.NONE}
        pfns = [[page_of(one, i, mm) for mm in mms] for i in range(24)]
        return kept, [[a == b for a in each for b in each] for each in pfns], [list(mm.rss) for mm in mms]

    def live() -> list[int]:
        return [word for head, order in sorted(one.device.live.items()) for word in [head] + [0] * ((1 << order) - 1)]

    before = picture()
    assert len(before[0]) == 72
    for mm in mms:
        one.device.migrate(mm, BASE, BASE + 8 * PAGE)
        one.device.migrate(mm, BASE + 8 * PAGE, BASE + 20 * PAGE)
        assert picture() == before
        one.device.evict(live())
        assert not one.device.live
        assert picture() == before
        one.check_quiescent()
    one.device.window = 8 * PAGE
    one.device.migrate(one.mm, BASE, BASE + 16 * PAGE)
    found = dict(enumerate(tokens)) | {1: wrote[0], 17: wrote[1], 2: own[0]}
    assert read(one, grandchild, *range(24)) == [found[i] for i in range(24)]
    read(one, one.mm, *range(24))
    read(one, child, *range(24))
    assert picture() == before
    grandchild.exit()
    child.exit()
    one.check_quiescent()
    one.finish()
