"""HMM_DMIRROR_FLAG_FAIL_ALLOC: the next allocation of a file fails, once, whichever way pages go."""

import errno

import pytest
from gpusvm_dmirror import HMM_DMIRROR_FLAG_FAIL_ALLOC, HMM_DMIRROR_FLAGS, uapi
from hmm_harness import PAGE, PMD, Hmm, same

N = PMD // PAGE
MIGRATE_OWN, CLEAR = (6, True), (1, False)


@pytest.fixture(params=[0, 2], ids=["private", "coherent"])
def hmm(request):
    made = Hmm(request.param)
    yield made
    made.teardown()


@pytest.fixture
def private():
    made = Hmm(0)
    yield made
    made.teardown()


def fail_alloc(hmm, fd=None):
    buffer = hmm.buffer(1)
    assert hmm.cmd(fd or hmm.fd, HMM_DMIRROR_FLAGS, buffer, HMM_DMIRROR_FLAG_FAIL_ALLOC) == 0
    hmm.mm.munmap(buffer.ptr, buffer.size)


def filled(hmm, npages, *, huge=False):
    buffer = hmm.buffer(npages, mapped=2 * npages)
    if huge:
        buffer.ptr = hmm.huge(buffer.ptr)
    return buffer, hmm.fill(buffer.ptr, npages)


def events(fd):
    """Note what the file's notifier is told from now on: (event, from itself) and the number of pages."""
    told = []
    invalidate = fd.invalidate

    def listening(sub, range_, seq):
        told.append((range_.event, range_.owner is fd.device, (range_.end - range_.start) // PAGE))
        return invalidate(sub, range_, seq)

    fd.invalidate = listening
    return told


def test_one_page_is_left_where_it_is_on_the_way_to_the_device(hmm):
    buffer, values = filled(hmm, 4)
    fail_alloc(hmm)
    assert hmm.migrate_to_dev(hmm.fd, buffer, 4) == -errno.ENOENT
    local = 0x42 if hmm.coherent else 0x22
    assert list(hmm.fd.ioctl.snapshot(buffer.ptr, 4)) == [2, local, local, local]
    assert hmm.migrate_to_dev(hmm.fd, buffer, 4) == 0
    assert same(buffer.mirror, values)


def test_a_2_mib_page_goes_to_the_device_in_single_pages(hmm):
    buffer, values = filled(hmm, N, huge=True)
    fail_alloc(hmm)
    assert hmm.migrate_to_dev(hmm.fd, buffer, N) == 0
    assert same(buffer.mirror, values)
    local = 0x42 if hmm.coherent else 0x22
    assert set(hmm.fd.ioctl.snapshot(buffer.ptr, N)) == {local}
    assert len(hmm.fd.device.pool.chunks) == 1


def test_small_pages_stay_on_the_device_when_the_first_page_of_memory_fails(hmm):
    buffer, values = filled(hmm, 4)
    assert hmm.migrate_to_dev(hmm.fd, buffer, 4) == 0
    fail_alloc(hmm)
    assert hmm.migrate_to_sys(hmm.fd, buffer, 4) == -errno.ENOMEM
    local = 0x42 if hmm.coherent else 0x22
    assert list(hmm.fd.ioctl.snapshot(buffer.ptr, 4)) == [local] * 4
    assert hmm.migrate_to_sys(hmm.fd, buffer, 4) == 0
    assert buffer.cpages == 4
    assert same(hmm.read(buffer.ptr, 4), values)


def test_a_2_mib_page_comes_home_in_single_pages(private):
    buffer, values = filled(private, N, huge=True)
    assert private.migrate_to_dev(private.fd, buffer, N) == 0
    fail_alloc(private)
    assert private.migrate_to_sys(private.fd, buffer, N) == 0
    assert set(private.fd.ioctl.snapshot(buffer.ptr, N)) == {uapi.PROT_WRITE}
    assert same(private.read(buffer.ptr, N), values)


def test_a_cpu_fault_on_a_small_page_is_simply_taken_again(private):
    buffer, values = filled(private, 4)
    assert private.migrate_to_dev(private.fd, buffer, 4) == 0
    fail_alloc(private)
    told = events(private.fd)
    assert same(private.read(buffer.ptr, 1), values[:1])
    assert told == [(*MIGRATE_OWN, 1)] * 2
    assert private.fd.flags == 0


def test_a_cpu_fault_on_a_2_mib_page_brings_one_page_home(private):
    buffer, values = filled(private, N, huge=True)
    assert private.migrate_to_dev(private.fd, buffer, N) == 0
    fail_alloc(private)
    told = events(private.fd)
    assert same(private.read(buffer.ptr, 1), values[:1])
    # The block is split where it is mapped, the folio is still whole (mm Q10); then the fault takes the PTE way.
    assert told[:2] == [(*MIGRATE_OWN, N), (*CLEAR, N)]
    assert told[2:] == [(*MIGRATE_OWN, 1), (*CLEAR, N)]
    assert list(private.fd.ioctl.snapshot(buffer.ptr, N)) == [2] + [0x22] * (N - 1)
    assert same(private.read(buffer.ptr, N), values)


def test_it_is_the_file_that_put_the_page_there_whose_flags_a_cpu_fault_obeys(private):
    other = private.module.open(0, private.mm)
    buffer, values = filled(private, 4)
    assert private.migrate_to_dev(other, buffer, 4) == 0
    fail_alloc(private)
    assert same(private.read(buffer.ptr, 1), values[:1])
    assert (private.fd.flags, other.flags) == (1, 0)
    fail_alloc(private, other)
    assert same(private.read(buffer.ptr + PAGE, 1), values[1:2])
    assert (private.fd.flags, other.flags) == (1, 0)
    other.close()


def test_the_flags_cannot_be_cleared_as_no_pages_are_refused(private):
    buffer, _ = filled(private, 4)
    fail_alloc(private)
    assert private.cmd(private.fd, HMM_DMIRROR_FLAGS, buffer, 0) == -errno.EINVAL
    assert private.cmd(private.fd, HMM_DMIRROR_FLAGS, buffer, 2) == 0
    assert private.fd.flags == 2
    assert private.migrate_to_dev(private.fd, buffer, 4) == 0
    assert private.fd.flags == 2
