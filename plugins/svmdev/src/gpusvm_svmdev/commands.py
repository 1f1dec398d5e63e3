"""The commands of an open svmdev file, as programs give them by ioctl. Addresses are those of the process."""

from contextlib import contextmanager
from errno import EACCES, EBADF, EBUSY, EFAULT, EINVAL, ENOENT, ENOMEM
from typing import TYPE_CHECKING

import numpy as np
from attrs import frozen
from gpusvm.drm import DMA_BIDIRECTIONAL, DRM_INTERCONNECT_SYSTEM, GpuSvmRange, evict_to_ram
from gpusvm.errors import KernelError
from gpusvm.mm.api import HMM_PFN_PFN_MASK, HMM_PFN_VALID, HmmRange, Pfns

from gpusvm_svmdev.faults import FaultCommand

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from gpusvm.drm import PagemapAddrs

    from gpusvm_svmdev.device import Svmdev
    from gpusvm_svmdev.file import SvmdevFile
    from gpusvm_svmdev.memory import SvmdevBo

__all__ = ["Stat", "SvmdevCommands", "Transfer"]


@frozen(kw_only=True)
class Transfer:
    """Hold what READ or WRITE did: pages until the first that could not be, its errno or 0, and what was read."""

    done: int
    errno: int
    tokens: list[int]


@frozen(kw_only=True)
class Stat:
    """Hold what STAT tells: `allocated` and `released` since the file was opened, the rest as it is now.

    `mapped_rows`: device_map less device_unmap calls for the device's pages, by whomever.
    """

    allocated: int
    released: int
    pages_in_use: int
    ranges: int
    notifiers: int
    garbage: int
    mapped_rows: int


