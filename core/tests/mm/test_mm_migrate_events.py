"""The golden event traces t1 to t8, whole: every invalidation that an operation causes, in order."""

import numpy as np
import pytest
from gpusvm.mm.api import (
    MIGRATE_VMA_SELECT_COMPOUND,
    MIGRATE_VMA_SELECT_DEVICE_PRIVATE,
    MIGRATE_VMA_SELECT_SYSTEM,
    PROT_READ,
)

SMALL = MIGRATE_VMA_SELECT_SYSTEM
COMPOUND = MIGRATE_VMA_SELECT_SYSTEM | MIGRATE_VMA_SELECT_COMPOUND


@pytest.fixture(params=["timed", "explored"])
def machine(lab, request):
    return lambda **options: lab(mode=request.param, **options)


def during(one, what):
    """What is heard while `what` runs."""
    one.events.clear()
    what()
    one.check_quiescent()
    return list(one.events)


def test_t1_small_pages_of_this_mm_only(machine):
    one = machine()
    one.watch()
    one.map(12)
    at = {}
    args = one.device.setup(one.mm, one.va(2), one.va(11), flags=SMALL)
    at["setup"] = list(one.events)
    one.device.fill_to_device(args)
    one.memory.migrate_vma_pages(args)
    one.memory.migrate_vma_finalize(args)
    one.mm.mmap_lock.up_read()
    assert at["setup"] == one.events == [("p", "MIGRATE", 2, 11, "own")]

    def home():
        with one.mm.mmap_lock.read():
            one.device.bring_home(one.mm, one.va(2), one.va(11))

    assert during(one, home) == [("p", "MIGRATE", 2, 11, "own")]


def test_t2_holes_and_zero_pages_are_filled(machine):
    one = machine()
    one.watch()
    one.map(12, write=False)
    one.write(0, 1, 4)
    one.read(3)
    args = one.device.setup(one.mm, one.va(0), one.va(12), flags=SMALL)
    assert one.events == [("p", "MIGRATE", 0, 12, "own")]
    one.events.clear()
    one.device.fill_to_device(args, decline=(2,))
    one.memory.migrate_vma_pages(args)
    # 2 is the first hole, but it is not filled; 3 is the zero page.
    assert one.events == [("p", "MIGRATE", 3, 12, "own")]
    one.events.clear()
    one.memory.migrate_vma_finalize(args)
    one.mm.mmap_lock.up_read()
    assert one.events == []
    one.check_quiescent()


def test_t3_whole_block(machine):
    one = machine(thp="always")
    one.watch()
    one.map(8)
    to = during(one, lambda: one.device.migrate(one.mm, one.va(0), one.va(8)))
    back = during(one, lambda: one.read(5))
    assert to == back == [("p", "MIGRATE", 0, 8, "own")]


def test_t4_block_to_small_destinations(machine):
    one = machine(thp="always")
    one.watch()
    one.map(8)
    args = one.device.setup(one.mm, one.va(0), one.va(8), flags=COMPOUND)
    assert one.events == [("p", "MIGRATE", 0, 8, "own")]
    one.events.clear()
    one.device.fill_to_device(args, small=True)
    one.memory.migrate_vma_pages(args)
    assert one.events == [("p", "CLEAR", 0, 8, "-")]
    one.events.clear()
    one.memory.migrate_vma_finalize(args)
    one.mm.mmap_lock.up_read()
    assert one.events == []
    one.check_quiescent()
    assert sorted(one.device.live.values()) == [0] * 8


def test_t5_huge_zero_page_to_small_destinations(machine):
    one = machine(thp="always")
    one.watch()
    one.map(16, write=False)
    one.read(8)
    args = one.device.setup(one.mm, one.va(8), one.va(16), flags=COMPOUND)
    assert one.events == [("p", "MIGRATE", 8, 16, "own")]
    one.events.clear()
    one.device.fill_to_device(args, small=True)
    one.memory.migrate_vma_pages(args)
    assert one.events == [("p", "MIGRATE", 8, 16, "own"), ("p", "CLEAR", 8, 16, "-")]
    one.memory.migrate_vma_finalize(args)
    one.mm.mmap_lock.up_read()
    one.check_quiescent()
    assert one.read(*range(8, 16)) == [0] * 8


def test_t6_range_that_cuts_a_block(machine):
    one = machine(thp="always")
    one.watch()
    one.map(16)
    assert during(one, lambda: one.device.migrate(one.mm, one.va(4), one.va(14))) == [
        ("p", "MIGRATE", 4, 14, "own"),
        ("p", "CLEAR", 0, 8, "-"),
        ("p", "CLEAR", 8, 16, "-"),
    ]


def test_t6_block_mapped_by_ptes(machine):
    one = machine(thp="always")
    one.watch()
    one.map(8)
    one.mm.mprotect(one.va(0), 2 * 4096, PROT_READ)
    assert during(one, lambda: one.device.migrate(one.mm, one.va(2), one.va(8))) == [
        ("p", "MIGRATE", 2, 8, "own"),
        # One window in each VMA that maps a part of the folio.
        ("p", "CLEAR", 0, 2, "-"),
        ("p", "CLEAR", 2, 8, "-"),
    ]


def test_t7_pages_that_another_process_maps_too(machine):
    one = machine()
    one.map(2)
    two = one.share(2)
    one.watch(one.mm, two)
    assert during(one, lambda: one.device.migrate(one.mm, one.va(0), one.va(2))) == [
        ("p", "MIGRATE", 0, 2, "own"),
        # The walk visits the first process again, though it maps the page no more: so it was recorded on 7.3.4.
        ("p", "CLEAR", 0, 1, "-"),
        ("q", "CLEAR", 0, 1, "-"),
        ("p", "CLEAR", 1, 2, "-"),
        ("q", "CLEAR", 1, 2, "-"),
    ]
    # The second faults: the first is visited first, and then nothing maps the page any more.
    assert during(one, lambda: one.memory.cpu_read(two, one.va(1))) == [
        ("q", "MIGRATE", 0, 2, "own"),
        ("p", "CLEAR", 0, 1, "-"),
        ("p", "CLEAR", 1, 2, "-"),
    ]
    two.exit()


def test_t8_eviction(machine):
    one = machine(thp="always")
    one.watch()
    one.map(8)
    one.map(3, at=16)
    one.device.migrate(one.mm, one.va(0), one.va(8))
    one.device.migrate(one.mm, one.va(16), one.va(19), flags=SMALL | MIGRATE_VMA_SELECT_DEVICE_PRIVATE)
    start = one.device.pgmap.start_pfn
    assert during(one, lambda: one.device.evict(list(range(start, start + 11)))) == [
        ("p", "CLEAR", 0, 8, "-"),
        ("p", "CLEAR", 16, 17, "-"),
        ("p", "CLEAR", 17, 18, "-"),
        ("p", "CLEAR", 18, 19, "-"),
    ]
    assert not one.device.live


def test_nobody_is_told_when_nobody_listens(lab):
    one = lab()
    one.map(4)
    one.device.migrate(one.mm, one.va(0), one.va(4))
    one.device.evict(sorted(one.device.live))
    assert one.kernel.stats.notifier_events == 0
    assert np.all(one.pages.ram.mapcount[[one.pfn(i) for i in range(4)]] == 1)
