"""What is in memory, without the bytes: one token per page says who wrote it last, and each address what it must read.

A token is `(version << WRITER_BITS) | writer`; version 0 is the zero page, whose token is 0. Every write makes a new
version and notes at the address, per mm, that this version is what a read must find. Copy engines copy tokens, clearing
stores 0, and memory that nobody has written holds poison (`gpusvm.mm.page`). So lost data is a mismatch, whichever
way it was lost.

Shared memory and files are noted at the page of the object instead, `AddressSpace.tokens`, so that every process must
find what any of them wrote; a private mapping of a file reads what the file holds until it has a copy of its own.

What a quirk of Linux loses, as written, is attributed to it: a driver that leaves a stale GPU mapping behind names the
quirk when it reads or writes through it; such a write taints the address and the page, and a mismatch on either counts
in `known` instead of `mismatches`.
"""

from typing import Final, Literal, Protocol, cast

import numpy as np
import numpy.typing as npt
from attrs import frozen

from gpusvm.kernel import Kernel
from gpusvm.mm.api import VM_SHARED, Bools, MmApi, Pfns
from gpusvm.mm.page import POISON_DEVICE, POISON_FREED, POISON_NEW, PageMap
from gpusvm.mm.ptemask import RAMP
from gpusvm.mm.sparse import zeros

__all__ = ["WRITER_BITS", "Contents", "Mismatch", "describe_token"]

WRITER_BITS: Final = 8
MISMATCHES_KEPT: Final = 16
# Pages per window of expected tokens, at most: 8 GiB of addresses, 16 MiB of virtual memory that NumPy commits page by
# page. A machine with less RAM has windows of its size: what is put back before each execution is copied whole.
WINDOW_SHIFT: Final = 21

# In a private mapping of a file, where 0 means that there is no copy yet: a copy of zeros.
COPIED_ZEROS: Final = -4

Tokens = npt.NDArray[np.int64]
Mode = Literal["tokens", "none"]

_POISON: Final = {POISON_FREED: "freed memory", POISON_DEVICE: "new device memory", POISON_NEW: "new system memory"}


def describe_token(token: int) -> str:
    """Say in words what a token stands for."""
    if token == 0:
        return "zeros"
    if token < 0:
        return _POISON.get(token, f"poison {token}")
    return f"version {token >> WRITER_BITS} by writer {token & ((1 << WRITER_BITS) - 1)}"


@frozen
class Mismatch:
    """Tell of one read that found something else than what was last written there."""

    time_ns: int
    task: str
    mm: str
    vpn: int
    pfn: int
    expected: int
    found: int
    freed: str = ""
    """In an explored kernel: a clause on who freed the page, if it was free."""

    def __str__(self) -> str:
        """Say it in one line."""
        return (
            f"{self.task} read page {self.vpn:#x} of {self.mm} at {self.time_ns} ns and found "
            f"{describe_token(self.found)} in pfn {self.pfn:#x} instead of {describe_token(self.expected)}{self.freed}"
        )


class File(Protocol):
    """What contents need of an address_space."""

    @property
    def name(self) -> str: ...

    @property
    def tokens(self) -> Tokens: ...

    def token(self, index: int) -> int:
        """Return what a read of one page must find."""


class Area(Protocol):
    """What contents need of an area with vm_ops; its bounds may move."""

    start: int
    end: int
    flags: int
    pgoff: int

    @property
    def mm(self) -> MmApi: ...

    @property
    def file(self) -> File | None: ...


