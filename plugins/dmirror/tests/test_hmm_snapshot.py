"""hmm-tests.c, as of Linux 7.3.4: a device looks at how a process maps its memory, without faulting."""

from gpusvm.mm.api import PROT_NONE, PROT_READ, PROT_WRITE
from gpusvm_dmirror import HMM_DMIRROR_SNAPSHOT, uapi
from hmm_harness import PAGE


def test_mixedmap(hmm):
    buffer = hmm.buffer(1, ptr=hmm.fd.mmap(PAGE, PROT_READ | PROT_WRITE))
    assert hmm.cmd(hmm.fd, HMM_DMIRROR_SNAPSHOT, buffer, 1) == 0
    assert buffer.cpages == 1
    assert buffer.m.tolist() == [uapi.PROT_READ]
    hmm.mm.munmap(buffer.ptr, buffer.size)


def test_snapshot(hmm2):
    buffer = hmm2.buffer(7, PROT_NONE)
    p = buffer.ptr
    # A hole after the first page.
    hmm2.mm.munmap(p + PAGE, PAGE)
    # Page 2 is a read-only zero page, page 3 is read-only, 4 to 6 are read-write.
    hmm2.mm.mprotect(p + 2 * PAGE, PAGE, PROT_READ)
    assert hmm2.read(p + 2 * PAGE, 1) == [0]
    hmm2.mm.mprotect(p + 3 * PAGE, PAGE, PROT_READ | PROT_WRITE)
    hmm2.fill(p + 3 * PAGE, 1)
    hmm2.mm.mprotect(p + 3 * PAGE, PAGE, PROT_READ)
    hmm2.mm.mprotect(p + 4 * PAGE, 3 * PAGE, PROT_READ | PROT_WRITE)
    hmm2.fill(p + 4 * PAGE, 1)
    # Page 5 goes to device 0, page 6 to device 1.
    buffer.ptr = p + 5 * PAGE
    assert hmm2.migrate_to_dev(hmm2.fd0, buffer, 1) == 0
    assert buffer.cpages == 1
    buffer.ptr = p + 6 * PAGE
    assert hmm2.migrate_to_dev(hmm2.fd1, buffer, 1) == 0
    assert buffer.cpages == 1
    buffer.ptr = p
    assert hmm2.cmd(hmm2.fd0, HMM_DMIRROR_SNAPSHOT, buffer, 7) == 0
    assert buffer.cpages == 7
    if hmm2.coherent:
        devices = [
            uapi.PROT_DEV_COHERENT_LOCAL | uapi.PROT_WRITE,
            uapi.PROT_DEV_COHERENT_REMOTE | uapi.PROT_WRITE,
        ]
    else:
        devices = [uapi.PROT_DEV_PRIVATE_LOCAL | uapi.PROT_WRITE, uapi.PROT_NONE]
    assert buffer.m.tolist() == [
        uapi.PROT_ERROR,
        uapi.PROT_ERROR,
        uapi.PROT_ZERO | uapi.PROT_READ,
        uapi.PROT_READ,
        uapi.PROT_WRITE,
        *devices,
    ]
    hmm2.mm.munmap(p, buffer.size)