class SvmdevCommands:
    """Do the commands of one file, each under its lock. KernelError is what the ioctl answers."""

    def __init__(self, file: "SvmdevFile") -> None:
        self.file = file
        self.device = file.device
        self._page_shift = file.memory.geometry.page_shift
        self._allocated_before = self.device.vram.allocated
        self._released_before = self.device.vram.released

    @contextmanager
    def _open_file(self) -> "Iterator[SvmdevFile]":
        """Lock the file; EBADF if it was closed."""
        file = self.file
        with file.lock:
            if file.closed:
                raise KernelError(EBADF, "the file is closed")
            yield file

    # ---- faults and migration ------------------------------------------------------------------------------------

    def fault(self, addr: int, flags: int, *, target: "Svmdev | None" = None) -> FaultCommand:
        """Do FAULT with SVMDEV_F_ flags, and populate the memory of `target`, by default the device's.

        Never raises: the command says what each stage answered, the last what the ioctl does.
        """
        own = self.device
        command = FaultCommand(addr, flags, own if target is None else target, time_ns=own.kernel.now_ns)
        self.file.faults.submit([command])
        return command

    def populate(self, addr: int, npages: int) -> None:
        """Do POPULATE: drm_pagemap_populate_mm of the device's pagemap, with or without a range there."""
        with self._open_file() as file:
            self.device.populate(addr, addr + (npages << self._page_shift), file.mm)

    def populate_blocks(self, start: int, end: int) -> int:
        """Do so for each PMD block of [start, end); the bytes that moved.

        A block that is busy (EBUSY), finds no room (ENOMEM) or lies in more than one area (EINVAL) stays where it is.
        """
        stats, size = self.device.kernel.stats, self.file.memory.geometry.pmd_size
        before = stats.migrated_to_device_bytes
        at = start
        while at < end:
            until = min((at & -size) + size, end)
            try:
                self.populate(at, (until - at) >> self._page_shift)
            except KernelError as error:
                if error.errno not in (EBUSY, EINVAL, ENOMEM):
                    raise
            at = until
        return stats.migrated_to_device_bytes - before

    def evict(self, addr: int) -> None:
        """Do EVICT: bring the allocation home that holds the page at `addr`.

        ENOENT: no range of this file is there, or no device page of the device's owner; EBUSY, and other errors of
        evict_to_ram.
        """
        with self._open_file():
            self._evict(self._allocation_at(addr))

    def evict_nth(self, k: int) -> None:
        """Do EVICTN: bring the device's k-th oldest allocation home, whosever it is; ENOENT."""
        with self._open_file():
            self._evict(self.device.vram.nth(k))

    def _evict(self, bo: "SvmdevBo | None") -> None:
        if bo is None:
            raise KernelError(ENOENT, "no such allocation")
        try:
            assert bo.devmem is not None
            evict_to_ram(bo.devmem)
        finally:
            bo.ref.put("evict")

    def _allocation_at(self, addr: int) -> "SvmdevBo | None":
        """Look the page up without faulting it in (bo_of_addr), and take a reference on what holds it."""
        memory, mm = self.file.memory, self.file.mm
        range_ = self._range(addr)
        found: HmmRange
        while True:
            notifier = range_.notifier.notifier
            found = HmmRange(
                notifier=notifier,
                start=addr,
                end=addr + memory.geometry.page_size,
                hmm_pfns=np.zeros(1, np.uint64),
                dev_private_owner=self.device.owner,
                notifier_seq=memory.mmu_interval_read_begin(notifier),
            )
            mm.mmap_lock.down_read()
            try:
                memory.hmm_range_fault(found)
                break
            except KernelError as error:
                if error.errno != EBUSY:
                    return None
            finally:
                mm.mmap_lock.up_read()
        word = int(found.hmm_pfns[0])
        pfn = word & HMM_PFN_PFN_MASK
        if not word & HMM_PFN_VALID or not memory.is_device_memory(pfn):
            return None
        pgmap = memory.page_pgmap(pfn)
        assert pgmap is not None
        return self.device.container_of(pgmap).vram.holding(pfn)

    # ---- the device's accesses -----------------------------------------------------------------------------------

    def read(self, addr: int, npages: int) -> Transfer:
        """Do READ: what the pages hold, through the mapped addresses, ascending.

        The errno that ends it: ENOENT no range, EFAULT not mapped, where a GPU would fault.
        """
        tokens: list[int] = []

        def copy(page: int, pfn: int) -> None:
            tokens.append(self.file.memory.contents.token(pfn))

        return self._transfer(addr, npages, copy, tokens, write=False)

    def write(self, addr: int, tokens: Pfns) -> Transfer:
        """Do WRITE: page i gets version ``tokens[i]``. EACCES besides: it is mapped for reading only."""
        file = self.file

        def copy(page: int, pfn: int) -> None:
            vpn = (addr >> self._page_shift) + page
            file.memory.contents.write_many(file.mm, np.array([vpn]), np.array([pfn]), tokens=tokens[page : page + 1])

        return self._transfer(addr, len(tokens), copy, [], write=True)

    def where(self, addr: int, npages: int) -> list[int | None]:
        """Do WHERE: for each page the mapped address of the device, 0 for system memory, -1 for a range that is not
        mapped, None without a range.
        """
        found: list[int | None] = []
        svm, size = self.file.svm, 1 << self._page_shift
        with self._open_file():
            for at in range(addr, addr + npages * size, size):
                range_ = self.file.find(at)
                with svm.notifier_lock.read():
                    if range_ is None:
                        found.append(None)
                    elif not svm.range_pages_valid(range_):
                        found.append(-1)
                    else:
                        addrs, row, page = _entry_of(range_, (at - range_.start) >> self._page_shift)
                        system = addrs.proto[row] == DRM_INTERCONNECT_SYSTEM
                        found.append(0 if system else int(addrs.addr[row]) + page * size)
        return found

    def _transfer(
        self, addr: int, npages: int, copy: "Callable[[int, int], None]", tokens: list[int], *, write: bool
    ) -> Transfer:
        """Copy page by page under the notifier lock, so that no page is taken away meanwhile (do_rw)."""
        svm, errno, done = self.file.svm, 0, 0
        with self._open_file():
            while done < npages and not errno:
                at = addr + (done << self._page_shift)
                range_ = self.file.find(at)
                if range_ is None:
                    errno = ENOENT
                    break
                with svm.notifier_lock.read():
                    if not svm.range_pages_valid(range_):
                        errno = EFAULT
                        break
                    addrs, row, page = _entry_of(range_, (at - range_.start) >> self._page_shift)
                    if write and addrs.direction != DMA_BIDIRECTIONAL:
                        errno = EACCES
                        break
                    copy(done, int(addrs.pfns[row]) + page)
                done += 1
        return Transfer(done=done, errno=errno, tokens=tokens)

    # ---- ranges --------------------------------------------------------------------------------------------------

    def range_evict(self, addr: int) -> None:
        """Do REVICT: bring the device pages of the range at `addr` home; ENOENT, and errors of range_evict."""
        with self._open_file() as file:
            file.svm.range_evict(self._range(addr))

    def drop(self, addr: int) -> None:
        """Do DROP: remove the range at `addr`; ENOENT."""
        with self._open_file() as file:
            file.drop(self._range(addr))

    def collect(self) -> None:
        """Do GC: run the garbage collector."""
        with self._open_file() as file:
            file.collect()

    def scan(self, addr: int) -> int:
        """Do SCAN: where the memory of the range at `addr` is (one of SCAN_*); ENOENT."""
        with self._open_file() as file:
            return file.svm.scan_mm(self._range(addr), self.device.owner, self.device.pgmap)

    def _range(self, addr: int) -> GpuSvmRange:
        range_ = self.file.find(addr)
        if range_ is None:
            raise KernelError(ENOENT, f"no range at {addr:#x}")
        return range_

    # ---- the device --------------------------------------------------------------------------------------------

    def unplug(self) -> int:
        """Do UNPLUG: how many allocations came home; ENODEV, EBUSY."""
        with self._open_file():
            return self.device.unplug_command()

    def timeslice(self, ms: int) -> None:
        """Do TIMESLICE: what is migrated to the device from now on stays so long."""
        with self._open_file():
            self.device.timeslice_ms = ms

    def hold(self) -> tuple[str, int]:
        """Do HOLD: keep the device's pagemap; how it was found, and which it is. EBUSY if the file keeps it already."""
        with self._open_file() as file:
            if file.held is not None:
                raise KernelError(EBUSY, "the file holds the pagemap already")
            how, file.held = self.device.pagemap_get("file")
            return how, self.device.serial(file.held)

    def release(self) -> None:
        """Do RELEASE: let go of it; ENOENT."""
        with self._open_file() as file:
            if file.held is None:
                raise KernelError(ENOENT, "the file holds no pagemap")
            file.release()

    # ---- for tests -----------------------------------------------------------------------------------------------

    def stat(self) -> Stat:
        """Do STAT."""
        vram, svm = self.device.vram, self.file.svm
        return Stat(
            allocated=vram.allocated - self._allocated_before,
            released=vram.released - self._released_before,
            pages_in_use=vram.pages_in_use,
            ranges=svm.nr_ranges,
            notifiers=len(svm.notifiers()),
            garbage=len(self.file.gc),
            mapped_rows=self.device.mapped,
        )

    def fail(self, what: int, n: int) -> None:
        """Do FAIL: make the n-th next call of a kind (FAIL_*) for this device fail."""
        self.device.vram.fail_next(what, n)


def _entry_of(range_: GpuSvmRange, page: int) -> "tuple[PagemapAddrs, int, int]":
    """Return what maps a page of a range: the addresses, the row, and the page's place in it (entry_of)."""
    addrs = range_.pages.dma_addr
    assert addrs is not None
    firsts = addrs.first_pages()
    row = int(np.searchsorted(firsts, page, "right")) - 1
    return addrs, row, page - int(firsts[row])
