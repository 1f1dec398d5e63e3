"""hmm-tests.c, as of Linux 7.3.4: memory goes to a device and comes home."""

import errno

from gpusvm.mm.api import PROT_NONE, PROT_READ, PROT_WRITE, VM_SHARED
from gpusvm_dmirror import HMM_DMIRROR_READ, HMM_DMIRROR_RELEASE
from hmm_harness import NPAGES, NTIMES, PAGE, same


def test_migrate(hmm):
    buffer = hmm.buffer()
    values = hmm.fill(buffer.ptr, NPAGES)
    assert hmm.migrate_to_dev(hmm.fd, buffer, NPAGES) == 0
    assert buffer.cpages == NPAGES
    assert same(buffer.mirror, values)
    hmm.mm.munmap(buffer.ptr, buffer.size)


def test_migrate_file_private(hmm):
    file = hmm.memory.tmpfile(NPAGES)
    buffer = hmm.buffer(file=file)
    # Every page is written, so that all are private copies.
    values = hmm.fill(buffer.ptr, NPAGES)
    assert hmm.migrate_to_dev(hmm.fd, buffer, NPAGES) == 0
    assert buffer.cpages == NPAGES
    assert same(buffer.mirror, values)
    hmm.mm.munmap(buffer.ptr, buffer.size)
    file.close()


def test_migrate_fault(hmm):
    buffer = hmm.buffer()
    values = hmm.fill(buffer.ptr, NPAGES)
    assert hmm.migrate_to_dev(hmm.fd, buffer, NPAGES) == 0
    assert buffer.cpages == NPAGES
    assert same(buffer.mirror, values)
    # Half of the pages come home and go again; the others are there already.
    assert same(hmm.read(buffer.ptr, NPAGES // 2), values[: NPAGES // 2])
    assert hmm.migrate_to_dev(hmm.fd, buffer, NPAGES) == 0
    assert buffer.cpages == NPAGES
    assert same(buffer.mirror, values)
    hmm.mm.munmap(buffer.ptr, buffer.size)


def test_migrate_release(hmm):
    buffer = hmm.buffer()
    values = hmm.fill(buffer.ptr, NPAGES)
    assert hmm.migrate_to_dev(hmm.fd, buffer, NPAGES) == 0
    assert buffer.cpages == NPAGES
    assert same(buffer.mirror, values)
    assert hmm.cmd(hmm.fd, HMM_DMIRROR_RELEASE, buffer, NPAGES) == 0
    assert same(hmm.read(buffer.ptr, NPAGES // 2), values[: NPAGES // 2])
    hmm.mm.munmap(buffer.ptr, buffer.size)


def test_migrate_shared(hmm):
    buffer = hmm.buffer(flags=VM_SHARED)
    assert hmm.migrate_to_dev(hmm.fd, buffer, NPAGES) == -errno.ENOENT
    hmm.mm.munmap(buffer.ptr, buffer.size)


def test_migrate_mixed(hmm2):
    buffer = hmm2.buffer(6, PROT_NONE)
    p = buffer.ptr
    assert hmm2.migrate_to_dev(hmm2.fd1, buffer, 6) == -errno.EINVAL
    # A hole after the first page.
    hmm2.mm.munmap(p + PAGE, PAGE)
    assert hmm2.migrate_to_dev(hmm2.fd1, buffer, 3) == -errno.EINVAL
    # Page 2 is a read-only zero page, page 3 is read-only, 4 and 5 are read-write.
    hmm2.mm.mprotect(p + 2 * PAGE, PAGE, PROT_READ)
    assert hmm2.read(p + 2 * PAGE, 1) == [0]
    hmm2.mm.mprotect(p + 3 * PAGE, PAGE, PROT_READ | PROT_WRITE)
    hmm2.fill(p + 3 * PAGE, 1)
    hmm2.mm.mprotect(p + 3 * PAGE, PAGE, PROT_READ)
    hmm2.mm.mprotect(p + 4 * PAGE, 2 * PAGE, PROT_READ | PROT_WRITE)
    hmm2.fill(p + 4 * PAGE, 2)
    buffer.ptr = p + 2 * PAGE
    assert hmm2.migrate_to_dev(hmm2.fd1, buffer, 4) == 0
    assert buffer.cpages == 4
    # Page 5 does not go to device 0, as it is on device 1.
    buffer.ptr = p + 5 * PAGE
    assert hmm2.migrate_to_dev(hmm2.fd0, buffer, 1) == -errno.ENOENT
    hmm2.mm.munmap(p, buffer.size)


def test_migrate_multiple(hmm):
    for _ in range(NTIMES):
        buffer = hmm.buffer()
        values = hmm.fill(buffer.ptr, NPAGES)
        assert hmm.migrate_to_dev(hmm.fd, buffer, NPAGES) == 0
        assert buffer.cpages == NPAGES
        assert same(buffer.mirror, values)
        if hmm.coherent:
            assert hmm.migrate_to_sys(hmm.fd, buffer, NPAGES) == 0
            assert buffer.cpages == NPAGES
        assert same(hmm.read(buffer.ptr, NPAGES), values)
        hmm.mm.munmap(buffer.ptr, buffer.size)


def test_double_map(hmm2):
    buffer = hmm2.buffer(6)
    values = hmm2.fill(buffer.ptr, 6)
    hmm2.mm.mprotect(buffer.ptr, buffer.size, PROT_READ)
    for fd in hmm2.fds:
        assert hmm2.cmd(fd, HMM_DMIRROR_READ, buffer, 6) == 0
        assert (buffer.cpages, buffer.faults) == (6, 1)
        assert same(buffer.mirror, values)
    # Migrate to device 1, and read from device 0.
    assert hmm2.migrate_to_dev(hmm2.fd1, buffer, 6) == 0
    assert buffer.cpages == 6
    assert hmm2.cmd(hmm2.fd0, HMM_DMIRROR_READ, buffer, 6) == 0
    assert (buffer.cpages, buffer.faults) == (6, 1)
    assert same(buffer.mirror, values)
    hmm2.mm.munmap(buffer.ptr, buffer.size)
