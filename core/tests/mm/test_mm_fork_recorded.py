"""What Linux 7.3.4 answered to a process that has a living child: events of the parent, from recordings of svmdev.

Each test names the sequence and the operations that it repeats with plain migrations; blocks have their real size.
"""

import pytest
from gpusvm.mm.api import (
    MIGRATE_VMA_SELECT_COMPOUND,
    MIGRATE_VMA_SELECT_DEVICE_PRIVATE,
    MIGRATE_VMA_SELECT_SYSTEM,
)
from gpusvm.mm.pgtable import PmdKind, PteKind

PAGE = 4096
BASE = 1 << 30
P = 512
ANY = MIGRATE_VMA_SELECT_SYSTEM | MIGRATE_VMA_SELECT_DEVICE_PRIVATE | MIGRATE_VMA_SELECT_COMPOUND


@pytest.fixture
def one(lab):
    """Make a process with two huge pages, of which the first page is not zero, and a driver that fetches blocks."""
    machine = lab(pmd_order=9, thp="always", ram_pages=16 * P, device_pages=8 * P)
    machine.map(2 * P, write=False)
    machine.write(0, P)
    machine.device.window = P * PAGE
    return machine


def populate(one, page: int, n: int) -> None:
    one.device.migrate(one.mm, BASE + page * PAGE, BASE + (page + n) * PAGE, flags=ANY)


def each(first: int, n: int) -> list[tuple]:
    return [("p", "CLEAR", i, i + 1, "-") for i in range(first, first + n)]


def migrate(first: int, end: int) -> tuple:
    return ("p", "MIGRATE", first, end, "own")


def clear(first: int, end: int) -> tuple:
    return ("p", "CLEAR", first, end, "-")


def finish(one, child) -> None:
    one.check_quiescent()
    child.exit()
    one.finish()


def test_a_huge_page_goes_to_the_device_for_both(one):
    """svmdev-one-thp 9, operations 14 and 15: the parent's own window opens a second time."""
    one.watch()
    child = one.mm.fork()
    populate(one, P, P)
    assert one.events == [("p", "PROTECTION_PAGE", 0, 2 * P, "-"), migrate(P, 2 * P), clear(P, 2 * P)]
    assert one.entry(P, child).kind is PmdKind.PRIVATE
    finish(one, child)


def test_a_shared_device_folio_is_cut(one):
    """svmdev-one-thp 9, operation 16: 16 pages of a 2 MiB device folio are collected again."""
    child = one.mm.fork()
    populate(one, P, P)
    one.watch()
    populate(one, P + 352, 16)
    assert one.events == [migrate(P + 352, P + 368), clear(P, 2 * P), *each(P + 352, 16)]
    assert one.entry(P, child).kind is PteKind.PRIVATE
    finish(one, child)


def test_a_shared_huge_page_comes_home_and_is_written(one):
    """svmdev-one-thp 7, operation 15: home (MIGRATE, the parent again), PMD split, copy of one page."""
    populate(one, P, P)
    child = one.mm.fork()
    one.watch()
    one.write(P)
    assert one.events == [migrate(P, 2 * P), clear(P, 2 * P), clear(P, 2 * P), *each(P, 1)]
    assert one.entry(P, child).kind is PmdKind.THP
    finish(one, child)


def test_a_cut_area_is_visited_behind_the_childs(one):
    """svmdev-one-thp 55, operations 7 to 12: munmap made the parent's area anew, so the walk ends in the child."""
    populate(one, 0, P)
    child = one.mm.fork()
    one.mm.munmap(BASE + 549 * PAGE, 4 * PAGE)
    one.watch()
    one.write(0)
    assert one.events == [migrate(0, P), clear(0, P), *each(0, 1)]
    finish(one, child)


def test_a_child_writes_a_shared_device_page(one):
    """svmdev-one-thp 110, operation 10: the parent hears of it once, its own PMD stays whole."""
    populate(one, 0, P)
    child = one.mm.fork()
    one.watch()
    for page in range(16, 20):
        one.memory.cpu_write(child, BASE + page * PAGE)
    assert one.events == [clear(0, P)]
    assert one.entry(0).kind is PmdKind.THP
    assert one.entry(0, child).kind is PteKind.PRESENT
    # And then 11 and 14: the parent's huge page goes to the device again, and its write copies page by page.
    one.events.clear()
    populate(one, 0, P)
    assert one.events == [migrate(0, P), clear(0, P)]
    one.events.clear()
    one.write(*range(158, 162))
    assert one.events == [migrate(0, P), clear(0, P), clear(0, P), *each(158, 4)]
    finish(one, child)


def test_a_shared_huge_page_of_zeros_with_a_hole_is_cut(one):
    """svmdev-one-thp 92, operations 6 to 10: one CLEAR in each piece; zeros become holes, which are filled."""
    populate(one, P, P)
    child = one.mm.fork()
    one.read(P + 4)
    one.watch()
    one.mm.munmap(BASE + (P + 48) * PAGE, 16 * PAGE)
    assert one.events == [clear(P, 2 * P), ("p", "UNMAP", P + 48, P + 64, "-")]
    one.events.clear()
    populate(one, P + 112, 16)
    assert one.events == [
        migrate(P + 112, P + 128),
        clear(P, P + 48),
        clear(P + 64, 2 * P),
        migrate(P + 112, P + 128),
    ]
    assert one.entry(P + 112, child).zero
    finish(one, child)
