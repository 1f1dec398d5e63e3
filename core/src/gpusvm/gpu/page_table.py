"""The GPU's own page table: what a GPU virtual address maps to, kept flat to filter a batch of accesses at once.

One window holds, for a run of virtual pages, one permission byte and one pfn each, as NumPy arrays that are committed
as they are touched. Levels and leaf sizes matter to a driver's bind cost, not to what an access finds, so they stay
with the driver.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
from attrs import define, field

from gpusvm.errors import ModelError
from gpusvm.kernel import Kernel
from gpusvm.mm.api import MemoryManagerApi, MmApi
from gpusvm.mm.observer import tell

__all__ = ["ATOMIC", "NEED_OF_OP", "READ", "REMOTE", "STALE", "WRITE", "GpuPageTable", "PteWindow"]

READ: Final = 1
WRITE: Final = 2
ATOMIC: Final = 4
REMOTE: Final = 8  # system memory: an access goes over the link
STALE: Final = 128  # left behind by a named quirk: it may point to a page that the address no longer has

OP_READ: Final = 0
OP_WRITE: Final = 1
OP_ATOMIC: Final = 2
# What an operation of a trace row (0 read, 1 write, 2 atomic) needs of the entry.
NEED_OF_OP: Final = np.array([READ, READ | WRITE, READ | WRITE | ATOMIC], dtype=np.uint8)

Vpns = npt.NDArray[np.int64]
Perms = npt.NDArray[np.uint8]
Bools = npt.NDArray[np.bool_]

# A mapping outside every reserved window opens one of this many PMDs (1 GiB), aligned to it.
_WINDOW_PMDS: Final = 1 << 9


@define(eq=False)
class PteWindow:
    """Hold the entries of virtual pages [base, end): `perm` uint8, 0 for not mapped; `pfn` int64."""

    base: int
    perm: Perms
    pfn: npt.NDArray[np.int64]
    end: int = field(init=False)
    m_perm: memoryview = field(init=False, repr=False)  # the same entries, for one access at a time
    m_pfn: memoryview = field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self.end = self.base + len(self.perm)
        self.m_perm = self.perm.data
        self.m_pfn = self.pfn.data


class GpuPageTable:
    """Map virtual pages of one process for one GPU address space.

    Virtual pages are `address >> page_shift`; ranges are half open. `map_run` and `map_pages` overwrite, as writing a
    PTE does. Between `stop` and `resume`, as the queues of a GPU without retry faults are, every access misses and the
    entries stay, whatever becomes of the pages. An access is checked against the contents of memory
    (`MemoryManagerApi.contents`), through whatever pfn the entry holds, stale or not.
    """

    def __init__(self, kernel: Kernel, memory: MemoryManagerApi, mm: MmApi) -> None:
        self.kernel = kernel
        self.memory = memory
        self.mm = mm
        self.mapped_pages = 0
        self.stopped = False
        self._windows: list[PteWindow] = []
        self._last: PteWindow | None = None
        self._quirks: dict[int, str] = {}

    @property
    def windows(self) -> Sequence[PteWindow]:
        """What is open, each behind the other in no order."""
        return self._windows

    def reserve(self, first_vpn: int, end_vpn: int) -> PteWindow:
        """Open one window over [first_vpn, end_vpn), so that batches within it are filtered in one go.

        Raises ModelError if it overlaps a window that is open already.
        """
        for window in self._windows:
            if first_vpn < window.end and window.base < end_vpn:
                raise ModelError(
                    f"GPU page table: window {first_vpn:#x}-{end_vpn:#x} overlaps {window.base:#x}-{window.end:#x}"
                )
        pages = end_vpn - first_vpn
        window = PteWindow(first_vpn, np.zeros(pages, np.uint8), np.zeros(pages, np.int64))
        if not self._windows:
            self.memory.mirrors.append(self)
        self._windows.append(window)
        return window

    def stop(self) -> None:
        """Let no access through."""
        self.stopped = True

    def resume(self) -> None:
        """Let accesses through again, by the entries that there are."""
        self.stopped = False
        if self.kernel.observer is not None:
            for window in self._windows:
                tell(self.kernel.observer, "mirror_written", self, window.base, window.end)

    def retire(self) -> None:
        """Say that no engine walks the table any more, so that it no longer counts what it names."""
        if self in self.memory.mirrors:
            self.memory.mirrors.remove(self)

    def map_run(self, vpn: int, pfn: int, pages: int, perm: int) -> None:
        """Map `pages` virtual pages from `vpn` to consecutive frames from `pfn`, all with `perm`."""
        if self.kernel.authors is not None:
            self._allowed(vpn, vpn + pages, pfn if pages == 1 else None)
        window = self._window(vpn, vpn + pages)
        i = vpn - window.base
        entries = window.perm[i : i + pages]
        self.mapped_pages += pages - int(np.count_nonzero(entries))
        entries[:] = perm
        window.pfn[i : i + pages] = np.arange(pfn, pfn + pages)
        if self.kernel.observer is not None:
            tell(self.kernel.observer, "mirror_written", self, vpn, vpn + pages)

    def map_pages(self, vpn: int, pfns: npt.NDArray[np.int64], perm: int | Perms, *, written: bool = True) -> None:
        """Map the virtual pages from `vpn` to `pfns` one by one; `perm` for all, or uint8 for each (0 skips a page).

        Not `written`: the entries are as they were, and it is memory that has changed places under them.
        """
        pages = len(pfns)
        if written and self.kernel.authors is not None:
            self._allowed(vpn, vpn + pages, int(pfns[0]) if pages == 1 else None)
        window = self._window(vpn, vpn + pages)
        i = vpn - window.base
        entries = window.perm[i : i + pages]
        before = int(np.count_nonzero(entries))
        if isinstance(perm, int):
            entries[:] = perm
            window.pfn[i : i + pages] = pfns
        else:
            written = perm != 0
            np.copyto(entries, perm, where=written)
            np.copyto(window.pfn[i : i + pages], pfns, where=written)
        self.mapped_pages += int(np.count_nonzero(entries)) - before
        if self.kernel.observer is not None:
            tell(self.kernel.observer, "mirror_written", self, vpn, vpn + pages)

    def unmap(self, vpn: int, end_vpn: int) -> int:
        """Clear the entries of [vpn, end_vpn); the number that were mapped."""
        return self.clear(vpn, end_vpn)[0]

    def clear(self, vpn: int, end_vpn: int) -> tuple[int, int]:
        """Clear the entries of [vpn, end_vpn); how many were mapped, and how many of those to system memory."""
        cleared = remote = 0
        for window in self._windows:
            base = window.base
            first, end = max(vpn, base), min(end_vpn, window.end)
            if first < end:
                entries = window.perm[first - base : end - base]
                mapped = int(np.count_nonzero(entries))
                if mapped:
                    cleared += mapped
                    remote += int(np.count_nonzero(entries & REMOTE))
                    entries[:] = 0
        self.mapped_pages -= cleared
        return cleared, remote

    def perms(self, vpn: int, end_vpn: int) -> Perms:
        """Return a copy of the permission bytes of [vpn, end_vpn)."""
        found = np.zeros(end_vpn - vpn, np.uint8)
        for window in self._windows:
            first, end = max(vpn, window.base), min(end_vpn, window.end)
            if first < end:
                found[first - vpn : end - vpn] = window.perm[first - window.base : end - window.base]
        return found

    def pfns(self, vpn: int, end_vpn: int) -> npt.NDArray[np.int64]:
        """Return a copy of the frames of [vpn, end_vpn); what an unmapped page holds means nothing."""
        found = np.zeros(end_vpn - vpn, np.int64)
        for window in self._windows:
            first, end = max(vpn, window.base), min(end_vpn, window.end)
            if first < end:
                found[first - vpn : end - vpn] = window.pfn[first - window.base : end - window.base]
        return found

    def mark_stale(self, vpn: int, end_vpn: int, quirk: str) -> int:
        """Say that `quirk` left the mapped entries of [vpn, end_vpn) behind; how many there are.

        Wrong contents seen through them, or caused by writing through them, then count as known and name the quirk.
        """
        marked = 0
        for window in self._windows:
            first, end = max(vpn, window.base), min(end_vpn, window.end)
            if first < end:
                entries = window.perm[first - window.base : end - window.base]
                stale = np.flatnonzero(entries)
                entries[stale] |= STALE
                marked += len(stale)
                for page in (stale + first).tolist():
                    self._quirks[page] = quirk
        return marked

    def missing(self, vpns: Vpns, need: Perms) -> Bools:
        """Filter a batch: True where the entry lacks a permission of `need` and the access would fault.

        `vpns` int64 and `need` uint8 (see NEED_OF_OP) of equal length; nothing is accessed.
        """
        if self.stopped:
            return np.ones(len(vpns), np.bool_)
        window = self._covering(vpns)
        if window is None:
            return self._missing_slowly(vpns, need)
        missing: Bools = (window.perm[vpns - window.base] & need) != need
        return missing

    def access(self, vpns: Vpns, need: Perms) -> tuple[int, int]:
        """Perform a batch of accesses that do not fault; how many reads and how many writes went to system memory.

        Reads are compared with what the last ordered write left, writes leave a new version; an atomic does both and
        counts as a write.
        """
        window = self._covering(vpns)
        if window is not None:
            return self._access(window, vpns, need)
        remote_reads = remote_writes = 0
        for w in self._windows:
            inside = (vpns >= w.base) & (vpns < w.end)
            if inside.any():
                reads, writes = self._access(w, vpns[inside], need[inside])
                remote_reads += reads
                remote_writes += writes
        return remote_reads, remote_writes

    def access_one(self, vpn: int, need: int) -> int:
        """Perform one access unless it faults; the entry's permissions, or 0 for a fault."""
        if self.stopped:
            return 0
        for window in self._windows:
            if window.base <= vpn < window.end:
                i = vpn - window.base
                perm: int = window.m_perm[i]
                if perm & need != need:
                    return 0
                pfn = window.m_pfn[i]
                if perm & STALE:
                    one = slice(i, i + 1)
                    needs = np.array([need], np.uint8)
                    self._access_stale(window.perm[one], np.array([vpn], np.int64), window.pfn[one], needs)
                    return perm
                contents = self.memory.contents
                if need & (WRITE | ATOMIC) != WRITE:
                    contents.read(self.mm, vpn, pfn)
                if need & WRITE:
                    contents.write(self.mm, vpn, pfn)
                return perm
        return 0

    def store(self, vpn: int, tokens: npt.NDArray[np.int64]) -> None:
        """Write `tokens[i]` to the virtual page `vpn + i`, as far as there are tokens; every page must be mapped."""
        pages = len(tokens)
        window = self._window(vpn, vpn + pages)
        i = vpn - window.base
        vpns = np.arange(vpn, vpn + pages)
        pfns = window.pfn[i : i + pages]
        contents = self.memory.contents
        stale = (window.perm[i : i + pages] & STALE) != 0
        if not stale.any():
            contents.write_many(self.mm, vpns, pfns, tokens=tokens)
            return
        for k in range(pages):
            one = slice(k, k + 1)
            quirk = self._quirks[vpn + k] if stale[k] else None
            contents.write_many(self.mm, vpns[one], pfns[one], tokens=tokens[one], quirk=quirk)

    def _allowed(self, vpn: int, end_vpn: int, pfn: int | None) -> None:
        """Raise ModelError where a driver writes entries that may be out of date (`gpusvm.kernel.authors`)."""
        assert self.kernel.authors is not None
        shift = self.memory.geometry.page_shift
        self.kernel.authors.writes(self.mm, vpn << shift, end_vpn << shift, pfn)

    def _access(self, window: PteWindow, vpns: Vpns, need: Perms) -> tuple[int, int]:
        index = vpns - window.base
        perm = window.perm[index]
        pfns = window.pfn[index]
        if self._quirks and bool((perm & STALE).any()):
            self._access_stale(perm, vpns, pfns, need)
        else:
            self._check(vpns, pfns, need)
        remote = (perm & REMOTE) != 0
        if not remote.any():
            return 0, 0
        writes = (need & WRITE) != 0
        return int(np.count_nonzero(remote & ~writes)), int(np.count_nonzero(remote & writes))

    def _check(self, vpns: Vpns, pfns: npt.NDArray[np.int64], need: Perms, quirk: str | None = None) -> None:
        """Check the reads against the state before the batch, then apply the writes; an atomic does both."""
        contents = self.memory.contents
        writes = (need & WRITE) != 0
        written = int(np.count_nonzero(writes))
        if written == 0:
            contents.read_many(self.mm, vpns, pfns, quirk=quirk)
            return
        reads = (need & (WRITE | ATOMIC)) != WRITE
        if reads.any():
            contents.read_many(self.mm, vpns[reads], pfns[reads], quirk=quirk)
        if written == len(vpns):
            contents.write_many(self.mm, vpns, pfns, quirk=quirk)
        else:
            contents.write_many(self.mm, vpns[writes], pfns[writes], quirk=quirk)

    def _access_stale(self, perm: Perms, vpns: Vpns, pfns: npt.NDArray[np.int64], need: Perms) -> None:
        """Do the fresh accesses of a batch, then the ones through stale entries, quirk by quirk."""
        stale = (perm & STALE) != 0
        fresh = ~stale
        self._check(vpns[fresh], pfns[fresh], need[fresh])
        rows: dict[str, list[int]] = {}
        for i in np.flatnonzero(stale).tolist():
            rows.setdefault(self._quirks[int(vpns[i])], []).append(i)
        for quirk, found in rows.items():
            at = np.array(found, np.int64)
            self._check(vpns[at], pfns[at], need[at], quirk)

    def _missing_slowly(self, vpns: Vpns, need: Perms) -> Bools:
        found = np.zeros(len(vpns), np.uint8)
        for window in self._windows:
            inside = (vpns >= window.base) & (vpns < window.end)
            found[inside] = window.perm[vpns[inside] - window.base]
        missing: Bools = (found & need) != need
        return missing

    def _covering(self, vpns: Vpns) -> PteWindow | None:
        """Return the one window that holds every page of a batch, if there is one."""
        if not len(vpns):
            return self._windows[0] if self._windows else None
        lowest, highest = int(vpns.min()), int(vpns.max())
        last = self._last
        if last is not None and last.base <= lowest and highest < last.end:
            return last
        for window in self._windows:
            if window.base <= lowest and highest < window.end:
                self._last = window
                return window
        return None

    def _window(self, vpn: int, end_vpn: int) -> PteWindow:
        """Return the window that holds a range to be mapped, opening one if none does."""
        last = self._last
        if last is not None and last.base <= vpn and end_vpn <= last.end:
            return last
        for window in self._windows:
            if window.base <= vpn and end_vpn <= window.end:
                self._last = window
                return window
        pages = self.memory.geometry.pmd_nr * _WINDOW_PMDS
        base, end = vpn & -pages, -(-end_vpn // pages) * pages
        met = [window for window in self._windows if base < window.end and window.base < end]
        if met:
            # It begins or ends inside windows: one that holds them all takes their place.
            self._windows = [window for window in self._windows if window not in met]
            base, end = min(base, *(window.base for window in met)), max(end, *(window.end for window in met))
        self._last = self.reserve(base, end)
        for window in met:
            at = slice(window.base - base, window.end - base)
            self._last.perm[at] = window.perm
            self._last.pfn[at] = window.pfn
        return self._last


def runs(index: npt.NDArray[np.int64]) -> list[tuple[int, int]]:
    """Cut ascending positions into half-open runs, for what works on ranges of entries."""
    if not len(index):
        return []
    cuts = np.flatnonzero(np.diff(index) != 1) + 1
    return [(int(run[0]), int(run[-1]) + 1) for run in np.split(index, cuts)]
