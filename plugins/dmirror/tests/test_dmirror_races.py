"""What commands, faults and the end of a device do to each other, under many orders of the tasks."""

from contextlib import suppress

import pytest
from gpusvm.errors import KernelError
from gpusvm.explore import random_walk
from gpusvm.mm.api import PROT_READ, PROT_WRITE
from gpusvm.mm.contents import describe_token
from gpusvm_dmirror.tunables import DmirrorQuirks
from hmm_harness import PAGE, Hmm, same

SCHEDULES = 30
N = 8  # pages in a PMD of the small machine

minors = pytest.mark.parametrize("minor", [0, 2], ids=["private", "coherent"])


def explore(minor, setup, *tasks, after=lambda *_: None, quirk="fixed"):
    """Run `tasks` next to each other under many orders; each gets the machine and what `setup` returned.

    `after` looks at the result. The machine is checked as after every hmm-test.
    """

    def program(choices):
        hmm = Hmm(minor, mode="explored", choices=choices, small=True, quirks=DmirrorQuirks(own_migrate_seq=quirk))
        if quirk == "as_written":
            hmm.checker.detach()  # it says what the contents say, earlier
        state = setup(hmm)
        running = [hmm.kernel.spawn(task, hmm, state, name=task.__name__) for task in tasks]
        for task in running:
            task.join()
        after(hmm, state)
        hmm.teardown()

    assert list(random_walk(program, schedules=SCHEDULES)) == []


def on_device(npages, *, huge=False):
    def setup(hmm):
        buffer = hmm.buffer(npages, mapped=2 * npages)
        if huge:
            buffer.ptr = hmm.huge(buffer.ptr)
        values = hmm.fill(buffer.ptr, npages)
        assert hmm.migrate_to_dev(hmm.fd, buffer, npages) == 0
        return buffer, values

    return setup


def in_memory(hmm):
    buffer = hmm.buffer(6)
    return buffer, hmm.fill(buffer.ptr, 6)


def read_all(hmm, state):
    buffer, values = state
    assert same(hmm.read(buffer.ptr, len(values)), values)


def read_backwards(hmm, state):
    buffer, values = state
    for i in reversed(range(len(values))):
        assert hmm.read(buffer.ptr + i * PAGE, 1) == [values[i]]


def close_another(hmm, state):
    hmm.module.open(hmm.module.devices.index(hmm.fd.device), hmm.mm).close()


def release(hmm, state):
    hmm.fd.ioctl.release()


def to_dev(hmm, state):
    buffer, values = state
    # A page that is in somebody's hands does not go.
    with suppress(KernelError):
        hmm.fd.ioctl.migrate_to_dev(buffer.ptr, len(values))


def to_sys(hmm, state):
    buffer, values = state
    hmm.fd.ioctl.migrate_to_sys(buffer.ptr, len(values))


def device_read_anything(hmm, state):
    buffer, values = state
    hmm.fd.ioctl.read(buffer.ptr, len(values))


def device_read(hmm, state):
    buffer, values = state
    assert same(hmm.fd.ioctl.read(buffer.ptr, len(values)).tokens, values)


def protect(hmm, state):
    buffer, values = state
    hmm.mm.mprotect(buffer.ptr, len(values) * PAGE, PROT_READ)
    hmm.mm.mprotect(buffer.ptr, len(values) * PAGE, PROT_READ | PROT_WRITE)


def fork(hmm, state):
    child = hmm.mm.fork("child")
    buffer, values = state
    assert same(hmm.read(buffer.ptr, len(values), child), values)
    child.exit()


def write_all(hmm, state):
    buffer, values = state
    hmm.fill(buffer.ptr, len(values))


def device_write(hmm, state):
    buffer, values = state
    # As written the device cannot write to its own pages that have become read-only (mm S2).
    with suppress(KernelError):
        hmm.fd.ioctl.write(buffer.ptr, len(values))


def both_read(hmm, state):
    """Let the CPU and the device read what the last writer has left, whoever that was."""
    buffer, values = state
    by_device = hmm.fd.ioctl.read(buffer.ptr, len(values)).tokens
    assert same(by_device, hmm.read(buffer.ptr, len(values)))
    assert same(by_device, hmm.fd.ioctl.read(buffer.ptr, len(values)).tokens)


@pytest.mark.parametrize("huge", [False, True], ids=["small", "huge"])
def test_two_cpus_fault_the_same_device_pages(huge):
    explore(0, on_device(N if huge else 6, huge=huge), read_all, read_backwards)


@minors
@pytest.mark.parametrize("end", [close_another, release])
def test_the_device_is_evacuated_while_cpus_use_its_pages(minor, end):
    explore(minor, on_device(6), read_all, end, read_backwards, after=both_read)


@pytest.mark.parametrize("end", [close_another, release])
def test_the_device_is_evacuated_while_cpus_use_its_huge_page(end):
    explore(0, on_device(N, huge=True), end, read_backwards, after=both_read)


@minors
@pytest.mark.parametrize("end", [close_another, release])
def test_a_child_is_made_while_the_device_is_evacuated(minor, end):
    explore(minor, on_device(6), fork, end, after=both_read)


@minors
def test_pages_go_and_come_while_the_device_reads_them(minor):
    explore(minor, on_device(6), device_read, to_sys, to_dev, device_read, after=both_read)


@minors
@pytest.mark.parametrize("huge", [False, True], ids=["small", "huge"])
def test_cpu_and_device_write_while_pages_go_and_come(minor, huge):
    explore(minor, on_device(N, huge=huge), write_all, to_sys, device_write, to_dev, after=both_read)


@pytest.mark.parametrize(("quirk", "lost"), [("as_written", True), ("fixed", False)])
def test_as_written_a_device_fault_next_to_a_migration_keeps_the_pages_that_have_gone(quirk, lost):
    found = set()

    def look(hmm, state):
        contents = hmm.memory.contents
        found.update(describe_token(mismatch.found) for mismatch in contents.mismatches)
        contents.mismatches.clear()
        contents.mismatch_count = 0

    explore(0, in_memory, device_read_anything, to_dev, after=look, quirk=quirk)
    assert found == ({"freed memory"} if lost else set())


@minors
@pytest.mark.parametrize("end", [close_another, release])
def test_cpu_and_device_write_while_the_device_is_evacuated(minor, end):
    explore(minor, on_device(6), write_all, end, device_write, after=both_read)


@minors
def test_pages_go_to_the_device_while_it_is_released(minor):
    explore(minor, on_device(6), to_sys, to_dev, release, after=both_read)


@minors
def test_protection_changes_while_pages_move(minor):
    explore(minor, on_device(6), protect, to_sys, to_dev, device_read, after=both_read)
