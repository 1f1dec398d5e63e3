"""fork over system memory, row by row of what copy_page_range does with an entry, and what is left when it fails."""

from errno import ENOMEM

import pytest
from gpusvm.errors import KernelError, ModelError
from gpusvm.mm.api import FOLL_WRITE, MMU_NOTIFY_NAMES, PROT_READ, PROT_WRITE, VM_DONTCOPY, VM_WIPEONFORK
from gpusvm.mm.mm_struct import MMF_HAS_PINNED
from gpusvm.mm.page import GUP_PIN_COUNTING_BIAS, PG_ANON_EXCLUSIVE, PG_LOCKED
from gpusvm.mm.pgtable import PmdKind, Pte, PteKind, PteTable

PAGE = 4096
BASE = 1 << 30
NONE = Pte(PteKind.NONE)
RW = PROT_READ | PROT_WRITE


def read(one, mm, *pages: int) -> list[int]:
    return [one.memory.cpu_read(mm, BASE + page * PAGE) for page in pages]


def write(one, mm, *pages: int) -> list[int]:
    return [one.memory.cpu_write(mm, BASE + page * PAGE) for page in pages]


def both(one, child, page: int) -> tuple[Pte, Pte]:
    return one.entry(page), one.entry(page, child)


def test_small_pages_are_shared_read_only(lab):
    one = lab()
    tokens = one.map(4) and one.read(0, 1, 2, 3)
    pfns = [one.pfn(i) for i in range(4)]
    child = one.mm.fork("c")
    for i, pfn in enumerate(pfns):
        expected = Pte(PteKind.PRESENT, pfn, dirty=True)
        assert both(one, child, i) == (expected, expected)
        assert one.counts(pfn) == "2/2"
        assert not one.flags(pfn) & PG_ANON_EXCLUSIVE
    assert (one.mm.rss, child.rss) == ([4, 0, 0], [4, 0, 0])
    assert read(one, child, 0, 1, 2, 3) == tokens
    one.check_quiescent()
    child.exit()
    one.check_quiescent()
    one.finish()


def test_each_sees_what_it_wrote_itself(lab):
    one = lab()
    one.map(3)
    before = one.read(0, 1, 2)
    child = one.mm.fork()
    mine = one.write(0)
    its = write(one, child, 1)
    assert one.read(0, 1, 2) == [*mine, *before[1:]]
    assert read(one, child, 0, 1, 2) == [before[0], *its, before[2]]
    one.check_quiescent()
    child.exit()
    one.finish()


def test_a_thp_is_shared_by_pmd(lab):
    one = lab(thp="always")
    one.map(8)
    before = one.read(*range(8))
    head = one.entry(0).pfn
    child = one.mm.fork()
    for mm in (one.mm, child):
        leaf = one.entry(0, mm)
        assert (leaf.kind, leaf.pfn, leaf.write, leaf.dirty) == (PmdKind.THP, head, False, True)
    assert one.counts(head) == "2/2"
    assert one.pages.ram.m_entire[head] == 2
    assert not one.flags(head) & PG_ANON_EXCLUSIVE
    assert (one.mm.rss, child.rss) == ([8, 0, 0], [8, 0, 0])
    assert read(one, child, *range(8)) == before
    one.check_quiescent()
    child.exit()
    assert one.counts(head) == "1/1"
    one.finish()


def test_a_large_folio_mapped_by_ptes_is_shared_page_by_page(lab):
    one = lab(thp="always")
    one.map(8)
    head = one.entry(0).pfn
    one.mm.mprotect(BASE + 2 * PAGE, PAGE, PROT_READ)
    child = one.mm.fork()
    assert [both(one, child, i) for i in range(8)] == [
        (Pte(PteKind.PRESENT, head + i, dirty=True),) * 2 for i in range(8)
    ]
    assert one.counts(head) == "16/16"
    assert not any(one.flags(head + i) & PG_ANON_EXCLUSIVE for i in range(8))
    one.check_quiescent()
    one.mm.munmap(BASE, 4 * PAGE)
    assert one.counts(head) == "12/12"
    assert [vma.end - vma.start for vma in child.vmas] == [2 * PAGE, PAGE, 5 * PAGE]
    child.exit()
    one.check_quiescent()
    one.finish()


