"""A machine for the tests of the mm: a kernel, its memory, one process, and a device driver of the smallest kind."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from gpusvm.errors import KernelError
from gpusvm.kernel import Kernel
from gpusvm.mm.api import (
    MEMORY_DEVICE_PRIVATE,
    MIGRATE_PFN_COMPOUND,
    MIGRATE_PFN_MIGRATE,
    MIGRATE_PFN_SHIFT,
    MIGRATE_PFN_VALID,
    MIGRATE_VMA_SELECT_COMPOUND,
    MIGRATE_VMA_SELECT_DEVICE_PRIVATE,
    MIGRATE_VMA_SELECT_SYSTEM,
    MMU_NOTIFY_NAMES,
    PROT_READ,
    PROT_WRITE,
    VM_FAULT_SIGBUS,
    DevPagemap,
    Geometry,
    MigrateVma,
)
from gpusvm.mm.memory_manager import MemoryManager
from gpusvm.mm.mm_struct import MmStruct
from gpusvm.mm.page import PG_ANON_EXCLUSIVE
from gpusvm.mm.quirks import MmQuirks

PAGE = 4096
BASE = 1 << 30  # where the tests map memory: aligned to every PMD and to the 1 GiB of a PUD


class Device:
    """A driver that allocates first fit, copies at once, and brings `window` bytes around a fault home."""

    def __init__(
        self,
        memory: MemoryManager,
        nr_pages: int,
        *,
        owner: object | None = None,
        type: int = MEMORY_DEVICE_PRIVATE,
    ) -> None:
        self.memory = memory
        self.owner = self if owner is None else owner
        self.nr_pages = nr_pages
        self.folios_free = None
        self.folio_split = self.split_callback
        self.window = 0  # 0: the whole VMA
        self.live: dict[int, int] = {}  # head pfn -> order
        self.freed: list[tuple[int, int]] = []
        self.faults: list[tuple[int, int, bool]] = []  # address, page, at PTE level
        self.fail_copies = 0
        self.compound_home = True  # bring a large folio home as one, or give 512 small destinations
        start = memory.request_free_mem_region(nr_pages)
        self.pgmap = DevPagemap(type, start, nr_pages, self.owner, self, container=self)
        memory.memremap_pages(self.pgmap)

    # --- device memory

    def alloc(self, order: int = 0) -> int | None:
        nr = 1 << order
        start = self.pgmap.start_pfn
        used = np.zeros(self.nr_pages, bool)
        for head, live_order in self.live.items():
            used[head - start : head - start + (1 << live_order)] = True
        for i in range(0, self.nr_pages - nr + 1, nr):
            if not used[i : i + nr].any():
                self.live[start + i] = order
                self.memory.zone_device_folio_init(start + i, self.pgmap, order)
                self.memory.set_zone_device_data(np.arange(start + i, start + i + nr), self)
                return start + i
        return None

    def folio_free(self, pfn: int, order: int) -> None:
        assert self.live.pop(pfn) == order
        self.freed.append((pfn, order))

    def split_callback(self, head: int, tail: int | None) -> None:
        if tail is None:
            self.live[head] = 0
        else:
            self.live[tail] = 0
            self.memory.set_zone_device_data(tail, self)

    # --- migration

    def migrate(
        self,
        mm: MmStruct,
        start: int,
        end: int,
        *,
        flags: int = MIGRATE_VMA_SELECT_SYSTEM | MIGRATE_VMA_SELECT_COMPOUND,
        small: bool = False,
        decline: tuple[int, ...] = (),
    ) -> MigrateVma:
        """Migrate [start, end) to the device; `small` gives small destinations to compound sources."""
        args = self.setup(mm, start, end, flags=flags)
        self.fill_to_device(args, small=small, decline=decline)
        self.memory.migrate_vma_pages(args)
        self.memory.migrate_vma_finalize(args)
        mm.mmap_lock.up_read()
        return args

    def setup(self, mm: MmStruct, start: int, end: int, *, flags: int) -> MigrateVma:
        """Take mmap_lock and collect; the caller finishes and drops the lock."""
        mm.mmap_lock.down_read()
        args = words(mm.vma_lookup(start), start, end, owner=self.owner, flags=flags)
        try:
            self.memory.migrate_vma_setup(args)
        except KernelError:
            mm.mmap_lock.up_read()
            raise
        return args

    def fill_to_device(self, args: MigrateVma, *, small: bool = False, decline: tuple[int, ...] = ()) -> None:
        memory = self.memory
        order = memory.geometry.pmd_order
        for i, word in enumerate(args.src[: args.npages].tolist()):
            if not word & MIGRATE_PFN_MIGRATE or i in decline:
                continue
            pieces = [(i, order)] if word & MIGRATE_PFN_COMPOUND else [(i, 0)]
            if word & MIGRATE_PFN_COMPOUND and small:
                pieces = [(i + k, 0) for k in range(1 << order)]
            for at, size in pieces:
                dst = self.alloc(size)
                if dst is None:
                    continue
                if word & MIGRATE_PFN_VALID:
                    memory.copy_folio(dst, (word >> MIGRATE_PFN_SHIFT) + at - i, 1 << size)
                else:
                    memory.clear_folio(dst, 1 << size)
                args.dst[at] = dst << MIGRATE_PFN_SHIFT | MIGRATE_PFN_VALID | (MIGRATE_PFN_COMPOUND if size else 0)

    def fill_to_ram(self, src: np.ndarray, dst: np.ndarray, n: int) -> bool:
        memory = self.memory
        for i, word in enumerate(src[:n].tolist()):
            if not word & MIGRATE_PFN_MIGRATE or not word & MIGRATE_PFN_VALID:
                continue
            old = word >> MIGRATE_PFN_SHIFT
            order = memory.folio_order(old)
            new = memory.alloc_folio(order) if self.compound_home or not order else None
            pieces = [(i, new, order)]
            if new is None and order:
                pieces = [(i + k, memory.alloc_folio(0), 0) for k in range(1 << order)]
            for at, pfn, size in pieces:
                if pfn is None:
                    continue
                memory.folio_lock(pfn)
                memory.copy_folio(pfn, old + at - i, 1 << size)
                dst[at] = pfn << MIGRATE_PFN_SHIFT | MIGRATE_PFN_VALID | (MIGRATE_PFN_COMPOUND if size else 0)
        if self.fail_copies:
            self.fail_copies -= 1
            for word in dst[:n][dst[:n] != 0].tolist():
                memory.folio_unlock(word >> MIGRATE_PFN_SHIFT)
                memory.folio_put(word >> MIGRATE_PFN_SHIFT)
            dst[:n] = 0
            return False
        return True

    def bring_home(
        self,
        mm: MmStruct,
        start: int,
        end: int,
        *,
        fault_page: int | None = None,
        flags: int = MIGRATE_VMA_SELECT_DEVICE_PRIVATE | MIGRATE_VMA_SELECT_COMPOUND,
    ) -> tuple[bool, MigrateVma]:
        """Migrate [start, end) to RAM, mmap_lock held; whether the copy worked."""
        args = words(mm.vma_lookup(start), start, end, owner=self.owner, flags=flags)
        args.fault_page = fault_page
        self.memory.migrate_vma_setup(args)
        good = self.fill_to_ram(args.src, args.dst, args.npages)
        self.memory.migrate_vma_pages(args)
        self.memory.migrate_vma_finalize(args)
        return good, args

    def migrate_to_ram(self, vmf) -> int:
        self.faults.append((vmf.address, vmf.page, vmf.pte_level))
        start, end = vmf.vma.start, vmf.vma.end
        if self.window:
            # A block has to come home whole: cut, it would have to be split, and the fault holds it.
            window = self.window if vmf.pte_level else max(self.window, self.memory.geometry.pmd_size)
            low = vmf.address & -window
            start, end = max(start, low), min(end, low + window)
        good, _ = self.bring_home(vmf.mm, start, end, fault_page=vmf.page)
        return 0 if good else VM_FAULT_SIGBUS

    def evict(self, pfns: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """Migrate folios to RAM by pfn; the words as they were when setup was done, and those of the destinations."""
        src = np.array(pfns, np.uint64)
        dst = np.zeros(len(pfns), np.uint64)
        self.memory.migrate_device_pfns(src, len(pfns))
        before = src.copy()
        self.fill_to_ram(src, dst, len(pfns))
        self.memory.migrate_device_pages(src, dst, len(pfns))
        self.memory.migrate_device_finalize(src, dst, len(pfns))
        return before, dst


def words(vma, start: int, end: int, *, owner: object | None, flags: int) -> MigrateVma:
    n = max((end - start) // PAGE, 1)
    return MigrateVma(
        vma, start, end, np.full(n, 0x5A, np.uint64), np.full(n, 0x5A, np.uint64), pgmap_owner=owner, flags=flags
    )


class Watcher:
    """An interval notifier over everything that writes down what it hears: (event, first page, end page, owner)."""

    def __init__(self, lab: "Lab", mm: MmStruct, log: list) -> None:
        self.lab = lab
        self.log = log
        self.mm = mm
        self.sub = lab.memory.mmu_interval_notifier_insert(mm, 0, 1 << 46, self)

    def invalidate(self, sub, range_, cur_seq) -> bool:
        self.lab.memory.mmu_interval_set_seq(sub, cur_seq)
        owner = "own" if range_.owner is not None else "-"
        event = MMU_NOTIFY_NAMES[range_.event]
        first, end = (range_.start - BASE) // PAGE, (range_.end - BASE) // PAGE
        self.log.append((self.mm.name, event, first, end, owner))
        return True


class Lab:
    """A kernel, its memory, a process `mm` and a device."""

    def __init__(
        self,
        *,
        pmd_order: int = 3,
        thp: str = "never",
        ram_pages: int | None = None,
        device_pages: int | None = None,
        quirks: MmQuirks | None = None,
        mode: str = "timed",
        choices=None,
        checked: bool = True,
        contents: str = "tokens",
        cpus: int | None = None,
        preemptive: bool = True,
    ) -> None:
        self.kernel = Kernel(mode=mode, choices=choices, checked=checked, cpus=cpus, preemptive=preemptive)
        nr = 1 << pmd_order
        self.nr = nr
        self.memory = MemoryManager(
            self.kernel,
            geometry=Geometry(pmd_order=pmd_order),
            ram_pages=64 * nr if ram_pages is None else ram_pages,
            thp=thp,
            quirks=quirks,
            contents=contents,
        )
        self.pages = self.memory.pages
        self.device = Device(self.memory, 32 * nr if device_pages is None else device_pages)
        self.mm = self.memory.mm_alloc("p")
        self.events: list = []

    def watch(self, *mms: MmStruct) -> None:
        """Log every invalidation of these address spaces, or of the process."""
        self.watchers = [Watcher(self, mm, self.events) for mm in mms or (self.mm,)]

    def map(self, n: int, *, at: int = 0, prot: int = PROT_READ | PROT_WRITE, write: bool = True) -> int:
        """Map `n` pages from page `at` on and write each of them."""
        start = BASE + at * PAGE
        self.mm.mmap(start, n * PAGE, prot)
        if write:
            self.write(*range(at, at + n))
        return start

    def va(self, page: int) -> int:
        return BASE + page * PAGE

    def write(self, *pages: int) -> list[int]:
        return [self.memory.cpu_write(self.mm, self.va(page)) for page in pages]

    def read(self, *pages: int) -> list[int]:
        return [self.memory.cpu_read(self.mm, self.va(page)) for page in pages]

    def entry(self, page: int, mm: MmStruct | None = None):
        return (mm or self.mm).page_table.entry(self.va(page))

    def pfn(self, page: int) -> int:
        entry = self.entry(page)
        leaf = hasattr(entry, "__slots__") and type(entry).__name__ == "PmdLeaf"
        return entry.pfn + (page & (self.nr - 1) if leaf else 0)

    def counts(self, pfn: int) -> str:
        """refcount/mapcount of the folio that holds a page."""
        zone = self.pages.zone(pfn)
        i = self.pages.folio_head(pfn) - zone.base
        return f"{zone.m_refcount[i]}/{zone.m_mapcount[i]}"

    def flags(self, pfn: int) -> int:
        zone = self.pages.zone(pfn)
        return zone.m_flags[pfn - zone.base]

    def share(self, n: int, *, name: str = "q") -> MmStruct:
        """Make a second process that maps the first `n` small pages of the first, both read-only then, as fork does."""
        memory, mm = self.memory, self.mm
        two = memory.mm_alloc(name)
        two.mmap(BASE, n * PAGE, PROT_READ)
        memory.rmap.anon_vma_clone(two.vma_lookup(BASE), mm.vma_lookup(BASE))
        block = BASE >> memory.geometry.pmd_shift
        for i in range(n):
            source = mm.page_table.entries[block + i // self.nr]
            table = two.page_table.table(block + i // self.nr)
            bit = 1 << i % self.nr
            page = source.m_pfn[i % self.nr]
            zone = self.pages.zone(page)
            self.pages.folio_get(page)
            memory.rmap.folio_add_anon_rmap_pte(page, exclusive=False)
            zone.m_flags[page - zone.base] &= ~PG_ANON_EXCLUSIVE
            source.set_write(bit, 0)
            (table.set_private if source.private & bit else table.set_present)(bit, page, 0)
            two.rss[0] += 1
            vpn = np.array([self.va(i) // PAGE])
            memory.contents._expect(two, vpn, memory.contents.expected_many(mm, vpn))
        return two

    def check_quiescent(self) -> None:
        """What must hold when nothing is under way: no lock, no migration entry, references that add up."""
        for zone in self.pages.zones:
            head = np.arange(zone.nr) - zone.head_off  # tails of a live folio have no references of their own
            free = (zone.refcount == 0) & ((zone.refcount[head] == 0) | (zone.order[head] == 0))
            assert not (zone.flags[~free] & 1).any()  # a free device page may keep the bit (MM-S3)
            assert not zone.mapcount[free].any()
            assert not zone.mapping[free].any()
            assert not (zone.flags[free] & 16).any()
        live = sum(1 << order for order in self.device.live.values())
        assert self.device.pgmap.ref == (0 if self.device.pgmap.killed else 1) + live
        mapped: dict[int, int] = {}
        for mm in self.memory.mms:
            rss = [0, 0, 0]
            for entry in mm.page_table.entries.values():
                if type(entry).__name__ == "PmdLeaf":
                    assert entry.kind.name != "MIGRATION"
                    if entry.kind.name != "HUGE_ZERO":
                        mapped[entry.pfn] = mapped.get(entry.pfn, 0) + 1
                        rss[0] += self.nr
                    continue
                assert not entry.migration
                for i in range(self.nr):
                    if entry.used >> i & 1 and not (entry.zero | entry.other) >> i & 1:
                        head = self.pages.folio_head(entry.m_pfn[i])
                        mapped[head] = mapped.get(head, 0) + 1
                        rss[self.memory.rmap.mm_counter(head)] += 1
            assert mm.rss == rss
        for head, n in mapped.items():
            zone = self.pages.zone(head)
            cache = zone.m_mapping[head - zone.base] < 0
            assert self.counts(head) == f"{n + cache}/{n}"
        for head in self.device.live:
            assert head in mapped
        assert not self.memory.contents.mismatches

    def finish(self) -> None:
        """End the process and unplug the device: everything has to be free then."""
        for watcher in getattr(self, "watchers", []):
            self.memory.mmu_interval_notifier_remove(watcher.sub)
        self.mm.exit()
        assert not self.device.live
        self.memory.memunmap_pages(self.device.pgmap)
        huge_zero = self.memory._huge_zero_pfn
        used = self.pages.allocator.nr_pages - self.pages.allocator.free_pages
        assert used == 1 + (self.nr if huge_zero is not None else 0)
        self.kernel.ledger.assert_empty()


@pytest.fixture
def lab() -> Iterator[Callable[..., Lab]]:
    """Build machines; what they leave behind is checked by `Lab.finish`."""
    made: list[Lab] = []

    def make(**options) -> Lab:
        made.append(Lab(**options))
        if len(made) > 4:  # a property test makes hundreds
            made.pop(0).kernel.close()
        return made[-1]

    yield make
    for one in made:
        one.kernel.close()
