"""Copy on write: who copies, who takes a page over in place, and what the event is (mm/memory.c:do_wp_page)."""

import pytest
from gpusvm.errors import CpuSignal
from gpusvm.mm.api import PROT_READ
from gpusvm.mm.page import PG_ANON_EXCLUSIVE
from gpusvm.mm.pgtable import PmdKind, Pte, PteKind

PAGE = 4096
BASE = 1 << 30


def read(one, mm, *pages: int) -> list[int]:
    return [one.memory.cpu_read(mm, BASE + page * PAGE) for page in pages]


def write(one, mm, *pages: int) -> list[int]:
    return [one.memory.cpu_write(mm, BASE + page * PAGE) for page in pages]


@pytest.mark.parametrize("writer", ["p", "c"])
def test_t11_the_first_writer_copies_the_second_takes_over(lab, writer):
    one = lab()
    one.map(1)
    child = one.mm.fork("c")
    old = one.pfn(0)
    first, second = (one.mm, child) if writer == "p" else (child, one.mm)
    one.watch(one.mm, child)
    write(one, first, 0)
    assert one.events == [(writer, "CLEAR", 0, 1, "-")]
    new = one.entry(0, first).pfn
    assert one.entry(0, first) == Pte(PteKind.PRESENT, new, write=True, dirty=True)
    assert (one.counts(new), one.counts(old)) == ("1/1", "1/1")
    assert not one.flags(old) & PG_ANON_EXCLUSIVE
    write(one, second, 0)
    assert len(one.events) == 1
    assert one.entry(0, second) == Pte(PteKind.PRESENT, old, write=True, dirty=True)
    assert one.flags(old) & PG_ANON_EXCLUSIVE
    # Each is found through its own process's anon_vma now.
    mappings = [one.pages.ram.m_mapping[one.entry(0, mm).pfn] for mm in (one.mm, child)]
    assert mappings == [mm.vmas[0].anon_vma.id for mm in (one.mm, child)]
    assert len(set(mappings)) == 2
    one.check_quiescent()
    for watcher in one.watchers:
        one.memory.mmu_interval_notifier_remove(watcher.sub)
    one.watchers = []
    child.exit()
    one.finish()


def test_a_page_with_one_more_reference_is_copied(lab):
    """mm/memory.c:wp_can_reuse_anon_folio wants the mapping's reference to be the only one."""
    one = lab()
    one.map(1)
    one.mm.fork().exit()
    old = one.pfn(0)
    one.memory.folio_get(old)
    one.watch()
    one.write(0)
    assert one.events == [("p", "CLEAR", 0, 1, "-")]
    assert one.pfn(0) != old
    assert one.counts(old) == "1/0"
    one.memory.folio_put(old)
    one.check_quiescent()
    one.finish()


def test_a_locked_page_is_copied(lab):
    """The lock is only tried: who holds it may be migrating the page."""
    one = lab()
    one.map(1)
    one.mm.fork().exit()
    old = one.pfn(0)
    one.memory.folio_lock(old)
    one.memory.pages.folio_get(old)
    one.write(0)
    assert one.pfn(0) != old
    one.memory.folio_unlock(old)
    one.memory.folio_put(old)
    one.check_quiescent()
    one.finish()


def test_an_exclusive_page_needs_no_look_at_its_references(lab):
    one = lab()
    one.map(1)
    one.mm.mprotect(BASE, PAGE, PROT_READ)
    old = one.pfn(0)
    one.memory.folio_get(old)
    one.mm.mprotect(BASE, PAGE, 3)
    one.mm.page_table.lookup(BASE).set_write(1, 0)
    one.watch()
    one.write(0)
    assert one.events == []
    assert one.pfn(0) == old
    one.memory.folio_put(old)
    one.check_quiescent()
    one.finish()


def test_a_huge_page_of_two_is_split_and_one_page_copied(lab):
    """mm/huge_memory.c:do_huge_pmd_wp_page: the PMD is split (CLEAR of the block), then one page is copied."""
    one = lab(thp="always")
    one.map(8)
    tokens = one.read(*range(8))
    head = one.entry(0).pfn
    child = one.mm.fork("c")
    one.watch(one.mm, child)
    write(one, child, 3)
    assert one.events == [("c", "CLEAR", 0, 8, "-"), ("c", "CLEAR", 3, 4, "-")]
    assert one.entry(0).kind is PmdKind.THP
    assert one.counts(head) == "8/8"  # the PMD and seven PTEs
    assert read(one, child, 0, 4) == [tokens[0], tokens[4]]
    assert one.read(*range(8)) == tokens
    one.check_quiescent()
    # The parent still shares the folio: it splits, too, and copies.
    one.events.clear()
    one.write(5)
    assert one.events == [("p", "CLEAR", 0, 8, "-"), ("p", "CLEAR", 5, 6, "-")]
    one.check_quiescent()
    one.memory.mmu_interval_notifier_remove(one.watchers.pop().sub)
    child.exit()
    # Seven of its pages are left here, and every reference is one of those mappings: reused, page by page.
    one.events.clear()
    pfns = [one.pfn(i) for i in range(8)]
    assert one.counts(head) == "7/7"
    one.write(*range(8))
    assert one.events == []
    assert [one.pfn(i) for i in range(8)] == pfns
    one.check_quiescent()
    one.finish()