def test_zero_pages_are_copied_and_counted_nowhere(lab):
    one = lab()
    one.map(3, write=False)
    one.write(0)
    one.read(1)
    child = one.mm.fork()
    zero = one.memory.zero_pfn
    assert both(one, child, 1) == (Pte(PteKind.PRESENT, zero, zero=True),) * 2
    assert both(one, child, 2) == (NONE, NONE)
    assert child.rss == [1, 0, 0]
    assert one.counts(zero) == "1/0"
    assert read(one, child, 1, 2) == [0, 0]
    child.exit()
    one.check_quiescent()
    one.finish()


def test_the_huge_zero_folio_is_copied(lab):
    one = lab(thp="always")
    one.map(8, write=False)
    one.read(3)
    child = one.mm.fork()
    assert [one.entry(0, mm).kind for mm in (one.mm, child)] == [PmdKind.HUGE_ZERO] * 2
    assert child.rss == [0, 0, 0]
    write(one, child, 2)
    assert one.entry(0, child).kind is PmdKind.THP
    assert one.read(2) == [0]
    child.exit()
    one.check_quiescent()
    one.finish()


def test_an_area_without_anon_vma_is_left_to_faults(lab):
    """mm/memory.c:vma_needs_copy; the areas are there all the same, and there is no event."""
    one = lab()
    one.map(3, write=False)
    one.read(0)
    one.watch()
    child = one.mm.fork()
    assert one.events == []
    assert [(vma.start, vma.end, vma.flags, vma.pgoff) for vma in child.vmas] == [
        (vma.start, vma.end, vma.flags, vma.pgoff) for vma in one.mm.vmas
    ]
    assert child.page_table.entries == {}
    assert child.vmas[0].anon_vma is None
    child.exit()
    one.finish()


def test_dontcopy_and_wipeonfork(lab):
    one = lab()
    for at, flags in ((0, VM_DONTCOPY), (4, VM_WIPEONFORK), (8, 0)):
        one.mm.mmap(BASE + at * PAGE, 2 * PAGE, RW, flags=flags)
        one.write(at, at + 1)
    one.watch()
    child = one.mm.fork()
    assert one.events == [("p", "PROTECTION_PAGE", 8, 10, "-")]
    assert [(vma.start, vma.flags) for vma in child.vmas] == [(vma.start, vma.flags) for vma in one.mm.vmas[1:]]
    assert [vma.anon_vma is None for vma in child.vmas] == [True, False]
    assert [one.entry(page, child).kind for page in (0, 4, 8)] == [PteKind.NONE, PteKind.NONE, PteKind.PRESENT]
    assert one.entry(0).write
    assert one.entry(4).write
    assert read(one, child, 4) == [0]
    one.check_quiescent()
    child.exit()
    one.finish()


def test_t13_one_event_for_each_area(lab):
    """One PROTECTION_PAGE per private area with an anon_vma, ascending; the child has no notifiers."""
    one = lab()
    one.map(2)
    one.map(2, at=4, prot=PROT_READ, write=False)
    one.map(2, at=8)
    one.watch()
    one.kernel.tracer.on = True
    child = one.mm.fork()
    one.kernel.tracer.on = False
    assert one.events == [("p", "PROTECTION_PAGE", 0, 2, "-"), ("p", "PROTECTION_PAGE", 8, 10, "-")]
    windows = [event[2:5] for event in one.kernel.tracer.events if event[2].startswith("notifier")]
    name = MMU_NOTIFY_NAMES[3]
    assert windows == [("notifier_start", "p", name), ("notifier_end", "p", name)] * 2
    assert child.notifiers is None
    child.exit()
    one.finish()


def pin(one, page: int) -> int:
    """Pin a small page as FOLL_PIN does."""
    pfn = one.pfn(page)
    one.mm.flags |= MMF_HAS_PINNED
    one.pages.ram.m_refcount[pfn] += GUP_PIN_COUNTING_BIAS
    return pfn


def unpin(one, pfn: int) -> None:
    one.memory.pages.folio_put(pfn, GUP_PIN_COUNTING_BIAS)


