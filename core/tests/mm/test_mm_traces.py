"""The 24 golden event traces: every window that an operation opens, in every address space, nested as they are.

A line of a trace is a window: the process, the event, `(O)` if it carries the pagemap's owner, `(X)` for another one,
and the pages [first,end) counted from the base; what is indented below it happens while it is open. They were written
from Linux 7.3.4 by reading it; where what a real 7.3.4 did says something else (t07), that is here.
"""

import numpy as np
import pytest
from gpusvm.errors import KernelError
from gpusvm.mm.api import (
    HMM_PFN_REQ_FAULT,
    HMM_PFN_VALID,
    MADV_DONTNEED,
    MADV_FREE,
    MIGRATE_VMA_SELECT_COMPOUND,
    MIGRATE_VMA_SELECT_DEVICE_PRIVATE,
    MIGRATE_VMA_SELECT_SYSTEM,
    MMU_NOTIFIER_RANGE_BLOCKABLE,
    MMU_NOTIFY_NAMES,
    MREMAP_DONTUNMAP,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    PROT_READ,
    PROT_WRITE,
    VM_SHARED,
    HmmRange,
)
from gpusvm.mm.mmu_notifier import ULONG_MAX

PAGE = 4096
BASE = 1 << 30
SMALL = MIGRATE_VMA_SELECT_SYSTEM
COMPOUND = MIGRATE_VMA_SELECT_SYSTEM | MIGRATE_VMA_SELECT_COMPOUND
PRIVATE = MIGRATE_VMA_SELECT_DEVICE_PRIVATE


class Recorder:
    """Write down what opens and closes; a window must close before the one around it."""

    def __init__(self, one):
        self.one = one
        self.lines = []
        self.open = []

    def window_opened(self, range_):
        owner = "" if range_.owner is None else "(O)" if range_.owner is self.one.device.owner else "(X)"
        blocks = "" if range_.flags & MMU_NOTIFIER_RANGE_BLOCKABLE else " non-blockable"
        first, end = (at(place) for place in (range_.start, range_.end))
        line = f"{range_.mm.name} {MMU_NOTIFY_NAMES[range_.event]}{owner} [{first},{end}){blocks}"
        self.lines.append("  " * len(self.open) + line)
        self.open.append(range_)

    def window_closed(self, range_):
        assert self.open.pop() is range_


def at(address):
    return {0: "0", ULONG_MAX: "MAX"}.get(address) or (address - BASE) // PAGE


@pytest.fixture(params=["timed", "explored"])
def machine(lab, request):
    """Build machines with PMDs of 8 pages in both ways to run."""

    def build(**options):
        one = lab(mode=request.param, **options)
        one.watch()
        return one

    return build


@pytest.fixture(params=[3, 9], ids=["8_pages", "512_pages"])
def one(lab, request):
    """Build a machine with PMDs of 8 or of 512 pages, and small pages only."""
    one = lab(pmd_order=request.param, thp="never")
    one.watch()
    return one


def trace(one, what):
    """Say what opens while `what` runs."""
    recorder = one.kernel.observer = Recorder(one)
    what()
    one.kernel.observer = None
    assert recorder.open == []
    return recorder.lines


def whole(one, what):
    """Say so, and check that everything is as it should be afterwards."""
    lines = trace(one, what)
    one.check_quiescent()
    return lines


def protect(one, page, n, prot=PROT_READ):
    return lambda: one.mm.mprotect(one.va(page), n * PAGE, prot)


def unmap(one, page, n):
    return lambda: one.mm.munmap(one.va(page), n * PAGE)


class Migration:
    """Take the steps of one migration to the device apart."""

    def __init__(self, one, first, end, flags):
        self.one = one
        self.range = one.va(first), one.va(end)
        self.flags = flags

    def setup(self):
        self.args = self.one.device.setup(self.one.mm, *self.range, flags=self.flags)

    def pages(self, **options):
        def run():
            self.one.device.fill_to_device(self.args, **options)
            self.one.memory.migrate_vma_pages(self.args)

        return run

    def finalize(self):
        self.one.memory.migrate_vma_finalize(self.args)
        self.one.mm.mmap_lock.up_read()