def test_the_last_page_of_a_large_folio_is_copied_to_free_it(lab):
    """mm/memory.c:__wp_can_reuse_large_anon_folio gives up a folio of which a single page is mapped."""
    one = lab(thp="always")
    one.map(8)
    one.mm.fork().exit()
    one.mm.munmap(BASE + PAGE, 7 * PAGE)
    head = one.pfn(0)
    assert one.counts(head) == "1/1"
    one.watch()
    one.write(0)
    assert one.events == [("p", "CLEAR", 0, 1, "-")]
    assert one.pfn(0) != head
    assert one.counts(head) == "0/0"
    one.check_quiescent()
    one.finish()


def test_a_large_folio_that_the_child_gave_up_is_reused(lab):
    """Its area is still there and so in the walk's way; what counts is who maps the folio."""
    one = lab(thp="always")
    one.map(8)
    child = one.mm.fork()
    one.mm.mprotect(BASE, PAGE, PROT_READ)
    one.mm.mprotect(BASE, PAGE, 3)
    assert one.entry(1).kind is PteKind.PRESENT
    child.munmap(BASE + 4 * PAGE, 4 * PAGE)
    pfns = [one.pfn(i) for i in range(8)]
    one.watch()
    one.write(5)
    assert one.events == [("p", "CLEAR", 5, 6, "-")]  # the child maps other pages of it
    write(one, child, *range(4))
    one.events.clear()
    one.write(*range(5), 6, 7)
    assert one.events == []
    assert [one.pfn(i) for i in (0, 1, 2, 3, 4, 6, 7)] == [pfns[i] for i in (0, 1, 2, 3, 4, 6, 7)]
    one.check_quiescent()
    child.exit()
    one.finish()


def test_a_write_to_the_zero_page_of_a_child_is_its_own(lab):
    one = lab()
    one.map(2, write=False)
    one.write(0)
    one.read(1)
    child = one.mm.fork("c")
    one.watch(child)
    write(one, child, 1)
    assert one.events == [("c", "CLEAR", 1, 2, "-")]
    assert one.read(1) == [0]
    one.check_quiescent()
    one.memory.mmu_interval_notifier_remove(one.watchers.pop().sub)
    child.exit()
    one.finish()


def test_no_memory_for_the_copy(lab):
    one = lab(ram_pages=1)
    one.map(1)
    token = one.read(0)
    child = one.mm.fork()
    with pytest.raises(CpuSignal) as caught:
        write(one, child, 0)
    assert caught.value.signal == 9
    assert one.read(0) == read(one, child, 0) == token
    one.check_quiescent()
    child.exit()
    one.finish()


# --- anon_vmas


def test_a_child_gets_an_anon_vma_of_its_own_below_the_parents(lab):
    one = lab()
    one.map(2)
    child = one.mm.fork()
    mine, its = one.mm.vmas[0].anon_vma, child.vmas[0].anon_vma
    assert its.parent is mine
    assert its.lock is mine.lock
    assert mine.vmas == [one.mm.vmas[0], child.vmas[0]]
    assert its.vmas == [child.vmas[0]]
    assert (mine.num_children, mine.num_active_vmas) == (2, 1)
    assert (its.num_children, its.num_active_vmas) == (0, 1)
    # A page of the child's own is looked for in the child only.
    write(one, child, 0)
    assert [vma.mm for vma, _, _ in one.memory.rmap.places(one.entry(0, child).pfn)] == [child]
    child.exit()
    assert (mine.num_children, mine.num_active_vmas) == (1, 1)
    one.finish()
    assert one.memory.rmap.mappings == {}


def test_an_endless_chain_of_forks_reuses_anon_vmas(lab):
    """mm/rmap.c:anon_vma_clone: one without areas of its own and with a single child is taken again; not the root."""
    one = lab()
    one.map(2)
    mm = one.mm
    for i in range(8):
        child = mm.fork()
        write(one, child, i & 1)
        mm.exit()
        mm = child
        assert len(one.memory.rmap.mappings) <= 3
    one.mm = mm
    assert one.read(0, 1)
    one.check_quiescent()
    one.finish()


def test_areas_of_a_child_do_not_merge_with_what_comes_beside_them(lab):
    """mm/vma.c:is_mergeable_anon_vma: the parent's merge, those of a child that has the parent's pages do not."""
    one = lab()
    one.map(2)
    one.mm.mmap(BASE + 4 * PAGE, PAGE, 3)
    child = one.mm.fork()
    for mm, areas in ((one.mm, [(0, 4), (4, 6)]), (child, [(0, 2), (2, 6)])):
        mm.mmap(BASE + 5 * PAGE, PAGE, 3)
        mm.mmap(BASE + 2 * PAGE, PAGE, 3)
        mm.mmap(BASE + 3 * PAGE, PAGE, PROT_READ)
        write(one, mm, 4)
        mm.mprotect(BASE + 3 * PAGE, PAGE, 3)
        found = [((vma.start - BASE) // PAGE, (vma.end - BASE) // PAGE) for vma in mm.vmas]
        assert found == areas, mm
    # Nor does a new one beside them take their anon_vma: it would find the parent's pages.
    write(one, child, 2)
    assert child.vmas[1].anon_vma is not child.vmas[0].anon_vma
    one.check_quiescent()
    child.exit()
    one.finish()
