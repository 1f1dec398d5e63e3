"""Every invariant can fail: one is broken on purpose at a time, and exactly that one is reported, with its places.

Where breaking one rule breaks another by necessity, `also` says which and why.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import SimpleNamespace

import numpy as np
import pytest
from attrs import frozen
from gpusvm.check import INVARIANTS, QUIESCENT, RULES, Checker, InvariantError, violations
from gpusvm.drm import (
    DRM_INTERCONNECT_DRIVER,
    DrmDevice,
    DrmPagemap,
    GpuSvm,
    GpuSvmCtx,
    GpuSvmPages,
    constant_u8,
)
from gpusvm.drm import pages as pages_of_gpusvm
from gpusvm.drm.dma import DmaDevice
from gpusvm.errors import KernelError, LockdepError, ModelError
from gpusvm.gpu import READ, WRITE, GpuPageTable
from gpusvm.mm import MmQuirks
from gpusvm.mm.api import (
    FAULT_FLAG_WRITE,
    HMM_PFN_DMA_MAPPED,
    HMM_PFN_REQ_FAULT,
    HMM_PFN_REQ_WRITE,
    HMM_PFN_VALID,
    MIGRATE_PFN_MIGRATE,
    MIGRATE_PFN_SHIFT,
    MIGRATE_VMA_SELECT_COMPOUND,
    MIGRATE_VMA_SELECT_DEVICE_PRIVATE,
    MIGRATE_VMA_SELECT_SYSTEM,
    MMU_NOTIFY_CLEAR,
    MMU_NOTIFY_MIGRATE,
    PROT_READ,
    VM_MAYWRITE,
    HmmRange,
    MmuNotifierRange,
)
from gpusvm.mm.hmm import _Walk
from gpusvm.mm.hmm_dma import PciP2pdmaMapState, hmm_dma_map_alloc, hmm_dma_map_pfn, hmm_dma_unmap_pfn
from gpusvm.mm.page import PG_ANON_EXCLUSIVE, PG_LRU
from gpusvm.mm.pgtable import OtherPte, PmdKind, PteKind, PteTable

pytestmark = pytest.mark.breaks_invariants

PAGE = 4096
BASE = 1 << 30
RW = 3
SYSTEM = MIGRATE_VMA_SELECT_SYSTEM
FIXED = MmQuirks(mm_s1="fixed", mm_s2="fixed", mm_s3="fixed")


class Broken:
    """A machine in explored order, with a checker that collects."""

    def __init__(self, lab, monkeypatch, **options) -> None:
        self.lab = lab
        self.monkeypatch = monkeypatch

    def machine(self, **options):
        options.setdefault("quirks", FIXED)
        one = self.one = self.lab(mode="explored", **options)
        self.checker = Checker(one.memory, collect=True).attach()
        return one

    def table(self, page: int = 0, mm=None) -> PteTable:
        entry = (mm or self.one.mm).page_table.lookup(self.one.va(page))
        assert isinstance(entry, PteTable)
        return entry

    def ram(self):
        return self.one.pages.ram

    def device_zone(self):
        return self.one.pages.zone(self.one.device.pgmap.start_pfn)


@frozen
class Break:
    """What is broken, what is said then, and which others are named because it cannot be otherwise."""

    act: Callable[[Broken], object]
    said: tuple[str, ...]
    also: str


BREAKS: dict[int, Break] = {}


def breaks(number: int, *said: str, also: str = "") -> Callable[[Callable[[Broken], object]], Callable[..., object]]:
    def register(act: Callable[[Broken], object]) -> Callable[[Broken], object]:
        name = INVARIANTS[number].name
        assert number not in BREAKS
        lines = tuple(line if line.startswith("invariant") else f"invariant {number} ({name}): {line}" for line in said)
        BREAKS[number] = Break(act, lines, also)
        return act

    return register


# --- 1 to 7, mapping and references


@breaks(1, "mapcount is 2, and 1 entries map the folio [p:0x40000000, pfn 0x0, task 'main']")
def mapcount(b: Broken) -> None:
    one = b.machine()
    one.map(2)
    b.ram().m_mapcount[one.pfn(0)] += 1


@breaks(2, "the folio has 1 references, and 2 entries map it [p:0x40000000, q:0x40000000, pfn 0x0, task 'main']")
def refcount(b: Broken) -> None:
    one = b.machine()
    one.map(1)
    one.mm.fork("q")
    b.ram().m_refcount[one.pfn(0)] -= 1


@breaks(3, "the folio has 2 references: 1 mappings [p:0x40000000, pfn 0x0]")
def expected_refcount(b: Broken) -> None:
    one = b.machine()
    one.map(1)
    one.pages.folio_get(one.pfn(0))


@breaks(
    4,
    "a mapping's reference is put before the mapping is uncounted: refcount 1, mapcount 2 [pfn 0x0, task 'main']",
)
def mapcount_order(b: Broken) -> None:
    one = b.machine()
    one.map(1)
    child = one.mm.fork("q")
    b.table(0, child).clear(1)
    child.rss[0] -= 1
    one.pages.folio_put(one.pfn(0))
    one.memory.rmap.folio_remove_rmap_pte(one.pfn(0))


@breaks(5, "the zero page is mapped writable [p:0x40000000, pfn 0x200, task 'main']")
def zero_page(b: Broken) -> None:
    one = b.machine()
    one.map(1, write=False)
    one.read(0)
    b.table().set_write(1, 1)


@breaks(
    6,
    "2 entries of one address space name one anonymous page [p:0x40000000, p:0x40010000, pfn 0x0, task 'main']",
)
def mapped_once(b: Broken) -> None:
    one = b.machine(contents="none")
    one.map(1)
    pfn = one.pfn(0)
    one.mm.mmap(one.va(16), PAGE, RW)
    first, second = one.mm.vma_lookup(BASE), one.mm.vma_lookup(one.va(16))
    second.pgoff = first.pgoff
    one.memory.rmap.anon_vma_clone(second, first)
    b.table().set_write(1, 0)
    b.ram().m_flags[pfn] &= ~PG_ANON_EXCLUSIVE
    one.pages.folio_get(pfn)
    one.memory.rmap.folio_add_anon_rmap_pte(pfn, exclusive=False)
    one.mm.rss[0] += 1
    one.mm.page_table.table(one.va(16) >> one.memory.geometry.pmd_shift).set_present(1, pfn, 0)


@breaks(7, "rmap does not find the page here: mapping 1, index 0x40001 [p:0x40000000, pfn 0x0, task 'main']")
def page_index(b: Broken) -> None:
    one = b.machine()
    one.map(1)
    b.ram().m_index[one.pfn(0)] += 1
    b.table().set_write(1, 0)


# --- 8 to 13, exclusivity and writability


@breaks(8, "the page is AnonExclusive, and 2 entries map it [p:0x40000000, q:0x40000000, pfn 0x0, task 'main']")
def exclusive_once(b: Broken) -> None:
    one = b.machine()
    one.map(1)
    one.mm.fork("q")
    b.ram().m_flags[one.pfn(0)] |= PG_ANON_EXCLUSIVE


@breaks(9, "a writable entry names a page that is not AnonExclusive [p:0x40000000, pfn 0x0, task 'main']")
def writable_exclusive(b: Broken) -> None:
    one = b.machine()
    one.map(1)
    b.ram().m_flags[one.pfn(0)] &= ~PG_ANON_EXCLUSIVE


@breaks(
    10,
    "a WRITE migration entry names a page that is AnonExclusive [p:0x40000000, pfn 0x0, task 'main']",
)
def migration_exclusive(b: Broken) -> None:
    one = b.machine()
    one.map(1)
    one.device.setup(one.mm, one.va(0), one.va(1), flags=SYSTEM)
    b.ram().m_flags[0] |= PG_ANON_EXCLUSIVE


@breaks(
    11,
    "a writable entry lies in Vma(0x40000000-0x40001000 rw-), which may not be written "
    "[p:0x40000000, pfn 0x0, task 'main']",
)
def may_write(b: Broken) -> None:
    one = b.machine()
    one.map(1)
    table = b.table()
    table.set_write(1, 0)
    one.kernel.step()
    one.mm.vma_lookup(BASE).flags &= ~VM_MAYWRITE
    table.set_write(1, 1)


@breaks(12, "a page that two address spaces map is writable in one [q:0x40000000, pfn 0x0, task 'main']")
def fork_shares(b: Broken) -> None:
    one = b.machine()
    one.map(1)
    child = one.mm.fork("q")
    b.table(0, child).set_write(1, 1)


@breaks(
    13,
    "a hole in Vma(0x40000000-0x40001000 r--) is filled with a WRITE device-private entry "
    "[p:0x40000000, pfn 0x10000, task 'main']",
)
def hole_permission(b: Broken) -> None:
    one = b.machine(contents="none")
    one.map(1, write=False, prot=PROT_READ)
    vma = one.mm.vma_lookup(BASE)
    one.memory.rmap.anon_vma_prepare(vma)
    pfn = one.device.alloc()
    one.memory.rmap.folio_add_new_anon_rmap(pfn, vma, BASE)
    one.mm.rss[0] += 1
    one.mm.page_table.table(BASE >> one.memory.geometry.pmd_shift).set_private(1, pfn, 1)
    one.pages.folio_unlock(pfn)


# --- 14 to 25, migration


@breaks(
    14,
    "1 migration entries name the folio, which is not locked and has 1 references [p:0x40000000, pfn 0x0, task 'main']",
)
def migration_locked(b: Broken) -> None:
    one = b.machine()
    one.map(1)
    one.device.setup(one.mm, one.va(0), one.va(1), flags=SYSTEM)
    one.pages.folio_unlock(0)


@breaks(
    15,
    "a migration entry is installed outside of any migration or split [p:0x40000000, pfn 0x0, task 'main']",
)
def migration_owned(b: Broken) -> None:
    one = b.machine()
    one.map(1)
    one.pages.folio_trylock(0)
    one.pages.folio_get(0)
    one.memory.rmap.folio_try_share_anon_rmap(0)
    b.table().set_migration(1, 1, 0)
    one.memory.rmap.folio_remove_rmap_pte(0)
    one.pages.folio_put(0)


@breaks(
    16,
    "finalize has left a migration entry [p:0x40001000, pfn 0x1, task 'main']",
    "finalize has left a folio locked [p:0x40001000, pfn 0x1, task 'main']",
)
def finalized(b: Broken) -> None:
    one = b.machine()
    one.map(2)
    args = one.device.setup(one.mm, one.va(0), one.va(2), flags=SYSTEM)
    one.device.fill_to_device(args, decline=(1,))
    one.memory.migrate_vma_pages(args)
    args.src[1] = 0
    one.memory.migrate_vma_finalize(args)
    one.mm.mmap_lock.up_read()


class Interfering:
    """A notifier that does something when it first hears of an event."""

    def __init__(self, one, mm, event: int, act: Callable[[], object]) -> None:
        self.one = one
        self.event = event
        self.act = act
        self.sub = one.memory.mmu_interval_notifier_insert(mm, 0, 1 << 46, self)

    def invalidate(self, sub, range_, cur_seq) -> bool:
        self.one.memory.mmu_interval_set_seq(sub, cur_seq)
        if range_.event == self.event:
            self.event = -1
            self.act()
        return True


@breaks(17, "setup has collected a folio: it is on the LRU [pfn 0x0, task 'main']")
def collected(b: Broken) -> None:
    one = b.machine()
    one.map(1)
    child = one.mm.fork("q")

    def act() -> None:
        b.ram().m_flags[0] |= PG_LRU

    Interfering(one, child, MMU_NOTIFY_CLEAR, act)
    with suppress(ModelError):
        one.device.setup(one.mm, one.va(0), one.va(1), flags=SYSTEM)


def caught_args(b: Broken) -> list:
    """Let a test reach the arguments of the migration that is being set up."""
    found: list = []
    original = b.one.memory.migrate_vma_setup

    def setup(args) -> None:
        found.append(args)
        original(args)

    b.monkeypatch.setattr(b.one.memory, "migrate_vma_setup", setup)
    return found


@breaks(18, "destination word 1 is 0x40 after setup [p:0x40001000, task 'main']")
def source_words(b: Broken) -> None:
    one = b.machine()
    one.map(2)
    args = caught_args(b)

    def act() -> None:
        args[0].dst[1] = 1 << MIGRATE_PFN_SHIFT

    Interfering(one, one.mm, MMU_NOTIFY_MIGRATE, act)
    one.device.setup(one.mm, one.va(0), one.va(2), flags=SYSTEM)


@breaks(19, "word 1, behind COMPOUND word 0, is 0x2 [p:0x40001000, task 'main']")
def compound_words(b: Broken) -> None:
    one = b.machine(thp="always")
    one.map(16, write=False)
    one.write(8)
    args = caught_args(b)

    def act() -> None:
        args[0].src[1] = MIGRATE_PFN_MIGRATE

    Interfering(one, one.mm, MMU_NOTIFY_MIGRATE, act)
    one.device.setup(one.mm, one.va(0), one.va(8), flags=SYSTEM | MIGRATE_VMA_SELECT_COMPOUND)


@breaks(20, "cpages is 2, and 1 words have MIGRATE [p:0x40000000, task 'main']")
def cpages(b: Broken) -> None:
    one = b.machine()
    one.map(2, write=False)
    one.write(1)
    child = one.mm.fork("q")
    args = caught_args(b)

    def act() -> None:
        args[0].src[0] = 0

    Interfering(one, child, MMU_NOTIFY_CLEAR, act)
    one.device.setup(one.mm, one.va(0), one.va(2), flags=SYSTEM)


@breaks(21, "source word 1 was 0x0 and is 0x2: MIGRATE has come [p:0x40001000, task 'main']")
def migrate_bits(b: Broken) -> None:
    one = b.machine()
    one.map(2)
    one.kernel.spawn(one.pages.folio_trylock, 1, name="holder").join()
    args = one.device.setup(one.mm, one.va(0), one.va(2), flags=SYSTEM)
    assert args.src[1] == 0
    args.src[1] = MIGRATE_PFN_MIGRATE
    one.memory.migrate_vma_pages(args)


@breaks(22, "destination word 0: it is not locked [p:0x40000000, pfn 0x10000, task 'main']")
def destinations(b: Broken) -> None:
    one = b.machine()
    one.map(1)
    args = one.device.setup(one.mm, one.va(0), one.va(1), flags=SYSTEM)
    one.device.fill_to_device(args)
    one.pages.folio_unlock(0x10000)
    with suppress(ModelError):
        one.memory.migrate_vma_pages(args)


@breaks(
    23,
    "the page holds new device memory, and version 1 by writer 0 was written last "
    "[p:0x40000000, pfn 0x10000, task 'main']",
)
def contents(b: Broken) -> None:
    one = b.machine()
    one.map(1)
    b.monkeypatch.setattr(one.memory, "copy_folio", lambda *_: None)
    one.device.migrate(one.mm, one.va(0), one.va(1), flags=SYSTEM)


@breaks(24, "a WRITE migration entry has come back read-only [p:0x40000000, pfn 0x10000, task 'main']")
def preserved(b: Broken) -> None:
    one = b.machine()
    one.map(1)
    original = PteTable.set_private

    def set_private(table, mask: int, pfns, write: int) -> None:
        original(table, mask, pfns, 0)

    b.monkeypatch.setattr(PteTable, "set_private", set_private)
    one.device.migrate(one.mm, one.va(0), one.va(1), flags=SYSTEM)


@breaks(25, "the folio is still locked [p:0x40000000, pfn 0x0]")
def unlocked_once(b: Broken) -> None:
    one = b.machine()
    one.map(1)
    one.pages.folio_lock(0)


# --- 26 to 35, device memory


def on_device(b: Broken, n: int = 1, **options):
    one = b.machine(**options)
    one.map(n)
    one.device.migrate(one.mm, one.va(0), one.va(n), flags=SYSTEM | MIGRATE_VMA_SELECT_COMPOUND)
    return one


@breaks(26, "a present entry names a device-private page [p:0x40000000, pfn 0x10000, task 'main']")
def entry_type(b: Broken) -> None:
    on_device(b)
    b.table().set_present(1, 0x10000, 0)


@breaks(
    27,
    "a device-private entry names a folio, and its mapping is 0 [p:0x40000000, pfn 0x10000, task 'main']",
)
def private_anon(b: Broken) -> None:
    on_device(b)
    b.device_zone().m_mapping[0] = 0


@breaks(28, "a ZONE_DEVICE folio is on an LRU [p:0x40000000, pfn 0x10000, task 'main']")
def no_lru(b: Broken) -> None:
    on_device(b)
    b.device_zone().m_flags[0] |= PG_LRU


@breaks(29, "a device folio is free, and page 0x10000 is AnonExclusive [pfn 0x10000, task 'main']")
def free_device_page(b: Broken) -> None:
    one = on_device(b)
    one.read(0)
    assert one.device.freed == [(0x10000, 0)]
    b.device_zone().m_flags[0] |= PG_ANON_EXCLUSIVE


@breaks(
    30,
    "the pagemap of pfn 0x10000 has 1 references, 2 are accounted for: 1 pages live, 0 given, not killed "
    "[pfn 0x10000, task 'main']",
)
def pgmap_refs(b: Broken) -> None:
    one = on_device(b)
    one.device.pgmap.ref -= 1


@breaks(
    31,
    "the pagemap is done with 1 references [pfn 0x10000, task 'unplug']",
    "the pagemap is done, and its page is mapped [p:0x40000000, pfn 0x10000, task 'unplug']",
)
def pgmap_done(b: Broken) -> None:
    one = on_device(b)
    task = one.kernel.spawn(one.memory.memunmap_pages, one.device.pgmap, name="unplug")
    one.kernel.settle()
    one.device.pgmap.done.complete_all()
    with suppress(ModelError):
        task.join()


@breaks(32, "folio_free of order 0, and the page is free [pfn 0x10000, task 'main']")
def freed_once(b: Broken) -> None:
    one = on_device(b)
    one.read(0)
    zone = b.device_zone()

    def folio_free(pfn: int, order: int) -> None:
        one.device.pgmap.ref += 1  # what the second free takes away, or 30 would be broken too

    b.monkeypatch.setattr(one.device, "folio_free", folio_free)
    one.memory.pagemaps.free_zone_device_folio(zone, 0)


@breaks(33, "a part of a split device folio has no zone_device_data [pfn 0x10001, task 'main']")
def split_parts(b: Broken) -> None:
    one = on_device(b, 8, thp="always")
    original = one.device.folio_split

    def folio_split(head: int, tail: int | None) -> None:
        original(head, tail)
        if tail == 0x10001:
            one.memory.set_zone_device_data(tail, None)

    one.device.folio_split = folio_split
    with one.mm.mmap_lock.read():
        one.device.bring_home(one.mm, one.va(0), one.va(2), flags=MIGRATE_VMA_SELECT_DEVICE_PRIVATE)


@breaks(
    34,
    "folio_free sleeps: sleeping while atomic: task 'main' is taking mutex 'vram' at PLACE, atomic since PLACE "
    "(context 'preempt_disable') [pfn 0x10000, task 'main']",
)
def free_never_sleeps(b: Broken) -> None:
    one = on_device(b)
    lock = one.kernel.mutex("vram")
    original = one.device.folio_free

    def folio_free(pfn: int, order: int) -> None:
        with lock:
            original(pfn, order)

    b.monkeypatch.setattr(one.device, "folio_free", folio_free)
    with suppress(LockdepError):
        one.mm.munmap(one.va(0), PAGE)


@breaks(35, "a PMD names no head of a PMD-order folio [p:0x40000000, pfn 0x0, task 'main']")
def pmd_entry(b: Broken) -> None:
    one = b.machine(contents="none")
    one.map(8, write=False)
    pfn = one.pages.alloc_folio(2)
    vma = one.mm.vma_lookup(BASE)
    one.memory.rmap.anon_vma_prepare(vma)
    zone = b.ram()
    zone.m_mapping[pfn] = vma.anon_vma.id
    zone.m_index[pfn] = vma.pgoff
    zone.m_mapcount[pfn] = zone.m_entire[pfn] = 1
    zone.m_flags[pfn] |= PG_ANON_EXCLUSIVE
    one.mm.rss[0] += 8
    one.mm.page_table.set_leaf(BASE >> one.memory.geometry.pmd_shift, PmdKind.THP, pfn, write=True)


# --- 36 to 45, notifiers


@breaks(36, "1 invalidations are counted as active, and 0 windows are open [task 'main']")
def active_windows(b: Broken) -> None:
    one = b.machine()
    one.watch()
    one.mm.notifiers.active_invalidate_ranges += 1


@breaks(37, "no window is open, and the sequence is 3 with 0 deferred [task 'main']")
def sequence_parity(b: Broken) -> None:
    one = b.machine()
    one.watch()
    one.mm.notifiers.invalidate_seq |= 1


@breaks(
    38,
    "MmuIntervalNotifier(p, 0x0..0x3fffffffffff, seq=1) is in the tree, and it says in_tree True, deferred True "
    "[p:0x0, task 'main']",
)
def deferred(b: Broken) -> None:
    one = b.machine()
    one.watch()
    one.watchers[0].sub.deferred = True
    one.memory.mmu_interval_notifier_insert(one.mm, BASE, PAGE, one.watchers[0])


@breaks(
    39,
    "MmuIntervalNotifier(p, 0x0..0x3fffffffffff, seq=5) is at 5, the mm at 2 [p:0x0, task 'main']",
)
def subscription_sequence(b: Broken) -> None:
    one = b.machine()
    one.watch()
    one.memory.mmu_interval_set_seq(one.watchers[0].sub, 5)


@breaks(
    40,
    "a writable entry becomes a read-only entry outside of any window [p:0x40000000, pfn 0x0, task 'main']",
)
def change_in_window(b: Broken) -> None:
    one = b.machine()
    one.map(1)
    one.watch()
    b.table().set_write(1, 0)


@breaks(41, "a CLEAR window carries owner 'somebody' instead of None [p:0x40000000, task 'main']")
def window_owner(b: Broken) -> None:
    one = b.machine()
    one.watch()
    range_ = MmuNotifierRange(one.mm, BASE, BASE + PAGE, MMU_NOTIFY_CLEAR, "somebody")
    one.memory.invalidate_range_start(range_)
    one.memory.invalidate_range_end(range_)


class Vetoing:
    """A notifier that cannot follow where it must not sleep."""

    def __init__(self, one) -> None:
        self.one = one
        self.sub = one.memory.mmu_interval_notifier_insert(one.mm, 0, 1 << 46, self)

    def invalidate(self, sub, range_, cur_seq) -> bool:
        if not range_.blockable:
            return False
        self.one.memory.mmu_interval_set_seq(sub, cur_seq)
        return True


@breaks(
    42,
    "a writable entry becomes a read-only entry though the start of 0x40000000-0x40001000 has answered -EAGAIN "
    "[p:0x40000000, pfn 0x0, task 'main']",
)
def non_blockable(b: Broken) -> None:
    one = b.machine()
    one.map(1)
    Vetoing(one)
    range_ = MmuNotifierRange(one.mm, BASE, BASE + PAGE, MMU_NOTIFY_CLEAR, None, 0)
    assert one.memory.invalidate_range_start(range_) < 0
    b.table().set_write(1, 0)


def hmm_read(one, page: int, n: int, default: int = HMM_PFN_REQ_FAULT, spoil: Callable | None = None) -> None:
    """Do what a driver does to mirror pages: read them, and ask under its lock whether they still hold."""
    words = np.zeros(n, np.uint64)
    sub = one.watchers[0].sub
    range_ = HmmRange(sub, one.va(page), one.va(page + n), words, default, 0, one.device.owner)
    range_.notifier_seq = one.memory.mmu_interval_read_begin(sub)
    with one.mm.mmap_lock.read():
        one.memory.hmm_range_fault(range_)
    if spoil is not None:
        spoil(words)
    assert not one.memory.mmu_interval_read_retry(sub, range_.notifier_seq)


@breaks(43, "the word has pfn 0x1, the entry 0x0 [p:0x40000000, pfn 0x0, task 'main']")
def hmm_words(b: Broken) -> None:
    one = b.machine()
    one.map(1)
    one.watch()

    def spoil(words: np.ndarray) -> None:
        words[0] += 1

    hmm_read(one, 0, 1, spoil=spoil)


@breaks(
    44,
    "a reader with sequence 1 need not retry, and 1 invalidations have set it since [p:0x0, task 'main']",
)
def reader_collides(b: Broken) -> None:
    one = b.machine()
    one.watch()
    sub = one.watchers[0].sub
    seq = one.memory.mmu_interval_read_begin(sub)
    one.memory.mmu_interval_set_seq(sub, seq)
    assert not one.memory.mmu_interval_read_retry(sub, seq)


@breaks(
    45,
    "MmuIntervalNotifier(p, 0x0..0x3fffffffffff, seq=1) is called after its removal [p:0x40000000, task 'main']",
)
def removed_is_silent(b: Broken) -> None:
    one = b.machine()
    one.watch()
    sub = one.watchers[0].sub
    one.memory.mmu_interval_notifier_remove(sub)
    one.mm.notifiers.itree.insert(sub)
    range_ = MmuNotifierRange(one.mm, BASE, BASE + PAGE, MMU_NOTIFY_CLEAR)
    one.memory.invalidate_range_start(range_)
    one.memory.invalidate_range_end(range_)


# --- 46 to 52, lifetime, accounting, locks


@breaks(46, "p counts 2 MM_ANONPAGES, and its entries name 1 [task 'main']")
def rss(b: Broken) -> None:
    one = b.machine()
    one.map(1)
    one.mm.rss[0] += 1


@breaks(47, "a fault is handled in p, which has no users [p:0x40000000, task 'main']")
def mm_users(b: Broken) -> None:
    one = b.machine()
    one.map(1, write=False)
    one.mm.mm_users = 0
    with one.mm.mmap_lock.read():
        one.memory.handle_mm_fault(one.mm, one.mm.vma_lookup(BASE), BASE, FAULT_FLAG_WRITE)
    one.mm.mm_users = 1


@breaks(48, "the areas of p have changed without mmap_lock held for write [task 'main']")
def vma_locked(b: Broken) -> None:
    one = b.machine()
    one.map(1, write=False)
    one.mm.vma_tree.remove(one.mm.vma_lookup(BASE))


@breaks(49, "mmap_lock is taken while the callbacks' mutex 'driver' is held [task 'main']")
def lock_order(b: Broken) -> None:
    one = b.machine()
    one.map(1)
    lock = one.kernel.mutex("driver")

    class Driver:
        def invalidate(self, sub, range_, cur_seq) -> bool:
            with lock:
                one.memory.mmu_interval_set_seq(sub, cur_seq)
            return True

    one.memory.mmu_interval_notifier_insert(one.mm, 0, 1 << 46, Driver())
    one.mm.munmap(BASE, PAGE)
    lock.lock()
    with suppress(LockdepError):
        one.mm.mmap_lock.down_read()
    lock.unlock()


@breaks(
    50,
    "the folio is locked by 'gone', which has ended [p:0x40000000, pfn 0x0, task 'main', task 'gone']",
)
def live_owner(b: Broken) -> None:
    one = b.machine()
    one.map(1)
    one.kernel.spawn(one.pages.folio_trylock, 0, name="gone").join()
    with suppress(ModelError):
        one.pages.folio_lock(0)


@breaks(51, "hmm has made the word of an opaque entry VALID [p:0x40000000, task 'main']")
def opaque_entries(b: Broken) -> None:
    one = b.machine()
    one.map(2)
    one.watch()
    table = b.table(1)
    original = _Walk.fill_ptes

    def fill_ptes(walk, table, at, i, n, valid, write) -> None:
        original(walk, table, at, i, n, valid, write)
        walk.words[0] |= np.uint64(HMM_PFN_VALID)

    one.mm.munmap(one.va(0), PAGE)
    one.mm.mmap(one.va(0), PAGE, RW)
    table.set_other(0, OtherPte(PteKind.MARKER_POISONED))
    b.monkeypatch.setattr(_Walk, "fill_ptes", fill_ptes)
    words = np.zeros(1, np.uint64)
    sub = one.watchers[0].sub
    range_ = HmmRange(sub, one.va(0), one.va(1), words, 0, 0, one.device.owner)
    range_.notifier_seq = one.memory.mmu_interval_read_begin(sub)
    with one.mm.mmap_lock.read():
        one.memory.hmm_range_fault(range_)


@breaks(52, "entry 0 is unmapped, and it was not mapped [pfn 0x0, task 'main']")
def dma_mapped(b: Broken) -> None:
    one = b.machine()
    one.map(1)
    device = DmaDevice(one.kernel, "gpu", iommu=False, offset=0)
    device.need_unmap = False
    map_ = hmm_dma_map_alloc(one.kernel, device, 1)
    map_.pfn_list[0] = HMM_PFN_VALID
    hmm_dma_map_pfn(one.memory, device, map_, 0, PciP2pdmaMapState())
    assert hmm_dma_unmap_pfn(device, map_, 0)
    map_.pfn_list[0] |= np.uint64(HMM_PFN_DMA_MAPPED)
    assert hmm_dma_unmap_pfn(device, map_, 0)


# --- 53, power


class Asleep:
    """A device that sleeps though its driver promised otherwise."""

    name, state, promised, is_asleep, excuse = "gpu0", "D3cold", True, True, None


@breaks(53, "gpu0 is in D3cold, and pages of it are in use: 1 [p:0x40000000, pfn 0x10000, task 'main']")
def device_awake(b: Broken) -> None:
    one = on_device(b)
    one.device.pgmap.power = power = Asleep()
    b.checker.device_sleeps(power)


# --- 54 and 55, page tables of devices


def mirrored(one, pages: int, perm: int) -> GpuPageTable:
    table = GpuPageTable(one.kernel, one.memory, one.mm)
    table.map_pages(BASE // PAGE, np.array([one.pfn(page) for page in range(pages)]), perm)
    return table


@breaks(54, "a device has a free page mapped [p:0x40000000, pfn 0x0, task 'main']")
def mirror_free_page(b: Broken) -> None:
    one = b.machine()
    one.map(2)
    mirrored(one, 2, READ | WRITE)
    one.mm.munmap(BASE, PAGE)


@breaks(55, "a device may write the zero page [p:0x40000000, pfn 0x200]")
def mirror_entries(b: Broken) -> None:
    one = b.machine()
    one.map(1, write=False)
    one.read(0)
    GpuPageTable(one.kernel, one.memory, one.mm).map_run(BASE // PAGE, one.memory.zero_pfn, 1, READ | WRITE)


# --- 56 to 58, what drm_gpusvm maps and drm_pagemap moves


def got(one, pages: int, *, owner=None, drm=None) -> GpuSvmPages:
    """Get pages of the process for a device, as a driver without ranges does, which is told of nothing."""
    gpusvm = GpuSvm(one.kernel, one.memory, "core", None)
    notifier = one.memory.mmu_interval_notifier_insert(one.mm, one.va(64), PAGE, Deaf())
    mapped = GpuSvmPages(drm or DrmDevice(one.kernel, "gpu"))
    ctx = GpuSvmCtx(device_private_page_owner=owner, allow_mixed=True)
    pages_of_gpusvm.get_pages(gpusvm, mapped, one.mm, notifier, one.va(0), one.va(pages), ctx)
    return mapped


class Deaf:
    """A notifier of addresses where nothing happens."""

    def invalidate(self, *_) -> bool:
        return True


@breaks(56, "gpu has a free page mapped for DMA [pfn 0x0, task 'main']")
def dma_free_page(b: Broken) -> None:
    one = b.machine()
    one.map(2)
    got(one, 2)
    one.mm.munmap(BASE, PAGE)


class Provider:
    """A pagemap whose pages any device maps by their numbers."""

    def device_map(self, dpagemap, dev, pfns, order, direction):
        return pfns.view(np.uint64), constant_u8(DRM_INTERCONNECT_DRIVER, len(pfns))


@breaks(57, "gpu is given device pages for somebody who can take none [pfn 0x10000, task 'main']")
def page_owner(b: Broken) -> None:
    one = on_device(b)
    owner = one.device.pgmap.owner
    b.monkeypatch.setattr(pages_of_gpusvm, "page_owner", lambda *_: owner)
    dpagemap = DrmPagemap(one.memory, DrmDevice(one.kernel, "gpu"), one.device.pgmap, Provider())
    b.monkeypatch.setattr(pages_of_gpusvm, "page_zdd", lambda *_: SimpleNamespace(dpagemap=dpagemap))
    got(one, 1, drm=dpagemap.drm)


@breaks(58, "a CPU fault takes pages from gpu 5000000 ns before their timeslice is over [task 'main']")
def timeslice(b: Broken) -> None:
    one = b.machine()
    kernel = one.kernel
    devmem = SimpleNamespace(timeslice_expiration_ns=kernel.now_ns + 5_000_000, drm=DrmDevice(kernel, "gpu"))
    b.checker.cpu_fault_takes(devmem)


# --- what is done with them


def named(number: int) -> str:
    return f"{number:02}-{INVARIANTS[number].name}"


@pytest.fixture
def broken(lab, monkeypatch) -> Iterator[Broken]:
    one = Broken(lab, monkeypatch)
    yield one
    one.one.kernel.observer = None


def collect(b: Broken, *, rest: bool) -> list[str]:
    """Come to the next yield point; `rest` looks at the whole machine too."""
    for _ in range(8):  # what nobody told of is looked at every eighth time
        if not b.checker.findings:
            b.one.kernel.step()
    if rest and not b.checker.findings:
        with suppress(InvariantError):
            b.checker.check_quiescent()
    return [re.sub(r"\S+\.py:\d+", "PLACE", str(one)) for one in b.checker.findings]


@pytest.mark.parametrize("number", sorted(BREAKS), ids=named)
def test_invariant(broken: Broken, number: int) -> None:
    one = BREAKS[number]
    one.act(broken)
    only_at_rest = "A" not in "".join(INVARIANTS[number].strengths) and INVARIANTS[number].strengths == (QUIESCENT,)
    found = collect(broken, rest=only_at_rest or number == 25)
    assert found == list(one.said)


# What is broken for a moment only, or in what somebody does, does not show in the state that it leaves.
AT_REST = [number for number in BREAKS if QUIESCENT in INVARIANTS[number].strengths and number != 47]


@pytest.mark.parametrize("number", AT_REST, ids=named)
def test_invariant_at_rest(broken: Broken, number: int) -> None:
    BREAKS[number].act(broken)
    assert number in {one.invariant for one in violations(broken.one.memory)}


def test_every_invariant_has_functions_and_is_broken_here() -> None:
    assert list(INVARIANTS) == list(range(1, 59))
    assert [number for number in INVARIANTS if not RULES[number]] == []
    assert sorted(BREAKS) == list(INVARIANTS)


# --- the other halves of rules that have two


def test_a_mapping_is_counted_after_its_reference_is_taken(broken: Broken) -> None:
    """4: the second PTE mapping of a page, without its reference."""
    one = broken.machine()
    one.map(1)
    one.memory.rmap.folio_add_anon_rmap_pte(0, exclusive=False)
    assert [str(found) for found in broken.checker.shadow.violations] == [
        (
            "invariant 4 (mapcount-order): a mapping is counted before its reference is taken: refcount 1, mapcount 2 "
            "[pfn 0x0, task 'main']"
        )
    ]
    broken.checker.shadow.violations.clear()
    broken.ram().m_mapcount[0] = 1


def test_mprotect_leaves_nothing_writable(broken: Broken) -> None:
    """11: the flags of the area change, the entries do not."""
    one = broken.machine()
    one.map(1)
    broken.monkeypatch.setattr("gpusvm.mm.mprotect._change_ptes", lambda *_: None)
    one.mm.mprotect(BASE, PAGE, PROT_READ)
    assert collect(broken, rest=False) == [
        "invariant 11 (may-write): mprotect has left 1 writable PTEs [p:0x40000000, pfn 0x0, task 'main']"
    ]


def test_what_could_not_be_opened_is_not_closed(broken: Broken) -> None:
    """42; the count of active invalidations is one less than the open windows then, so 36 breaks by necessity."""
    one = broken.machine()
    Vetoing(one)
    range_ = MmuNotifierRange(one.mm, BASE, BASE + PAGE, MMU_NOTIFY_CLEAR, None, 0)
    assert one.memory.invalidate_range_start(range_) < 0
    one.memory.invalidate_range_end(range_)
    assert collect(broken, rest=False) == [
        "invariant 42 (non-blockable): a range is closed whose start has answered -EAGAIN [p:0x40000000, task 'main']",
        "invariant 36 (active-windows): -1 invalidations are counted as active, and 0 windows are open [task 'main']",
    ]


def test_a_callback_for_a_range_that_is_not_blockable_does_not_sleep(broken: Broken) -> None:
    """42: it takes a mutex."""
    one = broken.machine()
    lock = one.kernel.mutex("driver")

    class Sleeping:
        def invalidate(self, sub, range_, cur_seq) -> bool:
            with lock:
                return True

    one.memory.mmu_interval_notifier_insert(one.mm, 0, 1 << 46, Sleeping())
    range_ = MmuNotifierRange(one.mm, BASE, BASE + PAGE, MMU_NOTIFY_CLEAR, None, 0)
    with suppress(LockdepError):
        one.memory.invalidate_range_start(range_)
    assert collect(broken, rest=False) == [
        (
            "invariant 42 (non-blockable): a callback sleeps for a range that is not blockable: sleeping while atomic: "
            "task 'main' is taking mutex 'driver' at PLACE, atomic since PLACE (context 'preempt_disable') "
            "[p:0x40000000, task 'main']"
        )
    ]


def test_a_window_that_a_classic_notifier_refused_stays_open_as_written(broken: Broken) -> None:
    """36 at rest: quirk MM-S5 keeps the count up, and is named for it."""
    one = broken.machine()
    one.watch()

    class Classic:
        invalidate_range_end = release = None

        def invalidate_range_start(self, range_) -> int:
            return 0 if range_.blockable else -11

    one.memory.mmu_notifier_register(Classic(), one.mm)
    range_ = MmuNotifierRange(one.mm, BASE, BASE + PAGE, MMU_NOTIFY_CLEAR, None, 0)
    assert one.memory.invalidate_range_start(range_) == -11
    broken.checker.check_quiescent()
    assert [str(found) for found in broken.checker.known] == [
        (
            "invariant 36 (active-windows): 1 invalidations are counted as active, and 0 windows are open "
            "(known: quirk mm_s5)"
        )
    ]


@pytest.mark.parametrize("variant", ["as_written", "fixed"])
def test_43_is_known_with_mm_s1(broken: Broken, variant: str) -> None:
    """A walk that begins inside an owned device-private PMD reports the head's pages; fixed, it does not."""
    one = on_device(broken, 8, thp="always", quirks=MmQuirks(mm_s1=variant))
    one.watch()
    hmm_read(one, 3, 1)
    assert collect(broken, rest=False) == []
    assert [str(found) for found in broken.checker.known] == [
        (
            "invariant 43 (hmm-words): the word has pfn 0x10000, the entry 0x10003 "
            "[p:0x40003000, pfn 0x10003, task 'main'] (known: quirk mm_s1)"
        )
    ] * (variant == "as_written")