def home(one, first, end):
    def run():
        with one.mm.mmap_lock.read():
            one.device.bring_home(one.mm, one.va(first), one.va(end))

    return run


# ---- migration -------------------------------------------------------------------------------------------------------


def test_t01_small_pages_of_this_mm_only(machine):
    one = machine()
    one.map(12)
    move = Migration(one, 2, 11, SMALL)
    assert trace(one, move.setup) == ["p MIGRATE(O) [2,11)"]
    assert trace(one, move.pages()) == []
    assert whole(one, move.finalize) == []
    assert whole(one, home(one, 2, 11)) == ["p MIGRATE(O) [2,11)"]
    one.finish()


def test_t02_holes_and_zero_pages_are_filled(machine):
    one = machine()
    one.map(12, write=False)
    one.write(0, 1, 4)
    one.read(3)
    move = Migration(one, 0, 12, SMALL)
    assert trace(one, move.setup) == ["p MIGRATE(O) [0,12)"]
    # Page 2 is the first hole, but it is declined; 3 is the zero page.
    assert trace(one, move.pages(decline=(2,))) == ["p MIGRATE(O) [3,12)"]
    assert whole(one, move.finalize) == []
    one.finish()


def test_t03_a_whole_block(machine):
    one = machine(thp="always")
    one.map(8)
    assert whole(one, lambda: one.device.migrate(one.mm, one.va(0), one.va(8))) == ["p MIGRATE(O) [0,8)"]
    assert whole(one, lambda: one.read(5)) == ["p MIGRATE(O) [0,8)"]
    one.finish()


def test_t04_a_block_to_small_destinations(machine):
    one = machine(thp="always")
    one.map(8)
    move = Migration(one, 0, 8, COMPOUND)
    assert trace(one, move.setup) == ["p MIGRATE(O) [0,8)"]
    assert trace(one, move.pages(small=True)) == ["p CLEAR [0,8)"]
    assert whole(one, move.finalize) == []
    assert sorted(one.device.live.values()) == [0] * 8
    one.finish()


def test_t05_the_huge_zero_page_to_small_destinations(machine):
    one = machine(thp="always")
    one.map(16, write=False)
    one.read(8)
    move = Migration(one, 8, 16, COMPOUND)
    assert trace(one, move.setup) == ["p MIGRATE(O) [8,16)"]
    assert trace(one, move.pages(small=True)) == ["p MIGRATE(O) [8,16)", "  p CLEAR [8,16)"]
    assert whole(one, move.finalize) == []
    assert one.read(*range(8, 16)) == [0] * 8
    one.finish()


def test_t06_a_range_that_cuts_blocks(machine):
    one = machine(thp="always")
    one.map(16)
    assert whole(one, lambda: one.device.migrate(one.mm, one.va(4), one.va(14))) == [
        "p MIGRATE(O) [4,14)",
        "  p CLEAR [0,8)",
        "  p CLEAR [8,16)",
    ]
    one.finish()


def test_t06_a_block_mapped_by_ptes(machine):
    one = machine(thp="always")
    one.map(8)
    protect(one, 0, 2)()
    assert whole(one, lambda: one.device.migrate(one.mm, one.va(2), one.va(8))) == [
        "p MIGRATE(O) [2,8)",
        # One window in each VMA that maps a part of the folio.
        "  p CLEAR [0,2)",
        "  p CLEAR [2,8)",
    ]
    one.finish()


@pytest.mark.breaks_invariants
def test_t07_pages_that_another_process_maps_too(machine):
    one = machine()
    one.map(2)
    two = one.mm.fork("q")
    one.watch(two)
    assert whole(one, lambda: one.device.migrate(one.mm, one.va(0), one.va(2))) == [
        "p MIGRATE(O) [0,2)",
        # The walk visits the first process again, though it maps the page no more: so it was recorded on 7.3.4.
        "p CLEAR [0,1)",
        "q CLEAR [0,1)",
        "p CLEAR [1,2)",
        "q CLEAR [1,2)",
    ]
    # The second faults: the first is visited first, and then nothing maps the page any more.
    assert whole(one, lambda: one.memory.cpu_read(two, one.va(1))) == [
        "q MIGRATE(O) [0,2)",
        "p CLEAR [0,1)",
        "p CLEAR [1,2)",
    ]
    two.exit()