class Contents:
    """Follow what every page holds and what every address must read; mode "none" does nothing at all.

    `vpns` and `pfns` are parallel arrays, one access each; a page may come up more than once. `writer` is a small
    number that names the writer in messages (0: the CPUs).
    """

    __slots__ = (
        "_areas",
        "_expected",
        "_shift",
        "_version",
        "_window_shift",
        "kernel",
        "known",
        "mismatch_count",
        "mismatches",
        "mode",
        "pages",
        "reads_checked",
        "tainted_pfns",
        "tainted_vpns",
    )

    def __init__(self, kernel: Kernel, pages: PageMap, *, mode: Mode = "tokens") -> None:
        self.kernel: Final = kernel
        self.pages: Final = pages
        self.mode: Final = mode
        self._shift: Final = pages.geometry.page_shift
        self._window_shift: Final = min(pages.ram_pages.bit_length(), WINDOW_SHIFT)
        self.reads_checked = 0
        self.mismatch_count = 0
        self.mismatches: list[Mismatch] = []  # the first few; mismatch_count has them all
        self.known: dict[str, int] = {}  # quirk -> reads that it spoilt
        self.tainted_vpns: dict[tuple[MmApi, int], str] = {}
        self.tainted_pfns: dict[int, str] = {}
        self._version = 0
        self._expected: dict[MmApi, dict[int, Tokens]] = {}
        self._areas: dict[MmApi, list[Area]] = {}  # areas that have a file or are a driver's; most mms have none

    # --- what addresses must read

    def _window(self, mm: MmApi, vpn: int) -> Tokens:
        windows = self._expected.get(mm)
        if windows is None:
            windows = self._expected[mm] = {}
        window = windows.get(vpn >> self._window_shift)
        if window is None:
            window = windows[vpn >> self._window_shift] = zeros(1 << self._window_shift, np.int64)
        return window

    def expected(self, mm: MmApi, vpn: int) -> int:
        """Return the token that a read of one page must find."""
        token = int(self._window(mm, vpn)[vpn & ((1 << self._window_shift) - 1)])
        return self._in_area(mm, vpn, token) if self._areas else token

    def expected_many(self, mm: MmApi, vpns: Pfns) -> Tokens:
        """Return the tokens that reads must find."""
        tokens = self._private(mm, vpns)
        if self._areas:
            self._in_areas(mm, vpns, tokens)
        return tokens

    def _private(self, mm: MmApi, vpns: Pfns) -> Tokens:
        shift = self._window_shift
        number = int(vpns[0]) >> shift
        base = number << shift
        at = vpns - base
        if int(at.min()) >= 0 and int(at.max()) < 1 << shift:
            return self._window(mm, base).take(at)
        found = np.empty(len(vpns), np.int64)
        numbers = vpns >> shift
        for number in np.unique(numbers).tolist():
            there = numbers == number
            found[there] = self._window(mm, number << shift)[vpns[there] - (number << shift)]
        return found

    # --- areas of files and drivers

    def add_area(self, area: "Area") -> None:
        """Look for what an area must read at its file from now on; what a driver maps without one is not checked."""
        self._areas.setdefault(area.mm, []).append(area)

    def remove_area(self, area: "Area") -> None:
        """Forget an area."""
        areas = self._areas[area.mm]
        areas.remove(area)
        if not areas:
            del self._areas[area.mm]

    def _in_area(self, mm: MmApi, vpn: int, expected: int) -> int:
        # What a read must find, if a page of private memory there held `expected`.
        for area in self._areas.get(mm, ()):
            index = vpn - (area.start >> self._shift)
            if index < 0 or vpn >= area.end >> self._shift:
                continue
            if area.file is None:
                return expected
            if not area.flags & VM_SHARED and expected:
                return 0 if expected == COPIED_ZEROS else expected
            return area.file.token(index + area.pgoff)
        return expected

    def _is_driver(self, mm: MmApi, vpn: int) -> bool:
        return self._followed(mm, np.array([vpn])) is not None

    def _followed(self, mm: MmApi, vpns: Pfns) -> Bools | None:
        # Which accesses do not reach what a driver mapped, perhaps no memory at all; None for all of them.
        found: Bools | None = None
        for area in self._areas.get(mm, ()):
            if area.file is None:
                inside = (vpns >= area.start >> self._shift) & (vpns < area.end >> self._shift)
                if inside.any():
                    found = ~inside if found is None else found & ~inside
        return found

    def _in_areas(self, mm: MmApi, vpns: Pfns, expected: Tokens) -> None:
        # The same for many, in place.
        for area in self._areas.get(mm, ()):
            start = area.start >> self._shift
            inside = np.flatnonzero((vpns >= start) & (vpns < area.end >> self._shift))
            if not len(inside) or area.file is None:
                continue
            if not area.flags & VM_SHARED:
                own = expected[inside]
                expected[inside[own == COPIED_ZEROS]] = 0
                inside = inside[own == 0]
            index = vpns[inside] - start + area.pgoff
            there = index < len(area.file.tokens)  # no access reaches what lies behind the end
            expected[inside] = 0
            expected[inside[there]] = area.file.tokens[index[there]]

    def _note_in_areas(self, mm: MmApi, vpns: Pfns, tokens: Tokens) -> None:
        # What is written to shared memory is noted at the object. A page of it may have two addresses in a batch: what
        # is written last counts, whichever area it goes through.
        noted: dict[File, tuple[Pfns, Pfns]] = {}  # where in the batch, and at which page of the object
        for area in self._areas.get(mm, ()):
            if area.file is None or not area.flags & VM_SHARED:
                continue
            start = area.start >> self._shift
            inside = np.flatnonzero((vpns >= start) & (vpns < area.end >> self._shift))
            if not len(inside):
                continue
            index = vpns[inside] - start + area.pgoff
            before = noted.get(area.file)
            if before is not None:
                inside, index = np.concatenate((before[0], inside)), np.concatenate((before[1], index))
            noted[area.file] = inside, index
        for file, (inside, index) in noted.items():
            order = np.argsort(inside)
            file.tokens[index[order]] = tokens[inside[order]]

    def copied_from_file(self, area: "Area", address: int) -> None:
        """Note that a private mapping of a file has a copy of its own of one page, as the file is now."""
        if self.mode == "none" or area.file is None:
            return
        vpn = address >> self._shift
        token = area.file.token(vpn - (area.start >> self._shift) + area.pgoff)
        self._window(area.mm, vpn)[vpn & ((1 << self._window_shift) - 1)] = token or COPIED_ZEROS

    def read_file(self, file: "File", index: int, pfn: int) -> int:
        """Check a read of one page of a file by a system call; the token found."""
        found = self.token(pfn)
        if self.mode != "none":
            self.reads_checked += 1
            if found != file.token(index):
                self._mismatch(file, index, pfn, file.token(index), found, None)
        return found

    def write_file(self, file: "File", index: int, pfn: int) -> int:
        """Write one page of a file by a system call; the new token."""
        if self.mode == "none":
            return 0
        self._version += 1
        token = self._version << WRITER_BITS
        zone = self.pages.zone(pfn)
        zone.m_token[pfn - zone.base] = token
        file.tokens[index] = token
        self.tainted_pfns.pop(pfn, None)
        return token

    def _expect(self, mm: MmApi, vpns: Pfns, tokens: Tokens) -> None:
        if self._areas:
            self._note_in_areas(mm, vpns, tokens)
        shift = self._window_shift
        number = int(vpns[0]) >> shift
        base = number << shift
        at = vpns - base
        if int(at.min()) >= 0 and int(at.max()) < 1 << shift:
            self._window(mm, base)[at] = tokens
            return
        numbers = vpns >> shift
        for number in np.unique(numbers).tolist():
            there = numbers == number
            self._window(mm, number << shift)[vpns[there] - (number << shift)] = tokens[there]

    def forget(self, mm: MmApi, vpn: int, end: int) -> None:
        """Forget what the pages [vpn, end) held: they were unmapped, so a new mapping there reads zeros."""
        windows = self._expected.get(mm)
        if windows is None:
            return
        first, last = vpn >> self._window_shift, (end - 1) >> self._window_shift
        for number in [number for number in windows if first <= number <= last]:
            base = number << self._window_shift
            windows[number][max(vpn - base, 0) : min(end - base, 1 << self._window_shift)] = 0
        if self.tainted_vpns:
            for key in [key for key in self.tainted_vpns if key[0] is mm and vpn <= key[1] < end]:
                del self.tainted_vpns[key]

    def fork(self, mm: MmApi, child: MmApi, vpn: int, end: int) -> None:
        """Let a child read at the pages [vpn, end) what its parent must read there now."""
        windows = self._expected.get(mm)
        if windows is None:
            return
        at = vpn
        while at < end:
            stop = min(end, ((at >> self._window_shift) + 1) << self._window_shift)
            window = windows.get(at >> self._window_shift)
            if window is not None:
                first = at & ((1 << self._window_shift) - 1)
                self._window(child, at)[first : first + stop - at] = window[first : first + stop - at]
            at = stop
        if self.tainted_vpns:
            for key, quirk in list(self.tainted_vpns.items()):
                if key[0] is mm and vpn <= key[1] < end:
                    self.tainted_vpns[child, key[1]] = quirk

    def move(self, mm: MmApi, vpn: int, to: int, n: int) -> None:
        """Expect what `n` pages from `vpn` held at `to` instead: their mapping was moved, and nothing stays behind."""
        windows = self._expected.get(mm)
        if windows is None:
            return
        inside = (1 << self._window_shift) - 1
        while n:
            some = min(n, inside + 1 - (vpn & inside), inside + 1 - (to & inside))
            window = windows.get(vpn >> self._window_shift)
            if window is not None:
                at = vpn & inside
                self._window(mm, to)[to & inside : (to & inside) + some] = window[at : at + some]
                window[at : at + some] = 0
            if self.tainted_vpns:
                for page in range(some):
                    quirk = self.tainted_vpns.pop((mm, vpn + page), None)
                    if quirk is not None:
                        self.tainted_vpns[mm, to + page] = quirk
            vpn, to, n = vpn + some, to + some, n - some

    def forget_mm(self, mm: MmApi) -> None:
        """Forget an address space that is gone."""
        self._expected.pop(mm, None)
        for key in [key for key in self.tainted_vpns if key[0] is mm]:
            del self.tainted_vpns[key]

    # --- what pages hold

    def _tokens(self, pfns: Pfns) -> Tokens:
        zone = self.pages.zone(int(pfns[0]))
        if int(pfns.min()) >= zone.base and int(pfns.max()) < zone.end:
            return zone.token.take(pfns - zone.base if zone.base else pfns)
        found = np.empty(len(pfns), np.int64)
        for part, index, where in self.pages.split(pfns):
            found[where] = part.token[index]
        return found

    def _store(self, pfns: Pfns, tokens: Tokens) -> None:
        zone = self.pages.zone(int(pfns[0]))
        if int(pfns.min()) >= zone.base and int(pfns.max()) < zone.end:
            zone.token[pfns - zone.base if zone.base else pfns] = tokens
            return
        for part, index, where in self.pages.split(pfns):
            part.token[index] = tokens[where]

    def token(self, pfn: int) -> int:
        """Return the token of one page."""
        zone = self.pages.zone(pfn)
        return zone.m_token[pfn - zone.base]

    # --- accesses

    def read(self, mm: MmApi, vpn: int, pfn: int) -> int:
        """Check one read; the token that it found. `pfn` -1 is the zero page."""
        if self._areas and self._is_driver(mm, vpn):
            return 0
        if pfn >= 0:
            zone = self.pages.zone(pfn)
            found: int = zone.m_token[pfn - zone.base]
        else:
            found = 0
        if self.mode == "none":
            return found
        self.reads_checked += 1
        expected = int(self._window(mm, vpn)[vpn & ((1 << self._window_shift) - 1)])
        if self._areas:
            expected = self._in_area(mm, vpn, expected)
        if found != expected:
            self._mismatch(mm, vpn, pfn, expected, found, None)
        return found

    def write(self, mm: MmApi, vpn: int, pfn: int, *, writer: int = 0) -> int:
        """Make one new version; its token."""
        if self.mode == "none" or (self._areas and self._is_driver(mm, vpn)):
            return 0
        if self.pages.owner is not None:
            self.pages.owner.check_one("writes to", pfn)
        self._version += 1
        token = self._version << WRITER_BITS | writer
        zone = self.pages.zone(pfn)
        zone.m_token[pfn - zone.base] = token
        self._window(mm, vpn)[vpn & ((1 << self._window_shift) - 1)] = token
        if self._areas:
            self._note_in_areas(mm, np.array([vpn]), np.array([token]))
        if self.tainted_vpns or self.tainted_pfns:
            self.tainted_vpns.pop((mm, vpn), None)
            self.tainted_pfns.pop(pfn, None)
        return token

    def read_many(self, mm: MmApi, vpns: Pfns, pfns: Pfns, *, quirk: str | None = None) -> None:
        """Check many reads; `quirk` names the defect that left the mappings stale which they went through.

        A pfn of -1 is the zero page.
        """
        if self.mode == "none" or not len(vpns):
            return
        if self._areas:
            followed = self._followed(mm, vpns)
            if followed is not None:
                vpns, pfns = vpns[followed], pfns[followed]
                if not len(vpns):
                    return
        self.reads_checked += len(vpns)
        expected = self.expected_many(mm, vpns)
        if int(pfns.min()) < 0:
            found = np.zeros(len(pfns), np.int64)
            real = np.flatnonzero(pfns >= 0)
            if len(real):
                found[real] = self._tokens(pfns[real])
        else:
            found = self._tokens(pfns)
        wrong = found != expected
        if np.count_nonzero(wrong):
            for i in np.flatnonzero(wrong).tolist():
                self._mismatch(mm, int(vpns[i]), int(pfns[i]), int(expected[i]), int(found[i]), quirk)

    def new_tokens(self, n: int, *, writer: int = 0) -> Tokens:
        """Make `n` tokens that no page holds yet: pages full of data that a program has prepared elsewhere."""
        if n <= len(RAMP):
            tokens = (RAMP[:n] + (self._version + 1) << WRITER_BITS) | writer
        else:
            tokens = (np.arange(self._version + 1, self._version + 1 + n, dtype=np.int64) << WRITER_BITS) | writer
        self._version += n
        return tokens

    def write_many(
        self,
        mm: MmApi,
        vpns: Pfns,
        pfns: Pfns,
        *,
        writer: int = 0,
        quirk: str | None = None,
        tokens: Tokens | None = None,
    ) -> None:
        """Write many pages, in order: the last write of a page wins. `quirk` as for `read_many`; it taints.

        Each write is a new version, unless `tokens` say what is written.
        """
        n = len(vpns)
        if self.mode == "none" or not n:
            return
        if tokens is None:
            tokens = self.new_tokens(n, writer=writer)
        if self._areas:
            followed = self._followed(mm, vpns)
            if followed is not None:
                vpns, pfns, tokens = vpns[followed], pfns[followed], tokens[followed]
                if not len(vpns):
                    return
        if self.pages.owner is not None and quirk is None:
            self.pages.owner.check("writes to", pfns)
        self._store(pfns, tokens)
        self._expect(mm, vpns, tokens)
        if quirk is not None:
            self.taint(mm, vpns, quirk)
            self.taint_pfns(pfns, quirk)
        elif self.tainted_vpns or self.tainted_pfns:
            for vpn, pfn in zip(vpns.tolist(), pfns.tolist(), strict=True):
                self.tainted_vpns.pop((mm, vpn), None)
                self.tainted_pfns.pop(pfn, None)

    def access_many(self, mm: MmApi, vpns: Pfns, pfns: Pfns, is_write: Bools, *, writer: int = 0) -> None:
        """Check the reads of a batch against the state before it, then apply its writes."""
        writes = np.count_nonzero(is_write)
        if writes == 0:
            self.read_many(mm, vpns, pfns)
        elif writes == len(vpns):
            self.write_many(mm, vpns, pfns, writer=writer)
        else:
            reads = ~is_write
            self.read_many(mm, vpns[reads], pfns[reads])
            self.write_many(mm, vpns[is_write], pfns[is_write], writer=writer)

    # --- copy engines

    def copy(self, dst: Pfns, src: Pfns) -> None:
        """Copy pages one by one: `src[i]` to `dst[i]`."""
        if self.mode == "none" or not len(dst):
            return
        if self.pages.owner is not None:
            self.pages.owner.check("copies from", src)
            self.pages.owner.check("copies to", dst)
        from_, to = self.pages.select(src), self.pages.select(dst)
        if from_ is not None and to is not None:
            to[0].token[to[1]] = from_[0].token[from_[1]]
        else:
            self._store(dst, self._tokens(src))
        if self.tainted_pfns:
            for new, old in zip(dst.tolist(), src.tolist(), strict=True):
                self._copy_taint(new, old)

    def copy_folio(self, dst: int, src: int, nr_pages: int) -> None:
        """Copy consecutive pages."""
        if self.mode == "none":
            return
        if self.pages.owner is not None:
            self.pages.owner.check_run("copies from", src, nr_pages)
            self.pages.owner.check_run("copies to", dst, nr_pages)
        to, from_ = self.pages.zone(dst), self.pages.zone(src)
        i, j = dst - to.base, src - from_.base
        to.token[i : i + nr_pages] = from_.token[j : j + nr_pages]
        if self.tainted_pfns:
            for k in range(nr_pages):
                self._copy_taint(dst + k, src + k)

    def _copy_taint(self, dst: int, src: int) -> None:
        quirk = self.tainted_pfns.get(src)
        if quirk is None:
            self.tainted_pfns.pop(dst, None)
        else:
            self.tainted_pfns[dst] = quirk

    def clear(self, pfns: Pfns, *, in_use: bool = True) -> None:
        """Zero pages, which are to be `in_use`."""
        if self.mode == "none":
            return
        if in_use and self.pages.owner is not None:
            self.pages.owner.check("clears", pfns)
        for zone, index, _ in self.pages.split(pfns):
            zone.token[index] = 0
        if self.tainted_pfns:
            for pfn in pfns.tolist():
                self.tainted_pfns.pop(pfn, None)

    def clear_folio(self, pfn: int, nr_pages: int) -> None:
        """Zero consecutive pages."""
        if self.mode == "none":
            return
        if self.pages.owner is not None:
            self.pages.owner.check_run("clears", pfn, nr_pages)
        zone = self.pages.zone(pfn)
        i = pfn - zone.base
        zone.token[i : i + nr_pages] = 0
        if self.tainted_pfns:
            for k in range(nr_pages):
                self.tainted_pfns.pop(pfn + k, None)

    @property
    def accesses(self) -> int:
        """Count the reads that were checked and the writes, so far."""
        return self.reads_checked + self._version

    # --- quirks

    def taint(self, mm: MmApi, vpns: Pfns, quirk: str) -> None:
        """Attribute what these addresses will read, until they are written again, to a quirk."""
        for vpn in vpns.tolist():
            self.tainted_vpns[mm, vpn] = quirk

    def taint_pfns(self, pfns: Pfns, quirk: str) -> None:
        """Attribute what these pages hold, and their copies, to a quirk."""
        for pfn in pfns.tolist():
            self.tainted_pfns[pfn] = quirk

    def _mismatch(self, mm: "MmApi | File", vpn: int, pfn: int, expected: int, found: int, quirk: str | None) -> None:
        quirk = quirk or self.tainted_vpns.get((cast("MmApi", mm), vpn)) or self.tainted_pfns.get(pfn)
        if quirk is not None:
            self.known[quirk] = self.known.get(quirk, 0) + 1
            return
        self.mismatch_count += 1
        if len(self.mismatches) < MISMATCHES_KEPT:
            kernel = self.kernel
            owner = self.pages.owner
            freed = "" if owner is None or found != POISON_FREED else owner.last(pfn)
            task = kernel.current.name
            self.mismatches.append(Mismatch(kernel.now_ns, task, mm.name, vpn, pfn, expected, found, freed))
