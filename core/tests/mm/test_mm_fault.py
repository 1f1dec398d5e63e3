"""What a CPU's fault does, by what it meets, rss, costs and events."""

import numpy as np
import pytest
from gpusvm.errors import CpuSignal
from gpusvm.kernel import Kernel
from gpusvm.mm import Geometry, MemoryManager
from gpusvm.mm.api import (
    FAULT_FLAG_WRITE,
    PROT_READ,
    VM_FAULT_OOM,
    VM_FAULT_SIGBUS,
    VM_FAULT_SIGSEGV,
    VM_MAYWRITE,
    VM_NOHUGEPAGE,
)
from gpusvm.mm.mm_struct import MMF_UNSTABLE
from gpusvm.mm.page import PG_ANON_EXCLUSIVE, PG_DIRTY
from gpusvm.mm.pgtable import PmdKind, PteKind

PAGE = 4096
BASE = 1 << 30
RW = 3


def exclusive(one, page: int) -> int:
    with one.mm.mmap_lock.read():
        pfn = one.memory.make_device_exclusive(one.mm, one.va(page), None)
    one.memory.folio_unlock(pfn)
    one.memory.folio_put(pfn)
    return pfn


# --- none


def test_a_read_maps_the_zero_page_and_gives_no_anon_vma(lab) -> None:
    one = lab()
    one.watch()
    one.map(2, write=False)
    assert one.read(0, 1) == [0, 0]
    assert one.entry(0).zero
    assert not one.entry(0).write
    assert one.mm.rss == [0, 0, 0]
    assert one.mm.vmas[0].anon_vma is None
    assert one.events == []
    one.finish()


def test_a_write_maps_a_page_of_its_own(lab) -> None:
    one = lab()
    one.watch()
    one.map(2)
    assert one.entry(0).write
    assert one.entry(0).dirty
    assert one.flags(one.pfn(0)) & PG_ANON_EXCLUSIVE
    assert one.counts(one.pfn(0)) == "1/1"
    assert one.mm.rss == [2, 0, 0]
    assert one.mm.vmas[0].anon_vma is not None
    assert one.events == []
    one.check_quiescent()
    one.finish()


def test_a_write_to_the_zero_page_is_a_copy(lab) -> None:
    one = lab()
    one.map(1, write=False)
    one.read(0)
    one.watch()
    one.write(0)
    assert one.events == [("p", "CLEAR", 0, 1, "-")]
    assert one.mm.rss == [1, 0, 0]
    assert one.entry(0).write
    one.check_quiescent()
    one.finish()


@pytest.mark.parametrize(
    ("thp", "flags", "kind"),
    [
        ("always", 0, PmdKind.THP),
        ("always", VM_NOHUGEPAGE, PteKind.PRESENT),
        ("madvise", 0, PteKind.PRESENT),
        ("never", 0, PteKind.PRESENT),
    ],
)
def test_the_policy_says_who_gets_huge_pages(lab, thp: str, flags: int, kind) -> None:
    one = lab(thp=thp)
    one.mm.mmap(BASE, 8 * PAGE, RW, flags=flags)
    one.write(3)
    assert one.entry(3).kind is kind
    one.finish()


def test_an_area_smaller_than_a_block_gets_small_pages(lab) -> None:
    one = lab(thp="always")
    one.map(8, at=4)
    assert one.entry(4).kind is PteKind.PRESENT
    assert one.entry(8).kind is PteKind.PRESENT
    one.finish()


@pytest.mark.parametrize("order", [3, 9])
def test_a_huge_write(lab, order: int) -> None:
    one = lab(thp="always", pmd_order=order)
    one.map(one.nr, write=False)
    one.write(5)
    leaf = one.entry(0)
    assert (leaf.kind, leaf.write, leaf.dirty) == (PmdKind.THP, True, True)
    assert one.counts(leaf.pfn) == "1/1"
    assert one.mm.rss == [one.nr, 0, 0]
    assert one.read(0, 4) == [0, 0]
    one.check_quiescent()
    one.finish()


