"""The ioctls of a dmirror file, as methods."""

import errno

import pytest
from gpusvm.errors import KernelError
from gpusvm.gpu import ATOMIC
from gpusvm.mm.api import PROT_NONE, PROT_READ, PROT_WRITE
from gpusvm_dmirror.uapi import (
    PROT_DEV_PRIVATE_LOCAL,
    PROT_PMD,
)
from gpusvm_dmirror.uapi import PROT_WRITE as SNAP_WRITE

K, M = 1 << 10, 1 << 20
PAGE, PMD = 4 * K, 2 * M


def number(function, *arguments):
    with pytest.raises(KernelError) as error:
        function(*arguments)
    return error.value.errno


def tokens(b, addr, pages):
    return [b.memory.contents.expected(b.mm, addr // PAGE + i) for i in range(pages)]


def test_read_and_write_count_pages_and_fault_rounds(bench):
    b = bench(thp="never")
    addr = b.map(PMD)
    b.cpu_write(addr + 2 * PAGE, 510)
    done = b.vm.ioctl.read(addr, 512)
    assert (done.cpages, done.faults) == (512, 1)
    assert done.tokens.tolist() == tokens(b, addr, 512)
    done = b.vm.ioctl.write(addr, 512)
    assert (done.cpages, done.faults) == (512, 1)  # the first two were mapped read-only, the fault covers the rest
    assert done.tokens.tolist() == tokens(b, addr, 512)
    assert b.vm.ioctl.write(addr, 512).faults == 0


def test_permissions_of_the_process_hold_for_the_device(bench):
    b = bench(thp="never")
    addr = b.map(4 * PAGE, prot=PROT_READ)
    io = b.vm.ioctl
    assert io.read(addr, 1).faults == 1
    assert number(io.write, addr, 4) == errno.EPERM
    b.memory.mprotect(b.mm, addr, 4 * PAGE, PROT_READ | PROT_WRITE)
    assert io.write(addr, 4).faults == 1
    b.memory.mprotect(b.mm, addr, 4 * PAGE, PROT_NONE)
    assert number(io.read, addr, 4) == errno.EFAULT
    assert number(io.read, addr - PMD, 1) == errno.EFAULT


def test_migrate_to_dev_reads_back_and_migrate_to_sys_counts(bench):
    b = bench(thp="never")
    addr = b.map(8 * PAGE)
    b.cpu_write(addr, 8)
    io = b.vm.ioctl
    done = io.migrate_to_dev(addr, 8)
    assert (done.cpages, done.faults, done.tokens.tolist()) == (8, 0, tokens(b, addr, 8))
    assert io.migrate_to_sys(addr, 8).cpages == 8
    assert io.migrate_to_sys(addr, 8).cpages == 0
    assert number(io.migrate_to_sys, addr - PMD, 1) == errno.EINVAL


def test_a_2_mib_folio_counts_once_on_its_way_home(bench):
    b = bench()
    addr = b.map(PMD)
    b.cpu_write(addr, 512)
    io = b.vm.ioctl
    assert io.migrate_to_dev(addr, 512).cpages == 512
    assert io.migrate_to_sys(addr, 512).cpages == 1


def test_migrate_to_sys_without_memory_changes_nothing(bench):
    b = bench(thp="never")
    addr = b.map(4 * PAGE)
    b.cpu_write(addr, 4)
    b.vm.populate(addr, addr + 4 * PAGE)
    b.kernel.arm("alloc.pages")
    assert number(b.vm.ioctl.migrate_to_sys, addr, 4) == errno.ENOMEM
    assert b.device_pages(addr, 4) == 4


def test_a_page_that_did_not_move_is_missing_from_the_answer(bench):
    b = bench(thp="never")
    addr = b.map(2 * PAGE)
    b.cpu_write(addr, 2)
    held = b.mm.page_table.entry(addr).pfn
    b.memory.folio_get(held)
    assert number(b.vm.ioctl.migrate_to_dev, addr, 2) == errno.ENOENT
    assert b.device_pages(addr, 2) == 1
    b.memory.folio_put(held)


def test_exclusive_pages_until_the_cpu_takes_them_back(bench):
    b = bench(thp="never")
    addr = b.map(8 * PAGE)
    b.cpu_write(addr, 8)
    io = b.vm.ioctl
    assert io.exclusive(addr, 8).tokens.tolist() == tokens(b, addr, 8)
    assert set(b.vm.page_table.perms(addr // PAGE, addr // PAGE + 8) & ATOMIC) == {ATOMIC}
    assert number(io.check_exclusive, addr, 8) == errno.EPERM
    b.cpu_write(addr, 8)
    assert io.check_exclusive(addr, 8).cpages == 0


def test_an_exclusive_page_has_not_the_tag_that_write_wants(bench):
    b = bench(thp="never")
    addr = b.map(PAGE)
    b.cpu_write(addr)
    io = b.vm.ioctl
    io.exclusive(addr, 1)
    assert io.read(addr, 1).faults == 0
    assert io.write(addr, 1).faults == 1
    assert io.check_exclusive(addr, 1).cpages == 0


def test_after_mprotect_an_exclusive_page_cannot_be_written(bench):
    b = bench(thp="never")
    addr = b.map(4 * PAGE)
    b.cpu_write(addr, 4)
    b.vm.ioctl.exclusive(addr, 4)
    b.memory.mprotect(b.mm, addr, 4 * PAGE, PROT_READ)
    assert number(b.vm.ioctl.write, addr, 4) == errno.EPERM


def test_snapshot_marks_2_mib_mappings(bench):
    b = bench()
    addr = b.map(PMD)
    b.cpu_write(addr)
    assert set(b.vm.ioctl.snapshot(addr, 512)) == {SNAP_WRITE | PROT_PMD}
    b.vm.populate(addr, addr + PMD)
    assert set(b.vm.ioctl.snapshot(addr, 512)) == {PROT_DEV_PRIVATE_LOCAL | SNAP_WRITE | PROT_PMD}
