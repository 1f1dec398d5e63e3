"""hmm-tests.c, as of Linux 7.3.4: memory of MAP_HUGETLB under a device."""

import pytest
from gpusvm.mm.api import PROT_READ, VM_HUGETLB
from gpusvm_dmirror import HMM_DMIRROR_SNAPSHOT, HMM_DMIRROR_WRITE, uapi
from hmm_harness import PAGE, PMD

NPAGES = PMD // PAGE


@pytest.fixture
def hugetlb(hmm):
    """Set one huge page aside, as the tests skip without; it has to be free again at the end."""
    assert hmm.memory.set_nr_hugepages(1) == 1
    yield hmm
    assert hmm.memory.set_nr_hugepages(0) == 0


def test_anon_write_hugetlbfs(hugetlb):
    hmm = hugetlb
    buffer = hmm.buffer(NPAGES, flags=VM_HUGETLB)
    buffer.mirror[:] = hmm.new_data(NPAGES)
    assert hmm.cmd(hmm.fd, HMM_DMIRROR_WRITE, buffer, NPAGES) == 0
    assert (buffer.cpages, buffer.faults) == (NPAGES, 1)
    assert hmm.read(buffer.ptr, NPAGES).tolist() == buffer.mirror.tolist()
    hmm.mm.munmap(buffer.ptr, buffer.size)


def test_compound(hugetlb):
    hmm = hugetlb
    buffer = hmm.buffer(NPAGES, flags=VM_HUGETLB)
    hmm.fill(buffer.ptr, NPAGES)
    assert hmm.cmd(hmm.fd, HMM_DMIRROR_SNAPSHOT, buffer, NPAGES) == 0
    assert buffer.cpages == NPAGES
    assert set(buffer.m.tolist()) == {uapi.PROT_WRITE | uapi.PROT_PMD}
    hmm.mm.mprotect(buffer.ptr, buffer.size, PROT_READ)
    assert hmm.cmd(hmm.fd, HMM_DMIRROR_SNAPSHOT, buffer, NPAGES) == 0
    assert buffer.cpages == NPAGES
    assert set(buffer.m.tolist()) == {uapi.PROT_READ | uapi.PROT_PMD}
    hmm.mm.munmap(buffer.ptr, buffer.size)