def test_t08_eviction(machine):
    one = machine(thp="always")
    one.map(8)
    one.map(3, at=16)
    one.device.migrate(one.mm, one.va(0), one.va(8))
    one.device.migrate(one.mm, one.va(16), one.va(19), flags=SMALL | PRIVATE)
    start = one.device.pgmap.start_pfn
    assert whole(one, lambda: one.device.evict(list(range(start, start + 11)))) == [
        "p CLEAR [0,8)",
        "p CLEAR [16,17)",
        "p CLEAR [17,18)",
        "p CLEAR [18,19)",
    ]
    assert not one.device.live
    one.finish()


# ---- faults ----------------------------------------------------------------------------------------------------------


def test_t09_a_cpu_fault_on_a_device_page(one):
    one.map(4)
    one.device.migrate(one.mm, BASE, BASE + 4 * PAGE)
    assert whole(one, lambda: one.read(1)) == ["p MIGRATE(O) [0,4)"]
    one.finish()


def test_t10_hmm_range_fault_of_another_owner(one):
    one.map(4)
    one.device.migrate(one.mm, BASE, BASE + 4 * PAGE)
    memory, sub = one.memory, one.watchers[0].sub
    tries = []

    def fault():
        range_ = HmmRange(
            notifier=sub,
            start=BASE,
            end=BASE + 4 * PAGE,
            hmm_pfns=np.zeros(4, np.uint64),
            default_flags=HMM_PFN_REQ_FAULT,
            dev_private_owner="X",
            notifier_seq=memory.mmu_interval_read_begin(sub),
        )
        with one.mm.mmap_lock.read():
            try:
                memory.hmm_range_fault(range_)
            except KernelError as error:
                tries.append(str(error).split(":")[0])
                fault_again = True
            else:
                tries.append([bool(word & HMM_PFN_VALID) for word in range_.hmm_pfns.tolist()])
                fault_again = False
        if fault_again:
            fault()

    assert whole(one, fault) == ["p MIGRATE(O) [0,4)"]
    assert tries == ["-EBUSY", [True] * 4]
    one.finish()


def test_t11_a_write_to_the_zero_page(one):
    one.map(4, write=False)
    one.read(1)
    assert whole(one, lambda: one.write(1)) == ["p CLEAR [1,2)"]
    one.finish()


def test_t11_a_write_to_a_shared_page(one):
    one.map(4)
    two = one.mm.fork("q")
    one.watch(two)
    assert trace(one, lambda: one.write(1)) == ["p CLEAR [1,2)"]
    two.exit()
    # Nobody else has page 2 any more: it is taken over in place.
    assert whole(one, lambda: one.write(2)) == []


def test_t12_an_upgrade_in_place_and_a_fault_on_none(one):
    one.map(4, write=False)
    assert trace(one, lambda: (one.write(0), one.read(1))) == []
    one.mm.page_table.lookup(BASE).set_write(1, 0)
    assert whole(one, lambda: one.write(0)) == []
    one.finish()


def test_t13_fork(machine):
    one = machine()
    one.map(4)
    one.map(4, at=8, write=False)
    one.map(4, at=16)
    protect(one, 16, 2)()
    children = []
    fork = lambda: children.append(one.mm.fork("child"))  # noqa: E731
    # Page by page what may be written twice now is protected in the parent; the second area has no anon_vma.
    assert whole(one, fork) == [
        "p PROTECTION_PAGE [0,4)",
        "p PROTECTION_PAGE [16,18)",
        "p PROTECTION_PAGE [18,20)",
    ]
    one.watch(children[0])
    assert trace(one, lambda: one.memory.cpu_write(children[0], one.va(1))) == ["child CLEAR [1,2)"]
    children[0].exit()