def test_a_pinned_page_is_copied_for_the_child_now(lab):
    """mm/memory.c:copy_present_page: whoever has the pin goes on seeing what the parent writes."""
    one = lab()
    one.map(6)
    tokens = one.read(*range(6))
    pfns = {page: pin(one, page) for page in (1, 2, 4)}
    free = one.pages.allocator.free_pages
    child = one.mm.fork()
    assert one.pages.allocator.free_pages == free - 3
    assert [one.entry(i).write for i in range(6)] == [False, True, True, False, True, False]
    assert [one.entry(i, child).write for i in range(6)] == [False, True, True, False, True, False]
    for page, pfn in pfns.items():
        assert one.entry(page).pfn == pfn
        assert one.flags(pfn) & PG_ANON_EXCLUSIVE
        copy = one.entry(page, child).pfn
        assert copy != pfn
        assert one.counts(copy) == "1/1"
        assert one.flags(copy) & PG_ANON_EXCLUSIVE
    assert read(one, child, *range(6)) == tokens
    one.write(1)
    assert one.pfn(1) == pfns[1]
    assert read(one, child, 1) == [tokens[1]]
    for pfn in pfns.values():
        unpin(one, pfn)
    child.exit()
    one.check_quiescent()
    one.finish()


def test_t13_a_pinned_huge_page_is_split_and_copied(lab):
    """mm/huge_memory.c:copy_huge_pmd: CLEAR of the block inside the area's window, then every page may be pinned."""
    one = lab(thp="always")
    one.map(16)
    tokens = one.read(*range(16))
    head = one.entry(0).pfn
    with one.mm.mmap_lock.read():
        pins = one.memory.pin_user_pages(one.mm, BASE + 2 * PAGE, 1, flags=FOLL_WRITE)
    assert pins.tolist() == [head + 2]
    one.watch()
    child = one.mm.fork()
    assert one.events == [("p", "PROTECTION_PAGE", 0, 16, "-"), ("p", "CLEAR", 0, 8, "-")]
    assert [one.entry(i) for i in range(8)] == [
        Pte(PteKind.PRESENT, head + i, write=True, dirty=True) for i in range(8)
    ]
    assert one.counts(head) == "9/8"
    copies = [one.entry(i, child) for i in range(8)]
    assert all(entry.write and not head <= entry.pfn < head + 8 for entry in copies)
    assert one.entry(8, child).pfn == one.entry(8).pfn
    assert read(one, child, *range(16)) == tokens
    one.write(2)
    assert one.pfn(2) == head + 2
    one.memory.unpin_user_pages(pins)
    one.check_quiescent()
    child.exit()
    one.finish()


def test_without_a_pin_in_this_process_many_references_do_not_matter(lab):
    """include/linux/mm.h:folio_needs_cow_for_dma looks at MMF_HAS_PINNED first."""
    one = lab()
    one.map(1)
    pfn = pin(one, 0)
    one.mm.flags = 0
    child = one.mm.fork()
    assert both(one, child, 0) == (Pte(PteKind.PRESENT, pfn, dirty=True),) * 2
    unpin(one, pfn)
    child.exit()
    one.finish()


def test_a_page_pinned_and_shared_stays_shared(lab):
    one = lab()
    one.map(1)
    first = one.mm.fork()
    pfn = pin(one, 0)
    second = one.mm.fork()
    assert one.entry(0, second).pfn == pfn
    unpin(one, pfn)
    first.exit()
    second.exit()
    one.check_quiescent()
    one.finish()


@pytest.mark.parametrize("thp", ["never", "always"])
def test_write_after_the_child_has_gone_takes_pages_over(lab, thp):
    """Seen on 7.3.4: no CLEAR; and a page of the parent's that the child took over is found through the child."""
    one = lab(thp=thp)
    one.map(8)
    pfns = [one.pfn(i) for i in range(8)]
    one.mm.fork().exit()
    assert not one.entry(0).write
    one.watch()
    one.write(*range(8))
    assert one.events == []
    assert [one.pfn(i) for i in range(8)] == pfns
    one.check_quiescent()
    one.finish()


@pytest.mark.parametrize("thp", ["never", "always"])
def test_a_child_that_outlives_its_parent_takes_pages_over(lab, thp):
    one = lab(thp=thp)
    one.map(8)
    child = one.mm.fork("c")
    pfns = [one.pfn(i) for i in range(8)]
    one.mm.exit()
    one.mm = child
    one.watch()
    one.write(*range(8))
    assert one.events == []
    assert [one.pfn(i) for i in range(8)] == pfns
    mapping = one.pages.ram.m_mapping[pfns[3] if thp == "never" else pfns[0]]
    assert mapping == child.vmas[0].anon_vma.id
    one.device.migrate(child, BASE, BASE + 8 * PAGE)
    one.read(*range(8))
    one.check_quiescent()
    one.finish()


