"""Faults, truncation, migration and unmapping of shared pages: each race in every schedule with one preemption."""

from collections.abc import Callable

import pytest
from gpusvm.check import check_quiescent
from gpusvm.errors import CpuSignal
from gpusvm.kernel import RecordedChoices, SeededChoices
from gpusvm.mm.api import MADV_DONTNEED, PROT_READ, PROT_WRITE, VM_HUGETLB, VM_SHARED

PAGE = 4096
BASE = 1 << 30
RW = PROT_READ | PROT_WRITE


def every_schedule(lab, race: Callable, *, seeds: int = 60) -> set:
    """Run a race without a preemption, with one at each place where there can be one, and at random; the outcomes."""
    outcomes = set()

    def once(choices):
        one = lab(mode="explored", choices=choices)
        outcomes.add(race(one))
        check_quiescent(one.memory)
        one.finish()
        assert not one.memory.contents.mismatches
        return choices

    first = once(RecordedChoices([]))
    for at, width in enumerate(first.widths):
        for choice in range(1, width):
            once(RecordedChoices([*first.taken[:at], choice]))
    for seed in range(seeds):
        once(SeededChoices(seed))
    return outcomes


def run(one, *tasks: tuple) -> list:
    started = [one.kernel.spawn(*task, name=f"task {i}") for i, task in enumerate(tasks)]
    return [task.join() for task in started]


def touch(one, mm, page: int, *, write: bool = False) -> int:
    """Access one page; the token, or minus the signal."""
    try:
        return (one.memory.cpu_write if write else one.memory.cpu_read)(mm, BASE + page * PAGE)
    except CpuSignal as signal:
        return -signal.signal


def shared(one, n: int = 4):
    file = one.memory.tmpfile(n)
    one.mm.mmap(BASE, n * PAGE, RW, flags=VM_SHARED, file=file)
    file.close()
    return file


@pytest.mark.parametrize("write", [False, True])
def test_two_processes_fault_the_same_missing_page(lab, write):
    """filemap_add_folio: one page goes into the cache, whoever was slower takes it from there."""

    def race(one):
        file = shared(one)
        two = one.mm.fork()
        run(one, (touch, one, one.mm, 1), (lambda: touch(one, two, 1, write=write),))
        assert sorted(file.pages) == [1]
        assert one.entry(1).pfn == one.entry(1, two).pfn == file.pages[1]
        assert one.counts(file.pages[1]) == "3/2"
        assert one.pages.allocator.nr_pages - one.pages.allocator.free_pages == 2
        two.exit()
        return one.entry(1).write

    assert every_schedule(lab, race) == {False}


def test_a_fault_waits_for_a_page_that_is_being_tried_for_migration(lab):
    """The page is locked and unmapped meanwhile; it comes back writable, and nothing is lost."""

    def race(one):
        shared(one)
        token = touch(one, one.mm, 1, write=True)
        two = one.mm.fork()

        def migrate():
            return one.device.migrate(one.mm, BASE, BASE + 4 * PAGE, flags=1).cpages

        cpages, seen = run(one, (migrate,), (touch, one, two, 1))
        assert seen == token
        assert one.entry(1).write
        assert one.device.live == {}
        two.exit()
        return cpages

    assert every_schedule(lab, race) == {1}


def test_truncation_and_a_touch(lab):
    """A touch finds the page, or is a bus error; afterwards nothing maps what is gone."""

    def race(one):
        file = shared(one)
        file.get()
        touch(one, one.mm, 3, write=True)
        two = one.mm.fork()
        _, found = run(one, (file.truncate, 2), (touch, one, two, 3))
        assert list(file.pages) == []
        assert one.mm.rss == [0, 0, 0]
        assert two.rss == [0, 0, 0]
        two.exit()
        file.close()
        return "SIGBUS" if found == -7 else "read"

    assert every_schedule(lab, race) == {"SIGBUS", "read"}


def test_truncation_and_a_private_write(lab):
    """The second unmapping catches the copy that was made while the page went."""

    def race(one):
        file = one.memory.tmpfile(4)
        one.mm.mmap(BASE, 4 * PAGE, RW, file=file)
        touch(one, one.mm, 3)
        _, found = run(one, (file.truncate, 2), (lambda: touch(one, one.mm, 3, write=True),))
        assert list(file.pages) == []
        assert one.mm.rss == [0, 0, 0]
        file.close()
        return "SIGBUS" if found == -7 else "written"

    assert every_schedule(lab, race) == {"SIGBUS", "written"}


def test_the_last_mapping_goes_while_another_process_has_just_lost_its_own(lab):
    def race(one):
        shared(one)
        token = touch(one, one.mm, 0, write=True)
        two = one.mm.fork()
        three = one.mm.fork()
        _, _, found = run(one, (one.mm.munmap, BASE, 4 * PAGE), (two.munmap, BASE, 4 * PAGE), (touch, one, three, 0))
        assert found == token
        two.exit()
        three.exit()
        assert not one.memory.rmap.has_files
        return one.pages.allocator.nr_pages - one.pages.allocator.free_pages

    assert every_schedule(lab, race) == {1}


def test_one_process_discards_what_another_writes(lab):
    def race(one):
        shared(one)
        touch(one, one.mm, 0)
        two = one.mm.fork()
        _, token = run(one, (one.mm.madvise, BASE, 4 * PAGE, MADV_DONTNEED), (lambda: touch(one, two, 0, write=True),))
        assert touch(one, one.mm, 0) == token
        two.exit()
        return 0

    assert every_schedule(lab, race) == {0}


def test_two_tasks_fault_the_same_huge_page(lab):
    """The loser's page goes back to the pool, and its promise with the winner's."""

    def race(one):
        assert one.memory.set_nr_hugepages(2) == 2
        one.mm.mmap(BASE, 8 * PAGE, RW, flags=VM_HUGETLB)
        first, second = run(one, (touch, one, one.mm, 1), (lambda: touch(one, one.mm, 2, write=True),))
        assert first == 0
        assert touch(one, one.mm, 2) == second
        pool = one.memory.hugetlb
        assert (len(pool.free), pool.reserved) == (1, 0)
        one.mm.munmap(BASE, 8 * PAGE)
        assert one.memory.set_nr_hugepages(0) == 0
        return 0

    assert every_schedule(lab, race) == {0}