def test_t13_fork_of_device_pages_and_exclusive_ones(machine):
    one = machine(thp="always")
    one.map(12)
    one.device.migrate(one.mm, one.va(0), one.va(8))
    exclusive(one, 9)()
    children = []
    fork = lambda: children.append(one.mm.fork("child"))  # noqa: E731
    # The exclusive page goes back to the CPU inside the window of its area.
    assert whole(one, fork) == ["p PROTECTION_PAGE [0,12)"]
    one.watch(children[0])
    # The child's fault brings the block home for both; its own entry is one of migration by then.
    assert whole(one, lambda: one.memory.cpu_read(children[0], one.va(3))) == [
        "child MIGRATE(O) [0,12)",
        "p CLEAR [0,8)",  # the last that maps it, so the walk ends
    ]
    children[0].exit()


# ---- memory calls ----------------------------------------------------------------------------------------------------


def test_t14_mprotect_of_a_whole_area(one):
    n = 4 * one.nr
    one.map(n, write=False)
    assert trace(one, protect(one, 0, n)) == []
    assert trace(one, protect(one, 0, n, PROT_READ | PROT_WRITE)) == []
    one.write(1)
    assert whole(one, protect(one, 0, n)) == [f"p PROTECTION_VMA [0,{n})"]
    one.finish()


def test_t15_mprotect_of_a_part_inside_one_block(one):
    nr = one.nr
    one.map(4 * nr, write=False)
    one.write(0)
    # After the first split nothing covers the block any more.
    assert whole(one, protect(one, nr + 1, 2)) == [
        f"p CLEAR [{nr},{2 * nr})",
        f"p PROTECTION_VMA [{nr + 1},{nr + 3})",
    ]
    one.finish()


def test_t15_mprotect_of_a_part_over_three_blocks(one):
    nr = one.nr
    one.map(4 * nr, write=False)
    one.write(0)
    assert whole(one, protect(one, 1, 2 * nr)) == [
        f"p CLEAR [0,{nr})",
        f"p CLEAR [{2 * nr},{3 * nr})",
        f"p PROTECTION_VMA [1,{2 * nr + 1})",
    ]
    one.finish()


def test_t15_an_aligned_part_splits_nothing(one):
    nr = one.nr
    one.map(4 * nr, write=False)
    one.write(0)
    assert whole(one, protect(one, nr, 2 * nr)) == [f"p PROTECTION_VMA [{nr},{3 * nr})"]
    one.finish()


def test_t15_without_a_populated_pud_even_the_splits_are_silent(one):
    one.map(4 * one.nr, write=False)
    assert whole(one, protect(one, 1, 2 * one.nr)) == []
    one.finish()


def test_t15_moving_a_boundary_between_two_areas(one):
    nr = one.nr
    one.map(4 * nr, write=False)
    one.write(0)
    protect(one, 0, nr)()
    # The lower area takes in the front of the upper one, which covers the block around the new boundary.
    assert whole(one, protect(one, nr, nr + 1)) == [
        f"p CLEAR [{2 * nr},{3 * nr})",
        f"p PROTECTION_VMA [{nr},{2 * nr + 1})",
    ]
    # And gives it back: the lower area shrinks now.
    assert whole(one, protect(one, nr + 1, nr, PROT_READ | PROT_WRITE)) == [
        f"p CLEAR [{nr},{2 * nr})",
        f"p PROTECTION_VMA [{nr + 1},{2 * nr + 1})",
    ]
    assert [at(vma.start) for vma in one.mm.vmas] == [0, nr + 1]
    one.finish()


def test_t16_munmap_of_a_whole_area(one):
    one.map(2 * one.nr)
    assert whole(one, unmap(one, 0, 2 * one.nr)) == [f"p UNMAP [0,{2 * one.nr})"]
    one.finish()


def test_t17_munmap_inside_one_block(one):
    nr = one.nr
    one.map(4 * nr)
    first, end = nr + nr // 4, nr + nr // 4 + nr // 2
    assert whole(one, unmap(one, first, end - first)) == [f"p CLEAR [{nr},{2 * nr})", f"p UNMAP [{first},{end})"]
    one.finish()


