"""hmm-tests.c, as of Linux 7.3.4: a child has its parent's memory, and a device of its own."""

from gpusvm.mm.api import VM_SHARED
from gpusvm_dmirror import HMM_DMIRROR_SNAPSHOT, HMM_DMIRROR_WRITE, uapi
from hmm_harness import NPAGES, PAGE, PMD, same


def test_anon_write_child(hmm):
    for migrate in (False, True):
        for use_thp in (False, True):
            npages = PMD // PAGE if use_thp else NPAGES
            buffer = hmm.buffer(npages, mapped=2 * npages)
            old_ptr = buffer.ptr
            if use_thp:
                buffer.ptr = hmm.huge(buffer.ptr)
            values = hmm.fill(buffer.ptr, npages)
            buffer.mirror[:] = minus = hmm.new_data(npages)
            if migrate:
                assert hmm.migrate_to_dev(hmm.fd, buffer, npages) == 0
                assert buffer.cpages == npages
            child = hmm.mm.fork("child")
            # The child sees the parent's values.
            assert same(hmm.read(buffer.ptr, npages, child), values)
            if not migrate:
                assert same(buffer.mirror, minus)
            # It needs a mirror of its own memory; upstream that is device 0, whichever the parent has.
            child_fd = hmm.module.open(0, child)
            assert hmm.cmd(child_fd, HMM_DMIRROR_WRITE, buffer, npages) == 0
            assert (buffer.cpages, buffer.faults) == (npages, 1)
            if not migrate:
                assert same(hmm.read(buffer.ptr, npages, child), minus)
            child_fd.close()
            child.exit()
            # The parent's buffer did not change.
            assert same(hmm.read(buffer.ptr, npages), values)
            hmm.mm.munmap(old_ptr, buffer.size)


def test_hmm_cow_in_device(hmm):
    buffer = hmm.buffer(4)
    hmm.fill(buffer.ptr, 4)
    assert hmm.migrate_to_dev(hmm.fd, buffer, 4) == 0
    assert buffer.cpages == 4
    child = hmm.mm.fork("child")
    # The parent gets copies in system memory; device-private pages migrate there first.
    values = hmm.fill(buffer.ptr, 4)
    child.exit()
    assert hmm.cmd(hmm.fd, HMM_DMIRROR_SNAPSHOT, buffer, 4) == 0
    assert buffer.cpages == 4
    assert buffer.m.tolist() == [uapi.PROT_WRITE] * 4
    assert same(hmm.read(buffer.ptr, 4), values)
    hmm.mm.munmap(buffer.ptr, buffer.size)


def test_anon_write_child_shared(hmm):
    buffer = hmm.buffer(flags=VM_SHARED)
    values = hmm.fill(buffer.ptr, NPAGES)
    buffer.mirror[:] = minus = hmm.new_data(NPAGES)
    child = hmm.mm.fork("child")
    assert same(hmm.read(buffer.ptr, NPAGES, child), values)
    # The child needs a mirror of its own memory.
    child_fd = hmm.module.open(0, child)
    assert hmm.cmd(child_fd, HMM_DMIRROR_WRITE, buffer, NPAGES) == 0
    assert (buffer.cpages, buffer.faults) == (NPAGES, 1)
    assert same(hmm.read(buffer.ptr, NPAGES, child), minus)
    child_fd.close()
    child.exit()
    # The parent's buffer did change.
    assert same(hmm.read(buffer.ptr, NPAGES), minus)
    hmm.mm.munmap(buffer.ptr, buffer.size)
