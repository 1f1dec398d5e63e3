"""hmm-tests.c, as of Linux 7.3.4: a device has pages for itself until the CPU wants them back."""

import errno

from gpusvm.mm.api import PROT_READ
from gpusvm_dmirror import HMM_DMIRROR_CHECK_EXCLUSIVE, HMM_DMIRROR_EXCLUSIVE, HMM_DMIRROR_WRITE
from hmm_harness import NPAGES, PAGE, same


def increment(hmm, addr, values, mm=None):
    """Read each page, and write it at once: ptr[i]++ over all of it; what the pages hold then."""
    written = []
    for i, value in enumerate(values.tolist()):
        assert hmm.read(addr + i * PAGE, 1, mm) == [value]
        written += hmm.fill(addr + i * PAGE, 1, mm).tolist()
    return written


def test_exclusive(hmm):
    buffer = hmm.buffer()
    values = hmm.fill(buffer.ptr, NPAGES)
    assert hmm.cmd(hmm.fd, HMM_DMIRROR_EXCLUSIVE, buffer, NPAGES) == 0
    assert buffer.cpages == NPAGES
    assert same(buffer.mirror, values)
    # Fault the pages back to system memory and check them.
    written = increment(hmm, buffer.ptr, values)
    assert hmm.read(buffer.ptr, NPAGES).tolist() == written
    # Atomic access is revoked.
    assert hmm.cmd(hmm.fd, HMM_DMIRROR_CHECK_EXCLUSIVE, buffer, NPAGES) == 0
    hmm.mm.munmap(buffer.ptr, buffer.size)


def test_exclusive_mprotect(hmm):
    buffer = hmm.buffer()
    values = hmm.fill(buffer.ptr, NPAGES)
    assert hmm.cmd(hmm.fd, HMM_DMIRROR_EXCLUSIVE, buffer, NPAGES) == 0
    assert buffer.cpages == NPAGES
    assert same(buffer.mirror, values)
    hmm.mm.mprotect(buffer.ptr, buffer.size, PROT_READ)
    assert hmm.cmd(hmm.fd, HMM_DMIRROR_WRITE, buffer, NPAGES) == -errno.EPERM
    hmm.mm.munmap(buffer.ptr, buffer.size)


def test_exclusive_cow(hmm):
    buffer = hmm.buffer()
    values = hmm.fill(buffer.ptr, NPAGES)
    assert hmm.cmd(hmm.fd, HMM_DMIRROR_EXCLUSIVE, buffer, NPAGES) == 0
    assert buffer.cpages == NPAGES
    child = hmm.mm.fork("child")
    childs, parents = [increment(hmm, buffer.ptr, values, mm) for mm in (child, hmm.mm)]
    assert hmm.read(buffer.ptr, NPAGES, child).tolist() == childs
    assert hmm.read(buffer.ptr, NPAGES).tolist() == parents
    child.exit()
    hmm.mm.munmap(buffer.ptr, buffer.size)