def test_a_huge_read_then_a_huge_write(lab) -> None:
    one = lab(thp="always")
    one.map(8, write=False)
    one.read(0)
    assert one.entry(0).kind is PmdKind.HUGE_ZERO
    assert one.mm.rss == [0, 0, 0]
    assert one.mm.vmas[0].anon_vma is not None
    one.watch()
    one.write(2)
    assert one.events == [("p", "CLEAR", 0, 8, "-")]
    assert one.entry(0).kind is PmdKind.THP
    assert one.mm.rss == [8, 0, 0]
    one.finish()


def test_without_a_huge_page_there_are_small_ones(lab) -> None:
    one = lab(thp="always")
    one.map(8, write=False)
    one.kernel.arm("alloc.folio")
    one.write(2)
    assert one.entry(2).kind is PteKind.PRESENT
    assert one.entry(3).kind is PteKind.NONE
    assert one.mm.rss == [1, 0, 0]
    one.finish()


def test_without_a_huge_page_the_huge_zero_page_is_split(lab) -> None:
    one = lab(thp="always")
    one.map(8, write=False)
    one.read(0)
    one.watch()
    one.kernel.arm("alloc.folio")
    one.write(2)
    assert one.events == [("p", "CLEAR", 0, 8, "-"), ("p", "CLEAR", 2, 3, "-")]
    assert [one.entry(i).zero for i in range(8)] == [i != 2 for i in range(8)]
    assert one.mm.rss == [1, 0, 0]
    one.check_quiescent()
    one.finish()


# --- present and read-only


def test_an_exclusive_page_is_taken_back_in_place(lab) -> None:
    # t12
    one = lab()
    one.map(1)
    pfn = one.pfn(0)
    one.mm.page_table.lookup(BASE).set_write(1, 0)
    one.watch()
    one.write(0)
    assert (one.pfn(0), one.events) == (pfn, [])
    one.finish()


def test_a_page_nobody_else_has_is_taken_over(lab) -> None:
    one = lab()
    one.map(1)
    pfn = one.pfn(0)
    one.mm.page_table.lookup(BASE).set_write(1, 0)
    one.pages.ram.m_flags[pfn] &= ~PG_ANON_EXCLUSIVE
    one.watch()
    one.write(0)
    assert (one.pfn(0), one.events) == (pfn, [])
    assert one.flags(pfn) & PG_ANON_EXCLUSIVE
    one.finish()


def test_a_page_somebody_else_has_is_copied(lab) -> None:
    # t11
    one = lab()
    one.map(1)
    pfn = one.pfn(0)
    one.mm.page_table.lookup(BASE).set_write(1, 0)
    one.pages.ram.m_flags[pfn] &= ~PG_ANON_EXCLUSIVE
    one.memory.folio_get(pfn)
    one.watch()
    one.write(0)
    assert one.pfn(0) != pfn
    assert one.counts(pfn) == "1/0"
    assert one.events == [("p", "CLEAR", 0, 1, "-")]
    one.memory.folio_put(pfn)
    one.check_quiescent()
    one.finish()


def test_a_shared_huge_page_is_split_and_then_copied(lab) -> None:
    one = lab(thp="always")
    one.map(8)
    head = one.entry(0).pfn
    one.mm.page_table.set_leaf(BASE >> 15, PmdKind.THP, head, write=False)
    one.pages.ram.m_flags[head] &= ~PG_ANON_EXCLUSIVE
    one.memory.folio_get(head)
    one.watch()
    one.write(3)
    assert one.events == [("p", "CLEAR", 0, 8, "-"), ("p", "CLEAR", 3, 4, "-")]
    assert one.pfn(3) != head + 3
    assert [one.pfn(i) for i in (0, 7)] == [head, head + 7]
    assert one.counts(head) == "8/7"
    one.memory.folio_put(head)
    one.check_quiescent()
    one.finish()


def test_a_huge_page_nobody_else_has_is_taken_over(lab) -> None:
    one = lab(thp="always")
    one.map(8)
    head = one.entry(0).pfn
    one.mm.page_table.set_leaf(BASE >> 15, PmdKind.THP, head, write=False)
    one.pages.ram.m_flags[head] &= ~PG_ANON_EXCLUSIVE
    one.watch()
    one.write(3)
    assert one.events == []
    assert one.entry(0).write
    one.finish()


