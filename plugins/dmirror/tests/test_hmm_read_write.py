"""hmm-tests.c, as of Linux 7.3.4: a device reads and writes the memory of a process."""

import errno

from gpusvm.mm.api import PROT_NONE, PROT_READ, PROT_WRITE, VM_SHARED
from gpusvm_dmirror import HMM_DMIRROR_READ, HMM_DMIRROR_WRITE
from hmm_harness import NPAGES, NTIMES, PAGE, same


def test_open_close(hmm):
    assert not hmm.fd.closed


def test_anon_read(hmm):
    buffer = hmm.buffer()
    # The first two pages stay zero: one is not there at all, one is the zero page.
    values = hmm.fill(buffer.ptr + 2 * PAGE, NPAGES - 2)
    hmm.mm.mprotect(buffer.ptr, buffer.size, PROT_READ)
    assert hmm.read(buffer.ptr + PAGE, 1) == [0]
    assert hmm.cmd(hmm.fd, HMM_DMIRROR_READ, buffer, NPAGES) == 0
    assert (buffer.cpages, buffer.faults) == (NPAGES, 1)
    assert buffer.mirror[:2].tolist() == [0, 0]
    assert same(buffer.mirror[2:], values)
    hmm.mm.munmap(buffer.ptr, buffer.size)


def test_anon_read_prot(hmm):
    buffer = hmm.buffer()
    values = hmm.fill(buffer.ptr, NPAGES)
    buffer.mirror[:] = minus = hmm.new_data(NPAGES)
    hmm.mm.mprotect(buffer.ptr, buffer.size, PROT_NONE)
    assert hmm.cmd(hmm.fd, HMM_DMIRROR_READ, buffer, NPAGES) == -errno.EFAULT
    hmm.mm.mprotect(buffer.ptr, buffer.size, PROT_READ)
    assert same(hmm.read(buffer.ptr, NPAGES), values)
    assert same(buffer.mirror, minus)
    hmm.mm.munmap(buffer.ptr, buffer.size)


def test_anon_write(hmm):
    buffer = hmm.buffer()
    buffer.mirror[:] = hmm.new_data(NPAGES)
    assert hmm.cmd(hmm.fd, HMM_DMIRROR_WRITE, buffer, NPAGES) == 0
    assert (buffer.cpages, buffer.faults) == (NPAGES, 1)
    assert same(hmm.read(buffer.ptr, NPAGES), buffer.mirror)
    hmm.mm.munmap(buffer.ptr, buffer.size)


def test_anon_write_prot(hmm):
    buffer = hmm.buffer(prot=PROT_READ)
    assert hmm.cmd(hmm.fd, HMM_DMIRROR_READ, buffer, 1) == 0
    assert (buffer.cpages, buffer.faults) == (1, 1)
    buffer.mirror[:] = hmm.new_data(NPAGES)
    assert hmm.cmd(hmm.fd, HMM_DMIRROR_WRITE, buffer, NPAGES) == -errno.EPERM
    assert not hmm.read(buffer.ptr, NPAGES).any()
    # Now allow writing and see that the zero page is replaced.
    hmm.mm.mprotect(buffer.ptr, buffer.size, PROT_READ | PROT_WRITE)
    assert hmm.cmd(hmm.fd, HMM_DMIRROR_WRITE, buffer, NPAGES) == 0
    assert (buffer.cpages, buffer.faults) == (NPAGES, 1)
    assert same(hmm.read(buffer.ptr, NPAGES), buffer.mirror)
    hmm.mm.munmap(buffer.ptr, buffer.size)


def test_anon_read_multiple(hmm):
    for _ in range(NTIMES):
        buffer = hmm.buffer()
        values = hmm.fill(buffer.ptr, NPAGES)
        assert hmm.cmd(hmm.fd, HMM_DMIRROR_READ, buffer, NPAGES) == 0
        assert (buffer.cpages, buffer.faults) == (NPAGES, 1)
        assert same(buffer.mirror, values)
        hmm.mm.munmap(buffer.ptr, buffer.size)


def test_file_read(hmm):
    file = hmm.memory.tmpfile(NPAGES)
    values = [file.pwrite(i) for i in range(NPAGES)]
    buffer = hmm.buffer(prot=PROT_READ, flags=VM_SHARED, file=file)
    assert hmm.cmd(hmm.fd, HMM_DMIRROR_READ, buffer, NPAGES) == 0
    assert (buffer.cpages, buffer.faults) == (NPAGES, 1)
    assert buffer.mirror.tolist() == values
    hmm.mm.munmap(buffer.ptr, buffer.size)
    file.close()


def test_file_write(hmm):
    file = hmm.memory.tmpfile(NPAGES)
    buffer = hmm.buffer(flags=VM_SHARED, file=file)
    buffer.mirror[:] = hmm.new_data(NPAGES)
    assert hmm.cmd(hmm.fd, HMM_DMIRROR_WRITE, buffer, NPAGES) == 0
    assert (buffer.cpages, buffer.faults) == (NPAGES, 1)
    assert same(hmm.read(buffer.ptr, NPAGES), buffer.mirror)
    # The device has written to the file as well.
    assert [file.pread(i) for i in range(NPAGES)] == buffer.mirror.tolist()
    hmm.mm.munmap(buffer.ptr, buffer.size)
    file.close()
