"""make_device_exclusive."""

from errno import EFAULT, ENOMEM, EOPNOTSUPP

import pytest
from gpusvm.errors import KernelError
from gpusvm.mm.api import PROT_READ, VM_IO
from gpusvm.mm.page import PG_ANON_EXCLUSIVE, PG_DIRTY
from gpusvm.mm.pgtable import PteKind

PAGE = 4096
BASE = 1 << 30


def make(one, page: int, owner=None) -> int:
    with one.mm.mmap_lock.read():
        return one.memory.make_device_exclusive(one.mm, one.va(page) + 8, owner)


def release(one, pfn: int) -> None:
    head = one.memory.folio_head(pfn)
    one.memory.folio_unlock(head)
    one.memory.folio_put(head)


def test_a_page_is_handed_over_locked_and_referenced(lab) -> None:
    # t21
    one = lab()
    one.map(2)
    pfn = one.pfn(1)
    one.watch()
    assert make(one, 1, "me") == pfn
    assert one.events == [("p", "EXCLUSIVE", 1, 2, "own")]
    assert one.pages.folio_locked(pfn)
    assert one.counts(pfn) == "2/1"
    assert one.entry(1).kind is PteKind.EXCLUSIVE
    assert one.mm.rss == [2, 0, 0]
    assert one.flags(pfn) & (PG_ANON_EXCLUSIVE | PG_DIRTY) == PG_ANON_EXCLUSIVE | PG_DIRTY
    release(one, pfn)
    one.check_quiescent()
    one.finish()


def test_a_huge_page_is_split_and_a_hole_is_filled(lab) -> None:
    one = lab(thp="always")
    one.map(16, write=False)
    one.write(0)
    head = one.entry(0).pfn
    one.watch()
    assert make(one, 3) == head + 3
    assert one.events == [("p", "CLEAR", 0, 8, "-"), ("p", "EXCLUSIVE", 3, 4, "-")]
    release(one, head + 3)
    one.events.clear()
    release(one, make(one, 9))
    assert one.events == [("p", "CLEAR", 8, 16, "-"), ("p", "EXCLUSIVE", 9, 10, "-")]
    assert [one.entry(i).kind for i in (2, 3, 9)] == [PteKind.PRESENT, PteKind.EXCLUSIVE, PteKind.EXCLUSIVE]
    one.check_quiescent()
    one.finish()


def test_the_zero_page_is_copied_first(lab) -> None:
    one = lab()
    one.map(1, write=False)
    one.read(0)
    one.watch()
    release(one, make(one, 0))
    assert one.events == [("p", "CLEAR", 0, 1, "-"), ("p", "EXCLUSIVE", 0, 1, "-")]
    one.finish()


def test_a_huge_zero_page_is_split_and_one_page_of_it_copied(lab) -> None:
    one = lab(thp="always")
    one.map(8, write=False)
    one.read(0)
    one.watch()
    release(one, make(one, 2))
    assert one.events == [("p", "CLEAR", 0, 8, "-"), ("p", "CLEAR", 2, 3, "-"), ("p", "EXCLUSIVE", 2, 3, "-")]
    assert one.mm.rss == [1, 0, 0]
    one.finish()


@pytest.mark.parametrize("thp", ["never", "always"])
def test_a_device_page_comes_home_first(lab, thp: str) -> None:
    one = lab(thp=thp)
    one.map(8)
    one.device.migrate(one.mm, BASE, BASE + 8 * PAGE)
    one.watch()
    pfn = make(one, 2)
    assert not one.memory.is_device_private(pfn)
    assert one.events[0] == ("p", "MIGRATE", 0, 8, "own")
    assert one.events[-1] == ("p", "EXCLUSIVE", 2, 3, "-")
    assert one.kernel.stats.cpu_faults == 0  # no CPU touched it
    release(one, pfn)
    one.check_quiescent()
    one.finish()


def test_an_exclusive_page_changes_hands(lab) -> None:
    one = lab()
    one.map(1)
    release(one, make(one, 0, "first"))
    one.watch()
    release(one, make(one, 0, "second"))
    assert one.events == [("p", "CLEAR", 0, 1, "-"), ("p", "EXCLUSIVE", 0, 1, "own")]
    one.check_quiescent()
    one.finish()


def test_somebody_faster_makes_it_start_over(lab) -> None:
    one = lab()
    one.map(1)
    first = make(one, 0, "first")
    second = one.kernel.spawn(make, one, 0, "second", name="second")
    one.kernel.settle()
    assert not second.done
    release(one, first)
    assert second.join() == first
    release(one, first)
    one.check_quiescent()
    one.finish()


def test_what_is_refused(lab) -> None:
    one = lab()
    one.map(1, prot=PROT_READ, write=False)
    one.map(1, at=4, write=False)
    for page, message in (
        (2, "-EFAULT: nothing is mapped at 0x40002000"),
        (0, "-EFAULT: Vma(0x40000000-0x40001000 r--) cannot be written"),
    ):
        with pytest.raises(KernelError) as caught:
            make(one, page)
        assert (caught.value.errno, str(caught.value)) == (EFAULT, message)
    one.kernel.arm("alloc.folio")
    with pytest.raises(KernelError) as caught:
        make(one, 4)
    assert caught.value.errno == ENOMEM
    one.mm.vmas[1].flags |= VM_IO
    with pytest.raises(KernelError) as caught:
        make(one, 4)
    assert caught.value.errno == EFAULT
    one.mm.vmas[1].flags &= ~VM_IO
    pfn = one.memory.folio_head(make(one, 4))
    release(one, pfn)
    one.read(4)
    one.pages.ram.m_mapping[pfn] = 0
    with pytest.raises(KernelError) as caught:
        make(one, 4)
    assert (caught.value.errno, str(caught.value)) == (
        EOPNOTSUPP,
        "-EOPNOTSUPP: the page at 0x40004000 is not anonymous",
    )
    assert one.counts(pfn) == "1/1"


def test_a_migration_takes_write_away_for_good(lab) -> None:
    one = lab()
    one.map(2)
    release(one, make(one, 0))
    # Collect passes an exclusive entry over.
    args = one.device.migrate(one.mm, BASE, BASE + 2 * PAGE)
    assert [int(word) & 2 for word in args.src[:2]] == [0, 2]
    assert [one.entry(i).kind for i in range(2)] == [PteKind.EXCLUSIVE, PteKind.PRIVATE]
    one.read(0, 1)
    one.check_quiescent()
    one.finish()