# --- device-private


@pytest.mark.parametrize(("thp", "level"), [("never", True), ("always", False)])
def test_a_device_page_comes_home(lab, thp: str, level: bool) -> None:
    # t9
    one = lab(thp=thp)
    one.map(8)
    one.device.migrate(one.mm, BASE, BASE + 8 * PAGE)
    page = one.pfn(3)
    one.watch()
    one.read(3)
    assert one.device.faults == [(BASE + 3 * PAGE, page if level else page - 3, level)]
    assert one.events == [("p", "MIGRATE", 0, 8, "own")]
    assert one.kernel.stats.cpu_faults == 1
    assert one.mm.rss == [8, 0, 0]
    one.check_quiescent()
    one.finish()


@pytest.mark.parametrize("thp", ["never", "always"])
def test_a_driver_that_fails_is_a_bus_error_and_nothing_is_lost(lab, thp: str) -> None:
    one = lab(thp=thp)
    one.map(8)
    one.device.migrate(one.mm, BASE, BASE + 8 * PAGE)
    one.device.fail_copies = 1
    with pytest.raises(CpuSignal, match=r"^SIGBUS at 0x40003000$"):
        one.read(3)
    one.check_quiescent()
    one.read(3)
    one.check_quiescent()
    one.finish()


def test_a_driver_out_of_memory_is_asked_again(lab) -> None:
    one = lab()
    one.map(1)
    one.device.migrate(one.mm, BASE, BASE + PAGE)
    come_home = one.device.migrate_to_ram
    answers = [VM_FAULT_OOM, VM_FAULT_OOM]
    one.device.migrate_to_ram = lambda vmf: answers.pop() if answers else come_home(vmf)
    one.read(0)
    assert one.kernel.stats.cpu_faults == 3
    one.device.migrate(one.mm, BASE, BASE + PAGE)
    one.device.migrate_to_ram = lambda _: VM_FAULT_OOM
    with pytest.raises(CpuSignal, match=r"^SIGKILL at 0x40000000$"):
        one.read(0)


def test_a_driver_may_keep_the_page_for_a_while(lab) -> None:
    one = lab()
    one.map(1)
    one.device.migrate(one.mm, BASE, BASE + PAGE)
    come_home = one.device.migrate_to_ram
    one.device.migrate_to_ram = lambda vmf: 0 if one.kernel.now_ns < 5_000_000 else come_home(vmf)
    one.read(0)
    assert one.kernel.now_ns >= 5_000_000
    one.check_quiescent()
    one.finish()


def test_two_cpus_on_one_device_page(lab) -> None:
    one = lab()
    one.map(1)
    one.device.migrate(one.mm, BASE, BASE + PAGE)
    come_home = one.device.migrate_to_ram

    def slow(vmf) -> int:
        one.kernel.sleep_ns(1000)
        return come_home(vmf)

    one.device.migrate_to_ram = slow
    tasks = [one.kernel.spawn(one.read, 0, name=f"cpu{i}") for i in range(2)]
    assert [task.join() for task in tasks] == [[256], [256]]
    assert len(one.device.faults) == 1
    one.check_quiescent()
    one.finish()


# --- migration and device-exclusive entries


@pytest.mark.breaks_invariants
@pytest.mark.parametrize("leaf", [False, True])
def test_a_migration_is_waited_for(lab, leaf: bool) -> None:
    one = lab(thp="always" if leaf else "never")
    one.map(8)
    pfn = one.pfn(0)
    one.memory.folio_lock(pfn)
    page_table = one.mm.page_table
    if leaf:
        page_table.set_leaf(BASE >> 15, PmdKind.MIGRATION, pfn, write=True)
    else:
        page_table.lookup(BASE).set_migration(1, 1, 0)
    reader = one.kernel.spawn(one.read, 0, name="reader")
    one.kernel.settle()
    assert not reader.done
    if leaf:
        page_table.set_leaf(BASE >> 15, PmdKind.THP, pfn, write=True)
    else:
        page_table.lookup(BASE).set_present(1, pfn, 1)
    one.memory.folio_unlock(pfn)
    assert reader.join() == [256]
    one.finish()