def move(one, first, n, to, flags=MREMAP_MAYMOVE | MREMAP_FIXED):
    return lambda: one.mm.mremap(one.va(first), n * PAGE, n * PAGE, flags=flags, new_addr=one.va(to))


def test_t18_mremap_of_whole_blocks(one):
    nr = one.nr
    one.map(2 * nr)
    old = f"p UNMAP [0,{2 * nr})"
    assert whole(one, move(one, 0, 2 * nr, 4 * nr)) == [old, old]
    # Over an existing mapping.
    one.map(2 * nr)
    assert whole(one, move(one, 0, 2 * nr, 4 * nr)) == [f"p UNMAP [{4 * nr},{6 * nr})", old, old]
    one.finish()


def test_t18_mremap_that_leaves_the_old_place_mapped(one):
    nr = one.nr
    one.map(2 * nr)
    flags = MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP
    assert whole(one, move(one, 0, 2 * nr, 4 * nr, flags)) == [f"p UNMAP [0,{2 * nr})"]
    one.finish()


def test_t18_mremap_of_huge_pages(machine):
    one = machine(thp="always")
    one.map(16)
    assert whole(one, move(one, 0, 16, 32)) == ["p UNMAP [0,16)", "p UNMAP [0,16)"]
    assert one.entry(32).kind.name == "THP"
    one.device.migrate(one.mm, one.va(32), one.va(48))
    assert whole(one, move(one, 32, 16, 0)) == ["p UNMAP [32,48)", "p UNMAP [32,48)"]
    assert one.entry(8).kind.name == "PRIVATE"
    one.finish()


def test_t19_mremap_of_a_huge_page_to_an_unaligned_place(machine):
    one = machine(thp="always")
    one.map(8)
    assert whole(one, move(one, 0, 8, 19)) == ["p UNMAP [0,8)", "  p CLEAR [0,8)", "p UNMAP [0,8)"]
    one.finish()


@pytest.mark.parametrize("advice", [MADV_DONTNEED, MADV_FREE], ids=["dontneed", "free"])
def test_t20_what_is_discarded(one, advice):
    nr = one.nr
    one.map(2 * nr)
    assert whole(one, lambda: one.mm.madvise(one.va(1), 2 * PAGE, advice)) == ["p CLEAR [1,3)"]
    one.mm.mmap(one.va(4 * nr), nr * PAGE, PROT_READ | PROT_WRITE)
    # Where nothing is mapped yet, too.
    advise = lambda: one.mm.madvise(one.va(4 * nr), nr * PAGE, advice)  # noqa: E731
    assert whole(one, advise) == [f"p CLEAR [{4 * nr},{5 * nr})"]
    one.finish()


@pytest.mark.parametrize("advice", [MADV_DONTNEED, MADV_FREE], ids=["dontneed", "free"])
def test_t20_what_is_discarded_cuts_a_huge_page(machine, advice):
    one = machine(thp="always")
    one.map(16)
    part = lambda: one.mm.madvise(one.va(2), 8 * PAGE, advice)  # noqa: E731
    expected = ["p CLEAR [2,10)", "  p CLEAR [0,8)", "  p CLEAR [8,16)"]
    assert whole(one, part) == expected
    one.finish()


# ---- device-exclusive access -----------------------------------------------------------------------------------------


def exclusive(one, page):
    def run():
        with one.mm.mmap_lock.read():
            pfn = one.memory.make_device_exclusive(one.mm, one.va(page), "X")
        one.memory.folio_unlock(one.memory.folio_head(pfn))
        one.memory.folio_put(one.memory.folio_head(pfn))

    return run


def test_t21_make_device_exclusive(machine):
    one = machine(thp="always")
    one.map(8)
    assert whole(one, exclusive(one, 0)) == ["p CLEAR [0,8)", "p EXCLUSIVE(X) [0,1)"]
    assert whole(one, exclusive(one, 1)) == ["p EXCLUSIVE(X) [1,2)"]
    one.finish()