@pytest.mark.parametrize("variant", ["as_written", "fixed"])
def test_43_is_known_with_mm_s2(broken: Broken, variant: str) -> None:
    """An owned device-private page that a child shares is taken for writable; fixed, it is faulted home."""
    one = on_device(broken, quirks=MmQuirks(mm_s2=variant))
    one.watch()
    one.mm.fork("q")
    with suppress(KernelError):  # fixed, the fault brings it home, which invalidates the range
        hmm_read(one, 0, 1, HMM_PFN_REQ_FAULT | HMM_PFN_REQ_WRITE)
    assert collect(broken, rest=False) == []
    assert [str(found) for found in broken.checker.known] == [
        (
            "invariant 43 (hmm-words): the word was asked for WRITE and has none "
            "[p:0x40000000, pfn 0x10000, task 'main'] (known: quirk mm_s2)"
        )
    ] * (variant == "as_written")


def test_the_count_of_an_address_space_covers_its_subscriptions(broken: Broken) -> None:
    """47: a reference of somebody who still subscribes is dropped."""
    one = broken.machine()
    one.watch()
    one.mm.mm_count -= 1
    assert collect(broken, rest=True) == [
        "invariant 47 (mm-users): mm_count of p is 1, and 2 hold it: 1 users, 1 subscriptions [task 'main']"
    ]