@pytest.mark.parametrize("write", [False, True])
def test_an_exclusive_page_is_given_back(lab, write: bool) -> None:
    # t22
    one = lab()
    one.map(1)
    pfn = exclusive(one, 0)
    assert one.entry(0).kind is PteKind.EXCLUSIVE
    one.watch()
    (one.write if write else one.read)(0)
    entry = one.entry(0)
    assert (entry.kind, entry.pfn, entry.write, entry.dirty) == (PteKind.PRESENT, pfn, True, True)
    assert one.events == [("p", "CLEAR", 0, 1, "-")]
    assert one.kernel.stats.cpu_faults == 1
    assert one.mm.rss == [1, 0, 0]
    one.check_quiescent()
    one.finish()


def test_an_exclusive_page_of_a_read_only_area_comes_back_read_only(lab) -> None:
    one = lab()
    one.map(1)
    exclusive(one, 0)
    one.mm.mprotect(BASE, PAGE, PROT_READ)
    one.read(0)
    assert not one.entry(0).write
    one.finish()


def test_a_cpu_waits_while_the_driver_holds_the_exclusive_page(lab) -> None:
    one = lab()
    one.map(1)
    with one.mm.mmap_lock.read():
        pfn = one.memory.make_device_exclusive(one.mm, BASE, None)
    reader = one.kernel.spawn(one.read, 0, name="reader")
    one.kernel.settle()
    assert not reader.done
    one.memory.folio_unlock(pfn)
    one.memory.folio_put(pfn)
    reader.join()
    one.check_quiescent()
    one.finish()


# --- what is refused


def test_signals(lab) -> None:
    one = lab()
    one.map(2, prot=PROT_READ, write=False)
    for page, act in ((5, one.read), (5, one.write), (0, one.write)):
        with pytest.raises(CpuSignal) as caught:
            act(page)
        assert (caught.value.signal, caught.value.address) == (11, one.va(page))
    assert not one.mm.mmap_lock.is_locked


def test_a_fault_that_the_area_may_never_allow(lab) -> None:
    one = lab()
    one.map(1, write=False)
    vma = one.mm.vmas[0]
    vma.flags &= ~VM_MAYWRITE
    with one.mm.mmap_lock.read():
        assert one.memory.handle_mm_fault(one.mm, vma, BASE, FAULT_FLAG_WRITE) == VM_FAULT_SIGSEGV


@pytest.mark.parametrize("thp", ["never", "always"])
def test_an_mm_being_reaped_gets_no_new_memory(lab, thp: str) -> None:
    one = lab(thp=thp)
    one.map(8, write=False)
    one.mm.flags |= MMF_UNSTABLE
    free = one.pages.allocator.free_pages
    for act in (one.read, one.write):
        with pytest.raises(CpuSignal, match=r"^SIGBUS at 0x40000000$"):
            act(0)
    with one.mm.mmap_lock.read():
        assert one.memory.handle_mm_fault(one.mm, one.mm.vmas[0], BASE, FAULT_FLAG_WRITE) == VM_FAULT_SIGBUS
    assert one.pages.allocator.free_pages >= free - one.nr  # the huge zero page stays
    one.finish()


def test_out_of_memory_ends_the_process(lab) -> None:
    one = lab(ram_pages=16)
    one.map(32, write=False)
    with pytest.raises(CpuSignal) as caught:
        one.write(*range(32))
    assert str(caught.value) == "SIGKILL at 0x40010000"
    assert one.mm.rss == [16, 0, 0]
    one.finish()


# --- batches