def test_t21_make_device_exclusive_of_the_zero_page_and_of_none(machine):
    one = machine()
    one.map(2, write=False)
    one.read(0)
    assert whole(one, exclusive(one, 0)) == ["p CLEAR [0,1)", "p EXCLUSIVE(X) [0,1)"]
    assert whole(one, exclusive(one, 1)) == ["p EXCLUSIVE(X) [1,2)"]
    one.finish()


def test_t22_a_cpu_fault_on_a_device_exclusive_page(machine):
    one = machine()
    one.map(2)
    exclusive(one, 0)()
    assert whole(one, lambda: one.read(0)) == ["p CLEAR [0,1)"]
    exclusive(one, 1)()
    assert whole(one, lambda: one.write(1)) == ["p CLEAR [1,2)"]
    one.finish()


# ---- the end ---------------------------------------------------------------------------------------------------------


def test_t23_the_oom_reaper(one):
    one.map(4)
    one.map(4, at=8, write=False)
    one.mm.mmap(one.va(16), 4 * PAGE, PROT_READ | PROT_WRITE, flags=VM_SHARED)
    one.map(4, at=24)
    # The last area first, populated or not, and shared memory not at all.
    assert whole(one, lambda: one.memory.oom_reap(one.mm)) == [
        "p CLEAR [24,28) non-blockable",
        "p CLEAR [8,12) non-blockable",
        "p CLEAR [0,4) non-blockable",
    ]
    assert one.mm.rss == [0, 0, 0]
    one.finish()


def test_t23_an_area_that_somebody_cannot_let_go_of(one):
    one.map(4)
    one.map(4, at=8)
    heard = one.watchers[0]
    ears, heard.invalidate = heard.invalidate, lambda _, range_, __: range_.start != one.va(8)
    # The window of the area that was refused opens and closes; the reaper goes on with the others.
    assert trace(one, lambda: one.memory.oom_reap_task_mm(one.mm)) == [
        "p CLEAR [8,12) non-blockable",
        "p CLEAR [0,4) non-blockable",
    ]
    heard.invalidate = ears
    assert [one.entry(page).kind.name for page in (0, 8)] == ["NONE", "PRESENT"]
    assert whole(one, lambda: one.memory.oom_reap_task_mm(one.mm)) == [
        "p CLEAR [8,12) non-blockable",
        "p CLEAR [0,4) non-blockable",
    ]
    one.finish()


def test_t24_exit(one):
    one.map(4)
    one.mm.mmgrab()
    assert trace(one, one.mm.exit) == ["p RELEASE [0,MAX)", "p UNMAP [0,MAX)"]
    assert one.mm.rss == [0, 0, 0]
    assert one.mm.vmas == []
    one.memory.mmu_interval_notifier_remove(one.watchers[0].sub)
    one.mm.mmdrop()
    one.kernel.ledger.assert_empty()


# ---- beside the traces -----------------------------------------------------------------------------------------------


def test_entries_change_inside_their_windows(lab):
    one = lab(thp="always")
    one.map(16)
    one.watch()

    class Listener(Recorder):
        def pmd_changed(self, page_table, block):
            self.lines.append("  " * len(self.open) + "pmd")

        def ptes_changed(self, table, mask):
            self.lines.append("  " * len(self.open) + "ptes")

    one.kernel.observer = listener = Listener(one)
    unmap(one, 4, 12)()
    one.kernel.observer = None
    assert listener.lines == [
        "p CLEAR [0,8)",
        "  pmd",  # the leaf becomes a table
        "p UNMAP [4,16)",
        "  ptes",  # the upper half of it
        "  pmd",  # the whole second leaf
    ]
    one.finish()


def test_nobody_is_told_when_nobody_listens(lab):
    one = lab()
    one.map(4)
    assert trace(one, lambda: one.device.migrate(one.mm, one.va(0), one.va(4))) == []
    assert trace(one, lambda: one.device.evict(sorted(one.device.live))) == []
    assert one.kernel.stats.notifier_events == 0