def test_a_folio_lock_is_not_taken_under_the_callbacks_lock(broken: Broken) -> None:
    """49: nor mmap_lock while a folio is locked."""
    one = broken.machine()
    one.map(1)
    lock = one.kernel.mutex("driver")

    class Driver:
        def invalidate(self, sub, range_, cur_seq) -> bool:
            with lock:
                one.memory.mmu_interval_set_seq(sub, cur_seq)
            return True

    one.memory.mmu_interval_notifier_insert(one.mm, 0, 1 << 46, Driver())
    one.mm.mprotect(BASE, PAGE, PROT_READ)
    with lock:
        one.pages.folio_lock(0)
    with one.mm.mmap_lock.read():
        one.pages.folio_unlock(0)
    assert collect(broken, rest=False) == [
        (
            "invariant 49 (lock-order): a folio lock is taken while the callbacks' mutex 'driver' is held "
            "[pfn 0x0, task 'main']"
        ),
        "invariant 49 (lock-order): mmap_lock is taken while a folio lock is held [pfn 0x0, task 'main']",
    ]


def test_tasks_that_wait_for_each_other_s_folios(broken: Broken) -> None:
    """50: each holds what the other wants."""
    one = broken.machine()
    one.map(2)

    def want(first: int, second: int) -> None:
        one.pages.folio_lock(first)
        one.kernel.sleep_ns(10_000)
        one.pages.folio_lock(second)

    one.kernel.spawn(want, 0, 1, name="a", daemon=True)
    one.kernel.spawn(want, 1, 0, name="b", daemon=True)
    one.kernel.sleep_ns(1_000_000)
    assert collect(broken, rest=False) == [
        (
            "invariant 50 (live-owner): tasks wait for each other: 'b' for 'a' for 'b' "
            "[p:0x40000000, pfn 0x0, task 'b', task 'a']"
        )
    ]


def test_a_checker_raises_where_a_rule_breaks(lab) -> None:
    one = lab(mode="explored")
    Checker(one.memory).attach()
    one.map(1)
    one.mm.rss[0] += 1
    with pytest.raises(InvariantError) as raised:
        one.mm.mprotect(BASE, PAGE, PROT_READ)
    assert str(raised.value) == "invariant 46 (rss): p counts 2 MM_ANONPAGES, and its entries name 1 [task 'main']"
    assert raised.value.violations[0].tasks == ("main",)
    one.kernel.observer = None


def test_one_listens_at_a_time(lab) -> None:
    one = lab()
    checker = Checker(one.memory).attach()
    with pytest.raises(ModelError, match=r"listens to this kernel already, and there is room for one$"):
        Checker(one.memory).attach()
    checker.detach()
    Checker(one.memory).attach().detach()
