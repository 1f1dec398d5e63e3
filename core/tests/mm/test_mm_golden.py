"""The golden event traces that need no fork, remap or advice; whole traces, window for window.

One mm, one subscription over everything. A trace is a list of pages: the range of the event in pages from the base.
"""

import pytest
from gpusvm.mm.api import MMU_NOTIFY_NAMES, PROT_READ

PAGE = 4096
BASE = 1 << 30
RW = 3


@pytest.fixture(params=[3, 9])
def one(lab, request):
    return lab(pmd_order=request.param, thp="never")


def protect(one, page: int, n: int, prot: int = PROT_READ) -> None:
    one.mm.mprotect(BASE + page * PAGE, n * PAGE, prot)


def unmap(one, page: int, n: int) -> None:
    one.mm.munmap(BASE + page * PAGE, n * PAGE)


def test_t9_a_cpu_fault_on_a_device_page(one) -> None:
    one.map(4)
    one.device.migrate(one.mm, BASE, BASE + 4 * PAGE)
    one.watch()
    one.read(1)
    assert one.events == [("p", "MIGRATE", 0, 4, "own")]
    one.finish()


def test_t11_a_write_to_the_zero_page(one) -> None:
    one.map(4, write=False)
    one.read(1)
    one.watch()
    one.write(1)
    assert one.events == [("p", "CLEAR", 1, 2, "-")]
    one.finish()


def test_t12_an_upgrade_in_place_and_a_fault_on_none(one) -> None:
    one.map(4, write=False)
    one.watch()
    one.write(0)
    one.read(1)
    one.mm.page_table.lookup(BASE).set_write(1, 0)
    one.write(0)
    assert one.events == []
    one.finish()


def test_t14_mprotect_of_a_whole_area(one) -> None:
    one.map(4 * one.nr, write=False)
    one.watch()
    protect(one, 0, 4 * one.nr)
    assert one.events == []
    protect(one, 0, 4 * one.nr, RW)
    one.write(1)
    protect(one, 0, 4 * one.nr)
    assert one.events == [("p", "PROTECTION_VMA", 0, 4 * one.nr, "-")]
    one.finish()


def test_t15_mprotect_of_a_part_inside_one_block(one) -> None:
    nr = one.nr
    one.map(4 * nr, write=False)
    one.write(0)
    one.watch()
    protect(one, nr + 1, 2)
    # After the first split nothing covers the block any more.
    assert one.events == [("p", "CLEAR", nr, 2 * nr, "-"), ("p", "PROTECTION_VMA", nr + 1, nr + 3, "-")]
    one.finish()


def test_t15_mprotect_of_a_part_over_three_blocks(one) -> None:
    nr = one.nr
    one.map(4 * nr, write=False)
    one.write(0)
    one.watch()
    protect(one, 1, 2 * nr)
    assert one.events == [
        ("p", "CLEAR", 0, nr, "-"),
        ("p", "CLEAR", 2 * nr, 3 * nr, "-"),
        ("p", "PROTECTION_VMA", 1, 2 * nr + 1, "-"),
    ]
    one.finish()


def test_t15_an_aligned_part_splits_nothing(one) -> None:
    nr = one.nr
    one.map(4 * nr, write=False)
    one.write(0)
    one.watch()
    protect(one, nr, 2 * nr)
    assert one.events == [("p", "PROTECTION_VMA", nr, 3 * nr, "-")]
    one.finish()


def test_t15_without_a_populated_pud_even_the_splits_are_silent(one) -> None:
    nr = one.nr
    one.map(4 * nr, write=False)
    one.watch()
    protect(one, 1, 2 * nr)
    assert one.events == []
    one.finish()


