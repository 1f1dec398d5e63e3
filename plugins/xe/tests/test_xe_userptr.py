"""Memory that a program binds by itself on xe: got like a range's, never migrated, unmapped whole."""

import errno
from contextlib import nullcontext

import pytest
from gpusvm.check import Checker
from gpusvm.conformance.mutants import load
from gpusvm.driver import ACCESS_ATOMIC, ACCESS_WRITE
from gpusvm.driver.operations import OperationHost, PageWords
from gpusvm.errors import KernelError, ModelError
from gpusvm.explore import random_walk
from gpusvm.gpu import ATOMIC, READ, REMOTE, WRITE
from gpusvm.mm import Geometry
from gpusvm.mm.api import MADV_DONTNEED
from gpusvm.testing import Bench, Fault
from gpusvm_xe.operations import OPERATIONS
from gpusvm_xe.plugin import INFO
from gpusvm_xe.userptr import XeUserptr

K, M = 1 << 10, 1 << 20
PAGE, PMD = 4 * K, 2 * M


def perms(b, addr, pages):
    return set(b.vm.page_table.perms(addr // PAGE, addr // PAGE + pages).tolist())


@pytest.fixture
def bound(bench):
    """Return a bench with 2 MiB of written memory, the upper half of which is bound by itself, its address and it."""

    def make(**options):
        b = bench(thp="never", **options)
        addr = b.map(PMD)
        b.cpu_write(addr, 512)
        userptr = b.vm.bind_userptr(addr + M, addr + PMD)
        b.kernel.tracer.on = True
        return b, addr + M, userptr

    return make


def rows(b):
    return b.driver.device.dma.mapped_rows


def test_its_pages_are_got_when_it_is_bound_and_mapped_at_the_first_fault(bound):
    b, addr, userptr = bound()
    assert (rows(b), userptr.pages.has_dma_mapping) == (256, True)
    assert perms(b, addr, 256) == {0}
    assert b.gpu_write(addr + 7 * PAGE) == 1
    assert perms(b, addr, 256) == {READ | WRITE | REMOTE}
    assert b.device_pages(addr, 256) == 0
    assert b.gpu_read(addr, 256) == 0
    found = b.driver.describe()["gt_stats"]["gpu0 gt0"]
    assert (found["vma_pagefault_count"], found["vma_pagefault_kb"], found["svm_pagefault_count"]) == (1, 1024, 0)


def test_it_may_be_mixed_and_is_mapped_where_it_is(bench):
    b = bench(thp="never")
    addr = b.map(PMD)
    b.cpu_write(addr, 512)
    b.driver.tiles[0].dpagemap.populate_mm(addr, addr + M, b.mm, 0)
    b.vm.bind_userptr(addr, addr + PMD)
    assert b.gpu_write(addr, 512) == 1
    assert perms(b, addr, 256) == {READ | WRITE | ATOMIC}
    assert perms(b, addr + M, 256) == {READ | WRITE | REMOTE}
    assert b.device_pages(addr, 512) == 256


def test_an_atomic_is_refused_as_it_never_moves(bound):
    b, addr, _ = bound()
    assert b.fault(addr, ACCESS_ATOMIC).errno == errno.EACCES
    assert perms(b, addr, 256) == {0}


def test_a_change_of_one_page_takes_all_of_it_away_from_the_gpu_and_its_dma(bound, events):
    b, addr, userptr = bound()
    b.fault(addr)
    b.mm.munmap(addr + 5 * PAGE, PAGE)
    assert perms(b, addr, 256) == {0}
    assert (rows(b), userptr.pages.has_dma_mapping) == (0, False)
    assert [event[0] for event in events(b, "tlb_invalidate")] == ["gpu0 gt0", "gpu0 gt1"]
    assert b.fault(addr).errno == errno.EFAULT  # it has a hole now
    assert b.vm.get_property(0) == 48


def test_after_an_invalidation_the_next_fault_gets_the_pages_again(bound):
    b, addr, userptr = bound()
    b.fault(addr)
    b.mm.mprotect(addr, PAGE, 1)
    b.mm.mprotect(addr, PAGE, 3)
    assert not userptr.pages.has_dma_mapping
    assert b.fault(addr, ACCESS_WRITE).errno == 0
    assert perms(b, addr, 256) == {READ | WRITE | REMOTE}
    assert rows(b) == 256


def test_what_was_never_bound_is_unmapped_from_dma_without_a_message(bound, events):
    b, addr, userptr = bound()
    b.mm.mprotect(addr, PAGE, 1)
    assert (rows(b), userptr.pages.has_dma_mapping) == (0, False)
    assert events(b, "tlb_invalidate") == []


def test_an_invalidation_before_the_bind_gets_the_pages_anew(bound):
    b, addr, userptr = bound()
    b.mm.mprotect(addr, PAGE, 1)
    b.mm.mprotect(addr, PAGE, 3)
    pin = userptr.pin_pages
    times = []

    def race():
        pin()
        times.append(b.kernel.now_ns)
        if len(times) == 1:
            b.kernel.spawn(b.mm.madvise, addr, PAGE, MADV_DONTNEED, name="dontneed").join()

    userptr.pin_pages = race
    assert b.fault(addr).errno == 0
    assert (len(times), b.kernel.stats.retries) == (2, 1)
    assert perms(b, addr, 256) == {READ | WRITE | REMOTE}


def test_who_waits_for_the_tlbs_of_one_has_told_all_the_others(bench, monkeypatch):
    """Two address spaces with the same memory: both send their messages before either is waited for."""
    b = bench(thp="never")
    addr = b.map(PMD)
    b.cpu_write(addr, 512)
    other = b.machine.open_file(b.process, 0, 1)
    for vm in (b.vm, other):
        vm.bind_userptr(addr, addr + PMD)
    b.fault(addr)
    fault = Fault(addr, ACCESS_WRITE, time_ns=b.kernel.now_ns)
    other.faults.submit([fault])
    b.kernel.sleep_ns(10_000_000)
    assert fault.errno == 0
    log = []
    for name in ("invalidate_start", "invalidate_finish"):
        real = getattr(XeUserptr, name)
        monkeypatch.setattr(
            XeUserptr, name, lambda self, *how, real=real, name=name: log.append(name) or real(self, *how)
        )
    b.mm.madvise(addr, PAGE, MADV_DONTNEED)
    assert log == ["invalidate_start"] * 2 + ["invalidate_finish"] * 2
    assert rows(b) == 0


def test_ranges_do_not_reach_into_it_and_it_is_not_bound_over_ranges(bound):
    b, addr, _ = bound()
    b.fault(addr - PAGE)
    assert [(r.start, r.end) for r in b.vm.gpusvm.ranges(addr - M, addr + M)] == [(addr - 64 * K, addr)]
    for start, end in ((addr - M, addr), (addr, addr + PAGE)):
        with pytest.raises(KernelError) as caught:
            b.vm.bind_userptr(start, end)
        assert caught.value.errno == errno.EBUSY


@pytest.mark.parametrize(("error", "answer"), [(errno.EFAULT, errno.EFAULT), (errno.EBUSY, errno.ENOMEM)])
def test_what_cannot_be_got_is_not_bound(bench, error, answer):
    b = bench()
    addr = b.map(PMD)

    def fail(*_):
        raise KernelError(error, "no")

    get_pages, b.vm.gpusvm.get_pages = b.vm.gpusvm.get_pages, fail
    with pytest.raises(KernelError) as caught:
        b.vm.bind_userptr(addr, addr + PMD)
    b.vm.gpusvm.get_pages = get_pages
    assert caught.value.errno == answer
    assert b.vm.userptrs == []


def test_a_program_binds_it_by_the_operation_of_scenarios(bench):
    b = bench(thp="never")
    addr = b.map(PMD)
    b.cpu_write(addr, 512)
    host = OperationHost(
        memory=b.memory,
        mm=b.mm,
        drivers=[b.driver],
        vms=[b.vm],
        words=PageWords(b.memory),
        address=lambda _, page: addr + page * PAGE,
    )
    OPERATIONS.start(host).execute("userptr", [0, 0, 3, 5])
    assert [(each.start, each.end) for each in b.vm.userptrs] == [(addr + 3 * PAGE, addr + 8 * PAGE)]


@pytest.fixture
def checked(bench):
    """Return a bench with 2 MiB that the program has bound by itself before a checker, whose findings it collects."""
    b = bench(thp="never")
    checker = Checker(b.memory, collect=True).attach()
    addr = b.map(PMD)
    b.cpu_write(addr, 512)
    b.vm.bind_userptr(addr, addr + PMD)
    yield b, addr, checker
    checker.detach()


def found(checker):
    checker.flush()
    said = {violation.what for violation in checker.findings}
    checker.findings.clear()
    return said


FREE = {"gpu0 has a free page mapped for DMA"}
BOUND = {"a device has a free page mapped"}


@pytest.mark.parametrize(("mutant", "said"), [(None, set()), ("XU-02", FREE)])
def test_an_invalidation_leaves_nothing_mapped_for_dma(checked, mutant, said):
    b, addr, checker = checked
    b.fault(addr)
    with load(mutant).active() if mutant else nullcontext():
        b.mm.munmap(addr, PAGE)
    assert found(checker) == said


@pytest.mark.parametrize(("mutant", "said"), [(None, set()), ("XU-01", FREE | BOUND)])
def test_what_a_walk_found_before_an_invalidation_is_not_mapped_after_it(checked, monkeypatch, mutant, said):
    b, addr, checker = checked
    b.mm.madvise(addr, PAGE, MADV_DONTNEED)
    walk = b.memory.hmm_range_fault_unlocked_timeout

    def dropped_since(*how):
        walk(*how)
        monkeypatch.undo()
        b.mm.madvise(addr, PAGE, MADV_DONTNEED)

    monkeypatch.setattr(b.memory, "hmm_range_fault_unlocked_timeout", dropped_since)
    with load(mutant).active() if mutant else nullcontext():
        assert b.fault(addr).errno == 0
    assert found(checker) == said


def test_a_prefetch_of_it_is_not_modelled(bound):
    b, addr, _ = bound()
    with pytest.raises(ModelError) as caught:
        b.vm.populate(addr - M, addr + M)
    assert str(caught.value) == (
        f"xe: prefetch of [{addr - M:#x}, {addr + M:#x}), a part of which is userptr, is not modelled"
    )


@pytest.mark.parametrize("tasks", [("munmap", "fault"), ("munmap", "close"), ("fault", "close", "munmap")])
def test_it_may_be_unmapped_used_and_closed_at_any_time(tasks):
    def program(choices):
        b = Bench(
            "xe", drivers={"xe": INFO}, vram_bytes=32 << 12, geometry=Geometry(pmd_order=2), mode="explored",
            choices=choices, thp="never",
        )  # fmt: skip
        addr = b.map(4 << 12)
        b.cpu_write(addr, 4)
        b.vm.bind_userptr(addr, addr + (4 << 12))
        b.fault(addr)
        todo = {
            "munmap": lambda: b.mm.munmap(addr, 1 << 12),
            "fault": lambda: b.fault(addr + (1 << 12)),
            "close": b.vm.close,
        }
        running = [b.kernel.spawn(todo[name], name=name) for name in tasks]
        for task in running:
            task.join()
        b.close()

    assert list(random_walk(program, schedules=40)) == []