SITES = [
    ("alloc.mm", 1),
    ("alloc.vma", 1),
    ("alloc.vma", 2),
    ("alloc.anon_vma", 2),
    ("alloc.pte_table", 1),
    ("alloc.pte_table", 2),
]


@pytest.mark.parametrize(
    ("thp", "site", "nth"),
    [(thp, *site) for thp in ("never", "always") for site in SITES] + [("never", "alloc.folio", 1)],
)
def test_a_failed_fork_leaves_nothing(lab, thp, site, nth):
    one = lab(thp=thp)
    one.map(8)
    one.map(8, at=24)
    tokens = one.read(*range(8), *range(24, 32))
    pfn = pin(one, 25) if thp == "never" else -1
    one.watch()
    one.kernel.arm(site, nth=nth)
    used = one.pages.allocator.free_pages
    with pytest.raises(KernelError) as caught:
        one.mm.fork("c")
    assert caught.value.errno == ENOMEM
    assert one.pages.allocator.free_pages == used
    assert [mm.name for mm in one.memory.mms] == ["p"]
    assert not one.mm.mmap_lock.is_locked
    assert one.mm.notifiers.active_invalidate_ranges == 0
    assert one.read(*range(8), *range(24, 32)) == tokens
    one.write(*range(8), *range(24, 32))
    assert {event[1] for event in one.events} <= {"PROTECTION_PAGE"}
    if pfn >= 0:
        unpin(one, pfn)
    one.check_quiescent()
    one.mm.fork().exit()
    one.finish()


def test_a_full_machine_fails_a_fork_with_pins(lab):
    one = lab(ram_pages=12)
    one.map(10)
    pfns = [pin(one, page) for page in (3, 7, 9)]
    with pytest.raises(KernelError) as caught:
        one.mm.fork()
    assert (caught.value.errno, str(caught.value)) == (
        ENOMEM,
        "-ENOMEM: no memory to copy a pinned page of block 0x8001",
    )
    assert [one.entry(i).write for i in range(10)] == [False] * 3 + [True] + [False] * 3 + [True, False, True]
    for pfn in pfns:
        unpin(one, pfn)
    one.check_quiescent()
    one.finish()


def test_many_processes_share_one_page_and_the_last_keeps_it(lab):
    one = lab()
    one.map(1)
    pfn = one.pfn(0)
    children = [one.mm.fork() for _ in range(5)]
    grandchild = children[0].fork()
    assert one.counts(pfn) == "7/7"
    assert len({mm.name for mm in one.memory.mms}) == 7
    assert len(one.memory.rmap.places(pfn)) == 7
    for mm in children:
        mm.exit()
    one.check_quiescent()
    token = write(one, grandchild, 0)
    assert one.counts(pfn) == "1/1"
    assert one.read(0) != token
    one.write(0)
    assert one.pfn(0) == pfn
    grandchild.exit()
    one.check_quiescent()
    one.finish()


def test_the_child_knows_what_prot_none_hides(lab):
    one = lab()
    one.map(2)
    one.mm.mprotect(BASE, PAGE, 0)
    child = one.mm.fork()
    assert child.had_prot_none
    assert one.entry(0, child).kind is PteKind.PRESENT
    child.mprotect(BASE, PAGE, RW)
    read(one, child, 0)
    child.exit()
    one.finish()


def test_no_lock_is_left_and_no_page_locked(lab):
    one = lab()
    one.map(4)
    child = one.mm.fork()
    assert not child.mmap_lock.is_locked
    assert not any(one.flags(one.pfn(i)) & PG_LOCKED for i in range(4))
    assert isinstance(child.page_table.lookup(BASE), PteTable)
    child.exit()
    one.finish()


def test_nobody_forks_what_is_gone(lab):
    one = lab()
    child = one.mm.fork("c")
    child.mmgrab()
    child.exit()
    with pytest.raises(ModelError, match=r"^fork of c, whose memory is gone$"):
        child.fork()
    child.mmdrop()
    one.finish()
