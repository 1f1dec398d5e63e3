"""What hmm-tests.c has around its tests: processes, buffers, and the command that a buffer goes through.

The kernel under test is the model: Linux 7.3.4 with the module of four devices and 4 KiB pages, 2 MiB PMDs, THP on
request (madvise). Where a test of hmm-tests.c stores the numbers i into memory, the pages here get one token each; that
memory or a mirror "is i" when it has the same tokens.
"""

import errno

import numpy as np
from attrs import define
from gpusvm.check import Checker
from gpusvm.errors import KernelError
from gpusvm.kernel import Kernel
from gpusvm.mm import Geometry, MemoryManager
from gpusvm.mm.api import MADV_HUGEPAGE, MADV_NOHUGEPAGE, PROT_READ, PROT_WRITE
from gpusvm_dmirror import (
    HMM_DMIRROR_MIGRATE_TO_DEV,
    HMM_DMIRROR_MIGRATE_TO_SYS,
    HMM_DMIRROR_SNAPSHOT,
    HmmDmirror,
    HmmDmirrorCmd,
)
from gpusvm_dmirror.tunables import DmirrorTunables

PAGE = 4096
PMD = 2 << 20
# HMM_BUFFER_SIZE
NPAGES = 1024
NTIMES = 10
RAM_PAGES = 1 << 18
CHUNK_PAGES = 1 << 16


@define(eq=False)
class Buffer:
    """struct hmm_buffer: memory of a process, and the mirror that commands read or fill."""

    ptr: int
    size: int
    mirror: np.ndarray
    m: np.ndarray
    cpages: int = 0
    faults: int = 0


class Hmm:
    """The machine, one process, and the devices that a fixture has opened in it.

    A `small` machine has 8 pages in a PMD and 2 MiB in a chunk, so that many of them can be booted.
    """

    def __init__(self, *minors, mode="timed", choices=None, quirks=None, small=False):
        self.kernel = Kernel(mode=mode, choices=choices)
        geometry = Geometry(pmd_order=3) if small else Geometry()
        ram_pages, chunk_pages = (1 << 12, 1 << 9) if small else (RAM_PAGES, CHUNK_PAGES)
        self.memory = MemoryManager(self.kernel, ram_pages=ram_pages, geometry=geometry, thp="madvise")
        self.spm = [self.memory.request_free_mem_region(chunk_pages) * PAGE for _ in range(2)]
        self.module = HmmDmirror(
            self.kernel,
            self.memory,
            spm_addr_dev0=self.spm[0],
            spm_addr_dev1=self.spm[1],
            tunables=DmirrorTunables(chunk_bytes=chunk_pages * PAGE),
            quirks=quirks,
        )
        self.checker = Checker(self.memory)
        if mode == "explored":  # a timed machine of real size would take seven times as long
            self.checker.attach()
        self.free_at_start = self.memory.pages.allocator.free_pages
        self.mm = self.memory.mm_alloc("hmm-tests")
        self.coherent = minors[0] >= 2
        self.fds = [self.module.open(minor, self.mm) for minor in minors]
        self.fd = self.fd0 = self.fds[0]
        self.fd1 = self.fds[-1]

    def teardown(self):
        """Close what is open and exit; check that nothing is left of what the test has done."""
        for fd in self.fds:
            fd.close()
        self.kernel.settle()
        for device in self.module.devices:
            assert [chunk.callocated for chunk in device.pool.chunks] == [0] * len(device.pool.chunks)
        self.check_machine()
        self.mm.exit()
        self.kernel.settle()
        self.check_machine()
        assert self.memory.pages.allocator.free_pages + self.kept() == self.free_at_start
        self.module.unload()
        self.kernel.ledger.assert_empty()

    def kept(self):
        """Count the pages that stay allocated for good: the huge zero folio, if it was made."""
        return self.memory.geometry.pmd_nr if self.memory._huge_zero_pfn is not None else 0

    def check_machine(self):
        self.checker.check_quiescent()
        contents = self.memory.contents
        assert (contents.mismatch_count, contents.mismatches) == (0, [])

    # --- buffers

    def buffer(self, npages=NPAGES, prot=PROT_READ | PROT_WRITE, *, mapped=None, ptr=None, **mmap):
        """Map memory of `mapped` pages (default: npages), unless it is at `ptr`, and make a mirror of `npages`."""
        size = (npages if mapped is None else mapped) * PAGE
        return Buffer(
            ptr=self.mm.mmap(None, size, prot, **mmap) if ptr is None else ptr,
            size=size,
            mirror=np.full(npages, -1, np.int64),
            m=np.full(npages, 0xAA, np.uint8),
        )

    def huge(self, addr, *, huge=True):
        """Find the aligned 2 MiB at or behind `addr` and advise for or against a huge page; their address."""
        size = self.memory.geometry.pmd_size
        window = -(-addr // size) * size
        self.mm.madvise(window, size, MADV_HUGEPAGE if huge else MADV_NOHUGEPAGE)
        return window

    def fill(self, addr, npages, mm=None):
        """Let the CPU write pages in order; what they hold then."""
        mm = mm or self.mm
        vpns = np.arange(addr // PAGE, addr // PAGE + npages)
        self.memory.cpu_access(mm, vpns, np.ones(npages, np.bool_))
        return self.memory.contents.expected_many(mm, vpns).copy()

    def read(self, addr, npages, mm=None):
        """Let the CPU read pages in order; what it finds."""
        mm = mm or self.mm
        return np.array([self.memory.cpu_read(mm, addr + i * PAGE) for i in range(npages)], np.int64)

    def new_data(self, npages):
        """Make data that is nowhere yet."""
        return self.memory.contents.new_tokens(npages)

    # --- commands

    def cmd(self, fd, request, buffer, npages):
        """hmm_dmirror_cmd: 0 or a negative errno; the counts are in the buffer after success."""
        ptr = buffer.m if request == HMM_DMIRROR_SNAPSHOT else buffer.mirror
        cmd = HmmDmirrorCmd(addr=buffer.ptr, ptr=ptr, npages=npages)
        while True:
            try:
                fd.ioctl(request, cmd)
            except KernelError as error:
                if error.errno == errno.EINTR:
                    continue
                return -error.errno
            buffer.cpages, buffer.faults = cmd.cpages, cmd.faults
            return 0

    def migrate_to_dev(self, fd, buffer, npages):
        return self.cmd(fd, HMM_DMIRROR_MIGRATE_TO_DEV, buffer, npages)

    def migrate_to_sys(self, fd, buffer, npages):
        return self.cmd(fd, HMM_DMIRROR_MIGRATE_TO_SYS, buffer, npages)


def same(one, other):
    return one.tolist() == other.tolist()