def test_t15_moving_a_boundary_between_two_areas(one) -> None:
    nr = one.nr
    one.map(4 * nr, write=False)
    one.write(0)
    protect(one, 0, nr)
    one.watch()
    # The lower area takes in the front of the upper one, which covers the block around the new boundary.
    protect(one, nr, nr + 1)
    assert one.events == [("p", "CLEAR", 2 * nr, 3 * nr, "-"), ("p", "PROTECTION_VMA", nr, 2 * nr + 1, "-")]
    one.events.clear()
    # And gives it back: the lower area shrinks now.
    protect(one, nr + 1, nr, RW)
    assert one.events == [("p", "CLEAR", nr, 2 * nr, "-"), ("p", "PROTECTION_VMA", nr + 1, 2 * nr + 1, "-")]
    assert [(v.start - BASE) // PAGE for v in one.mm.vmas] == [0, nr + 1]
    one.finish()


def test_t16_munmap_of_a_whole_area(one) -> None:
    one.map(2 * one.nr)
    one.watch()
    unmap(one, 0, 2 * one.nr)
    assert one.events == [("p", "UNMAP", 0, 2 * one.nr, "-")]
    one.finish()


def test_t17_munmap_inside_one_block(one) -> None:
    nr = one.nr
    one.map(4 * nr)
    one.watch()
    unmap(one, nr + nr // 4, nr // 2)
    assert one.events == [("p", "CLEAR", nr, 2 * nr, "-"), ("p", "UNMAP", nr + nr // 4, nr + nr // 4 + nr // 2, "-")]
    one.finish()


def test_t21_make_device_exclusive_of_a_huge_page(lab) -> None:
    one = lab(thp="always")
    one.map(8)
    one.watch()
    with one.mm.mmap_lock.read():
        pfn = one.memory.make_device_exclusive(one.mm, BASE, "owner")
    assert one.events == [("p", "CLEAR", 0, 8, "-"), ("p", "EXCLUSIVE", 0, 1, "own")]
    one.memory.folio_unlock(one.memory.folio_head(pfn))
    one.memory.folio_put(one.memory.folio_head(pfn))
    one.events.clear()
    one.read(0)
    assert one.events == [("p", "CLEAR", 0, 1, "-")]  # t22
    one.check_quiescent()
    one.finish()


def test_t24_exit(one) -> None:
    events = []

    class Watch:
        def invalidate(self, sub, range_, cur_seq) -> bool:
            sub.invalidate_seq = cur_seq
            events.append((MMU_NOTIFY_NAMES[range_.event], range_.start, range_.end, range_.owner, one.mm.mm_users))
            return True

    one.map(4)
    sub = one.memory.mmu_interval_notifier_insert(one.mm, 0, 1 << 47, Watch())
    one.mm.mmgrab()
    one.mm.exit()
    top = (1 << 64) - 1
    assert events == [("RELEASE", 0, top, None, 0), ("UNMAP", 0, top, None, 0)]
    assert one.mm.rss == [0, 0, 0]
    assert one.mm.vmas == []
    one.memory.mmu_interval_notifier_remove(sub)
    one.mm.mmdrop()
    one.kernel.ledger.assert_empty()


def test_windows_nest_as_the_kernel_nests_them(lab) -> None:
    one = lab(thp="always")
    one.map(16)
    log = []

    class Listener:
        def window_opened(self, range_) -> None:
            log.append("open " + MMU_NOTIFY_NAMES[range_.event])

        def window_closed(self, range_) -> None:
            log.append("close " + MMU_NOTIFY_NAMES[range_.event])

        def pmd_changed(self, page_table, block) -> None:
            log.append("pmd")

        def ptes_changed(self, table, mask) -> None:
            log.append("ptes")

    one.watch()
    one.kernel.observer = Listener()
    unmap(one, 4, 12)
    one.kernel.observer = None
    assert log == [
        "open CLEAR",
        "pmd",  # the leaf becomes a table
        "close CLEAR",
        "open UNMAP",
        "ptes",  # the upper half of it
        "pmd",  # the whole second leaf
        "close UNMAP",
    ]
    one.finish()