@pytest.mark.parametrize("thp", ["never", "always"])
@pytest.mark.parametrize("mode", ["timed", "explored"])
def test_a_batch_does_what_one_access_after_the_other_does(lab, thp: str, mode: str) -> None:
    state = 7
    pages, writes = [], []
    for _ in range(300):
        state = (state * 1103515245 + 12345) & 0x7FFFFFFF
        pages.append((state >> 8) % 40)
        writes.append(bool(state >> 20 & 1))
    pages += [*range(40), *range(40)]
    writes += [False] * 40 + [True] * 40
    ones = []
    for batch in (True, False):
        one = lab(thp=thp, mode=mode)
        one.map(40, write=False)
        if batch:
            vpns = np.array(pages) + (BASE >> 12)
            one.memory.cpu_access(one.mm, vpns, np.array(writes))
        else:
            for page, write in zip(pages, writes, strict=True):
                (one.write if write else one.read)(page)
        one.check_quiescent()
        assert one.memory.contents.reads_checked >= 1
        ones.append(one)
    first, second = ones
    assert first.mm.rss == second.mm.rss
    assert [str(first.entry(i)) for i in range(40)] == [str(second.entry(i)) for i in range(40)]
    assert first.kernel.stats == second.kernel.stats
    for one in ones:
        one.finish()


def test_a_batch_stops_where_the_process_gets_a_signal(lab) -> None:
    one = lab()
    one.map(3, write=False)
    vpns = np.arange(5) + (BASE >> 12)
    with pytest.raises(CpuSignal, match=r"^SIGSEGV at 0x40003000$"):
        one.memory.cpu_access(one.mm, vpns, np.ones(5, np.bool_))
    assert one.mm.rss == [3, 0, 0]
    one.finish()


def test_a_batch_brings_device_pages_home(lab) -> None:
    one = lab(thp="always")
    one.map(24)
    one.device.migrate(one.mm, BASE + 8 * PAGE, BASE + 16 * PAGE)
    one.memory.cpu_access(one.mm, np.arange(24) + (BASE >> 12), np.zeros(24, np.bool_))
    assert one.kernel.stats.cpu_faults == 1
    one.check_quiescent()
    one.finish()


class Costs:
    def __init__(self) -> None:
        self.table = {
            "cpu_minor_fault_4k": 500,
            "cpu_minor_fault_2m": 90_000,
            "cpu_fault": 2_000,
            "notifier_callback": 0,
            "get_pages_base": 7,
            "get_pages_per_entry": 1,
        }


@pytest.mark.parametrize(("thp", "ns", "faults"), [("never", 24 * 500, 24), ("always", 3 * 90_000, 3)])
def test_faults_cost_what_they_cost(thp, ns: int, faults: int) -> None:
    kernel = Kernel(costs=Costs())
    memory = MemoryManager(kernel, ram_pages=128, geometry=Geometry(pmd_order=3), thp=thp)
    mm = memory.mm_alloc("p")
    mm.mmap(BASE, 24 * PAGE, RW)
    vpns = np.arange(24) + (BASE >> 12)
    memory.cpu_access(mm, vpns, np.ones(24, np.bool_))
    assert (kernel.now_ns, kernel.stats.cpu_minor_faults) == (ns, faults)
    memory.cpu_access(mm, vpns, np.zeros(24, np.bool_))
    assert (kernel.now_ns, kernel.stats.cpu_minor_faults) == (ns, faults)


def test_a_restore_is_charged_as_a_device_fault() -> None:
    kernel = Kernel(costs=Costs())
    memory = MemoryManager(kernel, ram_pages=128, geometry=Geometry(pmd_order=3), thp="never")
    mm = memory.mm_alloc("p")
    mm.mmap(BASE, PAGE, RW)
    with mm.mmap_lock.read():
        pfn = memory.make_device_exclusive(mm, BASE, None)
    memory.folio_unlock(pfn)
    memory.folio_put(pfn)
    assert kernel.now_ns == 508  # a minor fault, and get_pages of one entry
    memory.cpu_read(mm, BASE)
    assert kernel.now_ns == 2_508
    assert (kernel.stats.cpu_faults, kernel.stats.cpu_minor_faults) == (1, 0)


def test_the_zero_page_is_never_counted_or_freed(lab) -> None:
    one = lab()
    zero = one.memory.zero_pfn
    one.map(8, write=False)
    one.read(*range(8))
    assert one.counts(zero) == "1/0"
    one.mm.munmap(BASE, 8 * PAGE)
    assert one.counts(zero) == "1/0"
    assert not one.flags(zero) & (PG_ANON_EXCLUSIVE | PG_DIRTY)
    one.finish()
